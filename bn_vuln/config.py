"""Configs: typed, frozen, validated. A config is the experiment: all that changes a result is a field here.

YAML or command-line options become the objects below. Unknown keys, wrong types and impossible values raise
`ConfigError`, which names the file, the key, what was expected, what was received and the nearest known key.
Numbers may be written as fractions: "8/255". Short forms: `normalization: batch` means `{name: batch}`, and
likewise for `data`, `arch` and `schedule`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from bn_vuln.errors import ConfigError

Scale = Literal["smoke", "quick", "cpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "quick", "cpu", "full")


# ---------------------------------------------------------------- numbers and short forms


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


def _parse_integer(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise PydanticCustomError("integer", "expected a whole number")
    return value


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Float = Annotated[float, BeforeValidator(parse_number), Field(allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(parse_number), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, BeforeValidator(parse_number), Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_parse_integer), Field(ge=1)]
Index = Annotated[int, BeforeValidator(_parse_integer), Field(ge=0)]
Interval = tuple[Float, Float]


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known word nearest to `word`, or "" where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class Frozen(BaseModel):
    """Base of every config object: immutable, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                known = sorted(cls.model_fields)
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key {key}{hint} (known: {known})",
                    {"key": repr(key), "hint": nearest(str(key), known), "known": ", ".join(known)},
                )
        return data


# ---------------------------------------------------------------- what trains a cell


class Data(Frozen):
    """The data a model is trained on. `width` null: the native one. Validation images leave the training set."""

    name: str = "mnist"
    width: Annotated[int, BeforeValidator(_parse_integer), Field(ge=28)] | None = None
    validation: Count = 5000
    limit: Count | None = None


class LinearArch(Frozen):
    """[normalization of the input ->] one Dense."""

    name: Literal["linear"] = "linear"


class MLPArch(Frozen):
    """ReLU layers of `hidden` units (null: two of half the input dimension each, as in the paper's Tables 6
    and 7); `normalized` lists the hidden layers (from 0) that get the normalization, between Dense and ReLU."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    normalized: Annotated[tuple[Index, ...], AfterValidator(lambda layers: tuple(sorted(set(layers))))] = (0,)

    @model_validator(mode="after")
    def _normalized_layers_exist(self) -> MLPArch:
        layers = 2 if self.hidden is None else len(self.hidden)
        if any(index >= layers for index in self.normalized):
            raise PydanticCustomError(
                "normalized",
                "normalized: expected hidden layers from 0 to {last}, received {received}",
                {"last": layers - 1, "received": str(list(self.normalized))},
            )
        return self


Arch = Annotated[LinearArch | MLPArch, Field(discriminator="name"), BeforeValidator(_named)]


class NoNormalization(Frozen):
    """The arm without normalization."""

    name: Literal["none"] = "none"


class BatchNormalization(Frozen):
    """BN, h' = gamma (h - mu) / sqrt(sigma^2 + c) + beta. `momentum` is Keras' (the weight of the old
    statistics); the defaults equal PyTorch's layer. `synchronized`: statistics over all replicas."""

    name: Literal["batch"] = "batch"
    c: Positive = 1e-5
    momentum: Annotated[float, BeforeValidator(parse_number), Field(ge=0, lt=1)] = 0.9
    affine: bool = True
    synchronized: bool = False


Normalization = Annotated[NoNormalization | BatchNormalization, Field(discriminator="name"), BeforeValidator(_named)]


class ConstantSchedule(Frozen):
    """The learning rate stays."""

    name: Literal["constant"] = "constant"


class StepSchedule(Frozen):
    """The learning rate is multiplied by `factor` when each of `epochs` (counted from 0) begins."""

    name: Literal["step"] = "step"
    epochs: tuple[Count, ...]
    factor: Positive = 0.1


Schedule = Annotated[ConstantSchedule | StepSchedule, Field(discriminator="name"), BeforeValidator(_named)]


class Train(Frozen):
    """SGD with momentum on the cross-entropy. `select`: the epoch kept, `best` by validation accuracy or `last`."""

    epochs: Count = 20
    batch_size: Count = 128
    optimizer: Literal["sgd"] = "sgd"
    lr: Positive = 0.01
    momentum: Annotated[float, BeforeValidator(parse_number), Field(ge=0, lt=1)] = 0.0
    schedule: Schedule = ConstantSchedule()
    select: Literal["best", "last"] = "best"


class Cell(Frozen):
    """All that trains one model. Its id is a hash of exactly this (see `records.cell_id`).

    `weight_decay` lambda adds lambda * w to the gradient, a penalty lambda/2 ||w||^2 (PyTorch's meaning).
    `normalization: l2` is short for none plus a weight decay, which must then be given.
    """

    data: Annotated[Data, BeforeValidator(_named)] = Data()
    arch: Arch = MLPArch()
    init: Literal["torch", "he"] = "torch"
    normalization: Normalization = NoNormalization()
    weight_decay: NonNegative = 0.0
    decay_on: Literal["kernels", "all"] = "kernels"
    train: Train = Train()
    seed: Index = 0

    @model_validator(mode="before")
    @classmethod
    def _l2_is_weight_decay(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or _named(data.get("normalization")) != {"name": "l2"}:
            return data
        try:
            none = not parse_number(data.get("weight_decay", 0.0))
        except ValueError:
            none = False  # the field itself says what is wrong with it
        if none:
            raise PydanticCustomError("l2", "normalization l2 needs a weight_decay > 0")
        return {**data, "normalization": "none"}


# ---------------------------------------------------------------- what evaluates it


class StandardizedBox(Frozen):
    """A box given in standardized units, (x - mean) / std per channel."""

    standardized: Interval


def _parse_box(value: Any) -> Any:
    """One clear message for the whole union, instead of pydantic's one for each member."""
    if value is None or value == "none" or isinstance(value, StandardizedBox):
        return "none" if value is None else value
    standardized = isinstance(value, Mapping) and set(value) == {"standardized"}
    pair = value["standardized"] if standardized else value
    try:
        low, high = (float(parse_number(bound)) for bound in pair)
        if not -math.inf < low < high < math.inf:
            raise ValueError
    except (TypeError, ValueError):
        expected = "expected none, [low, high] or {standardized: [low, high]} with low < high"
        raise PydanticCustomError("box", expected) from None
    return StandardizedBox(standardized=(low, high)) if standardized else (low, high)


Box = Annotated[Literal["none"] | Interval | StandardizedBox, BeforeValidator(_parse_box)]
Unit = Literal["pixel", "standardized"]


class Clean(Frozen):
    """No perturbation."""

    kind: Literal["clean"] = "clean"


class AWGN(Frozen):
    """Additive white Gaussian noise of standard deviation `std`, added at the data's native width (before any
    resizing); `clip` cuts the noisy image to a range, in pixel units unless it says standardized."""

    kind: Literal["awgn"] = "awgn"
    std: NonNegative
    unit: Unit = "pixel"
    clip: Box = (0.0, 1.0)
    seed: Index = 0


class Attack(Frozen):
    """A gradient attack inside ||(x' - x) / scale||_ord <= eps, scale = 1 (pixel) or the std (standardized).

    `fgsm` is one step of eps; `bim` starts at x; `pgd` starts at a random point of the ball. `step_size` null:
    2.5 eps / steps (Madry et al. 2018). `target: next` aims at class y + 1, `least_likely` at the class of the
    lowest clean logit. `iterate`: keep the `last` point, or the `best` (fooled if any was, then highest loss).
    """

    kind: Literal["attack"] = "attack"
    attack: Literal["fgsm", "bim", "pgd"] = "pgd"
    ord: Literal["inf", "2"] = "inf"
    eps: NonNegative
    unit: Unit = "pixel"
    box: Box = (0.0, 1.0)
    steps: Count = 20
    step_size: NonNegative
    random_start: bool
    restarts: Count = 1
    target: Literal["none", "next", "least_likely"] = "none"
    loss: Literal["cross_entropy"] = "cross_entropy"
    iterate: Literal["last", "best"] = "last"
    seed: Index = 0
    backend: Literal["own", "cleverhans"] = "own"

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = {**data, "ord": str(data.get("ord", "inf"))}
        name, eps = data.get("attack", "pgd"), data.get("eps")
        data.setdefault("random_start", name == "pgd")
        if name == "fgsm":
            data.setdefault("steps", 1)
        if data.get("step_size") is None:
            data["step_size"] = _default_step_size(eps, 1 if name == "fgsm" else data.get("steps", 20))
        return data

    @model_validator(mode="after")
    def _make_sense(self) -> Attack:
        for wrong, message in (
            (self.attack == "fgsm" and (self.steps != 1 or self.step_size != self.eps),
             "fgsm is one step of size eps: leave steps and step_size out, or use bim"),
            (self.attack != "pgd" and self.random_start, "only pgd has a random start"),
            (self.restarts > 1 and not self.random_start, "restarts need a random start (attack: pgd)"),
            (self.backend == "cleverhans" and (self.restarts > 1 or self.iterate == "best"),
             "CleverHans has neither restarts nor the best iterate: use backend own"),
            (self.backend == "cleverhans" and self.step_size > self.eps,
             "CleverHans refuses a step_size above eps: use backend own, or smaller steps"),
        ):  # fmt: skip
            if wrong:
                raise PydanticCustomError("attack", message)
        return self


def _default_step_size(eps: Any, steps: Any) -> float:
    """eps for one step, else 2.5 eps / steps; 0 where either is wrong, which is then reported for itself."""
    try:
        radius, count = float(parse_number(eps)), int(_parse_integer(steps))
        return max(0.0, radius if count == 1 else 2.5 * radius / count)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0


Perturbation = Annotated[Clean | AWGN | Attack, Field(discriminator="kind")]


class Evaluation(Frozen):
    """Where a model is evaluated. `dataset` null: the one it was trained on. `limit`: that many examples of a
    fixed random order (smaller limits are subsets of larger ones). `bn_statistics`: those tracked in training."""

    dataset: str | None = None
    split: Literal["test", "validation", "train"] = "test"
    limit: Count | None = None
    bn_statistics: Literal["tracked"] = "tracked"


class Suite(Frozen):
    """A named set of perturbations for `bnvuln evaluate`."""

    title: str
    evaluation: Evaluation = Evaluation()
    perturbations: dict[str, Perturbation] = Field(min_length=1)


# ---------------------------------------------------------------- an experiment


class PaperValue(Frozen):
    """A figure of the paper: a fraction, for the table row `where`, of one of our `perturbations`, for one arm,
    or for the difference treatment - reference (no `arm`). `approximate`: rounded or derived, never judged."""

    where: dict[str, Any] = {}
    perturbations: tuple[str, ...] = Field(min_length=1)
    arm: str | None = None
    value: Float
    sem: NonNegative | None = None
    approximate: bool = False
    source: str


class Table(Frozen):
    """Layout: one block of rows for each value of the `rows` keys; the `arms` are values of the `arm` key;
    one column for each perturbation, headed by its entry in `columns`; differences are `treatment - reference`."""

    rows: tuple[str, ...] = ()
    arm: str = "normalization.name"
    reference: str = "none"
    treatment: str = "batch"
    columns: dict[str, str] = Field(min_length=1)
    select_by: str | None = None


class Experiment(Frozen):
    """An experiment: base + grid + seeds -> cells; perturbations -> records; layout and the paper's values.

    `scale` and `overrides` say how it was resolved (`load_experiment`); a file does not set them.
    """

    name: str
    title: str
    claim: str
    source: str
    cost: dict[Scale, str] = {}
    notes: tuple[str, ...] = ()
    base: dict[str, Any] = {}
    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)
    seeds: tuple[Index, ...] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    perturbations: dict[str, Perturbation] = Field(min_length=1)
    scales: dict[Scale, dict[str, Any]] = {}
    scale: Scale = "full"
    overrides: tuple[str, ...] = ()
    table: Table
    paper: tuple[PaperValue, ...] = ()

    @model_validator(mode="after")
    def _names_agree(self) -> Experiment:
        for key, values in self.grid.items():
            if not values:
                raise PydanticCustomError("grid", "grid.{key}: no values", {"key": key})
        if len(set(self.seeds)) < len(self.seeds):
            seeds = str(list(self.seeds))
            raise PydanticCustomError("seeds", "seeds: expected each once, received {seeds}", {"seeds": seeds})
        _refuse_unknown("table.columns", self.table.columns, "perturbations", self.perturbations)
        used = [name for value in self.paper for name in value.perturbations]
        _refuse_unknown("paper", used, "table.columns", self.table.columns)
        chosen = [self.table.select_by] if self.table.select_by else []
        _refuse_unknown("table.select_by", chosen, "table.columns", self.table.columns)
        return self

    @property
    def as_published(self) -> bool:
        """Whether this is the config as shipped, at full scale: only then are verdicts more than previews."""
        return self.scale == "full" and not self.overrides


def _refuse_unknown(where: str, names: Iterable[str], among: str, known: Iterable[str]) -> None:
    """Raise for the first of `names` that is not among the known ones."""
    for name in names:
        if name not in known:
            fields = {"where": where, "name": repr(name), "among": among, "hint": nearest(name, known)}
            message = "{where}: {name} is not among {among}{hint}"
            raise PydanticCustomError("perturbation", message, fields)


# ---------------------------------------------------------------- reading and errors

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` naming the file (and the line) where it is none."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping, received {type(data).__name__}")
    return data


def validate(model: type[Model], data: Any, source: str) -> Model:
    """`model` made of `data`; every mistake is listed in one `ConfigError` that begins with `source`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
    # A sequence whose items are refused is also called too short, which it is not.
    inner = {detail["loc"][:-1] for detail in errors}
    lines = [_explain(e, data) for e in errors if not (e["type"] == "too_short" and e["loc"] in inner)]
    raise ConfigError("\n".join(f"{source}: {line}" for line in lines))


def _explain(error: ErrorDetails, data: Any) -> str:
    """One pydantic error as `key: what was expected, received what`."""
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
        return f"{key}: expected one of {', '.join(known)}, received {received!r}{nearest(received, known)}"
    if error["type"] == "model_type":
        message = "expected a mapping"
    if error["type"] not in _SELF_EXPLAINING:
        message += f", received {error['input']!r}"
    return f"{key}: {message}" if key else message


_SELF_EXPLAINING = ("unknown_key", "attack", "grid", "perturbation", "seeds", "normalized", "l2")


def _key(location: tuple[int | str, ...], data: Any, *, missing: bool) -> str:
    """The dotted key the user wrote: pydantic's location without the union tags that it mixes in."""
    parts: list[str] = []
    tag_passed = False
    for i, part in enumerate(location):
        if i and not tag_passed and isinstance(data, Mapping) and part in (data.get("kind"), data.get("name")):
            tag_passed = True
            continue
        try:
            data, tag_passed = data[part], False
        except (KeyError, IndexError, TypeError):  # a tag all the same, or the key that is missing
            if not (missing and i == len(location) - 1):
                continue
        parts.append(str(part))
    return ".".join(parts)


def apply_override(data: dict[str, Any], key: str, value: Any) -> None:
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


def parse_assignment(text: str) -> tuple[str, Any]:
    """`train.epochs=3` -> ("train.epochs", 3); the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: expected key=value, for example train.epochs=3")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: {value!r} is not valid YAML") from None


def _read_extended(path: Path, seen: frozenset[Path] = frozenset()) -> dict[str, Any]:
    """A YAML file on top of the one it `extends` (a path relative to it); mappings are merged key by key."""
    data = read_yaml(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    seen |= {path.resolve()}
    if not isinstance(parent, str) or not (path.parent / parent).is_file():
        raise ConfigError(f"{path.name}: extends: expected the path of a YAML file relative to it, received {parent!r}")
    if (path.parent / parent).resolve() in seen:
        raise ConfigError(f"{path.name}: extends itself")
    return _merge(_read_extended(path.parent / parent, seen), data)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` on top of `below`; what is a mapping in both is merged, anything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def load_experiment(path: Path, scale: Scale = "full", overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in `path` at `scale`, with `key=value` overrides on top.

    An override names a field of the experiment (`seeds`, `evaluation.limit`, `perturbations.bim.steps`,
    `grid.data.width`) or of the cells' base (`train.epochs`). A file may build on another one: `extends:
    ../base/table6.yaml`. Raises `ConfigError`.
    """
    data = _read_extended(path)
    plain = validate(Experiment, data, path.name)
    if scale != "full" and scale not in plain.scales:
        raise ConfigError(f"{path.name}: scales: no {scale!r} here (known: full, {', '.join(plain.scales)})")
    overrides = tuple(overrides)
    chosen = [(text, *parse_assignment(text)) for text in overrides]
    for text, key, _ in chosen:
        _refuse_shadowed(text, key, plain)
    for key, value in [*plain.scales.get(scale, {}).items(), *((key, value) for _, key, value in chosen)]:
        head = key.split(".")[0]
        if head not in Cell.model_fields and head not in Experiment.model_fields:
            known = [*Experiment.model_fields, *Cell.model_fields]
            raise ConfigError(f"{path.name}: unknown key {key!r}{nearest(head, known)}")
        apply_override(data, f"base.{key}" if head in Cell.model_fields else key, value)
    return validate(Experiment, {**data, "scale": scale, "overrides": overrides}, path.name)


def _refuse_shadowed(text: str, key: str, experiment: Experiment) -> None:
    """Raise for an override without effect: of what the grid sets, of an unknown perturbation, of the scale."""
    head, _, rest = key.partition(".")
    if head in ("scale", "scales", "overrides"):
        raise ConfigError(f"--set {text}: choose the scale with --scale")
    name = rest.split(".")[0]
    if head == "perturbations" and "." in rest and name not in experiment.perturbations:
        hint = nearest(name, experiment.perturbations)
        raise ConfigError(f"--set {text}: no perturbation {name!r} here{hint}")
    for axis in experiment.grid:
        for path in (part.strip() for part in axis.split(",")):
            if key == path or key.startswith(f"{path}."):
                raise ConfigError(f"--set {text}: the grid sets {path}; use --set 'grid.{axis}=[...]'")


def to_plain(model: BaseModel) -> dict[str, Any]:
    """The JSON-ready dict of a config object, every default written out."""
    return model.model_dump(mode="json")


def to_yaml(model: BaseModel) -> str:
    """A config object as YAML, every default written out."""
    return yaml.safe_dump(to_plain(model), sort_keys=False, allow_unicode=True, width=110)


# ---------------------------------------------------------------- in words


def describe(cell: Cell) -> str:
    """A cell in a few words: mlp mnist 28 batch c=1e-05 lr 0.01 batch size 128 seed 0."""
    norm, train = cell.normalization, cell.train
    words = [cell.arch.name, cell.data.name, str(cell.data.width or "")]
    words += [norm.name + (f" c={norm.c:g}" if isinstance(norm, BatchNormalization) else "")]
    words += [f"weight decay {cell.weight_decay:g}"] if cell.weight_decay else []
    words += [f"lr {train.lr:g}, batch size {train.batch_size}, {train.epochs} epochs,"]
    return " ".join([*filter(None, words), f"seed {cell.seed}"])


def describe_perturbation(perturbation: Perturbation) -> str:
    """A perturbation in a few words: bim inf eps 0.1 standardized, 100 steps of 0.001, box none."""
    p = perturbation
    if isinstance(p, Clean):
        return "clean"
    if isinstance(p, AWGN):
        return f"AWGN std {p.std:g} {p.unit}, clip {_box_text(p.clip)}"
    steps = f"{p.steps} step{'s' if p.steps > 1 else ''} of {p.step_size:.4g}"
    words = [f"{p.attack} {p.ord} eps {p.eps:.4g} {p.unit}", steps, f"box {_box_text(p.box)}"]
    words += [f"{p.restarts} restarts"] if p.restarts > 1 else []
    words += [f"target {p.target}"] if p.target != "none" else []
    words += ["best iterate"] if p.iterate == "best" else []
    words += ["CleverHans"] if p.backend == "cleverhans" else []
    return ", ".join(words)


def describe_fields(fields: Mapping[str, Any]) -> str:
    """The same of a record's perturbation, with its data set where it is limited: clean (mnist test, 1000)."""
    evaluation = {key: fields[key] for key in Evaluation.model_fields}
    perturbation = {key: value for key, value in fields.items() if key not in evaluation}
    text = describe_perturbation(TypeAdapter(Perturbation).validate_python(perturbation))
    return (
        f"{text} ({fields['split']})" if fields["limit"] is None else f"{text} ({fields['split']}, {fields['limit']})"
    )


def _box_text(box: Any) -> str:
    if box == "none":
        return "none"
    low, high = box.standardized if isinstance(box, StandardizedBox) else box
    return f"[{low:g}, {high:g}]" + (" standardized" if isinstance(box, StandardizedBox) else "")
