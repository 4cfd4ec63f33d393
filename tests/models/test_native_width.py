"""Training at native width: the same history and weights as on enlarged images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_runs import check_resume, small_cell

from bn_vuln import data
from bn_vuln.config import Cell, Train
from bn_vuln.models import native_width
from bn_vuln.runtime.distribution import choose
from bn_vuln.training import train

WIDE = {"name": "mnist", "width": 40, "limit": 300, "validation": 100}
MLP = {"name": "mlp", "hidden": [24, 16]}
slow = pytest.mark.slow
SGD = {"epochs": 3, "batch_size": 20, "lr": 0.05, "momentum": 0.0, "select": "last"}


def cell_of(**changes: Any) -> Cell:
    return small_cell(**{"data": WIDE, "arch": MLP, "train": SGD, **changes})


def both(cell: Cell, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, Any]:
    native = train(cell, **options)
    with monkeypatch.context() as patch:
        patch.setattr(native_width, "applies_to", lambda *_: False)
        return native, train(cell, **options)


def assert_same(native: Any, wide: Any) -> None:
    for a, b in zip(native.history, wide.history, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=2e-4)
        assert a.train_accuracy == pytest.approx(b.train_accuracy, abs=0.011)
        assert a.validation_accuracy == pytest.approx(b.validation_accuracy, abs=0.021)
    for a, b in zip(native.model.get_weights(), wide.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(1, abs(b).max()))
    assert native.record.parameters == wide.record.parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalization": {"name": "batch", "momentum": 0.9}},
        {"weight_decay": 0.1, "train": {**SGD, "momentum": 0.9, "nesterov": True}},
        {"arch": {"name": "linear", "one_logit": True}, "data": {**WIDE, "classes": [3, 7], "limit": 200}},
        *(
            pytest.param(changes, marks=slow)
            for changes in (
                {"weight_decay": 0.1, "decay_on": "all", "normalization": {"name": "batch", "affine": True}},
                {"arch": {"name": "linear"}, "weight_decay": 0.3, "init": "zeros"},
                {"arch": {"name": "deep", "depth": 3, "units": 20}, "normalization": "batch", "init": "he"},
                {"arch": {"name": "mlp"}, "standardize": False, "train": {**SGD, "augment": {"pad": 2, "flip": True}}},
            )
        ),
    ],
)
def test_it_trains_what_is_trained_on_enlarged_images(
    changes: dict[str, Any], eagerly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same(*both(cell_of(**changes), monkeypatch))


def test_it_is_used(eagerly: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built, build = [], native_width.build
    monkeypatch.setattr(native_width, "build", lambda *args: built.append(build(*args)) or built[0])
    train(cell_of(train={**SGD, "epochs": 1}))
    assert [model.input_shape for model in built] == [(None, 28, 28, 1)]


def test_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(weight_decay=0.1, train={**SGD, "momentum": 0.9})
    assert_same(*both(cell, monkeypatch))


@pytest.mark.slow
def test_on_replicas_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(*both(cell_of(weight_decay=0.1), monkeypatch, distribution=choose("mirrored")))


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_same_bits(eagerly, tmp_path, monkeypatch) -> None:
    check_resume(cell_of(weight_decay=0.1, train={**SGD, "select": "best"}), tmp_path, monkeypatch)


def test_other_cells_are_trained_on_enlarged_images() -> None:
    changes: dict[str, Any]
    for changes in (
        {"data": {**WIDE, "width": 28}},
        {"data": {**WIDE, "width": None}},
        {"train": {**SGD, "optimizer": "adam"}},
        {"train": {**SGD, "adversarial": {"eps": 0.1, "steps": 1, "step_size": 0.02}}},
        {"arch": {"name": "linear"}, "normalization": "batch"},
        {"arch": "vgg8"},
    ):
        assert not native_width.applies_to(cell_of(**changes), data.dataset_info("mnist")), changes


def test_a_field_that_is_not_known_to_be_linear_leaves_images_enlarged() -> None:
    class LaterTrain(Train):
        clipping: float | None = None

    cell, info = cell_of(), data.dataset_info("mnist")
    for train_options, applies in ((LaterTrain(), True), (LaterTrain(clipping=1.0), False)):
        assert native_width.applies_to(cell.model_copy(update={"train": train_options}), info) == applies


def test_every_linear_field_is_one_of_a_training() -> None:
    assert set(Train.model_fields) - native_width.LINEAR_FIELDS == {"optimizer", "betas", "adversarial"}
    changes = {"label_smoothing": 0.1, "warmup": 0.5, "augment": {"pad": 2}, "schedule": "cosine", "select": "best"}
    cell = cell_of(train={**SGD, "momentum": 0.9, "nesterov": True, **changes})
    assert native_width.applies_to(cell, data.dataset_info("mnist"))
