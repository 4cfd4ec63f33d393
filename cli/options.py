"""Options of the commands: those made of a config's fields, and those that several commands share."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import click
import cloup
from click.shell_completion import CompletionItem

from bn_vuln.errors import ConfigError

if TYPE_CHECKING:
    from bn_vuln.config.fields import ConfigField
    from bn_vuln.config.types import Frozen
    from bn_vuln.runtime.progress import Progress
    from bn_vuln.typing import Plain

Command = TypeVar("Command", bound=Callable[..., Any])
Options: TypeAlias = Mapping[str, Any]  # values of a command's options by name, as click has parsed them
MAX_METAVAR = 45  # characters of the words that an option takes; more are listed in its text


class OptionDecorator(Protocol):
    """A decorator that adds options to a command."""

    def __call__(self, command: Command, /) -> Command:
        """Return the command with the options."""


def command(name: str, examples: str) -> Callable[[Callable[..., Any]], cloup.Command]:
    """Return a decorator that makes a command; its help ends with examples, one a line."""
    return cloup.command(name, epilog=f"Examples:\n\n\b\n{examples.strip(chr(10))}", show_constraints=True)


# ---------------------------------------------------------------- fields of configs


class FieldType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """The value of a config's field, which the field itself checks."""

    def __init__(self, field: ConfigField) -> None:
        self.field = field
        self.name = field.type if len(field.type) <= MAX_METAVAR else "NAME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Parse the text of a command line."""
        try:
            return self.field.parse(value) if isinstance(value, str) else value
        except ConfigError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the words, or the kind of value, that the field takes."""
        return f"[{self.name}]" if "|" in self.name else self.name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer the words that the field takes."""
        return [CompletionItem(word) for word in self.field.choices if word.startswith(incomplete)]


class FieldOption(cloup.Option):
    """An option that is a field of a config, or of a config in it: type, default and text are the field's."""

    def __init__(self, *flags: Any, config: type[Frozen], field: ConfigField, default_text: Any, **more: Any) -> None:
        text, _, said = field.description.replace("Null:", "Default:").partition(" Default: ")
        text = re.sub("`([a-z_]+)`", lambda m: flag_name(m[1]) if m[1] in config.model_fields else m[1], text)
        if field.choices and len(field.type) > MAX_METAVAR:
            text = f"{text.rstrip('.')}: {', '.join(field.choices)}."
        default: object = default_text or said.rstrip(".") or field.default
        if default not in (None, "") and not isinstance(default, bool):
            text += f"  [default: {default}]"
        more |= {} if "is_flag" in more or field.is_flag else {"type": FieldType(field)}
        super().__init__(*flags, default=None, help=text.replace("`", ""), **more)
        self.config, self.field = config, field


def fields(*names: Any, hidden: bool = False, **defaults: Any) -> OptionDecorator:
    """Return a decorator that adds fields of a config as options; `given` reads them.

    Older names of fields (`stored_names`) are hidden options.

    Args:
        names: The config, or several that stand for each other; then dotted keys. `--adversarial-eps=adversarial.eps`
            is an option that is not named like its field, `--no-bn=normalization:none` one that stands for a value.
        hidden: Leave them out of the help.
        defaults: Defaults that the command has in place of the config's, by the last part of the key.
    """
    from bn_vuln.config.fields import fields_of

    configs = [name for name in names if not isinstance(name, str)]
    known = {field.key: field for field in fields_of(*configs)}

    def decorate(command: Command) -> Command:
        for name in reversed([name for name in names if isinstance(name, str)]):
            flag, _, key = name.rpartition("=")
            key, _, value = key.partition(":")
            field = known[key]
            flag = flag or flag_name(field.name)
            more: dict[str, Any] = {"config": configs[0], "field": field}
            more["default_text"] = defaults.get(field.name)
            if value or field.default is False:
                more |= {"is_flag": True, "flag_value": value or True}
            elif field.is_flag:
                flag += f"/--no-{flag[2:]}"
            older = field.owners[0].stored_names.get(field.name)
            if older is not None and not name.startswith("-"):
                command = cloup.option(flag_name(older), cls=FieldOption, hidden=True, **more)(command)
            command = cloup.option(flag, cls=FieldOption, hidden=hidden, **more)(command)
        return command

    return decorate


def hidden_fields(*configs: type[Frozen]) -> OptionDecorator:
    """Return a decorator that adds the fields of a config that no option below it has, left out of the help."""
    from bn_vuln.config.fields import fields_of

    names = [f.name for f in fields_of(*configs) if "." not in f.key and f.name != "kind" and f.choices != (f.type,)]

    def decorate(command: Command) -> Command:
        taken: set[str] = set()
        for option in getattr(command, "__click_params__", ()):
            taken |= {*option.opts, *([option.field.key] if isinstance(option, FieldOption) else [])}
        return fields(*configs, *(n for n in names if not {n, flag_name(n)} & taken), hidden=True)(command)

    return decorate


def given(config: type[Frozen], defaults: Mapping[str, object] | None = None) -> Plain:
    """Return the fields of a config that the running command was given as options, nested as in the config.

    Args:
        config: The config, or the first of several that stand for each other.
        defaults: Values by dotted key that the command has where none are given.

    Raises:
        click.UsageError: Two options give one field two values, or one is of another choice (`--widening` without wrn).
    """
    from bn_vuln.config import apply_override

    context = click.get_current_context()
    data: Plain = {}
    by_key: dict[str, FieldOption] = {}
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if isinstance(option, FieldOption) and option.config is config and value is not None:
            other = by_key.setdefault(option.field.key, option)
            if context.params[str(other.name)] != value:
                names = f"{other.opts[0]} and {option.opts[0]}"
                raise click.UsageError(f"{names} are two names of one option and contradict each other", context)
    values = dict(defaults or {}) | {key: context.params[str(option.name)] for key, option in by_key.items()}
    for key, value in sorted(values.items(), key=lambda item: item[0].count(".")):  # what has fields comes first
        apply_override(data, key, value)
    for key, option in by_key.items():
        above: Any = data
        for part in (parts := key.split("."))[:-1]:
            above = above[part]
        chosen, words = above.get("name"), option.field.owner_names
        if len(parts) > 1 and chosen in option.field.siblings and chosen not in words:
            flag = option.secondary_opts[0] if context.params[str(option.name)] is False else option.opts[0]
            names = f"{flag_name(parts[-2])} {' or '.join(words)}"
            raise click.UsageError(f"{flag} is for {names}, not for {chosen}", context)
    return data


def override(data: Plain, assignments: Sequence[str], *models: type[Frozen]) -> None:
    """Set fields of a config in place, as `--set KEY=VALUE` says.

    Raises:
        ConfigError: There is no such field; the nearest is named.
    """
    from bn_vuln.config import apply_override, parse_assignment, reject_unknown_key

    for assignment in assignments:
        key, value = parse_assignment(assignment)
        reject_unknown_key(assignment, key, *models)
        apply_override(data, key, value)


def options(*decorators: OptionDecorator) -> OptionDecorator:
    """Return one decorator of several; the help shows their options in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def flag_name(name: str) -> str:
    """Return the option of a name: `--step-size` of `step_size`."""
    return f"--{name.replace('_', '-')}"


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


def _into_environment(variable: str) -> Callable[[click.Context, click.Parameter, Path | None], None]:
    """Return a callback that sets an environment variable to a folder; worker processes inherit it."""

    def callback(_: click.Context, __: click.Parameter, value: Path | None) -> None:
        if value is not None:
            os.environ[variable] = str(value.expanduser().absolute())

    return callback


data_options = cloup.option_group(
    "Data folders",
    cloup.option(
        "--data-dir",
        type=FOLDER,
        callback=_into_environment("TFDS_DATA_DIR"),
        expose_value=False,
        is_eager=True,
        help="Folder of prepared data sets.  [default: $TFDS_DATA_DIR, ~/tensorflow_datasets]",
    ),
    cloup.option(
        "--manual-dir",
        type=EXISTING_FOLDER,
        callback=_into_environment("BNVULN_MANUAL_DIR"),
        expose_value=False,
        is_eager=True,
        help="Folder of files downloaded by hand.  [default: DATA_DIR/downloads/manual]",
    ),
)


def _set_up(_: click.Context, __: click.Parameter, verbose: bool) -> None:
    """Configure what has to be set before TensorFlow is imported."""
    from bn_vuln.runtime import backend

    backend.set_verbose(verbose)


json_option = cloup.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
quiet_option = cloup.option("-q", "--quiet", is_flag=True, help="No progress and no next step on standard error.")
output_options = cloup.option_group("Output", json_option, quiet_option)
measuring_output_options = cloup.option_group(
    "Output",
    json_option,
    quiet_option,
    cloup.option(
        "--verbose", is_flag=True, callback=_set_up, expose_value=False, help="TensorFlow's start-up messages."
    ),
)


def setting(example: str) -> OptionDecorator:
    """Return the option --set."""
    text = f"Any field of the config, e.g. {example} (bnvuln config fields lists them)."
    return cloup.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=text)


set_option = setting("train.epochs=3")
runs_option = cloup.option(
    "--runs", type=FOLDER, default="runs", show_default=True,
    help="Results folder of ids, and of the records of external models.",
)  # fmt: skip
strategy_option = cloup.option(
    "--strategy",
    type=click.Choice(["auto", "none", "mirrored"]),
    default="auto",
    show_default=True,
    help="Use of devices. none: one device; mirrored: a copy of the model on each; auto: mirrored on several GPUs.",
)


def progress(quiet: bool) -> Progress:
    """Return the progress that fits the terminal."""
    from bn_vuln.runtime.progress import make_progress

    return make_progress(quiet=quiet)


def log(text: str) -> None:
    """Print a line that is no result, on standard error."""
    click.echo(text, err=True)


def closing(folder: Path | str, *commands: str, quiet: bool) -> None:
    """Say at the end of a command where its records are, and what to do next, on standard error."""
    if not quiet:
        log(f"records: {folder}")
        for place, command in enumerate(commands):
            log(f"{'   or' if place else 'next'}: {command}")


def quote(path: Path | str) -> str:
    """Return a path as a command line takes it."""
    import shlex

    return shlex.quote(str(path))


def output(as_json: bool, data: object, text: str) -> None:
    """Print what a command has found: as the one JSON object of --json, or as text."""
    print_json(data) if as_json else click.echo(text)


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
