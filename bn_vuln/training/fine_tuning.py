"""Fine-tuning: a model that is trained already, ours or another's, is trained a little more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np

from bn_vuln import data
from bn_vuln.config import Cell, CosineSchedule, FineTuning, Train
from bn_vuln.data.describe import format_shape
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import backend
from bn_vuln.runtime import batch_size as batching
from bn_vuln.runtime.memory import check_memory
from bn_vuln.runtime.progress import Epoch, Progress, Quiet, progress_task
from bn_vuln.training.loop import TrainingLoop
from bn_vuln.typing import KerasModel, Tensor

CallInTraining: TypeAlias = Callable[[Tensor, bool], Tensor]  # (pixels [n, h, w, c], training) -> logits [n, classes]


def fine_tune(
    model: KerasModel,
    options: FineTuning,
    training: data.Dataset,
    validation: data.Dataset | None = None,
    *,
    predict: CallInTraining | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train a model in place: all that is trainable, by the loop of `train`, on one device.

    Args:
        model: any Keras model. Frozen layers stay as they are.
        options: epochs, learning rate and so on. With fewer images than a batch, all of them are a batch.
        training: images with labels, which memory must hold as they are stored; they are enlarged step by step.
        validation: images that each epoch's accuracy is reported of; None: it is NaN.
        predict: calls the model with pixels in [0, 1] and returns its logits; None: the model itself does.
        size: height and width of those pixels; None: those of the model's input.
        progress: where each epoch is reported.

    Returns:
        The epochs. The weights are those after the last one.

    Raises:
        UsageError: All layers are frozen, there are no images, or memory does not hold them.
        BnvulnError: The loss is not finite: the model is spoilt.
    """
    progress = progress or Quiet()
    if not model.trainable_variables:
        raise UsageError("fine-tuning: all of the model's layers are frozen: there is nothing to train")
    if not len(training):
        raise UsageError("fine-tuning: no images to train on")
    training, validation = (
        _in_memory(training),
        _in_memory(training.take(np.arange(0)) if validation is None else validation),
    )
    backend.start()
    channels, size = training.info.shape[2], size or (model.input_shape[1], model.input_shape[2])
    at_once = batching.estimate_batch_size(model, (*size, channels))
    loop = TrainingLoop(
        _cell(options, len(training)),
        _of_pixels(model, predict, (*size, channels)),
        training,
        validation,
        xla=False,  # which lacks some of the operations that models of others have
        predict_at_once=at_once,
    )
    epochs = []
    with progress_task(progress, "fine-tuning", options.epochs * loop.steps, "steps"):
        for number in range(options.epochs):
            epoch = loop.epoch(number, progress)
            progress.message(
                f"fine-tuning: epoch {epoch.number}/{epoch.epochs}  loss {epoch.loss:.4f}  "
                f"train {epoch.train_accuracy:.4f}  {epoch.images_per_second:,.0f} images/s"
            )
            if not math.isfinite(epoch.loss):
                raise BnvulnError(
                    f"fine-tuning: the loss is not finite in epoch {epoch.number}: lower the learning rate"
                )
            epochs.append(epoch)
    return epochs


def _cell(options: FineTuning, n: int) -> Cell:
    """The cell that trains a model as the options say; its data and architecture are not used."""
    train = Train(
        epochs=options.epochs,
        batch_size=min(options.batch_size, n),
        lr=options.lr,
        momentum=options.momentum,
        schedule=CosineSchedule(),
        adversarial=options.adversarial,
        select="last",
    )
    return Cell(train=train, weight_decay=options.weight_decay, seed=options.seed)


def _in_memory(examples: data.Dataset) -> data.Dataset:
    """The examples with images in memory, as they are stored."""
    shape = examples.images.shape
    what = f"{examples.info.label}: {len(examples):,} images of {format_shape(shape[1:])} to train on"
    check_memory(2.0 * math.prod(shape) * examples.images.dtype.itemsize, what, "take fewer, or smaller ones")
    lazy = data.as_lazy(examples.images)
    return examples if lazy is None else replace(examples, images=lazy[:])


def _of_pixels(model: KerasModel, predict: CallInTraining | None, shape: tuple[int, int, int]) -> KerasModel:
    """A Keras model of pixels [n, *shape] that returns logits and has the layers and variables of `model`."""
    import keras

    call_model = predict or (lambda pixels, training: model(pixels, training=training))

    class OfPixels(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(dtype="float32")
            self.input_shape = (None, *shape)
            self.inner = model
            self.built = True

        def call(self, pixels: Tensor, training: bool | None = None) -> Any:
            return call_model(pixels, bool(training))

    return cast("KerasModel", OfPixels())
