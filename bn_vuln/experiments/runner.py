"""Runs of experiments: each cell is trained unless it is trained already, each record made unless it is there.

Every record is a file of its own. So an interrupted run continues where it was, several processes may work in one
results folder (one has the lease of a cell while it works on it), and experiments share trained cells.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from bn_vuln import records
from bn_vuln.config import ALL_CELLS, EvaluationPlan, Experiment, Perturbation, Sweep, Transfer, describe_cell
from bn_vuln.errors import BnvulnError, UsageError, explain
from bn_vuln.evaluation.kept_parts import forget_parts
from bn_vuln.experiments import attempts, engines, parcels
from bn_vuln.experiments.engines import DiedError, Worker
from bn_vuln.experiments.task import Task, check_data, experiment_path, has_failed, tasks
from bn_vuln.runtime import backend, lease
from bn_vuln.runtime.distribution import Strategy, choose
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Progress, Quiet, progress_task
from bn_vuln.typing import Where

if TYPE_CHECKING:
    from bn_vuln.evaluation.classifier import Classifier

MOST_ATTEMPTS = 3  # at a cell that gets no further, before it is given up
# What every other cell would meet as well: a full disk, a folder that cannot be written.
OF_ALL_CELLS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
DENIED = (errno.EACCES, errno.EPERM)


class CellsFailedError(BnvulnError):
    """Cells that could not be finished; all others are."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a cell ended.

    `busy`: another process works on it. `refused`: it is wrong as it stands. `stopped`: others would fail as well.
    """

    state: Literal["finished", "busy", "failed", "refused", "stopped"]
    text: str


def run(
    experiment: Experiment,
    root: Path,
    *,
    where: Where = MappingProxyType({}),
    sweep: Sweep = ALL_CELLS,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> None:
    """Run what is missing of an experiment, or of a part of it.

    Args:
        experiment: The experiment.
        root: The results folder.
        where: Values that the cells of the part have, as `grid.select` takes them.
        sweep: The engine, the number of cells at a time, and the shard.
        strategy: Distribution of each cell over devices.
        progress: Receiver of progress. None: no progress.

    Raises:
        UsageError: There are several jobs over several devices, or the engine does not have what is asked for.
        CellsFailedError: Cells failed `MOST_ATTEMPTS` times without getting further. All others are finished.
        BnvulnError: Nothing can be written, as where the disk is full.
    """
    progress = progress or Quiet()
    if records.is_packed(root):
        raise UsageError(f"{root}: a packed store, which is read-only; unpack it first: bnvuln unpack {root} runs")
    divided = sweep.engine == "ray" or (sweep.jobs or 1) > 1 or sweep.cpus_per_cell or sweep.gpus_per_cell
    if divided and strategy == "mirrored":
        raise UsageError("--jobs and --engine ray divide the cells, --strategy mirrored each cell: use one of them")
    todo = sweep.cells(tasks(experiment, where))  # before anything is written, since it raises for a wrong experiment
    unmarked = [task for task in todo if not task.is_marked(root) or _is_left(task.folder(root))]
    read = [(task, *task.read(root)) for task in unmarked]  # once: there may be thousands
    unfinished = [task for task, finished, _ in read if not finished]
    check_data(unfinished)
    atomic_write(experiment_path(root, experiment), records.to_yaml(experiment))
    for task, finished, damaged in read:
        _set_damaged_aside(task, damaged, root, progress)
        if finished:
            with lease.locked(task.folder(root)) as held:
                if held is not None:
                    task.mark(root)
    if unfinished:
        progress.message(f"{experiment.name}: {len(todo) - len(unfinished)} of {len(todo)} cells are finished")
        failed = _Sweep(root, sweep, strategy, progress).run(unfinished)
        if failed:
            raise _failed(experiment, len(todo), failed, root)
    for source in {source for task in todo for plan in task.plans for source in plan.sources}:
        forget_parts(root / source)  # what transfers were of


def _failed(experiment: Experiment, count: int, failed: list[tuple[Task, Outcome]], root: Path) -> BnvulnError:
    """Return the error of cells that could not be finished; it shows the first one."""
    task, outcome = failed[0]
    where = task.folder(root) / attempts.FAILED
    text = (
        f"{experiment.name}: {len(failed)} of {count} cells failed, the others are finished. "
        f"{describe_cell(task.cell)}: {outcome.text} (see {where}); run the command again to try it again"
    )
    return UsageError(text) if all(one.state == "refused" for _, one in failed) else CellsFailedError(text)


class _Sweep:
    """The loop over pending cells, each of which goes to the next worker that is free."""

    def __init__(self, root: Path, sweep: Sweep, strategy: Strategy, progress: Progress) -> None:
        self.root, self.sweep, self.strategy, self.progress = root, sweep, strategy, progress
        self.pending: deque[Task] = deque()
        self.running: set[str] = set()
        self.failed: list[tuple[Task, Outcome]] = []
        self.attempts: Counter[str] = Counter()
        self.done: dict[str, int] = {}  # what was done when an attempt failed
        self.ended = threading.Event()  # an attempt, since it was looked at last
        self.is_over = False

    def run(self, unfinished: Sequence[Task]) -> list[tuple[Task, Outcome]]:
        """Run all cells; return those that failed."""
        self.pending.extend(unfinished)
        failures = {task.id: attempts.failure(task.folder(self.root)) for task in unfinished}  # of earlier runs
        with engines.opened(self.sweep, len(unfinished)) as workers, contextlib.ExitStack() as stack:
            here = isinstance(workers[0], engines.Here)
            if not here:
                stack.enter_context(progress_task(self.progress, "cells", len(unfinished), "cells"))
            attempted = engines.run(workers, self._work(workers), self._offered(failures, say=here))
            stack.callback(attempted.close)
            try:
                for task, outcome in attempted:
                    self._settle(task, outcome)
                    self.progress.advance(len(unfinished) - len(self.pending) - len(self.running))
            finally:
                self.is_over = True
        return self.failed

    def _offered(self, failures: Mapping[str, attempts.Failure | None], *, say: bool) -> Iterator[Task]:
        """Yield cells that no other process works on, until none is pending or runs."""
        said, number = False, 0
        while not self.is_over and (self.pending or self.running):
            self.ended.clear()
            for _ in range(len(self.pending)):
                task = self.pending.popleft()
                folder = task.folder(self.root)
                if lease.is_locked(folder):
                    self.pending.append(task)
                    continue
                failure = attempts.failure(folder)
                if failure is not None and failure != failures[task.id]:  # another process gave it up meanwhile
                    self.failed.append((task, Outcome("failed", failure.reason)))
                elif not task.is_marked(self.root):
                    if os.path.lexists(folder / lease.LOCK):  # it has expired, but a worker would watch it anew
                        with lease.locked(folder):
                            pass
                    self.running.add(task.id)
                    number += 1
                    if say:
                        self.progress.message(f"cell {number}/{len(failures)}: {describe_cell(task.cell)}")
                    yield task
            if self.pending and not self.running and not said:
                self._say_who_works()
                said = True
            if self.pending or self.running:
                self.ended.wait(lease.POLL_SECONDS)

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """Take note of how an attempt ended; the cell is pending again where it is not finished, and not given up."""
        if outcome.state == "stopped":
            raise BnvulnError(outcome.text)
        if outcome.state == "failed":
            done = _done(task.folder(self.root))
            if done > self.done.setdefault(task.id, done):  # it goes on, so what fails is rather its worker
                self.attempts[task.id], self.done[task.id] = 0, done
            self.attempts[task.id] += 1
        again = outcome.state == "failed" and self.attempts[task.id] < MOST_ATTEMPTS
        if outcome.text:
            more = "; it is tried again" if again else ""
            self.progress.message(f"{describe_cell(task.cell)}: {outcome.text}{more}")
        if again or outcome.state == "busy":
            self.pending.append(task)
        elif outcome.state != "finished":
            with lease.locked(task.folder(self.root)) as held:
                if held is None:  # another process is at it
                    self.pending.append(task)
                else:
                    self.failed.append((task, outcome))
                    attempts.give_up(task.folder(self.root), outcome.text, max(1, self.attempts[task.id]))
        self.running.discard(task.id)
        if outcome.state != "busy":  # which is looked at again after a while
            self.ended.set()

    def _say_who_works(self) -> None:
        for task in list(self.pending)[:3]:
            self.progress.message(f"waiting for {lease.describe(task.folder(self.root))}")
        if len(self.pending) > 3:
            self.progress.message(f"and for {len(self.pending) - 3} others")

    def _work(self, workers: Sequence[Worker]) -> Callable[[Worker, Task], Outcome]:
        """Return how a cell is run in a worker."""
        here = isinstance(workers[0], engines.Here)
        there: Strategy = "auto" if (self.sweep.gpus_per_cell or 0) > 1 else "none"  # where a cell has several GPUs
        strategy, progress = self.strategy if here else there, self.progress if here else None
        shared = self.sweep.engine == "local" or parcels.all_hosts_share(self.root)
        run = functools.partial(_attempt, strategy=strategy, progress=progress, deterministic=self.sweep.deterministic)

        def work(worker: Worker, task: Task) -> Outcome:
            try:
                if not shared:
                    outcome = parcels.call(worker, run, task, self.root, Outcome("busy", ""))
                    return replace(outcome, state="failed") if outcome.state == "stopped" else outcome
                outcome = worker.call(run, task, self.root.absolute())
            except DiedError as error:
                return Outcome("failed", str(error))
            if outcome.state == "finished" and not task.finished(self.root):
                return Outcome("failed", f"finished on a host that does not share {self.root}")
            return outcome

        return work


def _done(folder: Path) -> int:
    """Return what grows as a cell goes on: the number of its epochs that are kept, and of the files of its records."""
    epochs = 0
    with contextlib.suppress(OSError):
        epochs = (folder / "history.csv").read_bytes().count(b"\n")
    return epochs + sum(len(list((folder / kind).glob("*"))) for kind in records.MEASURED_FOLDERS)


def _attempt(
    task: Task, root: Path, *, strategy: Strategy, progress: Progress | None, deterministic: bool = False
) -> Outcome:
    """Run one task, in a worker process or here."""
    begun = time.monotonic()
    try:
        if deterministic:
            backend.make_deterministic(task.cell.seed)
        if not run_task(task, root, strategy=strategy, progress=progress):
            return Outcome("busy", "")
        if not task.finished(root):
            return Outcome("failed", "it ended without all of its records")
        return Outcome("finished", f"finished in {time.monotonic() - begun:.0f} s")
    except Exception as error:
        return _of_error(error, root)


def _of_error(error: Exception, root: Path) -> Outcome:
    """Return the outcome of an attempt that an error ended."""
    known = isinstance(error, BnvulnError | OSError | MemoryError)
    text = explain(error)[1] if known else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())[:500]
    if isinstance(error, lease.LeaseLostError):
        return Outcome("busy", text)
    if isinstance(error, OSError) and (
        error.errno in OF_ALL_CELLS or (error.errno in DENIED and not os.access(root, os.W_OK))
    ):
        return Outcome("stopped", text)
    return Outcome("refused" if isinstance(error, UsageError) else "failed", text)


def run_task(task: Task, root: Path, *, strategy: Strategy = "none", progress: Progress | None = None) -> bool:
    """Train one cell and make its records, as far as they are missing.

    Returns:
        False where another process works on it; then nothing was done.
    """
    folder = task.folder(root)
    with lease.locked(folder) as held:
        if held is None:
            return False
        if not task.finished(root):
            with attempts.logged(held, progress or Quiet()) as logged:
                _run_missing(task, root, strategy, logged)
        if task.finished(root):
            task.mark(root)
    return True


def _is_left(folder: Path) -> bool:
    """Return whether a run folder has what is removed when a cell is finished."""
    return any((folder / name).exists() for name in (lease.LOCK, attempts.LOG, attempts.FAILED))


def _run_missing(task: Task, root: Path, strategy: Strategy, progress: Progress) -> None:
    training = _train_if_missing(task, root, strategy, progress)
    needed = {source for plan in task.missing(root) for source in plan.sources}
    for source, cell in task.sources.items():
        if source in needed:
            _train_other(Task(cell), root, strategy, progress)
        if has_failed(records.FolderStore(root), source):
            progress.message(f"{describe_cell(cell)} failed to train: there is no transfer from it")
    missing = task.missing(root)
    if training.state == "failed":
        progress.message(f"{task.folder(root)}: failed to train: {training.reason}")
    elif missing:
        _measure(task.folder(root), missing, strategy, progress)


def _set_damaged_aside(task: Task, seen: Sequence[records.Damaged], root: Path, progress: Progress) -> None:
    """Rename what is damaged of a cell, so that it is made again; a config that is damaged or gone is so at once.

    What was `seen` is looked at again under the lease.
    """
    config = task.folder(root) / "config.yaml"
    is_gone = config.parent.is_dir() and not config.exists()
    if not seen and not is_gone:
        return
    with lease.locked(task.folder(root)) as held:
        for damaged in task.damaged(root) if held else ():
            _set_aside(damaged, progress)
        if held and not config.exists():
            atomic_write(config, records.to_yaml(task.cell))


def _set_aside(damaged: records.Damaged, progress: Progress) -> None:
    kept = records.set_aside(damaged.path)
    now = f" (the file is now {kept.name})" if kept else ""
    progress.message(f"{damaged.path}: {damaged.reason}; it is made again{now}")


def _train_other(task: Task, root: Path, strategy: Strategy, progress: Progress) -> None:
    """Train a cell that another one needs, unless it is trained; wait where another process does.

    That process never waits for this one: a cell is trained before the sources of its transfers are.
    """
    if task.is_trained(root):
        return
    with lease.waited(task.folder(root), progress):
        _train_if_missing(task, root, strategy, progress)
    if not task.is_trained(root):
        raise BnvulnError(f"{task.folder(root)}: what was trained there just now cannot be read")


def _train_if_missing(task: Task, root: Path, strategy: Strategy, progress: Progress) -> records.TrainingRecord:
    """Return the record of the training, made now if there is none, or if records are missing and the model is too."""
    from bn_vuln import training

    folder, cell = task.folder(root), task.cell
    store = records.FolderStore(root)
    before, model = store.training(folder.name), store.model(folder.name)
    if before is not None and (before.state == "failed" or model is not None):
        return before
    if cell.mend is not None:
        _train_other(Task(cell.base), root, strategy, progress)
    for damaged in store.damaged:  # the model
        _set_aside(damaged, progress)
    distribution = training.choose_distribution(cell, strategy, progress)
    trained = training.train(cell, folder, distribution=distribution, progress=progress).record
    measured = any(folder.glob("records/*.json")) or any(folder.glob("measurements/*.json"))
    if measured and (before is None or _result_of(trained) != _result_of(before)):
        # Other rounding, other weights: records of two models must not stand, or be subtracted, beside each other.
        why = "there was no record of the earlier training" if before is None else "retraining gave different results"
        progress.message(f"{folder}: {why}; all measurements are redone")
        records.clear_measured(folder)
    return trained


def _result_of(training: records.TrainingRecord) -> tuple[object, ...]:
    """Return the numbers in which two trainings to the same weights agree."""
    return training.best_epoch, training.loss, training.train_accuracy, training.validation_accuracy


def _measure(folder: Path, plans: Sequence[EvaluationPlan], strategy: Strategy, progress: Progress) -> None:
    """Evaluate the model of a run folder by the plans, into its records.

    The sources of transfers are opened one after another, so that the images of one at a time are in memory.
    """
    from bn_vuln.evaluation import classifier, evaluator
    from bn_vuln.evaluation.measurements import run as measurements

    distribution = choose(strategy)

    def opened(run: Path) -> Classifier:
        with distribution.scope():
            return classifier.from_run(run)

    model = opened(folder)
    for plan in plans:
        if plan.name:
            progress.message(f"evaluations.{plan.name}:")
        for source in (None, *plan.sources):
            results = evaluator.measure(
                model,
                {name: one for name, one in plan.perturbations.items() if _source_of(one) == source},
                plan.evaluation,
                folder=folder,
                distribution=distribution,
                sources={} if source is None else {source: opened(folder.parent / source)},
                progress=progress,
            )
            for _ in results:
                pass  # only the records are wanted; so the images of one perturbation at a time are in memory
        for _ in measurements.measure(model, plan.measurements, plan.evaluation, folder=folder, progress=progress):
            pass


def _source_of(perturbation: Perturbation) -> str | None:
    return perturbation.source if isinstance(perturbation, Transfer) else None
