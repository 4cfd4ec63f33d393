"""Training of a cell, from its data to its run folder: build or resume, epochs, selection, record."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bn_vuln import data, models, records
from bn_vuln.config import (
    BatchNormalization,
    Cell,
    NearestCentroidArch,
    describe_cell,
    identity_of,
    to_plain,
    validate,
)
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import check_width
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend, lease, limits, signals
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution, Strategy, choose
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Epoch, Progress, Quiet, progress_task
from bn_vuln.training import augmentation, checkpoint, closed_form, history, mended
from bn_vuln.training.checkpoint import Checkpoint, SelectedEpoch, TrainingState
from bn_vuln.training.loop import TrainingLoop
from bn_vuln.training.result import TrainingResult, cell_id, keep

CHECKPOINT_SECONDS = 60.0  # between checkpoints at least: on a GPU one after every epoch takes half of the time
FEW_VALIDATION = 100  # images of user data, which do not tell whether a net has learned


def train(
    cell: Cell,
    folder: Path | None = None,
    *,
    resume: bool = True,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    distribution: Distribution = ONE_DEVICE,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a cell.

    Args:
        cell: data, architecture, normalization, training and seed. The base of a cell with `mend` is trained before,
            into the run folder of its id beside `folder`, unless it is there.
        folder: run folder that gets config.yaml, model.keras, history.csv and training.json, and a checkpoint until the
            run is finished.
        resume: go on from the checkpoint in the folder, if there is one.
        checkpoint_every: epochs between two checkpoints; there is one after the last epoch, too. None: they are a
            minute apart or, where an epoch takes longer, an epoch; another is written on Ctrl-C.
        tensorboard: write TensorBoard event files into the folder.
        distribution: the devices.
        progress: where messages and the number of steps that are done go.

    Returns:
        The model, its history and its record. A net that does not learn (a loss that is not finite, or accuracy
        not above the majority-class baseline) is no error: its record says `failed`.

    Raises:
        UsageError: where the cell makes no sense with its data (width, batch size, limit), with the number of replicas,
            or with what the folder holds.
        DamagedError: where the base of a cell with `mend` is damaged.
    """
    progress = progress or Quiet()
    _check_replicas(cell, distribution)
    cell = settled(cell)
    if folder is not None:
        check_folder(cell, folder)
    if isinstance(cell.arch, NearestCentroidArch):
        return closed_form.nearest_centroid(cell, folder)
    if cell.weights is not None:
        return closed_form.published(cell, folder)
    examples = load_examples(cell)
    training, validation = examples
    distribution.agree(training_images=training.images, training_labels=training.labels, validation=validation.labels)
    backend.start()
    with distribution.scope():
        model = models.build(cell, examples[0].info)
    if cell.mend is not None:
        base = _trained_base(cell, folder, examples[0].info, distribution, progress)
        if not cell.mend.retrain or base.record.state == "failed":
            return mended.change(cell, base, *examples, folder, progress)
        mended.set_c(model, base.model, cell.mend, examples[0].images)
    loop = TrainingLoop(cell, model, *examples, distribution)  # which refuses what does not fit the data
    if folder is not None:
        atomic_write(folder / "config.yaml", records.to_yaml(cell))
    state = _resumed(cell, loop, folder if resume else None, distribution, progress)
    run = _Run(cell, loop, state, folder, checkpoint_every, tensorboard)
    reason = run.epochs(progress)
    if state.selected is not None:
        loop.model.set_weights(state.selected.weights)
    model = loop.final_model()
    record = _record(cell, loop, state, reason or _failure(state.selected, cell, *examples), distribution)
    if folder is not None:
        history.write_history(folder, state.history)
        with signals.uninterrupted():  # a finished run has no checkpoint
            record = keep(folder, model, record)
            checkpoint.remove(folder)
    record = _of_chief(record, distribution)
    return TrainingResult(lambda: model, state.history, record)


def _of_chief(record: records.TrainingRecord, distribution: Distribution) -> records.TrainingRecord:
    """The record of the chief, which is kept."""
    return records.TrainingRecord.model_validate(distribution.from_chief(lambda: record.model_dump(mode="json")))


def _trained_base(
    cell: Cell, folder: Path | None, info: DatasetInfo, distribution: Distribution, progress: Progress
) -> TrainingResult:
    """The base of a cell with `mend`: from its run folder beside `folder`, or trained now."""
    if folder is None:
        return train(cell.base, distribution=distribution, progress=progress)
    beside = folder.parent / cell_id(cell.base)
    record = records.read_training(beside)
    if record is None or not (beside / "model.keras").exists():
        with lease.waited(beside, progress):
            record = records.read_training(beside)
            if record is None or not (beside / "model.keras").exists():
                return train(cell.base, beside, distribution=distribution, progress=progress)
    model = models.build(cell.base, info)
    path = records.check_model(beside / "model.keras", record)
    limits.check_model(path)
    model.load_weights(path)
    return TrainingResult(lambda: model, [], record)


def settled(cell: Cell) -> Cell:
    """Return a cell as it is trained here: user data with their digest, initial values by what draws them here.

    Raises:
        UsageError: There are no such data, or they have another digest.
    """
    cell = cell.model_copy(update={"data": data.with_digest(cell.data)})
    if backend.name() == "tensorflow":
        return cell
    return validate(Cell, {**to_plain(cell), "init_generator": "numpy"}, "cell")


def check_folder(cell: Cell, folder: Path) -> None:
    """Refuse a run folder that holds another cell's run: its records would be taken for this one's.

    Args:
        cell: the cell; the path of user data does not matter.
        folder: run folder, or one that will be.

    Raises:
        UsageError: where its config or its training record is another one's.
        BnvulnError: where one of them is damaged.
    """
    path, training = folder / "config.yaml", records.read_training(folder)
    another = path.exists() and identity_of(records.read_cell(folder)) != identity_of(cell)
    if another or (training is not None and training.cell_id != cell_id(cell)):
        raise UsageError(f"{folder} holds a run of another config; choose another --out, or --force to replace it")


def reject_ineffective(cell: Cell) -> None:
    """Refuse settings of a single training without any effect.

    The config itself accepts them: experiments shorten their epochs with --scale and --set, and configs of runs stay
    readable.

    Raises:
        UsageError: There is one.
    """
    data, epochs = cell.data, cell.train.epochs
    late = [drop for drop in getattr(cell.train.schedule, "epochs", ()) if drop >= epochs]
    if late:
        raise UsageError(
            f"--lr-drops: epoch {late[0]} never begins: of {epochs} epochs, counted from 0, the last is {epochs - 1}"
        )
    if data.subset_seed == "seed" and data.limit is None and data.name != "toy":  # whose points depend on it
        raise UsageError("--subset-seed seed needs a --limit: all examples are the same for every seed")


def _check_replicas(cell: Cell, distribution: Distribution) -> None:
    """Raise `UsageError` where the number of replicas would change what is trained, or hosts are of no use."""
    normalization, replicas = cell.normalization, distribution.replicas
    if distribution.cluster is not None and (cell.mend or cell.weights or isinstance(cell.arch, NearestCentroidArch)):
        raise UsageError("--strategy multiworker is for nets that are trained from the start; use --strategy none")
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


def choose_distribution(cell: Cell, strategy: Strategy, progress: Progress | None = None) -> Distribution:
    """Choose the devices of a training.

    Args:
        cell: its batch size and normalization matter.
        strategy: `auto`, `none`, `mirrored` or `multiworker`.
        progress: where it is reported why one device is used.

    Returns:
        The distribution; one device where `auto` has several replicas that do not fit the cell.
    """
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
    """Load the examples of a cell.

    Args:
        cell: its data, seed, width, augmentation and batch size matter.

    Returns:
        (training examples, validation examples).

    Raises:
        UsageError: where they and the cell do not fit.
    """
    options = cell.data
    training = data.load_training_data(options, "train", cell.seed)
    if options.width is not None:
        check_width(options.width, training.info.shape[1], options.name)
    if cell.train.augment is not None:
        augmentation.check_pad(cell.train.augment.pad, training.info.shape, options.name)
    if cell.train.batch_size > len(training):
        raise UsageError(
            f"train.batch_size: expected at most the {len(training)} training examples, "
            f"received {cell.train.batch_size}; give fewer with --batch-size (train.batch_size)"
        )
    validation = data.load_training_data(options, "validation", cell.seed)
    if not len(validation):
        raise UsageError(
            f"data.validation: none of the {options.validation} validation examples is of the classes; hold out more"
        )
    return training, validation


# ---------------------------------------------------------------- epochs


def _resumed(
    cell: Cell, loop: TrainingLoop, folder: Path | None, distribution: Distribution, progress: Progress
) -> TrainingState:
    """The state that the training begins with: that of the checkpoint in its folder, or an empty one."""
    content = distribution.broadcast(None if folder is None else checkpoint.read(folder))
    if content is None:
        return TrainingState([], deterministic=backend.is_deterministic())
    state = checkpoint.restore(content, cell_id(cell), loop.model, loop.optimizer)
    if isinstance(state, str):
        if folder is not None:
            kept = records.set_aside(folder / checkpoint.NAME)
            progress.message(
                f"{folder / checkpoint.NAME} is not used: {state}; the training starts over"
                + (f" (the file is now {kept.name})" if kept else "")
            )
        return TrainingState([], deterministic=backend.is_deterministic())
    progress.message(f"going on after epoch {len(state.history)} of {cell.train.epochs} (from {folder})")
    return state


@dataclass
class _Run:
    """A running training: the arguments of `train`, and its state."""

    cell: Cell
    loop: TrainingLoop
    state: TrainingState
    folder: Path | None
    checkpoint_every: int | None
    tensorboard: bool
    unsaved: Checkpoint | None = None

    def epochs(self, progress: Progress) -> str | None:
        """Train the epochs that are left; the reason if the training failed."""
        try:
            return self._epochs(progress)
        except (Exception, KeyboardInterrupt):  # TensorFlow makes other errors of some interruptions
            if self.checkpoint_every is None:
                self._save()
            raise

    def _epochs(self, progress: Progress) -> str | None:
        log = history.tensorboard_writer(self.folder) if self.folder is not None and self.tensorboard else None
        state, epochs, steps = self.state, self.cell.train.epochs, self.loop.steps
        done, saved = len(state.history), time.monotonic()
        with progress_task(progress, f"training {describe_cell(self.cell)}", epochs * steps, "steps", done * steps):
            for number in range(done, epochs):
                begun = time.monotonic()
                epoch = self.loop.epoch(number, progress)
                with signals.uninterrupted():  # else an epoch that is over could be lost
                    self._add(epoch, begun)
                progress.message(
                    f"epoch {epoch.number}/{epoch.epochs}  loss {epoch.loss:.4f}  train {epoch.train_accuracy:.4f}  "
                    f"validation {epoch.validation_accuracy:.4f}  {epoch.images_per_second:,.0f} images/s"
                )
                if log is not None:
                    log(epoch)
                if not math.isfinite(epoch.loss):
                    return f"the loss is not finite in epoch {epoch.number}"
                if epoch.number == epochs or self._is_due(epoch.number, time.monotonic() - saved):
                    self._save()
                    saved = time.monotonic()
        return None

    def _add(self, epoch: Epoch, begun: float) -> None:
        """Add an epoch that began at that time to the state, and take the checkpoint of it."""
        state = self.state
        state.history.append(epoch)
        best = state.selected is None or epoch.validation_accuracy > state.selected.epoch.validation_accuracy
        if math.isfinite(epoch.loss) and (best or self.cell.train.select == "last"):
            state.selected = SelectedEpoch(epoch, self.loop.model.get_weights())
        state.seconds += time.monotonic() - begun
        if self.folder is not None and math.isfinite(epoch.loss):
            self.unsaved = None  # it and the next one need not be in memory together
            self.unsaved = checkpoint.take(self.loop.model, self.loop.optimizer, state)

    def _is_due(self, epoch: int, seconds: float) -> bool:
        """Return if a checkpoint follows this epoch, `seconds` after the last one."""
        every = self.checkpoint_every
        return seconds >= CHECKPOINT_SECONDS if every is None else epoch % every == 0

    def _save(self) -> None:
        """Write the checkpoint and the history of the last epoch, unless they are written."""
        if self.folder is not None and self.unsaved is not None:
            history.write_history(self.folder, self.unsaved.state.history)
            self.unsaved.save(self.folder, cell_id(self.cell))
            self.unsaved = None


# ---------------------------------------------------------------- training outcome


def _failure(
    selected: SelectedEpoch | None, cell: Cell, training: data.Dataset, validation: data.Dataset
) -> str | None:
    """The reason why a training failed: no finite loss, or the accuracy of always naming the most frequent class.

    Of user data with few validation images the training images decide: of 4 images, 2 more than chance say nothing.
    """
    if selected is None:
        return "no epoch had a finite loss"
    few = data.is_user_data(cell.data.name) and len(validation) < FEW_VALIDATION
    name, examples = ("training", training) if few else ("validation", validation)
    accuracy = selected.epoch.train_accuracy if few else selected.epoch.validation_accuracy
    n = len(examples)
    chance = float(np.bincount(examples.labels).max() / n)
    bound = chance + 3 * math.sqrt(chance * (1 - chance) / n)
    if accuracy > bound:
        return None
    return (
        f"{name} accuracy {accuracy:.4f} is not above the majority-class baseline ({chance:.4f}) by 3 standard errors"
    )


def _record(
    cell: Cell, loop: TrainingLoop, state: TrainingState, reason: str | None, distribution: Distribution
) -> records.TrainingRecord:
    epoch = state.selected.epoch if state.selected else None
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
        parameters=loop.final_model().count_params(),
        images_per_second=round(rates[len(rates) // 2], 1),
        versions=backend.versions(),
        device=backend.device_name(),
        seconds=round(state.seconds, 2),
        replicas=distribution.replicas,
        hosts=distribution.hosts,
        global_batch_size=cell.train.batch_size,
        synchronized=getattr(cell.normalization, "synchronized", None),
        deterministic=state.deterministic,
        resumed=state.resumed,
        dataset_info=loop.training.info.plain(),
    )
