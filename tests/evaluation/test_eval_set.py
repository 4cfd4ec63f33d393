"""An eval set that is measured in parts, and images brought to the size and channels of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bn_vuln import api, data
from bn_vuln.config import AWGN, Attack, Clean, Corruption, Evaluation, MinimumNorm
from bn_vuln.data import Dataset
from bn_vuln.data.mnist import INFO
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import attack_diagnostics, classifier, eval_set
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.evaluation.fit_images import fit_images
from bn_vuln.runtime import memory

N = 130
BYTES = 4 * 28 * 28


@pytest.fixture(scope="module")
def whole(runs):
    return Evaluator(classifier.from_run(runs["batch"]), Evaluation(limit=N), batch_size=20)


@pytest.fixture
def in_parts(runs, monkeypatch):
    monkeypatch.setattr(eval_set, "ARRAY_BYTES", 50 * BYTES)  # two batches of 20, so that parts are of 40
    return Evaluator(classifier.from_run(runs["batch"]), Evaluation(limit=N), batch_size=20)


PERTURBATIONS = [
    Clean(),
    AWGN(std=0.2),
    Corruption(corruption="shot_noise", severity=3),
    Attack(attack="fgsm", eps=0.1),
    pytest.param(Attack(attack="bim", eps=0.1, steps=4, keep="last"), marks=pytest.mark.slow),
    Attack(eps=0.1, steps=4, eps_grid=(0.02, 0.05)),
    pytest.param(Attack(attack="apgd-ce", eps=0.1, steps=4, min_eps_tolerance=0.02), marks=pytest.mark.slow),
    pytest.param(MinimumNorm(steps=5, binary_search_steps=2), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda p: getattr(p, "attack", p.kind))
def test_parts_give_what_the_whole_gives(whole, in_parts, perturbation):
    assert [len(part()) for _, part in in_parts.eval_set.parts()] == [40, 40, 40, 10]
    one, other = (evaluator.run_eps_grid(perturbation) for evaluator in (whole, in_parts))
    assert [options for options, _ in one] == [options for options, _ in other]
    for (_, expected), (_, found) in zip(one, other, strict=True):
        np.testing.assert_array_equal(found.correct, expected.correct)
        np.testing.assert_allclose(found.images, expected.images, atol=1e-5)
        if expected.min_eps is not None:
            np.testing.assert_allclose(found.min_eps, expected.min_eps, atol=1e-4)
        approximate = {"seconds": 0.0, "loss": 0.0, "mean_distance": 0.0, "median_distance": 0.0, "flags": ()}
        assert found.record.model_copy(update=approximate) == expected.record.model_copy(update=approximate)
        for name in ("loss", "mean_distance", "median_distance"):
            value = getattr(expected.record, name)
            assert getattr(found.record, name) == (None if value is None else pytest.approx(value, rel=1e-3))
        assert {flag.name for flag in found.record.flags} == {flag.name for flag in expected.record.flags}


def test_of_parts_only_the_images_that_are_attacked_again_are_kept(in_parts):
    found = in_parts.run(Attack(attack="fgsm", eps=0.1), keep_images=False)
    assert len(found.images) == len(found.positions) == 100
    everything = in_parts.run(Attack(attack="fgsm", eps=0.1))
    np.testing.assert_array_equal(found.images, everything.images[found.positions])
    grid = in_parts.run_eps_grid(Attack(attack="pgd", eps=0.1, steps=1, eps_grid=[0.05]), keep_images=False)
    assert [len(result.images) for _, result in grid] == [0, 100]
    assert len(in_parts.run(Clean(), keep_images=False).images) == 0


def test_a_sample_of_large_images_is_smaller(in_parts, monkeypatch):
    n = len(in_parts.eval_set)
    assert len(attack_diagnostics.sample_positions(in_parts.eval_set, "full")) == n
    monkeypatch.setattr(eval_set, "SAMPLE_BYTES", 4 * 50 * 28 * 28)
    assert len(attack_diagnostics.sample_positions(in_parts.eval_set, "full")) == 50


# ---------------------------------------------------------------- size and channels


def of_images(images):
    labels = np.zeros(len(images), np.int32)
    return Dataset(images, labels, np.arange(len(images)), replace(INFO, shape=images.shape[1:]))


def test_images_are_reduced_as_pillow_does_it():
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), np.uint8)
    found = fit_images(of_images(images), (10, 16), 3, "stretch").images
    expected = [np.asarray(Image.fromarray(image).resize((16, 10), Image.Resampling.BILINEAR)) for image in images]
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.stack(expected).astype(int)).max() <= 1


def test_images_that_only_have_to_be_enlarged_stay_until_they_are_perturbed():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    for size, resize in (((28, 28), "none"), ((40, 40), "crop"), ((40, 40), "pad"), ((40, 30), "stretch")):
        np.testing.assert_array_equal(fit_images(of_images(images), size, 1, resize).images, images)
    assert fit_images(of_images(images), (40, 30), 1, "pad").images.shape == (3, 40, 30, 1)
    np.testing.assert_array_equal(fit_images(of_images(images), (28, 28), 3, "none").images, images.repeat(3, axis=3))


def test_images_that_do_not_fit_are_refused_with_the_option():
    images = np.zeros((3, 28, 28, 3), np.uint8)
    with pytest.raises(UsageError, match=r"mnist: expected images of 20x20.*--resize"):
        fit_images(of_images(images), (20, 20), 3, "none")
    with pytest.raises(UsageError, match="mnist: expected images of 1 channels, received 3"):
        fit_images(of_images(images), (28, 28), 1, "none")


def test_every_image_of_a_split_is_measured_once(runs):
    labels = data.load("mnist", "all", limit=60).labels
    found = Evaluator(classifier.from_run(runs["batch"]), Evaluation(split="all", limit=60)).eval_set
    np.testing.assert_array_equal(found.labels, labels)


def test_images_that_memory_does_not_hold_are_refused_where_all_are_needed_at_once(runs, in_parts, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2.0 * N * BYTES - 1)
    with pytest.raises(UsageError, match=rf"^mnist: {N} images of 28x28x1 take 0\.0 GB at once, .* --limit$"):
        _ = in_parts.eval_set.pixels
    in_parts.run(Clean())  # which goes in parts
    run = str(runs["batch"])
    with pytest.raises(UsageError, match="--limit"):
        api.measure(run, suite={"tilt": {"kind": "tilt"}}, limit=N)
    with pytest.raises(UsageError, match="covariances of the pixels of images of 28x28x1"):
        api.measure(run, suite={"spectrum": {"kind": "spectrum"}}, limit=N)
    with pytest.raises(UsageError, match="--limit"):
        api.transfer([run, str(runs["none"])], attack="fgsm", eps=0.1, limit=N)
    monkeypatch.setattr(memory, "machine_memory", lambda: 2.0 * N * BYTES)
    assert in_parts.eval_set.pixels.shape == (N, 28, 28, 1)
