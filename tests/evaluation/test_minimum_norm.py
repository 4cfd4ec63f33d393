"""Minimum-norm attacks in evaluations: what is kept, what is recorded, and what tables show of it."""

import json
import shutil

import numpy as np
import pytest
from helpers_attacks import keras, norm
from helpers_records import by_arm, fill, small

from bn_vuln import api, records
from bn_vuln.config import (
    Attack,
    Cell,
    Clean,
    Evaluation,
    EvaluationPlan,
    MinimumNorm,
    describe_fields,
    describe_perturbation,
    identity_of,
    perturbation_identity,
    validate,
)
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.evaluation import attack_runner, classifier, minimum_norm
from bn_vuln.evaluation.evaluator import Evaluator, measure
from bn_vuln.experiments import cost_estimate
from bn_vuln.experiments.runner import Task
from bn_vuln.reporting import tables
from bn_vuln.reporting.aggregate import aggregate
from bn_vuln.runtime import distribution

FAST = {"steps": 60, "step_size": 0.1, "binary_search_steps": 4, "initial_const": 1.0}
LIMIT = Evaluation(limit=40)
STD = 0.3081  # of MNIST
OUTSIDE = "outside ball or box"


@pytest.fixture(scope="module")
def evaluator(runs):
    return Evaluator(classifier.from_run(runs["batch"]), LIMIT)


@pytest.fixture(scope="module")
def few(runs):
    return Evaluator(classifier.from_run(runs["batch"]), Evaluation(limit=10))


@pytest.fixture(scope="module")
def result(evaluator):
    return evaluator.run(MinimumNorm(**FAST))


def logits_of(evaluator, images):
    return np.asarray(evaluator.eval_set.classifier.predict(images))


# ---------------------------------------------------------------- evaluation


def test_distances_are_those_of_the_images_that_are_kept(evaluator, result):
    clean, adversarial = (
        logits_of(evaluator, z).argmax(1) != result.labels for z in (evaluator.eval_set.pixels, result.images)
    )
    assert 0 < clean.sum() < 20
    assert adversarial.mean() > 0.9
    np.testing.assert_array_equal(result.correct, ~adversarial)
    expected = norm(result.images.astype(np.float64) - evaluator.eval_set.pixels, "2")
    np.testing.assert_allclose(result.min_eps, np.where(clean, 0, np.where(adversarial, expected, np.inf)))
    np.testing.assert_array_equal(result.images[clean], evaluator.eval_set.pixels[clean])
    counted = expected[adversarial & ~clean]
    assert result.record.mean_distance == pytest.approx(counted.mean())
    assert result.record.median_distance == pytest.approx(np.median(counted))
    assert result.record.accuracy == pytest.approx(1 - adversarial.mean())
    assert result.record.flags == ()
    assert result.images.min() >= 0
    assert result.images.max() <= 1


def test_in_standardized_units_numbers_are_larger_and_images_the_same(evaluator, result):
    """With a box the variables are the same; the constants mean something else, and both find the nearest points."""
    other = evaluator.run(MinimumNorm(**{**FAST, "initial_const": 10.0}, unit="standardized"))
    assert other.record.mean_distance * STD == pytest.approx(result.record.mean_distance, rel=0.05)


def test_targets_are_what_distances_are_to(evaluator):
    found = evaluator.run(MinimumNorm(**FAST, target="next"))
    target = (found.labels + 1) % 10
    reached = logits_of(evaluator, found.images).argmax(1) == target
    np.testing.assert_array_equal(np.isfinite(found.min_eps), reached)
    assert found.record.target_rate == pytest.approx(reached.mean())
    assert found.record.target_rate > 0.8
    assert found.record.mean_distance > evaluator.run(MinimumNorm(**FAST)).record.mean_distance


@pytest.mark.parametrize(
    ("points", "flagged", "accurate"),
    [(lambda x: x * np.nan, {OUTSIDE}, True), (lambda x: x, set(), True), (lambda x: x - 9, {OUTSIDE}, False)],
    ids=["nan", "clean", "outside"],
)  # fmt: skip
def test_success_is_not_taken_from_the_attack(evaluator, monkeypatch, points, flagged, accurate):
    monkeypatch.setattr(attack_runner, "move_towards", lambda x, *_: points(x))
    found = evaluator.run(MinimumNorm(**FAST))
    clean = evaluator.run(Clean())
    # Where nothing succeeds, the search has missed adversarial images that exist.
    missed = {"the budget does not bite"} if found.record.accuracy > 0.1 else set()
    assert {flag.name for flag in found.record.flags} == flagged | missed
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    if accurate:
        np.testing.assert_array_equal(found.correct, clean.correct)
        assert found.record.mean_distance is None
        np.testing.assert_array_equal(found.min_eps, np.where(clean.correct, np.inf, 0))


CONFIG = {"unit": "pixel", "box": (0.0, 1.0), "confidence": 0.0, "target": "none", **FAST}
CHANGES = [
    {"unit": "standardized"}, {"box": "none"}, {"box": (0.0, 0.9)}, {"confidence": 0.5}, {"target": "next"},
    {"steps": 40}, {"step_size": 0.05}, {"binary_search_steps": 1}, {"initial_const": 0.3},
]  # fmt: skip


@pytest.mark.slow
def test_every_config_field_changes_the_images(few, result):
    fields = set(MinimumNorm.model_fields) - {"kind", "attack", "ord", "backend"}  # one value each
    assert set(CONFIG) == fields == {key for change in CHANGES for key in change}
    for change in CHANGES:
        options = MinimumNorm(**{**CONFIG, **change})
        assert identity_of(options) != identity_of(MinimumNorm(**CONFIG))
        assert np.abs(few.run(options).images - result.images[:10]).max() > 1e-4, change


@pytest.mark.slow
def test_two_replicas_find_what_one_does(runs, evaluator, result):
    devices = distribution.choose("mirrored")
    subject = api.open_classifier(runs["batch"], strategy="mirrored")
    found = Evaluator(subject, LIMIT, batch_size=15, distribution=devices).run(MinimumNorm(**FAST))
    assert found.record.replicas == 2
    np.testing.assert_array_equal(found.correct, result.correct)
    assert found.record.mean_distance == pytest.approx(result.record.mean_distance, rel=1e-3)


def test_batches_of_any_size_give_the_same_distances(evaluator, result):
    found = Evaluator(evaluator.eval_set.classifier, LIMIT, batch_size=16).run(MinimumNorm(**FAST))
    np.testing.assert_allclose(found.min_eps, result.min_eps, rtol=0.02)


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"backend": "cleverhans"}, "backend: expected 'own', received 'cleverhans'"),
        ({"eps": 1}, "unknown key 'eps'"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, fragment):
    with pytest.raises(ConfigError) as error:
        validate(MinimumNorm, fields, "attack")
    assert fragment in str(error.value)


def test_it_is_described():
    text = describe_perturbation(MinimumNorm(**FAST, confidence=2, target="next", backend="own", box="none", ord=2))
    assert (
        text == "carlini_wagner 2 pixel, 4 times 60 steps of 0.1 from constant 1, box none, confidence 2, target next"
    )
    fields = perturbation_identity(LIMIT, "mnist", MinimumNorm())
    assert describe_fields(fields) == (
        "carlini_wagner 2 pixel, 9 times 1000 steps of 0.01 from constant 0.001, box [0, 1] (test, 40)"
    )


def test_its_cost_grows_with_steps_and_constants():
    cell, one = Cell(), {"cw": MinimumNorm(steps=600, binary_search_steps=1)}
    flops = [
        cost_estimate.task_flops(Task(cell, (EvaluationPlan(LIMIT, perturbations),)))
        - cost_estimate.task_flops(Task(cell, (EvaluationPlan(LIMIT, {"clean": Clean()}),)))
        for perturbations in (one, {"cw": MinimumNorm(steps=600, binary_search_steps=4)})
    ]
    assert flops[1] == pytest.approx(4 * flops[0], rel=1e-3)


# ---------------------------------------------------------------- records


def test_what_lies_beside_the_record(tmp_path, evaluator, result):
    (_, found), *_ = measure(evaluator.eval_set.classifier, {"cw": MinimumNorm(**FAST)}, LIMIT, folder=tmp_path)
    path = records.correct_path(tmp_path, found.record.perturbation_id)
    assert path.stat().st_size < 30_000
    arrays = records.read_arrays(path)
    assert arrays.keys() == {"correct", "n", "distance", "clean", "adversarial", "labels", "taken_for"}
    np.testing.assert_allclose(arrays["distance"], result.min_eps, rtol=1e-6)
    assert arrays["adversarial"].shape == (8, 28, 28, 1)
    np.testing.assert_allclose(arrays["clean"], evaluator.eval_set.pixels[:8], atol=1e-3)
    np.testing.assert_allclose(arrays["adversarial"], result.images[:8], atol=1e-3)
    np.testing.assert_array_equal(arrays["labels"], result.labels[:8])
    np.testing.assert_array_equal(arrays["taken_for"], logits_of(evaluator, result.images[:8]).argmax(1))
    np.testing.assert_array_equal(records.read_correct(tmp_path, found.record.perturbation_id), result.correct)
    record = records.read_record(records.record_path(tmp_path, found.record.perturbation_id))
    assert record.mean_distance == found.record.mean_distance
    text = tables.markdown_table(tables.records_table({"cw": record}))
    assert f"mean {record.mean_distance:.3f}, median {record.median_distance:.3f} pixel" in text


def test_few_of_large_images_are_kept():
    for shape, kept in (((28, 28, 1), 8), ((32, 32, 3), 2), ((224, 224, 3), 1)):
        images = np.zeros((20, *shape), np.float32)
        found = minimum_norm.arrays(np.zeros(20), images, images, np.zeros(20, np.int32), np.zeros((20, 3), np.float32))
        assert len(found["clean"]) == len(found["adversarial"]) == len(found["labels"]) == kept
        assert len(found["distance"]) == 20


def test_other_records_have_no_distance_and_no_images(tmp_path, evaluator):
    (_, found), *_ = measure(evaluator.eval_set.classifier, {"clean": Clean()}, LIMIT, folder=tmp_path)
    assert (found.record.mean_distance, found.record.median_distance) == (None, None)
    arrays = records.read_arrays(records.correct_path(tmp_path, found.record.perturbation_id))
    assert arrays.keys() == {"correct", "n"}
    assert "distance" not in tables.records_table({"clean": found.record}).header


def test_a_summary_counts_what_the_attack_found():
    assert minimum_norm.summary(np.array([0.0, 1.0, 2.0, 6.0, np.inf])) == {
        "mean_distance": 3.0,
        "median_distance": 2.0,
    }
    assert minimum_norm.summary(np.array([0.0, np.inf])) == {}


# ---------------------------------------------------------------- tables


CLEAN, NEAREST = {"kind": "clean"}, {"kind": "minimal"}
PERTURBATIONS = {"clean": CLEAN, "cw": NEAREST, "std": {**NEAREST, "unit": "standardized"}}
COLUMNS = {"clean": "clean", "cw": "kept", "cw.distance": "distance", "std.distance": "distance"}


def experiment(**changes):
    table = {"rows": ["data.width"], "columns": COLUMNS}
    return small(**{"perturbations": PERTURBATIONS, "table": table, "claims": [], **changes})


def number(cell, column):
    longer = 1.0 + (cell.normalization.name == "none")
    found = {"cw.distance": 0.7 * longer, "std.distance": 2.5 * longer}.get(column)
    return None if found is None else found + 0.01 * cell.seed


ACCURACIES = by_arm({(arm, name): [0.9, 0.91, 0.92, 0.93] for arm in ("none", "batch") for name in PERTURBATIONS})


def test_distances_are_columns_in_their_unit(tmp_path):
    claims = [{"perturbations": ["cw.distance", "std.distance"], "sign": -1, "source": "text"}]
    chosen = experiment(claims=claims)
    assert [chosen.columns[column].unit for column in COLUMNS] == ["%", "%", "pixels", "standardized"]
    results = aggregate(chosen, fill(tmp_path, chosen, ACCURACIES, also=number))
    assert [comparison.verdict for comparison in results.comparisons] == ["holds", "holds"]
    assert results.comparisons[0].ours.mean == pytest.approx(-0.7)
    (block,) = results.blocks
    assert block.arms["batch"]["cw.distance"].by_seed == {i: pytest.approx(0.7 + 0.01 * i) for i in range(4)}
    assert block.arms["batch"]["cw.distance"].n_examples == 1000
    shown = tables.markdown_table(tables.accuracy_table(results))
    assert "distance, pixels" in shown
    assert "distance, standardized" in shown
    assert "0.715 ± 0.006" in shown


def test_a_record_without_a_distance_leaves_the_cell_empty(tmp_path):
    chosen = experiment()
    results = aggregate(chosen, fill(tmp_path, chosen, ACCURACIES))
    assert results.blocks[0].arms["batch"]["cw.distance"].missing == 0


# ---------------------------------------------------------------- command and API

QUICK = ["--attack", "carlini_wagner", "--steps", "40", "--step-size", "1/10", "--binary-search-steps", "3"]


def test_the_command_takes_it_and_prints_distances(bnvuln, runs, tmp_path):
    folder = shutil.copytree(runs["none"], tmp_path / "run")
    more = ["--initial-const", "1", "--ord", "2", "--limit", "20", "--save", tmp_path / "found.npz"]
    code, out, _ = bnvuln("attack", folder, *QUICK, *more)
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "carlini_wagner" in out
    assert "L2 mean" in out
    assert "median" in out
    _, out, _ = bnvuln("attack", folder, *QUICK, "--limit", "10", "--unit", "standardized", "--target", "next",
                       "--confidence", "0.5", "--box", "none", "--initial-const", "2", "--json", "-q")  # fmt: skip
    (_, record) = json.loads(out)["records"]
    assert record["mean_distance"] > 0
    assert record["kind"] == "minimal"
    assert {key: record["perturbation"][key] for key in MinimumNorm.model_fields} == {
        "kind": "minimal", "attack": "carlini_wagner", "ord": "2", "unit": "standardized", "box": "none", "steps": 40,
        "step_size": 0.1, "binary_search_steps": 3, "initial_const": 2.0, "confidence": 0.5, "target": "next",
        "backend": "own",
    }  # fmt: skip
    with np.load(tmp_path / "found.npz") as saved:
        assert saved["x_adv"].shape == (20, 28, 28, 1)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--ord", "inf"], "ord: expected '2', received 'inf'"),
        (["--backend", "cleverhans"], "backend: expected 'own', received 'cleverhans'"),
        (["--checks", "full"], "checks: carlini_wagner has no eps ball for further attacks"),
        (["--steps", "0"], "'--steps': expected greater than or equal to 1"),
        (["--binary-search-steps", "1.5"], "'--binary-search-steps': expected a whole number"),
        (["--confidence", "nan"], "'--confidence': expected"),
        (["--attack", "pgd", "--confidence", "1"], "confidence: no option of pgd"),
        (["--attack", "carlini"], "did you mean 'carlini_wagner'?"),
    ],
)
def test_what_makes_no_sense_exits_with_one_clear_message(bnvuln, runs, options, fragment):
    code, out, err = bnvuln("attack", runs["none"], "--attack", "carlini_wagner", *options)
    assert (code, out) == (2, "")
    assert fragment in " ".join(err.split())


def test_fields_of_attacks_at_an_eps_are_refused_even_at_their_defaults(bnvuln, runs):
    code, out, err = bnvuln("attack", runs["none"], "--attack", "carlini_wagner", "--no-random-start")
    assert (code, out) == (2, "")
    assert "random_start: no option of carlini_wagner (known: attack, ord," in err
    shared = {"kind", "attack", "ord", "unit", "box", "steps", "step_size", "target", "backend"}
    assert set(Attack.model_fields) & set(MinimumNorm.model_fields) == shared
    for name in set(Attack.model_fields) - shared:
        with pytest.raises(UsageError, match=f"{name}: no option of carlini_wagner"):
            api.attack(runs["none"], attack="carlini_wagner", **{name: Attack(eps=0.1).model_dump()[name] or 1})


@pytest.mark.parametrize("accurate", [False, True], ids=["all-wrong", "no-success"])
def test_a_model_without_adversarial_examples_has_no_distance(bnvuln, tmp_path, accurate):
    """The same logits for all images: right for those of one class, and wrong for all others."""
    images, labels = np.zeros((20, 6, 6), np.uint8), np.repeat([0, 1], 10)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    inputs = keras.Input((6, 6, 1))
    outputs = keras.layers.Dense(2, kernel_initializer="zeros")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, outputs)
    model.layers[-1].bias.assign([5.0, 0.0] if accurate else [np.nan, np.nan])
    model.save(tmp_path / "m.keras")
    more = ["--data", tmp_path / "mine.npz", "--runs", tmp_path / "runs", "--json", "-q"]
    more += ["--input-scale", "0-1", "--output", "logits"]
    code, out, _ = bnvuln("attack", tmp_path / "m.keras", *QUICK, *more)
    clean, record = json.loads(out)["records"]
    assert code == 0
    assert record["accuracy"] == clean["accuracy"]
    assert record["accuracy"] == (0.5 if accurate else 0.0)
    assert (record["mean_distance"], record["median_distance"]) == (None, None)
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    distance = records.read_arrays(records.correct_path(folder, record["perturbation_id"]))["distance"]
    assert np.isinf(distance).mean() == record["accuracy"]
    assert (distance == 0).mean() == 1 - record["accuracy"]


@pytest.mark.slow
def test_the_api_takes_it_as_a_config_or_as_plain_fields(runs, result):
    for attack in ({"kind": "minimal", **FAST}, MinimumNorm(**FAST)):
        found = api.attack(runs["batch"], attack, limit=10)
        np.testing.assert_allclose(found.min_eps, result.min_eps[:10], rtol=0.02)
