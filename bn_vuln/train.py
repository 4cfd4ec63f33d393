"""Training: one loop that runs many steps in one compiled call, with the data set on the device.

The order of the examples derives from (seed, epoch), so the arms of a pair see the same batches. The last,
smaller batch of an epoch is dropped (BN's statistics of a handful of examples would differ in kind).
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import backend, data, models, records
from bn_vuln.config import Cell, describe, to_plain, to_yaml
from bn_vuln.data.pixels import check_width, to_pixels
from bn_vuln.errors import UsageError
from bn_vuln.progress import Epoch, Progress, Quiet, work
from bn_vuln.schedules import learning_rate

ORDER_STREAM = 1  # keeps the order's random stream apart from the initializers'
SECONDS_PER_CALL = 1.0


@dataclass
class Trained:
    """A finished training: the model with the kept epoch's weights, the history, and how it ended."""

    model: Any
    history: list[Epoch]
    record: records.TrainingRecord


def cell_id(cell: Cell) -> str:
    """The id of a cell: a hash of all that trains it."""
    return records.digest(to_plain(cell))


def run_folder(root: Path, cell: Cell) -> Path:
    """Where a results folder keeps this cell."""
    return root / cell_id(cell)


def train(cell: Cell, folder: Path | None = None, *, progress: Progress | None = None) -> Trained:
    """Train a cell; with `folder`, write config.yaml, model.keras, history.csv and training.json into it.

    A net that does not learn (a loss that is not finite, or accuracy at chance) is no error: its record says
    `failed`. Raises `UsageError` where the cell makes no sense with its data (width, batch size, limit).
    """
    progress = progress or Quiet()
    examples = _load(cell)
    if folder is not None:
        records.replace_file(folder / "config.yaml", to_yaml(cell))
    backend.tensorflow()
    model = models.build(cell, examples[0].facts)
    loop = TrainingLoop(cell, model, *examples)
    begun = time.monotonic()
    history, best, reason = _run_epochs(cell, loop, folder, progress)
    if best is not None:
        model.set_weights(best.weights)
    reason = reason or _chance_level(best, loop.validation)
    record = _record(cell, model, history, best, reason, time.monotonic() - begun)
    if folder is not None:
        save_model(model, folder / "model.keras")
        records.replace_file(folder / "training.json", records.to_json(record))
    return Trained(model, history, record)


def save_model(model: Any, path: Path) -> None:
    """Write a `.keras` file aside and rename it."""
    with records.written_aside(path) as aside:
        model.save(aside)


def _load(cell: Cell) -> tuple[data.Dataset, data.Dataset]:
    """(training examples, validation examples), checked against the cell."""
    options = cell.data
    training = data.load(options.name, "train", validation=options.validation, limit=options.limit)
    if options.width is not None:
        check_width(options.width, training.facts.shape[1], options.name)
    if cell.train.batch_size > len(training):
        raise UsageError(
            f"train.batch_size: expected at most the {len(training)} training examples, "
            f"received {cell.train.batch_size}"
        )
    return training, data.load(options.name, "validation", validation=options.validation)


# ---------------------------------------------------------------- epochs


@dataclass
class _Kept:
    """The best epoch so far (or the last one, where the config selects it)."""

    epoch: Epoch
    weights: list[NDArray[Any]]


def _run_epochs(
    cell: Cell, loop: TrainingLoop, folder: Path | None, progress: Progress
) -> tuple[list[Epoch], _Kept | None, str | None]:
    """(history, the kept epoch, why training failed if it did)."""
    history: list[Epoch] = []
    kept: _Kept | None = None
    title = f"training {describe(cell)}"
    with work(progress, title, cell.train.epochs * loop.steps, "steps"):
        for number in range(cell.train.epochs):
            epoch = loop.epoch(number, progress)
            history.append(epoch)
            progress.message(_line(epoch))
            if folder is not None:
                records.replace_file(folder / "history.csv", _csv(history))
            if not math.isfinite(epoch.loss):
                return history, kept, f"the loss is not finite in epoch {epoch.number}"
            last = cell.train.select == "last"
            if kept is None or last or epoch.validation_accuracy > kept.epoch.validation_accuracy:
                kept = _Kept(epoch, loop.model.get_weights())
    return history, kept, None


class TrainingLoop:
    """One model's compiled steps over its data set, which lies on the device as uint8."""

    def __init__(self, cell: Cell, model: Any, training: data.Dataset, validation: data.Dataset) -> None:
        import keras

        tf = backend.tensorflow()
        self.cell, self.model, self.training, self.validation = cell, model, training, validation
        self.batch_size = cell.train.batch_size
        self.steps = len(training) // self.batch_size
        self.images, self.labels = tf.constant(training.images), tf.constant(training.labels)
        self.optimizer = keras.optimizers.SGD(cell.train.lr, momentum=cell.train.momentum)
        self.optimizer.build(model.trainable_variables)
        self.chunk = max(1, min(self.steps, 20))
        self._steps = backend.compile(self._make_steps(), xla=backend.prefers_xla(model))
        self._count_correct = correct_counter(model)

    def _make_steps(self) -> Callable[..., Any]:
        """The function that trains from step `begin` to step `end` of an order [steps, batch] and returns
        (sum of losses, number of correct predictions)."""
        tf = backend.tensorflow()
        model, optimizer = self.model, self.optimizer
        variables, decay = model.trainable_variables, decay_terms(self.cell, model)
        width = model.input_shape[1]

        def step(i: Any, order: Any) -> tuple[Any, Any]:
            index = order[i]
            x = to_pixels(tf.gather(self.images, index), width)
            y = tf.gather(self.labels, index)
            with tf.GradientTape() as tape:
                logits = model(x, training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, variables)
            gradients = [g + k * v if k else g for g, k, v in zip(gradients, decay, variables, strict=True)]
            penalty = sum((0.5 * k * tf.reduce_sum(v**2) for k, v in zip(decay, variables, strict=True) if k), 0.0)
            optimizer.apply(gradients, variables)
            hits = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y)
            return loss + penalty, tf.reduce_sum(tf.cast(hits, tf.int32))

        def steps(order: Any, begin: Any, end: Any) -> Any:
            def body(i: Any, loss: Any, correct: Any) -> tuple[Any, ...]:
                step_loss, step_correct = step(i, order)
                return i + 1, loss + step_loss, correct + step_correct

            return tf.while_loop(lambda i, *_: i < end, body, (begin, 0.0, 0))[1:]

        return steps

    def epoch(self, number: int, progress: Progress) -> Epoch:
        """Train one epoch (from 0) in calls of about a second, then measure the validation accuracy."""
        tf = backend.tensorflow()
        rate = learning_rate(self.cell.train, number)
        self.optimizer.learning_rate.assign(rate)
        order = tf.constant(self._order(number))
        begun, done, loss, correct = time.monotonic(), 0, 0.0, 0
        while done < self.steps:
            called, end = time.monotonic(), min(self.steps, done + self.chunk)
            chunk_loss, chunk_correct = self._steps(order, tf.constant(done), tf.constant(end))
            loss, correct = loss + float(chunk_loss), correct + int(chunk_correct)
            per_step = (time.monotonic() - called) / (end - done)
            self.chunk = max(1, min(self.steps, round(SECONDS_PER_CALL / max(per_step, 1e-6))))
            done = end
            progress.advance(number * self.steps + done, f"loss {loss / done:.4f}")
        seconds = time.monotonic() - begun
        valid = self._count_correct(self.validation.images, self.validation.labels) / len(self.validation)
        images = self.steps * self.batch_size
        return Epoch(
            number + 1,
            self.cell.train.epochs,
            rate,
            loss / self.steps,
            correct / images,
            valid,
            images / seconds,
            seconds,
        )

    def _order(self, number: int) -> NDArray[np.int32]:
        """The examples of each step, int32 [steps, batch]."""
        order = data.permutation(len(self.training), self.cell.seed, ORDER_STREAM, number)
        return order[: self.steps * self.batch_size].astype(np.int32).reshape(self.steps, self.batch_size)


def decay_terms(cell: Cell, model: Any) -> list[float]:
    """The weight decay lambda of each trainable variable: lambda w is added to its gradient, a penalty of
    lambda/2 ||w||^2. `kernels`: matrices and filters only; `all`: biases, gamma and beta too."""
    decayed = [cell.decay_on == "all" or variable.name == "kernel" for variable in model.trainable_variables]
    return [cell.weight_decay if chosen else 0.0 for chosen in decayed]


def correct_counter(model: Any, batch_size: int = 1000) -> Callable[[Any, Any], int]:
    """A function (uint8 images, labels) -> number of correct predictions, in inference mode."""
    tf = backend.tensorflow()
    width = model.input_shape[1]

    def count(images: Any, labels: Any) -> Any:
        predicted = tf.argmax(model(to_pixels(images, width), training=False), axis=1, output_type=tf.int32)
        return tf.reduce_sum(tf.cast(tf.equal(predicted, labels), tf.int32))

    compiled = backend.compile(count, xla=False)

    def counter(images: Any, labels: Any) -> int:
        pieces = range(0, len(labels), batch_size)
        return sum(int(compiled(images[i : i + batch_size], labels[i : i + batch_size])) for i in pieces)

    return counter


# ---------------------------------------------------------------- how it ended


def _chance_level(kept: _Kept | None, validation: data.Dataset) -> str | None:
    """Why a net whose accuracy is that of always naming the commonest class has failed; None if it has not."""
    if kept is None:
        return "no epoch had a finite loss"
    n = len(validation)
    chance = float(np.bincount(validation.labels).max() / n)
    bound = chance + 3 * math.sqrt(chance * (1 - chance) / n)
    accuracy = kept.epoch.validation_accuracy
    if accuracy > bound:
        return None
    return f"validation accuracy {accuracy:.4f} is at chance ({chance:.4f}, the commonest class)"


def _record(
    cell: Cell, model: Any, history: list[Epoch], kept: _Kept | None, reason: str | None, seconds: float
) -> records.TrainingRecord:
    epoch = kept.epoch if kept else None
    rates = sorted(e.images_per_second for e in history)
    return records.TrainingRecord(
        cell_id=cell_id(cell),
        state="failed" if reason else "trained",
        reason=reason,
        best_epoch=epoch.number if epoch else None,
        epochs=len(history),
        loss=epoch.loss if epoch else None,
        train_accuracy=epoch.train_accuracy if epoch else None,
        validation_accuracy=epoch.validation_accuracy if epoch else None,
        parameters=model.count_params(),
        images_per_second=round(rates[len(rates) // 2], 1),
        versions=backend.versions(),
        device=backend.device_name(),
        seconds=round(seconds, 2),
    )


def _line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number}/{epoch.epochs}  loss {epoch.loss:.4f}  train {epoch.train_accuracy:.4f}  "
        f"validation {epoch.validation_accuracy:.4f}  {epoch.images_per_second:,.0f} images/s"
    )


def _csv(history: list[Epoch]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(history[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in history)
    return text.getvalue()
