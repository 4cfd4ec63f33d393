"""The fields of a config by dotted key, as options of the command line and `bnvuln config fields` have them."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from bn_vuln import config
from bn_vuln.config.loading import explain
from bn_vuln.config.types import AlsoAccepted, Expand, Frozen, nearest
from bn_vuln.errors import ConfigError

TAGS = ("name", "kind")  # the field that tells the members of a union apart
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class ConfigField:
    """A field of a config, or of a config in it.

    Attributes:
        key: Dotted key, as `--set` takes it: `train.lr`.
        name: Last part of the key.
        owners: The configs that have it: several where it is of a choice of configs, as `arch.depth`.
        siblings: The names of all configs of that choice.
    """

    key: str
    name: str
    owners: tuple[type[Frozen], ...]
    siblings: tuple[str, ...] = ()

    @property
    def info(self) -> FieldInfo:
        """The field of the first owner."""
        return self.owners[0].model_fields[self.name]

    @cached_property
    def members(self) -> tuple[type[Frozen], ...]:
        """The configs that the value is one of; none for plain values."""
        return configs_in(self.info.annotation)

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The words that the value is one of; those of a choice of configs are their names."""
        parts = [part for owner in self.owners for part in _parts(owner.model_fields[self.name].annotation)]
        words = [str(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]
        return tuple(dict.fromkeys([*words, *_names(self.members)]))

    @property
    def owner_names(self) -> tuple[str, ...]:
        """The names by which its owners are chosen, as `wrn`; none where there is no choice."""
        return _names(self.owners)

    @property
    def is_flag(self) -> bool:
        """True for yes and no."""
        return self.info.annotation is bool

    @cached_property
    def is_list(self) -> bool:
        """True where the value may be a list."""
        return any(get_origin(t) is tuple for t in _parts(self.info.annotation))

    @property
    def type(self) -> str:
        """The kind of value in a word: `a|b`, `N` (a whole number), `X` (a number), `X,X` (a list), `TEXT`."""
        if self.choices and not self.is_list:
            return "|".join(self.choices)
        kinds = {int: "N", float: "X", bool: "yes|no"}
        parts = [t for part in _parts(self.info.annotation) for t in (get_args(part) if self.is_list else [part])]
        found = next((kinds[t] for part in parts for t in _parts(part) if t in kinds), "TEXT")
        return "|".join([f"{found},{found}" if self.is_list else found, *self.choices])

    @property
    def default(self) -> object:
        """The default as a command line takes it; None where there is none, or where it depends on other fields."""
        values = {str(owner.model_fields[self.name].default) for owner in self.owners}
        value = self.info.default
        if len(values) > 1 or value is PydanticUndefined:
            return None
        if isinstance(value, Frozen):
            return next((getattr(value, tag) for tag in TAGS if hasattr(value, tag)), None)
        return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else value

    @property
    def description(self) -> str:
        """What it is, in a sentence or two; a default of null is said there."""
        return self.info.description or ""

    def parse(self, text: str) -> object:
        """Return the value that text on a command line has, checked by the field.

        Raises:
            ConfigError: It is none; the message is `expected ..., received ...`.
        """
        stored = self.owners[0].stored_values.get(self.name, {})
        value: Any = {older: now for now, older in stored.items()}.get(text, text)
        if value in self.choices or (self.members and not self.is_list):  # of a config the short form, checked later
            return value
        if self.is_list and ("," in text or not self.choices):
            value = [part.strip() for part in text.split(",") if part.strip()]
        try:
            found = TypeAdapter(_annotated(self.info)).validate_python(value)
        except ValidationError as error:
            expected = f"expected {self.type}, received {text!r}{nearest(text, self.choices)}"
            given = self.choices or self.is_list
            raise ConfigError(expected if given else explain(error.errors()[0], value)) from None
        return text if found is None else found


def _names(members: Iterable[type[Frozen]]) -> tuple[str, ...]:
    """Return the words by which configs are told apart in a choice."""
    tags = [member.model_fields[tag] for member in members for tag in TAGS if tag in member.model_fields]
    return tuple(word for tag in tags for word in get_args(tag.annotation))


def configs_in(annotation: Any) -> tuple[type[Frozen], ...]:
    """Return the configs that a field may be, not those in its lists and mappings."""
    return tuple(part for part in _parts(annotation) if _is_config(part))


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Frozen)


def _annotated(info: FieldInfo) -> Any:
    """Return the annotation of a field as it was written."""
    return Annotated[info.annotation, info]


def _parts(annotation: Any) -> Iterator[Any]:
    """Give the members of a union, without their annotations; any other type itself."""
    if get_origin(annotation) is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation


def fields_of(*owners: type[Frozen], prefix: str = "", siblings: tuple[str, ...] = ()) -> Iterator[ConfigField]:
    """Give every field of configs that stand for each other, and below it the fields of the configs in it."""
    for name in dict.fromkeys(name for owner in owners for name in owner.model_fields):
        having = tuple(owner for owner in owners if name in owner.model_fields)
        field = ConfigField(f"{prefix}{name}", name, having, siblings)
        if prefix and name in TAGS and field.choices:  # said by the field above
            continue
        yield field
        yield from fields_of(*field.members, prefix=f"{field.key}.", siblings=field.choices)


# ---------------------------------------------------------------- tables of fields


@dataclass(frozen=True)
class FieldRow:
    """A field of a config, as a table shows it: its dotted key, type and default as text, and what it is."""

    key: str
    type: str
    default: str
    description: str

    @property
    def text(self) -> str:
        """All but the key, as help shows it."""
        default = self.default if self.default == "required" else f"default: {self.default}"
        is_shown = self.default not in ("", "from other fields", "its defaults")
        return f"{self.description} {self.type}{f'  [{default}]' if is_shown else ''}".strip()


def configs(*others: type[Frozen]) -> dict[str, type[Frozen]]:
    """Return every config of this package, and others, by its name in small letters: `cell`, `minimum-norm`."""
    words = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
    found = [one for name, one in vars(config).items() if name in config.__all__ and _is_config(one)]
    named = {words.sub("-", model.__name__).lower(): model for model in (*found, *others) if model.model_fields}
    return dict(sorted(named.items()))


def field_rows(model: type[Frozen]) -> Iterator[FieldRow]:
    """Give every field of a config, those of its parts by dotted key, as `--set` takes them."""
    for field in fields_of(model):
        rows: dict[FieldRow, tuple[str, ...]] = {}
        for owner in field.owners:
            info = owner.model_fields[field.name]
            row = FieldRow(field.key, _words(_annotated(info)), _default(owner, field.name), info.description or "")
            rows[row] = (*rows.get(row, ()), *_names([owner]))
        for row, names in rows.items():
            is_for_all = not names or len(names) >= len(field.siblings)
            yield row if is_for_all else replace(row, description=f"{', '.join(names)}: {row.description}")


def required(model: type[BaseModel]) -> list[str]:
    """Return the fields that must be given: others without a default are filled in from other fields."""
    try:
        model.model_validate({})
    except ValidationError as error:
        return [str(found["loc"][0]) for found in error.errors() if found["type"] == "missing"]
    return []


def _default(model: type[Frozen], name: str) -> str:
    """Return a default as YAML has it, that of a choice by name."""
    if name in required(model):
        return "required"
    value = to_jsonable_python(model.model_fields[name].default, fallback=lambda _: "from other fields")
    if value and isinstance(value, dict):
        return str(value.get("name", "its defaults"))
    return value if isinstance(value, str) else json.dumps(value)


def _words(annotation: Any, between: str = " | ") -> str:
    """Return in words what an annotation accepts, but for numbers and truth as text; configs by their name."""
    return between.join(dict.fromkeys(_each_word(annotation)))


def _each_word(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[str]:
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        more = [inner for one in arguments[1:] for inner in (one, *getattr(one, "metadata", ()))]
        yield from _each_word(arguments[0], (*metadata, *more))
        yield from (one.word for one in more if isinstance(one, AlsoAccepted))
    elif kind in (Union, types.UnionType):
        names = _names(arguments) if all(map(_is_config, arguments)) else ()
        yield from names or (word for one in arguments for word in _each_word(one))
    elif kind is Literal:
        yield from map(str, arguments)
    elif kind is tuple and arguments[1:] != (...,):
        yield f"[{', '.join(map(_words, arguments))}]"
    elif kind is tuple:
        yield f"list of {_words(arguments[0], ' or ')}"
    elif kind is dict:
        yield "mapping" if arguments[1] is Any else f"mapping to {_words(arguments[1], ' or ')}"
    elif annotation in (int, float):
        bounds = [f"{s} {getattr(m, name):g}" for m in metadata for name, s in _BOUNDS.items() if hasattr(m, name)]
        yield f"{'whole ' if annotation is int else ''}number {' and '.join(bounds)}".strip()
    elif _is_config(annotation):
        expanded = any(isinstance(one, BeforeValidator) and isinstance(one.func, Expand) for one in metadata)
        yield from [*(["text"] if expanded else []), annotation.__name__]
    else:
        yield {bool: "true | false", str: "text", type(None): "null"}.get(annotation, "anything")
