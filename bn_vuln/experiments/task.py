"""Tasks: the cells of an experiment, each with what is to be measured of it; what is missing, and what is finished."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel

from bn_vuln import data, records
from bn_vuln.config import (
    Cell,
    EvaluationPlan,
    Experiment,
    Perturbation,
    Transfer,
    digest,
    identity_of,
    perturbation_identity,
    with_eps_grid,
)
from bn_vuln.config.grid import cell_plans, check_layout, expand, select
from bn_vuln.data.transforms import check_width
from bn_vuln.errors import ConfigError
from bn_vuln.experiments import attempts, catalog
from bn_vuln.models import weight_files
from bn_vuln.runtime.files import atomic_write
from bn_vuln.typing import Where

FINISHED = "finished.json"  # in the run folder of a finished cell: what was found whole, and its files as they were


@dataclass(frozen=True)
class Task:
    """A cell, what is to be measured of it, and the cells whose models are the sources of its transfers, by id."""

    cell: Cell
    plans: tuple[EvaluationPlan, ...] = ()
    sources: Mapping[str, Cell] = field(default_factory=dict)

    @functools.cached_property
    def id(self) -> str:
        """The id of the cell."""
        return digest(identity_of(self.cell))

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The cells whose models it needs: the base that it changes, and the sources of its transfers."""
        return (*(() if self.cell.mend is None else (self.cell.base,)), *self.sources.values())

    def folder(self, root: Path) -> Path:
        """Return the cell's run folder in a results folder."""
        return root / self.id

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
        return [] if self.is_marked(root) else self.read(root)[1]

    def read(self, root: Path) -> tuple[bool, list[records.Damaged]]:
        """Read all files of the cell but its model; return what `finished` and `damaged` do."""
        store = records.FolderStore(root)
        is_trained, missing = store.training(self.id) is not None, self._missing_in(store)
        if (self.folder(root) / "config.yaml").exists():
            store.attempt(lambda: store.cell(self.id))
        return is_trained and not missing and not self._has_lost_model(root), store.damaged

    def _missing_in(self, store: records.FolderStore) -> list[EvaluationPlan]:
        if has_failed(store, self.id):
            return []
        plans = [self._missing_of(plan, store) for plan in self.plans]
        return [plan for plan in plans if plan.perturbations or plan.measurements]

    def finished(self, root: Path) -> bool:
        """Return whether the cell is trained (or recorded as failed) and every record is there and whole.

        The model need not be there, as in published results; one that was damaged, and set aside, is made again.
        """
        return self.is_marked(root) or self.read(root)[0]

    def is_trained(self, root: Path) -> bool:
        """Return whether the cell has a model that is whole, or has failed to train."""
        store = records.FolderStore(root)
        training = store.training(self.id)
        return training is not None and (training.state == "failed" or store.model(self.id) is not None)

    def mark(self, root: Path) -> None:
        """Note that the cell, whose lease this process holds, is finished, so that nothing need be read to know it.

        What earlier attempts have left, log and failure, is removed. Nothing is noted of a cell without a transfer
        whose source failed to train: that may change.
        """
        folder = self.folder(root)
        attempts.forget(folder)
        files, failed = _files(folder), has_failed(records.FolderStore(root), self.id)
        if failed or all(f"records/{one}.json" in files or f"measurements/{one}.json" in files for one in self.ids()):
            atomic_write(folder / FINISHED, json.dumps({"ids": sorted(self.ids()), "files": files}) + "\n")

    def is_marked(self, root: Path) -> bool:
        """Return whether the cell was noted as finished, and its files have not changed since, in size or time."""
        folder = self.folder(root)
        try:
            noted = json.loads(records.read_file(folder / FINISHED))
            is_same = self.ids() <= set(noted["ids"]) and noted["files"] == _files(folder)
            return is_same and not self._has_lost_model(root)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return False

    def _has_lost_model(self, root: Path) -> bool:
        folder = self.folder(root)
        return (folder / "model.keras.damaged").exists() and not (folder / "model.keras").exists()

    def _missing_of(self, plan: EvaluationPlan, store: records.FolderStore) -> EvaluationPlan:
        cell_id = self.id

        def is_measured(perturbation: Perturbation) -> bool:
            if isinstance(perturbation, Transfer) and has_failed(store, perturbation.source):
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


def has_failed(store: records.FolderStore, cell_id: str) -> bool:
    """Return whether a cell failed to train: its net did not learn."""
    training = store.training(cell_id)
    return training is not None and training.state == "failed"


def _files(folder: Path) -> dict[str, list[int]]:
    """Return size and time of modification of the files of a cell that records are made of."""
    found = {}
    for name in ("config.yaml", "training.json"):
        with contextlib.suppress(FileNotFoundError):
            found[name] = _size_and_time((folder / name).stat())
    for kind in records.MEASURED_FOLDERS:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder / kind) as entries:
            found |= {f"{kind}/{one.name}": _size_and_time(one.stat()) for one in entries if one.name[0] != "."}
    return found


def _size_and_time(found: os.stat_result) -> list[int]:
    return [found.st_size, found.st_mtime_ns]


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
    chosen, of_cell = set(select(experiment, cells, where)), cell_plans(experiment, cells)
    sources = {source for plans in of_cell for plan in plans for source in plan.sources}
    by_id = {digest(identity_of(cell)): cell for cell in cells} if sources else {}
    return [
        Task(cell, plans, {source: by_id[source] for plan in plans for source in plan.sources})
        for cell, plans in zip(cells, of_cell, strict=True)
        if cell in chosen
    ]


def experiment_path(root: Path, experiment: Experiment) -> Path:
    """Return the path at which a results folder keeps the resolved config of an experiment."""
    return root / "experiments" / f"{catalog.file_stem(experiment)}.yaml"


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
