"""Numbers, short forms and the base class of every config object."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bn_vuln.config.identity import IDENTITY


def parse_number(value: Any) -> Any:
    """A number as people write it in this field: 0.03, "1e-5", "8/255". Anything else is left to pydantic."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "expected a number")
    if isinstance(value, str):
        try:
            return float(Fraction(value.strip().replace(" ", "")))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise PydanticCustomError("number", "expected a number or a fraction such as 8/255") from None
    return value


def parse_integer(value: Any) -> Any:
    """A whole number; booleans and fractions are refused, anything else is left to pydantic."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise PydanticCustomError("integer", "expected a whole number")
    return value


def expand_name(value: Any) -> Any:
    """The short form: a word means a mapping with that name."""
    return {"name": value} if isinstance(value, str) else value


def expand_kind(value: Any) -> Any:
    """The same for a mapping whose key is `kind`."""
    return {"kind": value} if isinstance(value, str) else value


Float = Annotated[float, BeforeValidator(parse_number), Field(allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(parse_number), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, BeforeValidator(parse_number), Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(parse_integer), Field(ge=1)]
Index = Annotated[int, BeforeValidator(parse_integer), Field(ge=0)]
Severity = Annotated[int, BeforeValidator(parse_integer), Field(ge=1, le=5)]
Interval = tuple[Float, Float]


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known word nearest to `word`, or "" where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _mapped(value: Any, names: Mapping[str, str]) -> Any:
    """The value, or each of a list of values, under its other name, where it has one."""
    if isinstance(value, list | tuple):
        return [_mapped(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


class Frozen(BaseModel):
    """Base of every config object: immutable, and refuses keys it does not know.

    Published ids stay, whatever is added or renamed. `omitted_from_id_at_default` lists fields added after results had
    been published: at their default they are left out of what an id hashes. `stored_names` has, for fields that were
    renamed since, the name that ids hash and records hold (`keep` is stored as `iterate`), and `stored_values` the same
    for values of a field; older config files may use either.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ()
    stored_names: ClassVar[dict[str, str]] = {}
    stored_values: ClassVar[dict[str, dict[str, str]]] = {}

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return self.identifying(fields) if info.context == IDENTITY else fields

    def identifying(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The plain fields that an id hashes."""
        defaults = {name: type(self).model_fields[name].default for name in self.omitted_from_id_at_default}
        kept = {k: v for k, v in fields.items() if k not in defaults or v != _plain(defaults[k])}
        for name, values in self.stored_values.items():
            kept[name] = _mapped(kept[name], values)
        return {self.stored_names.get(k, k): v for k, v in kept.items()}

    @classmethod
    def with_present_names(cls, data: Any) -> Any:
        """The data that a config is made of, with stored names and values replaced by those of its fields."""
        if not isinstance(data, Mapping):
            return data
        renamed = dict(data)
        for name, stored in cls.stored_names.items():
            if stored in renamed and name in renamed:
                message = "{stored} is the older name of {name}: give one of them"
                raise PydanticCustomError("renamed", message, {"stored": stored, "name": name})
            if stored in renamed:
                renamed[name] = renamed.pop(stored)
        for name, values in cls.stored_values.items():
            if name in renamed:
                renamed[name] = _mapped(renamed[name], {stored: now for now, stored in values.items()})
        return renamed

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        data = cls.with_present_names(data)
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                known = sorted(cls.model_fields)
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key {key}{hint} (known: {known})",
                    {"key": repr(key), "hint": nearest(str(key), known), "known": ", ".join(known)},
                )
        return data
