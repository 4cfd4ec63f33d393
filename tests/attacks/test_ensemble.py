"""Attacks that keep the first success, the ensemble and the eps grid, through the evaluator."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from helpers_attacks import wave_classifier

from bn_vuln import records
from bn_vuln.attacks import ensemble
from bn_vuln.attacks.active_set import SearchResult
from bn_vuln.attacks.base import StepResult
from bn_vuln.attacks.pgd import PGD
from bn_vuln.config import Attack, Evaluation
from bn_vuln.data.mnist import INFO as MNIST
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.evaluator import Evaluator, measure

N = 40
LABELS, LOGITS = np.zeros(2, np.int32), np.eye(10, dtype=np.float32)[:2]


@pytest.fixture(scope="module")
def classifier():
    """An untrained net whose predictions are the labels of most of its images: see `evaluator`."""
    return wave_classifier(MNIST, 0.1, normalized=True)


@pytest.fixture(scope="module")
def evaluator(classifier):
    """The labels are the predictions, but for every eighth image."""
    found = Evaluator(classifier, Evaluation(limit=N), batch_size=16)
    labels = found.eval_set.logits(found.eval_set.pixels).argmax(axis=1).astype(np.int32)
    labels[::8] = (labels[::8] + 1) % 10
    found.eval_set.dataset.labels[:] = labels
    return found


def run(evaluator, **options):
    return evaluator.run(Attack(**{"eps": 0.03, "seed": 1, **options}))


SIZES = {
    "fgsm": {"keep": "first_success"},
    "apgd-t": {"steps": 20, "targets": 3},
    "strong": {"steps": 10, "targets": 3, "queries": 20},
}


ATTACKS = get_args(Attack.model_fields["attack"].annotation)


@pytest.mark.parametrize(("name", "ord"), [*((name, "inf") for name in ATTACKS), ("strong", "2")])
def test_every_attack_succeeds_inside_ball_and_box(evaluator, name, ord):
    sizes = SIZES.get(name, {"steps": 20})
    result = run(evaluator, attack=name, ord=ord, eps={"inf": 0.03, "2": 0.4}[ord], **sizes)
    record = result.record
    assert 0 < record.accuracy < 0.85
    assert not {flag.name for flag in record.flags} & {"outside ball or box"}
    np.testing.assert_array_equal(
        result.correct, evaluator.eval_set.logits(result.images).argmax(axis=1) == evaluator.eval_set.dataset.labels
    )
    np.testing.assert_array_equal(result.min_eps <= 1, ~result.correct)
    assert (result.min_eps[::8] == 0).all()
    np.testing.assert_array_equal(result.images[::8], evaluator.eval_set.pixels[::8])
    assert record.robust_after[name if name != "strong" else "square"] == record.correct
    assert record.n_evaluations > 0


def test_first_success_equals_best_loss_in_success(evaluator):
    common = {"attack": "pgd", "steps": 10, "restarts": 2}
    best, found = run(evaluator, **common, keep="best_loss"), run(evaluator, **common)
    # The clean image counts too, where the best iterate of PGD begins elsewhere.
    clean = evaluator.eval_set.logits(evaluator.eval_set.pixels).argmax(axis=1) != evaluator.eval_set.dataset.labels
    np.testing.assert_array_equal(~found.correct, ~best.correct | clean)
    assert found.record.n_evaluations < 22


@pytest.mark.parametrize("wrong", [float("nan"), 9.0])
def test_an_attack_that_cheats_is_not_believed(evaluator, monkeypatch, wrong):
    def cheat(self, state):
        yes = state["y"] >= 0
        return StepResult({"point": state["point"]}, yes, state["eps"])

    monkeypatch.setattr(PGD, "start", lambda self, job: {"point": job["x"] * 0.0 + wrong})
    monkeypatch.setattr(PGD, "advance", cheat)
    result = run(evaluator, attack="pgd", eps=1e-4, steps=2)
    assert "outside ball or box" in {flag.name for flag in result.record.flags}
    np.testing.assert_array_equal(
        result.correct,
        evaluator.eval_set.logits(evaluator.eval_set.pixels).argmax(axis=1) == evaluator.eval_set.dataset.labels,
    )
    assert np.abs(result.images - evaluator.eval_set.pixels).max() < 1.1e-4


def test_a_targeted_search_ends_at_its_target(evaluator):
    record = run(evaluator, attack="pgd", eps=0.1, steps=20, target="least_likely").record
    assert record.target_rate > 0.5
    assert record.robust_after["pgd"] == N - round(N * record.target_rate)


@pytest.mark.slow
def test_the_ensemble_attacks_what_resisted_before(evaluator):
    options = {"steps": 5, "targets": 3, "queries": 20, "eps": 0.015}
    record = run(evaluator, attack="strong", **options).record
    assert list(record.robust_after) == list(ensemble.STRONG)
    counts = list(record.robust_after.values())
    assert counts == sorted(counts, reverse=True)
    same = {"apgd-ce": {}, "apgd-t": {"targets": 3}}
    alone = {name: run(evaluator, attack=name, steps=5, eps=0.015, **more).correct for name, more in same.items()}
    assert counts[0] == alone["apgd-ce"].sum()
    assert counts[1] == (alone["apgd-ce"] & alone["apgd-t"]).sum()


def test_the_standard_settings():
    options = Attack(attack="strong", eps=0.1)
    stages = list(ensemble.stages(None, options, None, LABELS, LOGITS))
    assert [stage.name for stage in stages] == ["apgd-ce", "apgd-t", "fmn", "square"]
    assert [stage.attack.steps for stage in stages] == [100, 100, 100, 5000]
    assert [stage.n_attempts for stage in stages] == [1, 9, 1, 1]
    assert stages[1].targets.shape == (2, 9)
    more = options.model_copy(update={"restarts": 2})
    twice = list(ensemble.stages(None, more, None, LABELS, LOGITS))
    assert [stage.n_attempts for stage in twice] == [2, 18, 1, 2]


def test_stages_merge_by_the_smaller_eps():
    def found(eps, points, loss=0.0):
        eps = np.array(eps)
        return SearchResult(
            np.array(points, float).reshape(-1, 1, 1, 1), np.isfinite(eps), eps, np.full(4, loss), np.ones(4, int)
        )

    before = found([0.0, 0.2, np.inf, np.inf], [1, 1, 1, 1])
    after = found([np.inf, 0.1, 0.3, np.inf], [2, 2, 2, 2])
    merged = before.merged(after)
    np.testing.assert_array_equal(merged.eps, [0.0, 0.1, 0.3, np.inf])
    np.testing.assert_array_equal(merged.points.ravel(), [1, 2, 2, 1])
    np.testing.assert_array_equal(merged.is_adversarial, [True, True, True, False])
    np.testing.assert_array_equal(merged.n_evaluations, [2, 2, 2, 2])
    clean = found([0.0, 0.2, np.inf, np.inf], [1, 1, 1, 1], loss=-np.inf)  # nothing was kept yet
    np.testing.assert_array_equal(clean.merged(after).points.ravel(), [1, 2, 2, 2])


def test_an_eps_grid_goes_down_from_eps(evaluator):
    """The config of a smaller eps has the larger ones as its eps grid: it cannot be attacked by itself."""
    (smaller,) = Attack(eps=0.03, steps=2, eps_grid=[0.01]).at_smaller_eps
    with pytest.raises(UsageError, match=r"eps_grid: 0\.03 is above eps = 0\.01"):
        evaluator.run(smaller)


def test_an_eps_grid_has_a_record_for_each_eps(classifier, evaluator, tmp_path: Path):
    grid = [0.005, 0.01, 0.02]
    attack = Attack(attack="pgd", eps=0.03, steps=10, eps_grid=grid, seed=1)
    found = evaluator.run_eps_grid(attack)
    assert [options.eps for options, _ in found] == [*grid, 0.03]
    accuracies = [result.record.accuracy for _, result in found]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]
    for options, result in found:
        alone = run(evaluator, attack="pgd", eps=options.eps, steps=10)
        np.testing.assert_array_equal(result.correct, alone.correct)
        assert np.abs(result.images - evaluator.eval_set.pixels).max() <= options.eps + 1e-6
        assert options.step_size == pytest.approx(2.5 * options.eps / 10)
        np.testing.assert_array_equal(result.correct, result.min_eps > options.eps)
    assert len({result.record.perturbation_id for _, result in found}) == 4


def test_records_of_smaller_eps_are_written(classifier, tmp_path: Path):
    attack = Attack(attack="pgd", eps=0.03, steps=2, eps_grid=[0.01])
    names = dict(measure(classifier, {"pgd": attack}, Evaluation(limit=20), folder=tmp_path))
    assert list(names) == ["pgd 0.01", "pgd"]
    for result in names.values():
        assert result.record in records.read_records(tmp_path)
    assert names["pgd 0.01"].record.loss is None
