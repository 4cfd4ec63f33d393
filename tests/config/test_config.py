"""Configs: numbers, short forms, defaults, overrides, and one clear message for every mistake."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bn_vuln.config import (
    AWGN,
    Attack,
    BatchNormalization,
    Cell,
    Clean,
    Evaluation,
    Experiment,
    LinearArch,
    MinimumNorm,
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


def cell(**fields: Any) -> Cell:
    return validate(Cell, fields, "file.yaml")


def attack(**fields: Any) -> Attack:
    return validate(Attack, fields, "file.yaml")


def tiny(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(TINY), **changes}


def with_perturbation(**fields: Any) -> dict[str, Any]:
    return tiny(perturbations={**TINY["perturbations"], "extra": fields})


def with_paper(**fields: Any) -> dict[str, Any]:
    return tiny(claims=[{"perturbations": ["bim"], "value": -0.4, "source": "text", **fields}])


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
    [("8/255", 8 / 255), ("5.2/255", 5.2 / 255), ("1e-5", 1e-5), (" 1 / 10 ", 0.1), (1, 1.0), ("3", 3.0)],
)
def test_numbers_may_be_written_as_people_write_them(written: Any, number: float) -> None:
    value = cell(weight_decay=written).weight_decay
    assert value == number
    assert type(value) is float


@pytest.mark.parametrize(
    "data",
    [
        {"weight_decay": True},
        {"normalization": {"name": "batch", "momentum": False}},
        {"train": {"epochs": True}},
        {"arch": {"name": "mlp", "hidden": [True]}},
    ],
)
def test_booleans_are_no_numbers(data: dict[str, Any]) -> None:
    assert "number" in mistake(Cell, data)


@pytest.mark.parametrize("written", ["nan", float("inf"), "1/0", "8/", "", "0x1p3", "1e400"])
def test_text_that_is_no_finite_number_is_refused(written: Any) -> None:
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


def test_the_default_network_is_that_of_table_6() -> None:
    assert cell().arch == MLPArch(hidden=None, normalized=(0,))


def test_l2_means_no_normalization_and_weight_decay() -> None:
    for form in ("l2", {"name": "l2"}):
        made = cell(normalization=form, weight_decay="1/100")
        assert isinstance(made.normalization, NoNormalization)
        assert made == cell(normalization="none", weight_decay=0.01)
    for fields in ({}, {"weight_decay": "0/3"}):
        assert "normalization l2 needs a weight_decay > 0" in mistake(Cell, {"normalization": "l2", **fields})


def test_the_settings_of_convolutional_nets() -> None:
    made = cell(arch="vgg8")
    assert (made.init, made.train.epochs, made.train.momentum) == ("he", 5, 0.9)
    assert cell(arch="vgg8", train={"optimizer": "adam"}).train.momentum == 0
    assert cell(arch="deep").init == "he"
    assert (cell().init, cell(arch="vgg8", init="torch").init) == ("torch", "torch")


def test_the_nearest_centroid_is_one_cell() -> None:
    data = {"name": "mnist", "classes": [3, 7], "limit": 100, "subset_seed": "seed"}
    assert cell(arch="nearest_centroid", data=data, seed=3, weight_decay=0.1) == cell(
        arch={"name": "nearest_centroid"}, data={"classes": [3, 7]}
    )


def test_schedule_with_steps() -> None:
    schedule = cell(train={"schedule": {"name": "step", "epochs": [250, 150, 150]}}).train.schedule
    assert schedule == StepSchedule(epochs=(150, 250), factor=0.1)


@pytest.mark.parametrize(
    ("fields", "steps", "step_size", "random_start"),
    [
        ({}, 20, 2.5 * 0.1 / 20, True),
        ({"attack": "bim", "steps": 100, "step_size": None}, 100, 2.5 * 0.1 / 100, False),
        ({"attack": "bim", "steps": 1}, 1, 0.1, False),
        ({"attack": "fgsm"}, 1, 0.1, False),
        ({"attack": "fgsm", "steps": 1, "step_size": "1/10"}, 1, 0.1, False),
        ({"attack": "bim", "steps": 100, "step_size": "1e-3"}, 100, 1e-3, False),
        ({"random_start": False}, 20, 2.5 * 0.1 / 20, False),
    ],
)
def test_defaults_of_attacks(fields: dict[str, Any], steps: int, step_size: float, random_start: bool) -> None:
    made = attack(eps="1/10", **fields)
    assert made.steps == steps
    assert made.step_size == pytest.approx(step_size, rel=1e-12)
    assert made.random_start is random_start
    assert (made.ord, made.unit, made.box, made.target) == ("inf", "pixel", (0.0, 1.0), "none")


def test_ord_may_be_a_number() -> None:
    assert attack(eps=1, ord=2) == attack(eps=1, ord="2")
    train = {"adversarial": {"eps": 1, "ord": 2}}
    assert cell(train=train).train.adversarial.ord == "2"  # type: ignore[union-attr]
    assert MinimumNorm(ord=2).ord == "2"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "box"),
    [
        (None, "none"),
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
    ({"zzzz": 1}, ["unknown key 'zzzz' (known"]),
    ({"train": {"epoch": 1}}, ["train:", "unknown key 'epoch'", "did you mean 'epochs'?"]),
    ({"arch": {"name": "linear", "hidden": [3]}}, ["arch:", "unknown key 'hidden'", "known: name"]),
    (
        {"train": {"schedule": {"name": "step", "epochs": [3], "factr": 1}}},
        ["train.schedule:", "unknown key 'factr'", "did you mean 'factor'?"],
    ),
    ({"train": {"schedule": {"name": "step"}}}, ["train.schedule.epochs: missing"]),
    ({"normalization": "btch"}, ["normalization: expected one of none, batch", "'btch'", "did you mean 'batch'?"]),
    ({"normalization": "l1"}, ["fixup, l2, received 'l1'; did you mean 'l2'?"]),
    ({"normalization": {"c": 1}}, ["normalization.name: missing"]),
    ({"normalization": 3}, ["normalization: expected", "received 3"]),
    ({"normalization": {"name": "batch", "c": 0}}, ["normalization.c: expected", "greater than 0", "received 0"]),
    ({"normalization": {"name": "batch", "momentum": 1}}, ["normalization.momentum: expected", "received 1"]),
    ({"normalization": {"name": "batch", "affine": "perhaps"}}, ["normalization.affine: expected", "'perhaps'"]),
    ({"normalization": "l2", "weight_decay": "abc"}, ["weight_decay: expected"]),
    ({"data": {"width": 28.5}}, ["data.width: expected a whole number", "received 28.5"]),
    ({"data": {"classes": [3, 3]}}, ["data: classes: expected each once, received [3, 3]"]),
    ({"data": {"balanced": True}}, ["data: balanced needs a limit"]),
    ({"data": 5}, ["data: expected a mapping", "received 5"]),
    ({"data": {"name": 3}}, ["data.name: expected", "received 3"]),
    ({"train": {"epochs": "many"}}, ["train.epochs: expected a whole number, received 'many'"]),
    ({"train": {"batch_size": 0}}, ["train.batch_size: expected", "received 0"]),
    ({"train": {"lr": "fast"}}, ["train.lr: expected a number", "8/255", "received 'fast'"]),
    ({"train": {"optimizer": "adan"}}, ["train.optimizer: expected", "'sgd'", "received 'adan'"]),
    ({"train": {"optimizer": "adam", "momentum": 0.9}}, ["train: momentum", "not to adam"]),
    ({"train": {"betas": [0.5, 0.9]}}, ["train: betas", "not to sgd"]),
    ({"train": {"optimizer": "adam", "betas": [0.5, 1]}}, ["train.betas.1: expected", "less than 1", "received 1"]),
    ({"train": {"nesterov": True}}, ["train: nesterov needs a momentum"]),
    ({"train": {"warmup": 20}}, ["train: warmup", "fewer than the 20 epochs", "received 20"]),
    ({"train": {"augment": {"pad": 0, "flip": False}}}, ["train.augment: pad 0 without flip changes no image"]),
    ({"train": {"schedule": {"name": "step", "epochs": [0]}}}, ["train.schedule.epochs.0: expected", "received 0"]),
    ({"seed": -1}, ["seed: expected", "received -1"]),
    ({"weight_decay": -0.1}, ["weight_decay: expected", "received -0.1"]),
    ({"init": "zeros"}, ["init zeros", "it is for arch linear"]),
    ({"arch": "wrn", "normalization": "fixup", "train": {"optimizer": "adam"}}, ["fixup is for sgd, not for adam"]),
    ({"arch": "vgg8", "normalization": "fixup"}, ["fixup is for residual nets (ResNets, wrn), not for vgg8"]),
    ({"arch": {"name": "wrn", "depth": 15}}, ["arch: depth: expected 6 n + 4", "received 15"]),
    ({"arch": {"name": "mlp", "normalized": [2]}}, ["arch: normalized: expected hidden layers from 0 to 1", "[2]"]),
    ({"arch": {"name": "mlp", "hidden": [9, 9, 9], "normalized": [3]}}, ["layers from 0 to 2", "[3]"]),
    ({"arch": {"name": "mlp", "hidden": 5}}, ["arch.hidden: expected a list, e.g. [5], received 5"]),
    ({"arch": {"name": "mlp", "hidden": {"a": 5}}}, ["arch.hidden: expected a list, received {'a': 5}"]),
    ({"normalization": "batch", "mend": {"relative_c": 1, "retrain": True}}, ["mend: retrain:", "keep_gain false"]),
    ({"normalization": "batch", "mend": {"keep_gain": False, "retrain": True}}, ["mend: retrain:", "c alone"]),
    ({"mend": {"relative_c": 1}}, ["mend changes c, which normalization none has not"]),
    ({"normalization": "group", "mend": {"reestimate": True}}, ["mend.reestimate is for", "not for group"]),
    ({"mend": {"c": 1, "relative_c": 1}}, ["mend: c and relative_c are two ways"]),
]

ATTACK_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["eps: missing"]),
    ({"eps": -1}, ["eps: expected", "greater than or equal to 0", "received -1"]),
    ({"eps": "a lot"}, ["eps: expected a number", "received 'a lot'"]),
    ({"eps": 0.1, "stps": 3}, ["unknown key 'stps'", "did you mean 'steps'?"]),
    ({"eps": 0.1, "steps": "ten"}, ["steps: expected a whole number, received 'ten'"]),
    ({"eps": 0.1, "step_size": "1/0"}, ["step_size: expected a number", "received '1/0'"]),
    ({"eps": 0.1, "ord": "1"}, ["ord: expected 'inf' or '2'", "received '1'"]),
    ({"eps": 0.1, "attack": "pdg"}, ["attack: expected", "'pgd'", "received 'pdg'"]),
    ({"eps": 0.1, "box": [0, 0]}, ["box: expected", "low < high", "received [0, 0]"]),
    ({"eps": 0.1, "box": [0, 1, 2]}, ["box: expected", "[low, high]", "received [0, 1, 2]"]),
    ({"eps": 0.1, "box": [False, True]}, ["box: expected", "received [False, True]"]),
    ({"eps": 0.1, "box": "nne"}, ["box: expected none", "received 'nne'"]),
    ({"eps": 0.1, "box": {"standardised": [-2, 2]}}, ["box: expected", "received {'standardised'"]),
    ({"eps": 0.1, "attack": "fgsm", "steps": 5}, ["fgsm is one step", "steps", "use bim"]),
    ({"eps": 0.1, "attack": "fgsm", "step_size": 0.05}, ["fgsm is one step", "step_size", "use bim"]),
    ({"eps": 0.1, "attack": "bim", "random_start": True}, ["bim has no random start"]),
    ({"eps": 0.1, "attack": "bim", "restarts": 3}, ["restarts need a random start", "pgd"]),
    ({"eps": 0.1, "backend": "cleverhans", "keep": "best_loss"}, ["CleverHans", "last iterate", "own"]),
    ({"eps": 0.1, "backend": "cleverhans", "restarts": 2}, ["CleverHans has no restarts", "own"]),
    ({"eps": 0.1, "backend": "cleverhans", "step_size": 0.2}, ["CleverHans needs a step_size of at most eps"]),
    ({"eps": 0.1, "attack": "apgd-t", "backend": "cleverhans"}, ["CleverHans has no apgd-t", "own"]),
    ({"eps": 0.1, "attack": "apgd-ce", "step_size": 0.01}, ["apgd-ce chooses its step sizes", "leave"]),
    ({"eps": 0.1, "attack": "square", "target": "next"}, ["square chooses", "leave"]),
    ({"eps": 0.1, "attack": "strong", "keep": "last"}, ["strong chooses", "keep"]),
    ({"eps": 0.1, "attack": "strong", "random_start": False}, ["strong always starts at random"]),
    ({"eps": 0.1, "eps_grid": [0.05], "attack": "fgsm"}, ["eps_grid needs keep first_success, received keep last"]),
    ({"eps": 0.1, "attack": "square", "queries": 10}, ["queries is for strong", "steps"]),
    ({"eps": 0.1, "targets": 3}, ["targets is for apgd-t and strong"]),
    ({"eps": 0.1, "min_eps_tolerance": 0.1}, ["min_eps_tolerance: expected less than eps=0.1"]),
    ({"eps": 0.1, "min_eps_tolerance": 0.01, "eps_grid": [0.05]}, ["min_eps_tolerance", "no eps_grid beside it"]),
    ({"eps": 0.1, "min_eps_tolerance": 0.01, "keep": "last"}, ["min_eps_tolerance", "keep first_success"]),
]

EXPERIMENT_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    (tiny(nmae="x"), ["unknown key 'nmae'", "did you mean 'name'?"]),
    (tiny(seeds=[]), ["seeds", "at least 1"]),
    (tiny(seeds=[3, 0, 3]), ["seeds: expected each once, received [3, 0, 3]"]),
    (tiny(seeds=["a"]), ["seeds.0: expected a whole number, received 'a'"]),
    (tiny(grid={}), ["grid", "at least 1"]),
    (tiny(grid={"data.width": []}), ["grid.data.width: no values"]),
    (tiny(grid={"normalization": "batch"}), ["grid.normalization: expected", "received 'batch'"]),
    (with_perturbation(kind="awng", std=1), ["perturbations.extra: expected", "'awng'", "did you mean 'awgn'?"]),
    (with_perturbation(steps=3), ["perturbations.extra.kind: missing"]),
    (with_perturbation(kind="awgn"), ["perturbations.extra.std: missing"]),
    (with_perturbation(kind="awgn", std=1, clip=[1, 0]), ["perturbations.extra.clip: expected", "received [1, 0]"]),
    (with_perturbation(kind="clean", eps=1), ["perturbations.extra: unknown key 'eps'", "known: kind"]),
    (with_perturbation(kind="attack", attack="fgsm", eps=0.1, steps=4), ["perturbations.extra", "fgsm is one step"]),
    (
        with_perturbation(kind="corruption", corruption="shot_noise", severity=1, seed=3),
        ["seed is only allowed with source: made", "received auto"],
    ),
    (
        with_perturbation(kind="minimal", backend="cleverhans"),
        ["perturbations.extra.backend: expected 'own', received 'cleverhans'"],
    ),
    (tiny(measurements={"steps": {"kind": "fooling", "after": 999}}), ["after: expected at most the 500 steps"]),
    (
        tiny(table={"columns": {"bimm": "x"}}),
        ["table.columns: no column 'bimm'; there are: ", "bim.loss", "did you mean 'bim'?"],
    ),
    (tiny(table={"columns": {"qqq": "x"}}), ["table.columns: no column 'qqq'; there are: clean"]),
    (tiny(table={"columns": {"bim": "x"}, "select_by": "claen"}), ["table.select_by: 'claen' is not among"]),
    (tiny(table={}), ["table.columns: missing"]),
    (with_paper(perturbations=["bmi"]), ["claims: 'bmi' is not among table.columns", "did you mean 'bim'?"]),
    (with_paper(value=True), ["claims.0.value: expected a number", "received True"]),
    (tiny(evaluation={"split": "tset"}), ["evaluation.split: expected", "'test'", "received 'tset'"]),
    (tiny(scales={"fast": {}}), ["scales.fast: expected", "'quick'", "received 'fast'"]),
    ({key: value for key, value in TINY.items() if key != "table"}, ["table: missing"]),
]


@pytest.mark.parametrize(
    ("model", "mistakes"), [(Cell, CELL_MISTAKES), (Attack, ATTACK_MISTAKES), (Experiment, EXPERIMENT_MISTAKES)]
)
def test_mistakes_are_explained(model: type, mistakes: list[tuple[Any, list[str]]]) -> None:
    messages = [(mistake(model, data), fragments) for data, fragments in mistakes]
    assert [(m, fragments) for m, fragments in messages if any(fragment not in m for fragment in fragments)] == []


def test_every_mistake_is_listed() -> None:
    message = mistake(Cell, {"seed": -1, "weight_decay": -2, "train": {"lr": 0}})
    assert [line.split(": ")[1] for line in message.splitlines()] == ["weight_decay", "train.lr", "seed"]


def test_a_word_unlike_all_others_gets_no_hint() -> None:
    assert "did you mean" not in mistake(Cell, {"zzzz": 1})


# ---------------------------------------------------------------- objects


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        cell().seed = 1  # type: ignore[misc]


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


def test_overrides_of_every_kind_of_field(tiny_path: Path) -> None:
    cells = expand(override(tiny_path, "train.epochs=3", "train.lr=1/2"))
    assert {(c.train.epochs, c.train.lr, c.data.width) for c in cells} == {(3, 0.5, 28)}
    cells = expand(override(tiny_path, "normalization.c=1/10", "arch=linear"))  # of a short form, and by one
    assert {(c.normalization, c.arch) for c in cells} == {(BatchNormalization(c=0.1), LinearArch())}
    assert override(tiny_path, "evaluation.limit=5").evaluation == Evaluation(limit=5)
    experiment = override(tiny_path, "grid.data.width=[28, 56]", "grid.train.batch_size=[50, 100]", "seeds=[4]")
    assert experiment.grid == {"data.width": (28, 56), "train.batch_size": (50, 100)}
    assert [(c.seed, c.data.width, c.train.batch_size) for c in expand(experiment)] == [
        (4, 28, 50), (4, 28, 100), (4, 56, 50), (4, 56, 100),
    ]  # fmt: skip


def test_override_of_an_attack_moves_its_default_step_size(tiny_path: Path) -> None:
    changed = override(tiny_path, "perturbations.bim.steps=3").perturbations["bim"]
    assert changed == attack(attack="bim", eps=0.1, steps=3)
    assert isinstance(changed, Attack)
    assert changed.step_size == pytest.approx(0.25 / 3)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("trian.epochs=3", ["--set trian.epochs=3: unknown key 'trian'", "did you mean 'train'?"]),
        ("evaluation.limt=3", ["--set evaluation.limt=3: unknown key 'evaluation.limt'; did you mean 'limit'?"]),
        ("seeds=0", ["tiny.yaml: seeds: expected", "received 0"]),
        ("nothing", ["--set nothing", "expected key=value"]),
        ("train.epochs=[1", ["--set train.epochs=[1", "not valid YAML"]),
        ("train.epoch=3", ["--set train.epoch=3: unknown key 'train.epoch'; did you mean 'epochs'?"]),
        ("epochs=3", ["--set epochs=3: unknown key 'epochs'; did you mean 'train.epochs'?"]),
        ("c=0.1", ["--set c=0.1: unknown key 'c'; did you mean 'normalization.c'?"]),
        ("zzz=1", ["--set zzz=1: unknown key 'zzz' (known: name, ", "weight_decay"]),
        ("seed=[0]", ["--set seed=[0]: the seeds are set by seeds: use --set 'seeds=[0]'"]),
    ],
)
def test_wrong_overrides_are_explained(tiny_path: Path, text: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(override(tiny_path, text))
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_override_below_a_value_is_explained(tiny_path: Path) -> None:
    for text in ("train.epochs.x=3", "seeds.0=3"):
        with pytest.raises(ConfigError, match=text.partition("=")[0]):
            expand(override(tiny_path, text))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("train.epochs=3", ("train.epochs", 3)),
        (" seeds = [0, 1]", ("seeds", [0, 1])),
        ("normalization={name: batch, c: 0.1}", ("normalization", {"name": "batch", "c": 0.1})),
        ("data.width=null", ("data.width", None)),
        ("title=a=b", ("title", "a=b")),
    ],
)
def test_assignments_are_read_as_yaml(text: str, parsed: tuple[str, Any]) -> None:
    assert parse_assignment(text) == parsed


def test_a_scale_that_is_not_there_is_named(tiny_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny\.yaml: scales: no 'cpu' here \(known: full, quick\)"):
        load_experiment(tiny_path, "cpu")


def test_wrong_keys_of_a_scale_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(tiny(scales={"quick": {"sedes": [0]}})))
    for scale in ("quick", "full"):
        with pytest.raises(
            ConfigError, match=r"^bad\.yaml: scales\.quick: unknown key 'sedes'; did you mean 'seeds'\?$"
        ):
            load_experiment(path, scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a/b", "../x", "my table", ""])
def test_a_name_that_is_no_name_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump(tiny(name=name)))
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert str(caught.value) == f"odd.yaml: name: expected letters, digits, _, - and ., received {name!r}"
    path.write_text(yaml.safe_dump(tiny(name="My-table_2.1")))
    assert load_experiment(path).name == "My-table_2.1"


@pytest.mark.parametrize(
    ("base", "grid", "message"),
    [
        ({"trian": {}}, {"train.lr": [1]}, "base: unknown key 'trian'; did you mean 'train'? (known"),
        ({"train": {"epohcs": 3}}, {"train.lr": [1]}, "base.train: unknown key 'epohcs'; did you mean 'epochs'?"),
        ({"train": {"epochs": "x"}}, {"train.lr": [1]}, "base.train.epochs: expected a whole number, received 'x'"),
        ({"normalization": {"name": "batch", "c": 0}}, {"train.lr": [1]}, "base.normalization.c: expected"),
        ({"arch": "mpl"}, {"train.lr": [1]}, "base.arch: expected one of"),
        ({"train": {"nesterov": True}}, {"seed": [1]}, "base.train: nesterov needs a momentum"),
        # What the grid changes is no mistake of the base.
        ({"train": {"nesterov": True}}, {"train.momentum": [0.9]}, None),
        ({"arch": {"name": "mlp", "depth": 3}}, {"arch.name": ["deep"]}, None),
        ({"arch": {"depth": 3}}, {"arch.name": ["deep"]}, None),
        ({"normalization": "l2"}, {"weight_decay": [0.1]}, None),
        ({"train": {"epohcs": 3}}, {"train": [{"epochs": 3}]}, None),
    ],
)
def test_a_mistake_in_the_base_is_named_with_its_file(
    base: dict[str, Any], grid: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny(base=base, grid=grid, scales={})))
    if message is None:
        assert expand(load_experiment(path))
        return
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(f"mine.yaml: {message}")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"a: [1", "not valid YAML"),
        (b"a: b: c", "not valid YAML: line 1, column 5: mapping values are not allowed in this context"),
        (b"- 1", "expected a mapping, received list"),
        (b"", "expected a mapping, received nothing"),
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


def test_a_path_in_place_of_a_name_must_exist(tmp_path: Path) -> None:
    for find in (catalog.experiment, catalog.suite):
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


def test_shipped_configs_survive_yaml() -> None:
    for name in catalog.names():
        experiment = catalog.experiment(name)
        again = validate(Experiment, yaml.safe_load(to_yaml(experiment)), "again.yaml")
        assert (again, to_yaml(again)) == (experiment, to_yaml(experiment))
    for name in catalog.names("suites"):
        suite = catalog.suite(name)
        assert validate(Suite, yaml.safe_load(to_yaml(suite)), "again.yaml") == suite


def test_objects_survive_yaml() -> None:
    schedule = {"name": "step", "epochs": [1, 2]}
    for made in (
        cell(normalization="batch", train={"schedule": schedule}, weight_decay="1/3"),
        attack(eps="8/255", box={"standardized": [-2, 2]}),
        AWGN(std=0.1, clip="none"),
    ):
        assert validate(type(made), yaml.safe_load(to_yaml(made)), "again.yaml") == made
        assert validate(type(made), to_plain(made), "again.yaml") == made


def test_table6_carries_the_figures_of_the_paper() -> None:
    judged = {
        p: (value.value, value.sem)
        for value in catalog.experiment("table6").claims
        for p in value.perturbations
        if value.kind == "value" and value.where == {"data.width": 28}
    }
    noise, bim = (-0.164, 0.004), (-0.438, 0.005)
    assert judged == {"awgn": noise, "awgn_box": noise, "bim": bim, "bim_box": bim}


# ---------------------------------------------------------------- descriptions


def test_the_description_of_a_cell() -> None:
    made = cell(data={"width": 56}, normalization={"name": "batch", "c": 0.1}, weight_decay=0.01, seed=3)
    text = describe_cell(made)
    assert [w for w in ("mlp", "mnist", "56", "batch c=0.1", "weight decay 0.01", "seed 3") if w not in text] == []
    assert "c=" not in describe_cell(cell())
    assert "weight decay" not in describe_cell(cell())
    changed = {"relative_c": 0.1, "reestimate": True, "finetune": {"epochs": 2}}
    assert describe_cell(cell(normalization="batch", mend=changed)).endswith(
        "mended c+0.1m statistics 2 epochs, seed 0"
    )
    retrained = {"relative_c": 0.1, "keep_gain": False, "layers": ["bn", "bn2"], "retrain": True}
    assert "trained with c+0.1m in bn,bn2, seed" in describe_cell(cell(normalization="batch", mend=retrained))
    assert "mended c=1 gains free," in describe_cell(cell(normalization="batch", mend={"c": 1, "keep_gain": False}))


def test_the_description_of_a_net_with_published_weights_has_no_training() -> None:
    fields = {"data": {"name": "imagenet2012", "width": 224}, "arch": "imagenet_vgg11", "normalization": "batch"}
    assert describe_cell(cell(**fields, weights="torchvision")) == "vgg11_bn imagenet2012 224 torchvision weights"
    assert describe_cell(cell(**fields, weights="random", seed=3)).endswith(" 224 random weights seed 3")


PGD = "pgd inf eps 0.1 pixel, 20 steps of 0.0125, "


@pytest.mark.parametrize(
    ("perturbation", "text"),
    [
        (Clean(), "clean"),
        (AWGN(std=1, unit="standardized", clip="none"), "AWGN std 1 standardized, clip none"),
        (
            attack(attack="bim", eps=0.1, unit="standardized", box="none", steps=100, step_size=1e-3),
            "bim inf eps 0.1 standardized, 100 steps of 0.001, box none, keep first_success",
        ),
        (attack(attack="fgsm", eps=0.25, ord=2), "fgsm 2 eps 0.25 pixel, 1 step of 0.25, box [0, 1]"),
        (attack(eps=0.1, box={"standardized": [-2, 2]}), PGD + "box [-2, 2] standardized, keep first_success"),
        (attack(eps=0.1, restarts=3, target="next"), PGD + "box [0, 1], 3 restarts, target next, keep first_success"),
        (attack(eps=0.1, keep="best_loss"), PGD + "box [0, 1], keep best_loss"),
        (
            attack(attack="apgd-ce", eps=0.1, min_eps_tolerance=0.02),
            "apgd-ce inf eps 0.1 pixel, 100 steps, box [0, 1], min eps to within 0.02",
        ),
        (attack(attack="square", eps=0.1), "square inf eps 0.1 pixel, 5000 queries, box [0, 1]"),
        (
            attack(attack="strong", eps=0.1, eps_grid=[0.02, 0.05]),
            "strong inf eps 0.1 pixel, 100 steps, 5000 queries, box [0, 1], grid of 3 eps",
        ),
        (attack(eps=0.1, backend="cleverhans"), PGD + "box [0, 1], CleverHans"),
    ],
)
def test_the_description_of_a_perturbation(perturbation: Any, text: str) -> None:
    assert describe_perturbation(perturbation) == text


def test_an_eps_grid_is_an_attack_at_each_eps() -> None:
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
    assert attack(eps="16/255", eps_grid=[0.03, "16/255", "2/255", 0.03], steps=10) == pgd  # in any order
    again = validate(Attack, to_plain(strong.at_smaller_eps[0]), "a record")
    assert (again, again.at_smaller_eps) == (strong.at_smaller_eps[0], ())
    assert [format_eps(eps) for eps in (8 / 255, 0.1, 1e-4, 2.0, 0.2, 51 / 255, 1 / 7)] == [
        "8/255", "0.1", "0.0001", "2", "0.2", "0.2", "0.1429",
    ]  # fmt: skip


def test_every_eps_of_a_grid_can_be_a_column() -> None:
    eps_grid = {"kind": "attack", "eps": "8/255", "eps_grid": ["4/255"]}
    table = {"columns": {"pgd 4/255": "4/255", "pgd": "8/255"}}
    experiment = validate(Experiment, tiny(perturbations={"pgd": eps_grid}, table=table, claims=[]), "test")
    assert experiment.columns["pgd 4/255"].unit == "%"
    assert list(with_eps_grid(experiment.perturbations)) == ["pgd 4/255", "pgd"]
    wrong = tiny(perturbations={"pgd": eps_grid}, table={"columns": {"pgd 2/255": "2/255"}}, claims=[])
    with pytest.raises(ConfigError, match="no column 'pgd 2/255'; there are: "):
        validate(Experiment, wrong, "test")


def test_the_description_of_a_record() -> None:
    for where, text in (
        ({}, "clean (test)"),
        ({"limit": 1000, "bn_statistics": "batch"}, "clean (test, 1000, batch BN statistics)"),
    ):
        fields = {**to_plain(validate(Evaluation, {"dataset": "mnist", **where}, "test")), **to_plain(Clean())}
        assert describe_fields(fields) == text
