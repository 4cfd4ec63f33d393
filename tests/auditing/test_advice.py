"""From what was confirmed of a model to what is advised."""

from pathlib import Path

import helpers_findings as made
import pytest

from bn_vuln.auditing import advice, what_if
from bn_vuln.auditing.findings import Candidate
from bn_vuln.config import Mend
from bn_vuln.records import Flag, open_store
from bn_vuln.reporting import tables
from bn_vuln.reporting.aggregate import aggregate

ALL = Mend(relative_c=0.1, reestimate=True)
ONE = Mend(relative_c=0.3, reestimate=True, layers=("bn_1",))
PLAIN = Mend(relative_c=0.3, layers=("bn_1",), keep_gain=False)
TRIED = Candidate(title="c", mend=ALL, clean=0.9, noise=0.5, attacked=0.42)
MINUS = "\N{MINUS SIGN}"
LEVEL = what_if.level(3, control=True)


def finalist(mend, gain, beyond=None, gains=None):
    """A change that wins so many points under strong, and so many beyond statistics."""
    found = made.finalist(what_if.title(mend), mend, 0.9, 0.4, gain)
    after = made.difference("strong", 0.4, 0.4 + (beyond or 0.0))
    return found.model_copy(
        update={
            "gains": gain > 0.05 if gains is None else gains,
            "beyond_statistics": None if beyond is None else after,
            "noise_beyond_statistics": None if beyond is None else made.difference("noise", 0.5, 0.5),
        }
    )


def advised(*finalists, ord="inf", **fields):
    found = made.model(finalists=finalists, **fields)
    return advice.advise(found, ord=ord, eps=2 / 255, level=LEVEL, command=command)


def command(change, *, first=False):
    return f"{'first' if first else 'mend'} {what_if.title(change)}, {change.finetune is not None}"


def kinds(found):
    return [one.kind for one in found]


WITH_TRAINING = ["train", "fine-tune", "adversarial training"]


def test_statistics_come_first_and_are_all_where_c_wins_nothing_beyond_them():
    found = advised(finalist(Mend(reestimate=True), 0.2), finalist(ALL, 0.22, beyond=0.02))
    assert kinds(found) == ["statistics", *WITH_TRAINING]
    assert "Raising c on top of it adds nothing that these images can show" in found[0].text
    assert "40.0% → 60.0% (+20.0 points, 99.3% interval +15.0 to +25.0)" in found[0].text
    assert found[0].mend == Mend(reestimate=True)
    assert found[0].command.startswith("first ")


def test_c_comes_first_where_it_wins_beyond_statistics_which_it_contains():
    found = advised(finalist(Mend(reestimate=True), 0.2), finalist(ALL, 0.4, beyond=0.2))
    assert kinds(found)[:2] == ["raise c", "statistics"]
    assert "Of this c brings, beyond the statistics: under noise" in found[0].text
    assert "adds nothing" not in found[1].text
    assert [one.command.split()[0] for one in found[:2]] == ["first", "mend"]


def test_the_best_change_of_all_layers_and_the_best_of_one_are_advised():
    worse = ALL.model_copy(update={"relative_c": 1.0})
    found = advised(finalist(worse, 0.2, beyond=0.2), finalist(ONE, 0.3, beyond=0.3), finalist(ALL, 0.25, beyond=0.25))
    assert [one.mend for one in found if one.mend] == [ONE, ALL]


def test_a_layer_is_a_cause_where_its_change_alone_wins():
    (one,) = (a for a in advised(finalist(ONE, 0.3, beyond=0.3)) if a.mend)
    assert "So bn_1 is a cause" in one.text
    assert "by 0.3 times its median variance, with the gain of its median channel kept and the statistics" in one.text
    (plain,) = (a for a in advised(finalist(PLAIN, 0.3)) if a.mend)
    assert "times its median variance: clean images" in plain.text
    assert "So bn_1 is a cause" in plain.text
    (doubtful,) = (a for a in advised(finalist(ONE, 0.3, beyond=0.01)) if a.mend)
    assert "cause" not in doubtful.text
    assert "How much of it the statistics win alone, these images cannot tell" in doubtful.text


def test_nothing_helps():
    found = advised(finalist(ALL, 0.02), candidates=(TRIED,) * 3)
    assert kinds(found) == ["nothing", *WITH_TRAINING]
    widest = max((d.high - d.low) / 2 for d in (one.difference for one in (finalist(ALL, 0.02).strong,)))
    smallest = 100 * max(what_if.smallest_gain(made.N, LEVEL), widest)
    assert f"Nothing that these {made.N} images can show: none of the 3 changes" in found[0].text
    assert f"Gains under about {smallest:.0f} points would be missed" in found[0].text


def test_why_nothing_was_confirmed():
    (first, *_) = advised(candidates=(TRIED,), refused="10 images are too few")
    assert "each change of c costs more clean accuracy than was allowed" in first.text
    assert "Statistics were not estimated again: 10 images are too few." in first.text
    found = advised(layers=())
    assert kinds(found) == ["nothing", "adversarial training"]
    assert "BN may have been folded" in found[0].text


def test_with_masked_gradients_nothing_can_be_judged():
    assert kinds(advised(upper_bounds=True))[0] == "unknown"
    (one,) = (a for a in advised(finalist(ONE, 0.3, beyond=0.3), upper_bounds=True) if a.mend)
    assert one.text.endswith("Gradients are masked: what is won under attack may not be there.")


def test_a_model_that_guesses_by_stale_statistics_is_called_rightly():
    flag = Flag(check=19, name="clean accuracy near guessing", value=0.1, message="Guessing.")
    assert kinds(advised(finalist(Mend(reestimate=True), 0.2), flags=(flag,)))[0] == "statistics"
    assert kinds(advised(finalist(ALL, 0.0), flags=(flag,)))[0] == "unknown"


@pytest.mark.parametrize("check", [25, 27])
def test_doubts_about_how_it_is_called_come_first(check):
    flag = Flag(check=check, name="doubt", value=0.1, message="Is it --input-scale 0-255?")
    found = advised(finalist(Mend(reestimate=True), 0.2), flags=(flag,))
    assert kinds(found)[:2] == ["unknown", "statistics"]
    assert found[0].text.endswith("or nothing below means anything. Is it --input-scale 0-255?")
    assert kinds(advised(flags=(flag.model_copy(update={"check": 2}),)))[0] != "unknown"


def test_what_needs_training_is_in_the_threat_model_of_the_audit():
    asked = []

    def keep(change, *, first=False):
        asked.append(change)
        return ""

    found = made.model(finalists=(), refused="bn is called 2 times")
    advice.advise(found, ord="2", eps=0.5, level=LEVEL, command=keep)
    robust, fine_tuned = sorted(asked, key=lambda change: change.changes_c)
    assert (robust.finetune.adversarial.ord, robust.finetune.adversarial.eps) == ("2", 0.5)
    assert not fine_tuned.reestimate, "which was refused"


@pytest.mark.parametrize(
    ("store", "experiment", "figures"),
    [
        ("posthoc", "posthoc_c", {"18.3", "3.7"}),
        ("paper", "table6_matched", {"26.9"}),
        ("beyond", "strong_vgg8", {"10.9"}),
    ],
)
def test_figures_of_our_nets_are_the_published_ones(store, experiment, figures):
    published = open_store(Path(__file__).parents[2] / "results" / store)
    (found,) = (one for one in published.experiments() if one.name == experiment)
    ours = [claim.ours for claim in tables.claim_texts(aggregate(found, published))]
    rounded = {f"{abs(float(one.split()[0].replace(MINUS, '-'))):.1f}" for one in ours if one[0] in f"+{MINUS}"}
    assert figures <= rounded
    (text,) = (one.text for one in advised(finalist(ALL, 0.02), candidates=(TRIED,)) if one.kind == "train")
    assert experiment in text
    assert all(f" {figure} points " in text or f" {figure} (" in text for figure in figures)
