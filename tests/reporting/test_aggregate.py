"""Aggregation of made-up records: means, differences, verdicts and flags."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from helpers_records import DEVICE, HARM, SMALL, by_arm, fill, small, write

from bn_vuln.config import Cell, Experiment, digest, identity_of
from bn_vuln.config.grid import expand
from bn_vuln.errors import ConfigError
from bn_vuln.records import Flag
from bn_vuln.reporting import summary
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.reporting.claims import Comparison

FLAG = Flag(check=18, name="steps cannot reach the border", value=0.05, message="take more steps")
WIDTHS = {"data.width": [28, 56], "normalization": ["none", "batch"]}


def folder_of(root: Path, cell: Cell) -> Path:
    return root / digest(identity_of(cell))


def harm(**changes: Sequence[float | None]) -> dict[tuple[str, str], Sequence[float | None]]:
    """HARM with other accuracies of batch norm, by perturbation."""
    return {**HARM, **{("batch", name): values for name, values in changes.items()}}


def results(root: Path, experiment: Experiment | None = None, values: Any = HARM, **options: Any) -> Results:
    experiment = experiment or small()
    return aggregate(experiment, fill(root, experiment, by_arm(values), **options))


def judged(root: Path, experiment: Experiment | None = None, values: Any = HARM, **options: Any) -> Comparison:
    (comparison,) = results(root, experiment, values, **options).comparisons
    return comparison


def paper(**fields: Any) -> list[dict[str, Any]]:
    return [{**SMALL["claims"][0], **fields}]


# ---------------------------------------------------------------- means and differences


@pytest.mark.parametrize(("arm", "name"), list(HARM))
def test_means_over_seeds(tmp_path: Path, arm: str, name: str) -> None:
    (block,) = results(tmp_path).blocks
    value = block.arms[arm][name]
    assert value.by_seed == dict(enumerate(HARM[arm, name]))
    assert (value.failed, value.missing, value.n_examples, value.flags) == (0, 0, 1000, ())
    assert value.estimate is not None
    assert value.estimate.n == 4
    assert value.estimate.mean == pytest.approx(sum(HARM[arm, name]) / 4)
    assert value.estimate.sem == pytest.approx(scipy.stats.sem(HARM[arm, name]))


def test_differences_are_treatment_minus_reference_paired_by_seed(tmp_path: Path) -> None:
    (block,) = results(tmp_path).blocks
    difference = block.differences["bim"]
    by_seed = [b - a for a, b in zip(HARM["none", "bim"], HARM["batch", "bim"], strict=True)]
    assert difference.paired is not None
    assert difference.unpaired is not None
    assert difference.paired.mean == pytest.approx(-0.4005)
    assert difference.paired.sem == pytest.approx(scipy.stats.sem(by_seed))
    quadrature = sum(scipy.stats.sem(HARM[arm, "bim"]) ** 2 for arm in ("none", "batch")) ** 0.5
    assert difference.unpaired.sem == pytest.approx(quadrature)


def test_counts_seconds_and_machine(tmp_path: Path) -> None:
    found = results(tmp_path)
    assert (found.cells, found.failed, found.missing) == (8, 0, 0)
    assert found.seconds == 8 * 10 + 16 * 1
    assert found.devices == (DEVICE,)
    assert found.versions == ("bnvuln 0.0, tensorflow 2.99",)


def test_blocks_are_the_values_of_the_rows_in_the_order_of_the_grid(tmp_path: Path) -> None:
    grid = {"data.width": [56, 28], "normalization": ["none", "batch"]}
    blocks = results(tmp_path, small(grid=grid)).blocks
    assert [block.where for block in blocks] == [{"data.width": 56}, {"data.width": 28}]
    assert [list(block.arms) for block in blocks] == [["none", "batch"]] * 2


def test_another_arm_key(tmp_path: Path) -> None:
    table = {
        "arm": "arch.name", "reference": "linear", "treatment": "mlp", "columns": {"clean": "clean", "bim": "BIM"},
    }  # fmt: skip
    experiment = small(grid={"arch": ["mlp", "linear"]}, table=table, claims=[])
    fill(tmp_path, experiment, lambda cell, name: 0.9 if cell.arch.name == "mlp" else 0.5)
    (block,) = aggregate(experiment, tmp_path).blocks
    assert block.where == {}
    assert block.differences["bim"].paired is not None
    assert block.differences["bim"].paired.mean == pytest.approx(0.4)


def test_without_one_arm_there_is_no_difference(tmp_path: Path) -> None:
    found = results(tmp_path, small(grid={"normalization": ["batch"]}, table={"columns": {"bim": "BIM"}}, claims=[]))
    (block,) = found.blocks
    assert block.differences == {}


def test_records_of_another_limit_are_not_taken(tmp_path: Path) -> None:
    fill(tmp_path, small(evaluation={"limit": 100}), by_arm(HARM), n=100)
    (block,) = aggregate(small(), tmp_path).blocks
    assert block.arms["none"]["bim"].by_seed == {}
    assert block.arms["none"]["bim"].missing == 4


def test_an_empty_folder_has_nothing(tmp_path: Path) -> None:
    found = aggregate(small(), tmp_path)
    assert (found.cells, found.failed, found.missing, found.seconds) == (8, 0, 8, 0)
    assert found.devices == ()
    assert found.blocks[0].arms["none"]["clean"].estimate is None
    assert found.blocks[0].differences["clean"].paired is None
    assert [c.verdict for c in found.comparisons] == ["not run"]


# ---------------------------------------------------------------- failed and missing


def batch_seed_2(cell: Cell) -> bool:
    return cell.normalization.name == "batch" and cell.seed == 2


def test_failed_trainings_are_counted_and_not_averaged(tmp_path: Path) -> None:
    found = results(tmp_path, failed=batch_seed_2)
    value = found.blocks[0].arms["batch"]["bim"]
    assert (found.failed, found.missing) == (1, 0)
    assert (value.failed, value.missing) == (1, 0)
    assert sorted(value.by_seed) == [0, 1, 3]
    assert value.estimate is not None
    assert value.estimate.mean == pytest.approx((0.260 + 0.255 + 0.258) / 3)


def test_differences_leave_the_partner_of_a_failed_training_out(tmp_path: Path) -> None:
    difference = results(tmp_path, failed=batch_seed_2).blocks[0].differences["bim"].paired
    assert difference is not None
    assert difference.n == 3
    assert difference.mean == pytest.approx((-0.400 - 0.395 - 0.402) / 3)


def test_the_records_of_a_failed_training_do_not_count(tmp_path: Path) -> None:
    experiment = small()
    fill(tmp_path, experiment, by_arm(HARM), failed=batch_seed_2)
    (cell,) = filter(batch_seed_2, expand(experiment))
    write(folder_of(tmp_path, cell), experiment, cell, "bim", 0.99, 1000)
    value = aggregate(experiment, tmp_path).blocks[0].arms["batch"]["bim"]
    assert (value.failed, sorted(value.by_seed)) == (1, [0, 1, 3])


def test_trainings_that_were_not_run_are_counted(tmp_path: Path) -> None:
    found = results(tmp_path, missing=batch_seed_2)
    value = found.blocks[0].arms["batch"]["bim"]
    assert (found.failed, found.missing) == (0, 1)
    assert (value.failed, value.missing, sorted(value.by_seed)) == (0, 1, [0, 1, 3])


def test_a_missing_record_is_missing_for_its_perturbation_only(tmp_path: Path) -> None:
    arms = results(tmp_path, values=harm(bim=(0.26, None, 0.26, 0.26))).blocks[0].arms
    assert (arms["batch"]["bim"].missing, arms["batch"]["clean"].missing) == (1, 0)
    assert sorted(arms["batch"]["bim"].by_seed) == [0, 2, 3]


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("bim", "expected"),
    [
        pytest.param((0.260, 0.255, 0.265, 0.258), "holds", id="40 points lower, as in the paper"),
        pytest.param((0.760, 0.755, 0.765, 0.758), "fails", id="10 points higher"),
        pytest.param((None, None, None, None), "not run", id="nothing yet"),
    ],
)
def test_verdicts_at_full_scale(tmp_path: Path, bim: Sequence[float | None], expected: str) -> None:
    comparison = judged(tmp_path, values=harm(bim=bim))
    assert (comparison.verdict, comparison.verdict_at_full_scale) == (expected, expected)


def test_what_was_not_run_is_no_preview(tmp_path: Path) -> None:
    (comparison,) = aggregate(small(scale="quick"), tmp_path).comparisons
    assert (comparison.verdict, comparison.verdict_at_full_scale) == ("not run", "not run")


def test_a_comparison_holds_ours_and_the_papers(tmp_path: Path) -> None:
    comparison = judged(tmp_path)
    assert comparison.where == {"data.width": 28}
    assert (comparison.perturbation, comparison.arm) == ("bim", None)
    assert comparison.ours is not None
    assert comparison.ours.mean == pytest.approx(-0.4005)
    assert (comparison.claim.value, comparison.claim.sem) == (-0.4, 0.01)
    assert comparison.gap == pytest.approx(-0.0005)


@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize(("arm", "mean"), [("none", 0.66), ("batch", 0.2595)])
def test_accuracies_of_an_arm_are_context(tmp_path: Path, arm: str, mean: float, scale: str) -> None:
    comparison = judged(tmp_path, small(claims=paper(kind="context", arms=[arm], value=0.66), scale=scale))
    assert (comparison.verdict, comparison.verdict_at_full_scale, comparison.arm) == ("context", "context", arm)
    assert comparison.ours is not None
    assert comparison.ours.mean == pytest.approx(mean)


def test_one_figure_for_several_perturbations(tmp_path: Path) -> None:
    found = results(tmp_path, small(claims=paper(perturbations=["bim", "clean"]))).comparisons
    assert [(c.perturbation, c.verdict) for c in found] == [("bim", "holds"), ("clean", "fails")]


@pytest.mark.parametrize("where", [{"data.width": 56}])
def test_a_figure_for_rows_that_are_not_there_is_not_compared(tmp_path: Path, where: dict[str, Any]) -> None:
    assert results(tmp_path, small(claims=paper(where=where), scale="quick")).comparisons == ()


def test_a_figure_without_a_place_is_for_every_row(tmp_path: Path) -> None:
    found = results(tmp_path, small(grid=WIDTHS, paper=paper(where={}))).comparisons
    assert [c.where for c in found] == [{"data.width": 28}, {"data.width": 56}]


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize("arm", ["batch"])
def test_flags_of_either_arm_reach_the_comparison(tmp_path: Path, arm: str) -> None:
    def flags(cell: Cell, name: str) -> list[Flag]:
        return [FLAG] if (cell.normalization.name, name) == (arm, "bim") else []

    found = results(tmp_path, flags=flags)
    assert found.comparisons[0].flags == ("check 18: in 4 of 4 seeds, at most: take more steps",)
    assert [flag.check for flag in found.blocks[0].arms[arm]["bim"].flags] == [FLAG.check]
    assert found.blocks[0].arms[arm]["clean"].flags == ()


def test_flags_of_other_arms_and_perturbations_do_not(tmp_path: Path) -> None:
    def flags(cell: Cell, name: str) -> list[Flag]:
        return [] if (cell.normalization.name, name) == ("none", "bim") else [FLAG]

    assert judged(tmp_path, small(claims=paper(kind="context", arms=["none"], value=0.66)), flags=flags).flags == ()


def test_of_several_seeds_the_worst_flag_is_shown(tmp_path: Path) -> None:
    """A mean over three seeds must not have the last one's flag alone."""

    def flags(cell: Cell, name: str) -> list[Flag]:
        value = {0: -0.02, 1: -0.09, 2: 0.05}.get(cell.seed)
        return [FLAG.model_copy(update={"value": value, "message": f"off by {value}"})] if value else []

    assert judged(tmp_path, flags=flags).flags == ("check 18: in 3 of 4 seeds, at most: off by -0.09",)


def test_an_arm_of_which_no_seed_trained_is_no_missing_run(tmp_path: Path) -> None:
    def failed(cell: Cell) -> bool:
        return cell.normalization.name == "none"

    comparison = judged(tmp_path, failed=failed)
    assert (comparison.verdict, comparison.ours) == ("failed to train", None)
    some = judged(tmp_path / "some", failed=lambda cell: failed(cell) and cell.seed > 0)
    assert some.verdict == "undecided"  # one seed is left


def test_one_seed_is_flagged(tmp_path: Path) -> None:
    comparison = judged(tmp_path, small(seeds=[0]))
    assert comparison.verdict == "undecided"
    assert [flag for flag in comparison.flags if "check 16" in flag and "one seed" in flag] == list(comparison.flags)
    assert len(comparison.flags) == 1


@pytest.mark.parametrize(("clean", "text"), [(0.920, "-5.0 points")])
def test_unequal_clean_accuracies_are_flagged(tmp_path: Path, clean: float, text: str) -> None:
    (flag,) = judged(tmp_path, values=harm(clean=(clean,) * 4)).flags
    assert "check 15" in flag
    assert text in flag


@pytest.mark.parametrize("clean", [0.955])
def test_clean_accuracies_within_two_points_are_not(tmp_path: Path, clean: float) -> None:
    assert judged(tmp_path, values=harm(clean=(clean,) * 4)).flags == ()


# ---------------------------------------------------------------- mistakes


def test_a_figure_of_the_paper_stands_under_a_column() -> None:
    with pytest.raises(ConfigError, match=r"claims: 'bim' is not among table\.columns"):
        small(table={**SMALL["table"], "columns": {"clean": "clean"}})


def test_several_cells_in_a_row_are_refused(tmp_path: Path) -> None:
    experiment = small(grid={"data.width": [28], "train.lr": [0.1, 0.2], "normalization": ["none", "batch"]})
    fill(tmp_path, experiment, by_arm(HARM))
    with pytest.raises(ConfigError, match=r"table\.rows: several cells of a seed fall into one row"):
        aggregate(experiment, tmp_path)


@pytest.mark.parametrize(("field", "key"), [("rows", ["data.widht"]), ("arm", "normalisation.name")])
def test_rows_and_arms_that_cells_do_not_have_are_named(tmp_path: Path, field: str, key: Any) -> None:
    experiment = small(table={**SMALL["table"], field: key}, claims=[])
    with pytest.raises(ConfigError) as caught:
        aggregate(experiment, tmp_path)
    assert "small: table" in str(caught.value)
    assert repr(key if isinstance(key, str) else key[0]) in str(caught.value)


@pytest.mark.parametrize("pattern", ["*/records/*.json", "*/training.json"])
def test_damaged_files_are_named(tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, small(), by_arm(HARM))
    damaged = next(tmp_path.glob(pattern))
    damaged.write_text("{")
    found = aggregate(small(), tmp_path)
    assert [one.path for one in found.damaged] == [damaged]
    assert str(damaged) in dict(summary.summary_rows(found))["Damaged, counted as missing"]


def test_records_alone_are_enough(tmp_path: Path) -> None:
    fill(tmp_path / "all", small(), by_arm(HARM))
    for path in (tmp_path / "all").glob("*/records/*.json"):
        copy = tmp_path / "few" / path.relative_to(tmp_path / "all")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    few, everything = aggregate(small(), tmp_path / "few"), aggregate(small(), tmp_path / "all")
    assert [(b.where, b.arms, b.differences) for b in few.blocks] == [
        (b.where, b.arms, b.differences) for b in everything.blocks
    ]
    assert few.comparisons == everything.comparisons


# ---------------------------------------------------------------- TensorFlow stays out


def test_no_tensorflow_on_this_side_of_the_records() -> None:
    modules = "api reporting.aggregate reporting.pages reporting.figures reporting.tables experiments.catalog records"
    imports = "; ".join(f"import bn_vuln.{module}" for module in modules.split())
    code = f"import sys; {imports}; print([m for m in ('tensorflow', 'keras', 'torch', 'jax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_tensorflow_in_a_report(tmp_path: Path) -> None:
    fill(tmp_path, small(), by_arm(HARM))
    code = (
        "import sys; from bn_vuln import api; print(*api.report(sys.argv[1], form='md'));"
        "print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    files, imported = done.stdout.splitlines()
    assert files.endswith("small-full.md")
    assert imported == "[]"
