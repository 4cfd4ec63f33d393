"""Plans: parts of experiments, run one after another, so that something is finished at every moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bn_vuln.config import ALL_CELLS, Experiment, ExperimentPart, Plan, Scale, Sweep, parse_assignment, to_plain
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.experiments import catalog, runner
from bn_vuln.experiments.task import Task, check_data, tasks
from bn_vuln.runtime.distribution import Strategy
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Plain


@dataclass(frozen=True)
class PartOutcome:
    """What became of a part of a plan.

    Attributes:
        part: The part.
        state: `finished`; `skipped`, where its data are not there or an override does not fit it; or `failed`.
        reason: Why it was skipped, or has failed.
        experiment: Its experiment at its scale; None where an override does not fit it.
    """

    part: ExperimentPart
    state: Literal["finished", "skipped", "failed"]
    reason: str = ""
    experiment: Experiment | None = None

    @property
    def fields(self) -> Plain:
        """The part and what became of it, as plain data."""
        return {**to_plain(self.part), "state": self.state, "reason": self.reason}


def parse_part(experiment: str, scale: Scale, where: Sequence[str] = (), seeds: str | None = None) -> ExperimentPart:
    """Return the part of an experiment that a command line describes.

    Args:
        experiment: Its name, or the path of its YAML file.
        scale: Its scale.
        where: Assignments of one value or several, as `arch.name=vgg8,vgg11`.
        seeds: Seeds and ranges of them, joined by commas: `0-2`, `0,2`. None: all.

    Raises:
        UsageError: A text is none of these, or a key is there twice.
    """
    values: Plain = {}
    for text in where:
        key, value = parse_assignment(text, "--where")
        if key in values:
            raise UsageError(f"--where {text}: {key} is there twice; join its values by commas: {key}=A,B")
        pieces = value.split(",") if isinstance(value, str) else []
        values[key] = [parse_assignment(f"{key}={piece}", "--where")[1] for piece in pieces] or value
    chosen = [seed for text in (seeds.split(",") if seeds is not None else ()) for seed in _seeds(text)]
    return ExperimentPart(experiment=experiment, scale=scale, where=values, seeds=tuple(dict.fromkeys(chosen)))


def _seeds(text: str) -> range:
    """Return the seeds of `2` or of `0-2`."""
    first, dash, last = text.strip().partition("-")
    if not first.isdecimal() or (dash and not (last.isdecimal() and int(last) >= int(first))):
        raise UsageError(f"--seeds: expected seeds such as 0, 0-2 or 0,2, received {text!r}")
    return range(int(first), int(last or first) + 1)


def resolve(part: ExperimentPart, overrides: Sequence[str] = ()) -> tuple[Experiment, list[Task]]:
    """Return the experiment of a part at its scale, and the part's tasks.

    Raises:
        ConfigError: The experiment, its scale, a value of the part or an override is wrong.
    """
    experiment = catalog.experiment(part.experiment, part.scale, overrides)
    return experiment, tasks(experiment, part.selection)


def run(
    plan: Plan,
    root: Path,
    *,
    sweep: Sweep = ALL_CELLS,
    strategy: Strategy = "auto",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Iterator[PartOutcome]:
    """Run what is missing of each part; yield its outcome before the next one begins.

    Args:
        plan: The parts.
        root: The results folder.
        sweep: As `runner.run` takes it.
        strategy: As `runner.run` takes it.
        overrides: Assignments on top of every experiment.
        progress: Receiver of progress. None: no progress.

    Raises:
        ConfigError: A part is wrong as it stands in the plan; nothing was run.
    """
    progress = progress or Quiet()
    for part in plan.parts:
        resolve(part)
    for number, part in enumerate(plan.parts, 1):
        progress.message(f"part {number}/{len(plan.parts)}: {part.text}")
        try:
            experiment, todo = resolve(part, overrides)
        except BnvulnError as error:
            yield PartOutcome(part, "skipped", str(error))
            continue
        try:
            check_data(task for task in todo if not task.finished(root))
        except BnvulnError as error:
            yield PartOutcome(part, "skipped", str(error), experiment)
            continue
        try:
            runner.run(experiment, root, where=part.selection, sweep=sweep, strategy=strategy, progress=progress)
        except Exception as error:  # whatever it is, the other parts can be run
            yield PartOutcome(part, "failed", str(error) or type(error).__name__, experiment)
        else:
            yield PartOutcome(part, "finished", experiment=experiment)
