"""The loop over epochs' steps, with the data set on the device, in calls of about a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bn_vuln import data
from bn_vuln.config import Cell
from bn_vuln.data.transforms import to_pixels
from bn_vuln.models import native_width
from bn_vuln.runtime import backend, ops, random_streams
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.runtime.progress import Epoch, Progress, duration
from bn_vuln.training import augmentation, jax_steps, optimizers, steps
from bn_vuln.training.schedules import learning_rates
from bn_vuln.typing import DatasetImages, KerasModel, Labels, Tensor

SECONDS_PER_CALL = 1.0
SECONDS_TIMED = 2.0  # of steps, before an estimate is made of them
MIN_SECONDS_TO_REPORT = 10.0  # of the time left


class TrainingLoop:
    """The compiled steps of one model over its data set, which lies on the device as uint8.

    `model` is trained: the one given, or a smaller one on images that are not enlarged (`native_width`).
    """

    def __init__(
        self,
        cell: Cell,
        model: KerasModel,
        training: data.Dataset,
        validation: data.Dataset,
        distribution: Distribution = ONE_DEVICE,
        *,
        xla: bool = True,
        predict_at_once: int = 1000,
    ) -> None:
        """Compile the steps of a `model` that was made in the distribution's scope.

        XLA compiles them unless `xla` is false; `predict_at_once` is the batch size of the validation.
        """
        self.cell, self.training, self.validation = cell, training, validation
        self.batch_size = cell.train.batch_size
        self.steps = len(training) // self.batch_size
        self._given = model
        self._native: native_width.NativeWidthModel | None = None
        with distribution.scope():
            if native_width.applies_to(cell, training.info):
                self._native = model = native_width.build(model, training.info)
            self.optimizer = optimizers.make(cell, model)
        self.model = model
        images, labels = (distribution.replicate(array) for array in (training.images, training.labels))
        if backend.name() == "jax":
            self._steps = jax_steps.make(cell, model, self.optimizer, training.info, images, labels)
        else:
            self._steps = steps.make(cell, model, self.optimizer, training.info, images, labels, distribution, xla=xla)
        self._predict = predictor(model, distribution, predict_at_once)
        self._clock = _Clock()

    def final_model(self) -> KerasModel:
        """Return the model that was given, with the weights of `model`."""
        if self._native is not None:
            self._native.widen()
            self._native = None
        return self._given

    def epoch(self, number: int, progress: Progress) -> Epoch:
        """Train one epoch (numbered from 0), then measure the validation accuracy."""
        order, rates = self.order(number), learning_rates(self.cell.train, number, self.steps)
        begun, done, totals = time.monotonic(), 0, steps.no_totals()
        while done < self.steps:
            end = min(self.steps, done + self._clock.steps)
            with self._clock.timing(end - done):
                totals = self._steps(order, rates, np.int32(done), np.int32(end), totals)
                (loss, correct), done = map(float, totals), end
            progress.advance(number * self.steps + done, f"loss {loss / done:.4f}")
            self._report_time_left(number, done, progress)
        seconds = time.monotonic() - begun
        images = self.steps * self.batch_size
        return Epoch(
            number=number + 1,
            epochs=self.cell.train.epochs,
            learning_rate=float(f"{rates[-1]:.7g}"),
            loss=loss / self.steps,
            train_accuracy=correct / images,
            validation_accuracy=self._validation_accuracy(),
            images_per_second=images / seconds,
            seconds=seconds,
        )

    def _validation_accuracy(self) -> float:
        """The accuracy on the validation images; NaN where there are none."""
        if not len(self.validation):
            return math.nan
        return float(np.mean(self._predict(self.validation.images) == self.validation.labels))

    def _report_time_left(self, number: int, done: int, progress: Progress) -> None:
        """Report one estimate of the time left, as soon as steps have been timed."""
        if self._clock.reported or self._clock.timed < SECONDS_TIMED:
            return
        self._clock.reported = True
        epochs = self.cell.train.epochs
        # An epoch ends with forward passes over the validation images, each a share of a step's work.
        validating = len(self.validation) / self.cell.train.forward_passes / self.batch_size
        left = (epochs - number) * (self.steps + validating) - done
        seconds = left * self._clock.seconds_per_step
        if seconds >= MIN_SECONDS_TO_REPORT:
            rate = self.batch_size / self._clock.seconds_per_step
            progress.message(f"about {duration(seconds)} for {epochs - number} epochs at {rate:,.0f} images/s")

    def order(self, number: int) -> NDArray[np.int32]:
        """Return the examples of each step, int32 [steps, batch], or [steps, batch, 4] with random crops."""
        n, augment = self.steps * self.batch_size, self.cell.train.augment
        order = data.permutation(len(self.training), self.cell.seed, random_streams.ORDER, number)[:n].astype(np.int32)
        if augment is not None:
            order = np.column_stack([order, augmentation.random_crops(augment, n, self.cell.seed, number)])
        return order.reshape(self.steps, self.batch_size, *order.shape[1:])


class _Clock:
    """Times steps, and chooses how many make a call of a second; the first call, which compiles, is not timed."""

    def __init__(self) -> None:
        self.steps, self.timed, self.counted = 1, 0.0, 0
        self.compiled = self.reported = False
        self._begun, self._count = 0.0, 0

    @property
    def seconds_per_step(self) -> float:
        return self.timed / max(1, self.counted)

    def timing(self, count: int) -> _Clock:
        """Return a context that times `count` steps."""
        self._count = count
        return self

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._begun
        if self.compiled:
            self.timed, self.counted = self.timed + seconds, self.counted + self._count
            self.steps = max(1, round(SECONDS_PER_CALL * self._count / max(seconds, 1e-6)))
        self.compiled = True


def predictor(
    model: KerasModel, distribution: Distribution = ONE_DEVICE, batch_size: int = 1000
) -> Callable[[DatasetImages], Labels]:
    """Return a function of uint8 images [n, h, w, c] -> predicted classes int32 [n], in inference mode."""
    _, height, width, _ = model.input_shape

    def predict(images: Tensor) -> object:
        return ops.argmax(model(to_pixels(images, (height, width)), training=False), axis=1)

    sharded = distribution.compile_sharded(predict)

    def predict_all(images: DatasetImages) -> Labels:
        starts = range(0, len(images), batch_size)
        return np.concatenate([sharded(images[i : i + batch_size]) for i in starts])

    return predict_all
