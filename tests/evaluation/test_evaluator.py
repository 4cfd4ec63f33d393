"""Evaluation: what is measured is the array that is kept, whatever the attack claims."""

import dataclasses
import shutil

import numpy as np
import pytest

from bn_vuln import api, data, records
from bn_vuln.attacks import active_set
from bn_vuln.config import AWGN, Attack, Clean, Evaluation, digest
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation import classifier
from bn_vuln.evaluation.evaluator import Evaluator, measure
from bn_vuln.external import loading
from bn_vuln.runtime import backend
from bn_vuln.runtime.files import atomic_write

LIMIT = Evaluation(limit=200)


@pytest.fixture(scope="module")
def evaluator(runs):
    return Evaluator(classifier.from_run(runs["batch"]), LIMIT)


def logits_of(folder, images):
    return loading.load_keras(folder / "model.keras").predict(images, verbose=0)


def test_clean_accuracy_is_keras_own(evaluator, runs):
    result = evaluator.run(Clean())
    test = data.load("mnist", "test", limit=200)
    expected = logits_of(runs["batch"], test.images.astype(np.float32) / 255).argmax(1) == test.labels
    np.testing.assert_array_equal(result.correct, expected)
    assert result.record.correct == expected.sum()
    assert result.record.accuracy == pytest.approx(expected.mean())
    assert result.record.n == 200


def test_top5_counts_labels_among_the_five_largest(evaluator, runs):
    result = evaluator.run(Clean())
    test = data.load("mnist", "test", limit=200)
    order = np.argsort(-logits_of(runs["batch"], result.images), axis=1)[:, :5]
    assert result.record.top5 == pytest.approx(np.mean([y in row for y, row in zip(test.labels, order, strict=True)]))


def test_correct_is_that_of_the_images_that_are_kept(evaluator, runs):
    result = evaluator.run(Attack(attack="pgd", eps="8/255", steps=5))
    again = logits_of(runs["batch"], result.images).argmax(1) == result.labels
    np.testing.assert_array_equal(result.correct, again)
    assert result.record.accuracy < evaluator.run(Clean()).record.accuracy


def cheating(monkeypatch, change):
    """Let the engine return changed points, each as a success."""
    run = active_set.run

    def cheat(attack, x, *args, **how):
        found = run(attack, x, *args, **how)
        return dataclasses.replace(found, points=change(found.points), is_adversarial=np.ones(len(x), bool))

    monkeypatch.setattr(active_set, "run", cheat)


@pytest.mark.parametrize("keep", ["last", "first_success"])
def test_an_attack_that_cheats_is_projected_back_and_flagged(evaluator, monkeypatch, keep):
    options = Attack(attack="bim", eps=0.01, steps=1, keep=keep)
    honest = evaluator.run(options).record
    cheating(monkeypatch, lambda points: points * 0.0)
    cheat = evaluator.run(options)
    assert np.abs(cheat.images - evaluator.eval_set.pixels).max() <= 0.01 + 1e-6
    assert "outside ball or box" in {flag.name for flag in cheat.record.flags}
    assert cheat.record.accuracy >= honest.accuracy - 0.02
    assert cheat.min_eps is None or np.isinf(cheat.min_eps[cheat.correct]).all()


def test_an_attack_that_returns_nan_succeeds_on_nothing(evaluator, monkeypatch):
    cheating(monkeypatch, lambda points: points * np.float32("nan"))
    result = evaluator.run(Attack(attack="bim", eps=0.1, steps=1, keep="last"))
    np.testing.assert_array_equal(result.correct, evaluator.run(Clean()).correct)
    assert np.isfinite(result.images).all()


@pytest.mark.slow
def test_batches_of_any_size_give_the_same_result(runs):
    subject = classifier.from_run(runs["batch"])
    options = Attack(attack="pgd", eps=0.1, steps=3, restarts=2)
    small, large = (Evaluator(subject, LIMIT, batch_size=size).run(options) for size in (33, 500))
    assert np.mean(np.abs(small.images - large.images) < 1e-6) > 0.999
    assert np.mean(small.correct == large.correct) > 0.99


def test_a_subset_gets_the_same_noise(runs):
    subject = classifier.from_run(runs["none"])
    noise = AWGN(std=0.3, clip="none")
    few, many = (Evaluator(subject, Evaluation(limit=n)).run(noise).images for n in (50, 200))
    np.testing.assert_array_equal(few, many[:50])


def test_targeted_attacks_report_the_share_that_reached_the_target(evaluator):
    record = evaluator.run(Attack(attack="bim", eps=0.5, steps=20, target="next")).record
    assert record.target_rate > 0.8
    assert record.accuracy < 0.1
    assert evaluator.run(Attack(attack="bim", eps=0.5, steps=20)).record.target_rate is None


def test_cleverhans_agrees(evaluator):
    common = {"attack": "bim", "eps": 0.05, "steps": 5, "keep": "last"}
    own, cleverhans = evaluator.run(Attack(**common)), evaluator.run(Attack(**common, backend="cleverhans"))
    assert np.mean(own.correct == cleverhans.correct) >= 0.995
    assert own.record.perturbation_id != cleverhans.record.perturbation_id


def test_a_record_identifies_what_was_measured(evaluator):
    record = evaluator.run(AWGN(std=1, unit="standardized", clip="none")).record
    assert record.perturbation == {
        "dataset": "mnist", "split": "test", "limit": 200, "bn_statistics": "tracked", "kind": "awgn", "std": 1.0,
        "unit": "standardized", "clip": "none", "seed": 0,
    }  # fmt: skip
    assert record.perturbation_id == digest(record.perturbation)
    assert record.cell_id == digest(record.cell)
    assert record.versions.keys() == {"bnvuln", "python", "tensorflow", "keras", "numpy"}
    assert "oneDNN on" in record.device


def test_a_sound_model_gets_no_flag(evaluator):
    suite = {"clean": Clean(), "noise": AWGN(std=0.1), "pgd": Attack(eps="8/255", steps=5)}
    results = dict(measure(evaluator.eval_set.classifier, suite, LIMIT))
    assert [result.record.flags for result in results.values()] == [(), (), ()]


def test_evaluation_leaves_the_model_as_it_was(runs):
    subject = classifier.from_run(runs["batch"])
    before = [np.array(v) for v in subject.model.variables]
    Evaluator(subject, LIMIT).run(Attack(eps=0.1, steps=2))
    assert all(np.array_equal(b, np.array(v)) for b, v in zip(before, subject.model.variables, strict=True))


# ---------------------------------------------------------------- external models


def external(tmp_path, runs, *, shape=(28, 28, 1), scale=1.0, softmax=False):
    """A plain Keras model that wraps a trained one behind another input and output."""
    import keras

    inner = loading.load_keras(runs["none"] / "model.keras")
    inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / scale)(keras.layers.Reshape((28, 28, 1))(inputs))
    outputs = inner(x)
    outputs = keras.layers.Softmax()(outputs) if softmax else outputs
    path = tmp_path / "external.keras"
    keras.Model(inputs, outputs).save(path)
    return path


PGD = Attack(attack="pgd", eps="8/255", steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(28, 28), (784,)])
def test_any_input_shape_gives_the_accuracy_of_the_original(tmp_path, runs, shape):
    path = external(tmp_path, runs, shape=shape)
    found = api.attack(path, PGD, dataset="mnist", limit=200, input_scale="0-1").record
    assert found.accuracy == pytest.approx(api.attack(runs["none"], PGD, limit=200).record.accuracy, abs=0.011)


@pytest.mark.slow
def test_input_scale_is_respected(tmp_path, runs):
    path = external(tmp_path, runs, scale=255.0)
    assert api.open_classifier(path, dataset="mnist").input_scale.name == "0-255"  # it begins with a Rescaling
    subject = api.open_classifier(path, dataset="mnist", input_scale="0-255")
    expected = api.attack(runs["none"], PGD, limit=200).record.accuracy
    assert api.attack(subject, PGD, limit=200).record.accuracy == pytest.approx(expected, abs=0.011)
    wrong = api.open_classifier(path, dataset="mnist", input_scale="0-1")
    assert api.attack(wrong, Attack(attack="bim", eps=0, steps=1), limit=200).record.accuracy < 0.5


@pytest.mark.slow
def test_a_softmax_is_taken_off(tmp_path, runs):
    path = external(tmp_path, runs, softmax=True)
    found = api.attack(path, PGD, dataset="mnist", limit=200, input_scale="0-1").record
    assert found.flags == ()
    assert found.accuracy == pytest.approx(api.attack(runs["none"], PGD, limit=200).record.accuracy, abs=0.011)
    for declared in ("logits", "sigmoid"):
        with pytest.raises(UsageError, match="--output softmax fits what was seen"):
            api.open_classifier(path, output=declared, input_scale="0-1")


def test_the_identity_of_an_external_model_is_its_content_and_how_it_is_called(tmp_path, runs):
    copy = tmp_path / "copy.keras"
    shutil.copy(runs["none"] / "model.keras", copy)

    def id_of(path, input_scale="0-1"):
        return api.open_classifier(path, input_scale=input_scale).id

    one = id_of(copy)
    assert one == id_of(runs["none"] / "model.keras")
    assert len({one, id_of(runs["batch"] / "model.keras"), id_of(copy, "0-255"), id_of(copy, "0.5,0.5")}) == 4


def model_of(shape, units):
    import keras

    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(units)])


def test_a_model_that_cannot_fit_is_refused():
    for shape, units, fragment in (
        ((28, 28, 3), 10, "it takes RGB images, those of mnist are gray; give --gray-to-rgb"),
        ((28, 28, 5), 10, "expected a model that takes images of 1 or 3 channels"),
        ((31,), 10, "expected a model that takes images of 1 or 3 channels"),
        ((28, 28, 1), 7, "expected outputs"),
    ):
        with pytest.raises(UsageError, match=fragment):
            classifier.from_model(model_of(shape, units), data.dataset_info("mnist"), {"weights": "x"})


def test_a_wider_model_gets_wider_images():
    subject = classifier.from_model(model_of((40, 40, 1), 10), data.dataset_info("mnist"), {"weights": "x"})
    assert Evaluator(subject, Evaluation(limit=5)).eval_set.pixels.shape == (5, 40, 40, 1)


def test_a_file_that_is_no_model_is_named(tmp_path):
    path = tmp_path / "x.keras"
    path.write_bytes(b"no zip at all")
    with pytest.raises(BnvulnError, match=r"x\.keras: not a model file of Keras"):
        api.open_classifier(path)


def test_a_damaged_model_is_named_in_one_line(tmp_path, runs):
    import zipfile

    path = tmp_path / "x.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", b"nothing")
    with pytest.raises(UsageError, match=r"x\.keras: not a \.keras file: no config\.json inside") as error:
        api.open_classifier(path)
    assert "\n" not in str(error.value)


def test_a_run_that_failed_or_never_finished_has_nothing_to_evaluate(tmp_path, runs):
    folder = shutil.copytree(runs["none"], tmp_path / "run")
    record = records.read_training(folder)
    atomic_write(
        folder / "training.json", records.to_json(record.model_copy(update={"state": "failed", "reason": "why"}))
    )
    with pytest.raises(BnvulnError, match=r"failed to train \(why\)"):
        api.open_classifier(folder)
    (folder / "training.json").unlink()
    with pytest.raises(BnvulnError, match="no finished training"):
        api.open_classifier(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(UsageError, match="not a run folder"):
        api.open_classifier(folder)


def test_margins_below_rounding_count_where_the_class_is_another_one(runs):
    """Logits of a large common offset: no margin is above rounding and no search ends, yet images are misclassified."""
    import keras

    plain = loading.load_keras(runs["none"] / "model.keras")
    inputs = keras.Input((28, 28, 1))
    shifted = keras.Model(inputs, keras.layers.Rescaling(1.0, offset=2.0**20)(plain(inputs)))
    info, options = data.dataset_info("mnist"), Attack(attack="pgd", eps=0.1, steps=10)
    found = Evaluator(classifier.from_model(shifted, info, {"weights": "shifted"}), LIMIT, checks="none").run(options)
    expected = Evaluator(classifier.from_run(runs["none"]), LIMIT, checks="none").run(options)
    assert abs(found.record.accuracy - expected.record.accuracy) < 0.05
    np.testing.assert_array_equal(found.min_eps <= options.eps, ~found.correct)


def test_what_differs_in_eps_alone_is_compiled_once(evaluator):
    compiled = evaluator.attack_runner._compiled
    for eps in (0.01, 0.01, 0.02):
        before = len(compiled)
        evaluator.run(Attack(attack="bim", eps=eps, steps=3))
        if eps == 0.01:
            first = len(compiled)
    assert len(compiled) == before == first


def test_operations_that_xla_does_not_have_are_attacked_without_it(monkeypatch):
    backend.tensorflow()
    import keras

    keras.utils.set_random_seed(0)
    tail = [keras.layers.Flatten(), keras.layers.Dense(3)]
    plain = keras.Sequential([keras.Input((6, 6, 1)), *tail])
    bicubic = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Resizing(6, 6, interpolation="bicubic"), *tail])
    images = np.random.default_rng(0).random((20, 6, 6, 1), np.float32)
    labels = np.asarray(plain(images)).argmax(1)
    options = {"attack": "apgd-ce", "eps": 0.02, "steps": 5, "input_scale": "0-1", "checks": "none"}
    true = api.attack(plain, images, labels, **options).record.accuracy
    monkeypatch.setattr("bn_vuln.runtime.backend.MIN_GRADIENTS_FOR_XLA", 1)
    assert api.attack(bicubic, images, labels, **options).record.accuracy == true < 1


def test_a_given_input_scale_that_does_not_fit_is_flagged_in_the_record(runs):
    path = runs["batch"] / "model.keras"
    wrong, right = (api.evaluate(path, {"clean": Clean()}, limit=60, input_scale=name) for name in ("-1-1", "0-1"))
    assert 27 in [flag.check for flag in wrong["clean"].flags]
    assert 27 not in [flag.check for flag in right["clean"].flags]


def test_a_record_without_its_outcomes_is_measured_again(runs, tmp_path):
    folder = shutil.copytree(runs["none"], tmp_path / "run")
    found = api.attack(folder, attack="fgsm", limit=20, root=tmp_path)
    assert api.attack(folder, attack="fgsm", limit=20, root=tmp_path).results == {}
    records.correct_path(folder, found.record.perturbation_id).unlink()
    assert list(api.attack(folder, attack="fgsm", limit=20, root=tmp_path).results) == ["fgsm"]
