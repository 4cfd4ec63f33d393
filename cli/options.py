"""Options, parameter types and output that the commands share. Nothing heavy is imported here."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from bn_vuln.runtime.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])
Options: TypeAlias = Mapping[str, Any]  # values of a command's options by name, as click has parsed them


class OptionDecorator(Protocol):
    """A decorator that adds an option to a command."""

    def __call__(self, command: Command, /) -> Command:
        """Return the command with the option."""


class NumberType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """A number, or a fraction such as 8/255."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text of a command line."""
        if isinstance(value, float | int):
            return float(value)
        try:
            numerator, slash, denominator = str(value).replace(" ", "").partition("/")
            return float(Fraction(numerator) / (Fraction(Decimal(denominator)) if slash else 1))
        except (ValueError, InvalidOperation, ZeroDivisionError, OverflowError):
            self.fail(f"{value!r} is not a number or a fraction such as 8/255", param, ctx)


class RangeType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """`LOW,HIGH` in pixels, or `none`."""

    name = "low,high|none"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Parse the text of a command line."""
        if not isinstance(value, str) or value == "none":
            return value
        bounds = value.split(",")
        if len(bounds) != 2:
            self.fail(f"{value!r} is not none or LOW,HIGH, such as 0,1", param, ctx)
        return tuple(NUMBER.convert(bound, param, ctx) for bound in bounds)


class IntegersType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """Whole numbers joined by commas."""

    name = "n,n,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Parse the text of a command line."""
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 100,100", param, ctx)


class NumbersType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """Numbers joined by commas."""

    name = "x,x,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Parse the text of a command line."""
        return tuple(NUMBER.convert(part, param, ctx) for part in value.split(",")) if isinstance(value, str) else value


class SeedsType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """Seeds and ranges of them, joined by commas: `0-2`, `0,2`."""

    name = "n-n,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Parse the text of a command line."""
        if not isinstance(value, str):
            return value
        seeds: list[int] = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not (last.isdecimal() and int(last) >= int(first))):
                self.fail(f"{value!r} is not seeds such as 0, 0-2 or 0,2", param, ctx)
            seeds += range(int(first), int(last or first) + 1)
        return tuple(dict.fromkeys(seeds))


class OutputPath(click.Path):
    """A file or folder that will be written, in a place where that can be done."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a place below a file, or one that may not be written."""
        path = Path(str(super().convert(value, param, ctx)))
        place = next(one for one in (path, *path.absolute().parents) if one.is_dir() or (one.exists() and one != path))
        if not place.is_dir():
            self.fail(f"{str(path)!r} cannot be written: {str(place)!r} is a file", param, ctx)
        is_default = param is not None and value == param.default  # which a command need not use
        if not is_default and not os.access(place, os.W_OK | os.X_OK):
            self.fail(f"{str(path)!r} cannot be written: {str(place)!r} is read-only for you", param, ctx)
        return path


NUMBER, NUMBERS, RANGE, INTEGERS, SEEDS = NumberType(), NumbersType(), RangeType(), IntegersType(), SeedsType()
FOLDER = click.Path(file_okay=False, path_type=Path)
OUTPUT_FOLDER, OUTPUT_FILE = OutputPath(file_okay=False, path_type=Path), OutputPath(dir_okay=False, path_type=Path)


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings, in the order they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of the help."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Other"), []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class SectionOption(click.Option):
    """An option that belongs under a heading of the help.

    `older` are names that it had in earlier versions. They work, and are left out of the help.
    """

    def __init__(self, *args: Any, section: str = "Other", older: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section, self.older = section, tuple(older)
        self._older_dest = f"{self.name} by an older name"

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Add the option to the parser under all of its names."""
        super().add_to_parser(parser, ctx)
        if self.older:
            parser.add_option(self, self.older, dest=self._older_dest, action="store", nargs=1)

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Take the value of an older name; refuse it beside that of the present one."""
        opts = dict(opts)
        if self._older_dest in opts:
            if self.name in opts:
                raise click.UsageError(f"{self.older[0]} is the older name of {self.opts[0]}: give one of them", ctx)
            opts[str(self.name)] = opts.pop(self._older_dest)
        return super().handle_parse_result(ctx, opts, args)


class RenamedChoice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """A choice that takes older names of its values, too: {older: present}."""

    def __init__(self, choices: Sequence[str], older: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.older = older

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Replace an older name by the present one."""
        return super().convert(self.older.get(value, value), param, ctx)


def option(section: str) -> Callable[..., OptionDecorator]:
    """Return `click.option` for options under one heading."""

    def declare(*names: str, **attributes: Any) -> OptionDecorator:
        return click.option(*names, cls=SectionOption, section=section, **attributes)

    return declare


def options(decorators: Sequence[OptionDecorator]) -> OptionDecorator:
    """Return one decorator that adds several options; the help shows them in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def is_given(name: str) -> bool:
    """Return whether an option of the running command was given, rather than left at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT)


def flag_name(name: str) -> str:
    """Return the option of a name: `--step-size` of `step_size`."""
    return f"--{name.replace('_', '-')}"


def _into_environment(variable: str) -> Callable[[click.Context, click.Parameter, Path | None], None]:
    """Return a callback that sets an environment variable to a folder; worker processes inherit it."""

    def callback(_: click.Context, __: click.Parameter, value: Path | None) -> None:
        if value is not None:
            os.environ[variable] = str(value.expanduser().absolute())

    return callback


_data_option = option("Data")
data_options = options(
    (
        _data_option(
            "--data-dir",
            type=FOLDER,
            callback=_into_environment("TFDS_DATA_DIR"),
            expose_value=False,
            is_eager=True,
            help="Folder of prepared data sets.  [default: $TFDS_DATA_DIR, ~/tensorflow_datasets]",
        ),
        _data_option(
            "--manual-dir",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            callback=_into_environment("BNVULN_MANUAL_DIR"),
            expose_value=False,
            is_eager=True,
            help="Folder of files downloaded by hand.  [default: DATA_DIR/downloads/manual]",
        ),
    )
)


json_option = option("Output")("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
quiet_option = option("Output")("-q", "--quiet", is_flag=True, help="Nothing but errors on standard error.")
output_options = options(
    (
        json_option,
        option("Output")("-q", "--quiet", is_flag=True, help="No progress and no next step on standard error."),
        option("Output")("--verbose", is_flag=True, help="TensorFlow's start-up messages."),
    )
)


def scale_option(default: str) -> OptionDecorator:
    """Return the option --scale."""
    return option("Experiment")(
        "--scale",
        type=click.Choice(["smoke", "quick", "cpu", "full"]),
        default=default,
        show_default=True,
        help="Amount of work; full is the paper's. Below it, verdicts are previews.",
    )


runs_option = option("Results")(
    "--runs",
    type=FOLDER,
    default="runs",
    show_default=True,
    help="Results folder of ids, and of the records of external models.",
)
set_option = option("Experiment")(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A field of the config, e.g. train.epochs=3."
)
dry_run_option = option("Experiment")(
    "--dry-run", is_flag=True, help="Print the resolved config and its cells; run nothing."
)
_result_option = option("Results")
run_options = options(
    (
        _result_option("--out", type=OUTPUT_FOLDER, default="runs", show_default=True, help="Results folder."),
        _result_option(
            "--jobs",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            metavar="N",
            help="Number of processes, which share the CPU cores.",
        ),
        _result_option("--check", is_flag=True, help="Exit code 1 if a verdict fails."),
    )
)


strategy_option = option("Devices")(
    "--strategy",
    type=click.Choice(["auto", "none", "mirrored"]),
    default="auto",
    show_default=True,
    help="Use of devices. none: one device; mirrored: a copy of the model on each; auto: mirrored on several GPUs.",
)
batch_option = option("Devices")(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Examples at a time, over all devices; it changes results by rounding at most.  [default: 500, or what "
    "memory holds]",
)
checks_option = option("Diagnostics")(
    "--checks",
    type=click.Choice(["none", "basic", "full"]),
    default="basic",
    show_default=True,
    help="Diagnostics that look for a failed attack. basic: one gradient, random points and rounded images on a "
    "quarter of the examples (100 to 1,000), and a short apgd-t on up to 100 that were left; full: further attacks on "
    "up to 1,000, at many times the cost.",
)


def progress(quiet: bool) -> Progress:
    """Return the progress that fits the terminal."""
    from bn_vuln.runtime.progress import make_progress

    return make_progress(quiet=quiet)


def set_up(verbose: bool) -> None:
    """Configure what has to be set before TensorFlow is imported."""
    from bn_vuln.runtime import backend

    backend.set_verbose(verbose)


def log(text: str) -> None:
    """Print a line that is no result, on standard error."""
    click.echo(text, err=True)


def closing(folder: Path | str, *commands: str, quiet: bool) -> None:
    """Say at the end of a command where its records are, and what to do next, on standard error."""
    if not quiet:
        log(f"records: {folder}")
        for place, command in enumerate(commands):
            log(f"{'   or' if place else 'next'}: {command}")


def quote(path: Path) -> str:
    """Return a path as a command line takes it."""
    import shlex

    return shlex.quote(str(path))


def print_json(data: object) -> None:
    """Print the one JSON object of a command with --json, whole or not at all. NaN and infinities become null."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(data: object) -> object:
    """Replace the numbers that JSON does not have by None."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def shipped(kind: str) -> list[str]:
    """Return the names of the shipped configs of a kind, as `catalog.names` does, without what that imports."""
    names = (entry.name for entry in (resources.files("bn_vuln.configs") / kind).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
