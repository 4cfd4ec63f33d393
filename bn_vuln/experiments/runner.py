"""Runs of experiments: each cell is trained unless it is trained already, each record made unless it is there.

Every record is a file of its own. So an interrupted run continues where it was, several processes may work in one
results folder (a cell is locked while one works on it), and experiments share trained cells.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel

from bn_vuln import data, records
from bn_vuln.config import (
    Cell,
    EvaluationPlan,
    Experiment,
    Perturbation,
    Transfer,
    describe_cell,
    digest,
    identity_of,
    perturbation_identity,
    with_eps_grid,
)
from bn_vuln.config.grid import cell_plans, check_layout, expand, select
from bn_vuln.data.transforms import check_width
from bn_vuln.errors import BnvulnError, ConfigError, UsageError
from bn_vuln.evaluation.kept_parts import forget_parts
from bn_vuln.experiments import catalog
from bn_vuln.models import weight_files
from bn_vuln.runtime import processes
from bn_vuln.runtime.distribution import Strategy, choose
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Where

if TYPE_CHECKING:
    from bn_vuln.evaluation.classifier import Classifier

MAX_IDLE_ROUNDS = 3  # rounds that finish nothing, as where a worker is killed each time, before a run gives up
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Task:
    """A cell, what is to be measured of it, and the cells whose models are the sources of its transfers, by id."""

    cell: Cell
    plans: tuple[EvaluationPlan, ...] = ()
    sources: Mapping[str, Cell] = field(default_factory=dict)

    def folder(self, root: Path) -> Path:
        """Return the cell's run folder in a results folder."""
        return root / digest(identity_of(self.cell))

    def ids(self) -> set[str]:
        """Return the ids of all perturbations and measurements."""
        return {
            self._id(plan, measured)
            for plan in self.plans
            for measured in (*with_eps_grid(plan.perturbations).values(), *plan.measurements.values())
        }

    def missing(self, root: Path) -> list[EvaluationPlan]:
        """Return plans of the perturbations and measurements without a record that is whole, outcomes included.

        An attack is missing where the record of any eps of its grid is. Nothing is missing of a cell that failed to
        train, and no transfer from one.
        """
        return self._missing_in(records.FolderStore(root))

    def damaged(self, root: Path) -> list[records.Damaged]:
        """Return the files of the cell that are damaged or of another run: what is in them counts as missing."""
        store = records.FolderStore(root)
        self._missing_in(store)
        if (self.folder(root) / "config.yaml").exists():
            store.attempt(lambda: store.cell(self.folder(root).name))
        return store.damaged

    def _missing_in(self, store: records.FolderStore) -> list[EvaluationPlan]:
        if _has_failed(store, self.folder(store.root).name):
            return []
        plans = [self._missing_of(plan, store) for plan in self.plans]
        return [plan for plan in plans if plan.perturbations or plan.measurements]

    def finished(self, root: Path) -> bool:
        """Return whether the cell is trained (or recorded as failed) and every record is there."""
        store = records.FolderStore(root)
        return store.training(self.folder(root).name) is not None and not self._missing_in(store)

    def _missing_of(self, plan: EvaluationPlan, store: records.FolderStore) -> EvaluationPlan:
        cell_id = self.folder(store.root).name

        def is_measured(perturbation: Perturbation) -> bool:
            if isinstance(perturbation, Transfer) and _has_failed(store, perturbation.source):
                return True
            own = self._id(plan, perturbation)
            return store.record(cell_id, own) is not None and records.correct_path(store.root / cell_id, own).exists()

        absent = {name for name, item in with_eps_grid(plan.perturbations).items() if not is_measured(item)}
        perturbations = {n: p for n, p in plan.perturbations.items() if absent & with_eps_grid({n: p}).keys()}
        measurements = {
            name: item
            for name, item in plan.measurements.items()
            if store.measurement(cell_id, self._id(plan, item)) is None
        }
        return replace(plan, perturbations=perturbations, measurements=measurements)

    def _id(self, plan: EvaluationPlan, measured: BaseModel) -> str:
        return digest(perturbation_identity(plan.evaluation, self.cell.data.canonical, measured))


def _has_failed(store: records.FolderStore, cell_id: str) -> bool:
    training = store.training(cell_id)
    return training is not None and training.state == "failed"


def tasks(experiment: Experiment, where: Where = MappingProxyType({})) -> list[Task]:
    """Return the tasks of an experiment at its scale, one for each cell.

    Args:
        experiment: The experiment.
        where: Values that a cell has, as `grid.select` takes them.

    Raises:
        ConfigError: The grid, the layout or the data sets of the experiment are wrong, or no cell has the values.
    """
    cells = expand(experiment)
    check_layout(experiment, cells)
    for name in {cell.data.name for cell in cells if cell.data.digest is None}:
        if data.is_user_data(name):
            raise ConfigError(f"{experiment.name}: {name}: user data belong into base.data, not into the grid")
    for plan in experiment.plans:
        dataset, key = plan.evaluation.dataset, f"evaluations.{plan.name}" if plan.name else "evaluation"
        if dataset is not None and data.is_user_data(dataset):
            raise ConfigError(f"{experiment.name}: {key}.dataset: user data belong into base.data, received {dataset}")
    chosen, by_id = set(select(experiment, cells, where)), {digest(identity_of(cell)): cell for cell in cells}
    return [
        Task(cell, plans, {source: by_id[source] for plan in plans for source in plan.sources})
        for cell, plans in zip(cells, cell_plans(experiment, cells), strict=True)
        if cell in chosen
    ]


def experiment_path(root: Path, experiment: Experiment) -> Path:
    """Return the path at which a results folder keeps the resolved config of an experiment."""
    return root / "experiments" / f"{catalog.file_stem(experiment)}.yaml"


def run(
    experiment: Experiment,
    root: Path,
    *,
    where: Where = MappingProxyType({}),
    jobs: int = 1,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> None:
    """Run what is missing of an experiment, or of a part of it.

    Args:
        experiment: The experiment.
        root: The results folder.
        where: Values that the cells of the part have, as `grid.select` takes them.
        jobs: Number of processes, of one device each.
        strategy: Distribution of each cell over devices.
        progress: Receiver of progress. None: no progress.

    Raises:
        UsageError: There are several jobs over several devices.
        BnvulnError: A cell could not be finished: workers were killed in `MAX_IDLE_ROUNDS` rounds that finished
            nothing.
    """
    progress = progress or Quiet()
    if records.is_packed(root):
        raise UsageError(f"{root}: a packed store, which is read-only; unpack it first: bnvuln unpack {root} runs")
    if jobs > 1 and strategy == "mirrored":
        raise UsageError("--jobs divides the cells, --strategy mirrored each cell: use one of them")
    todo = tasks(experiment, where)  # before anything is written, since it raises for a wrong experiment
    check_data(task for task in todo if not task.finished(root))
    atomic_write(experiment_path(root, experiment), records.to_yaml(experiment))
    for task in todo:
        _set_damaged_aside(task, root, progress)
    unfinished, idle_rounds = [task for task in todo if not task.finished(root)], 0
    while unfinished and idle_rounds < MAX_IDLE_ROUNDS:
        progress.message(f"{experiment.name}: {len(todo) - len(unfinished)} of {len(todo)} cells are finished")
        _run_round(unfinished, root, min(jobs, len(unfinished)), strategy, progress)
        before, unfinished = len(unfinished), [task for task in unfinished if not task.finished(root)]
        idle_rounds = idle_rounds + 1 if len(unfinished) == before else 0
    if unfinished:
        raise BnvulnError(
            f"{experiment.name}: {len(unfinished)} of {len(todo)} cells could not be finished; run the command again"
        )
    for source in {source for task in todo for plan in task.plans for source in plan.sources}:
        forget_parts(root / source)  # what transfers were of


def check_data(todo: Iterable[Task]) -> None:
    """Prepare all data sets of the tasks, and fetch published weights, before anything is trained.

    Raises:
        UsageError: A width is below the native one.
        BnvulnError: A data set or weights cannot be downloaded.
    """
    todo = list(todo)
    for cell in (task.cell for task in todo):
        if cell.weights not in (None, "random"):
            weight_files.path_of(str(cell.pretrained_name), str(cell.weights))
    needed = {
        (name, None if task.cell.weights else task.cell.data.width)  # nets for ImageNet take images of any size
        for task in todo
        for name in (task.cell.data.name, *(plan.evaluation.dataset for plan in task.plans))
        if name is not None
    }
    for name, width in sorted(needed, key=str):
        native = data.prepare(name).shape[1]
        check_width(width or native, native, name)


def check_names(todo: Iterable[Task]) -> None:
    """Check the names of all data sets without preparing any.

    Raises:
        UsageError: A name is not known.
    """
    named = {name for task in todo for name in (task.cell.data.name, *(plan.evaluation.dataset for plan in task.plans))}
    for name in sorted(named - {None, *(known["name"] for known in data.list_datasets())}, key=str):
        data.describe_dataset(str(name))


def check_widths(todo: Iterable[Task]) -> None:
    """Check the widths of all cells without preparing their data.

    Raises:
        UsageError: A width is below the native one.
    """
    for name, width in sorted({(task.cell.data.name, task.cell.data.width) for task in todo}, key=str):
        native = data.describe_dataset(name)["shape"][1]
        check_width(width or native, native, name)


def _run_round(unfinished: list[Task], root: Path, jobs: int, strategy: Strategy, progress: Progress) -> None:
    """Run each task once, then wait for those that other processes work on."""
    if jobs == 1:
        for number, task in enumerate(unfinished, 1):
            progress.message(f"cell {number}/{len(unfinished)}: {describe_cell(task.cell)}")
            run_task(task, root, strategy=strategy, progress=progress)
    else:
        processes.run(functools.partial(_run_in_worker, root=root), unfinished, jobs, progress)
    waiting = [task for task in unfinished if _is_locked(task, root)]
    for task in waiting:
        path = task.folder(root) / records.LOCK
        progress.message(
            f"waiting for another process, which has locked {describe_cell(task.cell)}; if it is gone, remove {path}"
        )
    while any(_is_locked(task, root) for task in waiting):
        time.sleep(POLL_SECONDS)


def _is_locked(task: Task, root: Path) -> bool:
    """Return whether another process works on a task that is not finished."""
    folder = task.folder(root)
    return (folder / records.LOCK).exists() and not task.finished(root) and not records.is_stale_lock(folder)


def _set_damaged_aside(task: Task, root: Path, progress: Progress) -> None:
    """Rename what is damaged of a cell, so that it is made again; a damaged config is written again at once."""
    if not task.damaged(root):
        return
    with records.locked(task.folder(root)) as acquired:
        for damaged in task.damaged(root) if acquired else ():
            _set_aside(damaged, progress)
            if damaged.path.name == "config.yaml":
                atomic_write(damaged.path, records.to_yaml(task.cell))


def _set_aside(damaged: records.Damaged, progress: Progress) -> None:
    kept = records.set_aside(damaged.path)
    now = f" (the file is now {kept.name})" if kept else ""
    progress.message(f"{damaged.path}: {damaged.reason}; it is made again{now}")


def _run_in_worker(task: Task, root: Path) -> str:
    """Run one task in a worker process; return a line to show."""
    begun = time.monotonic()
    run_task(task, root)
    if not task.finished(root):
        return f"{describe_cell(task.cell)}: locked by another process"
    return f"{describe_cell(task.cell)}: finished in {time.monotonic() - begun:.0f} s"


def run_task(task: Task, root: Path, *, strategy: Strategy = "none", progress: Progress | None = None) -> None:
    """Train one cell and make its records, as far as they are missing; nothing if another process has locked it."""
    progress = progress or Quiet()
    with records.locked(task.folder(root)) as acquired:
        if not acquired or task.finished(root):
            return
        training = _train_if_missing(task, root, strategy, progress)
        needed = {source for plan in task.missing(root) for source in plan.sources}
        for source, cell in task.sources.items():
            if source in needed:
                _train_other(Task(cell), root, strategy, progress)
            if _has_failed(records.FolderStore(root), source):
                progress.message(f"{describe_cell(cell)} failed to train: there is no transfer from it")
        missing = task.missing(root)
        if training.state == "failed":
            progress.message(f"{task.folder(root)}: failed to train: {training.reason}")
        elif missing:
            _measure(task.folder(root), missing, strategy, progress)


def _train_other(task: Task, root: Path, strategy: Strategy, progress: Progress) -> None:
    """Train a cell that another one needs, unless it is trained; wait where another process does.

    That process never waits for this one: a cell is trained before the sources of its transfers are.
    """
    while not _is_trained(task, root):
        with records.locked(task.folder(root)) as acquired:
            if acquired:
                _train_if_missing(task, root, strategy, progress)
        if not acquired:
            time.sleep(POLL_SECONDS)


def _is_trained(task: Task, root: Path) -> bool:
    """Return whether a cell has a model that is whole, or has failed to train."""
    store, cell_id = records.FolderStore(root), task.folder(root).name
    training = store.training(cell_id)
    return training is not None and (training.state == "failed" or store.model(cell_id) is not None)


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
