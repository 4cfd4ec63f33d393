"""Models that are not trained: the nearest-centroid classifier, and nets with published weights."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bn_vuln import data, models, records
from bn_vuln.config import Cell
from bn_vuln.data import imagenet
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import check_width
from bn_vuln.models import pretrained
from bn_vuln.runtime import backend
from bn_vuln.runtime.files import atomic_write
from bn_vuln.training.loop import predictor
from bn_vuln.training.result import TrainingResult, cell_id, keep
from bn_vuln.typing import KerasModel


def nearest_centroid(cell: Cell, folder: Path | None = None) -> TrainingResult:
    """Make the nearest-centroid classifier of all published training images.

    Args:
        cell: its data and architecture matter.
        folder: run folder that gets the files of a training.

    Returns:
        The model and its record.

    Raises:
        UsageError: for a width below that of the images.
    """
    begun = time.monotonic()
    examples, validation = (
        data.load_whole_training_set(cell.data),
        data.load_training_data(cell.data, "validation", cell.seed),
    )
    if cell.data.width is not None:
        check_width(cell.data.width, examples.info.shape[1], cell.data.name)
    backend.start()
    model = models.build(cell, examples.info)
    models.linear.set_centroids(model, data.class_centroids(cell.data, model.input_shape[1]))
    predict = predictor(model)
    train_accuracy = float(np.mean(predict(examples.images) == examples.labels))
    validation_accuracy = float(np.mean(predict(validation.images) == validation.labels))
    return _kept(cell, model, examples.info, begun, folder, train_accuracy, validation_accuracy)


def published(cell: Cell, folder: Path | None = None) -> TrainingResult:
    """Open a net for ImageNet with published weights.

    Args:
        cell: its architecture, normalization and the source of the weights matter.
        folder: run folder that gets the files of a training.

    Returns:
        The model and its record, which has no accuracies.

    Raises:
        BnvulnError: The weights cannot be fetched or read.
    """
    begun = time.monotonic()
    model = pretrained.pretrained(str(cell.pretrained_name), cell.weights, seed=cell.seed)
    info = replace(imagenet.info(), name=cell.data.canonical, label=cell.data.name)
    return _kept(cell, model, info, begun, folder)


def _kept(
    cell: Cell,
    model: KerasModel,
    info: DatasetInfo,
    begun: float,
    folder: Path | None,
    train_accuracy: float | None = None,
    validation_accuracy: float | None = None,
) -> TrainingResult:
    """The model with its record, and its files in the folder."""
    record = records.TrainingRecord(
        cell_id=cell_id(cell),
        state="trained",
        epochs=0,
        train_accuracy=train_accuracy,
        validation_accuracy=validation_accuracy,
        parameters=model.count_params(),
        images_per_second=0.0,
        versions=backend.versions(),
        device=backend.device_name(),
        seconds=round(time.monotonic() - begun, 2),
        dataset_info=info.plain(),
    )
    if folder is not None:
        atomic_write(folder / "config.yaml", records.to_yaml(cell))
        record = keep(folder, model, record)
    return TrainingResult(lambda: model, [], record)
