"""Augmentation: exact crops and flips, their random numbers, training on them, resume, replicas, options."""

import json

import numpy as np
import pytest
from helpers_attacks import tf
from helpers_runs import check_resume, small_cell
from scipy.stats import binomtest, chisquare

from bn_vuln import data, models
from bn_vuln.config import Augment, Cell, describe_cell, identity_of, validate
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import choose
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import TrainingLoop, train
from bn_vuln.training.augmentation import crop, random_crops

DENSE = {"name": "mlp", "hidden": [64]}
FEW = {"name": "mnist", "limit": 400, "validation": 200}


def cell_of(augment, **changes):
    """A small cell; `augment` None is training on the images as they are."""
    options = {"epochs": 1, "batch_size": 50, "lr": 0.1, **changes.pop("train", {}), "augment": augment}
    return small_cell(**{"data": FEW, "arch": DENSE, "train": options, **changes})


def one_by_one(images, crops, pad):
    """The same crops and flips, image by image."""
    found = np.empty_like(images)
    height, width = images.shape[1:3]
    for i, (dy, dx, flip) in enumerate(crops):
        padded = np.pad(images[i], ((pad, pad), (pad, pad), (0, 0)))
        window = padded[dy : dy + height, dx : dx + width]
        found[i] = window[:, ::-1] if flip else window
    return found


# ---------------------------------------------------------------- crops and flips


@pytest.mark.parametrize(("shape", "pad", "xla"), [((7, 7, 1), 0, False), ((6, 9, 3), 4, False), ((6, 9, 3), 4, True)])
def test_every_image_is_cropped_and_flipped_by_itself(shape, pad, xla):
    images = np.random.default_rng(0).integers(1, 256, (100, *shape), np.uint8)
    crops = random_crops(Augment(pad=pad), 100, 0, 0)
    found = backend.compile(lambda x, d: crop(x, d, pad), xla=xla)(tf.constant(images), tf.constant(crops))
    assert found.dtype == tf.uint8
    np.testing.assert_array_equal(found, one_by_one(images, crops, pad))
    assert (pad == 0) == bool(np.all(found))  # what is cut off there, black comes in for


def test_entries_are_gathered_for_each_example_alone():
    x, indices = np.arange(24).reshape(2, 3, 4), np.array([[2, 0], [1, 1]])
    rows = backend.gather(backend.place(x), backend.place(indices), axis=1)
    np.testing.assert_array_equal(rows, [x[0, [2, 0]], x[1, [1, 1]]])
    columns = backend.gather(backend.place(x), backend.place(indices), axis=2)
    np.testing.assert_array_equal(columns, [x[0][:, [2, 0]], x[1][:, [1, 1]]])


def test_every_corner_of_the_padded_image_can_be_cut_out():
    image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1)
    for dy, dx in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
        crops = np.array([[dy, dx, 0]], np.int32)
        np.testing.assert_array_equal(crop(tf.constant(image), crops, 2), one_by_one(image, crops, 2))


def test_images_of_a_batch_do_not_share_their_crop():
    images = np.broadcast_to(np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1), (200, 8, 8, 1))
    found = np.asarray(crop(tf.constant(images), random_crops(Augment(), 200, 0, 0), 4))
    assert len(np.unique(found.reshape(200, -1), axis=0)) > 100  # of 162


# ---------------------------------------------------------------- random numbers


def test_corners_are_uniform_and_half_of_the_images_flipped():
    n, pad = 50_000, 4
    crops = random_crops(Augment(pad=pad), n, 0, 0)
    assert crops.shape == (n, 3)
    assert crops.dtype == np.int32
    side = 2 * pad + 1
    places = np.bincount((crops[:, 0] * side + crops[:, 1]) * 2 + crops[:, 2], minlength=2 * side**2)
    assert len(places) == 2 * side**2
    assert chisquare(places).pvalue > 0.01  # dy, dx and flips together, so that they are independent, too
    assert binomtest(int(crops[:, 2].sum()), n).pvalue > 0.01


def test_each_seed_and_epoch_has_its_own_crops():
    found = [random_crops(Augment(), 500, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert 0.05 < np.mean(a[:, 0] == b[:, 0]) < 0.2  # by chance 1/9
    np.testing.assert_array_equal(found[1], random_crops(Augment(), 500, 0, 1))


def test_crops_and_flips_are_the_same_together_and_alone():
    both, crops, flips = (random_crops(Augment(**options), 500, 0, 0) for options in ({}, {"flip": False}, {"pad": 0}))
    np.testing.assert_array_equal(crops[:, :2], both[:, :2])
    np.testing.assert_array_equal(flips[:, 2], both[:, 2])
    assert not crops[:, 2].any()
    assert not flips[:, :2].any()


# ---------------------------------------------------------------- training


def loop_of(cell, examples, validation=None):
    return TrainingLoop(cell, models.build(cell, examples.info), examples, validation or examples)


def test_the_order_of_an_epoch_holds_the_crops():
    examples = data.load_training_data(cell_of(None).data, "train", 0)
    arms = [loop_of(cell_of({}, normalization=name), examples) for name in ("none", "batch")]
    np.testing.assert_array_equal(arms[0].order(3), arms[1].order(3))
    order = arms[0].order(3)
    assert order.shape == (8, 50, 4)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order[..., 0], loop_of(cell_of(None), examples).order(3))
    np.testing.assert_array_equal(order[..., 1:].reshape(-1, 3), random_crops(Augment(), 400, 0, 3))
    assert not np.array_equal(order[..., 1:], arms[0].order(4)[..., 1:])


@pytest.mark.parametrize(
    ("options", "xla"),
    [
        ({"width": 32}, True),
        ({}, False),
        pytest.param({"adversarial": {"eps": 0.1, "steps": 2, "ord": 2}}, True, marks=pytest.mark.slow),
    ],
    ids=["resized", "clean", "adversarial"],
)
def test_an_epoch_is_one_on_images_augmented_before(monkeypatch, xla, options):
    """Every example comes once in an epoch, so that all can be augmented by NumPy before it begins."""
    policy = backend.ExecutionPolicy(xla=xla, steps_per_call=1, fused_batch_norm=True)
    monkeypatch.setattr(backend, "execution_policy", lambda model, **_: policy)
    adversarial = {"adversarial": options.get("adversarial")}
    width = {"data": {**FEW, "width": options.get("width", 28)}}
    cell, plain = (cell_of(augment, train=adversarial, normalization="batch", **width) for augment in ({}, None))
    examples = data.load_training_data(cell.data, "train", 0)
    loop = loop_of(cell, examples)
    order = loop.order(0).reshape(-1, 4)
    images = examples.images.copy()
    images[order[:, 0]] = one_by_one(images[order[:, 0]], order[:, 1:], 4)
    other = loop_of(plain, data.Dataset(images, examples.labels, examples.index, examples.info), examples)
    found, expected = loop.epoch(0, Quiet()), other.epoch(0, Quiet())
    assert found.train_accuracy == expected.train_accuracy
    for a, b in zip(loop.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    x = pixel_array(examples.images, cell.data.width)  # validation images, here the same examples, stay as they are
    assert found.validation_accuracy == np.mean(np.argmax(loop.final_model()(x), axis=1) == examples.labels)


def test_it_changes_what_is_learned(eagerly):
    plain, augmented = (train(cell_of(augment)) for augment in (None, {}))
    assert not np.allclose(plain.model.get_weights()[0], augmented.model.get_weights()[0], atol=1e-3)
    assert augmented.history[0].loss > plain.history[0].loss


def test_a_resumed_training_ends_with_the_same_bits(eagerly, tmp_path, monkeypatch):
    cell = cell_of({}, normalization="batch", train={"epochs": 3, "momentum": 0.9, "select": "last"})
    check_resume(cell, tmp_path, monkeypatch)


def test_two_replicas_train_what_one_device_trains():
    cell = cell_of({}, normalization={"name": "batch", "synchronized": True}, train={"epochs": 2})
    one, two = train(cell), train(cell, distribution=choose("mirrored"))
    for a, b in zip(one.history, two.history, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())


def test_a_crop_that_could_be_black_is_refused():
    with pytest.raises(UsageError, match=r"augment.pad: .* mnist's images, 28 x 28 pixels, received 28"):
        train(cell_of({"pad": 28}))


# ---------------------------------------------------------------- config and options


def test_plain_cells_keep_their_ids_and_others_have_their_own():
    assert "augment" not in identity_of(cell_of(None))["train"]
    assert identity_of(cell_of({}))["train"]["augment"] == {"pad": 4, "flip": True}
    assert cell_of({}) == cell_of({"flip": True, "pad": 4}) != cell_of({"flip": False})


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        (True, ["train.augment: expected a mapping", "received True"]),
        ({"pad": 0, "flip": False}, ["train.augment: pad 0 without flip changes no image"]),
        ({"crop": 4}, ["train.augment", "unknown key 'crop'", "(known: flip, pad)"]),
    ],
)
def test_mistakes_are_explained_once(fields, fragments):
    with pytest.raises(ConfigError) as caught:
        validate(Cell, {"train": {"augment": fields}}, "x")
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == [], caught.value
    assert len(str(caught.value).splitlines()) == 1


def test_it_is_described():
    for augment, text in (
        (None, "none lr 0.1,"),
        ({}, "none crop pad 4 flip, lr 0.1,"),
        ({"flip": False}, "none crop pad 4, lr 0.1,"),
        ({"pad": 0}, "none flip, lr 0.1,"),
    ):
        assert text in describe_cell(cell_of(augment))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], None),
        (["--crop-pad", "2"], {"pad": 2, "flip": False}),
        (["--flip"], {"pad": 0, "flip": True}),
        (["--set", "train.augment={}"], {"pad": 4, "flip": True}),
    ],
)
def test_options_reach_the_config(bnvuln, options, expected):
    code, out, err = bnvuln("train", *options, "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["train"]["augment"] == expected
