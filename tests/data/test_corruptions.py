"""Noise corruptions: laws in closed form, one noise for an example wherever it stands, and the published images."""

import io
import shutil
import tarfile

import helpers_data as h
import numpy as np
import pytest
from helpers_attacks import keras
from scipy import stats

from bn_vuln import api, data
from bn_vuln.config import AWGN, Clean, Corruption, Evaluation, Suite, describe_perturbation, identity_of, validate
from bn_vuln.data import constants, corruptions
from bn_vuln.data.corruptions import corrupt
from bn_vuln.data.mnist import INFO as MNIST
from bn_vuln.data.noise import add_noise
from bn_vuln.data.tfds import cifar10_c, downloads, network, paths, prepared
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError, ConfigError, UsageError
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.experiments import catalog
from bn_vuln.records import read_record, to_json

# As published, written out once more.
AMOUNTS = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "speckle_noise": [0.06, 0.1, 0.12, 0.16, 0.2],
}
EVERY = [(kind, severity) for kind in AMOUNTS for severity in range(1, 6)]
LEVELS = np.arange(256)


def options(kind, severity, **others):
    return Corruption(corruption=kind, severity=severity, **{"source": "made", **others})


def of_grey(grey, kind, severity, n=100, **others):
    """What becomes of `n` images of one grey."""
    return corrupt(np.full((n, 8, 8, 3), grey, np.uint8), np.arange(n), options(kind, severity, **others))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)


# ---------------------------------------------------------------- laws


def law(grey, kind, severity):
    """The probability of each of the 256 levels, with the clip and the truncation."""
    c, x = AMOUNTS[kind][severity - 1], grey / 255
    if kind == "impulse_noise":
        found = np.where(grey == LEVELS, 1 - c, 0.0)
        found[[0, 255]] += c / 2
        return found
    if kind == "shot_noise":
        counts = np.arange(10 * c)
        level = np.minimum(255 * counts // c, 255)
        return np.bincount(level, stats.poisson(c * x).pmf(counts), minlength=256)
    std = c if kind == "gaussian_noise" else c * x
    if std == 0:
        return (LEVELS == 0) * 1.0
    # Level k is [k, k + 1) / 255; 0 takes all that is cut below, 255 what reaches 1.
    return np.diff(stats.norm(x, std).cdf(LEVELS[1:] / 255), prepend=0, append=1)


def test_amounts_are_those_published():
    assert {name: list(kind.amounts) for name, kind in corruptions.KINDS.items()} == AMOUNTS


@pytest.mark.parametrize(("kind", "severity"), [(kind, severity) for kind in AMOUNTS for severity in (1, 5)])
def test_levels_have_the_law_of_the_formula(kind, severity):
    for grey in (0, 5, 128, 250, 255):
        found, p = of_grey(grey, kind, severity).ravel(), law(grey, kind, severity)
        assert p.sum() == pytest.approx(1)
        mean = p @ LEVELS
        second, fourth = (p @ (LEVELS - mean) ** power for power in (2, 4))
        n = found.size
        assert abs(found.mean() - mean) <= 5 * np.sqrt(second / n)
        assert abs(np.mean((found - mean) ** 2) - second) <= 5 * np.sqrt((fourth - second**2) / n)
        # Levels too rare to be counted on their own are one.
        counts, often = np.bincount(found, minlength=256), n * p >= 10
        assert counts[p == 0].sum() == 0
        assert counts[~often].sum() <= 5 * np.sqrt(n * p[~often].sum()) + n * p[~often].sum() + 5
        seen = counts[often]
        assert stats.chisquare(seen, p[often] / p[often].sum() * seen.sum()).pvalue > 1e-5 or often.sum() == 1


def test_impulses_replace_each_channel_by_itself_half_by_white_half_by_black():
    share, found = AMOUNTS["impulse_noise"][4], of_grey(128, "impulse_noise", 5, n=400)
    n = found.size
    white, black = np.sum(found == 255), np.sum(found == 0)
    assert white + black + np.sum(found == 128) == n
    assert abs(white + black - n * share) < 5 * np.sqrt(n * share * (1 - share))
    assert abs(white - black) < 5 * np.sqrt(n * share)
    # The number of replaced channels of a pixel is binomial.
    pixels = np.bincount((found != 128).sum(-1).ravel(), minlength=4)
    expected = n / 3 * stats.binom(3, share).pmf(np.arange(4))
    assert abs(pixels[1] - expected[1]) < 5 * np.sqrt(expected[1])
    assert abs(pixels[2] - expected[2]) < 5 * np.sqrt(expected[2]) + 1


def test_shot_noise_counts_photons():
    """Levels are 255 k / c, truncated; rounded they would be others."""
    for severity, c in enumerate(AMOUNTS["shot_noise"], 1):
        found = set(of_grey(128, "shot_noise", severity).ravel().tolist())
        assert found <= {255 * k // c for k in range(c + 1)}
        assert c >= 255 or not found <= {round(255 * k / c) for k in range(c + 1)}


def test_levels_are_truncated_not_rounded():
    """The mean falls by half a level, but for what nothing happens to."""
    found = of_grey(128, "gaussian_noise", 1, n=1000).astype(np.float64)
    assert abs(found.mean() - 127.5) < 5 * found.std() / np.sqrt(found.size)


def test_pixels_that_are_not_replaced_keep_their_level():
    ramp = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (50, 1, 1, 1))
    found = corrupt(ramp, np.arange(50), options("impulse_noise", 5))
    kept = found == ramp
    assert kept.any(axis=0).all()
    assert np.isin(found[~kept], [0, 255]).all()


# ---------------------------------------------------------------- the published code


def published(x, kind, severity, random):
    """The functions of make_cifar_c.py, with skimage's salt and pepper, as NumPy's legacy generator draws them."""
    c, x = AMOUNTS[kind][severity - 1], x / 255.0
    if kind == "gaussian_noise":
        x = x + random.normal(size=x.shape, scale=c)
    elif kind == "shot_noise":
        x = random.poisson(x * c) / c
    elif kind == "impulse_noise":
        flipped = random.choice([True, False], size=x.shape, p=[c, 1 - c])
        salted = random.choice([True, False], size=x.shape, p=[0.5, 0.5])
        x[flipped & salted], x[flipped & ~salted] = 1, 0
    else:
        x = x + x * random.normal(size=x.shape, scale=c)
    return np.uint8(np.clip(x, 0, 1) * 255)


def assert_same_law(noisy, reference, clean):
    """Two samples of changes of the same images."""
    one, other = (np.ravel(images.astype(np.int64) - clean) for images in (noisy, reference))
    assert stats.ks_2samp(one, other).pvalue > 1e-4
    for power in (1, 2):
        a, b = one.astype(np.float64) ** power, other.astype(np.float64) ** power
        assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var()) / a.size)


@pytest.mark.parametrize(("kind", "severity"), zip(AMOUNTS, (1, 5, 5, 1), strict=True))
def test_changes_are_those_of_the_published_code(kind, severity):
    clean = np.random.default_rng(1).integers(0, 256, (60, 32, 32, 3), np.uint8)
    random = np.random.RandomState(0)
    reference = np.stack([published(image, kind, severity, random) for image in clean])
    assert_same_law(corrupt(clean, np.arange(60), options(kind, severity)), reference, clean)


def test_impulses_are_those_of_skimage():
    severity = 5
    util = pytest.importorskip("skimage.util")
    clean = np.random.default_rng(1).integers(0, 256, (60, 32, 32, 3), np.uint8)
    share = AMOUNTS["impulse_noise"][severity - 1]
    noisy = [util.random_noise(image / 255.0, mode="s&p", amount=share) for image in clean]
    reference = np.uint8(np.clip(noisy, 0, 1) * 255)
    assert_same_law(corrupt(clean, np.arange(60), options("impulse_noise", severity)), reference, clean)


# ---------------------------------------------------------------- which noise an example gets


def test_an_example_gets_the_same_noise_in_any_subset_and_order(images):
    index, before = np.arange(900, 960), images.copy()
    chosen = np.random.default_rng(1).permutation(60)[:17]
    for kind in AMOUNTS:
        whole = corrupt(images, index, options(kind, 3))
        assert (whole.dtype, whole.shape) == (np.uint8, images.shape)
        np.testing.assert_array_equal(corrupt(images[chosen], index[chosen], options(kind, 3)), whole[chosen])
        np.testing.assert_array_equal(images, before)  # the input is left as it is


def test_noise_follows_the_index_and_not_the_place():
    grey = np.full((3, 8, 8, 3), 128, np.uint8)
    first, second, third = corrupt(grey, np.array([7, 7, 8]), options("gaussian_noise", 3))
    np.testing.assert_array_equal(first, second)
    assert np.any(first != third)


def test_no_two_corruptions_seeds_or_examples_share_noise():
    """No corruption shares its noise with AWGN of the same seed either."""
    every = [of_grey(128, kind, severity, n=4) for kind, severity in EVERY]
    every += [of_grey(128, kind, 3, n=4, seed=seed) for kind in AMOUNTS for seed in (1, 2)]
    grey = np.full((4, 8, 8, 3), 128, np.uint8)
    every += [add_noise(grey, np.arange(4), AWGN(std=0.1), constants.CIFAR10)]
    noise = np.concatenate([x.reshape(4, -1).astype(np.float64) for x in every])
    assert noise.std(axis=1).min() > 0
    correlation = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(correlation).max() < 6.5 / np.sqrt(8 * 8 * 3)  # a coincidence of two rare impulses included


def test_points_are_refused():
    with pytest.raises(UsageError, match="corruptions are of images, gray or RGB, received points of 2"):
        corrupt(data.load("toy").images[:2], np.arange(2), options("gaussian_noise", 1))


# ---------------------------------------------------------------- configs


def test_configs_that_make_no_sense_are_refused():
    given = {"kind": "corruption", "corruption": "shot_noise", "severity": 1}
    for fields, message in (
        ({"severity": 6}, "severity: expected less than or equal to 5, received 6"),
        (
            {"corruption": "gaussian"},
            "corruption: expected 'gaussian_noise', 'shot_noise', 'impulse_noise' or 'speckle_noise', "
            "received 'gaussian'",
        ),
        ({"source": "tfds"}, "source: expected 'auto', 'made' or 'archive', received 'tfds'"),
        ({"seed": 1}, "seed is only allowed with source: made (the published images are fixed), received auto"),
    ):
        with pytest.raises(ConfigError) as error:
            validate(Suite, {"title": "t", "perturbations": {"p": {**given, **fields}}}, "s.yaml")
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="severity: missing"):
        validate(Corruption, {"corruption": "shot_noise"}, "s.yaml")


def test_descriptions_and_identity():
    assert describe_perturbation(Corruption(corruption="shot_noise", severity=4)) == "shot_noise severity 4"
    assert describe_perturbation(options("shot_noise", 4)) == "shot_noise severity 4, made"
    assert set(identity_of(options("shot_noise", 4))) == set(Corruption.model_fields)


# ---------------------------------------------------------------- evaluation


def small_model(size, channels):
    """An untrained linear net."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, channels))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))


@pytest.fixture(scope="module")
def wide():
    """An evaluation on 30 test images of MNIST of a net that takes 56 x 56."""
    return Evaluator(from_model(small_model(56, 1), MNIST, {"weights": "wide"}), Evaluation(limit=30))


def test_images_are_corrupted_before_they_are_resized(wide):
    shot, dataset = Corruption(corruption="shot_noise", severity=3), wide.eval_set.dataset
    found = wide.run(shot)
    native = corrupt(dataset.images, dataset.index, shot)
    assert native.shape == (30, 28, 28, 1)
    np.testing.assert_array_equal(found.images, pixel_array(native, 56))
    fewer = Evaluator(wide.eval_set.classifier, Evaluation(limit=10))
    np.testing.assert_array_equal(fewer.run(shot).images, found.images[:10])


def test_pixels_are_the_levels_over_255():
    evaluator = Evaluator(from_model(small_model(28, 1), MNIST, {"weights": "small"}), Evaluation(limit=10))
    levels = evaluator.run(options("gaussian_noise", 2)).images * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)


def test_the_record_says_that_images_were_made(wide, tmp_path):
    found = wide.run(Corruption(corruption="shot_noise", severity=3)).record
    assert (found.kind, found.corruption_source) == ("corruption", "made")
    assert found.perturbation["severity"] == 3
    path = tmp_path / f"{found.perturbation_id}.json"
    path.write_text(to_json(found))
    assert read_record(path) == found
    assert wide.run(Clean()).record.corruption_source is None
    assert wide.run(AWGN(std=0.1)).record.corruption_source is None


def test_the_suite_runs(wide):
    suite = catalog.suite("corruptions").perturbations
    assert list(suite) == ["clean", *(f"{kind}_{severity}" for kind, severity in EVERY)]
    assert all(suite[f"{k}_{s}"] == Corruption(corruption=k, severity=s) for k, s in EVERY)
    found = api.evaluate(wide.eval_set.classifier, "corruptions", limit=20)
    assert [record.n for record in found.values()] == [20] * 21
    assert {record.corruption_source for record in found.values()} == {None, "made"}
    assert len({record.perturbation_id for record in found.values()}) == 21


# ---------------------------------------------------------------- the published images

CLEAN = h.examples(25, 32, 3, seed=1), h.examples(40, 32, 3, seed=2)
LABELS = np.random.default_rng(3).permutation(CLEAN[1][1])  # in an order that repeats nowhere


def archive(labels=LABELS, kinds=("gaussian_noise", "shot_noise")):
    """CIFAR-10-C.tar: the images inverted, with the severity in a corner and the kind beside it."""
    files = {"labels": np.tile(labels, 5)}
    for number, kind in enumerate(kinds):
        files[kind] = np.concatenate([inverted(CLEAN[1][0], number, severity) for severity in range(1, 6)])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, array in files.items():
            content = io.BytesIO()
            np.save(content, array)
            entry = tarfile.TarInfo(f"CIFAR-10-C/{name}.npy")
            entry.size = len(content.getvalue())
            tar.addfile(entry, io.BytesIO(content.getvalue()))
    return {"CIFAR-10-C.tar": packed.getvalue()}


def inverted(images, number, severity):
    """What stands for a corruption here."""
    changed = 255 - images
    changed[:, 0, 0] = severity, number, 0
    return changed


def refuse(*_, **__):
    pytest.fail("the network was asked")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty data folder, and a failure where the network is used."""
    monkeypatch.setattr(network, "unreachable", lambda urls: [refuse() for _ in urls])
    return h.go_offline(monkeypatch, tmp_path / "data", refuse)


@pytest.fixture(scope="module")
def clean_ready(tmp_path_factory):
    """A data folder with cifar10 alone, prepared by TFDS' own code."""
    files = {"cifar10": h.cifar10_files(CLEAN[0], (CLEAN[1][0], LABELS))}
    with h.prepared(tmp_path_factory.mktemp("ready"), files) as folder:
        return folder


@pytest.fixture
def cifar10(offline, clean_ready):
    """That data folder, to be written into."""
    shutil.copytree(clean_ready / "cifar10", offline / "cifar10")
    return offline


@pytest.fixture
def with_archive(cifar10):
    """The same, with the archive among TFDS' finished downloads."""
    h.seed_downloads("cifar10_corrupted/gaussian_noise_1", archive())
    return cifar10


def evaluator(**options):
    return Evaluator(from_model(small_model(32, 3), constants.CIFAR10, {"weights": "tiny"}), Evaluation(**options))


def test_published_images_are_those_of_the_clean_ones_row_by_row(with_archive):
    on = evaluator()
    assert not np.array_equal(on.eval_set.dataset.images, CLEAN[1][0])  # TFDS has shuffled them
    for number, (kind, severity) in enumerate([("gaussian_noise", 2), ("shot_noise", 5)]):
        found = on.run(Corruption(corruption=kind, severity=severity))
        assert found.record.corruption_source == "archive"
        np.testing.assert_array_equal(
            found.images, pixel_array(inverted(on.eval_set.dataset.images, number, severity), 32)
        )
    assert prepared.find("cifar10_corrupted/shot_noise_5") is not None


def test_a_limit_and_classes_take_the_published_images_of_its_examples(with_archive):
    some = Corruption(corruption="gaussian_noise", severity=4)
    for dataset in (data.load("cifar10", limit=7), data.load("cifar10", classes=(3, 8))):
        found, source = corruptions.corrupted_images(dataset, "test", some)
        assert source == "archive"
        np.testing.assert_array_equal(found, inverted(dataset.images, 0, 4))


def test_what_is_prepared_needs_no_archive(with_archive, monkeypatch):
    some = Corruption(corruption="gaussian_noise", severity=1, source="archive")
    data.prepare("cifar10_corrupted/gaussian_noise_1")
    shutil.rmtree(with_archive / "downloads")
    monkeypatch.setattr(downloads, "files", refuse)
    assert corruptions.corrupted_images(data.load("cifar10"), "test", some)[1] == "archive"


def test_the_archive_in_the_manual_folder_is_taken(cifar10, monkeypatch, tmp_path):
    folder = h.write_files(tmp_path / "by_hand", archive())
    monkeypatch.setenv(paths.MANUAL_DIR, str(folder))
    some = Corruption(corruption="shot_noise", severity=1)
    with pytest.raises(BnvulnError, match=r"CIFAR-10-C\.tar is not the file that TFDS registers"):
        corruptions.corrupted_images(data.load("cifar10"), "test", some)
    h.register(monkeypatch, "cifar10_corrupted/shot_noise_1", folder)
    found, source = corruptions.corrupted_images(data.load("cifar10"), "test", some)
    assert source == "archive"
    np.testing.assert_array_equal(found, inverted(data.load("cifar10").images, 1, 1))


def test_made_never_looks_for_the_archive(with_archive, monkeypatch):
    for name in ("is_available", "require_available", "read"):
        monkeypatch.setattr(cifar10_c, name, refuse)
    dataset, gaussian = data.load("cifar10"), options("gaussian_noise", 1)
    found, source = corruptions.corrupted_images(dataset, "test", gaussian)
    assert source == "made"
    np.testing.assert_array_equal(found, corrupt(dataset.images, dataset.index, gaussian))


def test_auto_makes_what_is_not_there_without_network(cifar10):
    on, auto = evaluator(), Corruption(corruption="impulse_noise", severity=1)
    found = on.run(auto)
    assert found.record.corruption_source == "made"
    np.testing.assert_array_equal(
        found.images, pixel_array(corrupt(on.eval_set.dataset.images, on.eval_set.dataset.index, auto), 32)
    )


def test_auto_makes_what_was_never_published(with_archive):
    gaussian = Corruption(corruption="gaussian_noise", severity=1)
    train = data.load("cifar10", "train", validation=5)
    assert corruptions.corrupted_images(train, "train", gaussian)[1] == "made"
    assert corruptions.corrupted_images(data.load("mnist", limit=2), "test", gaussian)[1] == "made"


def test_an_archive_that_is_not_there_is_asked_for_in_one_line(cifar10, monkeypatch, tmp_path):
    asked = Corruption(corruption="gaussian_noise", severity=1, source="archive")
    with pytest.raises(BnvulnError) as error:
        evaluator().run(asked)
    assert str(error.value) == (
        f"cifar10_corrupted/gaussian_noise_1 is not prepared in {cifar10}: put CIFAR-10-C.tar "
        "(https://zenodo.org/record/2535967/files/CIFAR-10-C.tar) into "
        f"{cifar10}/downloads/manual/cifar10_corrupted (or into any folder, with --manual-dir), or download it with "
        "bnvuln data prepare cifar10_corrupted/gaussian_noise_1; source made needs no file"
    )
    monkeypatch.setenv(paths.MANUAL_DIR, str(tmp_path))
    with pytest.raises(BnvulnError, match=rf"CIFAR-10-C\.tar .* into {tmp_path} "):
        evaluator().run(asked)


@pytest.mark.parametrize(("name", "split"), [("cifar10", "validation"), ("mnist", "test")])
def test_an_archive_of_other_images_cannot_be_asked_for(with_archive, name, split):
    dataset = data.load(name, split, validation=5, limit=3)
    asked = Corruption(corruption="gaussian_noise", severity=1, source="archive")
    with pytest.raises(UsageError, match=f"of the test split of cifar10, received {name} {split}; use source made"):
        corruptions.corrupted_images(dataset, split, asked)


@pytest.mark.parametrize(
    ("labels", "source"), [(np.roll(LABELS, 1), "archive"), (LABELS[:-1], "auto")], ids=["other", "fewer"]
)
def test_images_of_other_labels_are_refused(cifar10, labels, source):
    h.seed_downloads("cifar10_corrupted/gaussian_noise_1", archive(labels))
    asked = Corruption(corruption="gaussian_noise", severity=1, source=source)
    with pytest.raises(BnvulnError, match="gaussian_noise_1: its labels are not those of the test split") as error:
        evaluator(limit=5).run(asked)
    assert "\n" not in str(error.value)
