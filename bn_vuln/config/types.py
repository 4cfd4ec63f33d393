"""Number types, short forms and the base class of every config object."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from bn_vuln.config.identity import IDENTITY
from bn_vuln.typing import Plain

MAX_DIGITS = 100  # of a number in a config
COMPLETE_MESSAGE = "complete_message"  # the type of pydantic errors to whose message nothing is added


def config_error(message: str, **fields: object) -> PydanticCustomError:
    """Return an error for pydantic, whose message needs nothing added: {NAME} stands for the field NAME."""
    return PydanticCustomError(COMPLETE_MESSAGE, message, fields)


def reject_if(*rules: tuple[object, str], **fields: object) -> None:
    """Raise the message of the first rule (condition, message) whose condition holds."""
    for broken, message in rules:
        if broken:
            raise config_error(message, **fields)


def parse_number(value: Any) -> Any:
    """Parse a number that is written as text: "1e-5", "8/255". Anything but text is left to pydantic."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "expected a number")
    if isinstance(value, str):
        try:
            numerator, slash, denominator = value.replace(" ", "").partition("/")
            return float(_fraction(numerator) / (_fraction(denominator) if slash else 1))
        except (ValueError, InvalidOperation, ZeroDivisionError, OverflowError):
            raise PydanticCustomError("number", "expected a number or a fraction such as 8/255") from None
    return value


def _fraction(text: str) -> Fraction:
    """The number of a text; `ValueError` for one whose exact value would fill the memory, such as 1e999999999."""
    number = Decimal(text[:MAX_DIGITS])
    if len(text) > MAX_DIGITS or not number.is_finite() or abs(number.adjusted()) > MAX_DIGITS * 4:
        raise ValueError(text)
    return Fraction(number)


def parse_integer(value: Any) -> Any:
    """Reject booleans and numbers that are not whole. Anything else is left to pydantic."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise PydanticCustomError("integer", "expected a whole number")
    return value


@dataclass(frozen=True)
class Expand:
    """A validator that expands the short form of a mapping: `batch` to `{name: batch}`."""

    key: str

    def __call__(self, value: object) -> object:
        """Return the mapping of text; anything else as it is."""
        return {self.key: value} if isinstance(value, str) else value


expand_name, expand_kind = Expand("name"), Expand("kind")


@dataclass(frozen=True)
class AlsoAccepted:
    """An annotation: what the validator of a type takes beside the type itself, in a word and as a JSON schema."""

    word: str
    schema: Plain

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Plain:
        """Return the JSON schema of all that is taken."""
        return {"anyOf": [handler(schema), self.schema]}


OR_NULL = AlsoAccepted("null", {"type": "null"})
OR_TWO = AlsoAccepted("2", {"const": 2})  # of the norm "2", which is a number in YAML
# The bounds stand before the validator, where they are part of the number's schema.
Float = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(parse_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(parse_number)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(parse_number)]
BelowOne = Annotated[float, Field(ge=0, lt=1), BeforeValidator(parse_number)]  # 0 <= value < 1
Share = Annotated[float, Field(gt=0, lt=1), BeforeValidator(parse_number)]  # 0 < value < 1
Count = Annotated[int, Field(ge=1), BeforeValidator(parse_integer)]
Index = Annotated[int, Field(ge=0), BeforeValidator(parse_integer)]
Severity = Annotated[int, Field(ge=1, le=5), BeforeValidator(parse_integer)]
Interval = tuple[Float, Float]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known word nearest to `word`, or "" where none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _replace(value: object, names: Mapping[str, str]) -> object:
    """Replace a value, or each of a list of values, by its other name, where it has one."""
    if isinstance(value, list | tuple):
        return [_replace(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


class Frozen(BaseModel):
    """Base of every config object: immutable, and without keys that it does not know.

    Published ids never change, whatever is added or renamed. Three class attributes see to that:

    Attributes:
        omitted_from_id_at_default: Fields that were added after results had been published. At their default they are
            left out of the fields that an id hashes.
        stored_names: Older names of renamed fields, by present name (`keep` was `iterate`). Ids hash the older name.
            Config files and records may have either.
        stored_values: Older names of renamed values, by field and present value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ()
    stored_names: ClassVar[dict[str, str]] = {}
    stored_values: ClassVar[dict[str, dict[str, str]]] = {}

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Plain:
        fields: Plain = handler(self)
        return self.identity_fields(fields) if info.context == IDENTITY else fields

    def identity_fields(self, fields: Plain) -> Plain:
        """Return the plain fields that an id hashes, under their stored names."""
        for name in self.omitted_from_id_at_default:
            default = type(self).model_fields[name].default
            if fields[name] == (list(default) if isinstance(default, tuple) else default):
                fields = {key: value for key, value in fields.items() if key != name}
        stored = {k: _replace(v, self.stored_values[k]) if k in self.stored_values else v for k, v in fields.items()}
        return {self.stored_names.get(key, key): value for key, value in stored.items()}

    @classmethod
    def with_present_names(cls, data: Any) -> Any:
        """Replace the stored names and values in the data of a config by those of its fields."""
        if not isinstance(data, Mapping):
            return data
        renamed = dict(data)
        for name, stored in cls.stored_names.items():
            if renamed.get(stored) is not None and renamed.get(name) is not None:
                raise config_error("{stored} is the older name of {name}: give one of them", stored=stored, name=name)
            if stored in renamed:
                older = renamed.pop(stored)
                renamed[name] = older if renamed.get(name) is None else renamed[name]
        for name, values in cls.stored_values.items():
            if name in renamed:
                renamed[name] = _replace(renamed[name], {stored: now for now, stored in values.items()})
        return renamed

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, data: object) -> object:
        data = cls.with_present_names(data)
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                known = sorted(cls.model_fields)
                hint, message = nearest(str(key), known), "unknown key {key}{hint} (known: {known})"
                raise config_error(message, key=repr(key), hint=hint, known=", ".join(known))
        return data
