"""What the commands share: options, output and examples."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
import cloup

from bn_vuln.runtime.escapes import visible

if TYPE_CHECKING:
    from bn_vuln.config.options import Command, OptionDecorator
    from bn_vuln.runtime.progress import Progress

Options: TypeAlias = Mapping[str, Any]  # values of a command's options by name, as click has parsed them


def command(name: str, examples: str) -> Callable[[Callable[..., Any]], cloup.Command]:
    """Return a decorator that makes a command; its help ends with examples, one a line."""
    return cloup.command(name, epilog=f"Examples:\n\n\b{examples.rstrip()}", show_constraints=True)


def group(name: str, examples: str, *commands: cloup.Command) -> Callable[[Callable[..., Any]], cloup.Group]:
    """Return a decorator that makes a command of several; its help ends with the same examples as theirs."""
    epilog = f"Examples:\n\n\b{examples.rstrip()}"
    return cloup.group(name, sections=[cloup.Section("Commands", [*commands])], epilog=epilog)


def options(*decorators: OptionDecorator) -> OptionDecorator:
    """Return one decorator of several; the help shows their options in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


# ---------------------------------------------------------------- types of other options


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


FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUTPUT_FOLDER, OUTPUT_FILE = OutputPath(file_okay=False, path_type=Path), OutputPath(dir_okay=False, path_type=Path)


# ---------------------------------------------------------------- options of several commands


def _data_folder(flag: str, variable: str, kind: click.Path, text: str) -> OptionDecorator:
    """Return an option that sets an environment variable to a folder; worker processes inherit it."""

    def callback(_: click.Context, __: click.Parameter, value: Path | None) -> None:
        if value is not None:
            os.environ[variable] = str(value.expanduser().absolute())

    return cloup.option(flag, type=kind, callback=callback, expose_value=False, is_eager=True, help=text)


_DATA = "Folder of prepared data sets.  [default: $TFDS_DATA_DIR, ~/tensorflow_datasets]"
_MANUAL = "Folder of files downloaded by hand.  [default: DATA_DIR/downloads/manual]"
data_options = cloup.option_group(
    "Data folders",
    _data_folder("--data-dir", "TFDS_DATA_DIR", FOLDER, _DATA),
    _data_folder("--manual-dir", "BNVULN_MANUAL_DIR", EXISTING_FOLDER, _MANUAL),
)


def _set_up(_: click.Context, __: click.Parameter, verbose: bool) -> None:
    """Configure what has to be set before TensorFlow is imported."""
    from bn_vuln.runtime import backend

    backend.set_verbose(verbose)


_VERBOSE = "TensorFlow's start-up messages."
json_option = cloup.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
quiet_option = cloup.option("-q", "--quiet", is_flag=True, help="No progress and no next step on standard error.")
verbose_option = cloup.option("--verbose", is_flag=True, callback=_set_up, expose_value=False, help=_VERBOSE)
output_options = cloup.option_group("Output", json_option, quiet_option)
# Of all commands that start TensorFlow.
measuring_options = options(data_options, cloup.option_group("Output", json_option, quiet_option, verbose_option))


def setting(example: str) -> OptionDecorator:
    """Return the option --set."""
    text = f"Any field of the config, e.g. {example} (bnvuln config fields lists them)."
    return cloup.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=text)


set_option = setting("train.epochs=3")
runs_option = cloup.option(
    "--runs", type=FOLDER, default="runs", show_default=True,
    help="Results folder of ids, and of the records of external models.",
)  # fmt: skip


def progress(quiet: bool) -> Progress:
    """Return the progress that fits the terminal."""
    from bn_vuln.runtime.progress import make_progress

    return make_progress(quiet=quiet)


@contextlib.contextmanager
def live() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a text in place of the last one on a terminal, and below it elsewhere."""
    if not sys.stdout.isatty():
        yield echo
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as shown:
        yield lambda text: shown.update(Text(visible(text)), refresh=True)


def echo(text: str) -> None:
    """Print text that is a result; names in it cannot steer the terminal."""
    click.echo(visible(text))


def log(text: str) -> None:
    """Print a line that is no result, on standard error."""
    click.echo(visible(text), err=True)


def closing(folder: Path | str, *commands: str, quiet: bool) -> None:
    """Say at the end of a command where its records are, and what to do next, on standard error."""
    from bn_vuln.runtime.distribution import is_chief

    if not quiet and is_chief():
        log(f"records: {folder}")
        for place, command in enumerate(commands):
            log(f"{'   or' if place else 'next'}: {command}")


def quote(path: Path | str) -> str:
    """Return a path as a command line takes it."""
    return shlex.quote(str(path))


def output(as_json: bool, data: object, text: str) -> None:
    """Print what a command has found: as the one JSON object of --json, or as text."""
    print_json(data) if as_json else echo(text)


@dataclass
class Printed:
    """The object of click's context: if the one JSON object of a command is on standard output."""

    json: bool = False


def print_json(data: object) -> None:
    """Print the one JSON object of a command with --json, whole or not at all. NaN and infinities become null."""
    from pydantic_core import to_jsonable_python

    text = json.dumps(to_jsonable_python(data, inf_nan_mode="null"), indent=2, allow_nan=False)
    context = click.get_current_context(silent=True)
    if context is not None and context.find_object(Printed) is not None:
        context.obj.json = True
    click.echo(text)
