"""Configs: numbers, short forms, defaults, overrides, and one clear message for every mistake."""

from __future__ import annotations

import copy
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bn_vuln.config import (
    AWGN,
    SCALES,
    Attack,
    BatchNormalization,
    Cell,
    Clean,
    Evaluation,
    Experiment,
    LinearArch,
    MLPArch,
    NoNormalization,
    StandardizedBox,
    StepSchedule,
    Suite,
    describe_cell,
    describe_fields,
    describe_perturbation,
    format_eps,
    load_experiment,
    parse_assignment,
    read_yaml,
    to_plain,
    to_yaml,
    validate,
    with_eps_grid,
)
from bn_vuln.config.grid import expand
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.experiments import catalog

TINY: dict[str, Any] = {
    "name": "tiny",
    "title": "Title",
    "claim": "Claim",
    "source": "Source",
    "base": {"data": {"width": 28}, "normalization": "batch", "train": {"epochs": 2}},
    "grid": {"data.width": [28]},
    "seeds": [0, 1],
    "perturbations": {
        "clean": {"kind": "clean"},
        "awgn": {"kind": "awgn", "std": 1},
        "bim": {"kind": "attack", "attack": "bim", "eps": 0.1, "steps": 10},
    },
    "scales": {"quick": {"seeds": [7], "evaluation.limit": 9, "train.epochs": 1}},
    "table": {"columns": {"clean": "clean", "bim": "BIM"}},
}
SHIPPED = [*(("paper", name) for name in catalog.names()), *(("suites", name) for name in catalog.names("suites"))]
SHIPPED_SCALES = [
    pytest.param(name, scale, marks=pytest.mark.slow if scale in ("quick", "cpu") else [])
    for name in catalog.names()
    for scale in SCALES
    if scale == "full" or scale in catalog.experiment(name).scales
]


def cell(**fields: Any) -> Cell:
    return validate(Cell, fields, "file.yaml")


def attack(**fields: Any) -> Attack:
    return validate(Attack, fields, "file.yaml")


def tiny(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(TINY), **changes}


def with_perturbation(**fields: Any) -> dict[str, Any]:
    return tiny(perturbations={**TINY["perturbations"], "extra": fields})


def with_paper(**fields: Any) -> dict[str, Any]:
    return tiny(paper=[{"perturbations": ["bim"], "value": -0.4, "source": "text", **fields}])


def mistake(model: type, data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(model, data, "file.yaml")
    message = str(caught.value)
    assert all(line.startswith("file.yaml: ") for line in message.splitlines())
    return message


@pytest.fixture
def tiny_path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
    return path


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("written", "number"),
    [("8/255", 8 / 255), ("1e-5", 1e-5), (" 1 / 10 ", 0.1), (1, 1.0), (0.25, 0.25), ("3", 3.0), ("2.5E-1", 0.25)],
)
def test_numbers_may_be_written_as_people_write_them(written: Any, number: float) -> None:
    value = cell(weight_decay=written).weight_decay
    assert value == number
    assert type(value) is float


@pytest.mark.parametrize(
    "data",
    [
        {"weight_decay": True},
        {"weight_decay": False},
        {"normalization": {"name": "batch", "c": True}},
        {"normalization": {"name": "batch", "momentum": False}},
        {"train": {"lr": True}},
        {"train": {"epochs": True}},
        {"data": {"width": True}},
        {"seed": False},
        {"arch": {"name": "mlp", "hidden": [True]}},
    ],
)
def test_booleans_are_no_numbers(data: dict[str, Any]) -> None:
    assert "number" in mistake(Cell, data)


@pytest.mark.parametrize("written", ["nan", "inf", "-inf", float("nan"), float("inf"), "1/0", "8/", "", "ten", "0x1p3"])
def test_numbers_that_are_none_are_refused(written: Any) -> None:
    message = mistake(Cell, {"weight_decay": written})
    assert "weight_decay: expected" in message
    assert repr(written) in message


def test_whole_floats_are_counts() -> None:
    epochs = cell(train={"epochs": 3.0}).train.epochs
    assert epochs == 3
    assert type(epochs) is int


# ---------------------------------------------------------------- short forms and defaults


def test_names_are_short_forms() -> None:
    made = cell(data="mnist", arch="linear", normalization="batch", train={"schedule": "constant"})
    long = {
        "data": {"name": "mnist"},
        "arch": {"name": "linear"},
        "normalization": {"name": "batch"},
        "train": {"schedule": {"name": "constant"}},
    }
    assert made == cell(**long)
    assert isinstance(made.arch, LinearArch)
    assert isinstance(made.normalization, BatchNormalization)


def test_defaults_of_batch_norm_are_those_of_pytorch() -> None:
    normalization = cell(normalization="batch").normalization
    assert normalization == BatchNormalization(c=1e-5, momentum=0.9, affine=True, synchronized=False)


def test_l2_means_no_normalization_and_weight_decay() -> None:
    made = cell(normalization="l2", weight_decay="1/100")
    assert isinstance(made.normalization, NoNormalization)
    assert made == cell(normalization="none", weight_decay=0.01)


def test_l2_in_its_long_form() -> None:
    assert cell(normalization={"name": "l2"}, weight_decay=0.1) == cell(weight_decay=0.1)


@pytest.mark.parametrize("fields", [{}, {"weight_decay": 0}, {"weight_decay": "0/3"}])
def test_l2_needs_a_weight_decay(fields: dict[str, Any]) -> None:
    message = mistake(Cell, {"normalization": "l2", **fields})
    assert "normalization l2" in message
    assert "weight_decay > 0" in message


def test_weight_decay_goes_with_batch_norm() -> None:
    made = cell(normalization="batch", weight_decay=0.1)
    assert made.weight_decay == 0.1
    assert isinstance(made.normalization, BatchNormalization)
    assert cell().weight_decay == 0.0


def test_schedule_with_steps() -> None:
    schedule = cell(train={"schedule": {"name": "step", "epochs": [150, 250]}}).train.schedule
    assert schedule == StepSchedule(epochs=(150, 250), factor=0.1)


@pytest.mark.parametrize(
    ("fields", "steps", "step_size", "random_start"),
    [
        ({}, 20, 2.5 * 0.1 / 20, True),
        ({"attack": "pgd", "steps": 10}, 10, 2.5 * 0.1 / 10, True),
        ({"attack": "bim", "steps": 100}, 100, 2.5 * 0.1 / 100, False),
        ({"attack": "bim", "steps": 1}, 1, 0.1, False),
        ({"attack": "fgsm"}, 1, 0.1, False),
        ({"attack": "fgsm", "steps": 1, "step_size": "1/10"}, 1, 0.1, False),
        ({"attack": "bim", "steps": 100, "step_size": "1e-3"}, 100, 1e-3, False),
        ({"step_size": None}, 20, 2.5 * 0.1 / 20, True),
        ({"random_start": False}, 20, 2.5 * 0.1 / 20, False),
    ],
)
def test_defaults_of_attacks(fields: dict[str, Any], steps: int, step_size: float, random_start: bool) -> None:
    made = attack(eps=0.1, **fields)
    assert made.steps == steps
    assert made.step_size == pytest.approx(step_size, rel=1e-12)
    assert made.random_start is random_start


def test_default_step_size_of_a_fraction() -> None:
    assert attack(eps="8/255", steps=20).step_size == pytest.approx(1 / 255, rel=1e-12)


def test_attacks_default_to_pixels_in_their_box() -> None:
    made = attack(eps=0.1)
    assert (made.ord, made.unit, made.box, made.target) == ("inf", "pixel", (0.0, 1.0), "none")


@pytest.mark.parametrize("written", [2, "2"])
def test_ord_may_be_a_number(written: Any) -> None:
    assert attack(eps=1, ord=written).ord == "2"


@pytest.mark.parametrize(
    ("written", "box"),
    [
        ("none", "none"),
        (None, "none"),
        ([0, 1], (0.0, 1.0)),
        ([0, "255/255"], (0.0, 1.0)),
        ({"standardized": [-2, 2]}, StandardizedBox(standardized=(-2.0, 2.0))),
    ],
)
def test_boxes(written: Any, box: Any) -> None:
    assert attack(eps=0.1, box=written).box == box
    assert validate(AWGN, {"std": 1, "clip": written}, "file.yaml").clip == box


# ---------------------------------------------------------------- mistakes: (data, what the message must say)

CELL_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"trian": {}}, ["unknown key 'trian'", "did you mean 'train'?", "weight_decay"]),
    ({"train": {"epoch": 1}}, ["train:", "unknown key 'epoch'", "did you mean 'epochs'?"]),
    ({"data": {"widht": 28}}, ["data:", "unknown key 'widht'", "did you mean 'width'?"]),
    ({"arch": {"name": "mlp", "hiden": [3]}}, ["arch:", "unknown key 'hiden'", "did you mean 'hidden'?"]),
    ({"arch": {"name": "linear", "hidden": [3]}}, ["arch:", "unknown key 'hidden'", "known: name"]),
    (
        {"normalization": {"name": "batch", "momentun": 1}},
        ["normalization:", "unknown key 'momentun'", "did you mean 'momentum'?"],
    ),
    (
        {"train": {"schedule": {"name": "step", "epochs": [3], "factr": 1}}},
        ["train.schedule:", "unknown key 'factr'", "did you mean 'factor'?"],
    ),
    ({"train": {"schedule": {"name": "step"}}}, ["train.schedule.epochs: missing"]),
    ({"normalization": "btch"}, ["normalization: expected one of none, batch", "'btch'", "did you mean 'batch'?"]),
    ({"normalization": "l1"}, ["fixup, l2, received 'l1'; did you mean 'l2'?"]),
    ({"normalization": {"name": "btch"}}, ["normalization: expected", "'btch'", "did you mean 'batch'?"]),
    ({"arch": "mpl"}, ["arch: expected one of linear, mlp", "received 'mpl'", "did you mean 'mlp'?"]),
    ({"train": {"schedule": "stpe"}}, ["train.schedule: expected", "received 'stpe'", "did you mean 'step'?"]),
    ({"normalization": 3}, ["normalization: expected", "received 3"]),
    ({"normalization": {"name": "batch", "c": 0}}, ["normalization.c: expected", "greater than 0", "received 0"]),
    ({"normalization": {"name": "batch", "c": -1e-5}}, ["normalization.c: expected", "received -1e-05"]),
    ({"normalization": {"name": "batch", "momentum": 1}}, ["normalization.momentum: expected", "received 1"]),
    ({"normalization": {"name": "batch", "affine": "perhaps"}}, ["normalization.affine: expected", "'perhaps'"]),
    ({"data": {"width": 0}}, ["data.width: expected", "1", "received 0"]),
    ({"data": {"width": 28.5}}, ["data.width: expected a whole number", "received 28.5"]),
    ({"data": {"validation": 0}}, ["data.validation: expected", "received 0"]),
    ({"data": {"limit": 0}}, ["data.limit: expected", "received 0"]),
    ({"data": 5}, ["data: expected", "received 5"]),
    ({"data": {"name": 3}}, ["data.name: expected", "received 3"]),
    ({"train": {"epochs": 0}}, ["train.epochs: expected", "1", "received 0"]),
    ({"train": {"epochs": "many"}}, ["train.epochs: expected", "integer", "received 'many'"]),
    ({"train": {"batch_size": 0}}, ["train.batch_size: expected", "received 0"]),
    ({"train": {"lr": 0}}, ["train.lr: expected", "greater than 0", "received 0"]),
    ({"train": {"lr": "fast"}}, ["train.lr: expected a number", "8/255", "received 'fast'"]),
    ({"train": {"optimizer": "adan"}}, ["train.optimizer: expected", "'sgd'", "received 'adan'"]),
    ({"train": {"optimizer": "adam", "momentum": 0.9}}, ["train: momentum", "not to adam"]),
    ({"train": {"betas": [0.5, 0.9]}}, ["train: betas", "not to sgd"]),
    ({"train": {"optimizer": "adam", "betas": [0.5, 1]}}, ["train.betas.1: expected", "less than 1", "received 1"]),
    ({"train": {"nesterov": True}}, ["train: nesterov needs a momentum"]),
    ({"train": {"warmup": 20}}, ["train: warmup", "fewer than the 20 epochs", "received 20"]),
    ({"train": {"label_smoothing": 1}}, ["train.label_smoothing: expected", "less than 1", "received 1"]),
    ({"train": {"schedule": {"name": "cosine", "final": 2}}}, ["train.schedule.final: expected", "received 2"]),
    (
        {"train": {"schedule": "cosin"}},
        ["train.schedule: expected one of constant, step, cosine", "did you mean 'cosine'"],
    ),
    ({"arch": {"name": "deep", "depth": 0}}, ["arch.depth: expected", "received 0"]),
    ({"arch": "vgg10"}, ["arch: expected one of", "vgg11", "received 'vgg10'"]),
    ({"train": {"select": "bst"}}, ["train.select: expected", "'best' or 'last'", "received 'bst'"]),
    ({"train": {"schedule": {"name": "step", "epochs": [0]}}}, ["train.schedule.epochs.0: expected", "received 0"]),
    ({"train": []}, ["train: expected", "received []"]),
    ({"seed": -1}, ["seed: expected", "received -1"]),
    ({"seed": 1.5}, ["seed: expected a whole number", "received 1.5"]),
    ({"weight_decay": -0.1}, ["weight_decay: expected", "received -0.1"]),
    ({"weight_decay": [1]}, ["weight_decay: expected", "number", "received [1]"]),
    ({"init": "xavier"}, ["init: expected", "'torch', 'he' or 'zeros'", "received 'xavier'"]),
    ({"decay_on": "kernel"}, ["decay_on: expected", "'kernels'", "received 'kernel'"]),
    ({"arch": {"name": "mlp", "normalized": [2]}}, ["arch", "normalized", "layers from 0 to 1", "[2]"]),
    (
        {"arch": {"name": "mlp", "hidden": [9, 9, 9], "normalized": [3]}},
        ["normalized", "layers from 0 to 2", "[3]"],
    ),
    ({"arch": {"name": "mlp", "normalized": [-1]}}, ["arch.normalized.0: expected", "received -1"]),
    ({"arch": {"name": "mlp", "hidden": [0], "normalized": [0]}}, ["arch.hidden.0: expected", "received 0"]),
    ({"arch": {"name": "mlp", "hidden": 5}}, ["arch.hidden: expected a list, e.g. [5], received 5"]),
    ({"arch": {"name": "mlp", "hidden": {"a": 5}}}, ["arch.hidden: expected a list, received {'a': 5}"]),
]

ATTACK_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["eps: missing"]),
    ({"eps": -1}, ["eps: expected", "greater than or equal to 0", "received -1"]),
    ({"eps": True}, ["eps: expected a number", "received True"]),
    ({"eps": "a lot"}, ["eps: expected a number", "received 'a lot'"]),
    ({"eps": 0.1, "stps": 3}, ["unknown key 'stps'", "did you mean 'steps'?"]),
    ({"eps": 0.1, "steps": 0}, ["steps: expected", "received 0"]),
    ({"eps": 0.1, "steps": "ten"}, ["steps: expected", "received 'ten'"]),
    ({"eps": 0.1, "step_size": -1}, ["step_size: expected", "received -1"]),
    ({"eps": 0.1, "step_size": "1/0"}, ["step_size: expected a number", "received '1/0'"]),
    ({"eps": 0.1, "ord": "1"}, ["ord: expected 'inf' or '2'", "received '1'"]),
    ({"eps": 0.1, "unit": "pixels"}, ["unit: expected 'pixel' or 'standardized'", "received 'pixels'"]),
    ({"eps": 0.1, "attack": "pdg"}, ["attack: expected", "'pgd'", "received 'pdg'"]),
    ({"eps": 0.1, "target": "nxt"}, ["target: expected", "'next'", "received 'nxt'"]),
    ({"eps": 0.1, "restarts": 0}, ["restarts: expected", "received 0"]),
    ({"eps": 0.1, "random_start": "maybe"}, ["random_start: expected", "received 'maybe'"]),
    ({"eps": 0.1, "box": [1, 0]}, ["box: expected", "low < high", "received [1, 0]"]),
    ({"eps": 0.1, "box": [0, 0]}, ["box: expected", "low < high", "received [0, 0]"]),
    ({"eps": 0.1, "box": [0, 1, 2]}, ["box: expected", "[low, high]", "received [0, 1, 2]"]),
    ({"eps": 0.1, "box": [False, True]}, ["box: expected", "received [False, True]"]),
    ({"eps": 0.1, "box": "nne"}, ["box: expected none", "received 'nne'"]),
    ({"eps": 0.1, "box": {"standardized": [2, -2]}}, ["box: expected", "{standardized: [low, high]}"]),
    ({"eps": 0.1, "box": {"standardised": [-2, 2]}}, ["box: expected", "{standardized: [low, high]}"]),
    ({"eps": 0.1, "attack": "fgsm", "steps": 5}, ["fgsm is one step", "steps", "use bim"]),
    ({"eps": 0.1, "attack": "fgsm", "step_size": 0.05}, ["fgsm is one step", "step_size", "use bim"]),
    ({"eps": 0.1, "attack": "bim", "random_start": True}, ["bim has no random start"]),
    ({"eps": 0.1, "attack": "bim", "restarts": 3}, ["restarts need a random start", "pgd"]),
    ({"eps": 0.1, "random_start": False, "restarts": 3}, ["restarts need a random start"]),
    ({"eps": 0.1, "backend": "cleverhans", "keep": "best_loss"}, ["CleverHans", "the last", "own"]),
    ({"eps": 0.1, "attack": "apgd-ce", "step_size": 0.01}, ["apgd-ce chooses its step sizes", "leave"]),
    ({"eps": 0.1, "attack": "square", "target": "next"}, ["square chooses", "leave"]),
    ({"eps": 0.1, "attack": "strong", "keep": "last"}, ["strong chooses", "keep"]),
    ({"eps": 0.1, "attack": "strong", "random_start": False}, ["strong always starts at random"]),
    ({"eps": 0.1, "attack": "apgd-t", "backend": "cleverhans"}, ["apgd-t is ours alone", "own"]),
    ({"eps": 0.1, "eps_grid": [0.1]}, ["eps_grid", "other eps than 0.1"]),
    ({"eps": 0.1, "eps_grid": [0.05, 0.02]}, ["eps_grid", "ascending"]),
    ({"eps": 0.1, "eps_grid": [0.05], "keep": "last"}, ["an eps grid counts any iterate", "received last"]),
    ({"eps": 0.1, "eps_grid": [0.05], "attack": "fgsm"}, ["expected iterate any, received last"]),
    ({"eps": 0.1, "attack": "square", "queries": 10}, ["queries is for strong", "steps"]),
    ({"eps": 0.1, "targets": 3}, ["targets is for apgd-t and strong"]),
    ({"eps": 0.1, "min_eps_tolerance": 0.1}, ["min_eps_tolerance is a tolerance below eps", "0.1"]),
    ({"eps": 0.1, "min_eps_tolerance": 0.01, "eps_grid": [0.05]}, ["min_eps_tolerance", "in place of an eps grid"]),
    ({"eps": 0.1, "min_eps_tolerance": 0.01, "keep": "last"}, ["min_eps_tolerance", "counts any iterate"]),
    ({"eps": 0.1, "backend": "cleverhans", "restarts": 2}, ["CleverHans", "restarts", "own"]),
]

EXPERIMENT_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    (tiny(nmae="x"), ["unknown key 'nmae'", "did you mean 'name'?"]),
    (tiny(title=3), ["title: expected", "received 3"]),
    (tiny(base=3), ["base: expected", "received 3"]),
    (tiny(seeds=[]), ["seeds", "at least 1"]),
    (tiny(seeds=[0, 1, 0]), ["seeds", "each once", "[0, 1, 0]"]),
    (tiny(seeds=[-1]), ["seeds.0: expected", "received -1"]),
    (tiny(seeds=3), ["seeds: expected", "received 3"]),
    (tiny(seeds=["a"]), ["seeds.0: expected", "received 'a'"]),
    (tiny(grid={}), ["grid", "at least 1"]),
    (tiny(grid={"data.width": []}), ["grid.data.width: no values"]),
    (tiny(grid={"data.width": 28}), ["grid.data.width: expected", "received 28"]),
    (tiny(grid={"normalization": "batch"}), ["grid.normalization: expected", "received 'batch'"]),
    (tiny(perturbations={}, table={"columns": {}}), ["perturbations", "at least 1"]),
    (with_perturbation(kind="awng", std=1), ["perturbations.extra: expected", "'awng'", "did you mean 'awgn'?"]),
    (with_perturbation(kind="awgn"), ["perturbations.extra.std: missing"]),
    (with_perturbation(kind="awgn", std=-1), ["perturbations.extra.std: expected", "received -1"]),
    (with_perturbation(kind="awgn", std=1, clip=[1, 0]), ["perturbations.extra.clip: expected", "received [1, 0]"]),
    (with_perturbation(kind="awgn", stdd=1), ["perturbations.extra: unknown key 'stdd'", "did you mean 'std'?"]),
    (with_perturbation(kind="clean", eps=1), ["perturbations.extra: unknown key 'eps'", "known: kind"]),
    (with_perturbation(kind="attack", eps=-1), ["perturbations.extra.eps: expected", "received -1"]),
    (with_perturbation(kind="attack", attack="bim"), ["perturbations.extra.eps: missing"]),
    (with_perturbation(kind="attack", attack="bim", eps=-1), ["perturbations.extra.eps: expected", "received -1"]),
    (with_perturbation(kind="attack", attack="fgsm", eps=0.1, steps=4), ["perturbations.extra", "fgsm is one step"]),
    (tiny(perturbations=[1]), ["perturbations: expected", "received [1]"]),
    (
        tiny(table={"columns": {"bimm": "x"}}),
        ["table.columns: 'bimm' is not", "did you mean 'bim'?"],
    ),
    (tiny(table={"columns": {"qqq": "x"}}), ["table.columns: 'qqq' is not among perturbations"]),
    (
        tiny(table={"columns": {"bim": "x"}, "select_by": "claen"}),
        ["table.select_by: 'claen' is not among"],
    ),
    (tiny(table={"columns": {}}), ["table.columns", "at least 1"]),
    (tiny(table={}), ["table.columns: missing"]),
    (tiny(table={"columns": {"bim": "x"}, "row": []}), ["table: unknown key 'row'", "did you mean 'rows'?"]),
    (with_paper(perturbations=["bmi"]), ["paper: 'bmi' is not among table.columns", "did you mean 'bim'?"]),
    (with_paper(perturbations=[]), ["paper.0.perturbations", "at least 1"]),
    (with_paper(value=True), ["paper.0.value: expected a number", "received True"]),
    (with_paper(sem=-1), ["paper.0.sem: expected", "received -1"]),
    (with_paper(vlaue=1), ["paper.0: unknown key 'vlaue'", "did you mean 'value'?"]),
    (tiny(evaluation={"split": "tset"}), ["evaluation.split: expected", "'test'", "received 'tset'"]),
    (tiny(evaluation={"limit": 0}), ["evaluation.limit: expected", "received 0"]),
    (tiny(evaluation={"limits": 3}), ["evaluation: unknown key 'limits'", "did you mean 'limit'?"]),
    (tiny(scales={"fast": {}}), ["scales.fast: expected", "'quick'", "received 'fast'"]),
    (tiny(scales={"quick": 3}), ["scales.quick: expected", "received 3"]),
    (tiny(scale="fast"), ["scale: expected", "'quick'", "received 'fast'"]),
    (tiny(cost={"slow": "x"}), ["cost.slow: expected", "received 'slow'"]),
    ({key: value for key, value in TINY.items() if key != "table"}, ["table: missing"]),
]


@pytest.mark.parametrize(
    ("model", "data", "fragments"),
    [
        *((Cell, data, fragments) for data, fragments in CELL_MISTAKES),
        *((Attack, data, fragments) for data, fragments in ATTACK_MISTAKES),
        *((Experiment, data, fragments) for data, fragments in EXPERIMENT_MISTAKES),
        (Suite, {"title": "t", "perturbations": {}}, ["perturbations", "at least 1"]),
        (Suite, {"titel": "t", "perturbations": {"c": {"kind": "clean"}}}, ["'titel'", "did you mean 'title'?"]),
    ],
)
def test_mistakes_are_explained(model: type, data: Any, fragments: list[str]) -> None:
    message = mistake(model, data)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_every_mistake_is_listed() -> None:
    message = mistake(Cell, {"seed": -1, "weight_decay": -2, "train": {"lr": 0}})
    assert [line.split(": ")[1] for line in message.splitlines()] == ["weight_decay", "train.lr", "seed"]


def test_a_word_unlike_all_others_gets_no_hint() -> None:
    assert "did you mean" not in mistake(Cell, {"zzzz": 1})


@pytest.mark.parametrize(
    ("model", "data", "fragment"),
    [
        pytest.param(
            Experiment,
            tiny(perturbations={**TINY["perturbations"], "bmi": {"steps": 3}}),
            "perturbations.bmi.kind: missing",
            id="no-kind",
        ),
        pytest.param(Cell, {"normalization": "l2", "weight_decay": "abc"}, "weight_decay: expected", id="l2-word"),
        pytest.param(Attack, {"eps": 0.1, "box": {"standardised": [-2, 2]}}, "received {'standardised'", id="box-key"),
        pytest.param(Cell, {"normalization": {"c": 1}}, "name: missing", id="no-name"),
        pytest.param(Cell, {"arch": {"name": "mlp", "normalized": [2]}}, "received", id="normalized-received"),
        pytest.param(Experiment, tiny(seeds=[3, 0, 3]), "received [3, 0, 3]", id="seeds-received"),
    ],
)
def test_mistakes_that_pydantic_words_badly_are_explained(model: type, data: Any, fragment: str) -> None:
    assert fragment in mistake(model, data)


def test_numbers_too_large_are_refused() -> None:
    assert "weight_decay" in mistake(Cell, {"weight_decay": "1e400"})


# ---------------------------------------------------------------- objects


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (cell(), "seed"),
        (cell().train, "epochs"),
        (cell().data, "width"),
        (cell(normalization="batch").normalization, "c"),
        (attack(eps=0.1), "eps"),
        (validate(Experiment, TINY, "file.yaml"), "seeds"),
    ],
)
def test_configs_are_frozen(made: Any, field: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, field, 1)


def test_equal_cells_are_one_key() -> None:
    assert len({cell(), cell(train={"epochs": 20}), cell(seed=1)}) == 2


def test_validating_leaves_the_data_alone() -> None:
    data = tiny()
    validate(Experiment, data, "file.yaml")
    assert data == TINY


# ---------------------------------------------------------------- scales and overrides


def test_the_full_scale_is_the_file(tiny_path: Path) -> None:
    experiment = load_experiment(tiny_path)
    assert (experiment.scale, experiment.seeds, experiment.evaluation.limit) == ("full", (0, 1), None)
    assert experiment == validate(Experiment, TINY, "file.yaml")


def test_a_scale_overrides(tiny_path: Path) -> None:
    experiment = load_experiment(tiny_path, "quick")
    assert (experiment.scale, experiment.seeds, experiment.evaluation.limit) == ("quick", (7,), 9)
    assert [c.train.epochs for c in expand(experiment)] == [1]


def test_overrides_are_on_top_of_the_scale(tiny_path: Path) -> None:
    experiment = load_experiment(tiny_path, "quick", ["train.epochs=5", "train.epochs=6"])
    assert [c.train.epochs for c in expand(experiment)] == [6]
    assert experiment.seeds == (7,)


def override(path: Path, *texts: str) -> Experiment:
    return load_experiment(path, "full", texts)


def test_override_of_the_cells(tiny_path: Path) -> None:
    cells = expand(override(tiny_path, "train.epochs=3", "train.lr=1/2"))
    assert {(c.train.epochs, c.train.lr, c.data.width) for c in cells} == {(3, 0.5, 28)}


def test_override_of_a_field_of_a_short_form(tiny_path: Path) -> None:
    cells = expand(override(tiny_path, "normalization.c=1/10"))
    assert {c.normalization for c in cells} == {BatchNormalization(c=0.1)}


def test_override_by_a_short_form(tiny_path: Path) -> None:
    assert {c.arch for c in expand(override(tiny_path, "arch=linear"))} == {LinearArch()}


def test_override_of_the_evaluation(tiny_path: Path) -> None:
    assert override(tiny_path, "evaluation.limit=5").evaluation == Evaluation(limit=5)


def test_override_of_an_attack_moves_its_default_step_size(tiny_path: Path) -> None:
    changed = override(tiny_path, "perturbations.bim.steps=3").perturbations["bim"]
    assert changed == attack(attack="bim", eps=0.1, steps=3)
    assert isinstance(changed, Attack)
    assert changed.step_size == pytest.approx(0.25 / 3)


def test_override_of_a_grid_axis(tiny_path: Path) -> None:
    experiment = override(tiny_path, "grid.data.width=[28, 56]", "seeds=[0]")
    assert experiment.grid == {"data.width": (28, 56)}
    assert [c.data.width for c in expand(experiment)] == [28, 56]


def test_override_of_the_seeds(tiny_path: Path) -> None:
    assert override(tiny_path, "seeds=[4]").seeds == (4,)


def test_override_that_adds_an_axis(tiny_path: Path) -> None:
    cells = expand(override(tiny_path, "grid.train.batch_size=[50, 100]", "seeds=[0]"))
    assert [c.train.batch_size for c in cells] == [50, 100]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("trian.epochs=3", ["tiny.yaml", "unknown key 'trian.epochs'", "did you mean 'train'?"]),
        ("sedes=[1]", ["tiny.yaml", "unknown key 'sedes'", "did you mean 'seeds'?"]),
        ("evaluation.limt=3", ["tiny.yaml: evaluation", "unknown key 'limt'", "did you mean 'limit'?"]),
        ("seeds=0", ["tiny.yaml: seeds: expected", "received 0"]),
        ("grid.data.width=28", ["tiny.yaml: grid.data.width: expected", "received 28"]),
        ("perturbations.awgn.std=-1", ["tiny.yaml: perturbations.awgn.std: expected", "received -1"]),
        ("nothing", ["--set nothing", "expected key=value"]),
        ("=3", ["--set =3", "expected key=value"]),
        ("train.epochs=[1", ["--set train.epochs=[1", "not valid YAML"]),
        ("train.epoch=3", ["tiny", "train: unknown key 'epoch'", "did you mean 'epochs'?"]),
        ("train.epochs=0", ["tiny", "train.epochs: expected", "received 0"]),
        ("train.lr=true", ["tiny", "train.lr: expected a number", "received True"]),
    ],
)
def test_wrong_overrides_are_explained(tiny_path: Path, text: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(override(tiny_path, text))
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.parametrize("text", ["train.epochs.x=3", "seeds.0=3"])
def test_override_below_a_value_is_explained(tiny_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=text.partition("=")[0]):
        expand(override(tiny_path, text))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("train.epochs=3", ("train.epochs", 3)),
        (" seeds = [0, 1]", ("seeds", [0, 1])),
        ("train.lr=1e-3", ("train.lr", "1e-3")),
        ("normalization={name: batch, c: 0.1}", ("normalization", {"name": "batch", "c": 0.1})),
        ("data.width=null", ("data.width", None)),
        ("title=a=b", ("title", "a=b")),
    ],
)
def test_assignments_are_read_as_yaml(text: str, parsed: tuple[str, Any]) -> None:
    assert parse_assignment(text) == parsed


@pytest.mark.parametrize("scale", ["cpu", "qick"])
def test_a_scale_that_is_not_there_is_named(tiny_path: Path, scale: Any) -> None:
    with pytest.raises(ConfigError, match=rf"tiny\.yaml: scales: no '{scale}' here \(known: full, quick\)"):
        load_experiment(tiny_path, scale)


def test_wrong_keys_of_a_scale_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(tiny(scales={"quick": {"sedes": [0]}})))
    with pytest.raises(ConfigError, match=r"bad\.yaml: .*'sedes'; did you mean 'seeds'\?"):
        load_experiment(path, "quick")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"a: [1", "not valid YAML"),
        (b"a: b: c", "line 1"),
        (b"- 1", "expected a mapping, received list"),
        (b"", "expected a mapping, received NoneType"),
        (b"\xff\xfe\x00\x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_mapping_are_named(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert str(path) in str(caught.value)
    assert fragment in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        read_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize("find", [catalog.experiment, catalog.suite])
def test_a_path_in_place_of_a_name_must_exist(find: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml: no such file"):
        find(str(tmp_path / "absent.yaml"))


def test_names_that_are_not_shipped_get_a_hint() -> None:
    with pytest.raises(UsageError, match=r"'tabel6'.*did you mean 'table6'\?"):
        catalog.experiment("tabel6")
    with pytest.raises(UsageError, match=r"'papper'.*did you mean 'paper'\?"):
        catalog.suite("papper")


def test_a_path_is_as_good_as_a_name(tiny_path: Path) -> None:
    assert catalog.experiment(str(tiny_path), "quick", ["seeds=[1]"]).seeds == (1,)


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize(("name", "scale"), SHIPPED_SCALES)
def test_shipped_experiments_survive_yaml(name: str, scale: Any) -> None:
    experiment = catalog.experiment(name, scale)
    again = validate(Experiment, yaml.safe_load(to_yaml(experiment)), "again.yaml")
    assert again == experiment
    assert to_yaml(again) == to_yaml(experiment)
    assert expand(again) == expand(experiment)


@pytest.mark.parametrize("name", catalog.names("suites"))
def test_shipped_suites_survive_yaml(name: str) -> None:
    suite = catalog.suite(name)
    assert validate(Suite, yaml.safe_load(to_yaml(suite)), "again.yaml") == suite


@pytest.mark.parametrize(
    "made",
    [
        cell(normalization="batch", train={"schedule": {"name": "step", "epochs": [1, 2]}}, weight_decay="1/3"),
        attack(eps="8/255", box={"standardized": [-2, 2]}),
        AWGN(std=0.1, clip="none"),
    ],
)
def test_objects_survive_yaml(made: Any) -> None:
    assert validate(type(made), yaml.safe_load(to_yaml(made)), "again.yaml") == made
    assert validate(type(made), to_plain(made), "again.yaml") == made


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_shipped_configs_open_with_claim_command_and_cost(kind: str, name: str) -> None:
    comments = []
    for line in (resources.files("bn_vuln.configs") / kind / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        comments.append(line)
    assert comments[0].startswith("# Claim:")
    assert any(line.startswith("# Command: bnvuln ") for line in comments)
    assert any(line.startswith("# Cost:") for line in comments)


@pytest.mark.parametrize("name", catalog.names())
def test_shipped_experiments_have_the_name_of_their_file(name: str) -> None:
    assert catalog.experiment(name).name == name


def test_table6_carries_the_figures_of_the_paper() -> None:
    judged = {
        p: (value.value, value.sem)
        for value in catalog.experiment("table6").paper
        for p in value.perturbations
        if value.arm is None and not value.approximate and value.where == {"data.width": 28}
    }
    noise, bim = (-0.164, 0.004), (-0.438, 0.005)
    assert judged == {"awgn": noise, "awgn_box": noise, "bim": bim, "bim_box": bim}


# ---------------------------------------------------------------- in words


def test_a_cell_in_words() -> None:
    made = cell(data={"width": 56}, normalization={"name": "batch", "c": 0.1}, weight_decay=0.01, seed=3)
    text = describe_cell(made)
    assert [w for w in ("mlp", "mnist", "56", "batch c=0.1", "weight decay 0.01", "seed 3") if w not in text] == []
    assert "c=" not in describe_cell(cell())
    assert "weight decay" not in describe_cell(cell())


PGD_IN_WORDS = "pgd inf eps 0.1 pixel, 20 steps of 0.0125, "


@pytest.mark.parametrize(
    ("perturbation", "text"),
    [
        (Clean(), "clean"),
        (AWGN(std=1, unit="standardized", clip="none"), "AWGN std 1 standardized, clip none"),
        (AWGN(std=0.5), "AWGN std 0.5 pixel, clip [0, 1]"),
        (
            attack(attack="bim", eps=0.1, unit="standardized", box="none", steps=100, step_size=1e-3),
            "bim inf eps 0.1 standardized, 100 steps of 0.001, box none, any iterate",
        ),
        (attack(attack="fgsm", eps=0.25, ord=2), "fgsm 2 eps 0.25 pixel, 1 step of 0.25, box [0, 1]"),
        (attack(eps=0.1, box={"standardized": [-2, 2]}), PGD_IN_WORDS + "box [-2, 2] standardized, any iterate"),
        (attack(eps=0.1, restarts=3, target="next"), PGD_IN_WORDS + "box [0, 1], 3 restarts, target next, any iterate"),
        (attack(eps=0.1, keep="best_loss"), PGD_IN_WORDS + "box [0, 1], best iterate"),
        (attack(eps=0.1, keep="last"), PGD_IN_WORDS + "box [0, 1]"),
        (attack(attack="apgd-ce", eps=0.1), "apgd-ce inf eps 0.1 pixel, 100 steps, box [0, 1]"),
        (attack(attack="square", eps=0.1), "square inf eps 0.1 pixel, 5000 queries, box [0, 1]"),
        (
            attack(attack="strong", eps=0.1, eps_grid=[0.02, 0.05]),
            "strong inf eps 0.1 pixel, 100 steps, 5000 queries, box [0, 1], of 3 eps",
        ),
        (attack(eps=0.1, backend="cleverhans"), PGD_IN_WORDS + "box [0, 1], CleverHans"),
    ],
)
def test_a_perturbation_in_words(perturbation: Any, text: str) -> None:
    assert describe_perturbation(perturbation) == text


def test_the_rungs_of_a_ladder() -> None:
    pgd, strong = (attack(attack=name, eps="16/255", eps_grid=["2/255", 0.03], steps=10) for name in ("pgd", "strong"))
    assert list(with_eps_grid({"clean": Clean(), "up": pgd})) == ["clean", "up 2/255", "up 0.03", "up"]
    # The larger eps come first, so that they had a say in what was found at the smaller ones.
    for attacked in (pgd, strong):
        assert [(smaller.eps, smaller.eps_grid) for smaller in attacked.at_smaller_eps] == [
            (2 / 255, (0.03, 16 / 255)),
            (0.03, (2 / 255, 16 / 255)),
        ]
    assert pgd.at_smaller_eps[1].step_size == pytest.approx(2.5 * 0.03 / 10)
    assert [smaller.step_size for smaller in strong.at_smaller_eps] == [None, None]
    assert attack(eps=0.1).at_smaller_eps == ()
    again = validate(Attack, to_plain(strong.at_smaller_eps[0]), "a record")
    assert (again, again.at_smaller_eps) == (strong.at_smaller_eps[0], ())
    assert [format_eps(eps) for eps in (8 / 255, 0.1, 1e-4, 2.0)] == ["8/255", "0.1", "0.0001", "510/255"]


def test_rungs_can_be_columns_and_are_measured_with_their_ladder() -> None:
    eps_grid = {"kind": "attack", "eps": "8/255", "eps_grid": ["4/255"]}
    table = {"columns": {"pgd 4/255": "4/255", "pgd": "8/255"}}
    experiment = validate(Experiment, tiny(perturbations={"pgd": eps_grid}, table=table, paper=[]), "test")
    assert experiment.unit("pgd 4/255") == "%"
    assert list(experiment.all_perturbations) == ["pgd 4/255", "pgd"]
    wrong = tiny(perturbations={"pgd": eps_grid}, table={"columns": {"pgd 2/255": "2/255"}}, paper=[])
    with pytest.raises(ConfigError, match="'pgd 2/255' is not among perturbations"):
        validate(Experiment, wrong, "test")


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({}, "clean (test)"),
        ({"limit": 1000}, "clean (test, 1000)"),
        ({"bn_statistics": "batch"}, "clean (test, batch BN statistics)"),
    ],
)
def test_the_perturbation_of_a_record_in_words(where: dict[str, Any], text: str) -> None:
    fields = {**to_plain(validate(Evaluation, {"dataset": "mnist", **where}, "test")), **to_plain(Clean())}
    assert describe_fields(fields) == text


def test_the_default_network_is_that_of_table_6() -> None:
    assert cell().arch == MLPArch(hidden=None, normalized=(0,))
