"""Claims beside made-up numbers: rows compared, arms, slopes, flags and intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers_records import HARM, Accuracy, by_arm, fill, small

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import Cell, Experiment, validate
from bn_vuln.config.grid import arm_of, check_layout, expand
from bn_vuln.errors import ConfigError
from bn_vuln.records import Flag
from bn_vuln.reporting import exports, tables
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.reporting.claims import Comparison

MINUS = "\N{MINUS SIGN}"
N = 10_000  # examples: accuracies are multiples of 1e-4
SPREAD = (0.001, -0.002, 0.0, 0.001)  # over the four seeds, with the mean 0


def results(root: Path, experiment: Experiment, values: Accuracy, **options: Any) -> Results:
    """The table of an experiment, of which `values` are the numbers in all columns."""
    return aggregate(experiment, fill(root, experiment, values, **{"n": N, "also": values, **options}))


def comparisons(root: Path, experiment: Experiment, values: Accuracy, **options: Any) -> tuple[Comparison, ...]:
    return results(root, experiment, values, **options).comparisons


def judged(root: Path, experiment: Experiment, values: Accuracy, **options: Any) -> Comparison:
    (comparison,) = comparisons(root, experiment, values, **options)
    return comparison


def mean_of(comparison: Comparison) -> float:
    assert comparison.ours is not None
    return comparison.ours.mean


# ---------------------------------------------------------------- what is compared

SIGN = {"kind": "sign", "sign": -1}
WIDTHS: dict[str, Any] = {
    "grid": {"data.width": [28, 56], "weight_decay": [0.0, 0.1], "normalization": ["none", "batch"]},
    "table": {"rows": ["data.width", "weight_decay"], "columns": {"clean": "clean", "bim": "BIM"}},
}
# By width and weight decay, of none and batch: every difference between two of them is another one.
LEVELS = {(28, 0.0): (0.90, 0.89), (28, 0.1): (0.87, 0.83), (56, 0.0): (0.75, 0.59), (56, 0.1): (0.43, 0.11)}


def level(cell: Cell, name: str) -> float:
    return LEVELS[cell.data.width or 0, cell.weight_decay][cell.normalization.name == "batch"] + SPREAD[cell.seed]


def about(**fields: Any) -> dict[str, Any]:
    return {"perturbations": ["bim"], "source": "text", **fields}


def at(arm: str, **where: Any) -> dict[str, Any]:
    return {"arm": arm, "where": {key.replace("__", "."): value for key, value in where.items()}}


ROW = {"data.width": 56, "weight_decay": 0.1}
# (where, arms, the difference by width): keys that an arm does not mention are those of the row
COMPARED: list[tuple[dict[str, Any], list[Any], dict[int, float]]] = [
    (ROW, [], {56: 0.11 - 0.43}),
    (ROW, ["batch", "none"], {56: 0.11 - 0.43}),
    (ROW, ["batch", at("batch", weight_decay=0.0)], {56: 0.11 - 0.59}),
    (ROW, ["batch", at("none", data__width=28, weight_decay=0.0)], {56: 0.11 - 0.90}),
    ({"weight_decay": 0.1}, ["batch", at("none", weight_decay=0.0)], {28: 0.83 - 0.90, 56: 0.11 - 0.75}),
    ({"data.width": [28, 56], "weight_decay": 0.1}, ["batch", "none"], {28: 0.83 - 0.87, 56: 0.11 - 0.43}),
]


def test_two_arms_are_compared_by_seed_each_in_its_row(tmp_path: Path) -> None:
    experiment = small(**WIDTHS, claims=[about(**SIGN, where=where, arms=arms) for where, arms, _ in COMPARED])
    found = [(c.where["data.width"], c.ours) for c in comparisons(tmp_path, experiment, level)]
    nothing_random: Any = pytest.approx(0.0, abs=1e-12)
    expected = [item for _, _, by_width in COMPARED for item in by_width.items()]
    assert found == [(width, Estimate(pytest.approx(mean), nothing_random, 4)) for width, mean in expected]  # type: ignore[arg-type]


def test_a_row_that_was_not_run_or_is_not_in_the_grid_is_not_replaced(tmp_path: Path) -> None:
    paper = about(**SIGN, where=ROW, arms=["batch", at("none", data__width=28)])
    found = judged(tmp_path / "a", small(**WIDTHS, claims=[paper]), level, missing=lambda cell: cell.data.width == 28)
    assert (found.ours, found.verdict) == (None, "not run")
    grid = {"data.width, weight_decay": [[28, 0.0], [56, 0.1]], "normalization": ["none", "batch"]}
    fewer = small(**{**WIDTHS, "grid": grid}, claims=[paper], scale="quick")
    assert judged(tmp_path / "b", fewer, level).ours is None


def test_an_arm_may_have_rows_of_its_own(tmp_path: Path) -> None:
    """The arm without normalization has no c."""
    constants = ["none", {"name": "batch", "c": 1e-5}, {"name": "batch", "c": 10.0}]
    experiment = small(
        grid={"data.width": [28, 56], "normalization": constants},
        table={"rows": ["data.width", "normalization.c"], "columns": {"bim": "BIM"}},
        claims=[
            about(**SIGN, where={"normalization.c": 1e-5}, arms=["batch", at("none", normalization__c=None)]),
            about(kind="equals", arms=["none"], value=0.8, tolerance=0.01),
        ],
    )

    def accuracy(cell: Cell, name: str) -> float:
        own = {None: 0.8, 1e-5: 0.3, 10.0: 0.6}[getattr(cell.normalization, "c", None)]
        return own + (0.1 if cell.data.width == 56 else 0.0) * (own == 0.8) + SPREAD[cell.seed]

    found = [(c.where, round(mean_of(c), 9), c.verdict) for c in comparisons(tmp_path, experiment, accuracy)]
    assert found == [
        ({"data.width": 28, "normalization.c": 1e-5}, -0.5, "holds"),
        ({"data.width": 56, "normalization.c": 1e-5}, -0.6, "holds"),
        ({"data.width": 28, "normalization.c": None}, 0.8, "holds"),
        ({"data.width": 56, "normalization.c": None}, 0.9, "fails"),
    ]


def test_a_ratio_is_the_mean_of_those_of_the_seeds(tmp_path: Path) -> None:
    arms = ["batch", at("batch", data__width=28)]
    paper = about(kind="ratio", where={"data.width": 56}, arms=arms, value=0.75, sem=0.01, tolerance=0.01)
    by_width = {28: (0.8, 0.6, 0.4, 0.8), 56: (0.6, 0.45, 0.3, 0.4)}
    experiment = small(grid={"data.width": [28, 56], "normalization": ["none", "batch"]}, claims=[paper])
    found = judged(tmp_path, experiment, lambda cell, name: by_width[cell.data.width or 0][cell.seed])
    assert found.ours == Estimate(pytest.approx((0.75 * 3 + 0.5) / 4), pytest.approx(0.0625), 4)  # type: ignore[arg-type]
    assert found.gap == pytest.approx(-0.0625)
    assert found.verdict == "holds"  # within two standard errors


def test_a_ratio_to_zero_is_none(tmp_path: Path) -> None:
    experiment = small(claims=[about(kind="ratio", arms=["batch", "none"], value=1.0, tolerance=0.1)])
    values = {("none", "bim"): (0.5, 0.5, 0.0, 0.5), ("batch", "bim"): (0.5,) * 4}
    found = judged(tmp_path, experiment, by_arm(values))
    assert (found.ours, found.verdict) == (None, "not run")


# ---------------------------------------------------------------- slopes


def power_law(exponent: float) -> Accuracy:
    def value(cell: Cell, name: str) -> float:
        return (1 + cell.seed) * 0.01 * math.pow(cell.data.width or 0, exponent)

    return value


def sloping(power: int = 1, **fields: Any) -> Experiment:
    """Losses at three widths in both arms, beside a claim of their slope."""
    paper = {"kind": "slope", "arms": ["none"], "along": "data.width", "power": power, "value": 0.5, "tolerance": 0.1}
    return small(
        grid={"data.width": [28, 56, 112], "normalization": ["none", "batch"]},
        table={"rows": ["data.width"], "columns": {"bim.loss": "BIM loss"}},
        claims=[{"perturbations": ["bim.loss"], "source": "text", **paper, **fields}],
    )


def constant(cell: Cell, name: str) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("exponent", "power", "slope", "verdict"),
    [(1.0, 2, 0.5, "holds"), (1.0, 1, 1.0, "fails"), (-1.0, 2, -0.5, "fails")],
)
def test_the_slope_of_a_power_law_is_its_power(
    tmp_path: Path, exponent: float, power: int, slope: float, verdict: str
) -> None:
    found = judged(tmp_path, sloping(power), constant, also=power_law(exponent))
    assert found.ours == Estimate(pytest.approx(slope), pytest.approx(0.0, abs=1e-12), 4)  # type: ignore[arg-type]
    assert (found.verdict, found.where) == (verdict, {})


def test_a_seed_that_a_row_lacks_is_left_out_of_the_slope(tmp_path: Path) -> None:
    def loss(cell: Cell, name: str) -> float | None:
        return None if (cell.data.width, cell.seed) == (56, 2) else power_law(1.0 + (cell.seed == 2))(cell, name)

    found = judged(tmp_path, sloping(2), constant, also=loss)
    assert found.ours == Estimate(pytest.approx(0.5), pytest.approx(0.0, abs=1e-12), 3)  # type: ignore[arg-type]


def test_the_seeds_of_a_slope_have_slopes_of_their_own(tmp_path: Path) -> None:
    found = judged(tmp_path, sloping(2), constant, also=lambda cell, name: power_law(float(cell.seed))(cell, name))
    assert mean_of(found) == pytest.approx((0 + 1 + 2 + 3) / 4 / 2)


def test_a_slope_needs_logarithms_every_row_and_more_than_one(tmp_path: Path) -> None:
    def loss(cell: Cell, name: str) -> float:
        return 0.0 if (cell.data.width, cell.seed) == (56, 2) else 1.0

    zero = judged(tmp_path / "zero", sloping(), constant, also=loss)
    few = judged(tmp_path / "few", sloping(), constant, also=power_law(1.0), missing=lambda cell: cell.data.width == 28)
    one = judged(tmp_path / "one", sloping(where={"data.width": 56}), constant, also=power_law(1.0))
    assert [(found.ours, found.verdict) for found in (zero, few, one)] == [(None, "not run")] * 3


def test_a_slope_is_that_of_its_arm(tmp_path: Path) -> None:
    def loss(cell: Cell, name: str) -> float | None:
        return power_law(1.0 if cell.normalization.name == "none" else 3.0)(cell, name)

    assert mean_of(judged(tmp_path / "none", sloping(), constant, also=loss)) == pytest.approx(1)
    assert mean_of(judged(tmp_path / "batch", sloping(arms=["batch"]), constant, also=loss)) == pytest.approx(3)


def test_a_slope_in_the_table(tmp_path: Path) -> None:
    found = results(tmp_path, sloping(2), constant, also=lambda cell, name: power_law(1 + 0.02 * cell.seed)(cell, name))
    table = tables.comparison_table(found)
    assert table is not None
    ((quantity, under, ours, paper, gap, verdict, flags),) = table.rows
    assert quantity == "slope of log(none) against log(width^2)"
    assert (under, paper, gap, verdict, flags) == ("BIM loss", "0.500", "+0.015", "holds", "none")
    assert ours == "0.515 ± 0.006 (4) [0.494, 0.536]"


def test_the_flags_of_every_row_of_a_slope_reach_it(tmp_path: Path) -> None:
    flag = Flag(check=18, name="steps cannot reach the border", value=0.05, message="take more steps")
    found = judged(
        tmp_path,
        sloping(2),
        constant,
        also=power_law(1.0),
        failed=lambda cell: (cell.data.width, cell.seed, cell.normalization.name) == (112, 0, "none"),
        flags=lambda cell, name: [flag] if cell.data.width == 56 else [],
    )
    steps, failed = found.flags
    assert steps == "check 18: in 4 of 4 seeds, at most: take more steps"
    assert failed == "1 training(s) failed and are not in the mean"


# ---------------------------------------------------------------- flags of what is compared


def test_unequal_clean_accuracies_of_two_rows_are_flagged(tmp_path: Path) -> None:
    paper = about(**SIGN, where={"data.width": 56}, arms=["none", at("none", data__width=28)])
    experiment = small(grid={"data.width": [28, 56], "normalization": ["none", "batch"]}, claims=[paper])
    found = judged(tmp_path, experiment, lambda cell, name: 0.9 if cell.data.width == 28 else 0.8)
    assert found.flags == ("check 15: the arms' clean accuracies differ by -10.0 points",)


# ---------------------------------------------------------------- named arms

NAMED: dict[str, Any] = {
    "grid": {"normalization, weight_decay": [["none", 0.0], ["none", 0.1], ["batch", 0.0], ["batch", 0.1]]},
    "table": {
        "columns": {"clean": "clean", "bim": "BIM"},
        "arms": {
            "decayed": {"weight_decay": 0.1},
            "BN": {"normalization.name": "batch"},
            "plain": {},
        },
        "reference": "plain",
        "treatment": "BN",
    },
    "claims": [],
}


def named(**changes: Any) -> Experiment:
    return small(**{**NAMED, **changes})


def arms(**named_arms: dict[str, Any]) -> dict[str, Any]:
    return {**NAMED["table"], "arms": named_arms}


def test_the_first_arm_whose_values_a_cell_has_is_its_arm() -> None:
    experiment = named(grid={"weight_decay": [0.0, 0.1], "normalization": ["none", "batch"]}, seeds=[0])
    found = [(cell.normalization.name, cell.weight_decay, arm_of(experiment, cell)) for cell in expand(experiment)]
    assert found == [
        ("none", 0.0, "plain"),
        ("batch", 0.0, "BN"),
        ("none", 0.1, "decayed"),
        ("batch", 0.1, "decayed"),
    ]


def test_the_order_of_the_arms_decides() -> None:
    for order, arm in [(("one", "both", "rest"), "one"), (("both", "one", "rest"), "both"), (("rest", "one"), "rest")]:
        values = {"one": {"normalization.c": 0.1}, "both": {"normalization.c": 0.1, "weight_decay": 0.1}, "rest": {}}
        experiment = named(table=arms(**{name: values[name] for name in order}))
        cell = validate(Cell, {"normalization": {"name": "batch", "c": 0.1}, "weight_decay": 0.1}, "cell")
        assert arm_of(experiment, cell) == arm


def test_an_arm_may_lack_a_key() -> None:
    experiment = named(table=arms(c={"normalization.c": 1e-5}, none={"normalization.c": None}))
    found = [arm_of(experiment, validate(Cell, {"normalization": name}, "cell")) for name in ("none", "batch")]
    assert found == ["none", "c"]


def test_a_cell_in_no_arm_is_refused() -> None:
    experiment = named(table=arms(batched={"normalization.name": "batch"}), grid={"normalization": ["none", "batch"]})
    with pytest.raises(ConfigError) as caught:
        check_layout(experiment, expand(experiment))
    assert str(caught.value).startswith("small: table.arms: ")
    assert str(caught.value).endswith("is in none of them")
    assert "none" in str(caught.value)


def test_two_cells_of_a_seed_in_one_arm_of_a_row_are_refused() -> None:
    with pytest.raises(ConfigError, match="several cells of a seed fall into one row"):
        check_layout(named(), expand(named()))


def test_a_reference_that_is_no_arm_is_refused() -> None:
    for field in ["reference", "treatment"]:
        grid = {"normalization": ["none", "batch"]}
        with pytest.raises(ConfigError, match="GDD"):
            named(table={**NAMED["table"], field: "GDD"}, grid=grid)


def test_claims_of_arms_that_are_not_there_or_have_no_cells_are_refused() -> None:
    def claimed(*arms: str) -> list[dict[str, Any]]:
        return [about(kind="context", value=0.5, arms=arms)]

    for names in (["batch"], ["BN", "none"]):
        with pytest.raises(ConfigError, match=f"claims: '{names[-1]}' is not among table.arms"):
            named(claims=claimed(*names))
    for names in (["decayed"], ["BN", "decayed"]):
        experiment = named(grid={"normalization": ["none", "batch"]}, claims=claimed(*names))
        with pytest.raises(ConfigError, match="no cell is in the arm 'decayed'"):
            check_layout(experiment, expand(experiment))


def test_named_arms_in_the_tables(tmp_path: Path) -> None:
    by_name = {("none", 0.0): 0.66, ("none", 0.1): 0.9, ("batch", 0.0): 0.22}
    experiment = named(
        grid={"normalization, weight_decay": [["none", 0.0], ["none", 0.1], ["batch", 0.0]]},
        claims=[
            {"kind": "sign", "arms": ["decayed", "plain"], "perturbations": ["bim"], "sign": 1, "source": "text"},
            {"kind": "value", "perturbations": ["bim"], "value": -0.43, "sem": 0.01, "source": "text"},
        ],
    )
    found = results(
        tmp_path,
        experiment,
        lambda cell, name: by_name[cell.normalization.name, cell.weight_decay] + SPREAD[cell.seed],
    )
    assert list(found.blocks[0].arms) == ["plain", "decayed", "BN"]
    table = tables.accuracy_table(found)
    assert table.header == ["arm", "n", "clean, %", "BIM, %"]
    assert [row[0] for row in table.rows] == ["plain", "decayed", "BN", f"BN {MINUS} plain"]
    beside = tables.comparison_table(found)
    assert beside is not None
    assert beside.title == "Comparison with the claims (accuracies in %, differences in points)"
    assert [row[:5] for row in beside.rows] == [
        [f"decayed {MINUS} plain", "BIM", "+24.00 ± 0.00 (4)", "above 0", "-"],
        [f"BN {MINUS} plain", "BIM", f"{MINUS}44.00 ± 0.00 (4)", f"{MINUS}43.00 ± 1.00", f"{MINUS}1.00"],
    ]
    assert [c.verdict for c in found.comparisons] == ["holds", "holds"]


# ---------------------------------------------------------------- losses and measurements as columns

MEASURED: dict[str, Any] = {
    "measurements": {"tilt": {"kind": "tilt"}, "spectrum": {"kind": "spectrum"}},
    "table": {
        "rows": ["data.width"],
        "columns": {"bim": "BIM", "bim.loss": "BIM loss", "tilt": "angle", "spectrum": "low-variance energy"},
    },
    "claims": [
        {"kind": "sign", "perturbations": ["bim", "bim.loss", "tilt", "spectrum"], "sign": 1, "source": "text"},
        {
            "kind": "equals",
            "arms": ["batch"],
            "perturbations": ["tilt"],
            "value": 66.7,
            "tolerance": 1.0,
            "source": "text",
        },
    ],
}
NUMBERS = {
    ("none", "bim"): 0.2, ("batch", "bim"): 0.66,
    ("none", "clean"): 0.98, ("batch", "clean"): 0.98,
    ("none", "bim.loss"): 1.25, ("batch", "bim.loss"): 2.5,
    ("none", "tilt"): 8.0, ("batch", "tilt"): 66.5,
    ("none", "spectrum"): 0.25, ("batch", "spectrum"): 0.75,
}  # fmt: skip


def measured(cell: Cell, name: str) -> float | None:
    own = NUMBERS.get((cell.normalization.name, name))
    return None if own is None else own + SPREAD[cell.seed]


def test_the_units_of_columns() -> None:
    for column, unit in [
        ("bim", "%"),
        ("clean", "%"),
        ("bim.loss", "nats"),
        ("clean.loss", "nats"),
        ("tilt", "deg"),
        ("spectrum", "%"),
    ]:
        assert small(**MEASURED).columns[column].unit == unit


def test_a_perturbation_may_be_called_a_loss() -> None:
    clean, columns = {"kind": "clean"}, {"clean.loss": "clean"}
    experiment = small(perturbations={"clean": clean, "clean.loss": clean}, table={"columns": columns}, claims=[])
    assert experiment.columns["clean.loss"].unit == "%"


def test_losses_and_measurements_are_columns(tmp_path: Path) -> None:
    found = results(tmp_path, small(**MEASURED), measured)
    (block,) = found.blocks
    for (arm, column), number in NUMBERS.items():
        if column != "clean":
            value = block.arms[arm][column]
            assert value.by_seed == {seed: pytest.approx(number + SPREAD[seed]) for seed in range(4)}
            assert (value.failed, value.missing, value.n_examples) == (0, 0, N)
    assert mean_of(found.comparisons[2]) == pytest.approx(58.5)
    assert [(c.perturbation, c.verdict) for c in found.comparisons] == [
        ("bim", "holds"), ("bim.loss", "holds"), ("tilt", "holds"), ("spectrum", "holds"), ("tilt", "holds"),
    ]  # fmt: skip


def test_columns_have_their_units_in_the_tables(tmp_path: Path) -> None:
    found = results(tmp_path, small(**MEASURED), measured)
    table = tables.accuracy_table(found)
    assert table.title == "Measured, mean ± SEM over n seeds"
    assert table.header[3:] == ["BIM, %", "BIM loss, nats", "angle, deg", "low-variance energy, %"]
    sem = "± 0.07", "± 0.0007", "± 0.00", "± 0.07"
    assert [row[3:] for row in table.rows] == [
        [f"20.00 {sem[0]}", f"1.2500 {sem[1]}", f"8.00 {sem[2]}", f"25.00 {sem[3]}"],
        [f"66.00 {sem[0]}", f"2.5000 {sem[1]}", f"66.50 {sem[2]}", f"75.00 {sem[3]}"],
        ["+46.00 ± 0.00", "+1.2500 ± 0.0000", "+58.50 ± 0.00", "+50.00 ± 0.00"],
    ]
    beside = tables.comparison_table(found)
    assert beside is not None
    assert [row[1:5] for row in beside.rows] == [
        [f"batch {MINUS} none", "BIM", "+46.00 ± 0.00 (4)", "above 0"],
        [f"batch {MINUS} none", "BIM loss", "+1.2500 ± 0.0000 (4)", "above 0"],
        [f"batch {MINUS} none", "angle", "+58.50 ± 0.00 (4)", "above 0"],
        [f"batch {MINUS} none", "low-variance energy", "+50.00 ± 0.00 (4)", "above 0"],
        ["batch", "angle", "66.50 ± 0.00 (4)", "66.70"],
    ]
    assert beside.rows[-1][5] == f"{MINUS}0.20"


def test_a_column_that_is_no_quantity_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"table\.columns: no column 'bmi\.loss'; there are: "):
        small(table={"rows": ["data.width"], "columns": {"bmi.loss": "BIM loss"}}, claims=[])


def test_a_measurement_has_a_name_of_its_own() -> None:
    with pytest.raises(ConfigError, match="measurements: 'bim' is not among new names"):
        small(measurements={"bim": {"kind": "tilt"}})


@pytest.mark.parametrize("absent", ["tilt"])
def test_a_number_that_is_missing_is_missing_for_its_column_only(tmp_path: Path, absent: str) -> None:
    found = results(
        tmp_path,
        small(**MEASURED),
        measured,
        also=lambda cell, name: None if name == absent and cell.seed == 1 else measured(cell, name),
    )
    arm = found.blocks[0].arms["batch"]
    assert {name: value.missing for name, value in arm.items() if value.missing} == {absent: 1}
    assert sorted(arm[absent].by_seed) == [0, 2, 3]


def test_flags_of_a_record_are_those_of_its_loss_and_of_no_measurement(tmp_path: Path) -> None:
    flag = Flag(check=18, name="steps cannot reach the border", value=0.05, message="take more steps")
    experiment = small(**MEASURED)
    found = comparisons(tmp_path, experiment, measured, flags=lambda cell, name: [flag] if name == "bim" else [])
    flags = {c.perturbation: c.flags for c in found if c.arm is None}
    assert flags == {
        "bim": ("check 18: in 4 of 4 seeds, at most: take more steps",),
        "bim.loss": ("check 18: in 4 of 4 seeds, at most: take more steps",),
        "tilt": (),
        "spectrum": (),
    }


# ---------------------------------------------------------------- the interval over examples

ONE_SEED = {("none", "clean"): (1.0,), ("batch", "clean"): (1.0,), ("none", "bim"): (0.66,), ("batch", "bim"): (0.22,)}


def one_seed(**changes: Any) -> Experiment:
    return small(**{"seeds": [0], **changes})


def test_one_seed_has_an_interval_over_its_examples(tmp_path: Path) -> None:
    found = judged(tmp_path, one_seed(), by_arm(ONE_SEED))
    assert found.ours == Estimate(pytest.approx(-0.44), None, 1)  # type: ignore[arg-type]
    assert found.verdict == "undecided"
    assert found.over_examples is not None
    low, high = found.over_examples
    # The binomial error of .44 over 10,000 examples is .005.
    assert -0.44 - 3 * 0.005 < low < -0.44 - 0.005 < -0.44 + 0.005 < high < -0.44 + 3 * 0.005


@pytest.mark.parametrize("arm", ["batch"])
def test_an_accuracy_of_one_seed_has_an_interval_too(tmp_path: Path, arm: str) -> None:
    paper = [about(kind="context", arms=[arm], perturbations=["clean"], value=0.9)]
    assert judged(tmp_path, one_seed(claims=paper), by_arm(ONE_SEED)).over_examples == (1.0, 1.0)


def test_a_difference_between_rows_has_an_interval_too(tmp_path: Path) -> None:
    paper = about(**SIGN, where={"data.width": 56}, arms=["batch", at("none", data__width=28)])
    experiment = one_seed(grid={"data.width": [28, 56], "normalization": ["none", "batch"]}, claims=[paper])
    found = judged(tmp_path, experiment, lambda cell, name: {28: 0.0, 56: 1.0}[cell.data.width or 0])
    assert found.over_examples == (1.0, 1.0)


def shown(root: Path, experiment: Experiment, **options: Any) -> tuple[str, tuple[str, ...], Any]:
    """(ours in the table, footnotes, the interval in the JSON) of a single claim."""
    found = results(root, experiment, by_arm(ONE_SEED), **options)
    table = tables.comparison_table(found)
    assert table is not None
    (row,), (plain,) = table.rows, json.loads(json.dumps(exports.to_json(found)))["comparisons"]
    return row[table.header.index("measured ± SEM (n)")], table.notes, plain["interval_over_examples"]


FOOTNOTE = "examples [...]: with one seed, the 95% bootstrap interval over the examples of its runs alone"
CLEAN_EQUAL = [about(kind="equals", perturbations=["clean"], value=0.0, tolerance=0.1)]


def test_the_interval_is_in_table_footnote_and_json(tmp_path: Path) -> None:
    ours, notes, interval = shown(tmp_path, one_seed(claims=CLEAN_EQUAL))
    assert ours == "+0.00 (1; examples [+0.00, +0.00])"
    assert notes == ("[1] check 16: one seed: the spread over seeds is unknown", FOOTNOTE)
    assert interval == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        pytest.param({"seeds": [0, 1]}, {}, id="two seeds"),
        pytest.param({"claims": [{**CLEAN_EQUAL[0], "exact": True}]}, {}, id="exact"),
        pytest.param({"claims": [{**CLEAN_EQUAL[0], "kind": "ratio", "arms": ["batch", "none"]}]}, {}, id="ratio"),
        pytest.param(
            {
                "table": {"rows": ["data.width"], "columns": {"clean.loss": "loss"}},
                "claims": [{**CLEAN_EQUAL[0], "perturbations": ["clean.loss"]}],
            },
            {"also": lambda cell, name: 1.0},
            id="a loss",
        ),
    ],
)
def test_where_there_is_no_interval_over_examples(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    experiment = one_seed(**{"claims": CLEAN_EQUAL, **changes})
    found = results(tmp_path, experiment, by_arm({k: v * 2 for k, v in ONE_SEED.items()}), **options)
    assert found.comparisons[0].ours is not None
    assert found.comparisons[0].over_examples is None
    table = tables.comparison_table(found)
    assert table is not None
    assert [note for note in table.notes if "examples" in note] == []
    assert "examples" not in table.rows[0][table.header.index("measured ± SEM (n)")]
    assert exports.to_json(found)["comparisons"][0]["interval_over_examples"] is None


def test_without_outcomes_there_is_no_interval(tmp_path: Path) -> None:
    fill(tmp_path, one_seed(), by_arm(ONE_SEED), n=N)
    for path in tmp_path.glob("*/outcomes/*.npz"):
        path.unlink()
    (found,) = aggregate(one_seed(), tmp_path).comparisons
    assert found.ours is not None
    assert found.over_examples is None


# ---------------------------------------------------------------- smaller scales


def test_every_judged_claim_is_a_preview_at_a_smaller_scale(tmp_path: Path) -> None:
    paper = [
        *MEASURED["claims"],
        about(kind="context", arms=["none"], value=0.2),
        about(kind="equals", arms=["none"], perturbations=["tilt"], value=60.0, tolerance=1.0),
        about(kind="context", value=0.46),
    ]
    found = comparisons(tmp_path, small(**{**MEASURED, "scale": "quick", "claims": paper}), measured)
    assert [(c.verdict, c.verdict_at_full_scale) for c in found] == [
        *[("preview", "holds")] * 5, ("context", "context"), ("preview", "fails"), ("context", "context"),
    ]  # fmt: skip


def test_an_override_makes_previews_as_a_smaller_scale_does(tmp_path: Path) -> None:
    experiment = small().model_copy(update={"overrides": ("evaluation.limit=10",)})
    found = judged(tmp_path, experiment, by_arm(HARM))
    assert (found.verdict, found.verdict_at_full_scale) == ("preview", "holds")
