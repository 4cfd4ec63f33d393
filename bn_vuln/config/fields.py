"""The fields of a config by dotted key, as options of the command line and `bnvuln config fields` have them."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bn_vuln.config.loading import explain
from bn_vuln.config.types import Frozen, nearest
from bn_vuln.errors import ConfigError

TAGS = ("name", "kind")  # the field that tells the members of a union apart


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
        return tuple(t for t in _parts(self.info.annotation) if isinstance(t, type) and issubclass(t, Frozen))

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
        annotation: Any = Annotated[(self.info.annotation, self.info, *self.info.metadata)]
        try:
            found = TypeAdapter(annotation).validate_python(value)
        except ValidationError as error:
            expected = f"expected {self.type}, received {text!r}{nearest(text, self.choices)}"
            given = self.choices or self.is_list
            raise ConfigError(expected if given else explain(error.errors()[0], value)) from None
        return text if found is None else found


def _names(members: Iterable[type[Frozen]]) -> tuple[str, ...]:
    """Return the words by which configs are told apart in a choice."""
    tags = [member.model_fields[tag] for member in members for tag in TAGS if tag in member.model_fields]
    return tuple(word for tag in tags for word in get_args(tag.annotation))


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
        if prefix and name in TAGS:  # said by the field above
            continue
        yield field
        yield from fields_of(*field.members, prefix=f"{field.key}.", siblings=field.choices)
