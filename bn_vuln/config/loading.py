"""Reading of config files, overrides, and errors that say what was expected and what was received."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bn_vuln.config.cell import Cell
from bn_vuln.config.experiment import Experiment, Scale
from bn_vuln.config.types import COMPLETE_MESSAGE, MAX_DIGITS, Frozen, nearest
from bn_vuln.errors import ConfigError
from bn_vuln.runtime.limits import DEPTH, YAML_BYTES, read_file
from bn_vuln.typing import Plain

Model = TypeVar("Model", bound=BaseModel)
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it was built, takes a tenth of the time
MAX_VALUES, MAX_PARENTS = 100_000, 20  # of a config, aliases as often as they stand; of `extends`
MAX_MISTAKES, MAX_SHOWN = 20, 200  # of a message: lines, and characters of a value


def read_yaml(path: Path) -> Plain:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: The file holds none, or a key twice; the message names the file and the line.
    """
    try:
        data = _parse_yaml(read_file(path, YAML_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {_yaml_mistake(error)}") from None
    if not isinstance(data, dict):
        received = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{path}: expected a mapping, received {received}")
    return data


def _yaml_mistake(error: Exception) -> str:
    """Return what is wrong with YAML; line and column once, where the parser stopped."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())[:MAX_SHOWN]
    said = ", ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None))))
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}"


def _parse_yaml(text: str) -> object:
    """Return what YAML says. Raises `ValueError` and `yaml.YAMLError`, among others for a key that is there twice."""
    # libyaml's loader has no limit of its depth, and crashes. A block begins right of the one that it is in, or, a list
    # in a mapping, below it.
    if text.count("[") + text.count("{") + 2 * max(map(len, text.splitlines()), default=0) > DEPTH:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError("nested too deeply")
    loader = _LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (AttributeError, KeyError) as error:  # of a tag that its text does not fit
        raise ValueError(f"a tag does not fit its text ({error})") from None
    finally:
        loader.dispose()


def _check_node(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of values in a node; `sizes` has those seen already.

    Aliases count as often as they stand, and a long text as one for each 100 characters.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError("an alias stands in what it is an alias of")
        return sizes[id(node)]
    sizes[id(node)] = 0  # until it is known
    size = 1
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value) // 100
        if len(node.value) > MAX_DIGITS and node.tag in NUMBERS:
            raise ValueError(f"line {node.start_mark.line + 1}: a number of {len(node.value):,} characters")
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in lines:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value[:80]!r} is there twice")
            lines[key.value] = key.start_mark.line
        size += sum(_check_node(child, sizes) for pair in node.value for child in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check_node(child, sizes) for child in node.value)
    if size > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values, with those that aliases stand for")
    sizes[id(node)] = size
    return size


def validate(model: type[Model], data: object, source: str) -> Model:
    """Return a `model` made of `data`.

    Raises:
        ConfigError: One message lists every mistake, each in a line that begins with `source`.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
    # A sequence whose items are refused is also called too short, which it is not.
    inner = {detail["loc"][:-1] for detail in errors}
    lines = [explain(e, data) for e in errors if not (e["type"] == "too_short" and e["loc"] in inner)]
    more = [f"and {len(lines) - MAX_MISTAKES} more mistakes"] if len(lines) > MAX_MISTAKES else []
    raise ConfigError("\n".join(f"{source}: {line}" for line in [*lines[:MAX_MISTAKES], *more]))


def explain(error: ErrorDetails, data: object) -> str:
    """Return the text of a pydantic error: `key: expected ..., received ...`."""
    key = _key(error["loc"], data, missing=error["type"] == "missing")
    message = error["msg"].replace("Input should be", "expected").replace("Value error, ", "")
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "union_tag_not_found":
        return f"{key}.{error['ctx']['discriminator']}: missing".replace("'", "")
    if error["type"] == "too_short":
        return f"{key}: expected at least {error['ctx']['min_length']} item, received none"
    if error["type"] == "union_tag_invalid":
        context = error["ctx"]
        known = [word.strip(" '") for word in context["expected_tags"].split(",")]
        received = context["tag"]
        if error["loc"][-1:] == ("normalization",) and received != "l2":
            known.append("l2")  # the short form of none and a weight decay, which is no config of its own
        return f"{key}: expected one of {', '.join(known)}, received {received!r}{nearest(received, known)}"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "expected a mapping"
    if error["type"] in ("int_type", "int_parsing"):
        message = "expected a whole number"
    if error["type"] in ("tuple_type", "list_type"):
        alone = isinstance(error["input"], int | float | str)
        message = "expected a list" + (f", e.g. [{error['input']}]" if alone else "")
    if error["type"] != COMPLETE_MESSAGE:
        message += f", received {_shown(error['input'])}"
    return f"{key}: {message}" if key else message


def _shown(value: object) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        return "a huge number"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _key(location: tuple[int | str, ...], data: Any, *, missing: bool) -> str:
    """Return the dotted key that the user wrote: pydantic's location without the union tags that it mixes in."""
    parts: list[str] = []
    tag_passed = False
    for i, part in enumerate(location):
        if i and not tag_passed and isinstance(data, Mapping) and part in (data.get("kind"), data.get("name")):
            tag_passed = True
            continue
        if i and isinstance(location[i - 1], int) and part in ("value", "sign") and i + 1 < len(location):
            continue  # the kind of a claim that was written without one
        try:
            data, tag_passed = data[part], False
        except (KeyError, IndexError, TypeError):  # a tag all the same, or the key that is missing
            if not (missing and i == len(location) - 1):
                continue
        parts.append(str(part))
    return ".".join(parts)


def apply_override(data: Plain, key: str, value: object) -> None:
    """Set the dotted `key` of a nested dict in place. `grid.data.width` sets the grid entry `data.width`."""
    parts = ["grid", key[5:]] if key.startswith("grid.") else key.split(".")
    for part in parts[:-1]:
        child = data.get(part)
        if not isinstance(child, str | Mapping | None):
            raise ConfigError(f"{key}: {part} is {child!r}, which has no fields")
        # A short form (`normalization: batch`) becomes a mapping when one of its fields is set.
        data[part] = child = {"name": child} if isinstance(child, str) else dict(child or {})
        data = child
    data[parts[-1]] = value


def parse_assignment(text: str, option: str = "--set") -> tuple[str, object]:
    """Parse `train.epochs=3`, as an option takes it, to ("train.epochs", 3); the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{option} {text}: expected key=value, for example train.epochs=3")
    try:
        return key.strip(), _parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{option} {text}: {value!r} is not valid YAML") from None


def reject_unknown_key(where: str, key: str, *models: type[Frozen]) -> None:
    """Raise for an override of a key that no config has; a key below a choice of configs is left to validation.

    Args:
        where: Where the override stands, for the message: `--set key=value`.
        key: Its dotted key.
        models: Configs, of which one has the first part of the key.

    Raises:
        ConfigError: The message begins with `where` and names the nearest key, or those that end in this one.
    """
    longer = sorted(_keys_ending_in(key, models), key=lambda found: found.count("."))
    parts = key.split(".")
    for i, part in enumerate(parts):
        if part in {stored for model in models for stored in model.stored_names.values()}:
            return
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        if part not in fields:
            hint = nearest(part, fields) or f" (known: {', '.join(fields)})"
            hint = f"; did you mean {longer[0]!r}?" if longer else hint
            raise ConfigError(f"{where}: unknown key {'.'.join(parts[: i + 1])!r}{hint}")
        annotation = fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Frozen)):
            return
        models = (annotation,)


def _keys_ending_in(name: str, models: Iterable[type[Frozen]], prefix: str = "") -> Iterator[str]:
    """Give the dotted keys below the fields of configs that end in a name: `train.epochs` for `epochs`."""
    for model in models:
        for key, field in model.model_fields.items():
            if key == name and prefix:
                yield f"{prefix}{key}"
            members = (field.annotation, *get_args(field.annotation))
            below = [one for one in members if isinstance(one, type) and issubclass(one, Frozen)]
            yield from _keys_ending_in(name, below, f"{prefix}{key}.")


def _read_extended(path: Path, seen: frozenset[Path] = frozenset()) -> Plain:
    """Read a YAML file on top of the one it `extends` (a path relative to it); mappings are merged key by key.

    A command is that of one file, and not taken over.
    """
    data: Plain = Experiment.with_present_names(read_yaml(path))
    parent = data.pop("extends", None)
    if parent is None:
        return data
    seen |= {path.resolve()}
    is_yaml = isinstance(parent, str) and parent.endswith((".yaml", ".yml"))
    if not is_yaml or not (path.parent / parent).is_file():
        raise ConfigError(f"{path.name}: extends: expected the path of a YAML file relative to it, received {parent!r}")
    if (path.parent / parent).resolve() in seen or len(seen) > MAX_PARENTS:
        raise ConfigError(f"{path.name}: extends itself, or more than {MAX_PARENTS} files one after the other")
    below = _read_extended(path.parent / parent, seen)
    return _merge({key: value for key, value in below.items() if key != "command"}, data)


def _merge(below: Plain, above: Plain) -> Plain:
    """Merge `above` into `below`: mappings key by key, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def load_experiment(path: Path, scale: Scale = "full", overrides: Iterable[str] = ()) -> Experiment:
    """Load the experiment in a YAML file at a scale, with overrides on top.

    A file may build on another one: `extends: ../base/table6.yaml`.

    Args:
        path: The YAML file.
        scale: `full`, or one of the file's `scales`.
        overrides: Assignments `key=value`. A key names a field of the experiment (`seeds`, `evaluation.limit`,
            `perturbations.bim.steps`, `grid.data.width`) or of the base of all cells (`train.epochs`).

    Raises:
        ConfigError: The file, the scale or an override is wrong.
    """
    data = _read_extended(path)
    plain = validate(Experiment, data, path.name)
    _check_base(path.name, plain)
    for name, changes in plain.scales.items():
        for key in changes:
            reject_unknown_key(f"{path.name}: scales.{name}", key, Experiment, Cell)
    if scale != "full" and scale not in plain.scales:
        raise ConfigError(f"{path.name}: scales: no {scale!r} here (known: {', '.join(['full', *plain.scales])})")
    overrides = tuple(overrides)
    chosen = [(text, *parse_assignment(text)) for text in overrides]
    renamed = {stored: name for name, stored in Experiment.stored_names.items()}
    for text, key, _ in chosen:
        _reject_ineffective(text, key, plain)
        reject_unknown_key(f"--set {text}", key, Experiment, Cell)
    for key, value in [*plain.scales.get(scale, {}).items(), *((key, value) for _, key, value in chosen)]:
        head, dot, rest = key.partition(".")
        head = renamed.get(head, head)
        present = f"{head}{dot}{rest}"
        apply_override(data, f"base.{present}" if head in Cell.model_fields else present, value)
    return validate(Experiment, {**data, "scale": scale, "overrides": overrides}, path.name)


def _check_base(source: str, experiment: Experiment) -> None:
    """Raise for a mistake in `base` alone. What the grid sets, or what hangs on that, shows in the cells."""
    paths = [path.strip() for axis in experiment.grid for path in axis.split(",")]
    try:
        Cell.model_validate(experiment.base)
    except ValidationError as error:
        errors = error.errors()
    else:
        return
    lines = []
    for found in errors:
        key, message = _key(found["loc"], experiment.base, missing=False), found["msg"]
        if message.startswith("unknown key"):
            tags, key = {f"{key}.name"}, ".".join(filter(None, (key, found["ctx"]["key"].strip("'"))))
        else:
            tags = {path for path in paths if path.startswith(f"{key}.")}
        is_set = any(path in tags or f"{key}.".startswith(f"{path}.") for path in paths)
        if key and found["type"] != "missing" and not is_set:
            line = explain(found, experiment.base)
            lines.append(f"{source}: base{': ' if line.startswith('unknown key') else '.'}{line}")
    if lines:
        raise ConfigError("\n".join(lines))


def _reject_ineffective(text: str, key: str, experiment: Experiment) -> None:
    """Raise for an override without effect: a value that the grid sets, an unknown perturbation, scale or seed."""
    head, _, rest = key.partition(".")
    if head in ("scale", "scales", "overrides"):
        raise ConfigError(f"--set {text}: choose the scale with --scale")
    if key == "seed":
        value = text.partition("=")[2].strip().strip("[]")
        raise ConfigError(f"--set {text}: the seeds are set by seeds: use --set 'seeds=[{value}]'")
    name = rest.split(".")[0]
    if head in ("perturbations", "evaluations") and "." in rest and name not in (known := getattr(experiment, head)):
        raise ConfigError(f"--set {text}: no {head[:-1]} {name!r} here{nearest(name, known)}")
    for axis in experiment.grid:
        for path in (part.strip() for part in axis.split(",")):
            if key == path or key.startswith(f"{path}."):
                raise ConfigError(f"--set {text}: the grid sets {path}; use --set 'grid.{axis}=[...]'")


def to_plain(model: BaseModel) -> Plain:
    """The JSON-ready dict of a config object, every default written out."""
    return model.model_dump(mode="json")


def to_yaml(model: BaseModel) -> str:
    """A config object as YAML, every default written out."""
    return yaml.safe_dump(to_plain(model), sort_keys=False, allow_unicode=True, width=110)
