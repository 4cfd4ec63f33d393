"""Training a cell from its data to its run folder: build or resume, epochs, what is kept, how it ended."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bn_vuln import data, models, records
from bn_vuln.config import BatchNormalization, Cell, NearestCentroidArch, describe_cell, identity_of, to_yaml
from bn_vuln.data.transforms import check_width
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution, Strategy, choose
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Epoch, Progress, Quiet, progress_task
from bn_vuln.training import augmentation, checkpoint, closed_form, logs
from bn_vuln.training.checkpoint import Kept, State
from bn_vuln.training.loop import TrainingLoop
from bn_vuln.training.result import Trained, cell_id, save_model


def train(
    cell: Cell,
    folder: Path | None = None,
    *,
    resume: bool = True,
    checkpoint_every: int = 1,
    tensorboard: bool = False,
    distribution: Distribution = ONE_DEVICE,
    progress: Progress | None = None,
) -> Trained:
    """Train a cell; with `folder`, write config.yaml, model.keras, history.csv and training.json into it.

    A folder also gets a checkpoint after every `checkpoint_every` epochs and after the last one, which goes when the
    run is finished; `resume` goes on from the one it has. `tensorboard` adds event files.
    A net that does not learn (a loss that is not finite, or accuracy at chance) is no error: its record says
    `failed`. Raises `UsageError` where the cell makes no sense with its data (width, batch size, limit), with the
    number of replicas, or with what the folder holds.
    """
    progress = progress or Quiet()
    _check_replicas(cell, distribution)
    cell = cell.model_copy(update={"data": data.with_digest(cell.data)})
    if folder is not None:
        check_folder(cell, folder)
    if isinstance(cell.arch, NearestCentroidArch):
        return closed_form.nearest_centroid(cell, folder)
    examples = load_examples(cell)
    loop = _loop(cell, examples, distribution)  # which refuses what does not fit the data
    if folder is not None:
        atomic_write(folder / "config.yaml", to_yaml(cell))
    state = _resumed(cell, loop, folder if resume else None, progress)
    run = _Run(cell, loop, state, folder, checkpoint_every, tensorboard)
    reason = run.epochs(progress)
    if state.kept is not None:
        loop.model.set_weights(state.kept.weights)
    model = loop.finished()
    record = _record(cell, loop, state, reason or _chance_level(state.kept, examples[1]), distribution)
    if folder is not None:
        logs.write_history(folder, state.history)
        save_model(model, folder / "model.keras")
        atomic_write(folder / "training.json", records.to_json(record))
        checkpoint.remove(folder)
    return Trained(model, state.history, record)


def check_folder(cell: Cell, folder: Path) -> None:
    """Raise `UsageError` where a run folder holds another cell's run: its records would be taken for this one's. Where
    user data lie does not matter."""
    path = folder / "config.yaml"
    if path.exists() and identity_of(records.read_cell(folder)) != identity_of(cell):
        raise UsageError(f"{folder} holds a run of another config; choose another --out, or --force to replace it")


def _check_replicas(cell: Cell, distribution: Distribution) -> None:
    """Raise `UsageError` where the number of replicas would change what is trained."""
    normalization, replicas = cell.normalization, distribution.replicas
    if cell.train.batch_size % replicas:
        raise UsageError(
            f"train.batch_size: expected a multiple of the {replicas} replicas (it is the global batch), "
            f"received {cell.train.batch_size}"
        )
    if replicas > 1 and isinstance(normalization, BatchNormalization) and not normalization.synchronized:
        raise UsageError(
            f"normalization.synchronized: on {replicas} replicas each would normalize by its own share of the batch, "
            "and only the first one's statistics would be saved; use --synchronized, or --strategy none"
        )


def fitting_distribution(cell: Cell, strategy: Strategy, progress: Progress | None = None) -> Distribution:
    """The distribution of that name; where `auto` chose several replicas that do not fit the cell, one device."""
    distribution = choose(strategy)
    if strategy != "auto" or distribution.replicas == 1:
        return distribution
    try:
        _check_replicas(cell, distribution)
    except UsageError as error:
        (progress or Quiet()).message(f"one device is used: {error}")
        return ONE_DEVICE
    return distribution


def load_examples(cell: Cell) -> tuple[data.Dataset, data.Dataset]:
    """(training examples, validation examples). Raises `UsageError` where they and the cell do not fit."""
    options = cell.data
    training = data.load_training_data(options, "train", cell.seed)
    if options.width is not None:
        check_width(options.width, training.info.shape[1], options.name)
    if cell.train.augment is not None:
        augmentation.check_pad(cell.train.augment.pad, training.info.shape, options.name)
    if cell.train.batch_size > len(training):
        raise UsageError(
            f"train.batch_size: expected at most the {len(training)} training examples, "
            f"received {cell.train.batch_size}"
        )
    validation = data.load_training_data(options, "validation", cell.seed)
    if not len(validation):
        raise UsageError(
            f"data.validation: none of the {options.validation} validation examples is of the classes; hold out more"
        )
    return training, validation


def _loop(cell: Cell, examples: tuple[data.Dataset, data.Dataset], distribution: Distribution) -> TrainingLoop:
    backend.tensorflow()
    with distribution.scope():
        model = models.build(cell, examples[0].info)
    return TrainingLoop(cell, model, *examples, distribution)


# ---------------------------------------------------------------- epochs


def _resumed(cell: Cell, loop: TrainingLoop, folder: Path | None, progress: Progress) -> State:
    """Where the training begins: at the checkpoint of its folder, or at the beginning."""
    if folder is None or not checkpoint.exists(folder):
        return State([], deterministic=backend.is_deterministic())
    state = checkpoint.restore(folder, cell_id(cell), loop.model, loop.optimizer)
    if isinstance(state, str):
        progress.message(f"{folder / checkpoint.NAME} is not used: {state}; the training starts over")
        return State([], deterministic=backend.is_deterministic())
    progress.message(f"going on after epoch {len(state.history)} of {cell.train.epochs} (from {folder})")
    return state


@dataclass
class _Run:
    """A training under way: what `train` was given, and its state."""

    cell: Cell
    loop: TrainingLoop
    state: State
    folder: Path | None
    checkpoint_every: int
    tensorboard: bool

    def epochs(self, progress: Progress) -> str | None:
        """Train the epochs that are left; why training failed if it did."""
        log = logs.tensorboard(self.folder) if self.folder is not None and self.tensorboard else None
        epochs, steps, done = self.cell.train.epochs, self.loop.steps, len(self.state.history)
        with progress_task(progress, f"training {describe_cell(self.cell)}", epochs * steps, "steps", done * steps):
            for number in range(done, epochs):
                begun = time.monotonic()
                epoch = self.loop.epoch(number, progress)
                progress.message(_line(epoch))
                if log is not None:
                    log(epoch)
                self._add(epoch)
                self.state.seconds += time.monotonic() - begun
                if not math.isfinite(epoch.loss):
                    return f"the loss is not finite in epoch {epoch.number}"
                self._save(epoch)
        return None

    def _add(self, epoch: Epoch) -> None:
        state = self.state
        state.history.append(epoch)
        if not math.isfinite(epoch.loss):
            return
        last = self.cell.train.select == "last"
        if state.kept is None or last or epoch.validation_accuracy > state.kept.epoch.validation_accuracy:
            state.kept = Kept(epoch, self.loop.model.get_weights())

    def _save(self, epoch: Epoch) -> None:
        due = epoch.number % self.checkpoint_every == 0 or epoch.number == epoch.epochs
        if self.folder is not None and due:
            logs.write_history(self.folder, self.state.history)
            checkpoint.save(self.folder, cell_id(self.cell), self.loop.model, self.loop.optimizer, self.state)


# ---------------------------------------------------------------- how it ended


def _chance_level(kept: Kept | None, validation: data.Dataset) -> str | None:
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
    cell: Cell, loop: TrainingLoop, state: State, reason: str | None, distribution: Distribution
) -> records.TrainingRecord:
    epoch = state.kept.epoch if state.kept else None
    rates = sorted(e.images_per_second for e in state.history)
    return records.TrainingRecord(
        cell_id=cell_id(cell),
        state="failed" if reason else "trained",
        reason=reason,
        best_epoch=epoch.number if epoch else None,
        epochs=len(state.history),
        loss=epoch.loss if epoch else None,
        train_accuracy=epoch.train_accuracy if epoch else None,
        validation_accuracy=epoch.validation_accuracy if epoch else None,
        parameters=loop.finished().count_params(),
        images_per_second=round(rates[len(rates) // 2], 1),
        versions=backend.versions(),
        device=backend.device_name(),
        seconds=round(state.seconds, 2),
        replicas=distribution.replicas,
        global_batch_size=cell.train.batch_size,
        synchronized=getattr(cell.normalization, "synchronized", None),
        deterministic=state.deterministic,
        resumed=state.resumed,
        dataset_info=loop.training.info.plain(),
    )


def _line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number}/{epoch.epochs}  loss {epoch.loss:.4f}  train {epoch.train_accuracy:.4f}  "
        f"validation {epoch.validation_accuracy:.4f}  {epoch.images_per_second:,.0f} images/s"
    )
