"""What the commands share: option types, groups of options, output. Nothing heavy is imported here."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """A number, or a fraction such as 8/255."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float | int):
            return float(value)
        try:
            return float(Fraction(str(value).replace(" ", "")))
        except (ValueError, ZeroDivisionError, OverflowError):
            self.fail(f"{value!r} is not a number or a fraction such as 8/255", param, ctx)


class Range(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """`LOW,HIGH` in pixels, or `none`."""

    name = "low,high|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value == "none":
            return value
        parts = value.split(",")
        if len(parts) != 2:
            self.fail(f"{value!r} is not none or LOW,HIGH, such as 0,1", param, ctx)
        return tuple(NUMBER.convert(part, param, ctx) for part in parts)


class Integers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """Whole numbers joined by commas."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 100,100", param, ctx)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """Numbers joined by commas."""

    name = "x,x,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return tuple(NUMBER.convert(part, param, ctx) for part in value.split(",")) if isinstance(value, str) else value


NUMBER, NUMBERS, RANGE, INTEGERS = Number(), Numbers(), Range(), Integers()
FOLDER = click.Path(file_okay=False, path_type=Path)


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings, in the order they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                sections.setdefault(getattr(param, "section", "Other"), []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class SectionOption(click.Option):
    """An option that belongs under a heading of the help.

    `older` are names that it had in earlier versions: they work, and are left out of the help.
    """

    def __init__(self, *args: Any, section: str = "Other", older: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section, self.older = section, tuple(older)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        present = self.opts
        self.opts = [*present, *self.older]
        super().add_to_parser(parser, ctx)
        self.opts = present


class RenamedChoice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """A choice that takes older names of its values, too: {older: present}."""

    def __init__(self, choices: Sequence[str], older: dict[str, str]) -> None:
        super().__init__(choices)
        self.older = older

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(self.older.get(value, value), param, ctx)


def option(section: str) -> Callable[..., Callable[[Command], Command]]:
    """`click.option` for options under one heading."""

    def declare(*names: str, **attributes: Any) -> Callable[[Command], Command]:
        return click.option(*names, cls=SectionOption, section=section, **attributes)

    return declare


def data_options(command: Command) -> Command:
    """--data-dir and --manual-dir, handed on in the environment, which worker processes inherit."""
    add = option("Data")
    hidden: dict[str, Any] = {"expose_value": False, "is_eager": True}
    for decorate in (
        add(
            "--manual-dir",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            callback=_into("BNVULN_MANUAL_DIR"),
            help="Folder of files downloaded by hand.  [default: DATA_DIR/downloads/manual]",
            **hidden,
        ),
        add(
            "--data-dir",
            type=FOLDER,
            callback=_into("TFDS_DATA_DIR"),
            help="Folder of prepared data sets.  [default: $TFDS_DATA_DIR, ~/tensorflow_datasets]",
            **hidden,
        ),
    ):
        command = decorate(command)
    return command


def _into(variable: str) -> Callable[[click.Context, click.Parameter, Path | None], None]:
    """A callback that puts a folder into an environment variable."""

    def keep(_: click.Context, __: click.Parameter, value: Path | None) -> None:
        if value is not None:
            os.environ[variable] = str(value.expanduser().absolute())

    return keep


def output_options(command: Command) -> Command:
    """--json, --quiet, --verbose."""
    add = option("Output")
    for decorate in (
        add("--verbose", is_flag=True, help="Show TensorFlow's start-up messages."),
        add("-q", "--quiet", is_flag=True, help="No progress on standard error."),
        add("--json", "as_json", is_flag=True, help="Print one JSON object on standard output."),
    ):
        command = decorate(command)
    return command


def scale_option(default: str) -> Callable[[Command], Command]:
    """--scale."""
    return option("What")(
        "--scale",
        type=click.Choice(["smoke", "quick", "cpu", "full"]),
        default=default,
        show_default=True,
        help="full is the paper's; below it, verdicts are previews.",
    )


def experiment_options(command: Command) -> Command:
    """--out, --jobs, --check."""
    add = option("Result")
    for decorate in (
        add("--check", is_flag=True, help="Exit with 1 if a verdict fails."),
        add(
            "--jobs",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Processes, the cores divided among them.",
        ),
        add("--out", type=FOLDER, default="runs", show_default=True, help="Results folder."),
    ):
        command = decorate(command)
    return command


strategy_option = option("Devices")(
    "--strategy",
    type=click.Choice(["auto", "none", "mirrored"]),
    default="auto",
    show_default=True,
    help="none: one device; mirrored: a copy of the model on each; auto: mirrored on several GPUs.",
)
batch_option = option("Devices")(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Examples at a time, over all devices; results depend on it by rounding at most.  [default: 500, or what "
    "memory holds]",
)
checks_option = option("Checks")(
    "--checks",
    type=click.Choice(["none", "basic", "full"]),
    default="basic",
    show_default=True,
    help="What is done to doubt an attack. basic: one gradient, random points and rounded images on a quarter of the "
    "examples (100 to 1,000); full: further attacks on up to 1,000, which cost many times as much.",
)


def progress(quiet: bool) -> Any:
    """The progress that fits the terminal."""
    from bn_vuln.runtime.progress import make_progress

    return make_progress(quiet=quiet)


def set_up(verbose: bool) -> None:
    """What must happen before TensorFlow is imported."""
    from bn_vuln.runtime import backend

    backend.set_verbose(verbose)


def say(text: str) -> None:
    """A line for the reader that is no result: standard error."""
    click.echo(text, err=True)


def print_json(data: Any) -> None:
    """The one JSON object of a command with --json, whole or not at all. NaN and infinities become null."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def shipped(kind: str) -> list[str]:
    """The names of the configs of a kind that ship, for a help text: `catalog.names` without what it imports."""
    names = (entry.name for entry in (resources.files("bn_vuln.configs") / kind).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


# ---------------------------------------------------------------- attack and evaluate


def open_target(target: Path | None, runs: Path, given: dict[str, Any]) -> tuple[Path, Any]:
    """(the target or the newest run, its classifier)."""
    from bn_vuln import api, data
    from bn_vuln.runtime.distribution import choose

    if given["dataset"] is not None:
        data.prepare(given["dataset"])  # before TensorFlow is started, so that what is missing is said at once
    if target is None:
        target = api.newest_run(runs)
        say(f"the newest run is {target}")
    foreign = foreign_options(given)
    if foreign and target.is_dir():
        raise click.UsageError(
            f"{target} is a run of ours: --input-scale and --from-probabilities are for .keras files"
        )
    distribution = choose(given["strategy"])
    return target, api.open_classifier(target, dataset=given["dataset"], distribution=distribution, **foreign)


def foreign_options(given: dict[str, Any]) -> dict[str, Any]:
    """What was said of how foreign models are called, as `api.open_classifier` takes it."""
    foreign: dict[str, Any] = {"from_probabilities": True} if given["from_probabilities"] else {}
    return foreign if given["input_scale"] is None else {**foreign, "input_scale": given["input_scale"]}


def measure(
    classifier: Any, evaluation: Any, perturbations: Any, folder: Path, quiet: bool, given: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate, each record written into `folder` as soon as it is there; name -> result."""
    from bn_vuln.evaluation import evaluator
    from bn_vuln.runtime.distribution import choose

    how: dict[str, Any] = {"distribution": choose(given["strategy"]), "fold": not given.get("no_fold")}
    how |= {"checks": given["checks"], "batch_size": given["batch_size"]}
    found = evaluator.measure(classifier, perturbations, evaluation, folder=folder, progress=progress(quiet), **how)
    return dict(found)


def print_records(found: dict[str, Any], as_json: bool, target: str, measured: dict[str, Any] | None = None) -> None:
    """Records (and measurements) as one JSON object, or as tables with the flags under them."""
    if as_json:
        plain = [{"name": name, "kind": r.kind, **r.model_dump(mode="json")} for name, r in found.items()]
        others = [{"name": name, **r.model_dump(mode="json")} for name, r in (measured or {}).items()]
        print_json({"target": target, "records": plain, **({"measurements": others} if others else {})})
        return
    from bn_vuln.reporting.tables import measurements_table, records_table

    click.echo(records_table(found))
    if measured:
        click.echo(f"\n{measurements_table(measured)}")
