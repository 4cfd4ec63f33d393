"""Running an experiment: for each cell train if there is no finished training, evaluate if there is no record.

Everything is a file of its own, so a run that is interrupted continues where it was, several processes may
work in one results folder (a cell is claimed while it is worked on), and experiments share trained cells.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from bn_vuln import data, records
from bn_vuln.config import (
    Cell,
    Evaluation,
    EvaluationPlan,
    Experiment,
    Measurement,
    Perturbation,
    describe_cell,
    digest,
    identity_of,
    perturbation_identity,
    to_yaml,
    with_eps_grid,
)
from bn_vuln.config.grid import check_layout, expand
from bn_vuln.data.transforms import check_width
from bn_vuln.errors import BnvulnError, ConfigError, UsageError
from bn_vuln.experiments import catalog
from bn_vuln.runtime import processes
from bn_vuln.runtime.distribution import Strategy, choose
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Progress, Quiet

ROUNDS = 3  # that finish nothing, as where a worker is killed each time, before a run gives up
POLL_SECONDS = 2.0
What = TypeVar("What", bound=BaseModel)  # a perturbation or a measurement
CHECKPOINTS = 100  # of a training at most: 1,000 epochs of milliseconds would be spent writing them


@dataclass(frozen=True)
class Task:
    """A cell with the perturbations it is to be evaluated under, what else is to be measured of it, and what of this
    `extra_plans` too."""

    cell: Cell
    evaluation: Evaluation
    perturbations: Mapping[str, Perturbation]
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    extra_plans: tuple[EvaluationPlan, ...] = ()

    @property
    def plans(self) -> tuple[EvaluationPlan, ...]:
        """Where something is to be measured, and what."""
        return EvaluationPlan(self.evaluation, self.perturbations, self.measurements), *self.extra_plans

    def folder(self, root: Path) -> Path:
        """The cell's run folder in a results folder."""
        return root / digest(identity_of(self.cell))

    def ids(self) -> set[str]:
        """The ids of the perturbations and measurements."""
        return {
            self._id(plan, what)
            for plan in self.plans
            for what in (*with_eps_grid(plan.perturbations).values(), *plan.measurements.values())
        }

    def missing(self, root: Path) -> list[EvaluationPlan]:
        """The perturbations and measurements without a record, also perturbations where that of a smaller eps of their
        grid is missing; none for a cell that failed to train."""
        training = records.read_training(self.folder(root))
        if training is not None and training.state == "failed":
            return []
        left = [self._left(plan, root) for plan in self.plans]
        return [plan for plan in left if plan.perturbations or plan.measurements]

    def finished(self, root: Path) -> bool:
        """Trained (or recorded as failed), and every record there."""
        return records.read_training(self.folder(root)) is not None and not self.missing(root)

    def _left(self, plan: EvaluationPlan, root: Path) -> EvaluationPlan:
        """What has no record there."""
        lacking = self._lacking(root, plan, with_eps_grid(plan.perturbations), records.record_path)
        wanted = {n: p for n, p in plan.perturbations.items() if lacking.keys() & with_eps_grid({n: p}).keys()}
        unmeasured = self._lacking(root, plan, plan.measurements, records.measurement_path)
        return replace(plan, perturbations=wanted, measurements=unmeasured)

    def _lacking(
        self, root: Path, plan: EvaluationPlan, wanted: Mapping[str, What], path: Callable[[Path, str], Path]
    ) -> dict[str, What]:
        """Those that have no file."""
        folder = self.folder(root)
        return {name: what for name, what in wanted.items() if not path(folder, self._id(plan, what)).exists()}

    def _id(self, plan: EvaluationPlan, what: BaseModel) -> str:
        return digest(perturbation_identity(plan.evaluation, self.cell.data.canonical, what))


def tasks(experiment: Experiment) -> list[Task]:
    """The tasks of an experiment at its scale. Raises `ConfigError` for a grid or a layout that makes no sense."""
    cells = expand(experiment)
    check_layout(experiment, cells)
    for name in {cell.data.name for cell in cells if cell.data.digest is None}:
        if data.is_user_data(name):
            raise ConfigError(f"{experiment.name}: {name}: user data belong into base.data, not into the grid")
    here, *extra_plans = experiment.plans
    for plan in experiment.plans:
        where, key = plan.evaluation.dataset, f"evaluations.{plan.name}" if plan.name else "evaluation"
        if where is not None and data.is_user_data(where):
            raise ConfigError(f"{experiment.name}: {key}.dataset: user data belong into base.data, received {where}")
    return [Task(cell, here.evaluation, here.perturbations, here.measurements, tuple(extra_plans)) for cell in cells]


def experiment_path(root: Path, experiment: Experiment) -> Path:
    """Where a results folder keeps the resolved config of an experiment."""
    return root / "experiments" / f"{catalog.file_stem(experiment)}.yaml"


def run(
    experiment: Experiment,
    root: Path,
    *,
    jobs: int = 1,
    strategy: Strategy = "auto",
    progress: Progress | None = None,
) -> None:
    """Run what is missing of an experiment into the results folder `root`, in `jobs` processes of one device each.

    Raises `UsageError` for several jobs over several devices, `BnvulnError` if a cell could not be finished (workers
    were killed in `ROUNDS` rounds that finished nothing).
    """
    progress = progress or Quiet()
    if jobs > 1 and strategy == "mirrored":
        raise UsageError("--jobs divides the cells, --strategy mirrored each cell: use one of them")
    todo = tasks(experiment)  # before anything is written: it refuses what makes no sense
    check_data(task for task in todo if not task.finished(root))
    atomic_write(experiment_path(root, experiment), to_yaml(experiment))
    left, in_vain = _unfinished(todo, root), 0
    while left and in_vain < ROUNDS:
        progress.message(f"{experiment.name}: {len(todo) - len(left)} of {len(todo)} cells are finished")
        _run_round(left, root, min(jobs, len(left)), strategy, progress)
        before, left = len(left), _unfinished(todo, root)
        in_vain = in_vain + 1 if len(left) == before else 0
    if left:
        raise BnvulnError(
            f"{experiment.name}: {len(left)} of {len(todo)} cells could not be finished; run the command again"
        )


def _unfinished(todo: Iterable[Task], root: Path) -> list[Task]:
    return [task for task in todo if not task.finished(root)]


def check_data(todo: Iterable[Task]) -> None:
    """Prepare the data, those of evaluations too, before anything is trained; raise `UsageError` for a width below
    theirs, `BnvulnError` where they cannot be had."""
    needed = {
        (name, task.cell.data.width)
        for task in todo
        for name in (task.cell.data.name, *(plan.evaluation.dataset for plan in task.plans))
        if name is not None
    }
    for name, width in sorted(needed, key=str):
        native = data.prepare(name).shape[1]
        check_width(width or native, native, name)


def _run_round(left: list[Task], root: Path, jobs: int, strategy: Strategy, progress: Progress) -> None:
    if jobs == 1:
        for number, task in enumerate(left, 1):
            progress.message(f"cell {number}/{len(left)}: {describe_cell(task.cell)}")
            run_task(task, root, strategy=strategy, progress=progress)
    else:
        processes.run(functools.partial(_work, root=root), left, jobs, progress)
    # What another process has claimed is waited for, not done twice.
    said: set[Path] = set()
    while held := [task for task in left if _claimed_elsewhere(task, root)]:
        for task in held:
            path = task.folder(root) / "lock.json"
            if path not in said:
                said.add(path)
                progress.message(
                    f"waiting for another process at {describe_cell(task.cell)}; if it is gone, remove {path}"
                )
        time.sleep(POLL_SECONDS)


def _claimed_elsewhere(task: Task, root: Path) -> bool:
    return (
        (task.folder(root) / "lock.json").exists()
        and not task.finished(root)
        and not records.is_stale_lock(task.folder(root))
    )


def _work(task: Task, root: Path) -> str:
    """What a worker process does: one cell, then a line to show."""
    begun = time.monotonic()
    run_task(task, root)
    if not task.finished(root):
        return f"{describe_cell(task.cell)}: another process is at it"
    return f"{describe_cell(task.cell)}: finished in {time.monotonic() - begun:.0f} s"


def run_task(task: Task, root: Path, *, strategy: Strategy = "none", progress: Progress | None = None) -> None:
    """Train and evaluate one cell as far as it is missing; nothing if another process has claimed it."""
    folder = task.folder(root)
    with records.locked(folder) as mine:
        if mine and not task.finished(root):
            _finish(task, folder, root, strategy, progress or Quiet())


def _outcome(training: records.TrainingRecord) -> tuple[object, ...]:
    """What two trainings to the same weights have in common."""
    return training.best_epoch, training.loss, training.train_accuracy, training.validation_accuracy


def _finish(task: Task, folder: Path, root: Path, strategy: Strategy, progress: Progress) -> None:
    from bn_vuln import training as train
    from bn_vuln.evaluation import classifier, evaluator
    from bn_vuln.evaluation.measurements import mechanism

    training = before = records.read_training(folder)
    if training is None or (training.state == "trained" and not (folder / "model.keras").exists()):
        # A cell whose records travel without its model is trained again when a record is missing.
        distribution = train.fitting_distribution(task.cell, strategy, progress)
        every = math.ceil(task.cell.train.epochs / CHECKPOINTS)
        training = train.train(
            task.cell, folder, checkpoint_every=every, distribution=distribution, progress=progress
        ).record
        if before is not None and _outcome(training) != _outcome(before):
            # Other rounding, other weights: numbers of two models must not stand, or be subtracted, beside each other.
            progress.message(f"{folder}: trained again with another outcome; all of it is measured again")
            records.clear_measured(folder)
    missing = task.missing(root)
    if training.state == "failed":
        progress.message(f"{folder}: failed to train: {training.reason}")
    elif missing:
        distribution = choose(strategy)
        with distribution.scope():
            subject = classifier.from_run(folder)
        for plan in missing:
            if plan.name:
                progress.message(f"evaluations.{plan.name}:")
            found = evaluator.measure(
                subject, plan.perturbations, plan.evaluation, folder=folder, distribution=distribution,
                progress=progress,
            )  # fmt: skip
            for _ in found:
                pass  # the records are what is wanted; the images of one perturbation at a time are enough in memory
            for _ in mechanism.measure(subject, plan.measurements, plan.evaluation, folder=folder, progress=progress):
                pass
