"""What is left out to keep the time, in which order, and that no confirmation ever is; times are made up."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers_runs import MessageLog

from bn_vuln.auditing import confirmation, fragility, plan, what_if
from bn_vuln.auditing.audited import Audited, Chosen
from bn_vuln.auditing.findings import Candidate
from bn_vuln.auditing.options import CORRUPTIONS, AuditOptions
from bn_vuln.auditing.pieces import Pieces
from bn_vuln.auditing.subject import Costs
from bn_vuln.models.normalization_layers import LayerState, NormalizationLayer

COSTS = Costs(gradient=0.001, compile=1.0)
SECONDS = 10.0  # of a confirmation
EACH = 2.0  # of a change in the search
LAYERS = 4


class MadeUpClock:
    """A clock that goes on when it is told to."""

    def __init__(self, budget):
        self.budget, self.before, self.spent = budget, 0.0, 0.0

    @property
    def left(self):
        return self.budget - self.spent


def layer(name):
    state = LayerState(1e-5, np.ones(2), np.zeros(2), np.ones(2))
    return NormalizationLayer(name, "batch", object(), 2, 0.9, False, 1, state)


def audited(clock, folder=None, layers=LAYERS, **options):
    """A model of which nothing is measured yet."""
    subject = SimpleNamespace(
        classifier=SimpleNamespace(id="id"),
        everything=np.arange(200),
        halves=SimpleNamespace(choosing=np.arange(100), reporting=np.arange(100)),
        estimator=SimpleNamespace(images=np.zeros(2000)),
        layers=[layer(f"bn{i}") for i in range(layers)],
        shape=(28, 28, 1),
        classes=10,
        costs=lambda options: COSTS,
    )
    return Audited(subject, AuditOptions(**options), Pieces(folder, {}, clock), clock, MessageLog())


def test_the_curve_has_all_points_where_there_is_time():
    one = audited(MadeUpClock(1000))
    plan.plan([one])
    assert len(one.grid) == 11
    assert (one.skipped, one.progress.lines) == ([], [])


def test_points_are_left_out_for_all_models_of_an_audit_alike():
    one, other = audited(MadeUpClock(1000)), audited(None)
    other.clock = one.clock
    one.costs = other.costs = COSTS
    together = sum(plan.expected_seconds(model, 11) for model in (one, other))
    one.clock.budget = together - 1
    plan.plan([one, other])
    assert len(one.grid) == 6
    assert one.grid == other.grid
    assert one.skipped + other.skipped == ["5 of 11 points of the curve"]
    assert one.progress.lines == [], "what is left can be done in the time"


def test_it_is_said_beforehand_that_the_time_cannot_be_kept():
    one = audited(MadeUpClock(20))
    plan.plan([one])
    (line,) = one.progress.lines
    assert line.startswith("what is never left out takes about ")
    assert line.endswith(": the time cannot be kept")


def test_and_again_where_confirming_takes_longer_than_was_expected():
    one = audited(MadeUpClock(100))
    one.costs = COSTS
    needed = plan.all_layers_seconds(one) + 3 * SECONDS
    assert plan.reserve(one, SECONDS) == needed
    assert one.progress.lines == []
    one.clock.spent = 101 - needed
    plan.reserve(one, SECONDS)
    assert len(one.progress.lines) == 1
    without = audited(MadeUpClock(0), layers=0)
    assert plan.reserve(without, SECONDS) == 0, "nothing is changed, so nothing is confirmed but the model as it is"
    assert without.progress.lines == []


def test_an_audit_that_is_resumed_has_the_same_points(tmp_path):
    first = audited(MadeUpClock(20), tmp_path, time=20)
    plan.plan([first])
    again = audited(MadeUpClock(1000), tmp_path, time=20)
    again.subject.costs = None
    plan.plan([again])
    assert (again.grid, again.costs) == (first.grid, COSTS)
    longer = audited(MadeUpClock(1000), tmp_path, time=1000)
    plan.plan([longer])
    assert len(longer.grid) == 11


def test_thorough_attacks_take_longer():
    quick, thorough = (audited(MadeUpClock(1), thorough=value) for value in (False, True))
    quick.costs = thorough.costs = COSTS
    assert plan.confirmation_seconds(thorough) > 5 * plan.confirmation_seconds(quick)


@pytest.fixture
def made_up(monkeypatch):
    """Attacks and changes that take their time by the clock; what was confirmed is listed."""
    confirmed = []

    def candidate(one, mend, chosen):
        one.clock.spent += EACH
        return Candidate(title=what_if.title(mend), mend=mend, clean=0.9, noise=0.5, attacked=0.4)

    def confirm(one, chosen, name, mend):
        one.clock.spent += SECONDS
        confirmed.append(name)

    monkeypatch.setattr(confirmation, "_candidate", candidate)
    monkeypatch.setattr(confirmation, "_confirmed", confirm)
    return confirmed


@pytest.mark.parametrize(("spare", "tried"), [(100, 4), (5, 2), (1, 0), (-50, 0)])
def test_single_layers_are_tried_while_there_is_time_beside_the_finalists(made_up, spare, tried):
    """Each of 13 changes of all layers and the model as it is take their time, then three confirmations."""
    one = audited(MadeUpClock(14 * EACH + 3 * SECONDS + spare))
    confirmation.search(one, CHOSEN, SECONDS)
    singles = [candidate for candidate in one.candidates if candidate.mend.layers]
    assert len(one.candidates) - len(singles) == 13
    assert len(singles) == tried
    assert one.skipped == ([] if tried == LAYERS else [f"{LAYERS - tried} of {LAYERS} changes of one layer"])
    confirmation.confirm_finalists(one, CHOSEN)
    assert len(made_up) == 3, "no confirmation is left out"
    assert one.clock.left >= min(0, spare)


CHOSEN = Chosen(2 / 255, 0.1, "made up")


@pytest.mark.parametrize(("spare", "measured"), [(1, True), (-1, False)])
def test_corruptions_leave_time_for_all_that_is_never_left_out(monkeypatch, spare, measured):
    reserve = 50.0
    own = len(CORRUPTIONS) * 200 * COSTS.forward
    one = audited(MadeUpClock(reserve + own + spare))
    one.costs, asked = COSTS, []
    monkeypatch.setattr(Audited, "measure_all", lambda self, name, perturbation: asked.append(name))
    fragility.corruptions(one, reserve)
    assert len(asked) == (4 if measured else 0)
    assert one.skipped == ([] if measured else ["the corruptions"])


def test_what_is_left_is_shared_by_the_models_that_are_to_come():
    one = audited(MadeUpClock(100))
    one.sharing = 2
    assert one.left == 50
    one.label = "model 1: "
    one.skip("the corruptions")
    assert one.skipped == ["model 1: the corruptions"]
