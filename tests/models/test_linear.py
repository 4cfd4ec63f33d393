"""Linear models: one logit, raw pixels, zero and random initial values, nearest centroid, BN's effective weights."""

import numpy as np
import pytest
from helpers_attacks import keras

from bn_vuln import data, models, records
from bn_vuln.analysis.tilt import effective_weights
from bn_vuln.config import Attack, Cell, Clean, Data, Evaluation, NearestCentroidArch, identity_of, validate
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.mnist import INFO
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.evaluation import classifier
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.evaluation.measurements import base
from bn_vuln.training import cell_id, train

COLOUR = DatasetInfo("colour", (4, 4, 2), ("a", "b"), mean=(0.2, 0.7), std=(0.5, 0.1), sizes={})
ONE_LOGIT = {"name": "linear", "one_logit": True}
NORMALIZATIONS = ["none", {"name": "batch", "c": 0.3}, {"name": "batch", "c": 0.3, "affine": False}]
NAMES = ["none", "affine", "plain"]


def build(arch="linear", normalization="none", *, info=COLOUR, **fields):
    return models.build(validate(Cell, {"arch": arch, "normalization": normalization, **fields}, "test"), info)


def pixels(n=7, info=COLOUR, seed=1):
    return np.random.default_rng(seed).uniform(size=(n, *info.shape)).astype(np.float32)


def normalizations(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def randomized(model, seed=0):
    """The model with random BN parameters and statistics."""
    generator = np.random.default_rng(seed)
    for layer in normalizations(model):
        for variable in layer.variables:
            low = 0.1 if variable is layer.moving_variance else -1.0
            variable.assign(generator.uniform(low, 2, size=variable.shape))
    return model


def weights(model):
    return {variable.path: variable.numpy() for variable in model.variables}


# ---------------------------------------------------------------- one logit


@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=NAMES)
def test_the_logits_of_one_logit_are_zero_and_z(normalization):
    model = randomized(build(ONE_LOGIT, normalization))
    x = pixels()
    h = ((x - np.array(COLOUR.mean)) / np.array(COLOUR.std)).reshape(len(x), -1)
    for layer in normalizations(model):
        h = (h - layer.moving_mean.numpy()) / np.sqrt(layer.moving_variance.numpy() + 0.3)
        h = h * layer.gamma.numpy() + layer.beta.numpy() if layer.scale else h
    last = model.get_layer("logit")
    assert last.kernel.shape == (32, 1)
    logits = model(x, training=False).numpy()
    assert logits.shape == (len(x), 2)
    np.testing.assert_array_equal(logits[:, 0], np.zeros(len(x)))
    np.testing.assert_allclose(logits[:, 1:], h @ last.kernel.numpy() + last.bias.numpy(), atol=1e-4)


def test_one_logit_is_refused_for_ten_classes():
    with pytest.raises(UsageError, match=r"arch\.one_logit: expected two classes, mnist has 10"):
        build(ONE_LOGIT, info=INFO)


# ---------------------------------------------------------------- pixels as they are


@pytest.mark.parametrize("arch", [ONE_LOGIT, {"name": "mlp", "hidden": [5]}], ids=["one logit", "mlp"])
def test_a_model_that_does_not_standardize_sees_pixels(arch):
    x = pixels()
    model, standardizing = (build(arch, standardize=standardize) for standardize in (False, True))
    np.testing.assert_array_equal(keras.Model(model.input, model.get_layer("standardize").output)(x), x)
    scaled = (x - np.array(COLOUR.mean, np.float32)) / np.array(COLOUR.std, np.float32)
    np.testing.assert_allclose(standardizing(x), model(scaled), atol=1e-4)
    for one, other in zip(model.get_weights(), standardizing.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_standardization_is_part_of_the_id_only_where_it_is_off():
    on, off = (validate(Cell, {"standardize": value}, "test") for value in (True, False))
    assert "standardize" not in identity_of(on)
    assert cell_id(on) == cell_id(Cell()) != cell_id(off)


# ---------------------------------------------------------------- initial values


@pytest.mark.parametrize(("arch", "normalization"), [("linear", "batch"), (ONE_LOGIT, "none")], ids=["two", "one"])
def test_zeros_are_zero_kernels_and_biases(arch, normalization):
    model = build(arch, normalization, init="zeros")
    last = model.layers[-1] if arch == "linear" else model.get_layer("logit")
    assert not last.kernel.numpy().any()
    assert not last.bias.numpy().any()
    np.testing.assert_array_equal(model(pixels(), training=False), np.zeros((7, 2)))


def test_zeros_are_refused_where_hidden_layers_would_never_learn():
    with pytest.raises(ConfigError) as error:
        validate(Cell, {"arch": "mlp", "init": "zeros"}, "test")
    assert str(error.value) == "test: init zeros: hidden layers would never learn; it is for arch linear"


UNIFORM = {"name": "batch", "gamma": "uniform"}
TWO_NORMALIZED = {"name": "mlp", "hidden": [200, 300], "normalized": [0, 1]}


def gammas(**fields):
    return [layer.gamma.numpy() for layer in normalizations(build(TWO_NORMALIZED, UNIFORM, **fields))]


def test_uniform_gamma_is_between_0_and_1_and_depends_on_seed_and_layer():
    first, second = gammas()
    for gamma in (first, second):
        assert gamma.min() >= 0
        assert gamma.max() <= 1
        assert gamma.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * gamma.size))
        assert gamma.var() == pytest.approx(1 / 12, rel=0.2)
    assert abs(np.corrcoef(first, second[:200])[0, 1]) < 0.25
    for one, other, again in zip((first, second), gammas(seed=1), gammas(), strict=True):
        assert not np.isclose(one, other).all()
        np.testing.assert_array_equal(one, again)


def test_uniform_gamma_changes_nothing_else():
    init = "torch"
    ones, uniform = (weights(build(TWO_NORMALIZED, n, init=init, seed=2)) for n in ("batch", UNIFORM))
    assert ones.keys() == uniform.keys()
    changed = {path for path in ones if not np.array_equal(ones[path], uniform[path])}
    assert changed == {path for path in ones if path.endswith("gamma")}
    assert len(changed) == 2
    assert all((ones[path] == 1).all() for path in changed)


def test_gamma_is_part_of_the_id_only_where_it_is_uniform():
    plain, uniform = (validate(Cell, {"normalization": n}, "test") for n in ("batch", UNIFORM))
    assert "gamma" not in identity_of(plain)["normalization"]
    assert cell_id(plain) != cell_id(uniform)


# ---------------------------------------------------------------- the nearest centroid

PAIR = {"arch": "nearest_centroid", "data": {"name": "mnist", "width": 28, "classes": [3, 7]}}
EPS = 0.25


def nearest(classes=(3, 7)):
    return validate(Cell, {**PAIR, "data": {**PAIR["data"], "classes": list(classes)}}, "test")


def centroids(classes):
    """The class means in pixels, in NumPy."""
    images, labels = data.mnist.read("train")
    return np.stack([images[labels == c].reshape(-1, 784).sum(axis=0) / (labels == c).sum() / 255 for c in classes])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder of the nearest-centroid classifier of 3 and 7."""
    folder = tmp_path_factory.mktemp("nearest") / "run"
    train(nearest(), folder)
    return folder


def test_predictions_are_the_nearest_centroid_in_numpy():
    classes = (4, 9, 7, 1)
    trained = train(nearest(classes))
    means = centroids(classes)

    def predicted(examples):
        x = examples.images.reshape(len(examples), -1) / 255
        return ((x[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)

    test = data.load("mnist", "test", classes=classes)
    found = trained.model.predict(pixel_array(test.images, 28), verbose=0).argmax(axis=1)
    np.testing.assert_array_equal(found, predicted(test))
    validation = data.load("mnist", "validation", classes=classes)
    assert trained.record.validation_accuracy == np.mean(predicted(validation) == validation.labels)
    assert 0.8 < trained.record.train_accuracy < 1


def test_the_logits_are_those_of_the_distances():
    """z_k - z_j = (|x - m_j|^2 - |x - m_k|^2) / 2, where the squares need not be alike."""
    means = np.random.default_rng(0).uniform(size=(2, 32))
    model = build("nearest_centroid")
    models.linear.set_centroids(model, means)
    x = pixels()
    distances = ((x.reshape(-1, 1, 32) - means) ** 2).sum(axis=2)
    logits = model(x).numpy()
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], (distances[:, 0] - distances[:, 1]) / 2, atol=1e-5)


def test_a_run_folder_holds_what_a_training_writes(run):
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "model.keras", "training.json"]
    assert records.read_cell(run) == nearest()
    record = records.read_training(run)
    assert (record.state, record.epochs, record.best_epoch, record.loss) == ("trained", 0, None, None)
    assert record.parameters == 2 * 785
    assert record.cell_id == cell_id(nearest())
    opened = classifier.from_run(run)
    assert opened.classes == (3, 7)
    assert opened.info.classes == ("3", "7")


@pytest.mark.parametrize(("box", "published"), [((0, 1), 0.38518), ("none", 0.13984)], ids=["box", "no box"])
def test_fgsm_of_the_nearest_centroid_is_its_closed_form(run, box, published):
    test = data.load("mnist", "test", classes=(3, 7))
    means = centroids((3, 7))
    w, bias = means[1] - means[0], -((means[1] ** 2).sum() - (means[0] ** 2).sum()) / 2
    s = np.where(test.labels == 1, 1.0, -1.0)
    adversarial = test.images.reshape(len(test), -1) / 255 - EPS * s[:, None] * np.sign(w)
    if box != "none":
        adversarial = np.clip(adversarial, 0, 1)
    expected = s * (adversarial @ w + bias) > 0
    result = Evaluator(classifier.from_run(run), Evaluation()).run(Attack(attack="fgsm", eps=EPS, box=box))
    np.testing.assert_allclose(result.images.reshape(len(test), -1), adversarial, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(result.correct, expected)
    assert result.record.n == 2038
    assert round(result.record.accuracy, 5) == published
    assert result.record.flags == ()


def test_evaluation_is_on_the_classes_alone(run):
    record = Evaluator(classifier.from_run(run), Evaluation(limit=100)).run(Clean()).record
    assert record.n == 100
    assert record.accuracy > 0.9
    assert record.cell["data"]["classes"] == [3, 7]


def test_options_of_the_training_do_not_change_the_nearest_centroid():
    for changes in (
        {"seed": 5},
        {"train": {"epochs": 7, "optimizer": "adam", "lr": 0.1}},
        {"normalization": {"name": "batch", "c": 0.1}},
        {"normalization": "l2", "weight_decay": 0.01},
        {"weight_decay": 0.01, "decay_on": "all"},
        {"init": "he", "standardize": False, "arch": {"name": "nearest_centroid"}},
        {"data": {**PAIR["data"], "limit": 100, "balanced": True, "subset_seed": "seed"}},
    ):
        cell = validate(Cell, {**PAIR, **changes}, "test")
        assert cell == nearest()
        assert cell_id(cell) == cell_id(nearest())


def test_the_data_change_the_nearest_centroid():
    for change in ({"width": 29}, {"classes": [7, 3]}, {"classes": None}, {"name": "toy"}):
        assert cell_id(validate(Cell, {**PAIR, "data": {**PAIR["data"], **change}}, "test")) != cell_id(nearest())


def test_the_command_says_that_there_is_nothing_to_train(bnvuln, tmp_path):
    code, out, err = bnvuln("train", "--arch", "nearest_centroid", "--classes", "3,7", "--out", tmp_path / "run")
    assert code == 0, err
    accuracy = records.read_training(tmp_path / "run").validation_accuracy
    assert out == f"validation accuracy {100 * accuracy:.2f}% (nothing to train)\nrun: {tmp_path / 'run'}\n"


# ---------------------------------------------------------------- the effective weights of BN of the input


@pytest.mark.parametrize(("affine", "c"), [(True, 1e-5), (False, 0.1)])
def test_the_gradient_of_the_margin_is_the_effective_weights(tmp_path, affine, c):
    fields = {
        "data": {"name": "mnist", "width": 28, "classes": [3, 7], "limit": 500, "validation": 1000},
        "arch": ONE_LOGIT,
        "standardize": False,
        "normalization": {"name": "batch", "c": c, "affine": affine, "momentum": 0.5},
        "train": {"epochs": 1, "batch_size": 50, "lr": 0.05},
    }
    train(validate(Cell, fields, "test"), tmp_path / "run")
    subject = classifier.from_run(tmp_path / "run")
    (layer,) = normalizations(subject.model)
    assert (layer.scale, layer.epsilon) == (affine, c)
    variance = layer.moving_variance.numpy()
    assert variance.min() < 0.01
    assert variance.max() > 0.1
    gamma = layer.gamma.numpy() if affine else None
    expected = effective_weights(subject.model.get_layer("logit").kernel.numpy()[:, 0], variance, c, gamma)
    test = data.load("mnist", "test", classes=(3, 7), limit=40)
    found, rivals = base.margin_gradients(subject, pixel_array(test.images, 28), test.labels)
    np.testing.assert_array_equal(rivals, 1 - test.labels)
    sign = np.where(test.labels == 1, 1.0, -1.0)[:, None]
    np.testing.assert_allclose(found, sign * expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


# ---------------------------------------------------------------- edge cases


def test_gamma_has_a_random_stream_of_its_own():
    model = build(TWO_NORMALIZED, UNIFORM)
    for gamma, other in zip(gammas(), model.get_layer("logits").variables, strict=True):
        n = min(gamma.size, other.numpy().size)
        scaled = (other.numpy().ravel()[:n] * np.sqrt(300) + 1) / 2
        assert not np.allclose(scaled, gamma[:n], atol=1e-5)


def test_the_nearest_centroid_takes_no_reduced_images():
    with pytest.raises(UsageError, match="width"):
        train(validate(Cell, {**PAIR, "data": {**PAIR["data"], "width": 10}}, "test"))


def test_the_nearest_centroid_of_few_examples(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {f"x_{part}": generator.integers(0, 256, (n, 8, 8), np.uint8) for part, n in (("train", 50), ("test", 10))}
    arrays |= {f"y_{part}": np.arange(n) % 2 for part, n in (("train", 50), ("test", 10))}
    np.savez(tmp_path / "own.npz", **arrays)
    cell = {"arch": "nearest_centroid", "data": {"name": str(tmp_path / "own.npz"), "validation": 10}}
    assert train(validate(Cell, cell, "test")).record.state == "trained"


def test_a_cell_of_objects_is_the_cell_of_their_fields():
    options = Data(width=28, classes=(3, 7), limit=100, balanced=True, subset_seed="seed")
    assert cell_id(Cell(data=options, arch=NearestCentroidArch(), seed=3)) == cell_id(nearest())
