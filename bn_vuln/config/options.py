"""Options of a command line that are fields of configs: type, default and text are the field's. For click and cloup."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import click
import cloup
from click.shell_completion import CompletionItem

from bn_vuln.config.fields import TAGS, ConfigField, fields_of
from bn_vuln.config.loading import apply_override, parse_assignment, reject_unknown_key
from bn_vuln.config.types import Frozen
from bn_vuln.errors import ConfigError
from bn_vuln.typing import Plain

Command = TypeVar("Command", bound=Callable[..., Any])
MAX_METAVAR = 45  # characters of the words that an option takes; more are listed in its text


class OptionDecorator(Protocol):
    """A decorator that adds options to a command."""

    def __call__(self, command: Command, /) -> Command:
        """Return the command with the options."""


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
    """An option that is a field of a config, or of a config in it."""

    def __init__(
        self, *flags: Any, config: type[Frozen], field: ConfigField, default_text: Any = None, **more: Any
    ) -> None:
        text, _, said = field.description.replace("Null:", "Default:").partition(" Default: ")
        text = re.sub("`([a-z_]+)`", lambda m: flag_name(m[1]) if m[1] in config.model_fields else m[1], text)
        if field.choices and len(field.type) > MAX_METAVAR:
            text = f"{text.rstrip('.')}: {', '.join(field.choices)}."
        default: object = default_text or said.rstrip(".") or field.default
        if isinstance(value := more.get("flag_value"), str):
            text, default = f"The same as {flag_name(field.name)} {value}.", None
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
    configs = [name for name in names if not isinstance(name, str)]
    known = {field.key: field for field in fields_of(*configs)}

    def decorate(command: Command) -> Command:
        for name in reversed(names[len(configs) :]):
            flag, _, key = name.rpartition("=")
            key, _, value = key.partition(":")
            field = known[key]
            more: dict[str, Any] = {"config": configs[0], "field": field, "default_text": defaults.get(field.name)}
            older = field.owners[0].stored_names.get(field.name)
            if older is not None and not flag:
                command = cloup.option(flag_name(older), cls=FieldOption, hidden=True, **more)(command)
            flag = flag or flag_name(field.name)
            if value or field.default is False:
                more |= {"is_flag": True, "flag_value": value or True}
            elif field.is_flag:
                flag += f"/--no-{flag[2:]}"
            command = cloup.option(flag, cls=FieldOption, hidden=hidden, **more)(command)
        return command

    return decorate


def hidden_fields(*names: Any) -> OptionDecorator:
    """Return a decorator that adds what no option below it has, left out of the help.

    Args:
        names: The config, or several that stand for each other; then keys of parts whose fields are added too.
    """
    configs, parts = [name for name in names if not isinstance(name, str)], ("", *names)
    found = [field for field in fields_of(*configs) if field.key.rpartition(".")[0] in parts]
    takes_text = [f for f in found if f.name not in TAGS and f.choices != (f.type,) and (f.choices or not f.members)]

    def decorate(command: Command) -> Command:
        options = getattr(command, "__click_params__", ())
        taken = {word for one in options for word in (*one.opts, getattr(getattr(one, "field", None), "key", ""))}
        keys = [field.key for field in takes_text if not {field.key, flag_name(field.name)} & taken]
        return fields(*configs, *keys, hidden=True)(command)

    return decorate


def given(config: type[Frozen], defaults: Mapping[str, object] | None = None) -> Plain:
    """Return the fields of a config that the running command was given as options, nested as in the config.

    Args:
        config: The config, or the first of several that stand for each other.
        defaults: Values by dotted key that the command has where none are given.

    Raises:
        click.UsageError: Two options give one field two values, or one is of another choice (`--widening` without wrn).
    """
    context = click.get_current_context()
    by_key: dict[str, tuple[FieldOption, object]] = {}
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if isinstance(option, FieldOption) and option.config is config and value is not None:
            other, first = by_key.setdefault(option.field.key, (option, value))
            if value != first:
                names = f"{other.opts[0]} and {option.opts[0]}"
                raise click.UsageError(f"{names} are two names of one option and contradict each other", context)
    data: Plain = {}
    values = dict(defaults or {}) | {key: value for key, (_, value) in by_key.items()}
    for key, value in sorted(values.items(), key=lambda item: item[0].count(".")):  # what has fields comes first
        apply_override(data, key, value)
    for key, (option, value) in by_key.items():
        above: Any = data
        for part in (parts := key.split("."))[:-1]:
            above = above[part]
        chosen, words = above.get("name"), option.field.owner_names
        if len(parts) > 1 and chosen in option.field.siblings and chosen not in words:
            flag = option.secondary_opts[0] if value is False else option.opts[0]
            names = f"{flag_name(parts[-2])} {' or '.join(words)}"
            raise click.UsageError(f"{flag} is for {names}, not for {chosen}", context)
    return data


def override(data: Plain, assignments: Sequence[str], *models: type[Frozen]) -> None:
    """Set fields of a config in place, as `--set KEY=VALUE` says.

    Raises:
        ConfigError: There is no such field; the nearest is named.
    """
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        reject_unknown_key(f"--set {assignment}", key, *models)
        apply_override(data, key, value)


def flag_name(name: str) -> str:
    """Return the option of a name: `--step-size` of `step_size`."""
    return f"--{name.replace('_', '-')}"
