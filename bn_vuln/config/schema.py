"""JSON schemas of config files, for editors.

pydantic makes the schemas. What is added here is what is read besides the fields themselves: short forms, numbers as
text, older names, defaults that depend on other fields, dotted keys, and files that extend one another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from bn_vuln.config import Cell, Experiment, Frozen, Plan, Suite
from bn_vuln.config.claim import OLDER_FIELDS, with_kind
from bn_vuln.config.fields import configs_in, required
from bn_vuln.config.types import Expand
from bn_vuln.typing import Plain

Kind = Literal["experiment", "base", "suite", "plan", "cell"]
_DIGITS = r"(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?"
_TRUTH = "[Oo][Nn]|[Oo][Ff][Ff]|[Yy]([Ee][Ss])?|[Nn][Oo]?|[Tt]([Rr][Uu][Ee])?|[Ff]([Aa][Ll][Ss][Ee])?|0|1"
_TOPS: dict[str, type[Frozen]] = {"suite": Suite, "plan": Plan, "cell": Cell}
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
        if not isinstance(schema["function"]["function"], Expand):
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
            for inner in configs_in(field.annotation):
                add(inner, f"{prefix}{name}.")

    add(model, "")
    return {key: {"anyOf": schemas} if len(schemas) > 1 else schemas[0] for key, schemas in found.items()}
