"""Publishing: what is finished of experiments, from a working folder into a packed store."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bn_vuln import records
from bn_vuln.config import Experiment, digest, identity_of
from bn_vuln.errors import UsageError
from bn_vuln.experiments import catalog
from bn_vuln.experiments.task import tasks
from bn_vuln.records import FolderStore, Published
from bn_vuln.runtime.progress import Progress, Quiet


@dataclass(frozen=True)
class Publication:
    """Numbers of an experiment's cells, in all and published; those that are finished are."""

    experiment: Experiment
    published: int
    cells: int

    @property
    def text(self) -> str:
        """The numbers in a line."""
        unfinished = self.cells - self.published
        rest = f" ({unfinished} are not finished)" if unfinished else ""
        return f"{self.published} of {self.cells} cells of {self.experiment.name}{rest}"


def publish_experiments(
    chosen: Mapping[str, Experiment],
    source: Path,
    target: Path,
    models: int | None = None,
    progress: Progress | None = None,
) -> list[Publication]:
    """Add every finished cell of experiments to a packed store, with the records that the experiments ask for.

    Args:
        chosen: Experiments at the scale at which they were run, by the name or file by which they were asked for.
        source: The working folder.
        target: The packed store, which is made where there is none; what is in it stays.
        models: The seed whose models are published too; none by default: a cell is trained again when something new
            is to be measured on it.
        progress: Receiver of messages on damaged files, which are left out. None: no messages.

    Returns:
        For each experiment, how much of it was finished.

    Raises:
        UsageError: Nothing of an experiment is finished, or a folder is of the wrong kind.
        BnvulnError: A number differs from one that is published under the same id.
    """
    if records.is_packed(source):
        raise UsageError(f"{source}: a packed store; unpack it and publish from the working folder: bnvuln unpack")
    if not records.is_packed(target) and records.run_folders(target):
        raise UsageError(f"{target}: a working folder, not a packed store; name another folder")
    published: dict[str, Published] = {}
    publications = []
    for asked, experiment in chosen.items():
        todo = tasks(experiment)
        finished = [task for task in todo if task.finished(source)]
        for damaged in (one for task in todo if task not in finished for one in task.damaged(source)):
            (progress or Quiet()).message(f"left out: {damaged.text}")
        if not finished:
            raise UsageError(
                f"{experiment.name}: none of its {len(todo)} cells is finished in {source}; run it first: "
                f"bnvuln reproduce {shlex.quote(asked)} --scale {experiment.scale} --out {shlex.quote(str(source))}"
            )
        publications.append(Publication(experiment, len(finished), len(todo)))
        for task in finished:
            cell_id = task.folder(source).name
            before = published.get(cell_id, Published(set()))
            published[cell_id] = Published({*before.ids, *task.ids()}, model=before.model or task.cell.seed == models)
    texts = {catalog.file_stem(experiment): experiment for experiment in chosen.values()}
    known = {path.stem for path in (target / "experiments").glob("*.yaml")}
    others = [e for e in records.open_store(target).experiments() if catalog.file_stem(e) not in texts] if known else []
    members = _members([*texts.values(), *others])
    configs = {stem: records.to_yaml(e) for stem, e in texts.items()}
    records.pack(FolderStore(source), target, published, configs, members, progress)
    return publications


def _members(experiments: Sequence[Experiment]) -> dict[tuple[str, str], list[str]]:
    """Return which experiments ask for a cell, under (cell, ""), and for a number, as EXPERIMENT:COLUMN."""
    members: dict[tuple[str, str], list[str]] = {}
    for experiment in experiments:
        stem = catalog.file_stem(experiment)
        columns: dict[str, dict[str, str]] = {}  # data set -> column -> id
        for task in tasks(experiment):
            cell_id, dataset = digest(identity_of(task.cell)), task.cell.data.canonical
            members.setdefault((cell_id, ""), []).append(stem)
            if task.sources or dataset not in columns:  # of transfers each cell has its own
                columns[dataset] = {
                    plan.column(name): own for plan in task.plans for name, own in plan.ids(dataset).items()
                }
            for column, own in columns[dataset].items():
                members.setdefault((cell_id, own), []).append(f"{stem}:{column}")
    return members
