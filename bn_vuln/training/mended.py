"""Cells with `mend`: the trained model of their base, changed; or another training with a changed c."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bn_vuln import data, records
from bn_vuln.config import Cell, Mend
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.models import normalization_layers
from bn_vuln.runtime import backend
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Epoch, Progress
from bn_vuln.training import history
from bn_vuln.training.fine_tuning import fine_tune
from bn_vuln.training.loop import predictor
from bn_vuln.training.result import TrainingResult, cell_id, keep
from bn_vuln.typing import DatasetImages, Images, KerasModel, Tensor

MAX_IMAGES = 10_000  # of which statistics are estimated
BATCH_SIZE = 500  # of them


def change(
    cell: Cell,
    base: TrainingResult,
    training: data.Dataset,
    validation: data.Dataset,
    folder: Path | None,
    progress: Progress,
) -> TrainingResult:
    """Change a trained model as a cell says.

    Args:
        cell: its `mend` is done.
        base: the training of its base, whose model is changed in place.
        training: the images that the base was trained on. Statistics are those of the first `MAX_IMAGES`.
        validation: images of which the accuracy is recorded.
        folder: run folder that gets the files of a training.
        progress: where messages go.

    Returns:
        The model, the epochs of its fine-tuning, and its record: `failed` where the base failed or the loss of the
        fine-tuning is not finite. A model that the change has ruined is a result like any other.

    Raises:
        UsageError: Statistics cannot be estimated of so few images, or `layers` names what is no normalization layer.
    """
    assert cell.mend is not None
    begun, model = time.monotonic(), base.model
    reason = f"what it changes failed to train: {base.record.reason}" if base.record.state == "failed" else None
    epochs: list[Epoch] = []
    if reason is None:
        _change_layers(model, cell.mend, training.images[:MAX_IMAGES])
    if reason is None and cell.mend.finetune is not None:
        try:
            epochs = fine_tune(model, cell.mend.finetune, training, validation, progress=progress)
        except UsageError:
            raise
        except BnvulnError as error:
            reason = str(error)
    record = _record(cell, model, epochs, training, validation, reason, begun)
    if folder is not None:
        atomic_write(folder / "config.yaml", records.to_yaml(cell))
        if epochs:
            history.write_history(folder, epochs)
        record = keep(folder, model, record)
    return TrainingResult(lambda: model, epochs, record)


def set_c(model: KerasModel, base: KerasModel, mend: Mend, images: DatasetImages) -> None:
    """Give the normalization layers of an untrained model a c relative to the variances of a trained one.

    Args:
        model: it is changed in place, and compiled afterwards.
        base: the trained model of the same architecture. Its variances are those that it has tracked; of layers other
            than BN, those of the first images.
        mend: r, or the new c, of which layers.
        images: training images.
    """
    layers, trained = _layers(model, images), _layers(base, images)
    normalization_layers.check_names(layers, mend.layers)
    states = {
        layer.name: normalization_layers.changed(layer.state, normalization_layers.median_variance(own.variance), mend)
        for layer, own in zip(layers, trained, strict=True)
        if not mend.layers or layer.name in mend.layers
    }
    normalization_layers.write(layers, states)


def _change_layers(model: KerasModel, mend: Mend, images: DatasetImages) -> None:
    layers = _layers(model, images)
    pixels = _pixels(model, images)
    estimator = normalization_layers.Estimator(model, layers, _predict(model), pixels, batch_size=BATCH_SIZE)
    normalization_layers.write(layers, estimator.states(mend))


def _layers(model: KerasModel, images: DatasetImages) -> list[normalization_layers.NormalizationLayer]:
    return normalization_layers.find(model, _predict(model), _pixels(model, images[:BATCH_SIZE]))


def _predict(model: KerasModel) -> Callable[[Tensor], Tensor]:
    return lambda pixels: model(pixels, training=False)


def _pixels(model: KerasModel, images: DatasetImages) -> Images:
    return pixel_array(images, model.input_shape[1])


def _record(
    cell: Cell,
    model: KerasModel,
    epochs: list[Epoch],
    training: data.Dataset,
    validation: data.Dataset,
    reason: str | None,
    begun: float,
) -> records.TrainingRecord:
    last, predict = epochs[-1] if epochs else None, predictor(model)

    def accuracy(examples: data.Dataset) -> float:
        return float(np.mean(predict(examples.images) == examples.labels))

    return records.TrainingRecord(
        cell_id=cell_id(cell),
        state="failed" if reason else "trained",
        reason=reason,
        best_epoch=last.number if last else None,
        epochs=len(epochs),
        loss=last.loss if last else None,
        train_accuracy=last.train_accuracy if last else accuracy(training),
        validation_accuracy=last.validation_accuracy if last else accuracy(validation),
        parameters=model.count_params(),
        images_per_second=round(last.images_per_second, 1) if last else 0.0,
        versions=backend.versions(),
        device=backend.device_name(),
        seconds=round(time.monotonic() - begun, 2),
        deterministic=backend.is_deterministic(),
        dataset_info=training.info.plain(),
    )
