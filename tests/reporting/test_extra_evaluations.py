"""Evaluations elsewhere (`evaluations`) and columns computed from others (`derived`), from config to report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import scipy.stats
import yaml
from helpers_records import HARM, SMALL, by_arm, fill, small, training
from helpers_runs import SMALL as CELL
from helpers_runs import MessageLog, small_cell

from bn_vuln import config, data, records
from bn_vuln.config import (
    Attack,
    Clean,
    DerivedColumn,
    Evaluation,
    EvaluationPlan,
    Experiment,
    load_experiment,
    validate,
)
from bn_vuln.errors import BnvulnError, ConfigError
from bn_vuln.experiments import catalog, cost_estimate, runner
from bn_vuln.records import Flag
from bn_vuln.reporting import exports, figures, footnotes, pages, summary, tables
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.runtime.files import atomic_write

MINUS = "\N{MINUS SIGN}"
TRAIN: dict[str, Any] = {"split": "train", "limit": 2000, "perturbations": ["clean"]}
BATCH: dict[str, Any] = {"bn_statistics": "batch", "perturbations": ["clean", "bim"]}
GAP: dict[str, Any] = {"difference": ["clean@train", "clean"]}
PARTS: dict[str, Any] = {
    "evaluations": {"train": TRAIN, "batch": BATCH},
    "derived": {"gap": GAP, "both": {"mean": ["bim", "bim@batch"]}},
    "table": {
        "rows": ["data.width"],
        "columns": {
            "clean": "clean",
            "clean@train": "clean, train",
            "gap": "generalization gap",
            "bim@batch": "BIM, batch statistics",
            "both": "BIM, both",
        },
    },
    "claims": [],
}
# By arm and column, the accuracy of each seed: batch norm generalizes worse by .8, .5, .8 and .7 points.
VALUES: dict[tuple[str, str], Sequence[float | None]] = {
    **HARM,
    ("none", "clean@train"): (0.990, 0.992, 0.988, 0.990),
    ("batch", "clean@train"): (0.999, 0.998, 0.997, 0.998),
    ("none", "clean@batch"): (0.970,) * 4,
    ("batch", "clean@batch"): (0.960,) * 4,
    ("none", "bim@batch"): (0.660, 0.650, 0.670, 0.660),
    ("batch", "bim@batch"): (0.160, 0.155, 0.165, 0.158),
}
GAPS = {"none": (0.020, 0.020, 0.020, 0.020), "batch": (0.028, 0.025, 0.028, 0.027)}


def made(**changes: Any) -> Experiment:
    """The small experiment with evaluations elsewhere and derived columns."""
    return small(**{**PARTS, **changes})


def examples(column: str) -> int:
    return 2000 if column.endswith("@train") else 1000


def results(root: Path, experiment: Experiment | None = None, values: Any = VALUES, **options: Any) -> Results:
    experiment = experiment or made()
    return aggregate(experiment, fill(root, experiment, by_arm(values), **{"n": examples, **options}))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results(tmp_path_factory.mktemp("found"))


# ---------------------------------------------------------------- configs


def site_of(experiment: Experiment, name: str) -> EvaluationPlan:
    return next(plan for plan in experiment.plans if plan.name == name)


def test_evaluations_have_the_perturbations_they_name() -> None:
    plans = made().plans
    assert [(plan.name, list(plan.perturbations)) for plan in plans] == [
        ("", ["clean", "bim"]), ("train", ["clean"]), ("batch", ["clean", "bim"]),
    ]  # fmt: skip
    assert [plan.evaluation for plan in plans] == [
        Evaluation(), Evaluation(split="train", limit=2000), Evaluation(bn_statistics="batch"),
    ]  # fmt: skip


def test_whatever_is_a_column_is_one_elsewhere() -> None:
    for column, unit in [
        ("clean@train", "%"),
        ("clean.loss@train", "nats"),
        ("strong 2/255@train", "%"),
        ("strong.loss@train", "nats"),
        ("near.distance@train", "standardized"),
        ("tilt@train", "deg"),
        ("images.distance@train", "pixels"),
    ]:
        chosen = made(
            perturbations={
                **SMALL["perturbations"],
                "strong": {"kind": "attack", "attack": "strong", "eps": "8/255", "eps_grid": ["2/255"]},
                "near": {"kind": "minimal", "unit": "standardized"},
            },
            measurements={"tilt": "tilt", "images": "fooling"},
            evaluations={
                "train": {**TRAIN, "perturbations": ["clean", "strong", "near"], "measurements": ["tilt", "images"]}
            },
            derived={},
            table={"columns": {column: "head"}},
        )
        assert chosen.columns[column].unit == unit
        assert chosen.columns[column.removesuffix("@train")].unit == unit


EVALUATION_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"train": {"split": "train"}}, ["evaluations.train.perturbations: missing"]),
    ({"train": {**TRAIN, "perturbations": []}}, ["evaluations.train.perturbations: expected at least 1"]),
    (
        {"train": {**TRAIN, "perturbations": ["claen"]}},
        ["evaluations.train.perturbations: 'claen' is not among perturbations", "did you mean 'clean'?"],
    ),
    (
        {"train": {**TRAIN, "measurements": ["tilt"]}},
        ["evaluations.train.measurements: 'tilt' is not among measurements"],
    ),
    ({"train": {**TRAIN, "limits": 3}}, ["evaluations.train: unknown key 'limits'", "did you mean 'limit'?"]),
    ({"train": {**TRAIN, "split": "trian"}}, ["evaluations.train.split: expected 'test'", "received 'trian'"]),
    ({"train": 3}, ["evaluations.train: expected a mapping, received 3"]),
    ({"a.b": TRAIN}, ["evaluations: expected a name of letters, digits, _ and -, received 'a.b'"]),
    ({"a@b": TRAIN}, ["evaluations: expected a name", "received 'a@b'"]),
]
DERIVED_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"gap": {}}, ["derived.gap: expected a difference or a mean"]),
    ({"gap": {**GAP, "mean": ["clean", "bim"]}}, ["derived.gap: expected a difference or a mean"]),
    ({"gap": {"difference": ["clean"]}}, ["derived.gap: a difference is that of two columns, received 1"]),
    (
        {"gap": {"difference": ["clean", "bim", "bim@batch"]}},
        ["derived.gap: a difference is that of two columns, received 3"],
    ),
    ({"m": {"mean": ["clean"]}}, ["derived.m: a mean is that of at least two columns, received 1"]),
    ({"m": {"mean": ["bim", "bim"]}}, ["derived.m: expected each column once, received bim, bim"]),
    ({"m": {"median": ["bim", "clean"]}}, ["derived.m: unknown key 'median'", "did you mean 'mean'?"]),
    (
        {"m": {"mean": ["bim", "bmi@batch"]}},
        ["derived.m: no column 'bmi@batch'; there are: ", "did you mean 'bim@batch'?"],
    ),
    ({"m": {"mean": ["bim", "bim@train"]}}, ["derived.m: no column 'bim@train'"]),
    (
        {"gap": GAP, "m": {"mean": ["gap", "bim"]}},
        ["derived.m: 'gap' is derived itself; name what it is computed from"],
    ),
    (
        {"m": {"mean": ["bim", "bim.loss"]}},
        ["derived.m: expected columns of one unit, received bim (%), bim.loss (nats)"],
    ),
    ({"bim": {"mean": ["clean", "bim"]}}, ["derived: 'bim' is not among new names"]),
    ({"bim.loss": GAP}, ["derived: 'bim.loss' is not among new names"]),
    ({"clean@train": GAP}, ["derived: expected a name without @, received 'clean@train'"]),
]
OTHER_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"table": {"columns": {"clean@trian": "x"}}},
        ["table.columns: no column 'clean@trian'; there are: clean, bim, ", "mean 'clean@train'?"],
    ),
    ({"table": {"columns": {"bim@train": "x"}}}, ["table.columns: no column 'bim@train'"]),
    ({"table": {"columns": {"clean@train.loss": "x"}}}, ["table.columns: no column 'clean@train.loss'"]),
    ({"table": {"columns": {"gpa": "x"}}}, ["table.columns: no column 'gpa'", "did you mean 'gap'?"]),
    (
        {"table": {"columns": {"gap": "x"}, "select_by": "clean@train"}},
        ["table.select_by: 'clean@train' is not among table.columns"],
    ),
    (
        {"claims": [{"perturbations": ["clean@batch"], "sign": 1, "source": "x"}]},
        ["claims: 'clean@batch' is not among table.columns"],
    ),
    (
        {"perturbations": {**SMALL["perturbations"], "clean@train": {"kind": "clean"}}},
        ["perturbations: expected a name without @, received 'clean@train'"],
    ),
    ({"measurements": {"tilt@x": "tilt"}}, ["measurements: expected a name without @, received 'tilt@x'"]),
]


def test_mistakes_are_explained() -> None:
    for changes, fragments in [
        *(({"evaluations": value, "derived": {}}, fragments) for value, fragments in EVALUATION_MISTAKES),
        *(({"derived": value}, fragments) for value, fragments in DERIVED_MISTAKES),
        *OTHER_MISTAKES,
    ]:
        with pytest.raises(ConfigError) as caught:
            made(**changes)
        assert [fragment for fragment in fragments if fragment not in str(caught.value)] == [], str(caught.value)


def write_yaml(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **PARTS, **changes}))
    return path


def test_scales_and_overrides_reach_evaluations(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, scales={"smoke": {"evaluations.train.limit": 100}})
    assert [load_experiment(path, scale).evaluations["train"].limit for scale in ("full", "smoke")] == [2000, 100]
    set_ = load_experiment(path, "smoke", ["evaluations.train.limit=7", "evaluations.batch.perturbations=[bim]"])
    assert (set_.evaluations["train"].limit, set_.evaluations["batch"].perturbations) == (7, ("bim",))


def test_an_override_of_an_unknown_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no evaluation 'trian' here; did you mean 'train'\?"):
        load_experiment(write_yaml(tmp_path), "full", ["evaluations.trian.limit=7"])


def test_the_resolved_config_can_be_read_again() -> None:
    chosen = made()
    assert validate(Experiment, yaml.safe_load(config.to_yaml(chosen)), "again") == chosen


def test_the_name_of_the_files_is_the_same_as_without() -> None:
    assert catalog.file_stem(made()) == catalog.file_stem(small()) == "small-full"


def test_the_example_of_the_documents_makes_sense() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guide" / "experiments.md").read_text()
    first, *others = [yaml.safe_load(dedent(part.split("```")[0])) for part in text.split("```yaml\n")[1:]]
    (more,) = [block for block in others if "evaluations" in block]
    columns = {"gap": "gap", "both": "both", "pgd@batch": "batch"}
    chosen = validate(Experiment, {**first, **more, "table": {**first["table"], "columns": columns}}, "docs")
    assert [chosen.columns[column].unit for column in columns] == ["points", "%", "%"]


def test_derived_columns_by_hand() -> None:
    for derived, value in [(DerivedColumn(difference=("a", "b")), 0.25), (DerivedColumn(mean=("a", "b", "c")), 0.5)]:
        assert derived.compute([0.5, 0.25, 0.75][: len(derived.source_columns)]) == pytest.approx(value)


# ---------------------------------------------------------------- what is missing


def test_a_task_is_finished_with_the_records_of_all_evaluations(tmp_path: Path) -> None:
    chosen = made(seeds=[0])
    task, other = runner.tasks(chosen)
    assert len(task.ids()) == 5
    assert [plan.name for plan in task.missing(tmp_path)] == ["", "train", "batch"]
    fill(tmp_path, chosen, by_arm(VALUES))
    assert (task.finished(tmp_path), other.finished(tmp_path), task.missing(tmp_path)) == (True, True, [])
    written = {path.stem for path in (task.folder(tmp_path) / "records").glob("*.json")}
    assert written == task.ids()
    batch = task.plans[2]
    records.record_path(task.folder(tmp_path), task._id(batch, batch.perturbations["bim"])).unlink()
    assert not task.finished(tmp_path)
    assert task.missing(tmp_path) == [replace(batch, perturbations={"bim": batch.perturbations["bim"]})]


def test_a_new_evaluation_is_all_that_is_missing(tmp_path: Path) -> None:
    fill(tmp_path, small(seeds=[0]), by_arm(VALUES))
    task, _ = runner.tasks(made(seeds=[0]))
    assert [plan.name for plan in task.missing(tmp_path)] == ["train", "batch"]


def test_measurements_elsewhere_are_missed_by_themselves(tmp_path: Path) -> None:
    train = {**TRAIN, "measurements": ["tilt"]}
    chosen = made(seeds=[0], measurements={"tilt": "tilt"}, evaluations={"train": train, "batch": BATCH})
    fill(tmp_path, chosen, by_arm(VALUES), also=lambda cell, column: 20.0 if column == "tilt" else None)
    task, _ = runner.tasks(chosen)
    assert [(s.name, dict(s.perturbations), list(s.measurements)) for s in task.missing(tmp_path)] == [
        ("train", {}, ["tilt"])
    ]


def test_nothing_is_missing_of_a_cell_that_failed(tmp_path: Path) -> None:
    task, _ = runner.tasks(made(seeds=[0]))
    folder = task.folder(tmp_path)
    atomic_write(folder / "training.json", records.to_json(training(folder.name, failed=True)))
    assert (task.missing(tmp_path), task.finished(tmp_path)) == ([], True)


def test_the_data_of_all_evaluations_are_prepared_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def prepare(name: str) -> data.DatasetInfo:
        asked.append(name)
        if name != "mnist":
            raise BnvulnError(f"{name} is not prepared")
        return data.dataset_info(name)

    monkeypatch.setattr(data, "prepare", prepare)
    monkeypatch.setattr(runner, "run_task", lambda *_, **__: pytest.fail("trained"))
    extra_plans = {"other": {"dataset": "cifar10_1/v6", "perturbations": ["clean"]}}
    with pytest.raises(BnvulnError, match="cifar10_1/v6 is not prepared"):
        runner.run(small(evaluations=extra_plans), tmp_path)
    assert asked[-1] == "cifar10_1/v6"
    assert not (tmp_path / "experiments").exists()


def test_ones_own_data_elsewhere_are_refused() -> None:
    chosen = small(evaluations={"mine": {"dataset": "my.npz", "perturbations": ["clean"]}})
    with pytest.raises(ConfigError, match=r"evaluations\.mine\.dataset: user data belong into base\.data"):
        runner.tasks(chosen)


# ---------------------------------------------------------------- cost


def test_every_evaluation_costs_its_examples() -> None:
    cell = small_cell()
    bim = {"bim": validate(Attack, {"attack": "bim", "eps": 0.1, "steps": 7}, "test")}
    forward = cost_estimate._forward(cell)

    def flops(*extra_plans: EvaluationPlan) -> float:
        return cost_estimate.task_flops(runner.Task(cell, extra_plans)) - cost_estimate.task_flops(runner.Task(cell))

    assert (
        flops(EvaluationPlan(Evaluation(split="train"), {"clean": Clean()})) == forward * 2_000
    )  # that it is trained on
    assert flops(EvaluationPlan(Evaluation(dataset="mnist", split="train"), {"clean": Clean()})) == forward * 55_000
    assert flops(EvaluationPlan(Evaluation(split="validation"), {"clean": Clean()})) == forward * 5_000
    assert flops(EvaluationPlan(Evaluation(dataset="cifar10_1/v6"), bim)) == forward * 2_000 * (2 * 7 + 1)
    two = EvaluationPlan(Evaluation(limit=100), bim), EvaluationPlan(Evaluation(limit=10), bim)
    assert flops(*two) == forward * 110 * (2 * 7 + 1)


# ---------------------------------------------------------------- aggregation


@pytest.mark.parametrize("arm", ["batch"])
def test_each_column_has_the_records_of_its_evaluation(found: Results, arm: str) -> None:
    values = found.blocks[0].arms[arm]
    for column in ("clean", "clean@train", "bim@batch"):
        assert values[column].by_seed == dict(enumerate(VALUES[arm, column]))
    assert [values[column].n_examples for column in values] == [1000, 2000, None, 1000, 1000]


@pytest.mark.parametrize("arm", ["batch"])
def test_the_gap_is_that_of_each_seed(found: Results, arm: str) -> None:
    value = found.blocks[0].arms[arm]["gap"]
    assert value.by_seed == pytest.approx(dict(enumerate(GAPS[arm])))
    assert value.estimate is not None
    assert value.estimate.mean == pytest.approx(sum(GAPS[arm]) / 4)
    assert value.estimate.sem == pytest.approx(scipy.stats.sem(GAPS[arm]), abs=1e-12)


def test_the_difference_of_the_gaps_is_paired_by_seed(found: Results) -> None:
    difference = found.blocks[0].differences["gap"].paired
    assert difference is not None
    assert difference.mean == pytest.approx(0.007)
    assert difference.sem == pytest.approx(scipy.stats.sem([0.008, 0.005, 0.008, 0.007]))


def test_a_mean_of_columns(found: Results) -> None:
    value = found.blocks[0].arms["batch"]["both"]
    assert value.by_seed == pytest.approx({0: 0.21, 1: 0.205, 2: 0.215, 3: 0.208})
    assert value.n_examples == 1000


def test_losses_and_measurements_elsewhere(tmp_path: Path) -> None:
    numbers = {"tilt": 20.0, "tilt@train": 30.0, "images.reached@train": 0.75, "images@train": 9.0, "images": 8.0}
    numbers |= {"images.reached": 0.5, "clean.loss": 0.5, "clean.loss@train": 0.25}
    columns = {name: name for name in numbers}
    chosen = made(
        measurements={"tilt": "tilt", "images": "fooling"},
        evaluations={"train": {**TRAIN, "measurements": ["tilt", "images"]}},
        derived={
            "turn": {"difference": ["tilt@train", "tilt"]},
            "losses": {"mean": ["clean.loss", "clean.loss@train"]},
        },
        table={"columns": {**columns, "turn": "turn", "losses": "losses"}},
    )
    arms = results(tmp_path, chosen, also=lambda cell, column: numbers.get(column)).blocks[0].arms
    means = {name: value.estimate.mean for name, value in arms["batch"].items() if value.estimate}
    assert means == pytest.approx({**numbers, "turn": 10.0, "losses": 0.375})
    assert (chosen.columns["turn"].unit, chosen.columns["losses"].unit) == ("deg", "nats")


def test_without_one_part_there_is_no_number(tmp_path: Path) -> None:
    values = {**VALUES, ("batch", "clean@train"): (0.999, None, 0.997, 0.999)}
    arms = results(tmp_path, values=values).blocks[0].arms
    assert (sorted(arms["batch"]["gap"].by_seed), arms["batch"]["gap"].missing) == ([0, 2, 3], 1)
    assert arms["batch"]["clean"].missing == 0


def test_failed_trainings_have_no_gap(tmp_path: Path) -> None:
    found = results(tmp_path, failed=lambda cell: cell.seed == 0 and cell.normalization.name == "batch")
    value = found.blocks[0].arms["batch"]["gap"]
    assert (value.failed, value.missing, sorted(value.by_seed)) == (1, 0, [1, 2, 3])


def flagged(check: int) -> Flag:
    return Flag(check=check, name=f"check {check}", value=0.0, message=f"look at {check}")


def test_a_derived_column_has_the_flags_of_its_parts(tmp_path: Path) -> None:
    flags = {"clean": [flagged(9)], "clean@train": [flagged(9), flagged(10)], "bim": [flagged(18)]}
    arms = results(tmp_path, flags=lambda cell, column: flags.get(column, [])).blocks[0].arms
    assert [flag.check for flag in arms["none"]["gap"].flags] == [9, 10]
    assert [flag.check for flag in arms["none"]["both"].flags] == [18]
    assert [flag.check for flag in arms["none"]["clean"].flags] == [9]


def test_times_are_counted_once(tmp_path: Path) -> None:
    assert results(tmp_path / "one").seconds == 8 * 10 + 8 * 5
    again = made(evaluations={"train": TRAIN, "batch": BATCH, "same": {**BATCH, "bn_statistics": "tracked"}})
    values = VALUES | {(arm, f"{name}@same"): VALUES[arm, name] for arm, name in HARM}
    assert results(tmp_path / "two", again, values).seconds == 8 * 10 + 8 * 5


def test_a_derived_column_can_choose(tmp_path: Path) -> None:
    grid = {"train.lr": [0.1, 0.2], "normalization": ["none", "batch"]}
    table = {"rows": ["train.lr"], "columns": {"clean": "clean", "both": "both"}, "choice": {"by": "both"}}
    chosen = made(grid=grid, table=table)
    fill(tmp_path, chosen, lambda cell, column: 0.9 - cell.train.lr if column == "bim@batch" else 0.5)
    assert [block.where["train.lr"] for block in aggregate(chosen, tmp_path).blocks if block.selected] == [0.1]


# ---------------------------------------------------------------- claims


def claims(*paper: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"perturbations": ["gap"], "source": "made up", **fields} for fields in paper]


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"sign": 1}, "holds"),
        ({"value": -0.008, "sem": 0.001}, "fails"),
        ({"arm": "batch", "value": 0.0272, "tolerance": 0.002}, "holds"),
        ({"perturbations": ["bim@batch"], "value": -0.5}, "holds"),
    ],
)
def test_claims_about_such_columns_are_judged(tmp_path: Path, claim: dict[str, Any], verdict: str) -> None:
    (comparison,) = results(tmp_path, made(claims=claims(claim))).comparisons
    assert comparison.verdict == verdict


def test_clean_accuracies_are_compared_where_a_claim_is_measured(tmp_path: Path) -> None:
    values = {**VALUES, ("batch", "clean@batch"): (0.920,) * 4}
    columns = {**PARTS["table"]["columns"], "clean@batch": "clean, batch"}
    chosen = made(
        table={**PARTS["table"], "columns": columns},
        claims=claims({"sign": 1}, {"perturbations": ["bim@batch"], "sign": -1}),
    )
    gap, bim = results(tmp_path, chosen, values).comparisons
    assert gap.flags == ()
    assert bim.flags == ("check 15: the arms' clean accuracies at batch differ by -5.0 points",)


def test_the_interval_over_examples_is_that_of_the_evaluation(tmp_path: Path) -> None:
    chosen = made(seeds=[0], claims=claims({"perturbations": ["bim@batch"], "value": -0.5}, {"value": 0.008}))
    elsewhere, gap = results(tmp_path, chosen).comparisons
    assert elsewhere.over_examples is not None
    assert elsewhere.over_examples[0] < -0.5 < elsewhere.over_examples[1]
    assert gap.over_examples is None  # it has no examples of its own


# ---------------------------------------------------------------- reports

NOTES = (
    f"generalization gap: clean, train {MINUS} clean, for each training by itself",
    "BIM, both: mean of bim; BIM, batch statistics, for each training by itself",
    "clean; bim: mnist, test split, no limit, tracked BN statistics, n = 1,000 examples",
    "clean, train: mnist, train split, limit 2,000, tracked BN statistics, n = 2,000 examples",
    "BIM, batch statistics: mnist, test split, no limit, batch BN statistics, n = 1,000 examples",
)


def test_the_table_shows_gaps_in_points_and_says_where_columns_were_measured(found: Results) -> None:
    table = tables.accuracy_table(found)
    assert table.title == "Accuracy, mean ± SEM over n seeds"
    assert table.header[3:] == [
        "clean, %", "clean, train, %", "generalization gap, points", "BIM, batch statistics, %", "BIM, both, %",
    ]  # fmt: skip
    assert [row[5] for row in table.rows] == ["2.00 ± 0.00", "2.70 ± 0.07", "+0.70 ± 0.07"]
    assert table.notes == NOTES


def test_a_gap_below_zero_has_its_sign(tmp_path: Path) -> None:
    values = {**VALUES, ("none", "clean@train"): (0.950, 0.952, 0.948, 0.950)}
    assert tables.accuracy_table(results(tmp_path, values=values)).rows[0][5] == f"{MINUS}2.00 ± 0.00"


def test_a_table_of_one_evaluation_has_no_notes(tmp_path: Path) -> None:
    plain = small(evaluations={"train": TRAIN})
    assert tables.accuracy_table(results(tmp_path, plain)).notes == ()


def test_what_was_not_run_elsewhere_is_said(tmp_path: Path) -> None:
    found = aggregate(made(), tmp_path)
    assert tables.accuracy_table(found).notes[3] == (
        "clean, train: mnist, train split, limit 2,000, tracked BN statistics, not run"
    )
    assert (
        dict(summary.summary_rows(found))["Examples"]
        == "none yet (test), none yet (train@train), none yet (test@batch)"
    )


def test_other_data_are_named(tmp_path: Path) -> None:
    chosen = small(
        evaluations={"new": {"dataset": "cifar10_1/v6", "perturbations": ["clean"]}},
        table={"columns": {"clean@new": "clean"}},
        claims=[],
    )
    values = {(arm, "clean@new"): (0.5,) * 4 for arm in ("none", "batch")}
    found = results(tmp_path, chosen, values, n=2000)
    assert tables.accuracy_table(found).notes == (
        "clean: cifar10_1/v6, test split, no limit, tracked BN statistics, n = 2,000 examples",
    )
    assert dict(summary.summary_rows(found))["Examples"] == "2,000 (test@new)"


def test_several_data_sets_have_no_one_name(tmp_path: Path) -> None:
    grid = {"data.name": ["mnist", "fashion_mnist"], "normalization": ["none", "batch"]}
    chosen = made(grid=grid, table={"rows": ["data.name"], "columns": {"clean@train": "clean"}}, derived={})
    assert footnotes.notes(results(tmp_path, chosen), ["clean@train"]) == [
        "clean: the data trained on, train split, limit 2,000, tracked BN statistics, n = 2,000 examples"
    ]


def test_many_columns_make_few_notes(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(8)]
    gains = {f"gain_{name}": {"difference": [f"{name}@batch", name]} for name in names}
    chosen = small(
        perturbations={"clean": {"kind": "clean"}}
        | {name: {"kind": "awgn", "std": 0.1 + i} for i, name in enumerate(names)},
        evaluations={"batch": {"bn_statistics": "batch", "perturbations": names}},
        derived={**gains, "mean": {"mean": names}},
        table={"columns": {column: column.replace("_", " ") for column in (*gains, "mean")}},
        claims=[],
    )
    fill(tmp_path, chosen, lambda cell, name: 0.5)
    assert footnotes.notes(aggregate(chosen, tmp_path), chosen.table.columns) == [
        f"gain p0; gain p1; ...; gain p7 (8 columns): X@batch {MINUS} X, for each training by itself",
        "mean: mean of p0; p1; ...; p7 (8 columns), for each training by itself",
        "p0; p1; ...; p7 (8 columns): mnist, test split, no limit, tracked BN statistics, n = 1,000 examples",
        "p0@batch; p1@batch; ...; p7@batch (8 columns): mnist, test split, no limit, batch BN statistics, "
        "n = 1,000 examples",
    ]


def published(path: Path) -> None:
    """Let a record be one of the published images."""
    record = json.loads(path.read_text().replace('"made"', '"archive"'))
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "sha256"}))


def test_corrupted_images_of_two_sources_are_not_compared(tmp_path: Path) -> None:
    noise = {"kind": "corruption", "corruption": "shot_noise", "severity": 3}
    chosen = small(
        perturbations={"clean": {"kind": "clean"}, "noise": noise}, table={"columns": {"noise": "noise"}}, claims=[]
    )
    fill(tmp_path, chosen, lambda cell, name: 0.5)
    assert tables.accuracy_table(aggregate(chosen, tmp_path)).notes == (
        "corrupted images: made by the published formulas",
    )
    (one, *others) = (path for path in tmp_path.glob("*/records/*.json") if '"made"' in path.read_text())
    published(one)
    (note,) = tables.accuracy_table(aggregate(chosen, tmp_path)).notes
    assert "not to be compared" in note
    for path in others:
        published(path)
    assert tables.accuracy_table(aggregate(chosen, tmp_path)).notes == ("corrupted images: those that were published",)


def test_claims_stand_above_where_their_columns_were_measured(tmp_path: Path) -> None:
    table = tables.comparison_table(results(tmp_path, made(claims=claims({"sign": 1}, {"arm": "none", "value": 0.02}))))
    assert table is not None
    assert [row[1:6] for row in table.rows] == [
        [f"batch {MINUS} none", "generalization gap", "+0.70 ± 0.07 (4)", "above 0", "-"],
        ["none", "generalization gap", "2.00 ± 0.00 (4)", "2.00", "+0.00"],
    ]
    assert table.notes == (NOTES[0], NOTES[2].replace("; bim", ""), NOTES[3])


def test_all_forms_have_the_same_numbers_and_notes(found: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda results, form="svg": [])
    markdown, latex, html = (pages.render(found, form) for form in ("md", "tex", "html"))
    for note in NOTES:
        assert f"\n{note}\n" in markdown
        assert rf"{note.replace(MINUS, '$-$')}\par" in latex
        assert f'<p class="notes">{note}</p>' in html
    assert "2.70 ± 0.07" in markdown
    assert r"2.70 $\pm$ 0.07" in latex
    assert ">2.70 ± 0.07</td>" in html
    assert "- Examples: 1,000 (test), 2,000 (train@train), 1,000 (test@batch)" in markdown


def test_csv_has_the_value_of_every_seed(found: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(exports.csv_text(found))))
    gaps = {(r["arm"], int(r["seed"])): float(r["value"]) for r in rows if r["perturbation"] == "gap"}
    assert gaps == pytest.approx({(arm, seed): v for arm, values in GAPS.items() for seed, v in enumerate(values)})
    counts = {row["perturbation"]: row["examples"] for row in rows}
    assert counts == {"clean": "1000", "clean@train": "2000", "gap": "", "bim@batch": "1000", "both": "1000"}


def test_json_says_how_columns_came_about(found: Results) -> None:
    printed = json.loads(json.dumps(exports.to_json(found), allow_nan=False))
    assert printed["evaluations"]["train"] == {
        "dataset": None, "split": "train", "limit": 2000, "bn_statistics": "tracked",
    }  # fmt: skip
    assert printed["derived"] == {"gap": GAP, "both": {"mean": ["bim", "bim@batch"]}}
    rows = {(row["arm"], row["perturbation"]): row for row in printed["rows"]}
    assert rows["batch", "gap"]["mean"] == pytest.approx(0.027)
    assert (rows["batch", "gap"]["examples"], rows["batch", "clean@train"]["examples"]) == (None, 2000)


def drawn_texts(found: Results) -> list[tuple[str, str, str]]:
    return [(name, caption, content.decode()) for name, caption, content in figures.draw(found)]


def test_the_figure_of_accuracies_leaves_gaps_out(found: Results) -> None:
    ((_, _, svg),) = drawn_texts(found)
    assert "generalization" not in svg
    assert [head for head in ("clean", "train", "both") if head not in svg] == []


def test_curves_show_gaps_in_points(tmp_path: Path) -> None:
    grid = {"train.lr": [0.1, 0.2], "normalization": ["none", "batch"]}
    table = {"rows": ["train.lr"], "columns": {"gap": "gap"}, "figures": ["curves"], "x": "train.lr"}
    ((_, _, svg),) = drawn_texts(results(tmp_path, made(grid=grid, table=table)))
    assert "gap, points" in svg


def test_heat_maps_are_of_accuracies(tmp_path: Path) -> None:
    grid = {"train.lr": [0.1, 0.2], "train.batch_size": [10, 20], "normalization": ["none", "batch"]}
    rows = ["train.lr", "train.batch_size"]
    columns = {"gap": "gap", "clean@train": "train accuracy"}
    table = {"rows": rows, "columns": columns, "figures": ["heatmaps"], "x": rows[1], "y": rows[0]}
    ((_, _, svg),) = drawn_texts(results(tmp_path, made(grid=grid, table=table)))
    assert "train accuracy" in svg
    assert "gap" not in svg


def test_each_evaluation_has_its_ladder(tmp_path: Path) -> None:
    chosen = small(
        perturbations={
            "clean": {"kind": "clean"},
            "strong": {"kind": "attack", "attack": "strong", "eps": "8/255", "eps_grid": ["2/255"]},
        },
        evaluations={"train": {**TRAIN, "perturbations": ["clean", "strong"]}},
        table={
            "columns": {name + at: name + at for at in ("", "@train") for name in ("clean", "strong 2/255", "strong")},
            "figures": ["eps_curves"],
        },
        claims=[],
    )
    fill(tmp_path, chosen, lambda cell, column: 0.9 if column.startswith("clean") else 0.5)
    here, train = drawn_texts(aggregate(chosen, tmp_path))
    assert (here[0], train[0]) == ("eps-curves-strong", "eps-curves-strong-train")
    assert "on all test images: mean" in here[1]
    assert "on 2,000 train images (mnist, tracked BN statistics): mean" in train[1]


# ---------------------------------------------------------------- a run


def run_yaml(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    content = {
        **SMALL,
        "name": "tiny",
        "base": {**CELL, "train": {**CELL["train"], "epochs": 1}},
        "grid": {"normalization": ["batch"]},
        "seeds": [0],
        "evaluation": {"limit": 100},
        "perturbations": {"clean": {"kind": "clean"}, "bim": {"kind": "attack", "attack": "fgsm", "eps": 0.1}},
        "measurements": {"tilt": "tilt"},
        "evaluations": {
            "train": {"split": "train", "limit": 200, "perturbations": ["clean"], "measurements": ["tilt"]},
            "batch": {"bn_statistics": "batch", "limit": 50, "perturbations": ["clean", "bim"]},
        },
        "derived": {"gap": GAP},
        "table": {"columns": {"clean": "clean", "gap": "gap", "bim@batch": "BIM", "tilt@train": "tilt"}},
        "claims": [],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_dry_run_shows_evaluations_and_derived_columns(
    bnvuln: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = run_yaml(tmp_path)
    code, out, _ = bnvuln("reproduce", path, "--dry-run", "--set", "evaluations.train.limit=20")
    assert code == 0
    shown = yaml.safe_load(out[: out.index("1 cells:")])
    assert shown["evaluations"]["train"]["limit"] == 20
    assert shown["derived"]["gap"]["difference"] == ["clean@train", "clean"]
    printed = json.loads(bnvuln("reproduce", path, "--dry-run", "--json")[1])
    assert printed["experiment"]["evaluations"]["batch"]["perturbations"] == ["clean", "bim"]


@pytest.mark.slow
def test_a_run_measures_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, said = catalog.experiment(str(run_yaml(tmp_path))), MessageLog()
    root = tmp_path / "results"
    runner.run(chosen, root, progress=said)
    assert said.lines.count("evaluations.train:") == said.lines.count("evaluations.batch:") == 1
    (block,) = aggregate(chosen, root).blocks
    values = {(arm, name): value for arm, own in block.arms.items() for name, value in own.items()}
    assert [key for key, value in values.items() if value.missing or not value.by_seed] == []
    (task,) = runner.tasks(chosen)
    folder = task.folder(root)
    found = {r.perturbation_id: r for r in records.read_records(folder)}
    ids = {(plan.name, name): task._id(plan, p) for plan in task.plans for name, p in plan.perturbations.items()}
    assert {key: found[id_].n for key, id_ in ids.items()} == {
        ("", "clean"): 100, ("", "bim"): 100, ("train", "clean"): 200, ("batch", "clean"): 50, ("batch", "bim"): 50,
    }  # fmt: skip
    kept = found[ids["train", "clean"]]
    assert (kept.perturbation["split"], kept.perturbation["bn_statistics"]) == ("train", "tracked")
    assert "perturbations" not in kept.perturbation
    assert found[ids["batch", "bim"]].perturbation["bn_statistics"] == "batch"
    gap = found[ids["train", "clean"]].accuracy - found[ids["", "clean"]].accuracy
    assert block.arms["batch"]["gap"].by_seed == {0: pytest.approx(gap)}
    monkeypatch.setattr("bn_vuln.training.train", lambda *_, **__: pytest.fail("trained again"))
    records.record_path(folder, ids["batch", "clean"]).unlink()
    runner.run(chosen, root)
    assert task.finished(root)
