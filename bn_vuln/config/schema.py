"""JSON schemas of config files, for editors; and every field of a config, as `--set` takes it.

pydantic makes the schemas. What is added here is what is read besides the fields themselves: short forms, numbers as
text, older names, defaults that depend on other fields, dotted keys, and files that extend one another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from bn_vuln import config
from bn_vuln.config import Cell, Experiment, Frozen, Plan, Suite
from bn_vuln.config.claim import OLDER_FIELDS, expand_arm, with_kind
from bn_vuln.config.experiment import expand_by
from bn_vuln.config.types import expand_kind, expand_name
from bn_vuln.typing import Plain

Kind = Literal["experiment", "base", "suite", "plan", "cell"]
_DIGITS = r"(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?"
_TRUTH = "[Oo][Nn]|[Oo][Ff][Ff]|[Yy]([Ee][Ss])?|[Nn][Oo]?|[Tt]([Rr][Uu][Ee])?|[Ff]([Aa][Ll][Ss][Ee])?|0|1"
_TOPS: dict[str, type[Frozen]] = {"suite": Suite, "plan": Plan, "cell": Cell}
_SHORT_FORMS = (expand_name, expand_kind, expand_arm, expand_by)
_PARTIAL = "Partial"  # begins the names of definitions without required fields


class _Whole(GenerateJsonSchema):
    """The schemas of configs that are whole: fields without a default are required."""

    partial: ClassVar[bool] = False

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out titles, which would be the names of the fields again."""
        return False

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """Add numbers and fractions as text."""
        number = super().float_schema(schema)
        sign = r"\+?" if {"minimum", "exclusiveMinimum"} & {*number} else r"[-+]?"
        return {"anyOf": [number, {"type": "string", "pattern": rf"^ *{sign} *{_DIGITS} *(/ *{_DIGITS} *)?$"}]}

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        """Add whole numbers as text."""
        return {"anyOf": [super().int_schema(schema), {"type": "string", "pattern": r"^ *\+?\d[\d_]*(\.0+)? *$"}]}

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        """Add the other words for true and false, some of which are text to an editor."""
        others = [{"type": "integer", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": f"^({_TRUTH})$"}]
        return {"anyOf": [super().bool_schema(schema), *others]}

    def definitions_schema(self, schema: core_schema.DefinitionsSchema) -> JsonSchemaValue:
        """Remember the definitions, which choices of unions may refer to."""
        self._shared = {str(shared["ref"]): shared for shared in schema["definitions"]}
        return super().definitions_schema(schema)

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Add the short form of a mapping, `batch` for `{name: batch}`, where its other fields have defaults."""
        found, inner = super().function_before_schema(schema), schema["schema"]
        if schema["function"]["function"] is with_kind:
            older = {"properties": {name: {} for name in OLDER_FIELDS}, "required": ["perturbations", "source"]}
            return {"anyOf": [found, {"type": "object", **older, "additionalProperties": False, "deprecated": True}]}
        if schema["function"]["function"] not in _SHORT_FORMS:
            return found
        if inner["type"] != "tagged-union":
            return {"anyOf": [{"type": "string"}, found]}
        names = [name for name, choice in inner["choices"].items() if not required(self._class_of(choice))]
        return {"anyOf": [{"enum": names}, found]}

    def _class_of(self, schema: Any) -> type[BaseModel]:
        """Return the class that a choice of a union makes."""
        while "cls" not in schema:
            schema = self._shared[schema["schema_ref"]] if "schema_ref" in schema else schema["schema"]
        model: type[BaseModel] = schema["cls"]
        return model

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Choose by the tag, so that an editor says what is wrong with that choice rather than with all of them."""
        tag = schema["discriminator"]
        choices = {str(name): self.generate_inner(choice) for name, choice in schema["choices"].items()}
        if not isinstance(tag, str):
            return {"anyOf": list(choices.values())}
        rules: list[Plain] = [
            {"if": {"properties": {tag: {"const": name}}, "required": [tag]}, "then": choice}
            for name, choice in choices.items()
        ]
        found: Plain = {"type": "object", "properties": {tag: {"enum": list(choices)}}, "allOf": rules}
        if not self.partial:
            return {**found, "required": [tag]}
        distinct = [choice for i, choice in enumerate(choices.values()) if choice not in [*choices.values()][:i]]
        return {**found, "allOf": [*rules, {"if": {"not": {"required": [tag]}}, "then": {"anyOf": distinct}}]}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Require what is not filled in from other fields; add older names and values of fields."""
        found, model = super().model_schema(schema), schema["cls"]
        missing = [] if self.partial else required(model)
        found = {**{key: value for key, value in found.items() if key != "required"}}
        if missing:
            found["required"] = missing
        if issubclass(model, Frozen):
            properties = found.get("properties", {})
            for name, values in model.stored_values.items():
                properties[name] = _with_older_values(properties[name], values)
            for name, older in model.stored_names.items():
                properties[older] = {**properties[name], "description": f"Older name of {name}.", "deprecated": True}
            given: Plain = {"not": {"type": "null"}}
            pairs = [
                {"not": {"required": [*names], "properties": dict.fromkeys(names, given)}}
                for names in model.stored_names.items()
            ]
            found |= {"allOf": pairs} if pairs else {}
        return found


class _Part(_Whole):
    """The schemas of parts of configs, which others complete: nothing is required."""

    partial = True


def required(model: type[BaseModel]) -> list[str]:
    """Return the fields that must be given: others without a default are filled in from other fields."""
    try:
        model.model_validate({})
    except ValidationError as error:
        return [str(found["loc"][0]) for found in error.errors() if found["type"] == "missing"]
    return []


def _with_older_values(schema: Any, older: Mapping[str, str]) -> Any:
    """Add the older names of values where a schema lists values."""
    if isinstance(schema, list):
        return [_with_older_values(item, older) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "enum" in schema:
        return {"anyOf": [schema, {"enum": list(older.values()), "deprecated": True}]}
    return {key: _with_older_values(value, older) for key, value in schema.items()}


def json_schema(kind: Kind) -> Plain:
    """Return the JSON schema of a kind of config file.

    Args:
        kind: `experiment`, `base` (what experiments extend), `suite`, `plan` or `cell`.
    """
    definitions: Plain = {}
    if kind in _TOPS:
        top = _define(_TOPS[kind], _Whole, definitions)
    else:
        _define(Cell, _Part, definitions)
        top = _define_experiment(_Part, definitions)
    if kind == "experiment":
        top = {"if": {"required": ["extends"]}, "then": top, "else": _define_experiment(_Whole, definitions)}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"{kind} of bnvuln"}
    return {**head, **top, "$defs": dict(sorted(definitions.items()))}


def _define(model: type[Frozen], generator: type[_Whole], definitions: Plain) -> Plain:
    """Add the schema of a config, and of all that it has, to the definitions; return the reference to it."""
    prefix = _PARTIAL if generator.partial else ""
    found = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}", schema_generator=generator)
    definitions |= {f"{prefix}{name}": inner for name, inner in found.pop("$defs", {}).items()}
    definitions[f"{prefix}{model.__name__}"] = found
    return {"$ref": f"#/$defs/{prefix}{model.__name__}"}


def _define_experiment(generator: type[_Whole], definitions: Plain) -> Plain:
    """Add the schema of an experiment, with cells that the grid completes, and with dotted keys in grid and scales."""
    reference = _define(Experiment, generator, definitions)
    cell_keys = _dotted(Cell, definitions)
    grid = {key: {"type": "array", "items": value, "minItems": 1} for key, value in cell_keys.items()}
    key = f"({'|'.join(map(re.escape, cell_keys))})"
    joined, rows = rf"{key}( *, *{key})+$", {"type": "array", "items": {"type": "array"}, "minItems": 1}
    properties = definitions[reference["$ref"].rpartition("/")[2]]["properties"]
    mappings = [name for name, value in properties.items() if "additionalProperties" in value and name != "grid"]
    below = rf"^({'|'.join(mappings)}|table\.arms|table\.columns)\."
    properties["extends"] = {"type": "string", "description": "A YAML file that this one builds on, relative to it."}
    properties["base"] |= {"$ref": f"#/$defs/{_PARTIAL}Cell"}
    properties["grid"] |= {"properties": grid, "patternProperties": {f"^{joined}": rows}, "additionalProperties": False}
    properties["scales"]["additionalProperties"] = {"$ref": "#/$defs/Overrides"}
    definitions["Overrides"] = {
        "type": "object",
        "properties": {
            **_dotted(Experiment, definitions), **cell_keys, **{f"grid.{name}": value for name, value in grid.items()},
        },
        "patternProperties": {rf"^grid\.{joined}": rows, below: {}},
        "additionalProperties": False,
    }  # fmt: skip
    return reference


def _dotted(model: type[Frozen], definitions: Plain) -> dict[str, Plain]:
    """Return what each field of a part of a config may be, older names too, by dotted key."""
    found: dict[str, list[Plain]] = {}

    def add(model: type[Frozen], prefix: str) -> None:
        place = f"{_PARTIAL}{model.__name__}"
        for name in definitions[place]["properties"]:
            found.setdefault(f"{prefix}{name}", []).append({"$ref": f"#/$defs/{place}/properties/{name}"})
        for name, field in model.model_fields.items():
            for inner in _configs_in(field.annotation):
                add(inner, f"{prefix}{name}.")

    add(model, "")
    return {key: {"anyOf": schemas} if len(schemas) > 1 else schemas[0] for key, schemas in found.items()}


def _configs_in(annotation: Any) -> list[type[Frozen]]:
    """Return the configs that a field may be, not those in its lists and mappings."""
    if get_origin(annotation) in (tuple, dict):
        return []
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Frozen) else []
    return [model for inner in get_args(annotation) for model in _configs_in(inner)]


def configs() -> dict[str, type[Frozen]]:
    """Return every config by its name in small letters: `cell`, `attack`, `minimum-norm`."""
    words = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
    public = [vars(config)[name] for name in sorted(config.__all__)]
    found = [one for one in public if isinstance(one, type) and issubclass(one, Frozen) and one.model_fields]
    return {words.sub("-", model.__name__).lower(): model for model in found}


@dataclass(frozen=True)
class FieldRow:
    """A field of a config, as a table shows it: its dotted key, type and default as text, and what it is."""

    key: str
    type: str
    default: str
    description: str


def field_rows(model: type[Frozen]) -> list[FieldRow]:
    """Return every field of a config, those of its parts by dotted key, as `--set` takes them."""
    definitions: Plain = {}
    _define(model, _Whole, definitions)
    return list(_rows(model, "", definitions))


def _rows(model: type[Frozen], prefix: str, definitions: Plain) -> Iterator[FieldRow]:
    given = required(model)
    for name, field in model.model_fields.items():
        value, parts = definitions[model.__name__]["properties"][name], _configs_in(field.annotation)
        default = "required" if name in given else _default(value)
        yield FieldRow(f"{prefix}{name}", _types(value, definitions), default, field.description or "")
        rows: dict[FieldRow, list[str]] = {}
        for part in parts:
            for row in _rows(part, f"{prefix}{name}.", definitions):
                rows.setdefault(row, []).extend(_names(part))
        for row, names in rows.items():
            if len(names) == len([one for part in parts for one in _names(part)]):
                yield row
            elif row.key.rpartition(".")[2] not in ("name", "kind"):
                yield replace(row, description=f"{', '.join(names)}: {row.description}")


def _names(model: type[Frozen]) -> tuple[str, ...]:
    """Return the names or kinds of a choice, () of a config that is none."""
    tags = [field.annotation for name, field in model.model_fields.items() if name in ("name", "kind")]
    return get_args(tags[0]) if tags else ()


def _default(schema: Plain) -> str:
    """Return a default as YAML has it, that of a choice by name."""
    if "default" not in schema:
        return "from other fields"
    value = schema["default"]
    value = value.get("name", "its defaults") if value and isinstance(value, dict) else value
    return value if isinstance(value, str) else json.dumps(value)


def _types(schema: Plain, definitions: Plain, between: str = " | ") -> str:
    """Return in words what a schema accepts, but for numbers and truth as text; configs by their name."""
    return between.join(dict.fromkeys(_each_type(schema, definitions)))


def _each_type(schema: Plain, definitions: Plain) -> Iterator[str]:
    kind = schema.get("type")
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from [name] if "properties" in definitions[name] else _each_type(definitions[name], definitions)
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _each_type(one, definitions) if not {"pattern", "deprecated"} & {*one} else ()
            if one.get("type") == "boolean":
                return
    elif "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        yield from (str(value) for value in values if not isinstance(value, dict))
    elif kind == "array":
        inner = [_types(one, definitions, " or ") for one in schema.get("prefixItems") or [schema["items"]]]
        yield f"[{', '.join(inner)}]" if "prefixItems" in schema else f"list of {inner[0]}"
    elif kind in ("integer", "number"):
        limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
        bounds = [f"{sign} {schema[name]:g}" for name, sign in limits.items() if name in schema]
        yield f"{'whole ' if kind == 'integer' else ''}number {' and '.join(bounds)}".strip()
    elif kind == "object" and "allOf" in schema and len(schema["properties"]) == 1:
        yield from (name for tag in schema["properties"].values() for name in tag["enum"])
    elif isinstance(values := schema.get("additionalProperties"), dict):
        yield f"mapping to {_types(values, definitions, ' or ')}"
    else:
        yield {"boolean": "true | false", "string": "text", "object": "mapping", None: "anything"}.get(kind, str(kind))
