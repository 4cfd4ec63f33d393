"""BN evaluated with the statistics of the batch, or with those of one pass through the training examples."""

import dataclasses

import numpy as np
import pytest
from helpers_attacks import cross_entropy, keras, tf
from helpers_runs import small_cell

from bn_vuln import api, data, models
from bn_vuln.config import (
    Attack,
    Cell,
    Clean,
    Evaluation,
    Fooling,
    MinimumNorm,
    Spectrum,
    Tilt,
    digest,
    identity_of,
    validate,
)
from bn_vuln.data.mnist import INFO
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import classifier, sanity_checks
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.eval_set import training_examples, without_large_limit
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.evaluation.measurements.run import measure
from bn_vuln.external import input_scale, loading
from bn_vuln.models import bn_statistics
from bn_vuln.runtime.distribution import choose

KINDS = ["tracked", "reestimated", "batch"]
C = 0.01
DEEP = {"name": "deep", "depth": 3, "units": 12}
L = keras.layers


def build(arch, **fields):
    cell = {"arch": arch, "normalization": {"name": "batch", "c": C, "momentum": 0.8}, **fields}
    return models.build(validate(Cell, cell, "test"), INFO)


def layers(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, L.BatchNormalization)]


def randomized(model, seed=0):
    """The model with random BN parameters and statistics."""
    generator = np.random.default_rng(seed)
    for layer in layers(model):
        for variable in layer.variables:
            variable.assign(generator.uniform(0.5, 2, size=variable.shape))
    return model


def values(model):
    return [variable.numpy() for variable in model.variables]


def unchanged(before, model):
    return all(np.array_equal(b, v) for b, v in zip(before, values(model), strict=True))


def pixels(n, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 28, 28, 1)).astype(np.float32)


def passed(model, x, statistics=None):
    """(logits, (means, variances) of each BN layer's input) of `deep` in NumPy, normalized by those of the batch."""
    h = (x.reshape(len(x), -1).astype(np.float64) - INFO.mean[0]) / INFO.std[0]
    found = []
    for layer in model.layers:
        if isinstance(layer, L.Dense):
            h = h @ layer.kernel.numpy() + (layer.bias.numpy() if layer.use_bias else 0)
        elif isinstance(layer, L.BatchNormalization):
            found.append((h.mean(axis=0), h.var(axis=0)))
            mean, variance = found[-1] if statistics is None else statistics[len(found) - 1]
            h = layer.gamma.numpy() * (h - mean) / np.sqrt(variance + C) + layer.beta.numpy()
        elif isinstance(layer, L.ReLU):
            h = np.maximum(h, 0)
    return h, found


def again(model, images, size, width=28):
    """The copy with statistics of one pass in batches of `size`."""
    return bn_statistics.reestimate_statistics(model, images, size, width=width, call=lambda m, x: m(x, training=True))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# ---------------------------------------------------------------- the statistics of the batch


def test_the_copy_normalizes_by_the_batch():
    model = randomized(build(DEEP))
    copy = bn_statistics.use_batch_statistics(model)
    for n in (8, 50):
        x = pixels(n, seed=n)
        close(copy(x, training=True), passed(model, x)[0])
    tracked = [(layer.moving_mean.numpy(), layer.moving_variance.numpy()) for layer in layers(model)]
    close(copy(x, training=False), passed(model, x, tracked)[0])


def test_the_copy_changes_none_of_its_variables():
    model = randomized(build("vgg8"))
    before = values(model)
    copy = bn_statistics.use_batch_statistics(model)
    assert len(layers(copy)) == len(layers(model)) > 0
    for seed in range(3):
        copy(pixels(10, seed), training=True)
    assert unchanged(before, copy)
    assert unchanged(before, model)
    assert [layer.momentum for layer in layers(model)] == [0.8] * len(layers(model))
    model(pixels(10), training=True)  # as it would without
    assert not unchanged(before, model)


# ---------------------------------------------------------------- a pass through the training examples


@pytest.mark.parametrize(("n", "size", "batches"), [(70, 20, 3), (19, 20, 1)])
def test_reestimated_is_the_mean_of_the_means_and_variances_of_whole_batches(n, size, batches):
    model = randomized(build("linear"))
    before = values(model)
    images = np.random.default_rng(1).integers(0, 256, (n, 28, 28, 1), np.uint8)
    copy = again(model, images, size)
    x = (images.reshape(n, -1) / 255 - INFO.mean[0]) / INFO.std[0]
    pieces = [x[i * size : (i + 1) * size] for i in range(batches)]
    (layer,) = layers(copy)
    np.testing.assert_allclose(layer.moving_mean, np.mean([p.mean(axis=0) for p in pieces], axis=0), atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, np.mean([p.var(axis=0) for p in pieces], axis=0), atol=1e-5)
    assert layer.momentum == 0.8
    assert unchanged(before, model)
    for variable, other in zip(model.variables, copy.variables, strict=True):
        if not variable.path.split("/")[-1].startswith("moving"):
            np.testing.assert_array_equal(variable, other)


def test_reestimated_of_a_deep_model_is_that_of_each_batch_normalized_by_itself():
    model = randomized(build(DEEP))
    before = values(model)
    images = np.random.default_rng(1).integers(0, 256, (90, 28, 28, 1), np.uint8)
    copy = again(model, images, 30)
    assert unchanged(before, model)
    assert len(layers(copy)) == 3
    batches = [passed(model, images[i : i + 30] / 255)[1] for i in (0, 30, 60)]
    expected = [tuple(np.mean([b[k][part] for b in batches], axis=0) for part in (0, 1)) for k in range(3)]
    for layer, (mean, variance) in zip(layers(copy), expected, strict=True):
        close(layer.moving_mean, mean)
        close(layer.moving_variance, variance)
    x = pixels(10)
    close(copy(x, training=False), passed(model, x, expected)[0])


def test_reestimated_resizes_to_the_width_of_the_model():
    model = build("linear", data={"width": 30})
    images = np.random.default_rng(1).integers(0, 256, (40, 28, 28, 1), np.uint8)
    (layer,) = layers(again(model, images, 20, width=30))
    x = (pixel_array(images, 30).reshape(40, -1) - INFO.mean[0]) / INFO.std[0]
    np.testing.assert_allclose(layer.moving_mean, x.mean(axis=0), atol=1e-5)


# ---------------------------------------------------------------- in an evaluation

LIMIT = 150


def evaluator(folder, kind, **options):
    return Evaluator(classifier.from_run(folder), Evaluation(limit=LIMIT, bn_statistics=kind), **options)


def test_the_examples_that_a_run_was_trained_on_are_found_again(runs):
    examples, batch_size = training_examples(classifier.from_run(runs["batch"]))
    assert batch_size == 50
    np.testing.assert_array_equal(examples.index, data.load("mnist", "train", limit=2000).index)


def test_the_training_split_is_what_a_run_was_trained_on(runs):
    """A generalization gap on images that were never seen would be none."""
    subject = classifier.from_run(runs["batch"])  # of 2,000 images
    seen = set(training_examples(subject)[0].index)
    whole = Evaluator(subject, Evaluation(split="train")).eval_set.dataset
    some = Evaluator(subject, Evaluation(split="train", limit=300)).eval_set.dataset
    assert set(whole.index) == seen
    assert len(seen) == 2000
    assert set(some.index) < seen
    assert len(some) == 300
    with pytest.raises(UsageError, match="mnist: limit: what was trained on has 2000 examples, 2001 were asked for"):
        Evaluator(subject, Evaluation(split="train", limit=2001))
    assert without_large_limit(Evaluation(split="train", limit=2001), subject).limit is None
    assert without_large_limit(Evaluation(split="train", limit=2000), subject).limit == 2000


def test_naming_the_data_of_a_run_does_not_change_what_it_was_trained_on(runs):
    """One perturbation id, one set of examples."""
    subject = classifier.from_run(runs["batch"])
    named, unnamed = (
        Evaluator(subject, Evaluation(split="train", dataset=name)).eval_set.dataset for name in ("mnist", None)
    )
    np.testing.assert_array_equal(named.index, unnamed.index)
    assert without_large_limit(Evaluation(split="train", dataset="mnist", limit=2001), subject).limit is None


def test_an_external_model_was_trained_on_everything(runs):
    subject = api.open_classifier(runs["batch"] / "model.keras", input_scale="0-1")
    examples, batch_size = training_examples(subject)
    assert (len(examples), batch_size) == (60000, 100)


def test_drawn_classes_are_found_again():
    cell = small_cell(
        data={"classes": [7, 3], "limit": 40, "balanced": True, "subset_seed": "seed"}, arch="linear", seed=3
    )
    subject = from_model(models.build(cell, data.load("mnist", classes=(7, 3)).info),
                         data.load("mnist", classes=(7, 3)).info, identity_of(cell), dataset="mnist")  # fmt: skip
    examples, _ = training_examples(dataclasses.replace(subject, classes=(7, 3), subset_seed=3))
    np.testing.assert_array_equal(examples.index, data.load_training_data(cell.data, "train", 3).index)
    assert np.bincount(examples.labels).tolist() == [20, 20]


def test_logits_are_those_of_the_batch(runs, monkeypatch):
    """Three batches of 50 examples."""
    monkeypatch.setattr("bn_vuln.evaluation.eval_set.BN_BATCH_SIZE", 50)
    found = evaluator(runs["batch"], "batch")
    model = loading.load_keras(runs["batch"] / "model.keras")
    test = data.load("mnist", "test", limit=LIMIT)
    x = pixel_array(test.images, 28)
    expected = np.concatenate([model(x[i : i + 50], training=True) for i in (0, 50, 100)])
    close(found.eval_set.logits(x), expected)
    result = found.run(Clean())
    np.testing.assert_array_equal(result.correct, expected.argmax(axis=1) == test.labels)
    assert result.record.loss == pytest.approx(cross_entropy(expected, test.labels).mean(), rel=1e-3)


def test_logits_are_those_of_the_reestimated_copy(runs):
    subject = classifier.from_run(runs["batch"])
    examples, size = training_examples(subject)
    copy = again(subject.model, examples.images, size)
    found = evaluator(runs["batch"], "reestimated")
    x = found.eval_set.pixels
    close(found.eval_set.logits(x), copy(x, training=False).numpy())
    assert np.abs(found.eval_set.logits(x) - subject.model(x, training=False).numpy()).max() > 1e-3
    assert found.eval_set.classifier.training is False


def test_user_data_that_go_class_by_class_are_reestimated_in_a_random_order(tmp_path):
    """The mean over batches of one class each would lose the variance between the classes."""
    generator, labels = np.random.default_rng(0), np.repeat([0, 1], 300)
    images = (200 * labels[:, None, None] + generator.integers(0, 30, (600, 28, 28))).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    name = str(tmp_path / "own.npz")
    cell = small_cell(data={"name": name, "validation": 100}, arch="linear", normalization="batch")
    subject = from_model(
        models.build(cell, data.dataset_info(name)), data.dataset_info(name), identity_of(cell), dataset=name
    )
    subject = dataclasses.replace(subject, validation=100)
    found = Evaluator(subject, Evaluation(limit=20, bn_statistics="reestimated")).eval_set.classifier.model
    everything = training_examples(subject)[0].images.reshape(500, -1)
    (layer,) = layers(found)
    inputs = (everything / 255 - subject.info.mean[0]) / subject.info.std[0]
    assert float(np.mean(layer.moving_variance)) == pytest.approx(inputs.var(axis=0).mean(), rel=0.05)


def test_frozen_layers_of_a_finetuned_model_take_the_statistics_that_are_asked_for(runs):
    kind = "reestimated"
    subject = classifier.from_run(runs["batch"])
    expected = Evaluator(subject, Evaluation(limit=LIMIT, bn_statistics=kind)).eval_set.clean_logits
    subject.model.trainable = False
    close(Evaluator(subject, Evaluation(limit=LIMIT, bn_statistics=kind)).eval_set.clean_logits, expected)


def test_constant_pixels_cost_no_digits():
    """Their variance is 0, and 1 / sqrt(0 + c) would make much of an error in it."""
    model = randomized(build("linear", normalization={"name": "batch", "c": 1e-5, "momentum": 0.8}))
    images = data.load("mnist", "test", limit=500).images
    x = pixel_array(images, 28)
    h = (x.reshape(500, -1).astype(np.float64) - INFO.mean[0]) / INFO.std[0]
    layer, last = layers(model)[0], model.layers[-1]
    h = layer.gamma.numpy() * (h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 1e-5) + layer.beta.numpy()
    expected = h @ last.kernel.numpy() + last.bias.numpy()
    found = bn_statistics.use_batch_statistics(model)(x, training=True).numpy()
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.slow
def test_evaluation_leaves_the_model_as_it_was(runs):
    subject = classifier.from_run(runs["batch"])
    before = values(subject.model)
    for kind in KINDS:
        found = Evaluator(subject, Evaluation(limit=LIMIT, bn_statistics=kind))
        used = values(found.eval_set.classifier.model)
        found.run(Attack(attack="bim", eps=0.05, steps=2))
        assert unchanged(used, found.eval_set.classifier.model)
    assert unchanged(before, subject.model)


def test_a_model_without_batch_norm_is_evaluated_as_it_is(runs):
    kind = "batch"
    subject = classifier.from_run(runs["none"])
    found = Evaluator(subject, Evaluation(limit=LIMIT, bn_statistics=kind))
    assert found.eval_set.classifier is subject
    tracked = Evaluator(subject, Evaluation(limit=LIMIT)).run(Clean())
    np.testing.assert_array_equal(found.run(Clean()).correct, tracked.correct)


def test_records_of_the_three_kinds_have_ids_of_their_own(runs):
    found = [evaluator(runs["batch"], kind).run(Clean()).record for kind in KINDS]
    assert [record.perturbation["bn_statistics"] for record in found] == KINDS
    assert len({record.perturbation_id for record in found}) == 3
    assert len({record.cell_id for record in found}) == 1
    assert all(record.perturbation_id == digest(record.perturbation) for record in found)


@pytest.mark.parametrize("kind", ["reestimated", "batch"])
def test_attacks_succeed_with_other_statistics(runs, kind):
    found = evaluator(runs["batch"], kind)
    record = found.run(Attack(attack="bim", eps=0.05, steps=2)).record
    assert record.accuracy < found.run(Clean()).record.accuracy


def test_attacks_use_the_gradient_through_the_batch(runs):
    """One step of FGSM against the gradient of the batch's cross-entropy, by Keras."""
    found = evaluator(runs["batch"], "batch")
    result = found.run(Attack(attack="fgsm", eps=0.05, box="none"))
    model = loading.load_keras(runs["batch"] / "model.keras")
    x = tf.constant(found.eval_set.pixels)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = model(x, training=True)
        # The sum of the margins: examples of a batch weigh alike, whatever their loss.
        own = tf.one_hot(found.eval_set.dataset.labels, 10, on_value=True, off_value=False, dtype=tf.bool)
        others = tf.reduce_logsumexp(tf.where(own, -np.inf, logits), axis=1)
        loss = tf.reduce_sum(others - tf.reduce_sum(tf.where(own, logits, 0.0), axis=1))
    slope = tape.gradient(loss, x).numpy()
    sure = np.abs(slope) > 1e-4 * np.abs(slope).max()
    assert sure.mean() > 0.3
    np.testing.assert_allclose((result.images - x)[sure], 0.05 * np.sign(slope[sure]), rtol=0, atol=1e-6)


def test_check_9_is_not_run_where_the_batch_was_asked_for(runs, monkeypatch):
    subject = classifier.from_run(runs["batch"])
    stuck = dataclasses.replace(subject, model=bn_statistics.use_batch_statistics(subject.model), training=True)
    x = evaluator(runs["batch"], "tracked").eval_set.pixels
    flag = sanity_checks.inference_mode(stuck.predict, stuck.model, x)
    assert flag.check == 9
    assert "depend on the batch" in flag.message
    assert evaluator(runs["batch"], "batch").run(Clean()).record.flags == ()
    called = []
    monkeypatch.setattr(sanity_checks, "inference_mode", lambda *_: called.append(True))
    evaluator(runs["batch"], "batch").run(Clean())
    assert called == []
    evaluator(runs["batch"], "reestimated").run(Clean())
    assert called == [True]


# ---------------------------------------------------------------- external models


def external_model(shape=(28, 28, 1), scale=1.0):
    """A Keras model with BN, of pixels times `scale`; its weights are always the same."""
    inputs = keras.Input(shape)
    x = L.Flatten()(L.Rescaling(1 / scale)(inputs))
    x = L.Dense(5, kernel_initializer=keras.initializers.RandomNormal(seed=1))(x)
    x = L.BatchNormalization()(x)
    return keras.Model(inputs, L.Dense(10, kernel_initializer=keras.initializers.RandomNormal(seed=2))(x))


@pytest.mark.parametrize(("shape", "scale"), [((784,), 1.0), ((28, 28, 1), 255.0)], ids=["flat", "0-255"])
def test_reestimated_calls_an_external_model_as_it_is_called(shape, scale):
    def logits(model, scale):
        subject = from_model(model, INFO, {"data": {"limit": 500}})
        subject = dataclasses.replace(subject, input_scale=input_scale.parse(scale, 1))
        found = Evaluator(subject, Evaluation(limit=20, bn_statistics="reestimated"))
        return found.eval_set.logits(found.eval_set.pixels)

    found = logits(external_model(shape, scale), "0-1" if scale == 1 else "0-255")
    np.testing.assert_allclose(found, logits(external_model(), "0-1"), rtol=0, atol=1e-2)


# ---------------------------------------------------------------- models in models, batches


def nested():
    """A model with BN in a model of its own."""
    inputs = keras.Input((28, 28, 1))
    return keras.Model(inputs, external_model()(inputs))


def test_the_copy_changes_no_variable_of_a_model_in_a_model():
    copy = bn_statistics.use_batch_statistics(nested())
    before = values(copy)
    copy(pixels(10), training=True)
    assert unchanged(before, copy)


def test_reestimated_goes_into_a_model_in_a_model():
    images = np.random.default_rng(1).integers(0, 256, (40, 28, 28, 1), np.uint8)
    outer, plain = (again(model, images, 20) for model in (nested(), external_model()))
    np.testing.assert_allclose(layers(outer)[0].moving_mean, layers(plain)[0].moving_mean, atol=1e-5)
    np.testing.assert_allclose(layers(outer)[0].moving_variance, layers(plain)[0].moving_variance, atol=1e-5)


def test_a_copy_keeps_what_a_layer_has_adapted_to():
    adapted = L.Normalization()
    adapted.adapt(5 * pixels(20) + 3)
    inputs = keras.Input((28, 28, 1))
    model = keras.Model(inputs, external_model()(adapted(inputs)))
    x = pixels(5)
    np.testing.assert_allclose(
        bn_statistics.use_batch_statistics(model)(x, training=False), model(x, training=False), atol=1e-4
    )


def test_a_batch_is_the_global_one_on_several_devices(runs):
    found = {}
    for name in ("none", "mirrored"):
        devices = choose(name)
        with devices.scope():
            subject = classifier.from_run(runs["batch"])
        evaluation = Evaluation(limit=40, bn_statistics="batch")
        found[name] = Evaluator(subject, evaluation, distribution=devices).run(Clean()).record.loss
    assert found["mirrored"] == pytest.approx(found["none"], rel=1e-4)
    attacked = Evaluator(subject, evaluation, distribution=devices)
    with pytest.raises(UsageError, match="use --strategy none"):
        attacked.run(Attack(attack="fgsm", eps=0.1))


def test_attacks_that_change_batches_are_refused(runs):
    found = evaluator(runs["batch"], "batch")
    for options in (
        {"attack": "apgd-ce"},
        {"attack": "strong"},
        {"eps_grid": [0.01]},
        {"min_eps_tolerance": 0.01},
        None,
    ):
        attack = MinimumNorm() if options is None else Attack(eps=0.1, **options)
        with pytest.raises(UsageError, match="with bn_statistics: batch"):
            found.run(attack)


def test_another_batch_size_would_be_another_classifier(runs):
    with pytest.raises(UsageError, match="batch size is fixed at 500"):
        evaluator(runs["batch"], "batch", batch_size=100)
    assert evaluator(runs["none"], "batch", batch_size=100).eval_set.batch_size == 100  # nothing depends on its batch


def test_a_last_smaller_batch_would_be_another_classifier_too(runs, monkeypatch):
    subject = classifier.from_run(runs["batch"])
    with pytest.raises(UsageError, match="multiple of 500, or fewer, received 501"):
        Evaluator(subject, Evaluation(limit=501, bn_statistics="batch"))
    monkeypatch.setattr("bn_vuln.evaluation.eval_set.BN_BATCH_SIZE", 700)
    assert len(Evaluator(subject, Evaluation(bn_statistics="batch")).eval_set.dataset) == 9800  # of 10,000


def test_batches_that_replicas_do_not_divide_are_refused(runs):
    devices = choose("mirrored")
    with devices.scope():
        subject = classifier.from_run(runs["batch"])
    with pytest.raises(UsageError, match="batches of 41 here, which 2 replicas do not divide"):
        Evaluator(subject, Evaluation(limit=41, bn_statistics="batch"), distribution=devices)


def test_measurements_of_single_examples_are_refused(runs):
    """The other examples of a batch act on their margins."""
    evaluation = Evaluation(limit=20, bn_statistics="batch")
    for options in (Tilt(), Spectrum(), Fooling()):
        with pytest.raises(UsageError, match="need per-example logits"):
            list(measure(classifier.from_run(runs["batch"]), {"it": options}, evaluation))
    assert list(measure(classifier.from_run(runs["none"]), {"it": Tilt()}, evaluation))


def test_first_success_becomes_best_loss_where_logits_depend_on_the_batch(runs, monkeypatch):
    """Each example stays in its batch, of which the points of the highest loss are kept."""
    monkeypatch.setattr("bn_vuln.evaluation.eval_set.BN_BATCH_SIZE", 50)
    found = evaluator(runs["batch"], "batch").run(Attack(eps=0.1, steps=3))
    assert found.min_eps is None
    assert found.record.accuracy <= evaluator(runs["batch"], "batch").run(Clean()).record.accuracy


def test_a_record_says_how_many_examples_the_statistics_are_of(runs):
    sizes = {kind: evaluator(runs["batch"], kind).run(Clean()).record.bn_batch_size for kind in KINDS}
    assert sizes == {"tracked": None, "reestimated": None, "batch": LIMIT}
    assert evaluator(runs["none"], "batch").run(Clean()).record.bn_batch_size is None


def test_batches_are_drawn_at_random_from_the_whole_split(runs):
    """Without a limit too: a published order may go class by class."""
    subject = classifier.from_run(runs["batch"])
    found = Evaluator(subject, Evaluation(bn_statistics="batch")).eval_set.dataset
    assert sorted(found.index) == list(range(10_000))
    np.testing.assert_array_equal(found.index[:50], Evaluator(subject, Evaluation(limit=50)).eval_set.dataset.index)
    assert list(Evaluator(subject, Evaluation()).eval_set.dataset.index) == list(range(10_000))
