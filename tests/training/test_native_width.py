"""Training at native width: the same history and weights as on enlarged images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_runs import check_resume, small_cell

from bn_vuln.config import Cell
from bn_vuln.runtime.distribution import choose
from bn_vuln.training import native_width, train

WIDE = {"name": "mnist", "width": 40, "limit": 300, "validation": 100}
MLP = {"name": "mlp", "hidden": [24, 16]}
slow = pytest.mark.slow
SGD = {"epochs": 3, "batch_size": 20, "lr": 0.05, "momentum": 0.0, "select": "last"}


def cell_of(**changes: Any) -> Cell:
    return small_cell(**{"data": WIDE, "arch": MLP, "train": SGD, **changes})


def both(cell: Cell, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, Any]:
    ours = train(cell, **options)
    with monkeypatch.context() as patch:
        patch.setattr(native_width, "can", lambda *_: False)
        return ours, train(cell, **options)


def assert_same(ours: Any, theirs: Any) -> None:
    for mine, other in zip(ours.history, theirs.history, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=2e-4)
        assert mine.train_accuracy == pytest.approx(other.train_accuracy, abs=0.011)
        assert mine.validation_accuracy == pytest.approx(other.validation_accuracy, abs=0.021)
    for mine, other in zip(ours.model.get_weights(), theirs.model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4 * max(1, abs(other).max()))
    assert ours.record.parameters == theirs.record.parameters


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
                {"weight_decay": 0.1},
                {"weight_decay": 0.1, "decay_on": "all", "normalization": {"name": "batch", "affine": True}},
                {"weight_decay": 0.1, "train": {**SGD, "momentum": 0.9}},
                {"arch": {"name": "linear"}, "weight_decay": 0.3, "init": "zeros"},
                {"arch": {"name": "deep", "depth": 3, "units": 20}, "normalization": "batch", "init": "he"},
                {"arch": {"name": "mlp"}, "standardize": False, "train": {**SGD, "augment": {"pad": 2, "flip": True}}},
                {"data": {**WIDE, "width": 56}, "arch": {"name": "linear", "one_logit": False}},
            )
        ),
    ],
)
def test_it_trains_what_is_trained_on_enlarged_images(
    changes: dict[str, Any], eagerly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same(*both(cell_of(**changes), monkeypatch))


def test_it_is_used(eagerly: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widened = []
    monkeypatch.setattr(native_width.Native, "widen", lambda self: widened.append(self.model.input_shape))
    train(cell_of(train={**SGD, "epochs": 1}))
    assert widened == [(None, 28, 28, 1)]


def test_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(weight_decay=0.1, train={**SGD, "momentum": 0.9})
    ours, theirs = both(cell, monkeypatch)
    assert_same(ours, theirs)


@pytest.mark.slow
def test_on_replicas_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both(cell_of(weight_decay=0.1), monkeypatch, distribution=choose("mirrored"))
    assert_same(ours, theirs)


def test_a_resumed_training_ends_with_the_same_bits(eagerly, tmp_path, monkeypatch) -> None:
    check_resume(cell_of(weight_decay=0.1, train={**SGD, "select": "best"}), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {**WIDE, "width": 28}},
        {"data": {**WIDE, "width": None}},
        {"train": {**SGD, "optimizer": "adam"}},
        {"train": {**SGD, "adversarial": {"eps": 0.1, "steps": 1, "step_size": 0.02}}},
        {"arch": {"name": "linear"}, "normalization": "batch"},
        {"arch": "vgg8"},
    ],
)
def test_what_cannot_be_is_trained_on_enlarged_images(changes: dict[str, Any]) -> None:
    from bn_vuln import data

    assert not native_width.applies_to(cell_of(**changes), data.dataset_info("mnist"))
