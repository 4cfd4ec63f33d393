"""The experiments of the paper: made-up records that agree with it, contradict it, or are too few; and smoke runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import helpers_data as h
import pytest
from helpers_records import fill, wobble

from bn_vuln.config import Cell, EqualsClaim, Experiment, with_eps_grid
from bn_vuln.experiments import catalog, runner
from bn_vuln.reporting import figures, pages
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.reporting.claims import Comparison

N = 10_000  # examples: accuracies are multiples of 1e-4
Values = Callable[[Cell, str], float]

# By experiment, how many claims (each in its rows and columns) are judged. All of them can fail.
JUDGED = {
    "figure1": 3,  # GD's angle; BNGD - GD; c 10 - c 1e-5
    "table1": 15,  # angles: BNGD, WD, affine; affine: clean, AWGN, FGSM; BNGD and WD under 4 each; nearest centroid
    "appendix_a_mnist": 11,  # the 33 points: linear, and MLP under 2; clean, BIM, angle and spectrum of both models
    "table13": 10,  # the slope; the ratios at 3 widths: BIM, BIM in the box, clean
    "table6": 14,  # width 28: noise and BIM, both twice; the same signs at 56 and 84; batch at 84 - none at 28 twice
    "table7": 19,  # width 28: 3 differences at 2 decays, and from none without decay; 5 signs at 56 and 84
    "width84": 9,  # without weight decay: noise and BIM, both twice; with it: 5 signs
    "appendix_j": 2,  # the distance of Carlini-Wagner examples, and the steps of fooling images
    "table2": 10,  # VGG8: gap, noise, PGD twice, and 3 in the box; WRN-28-10: 3 signs
    "table2_matched": 12,  # not in the paper: two arms, noise and PGD twice, each in two boxes
    "table2_cifar10_1": 10,  # the same with clean accuracy
    "table3": 24,  # 4 depths under 6
    "table4": 16,  # 3 nets under 4 corruptions; ResNet-110: clean, noise, PGD twice
    "svhn": 7,  # clean, noise, PGD twice, and 3 in the box
    "appendix_a_cifar": 7,  # the 41 points under noise, twice; clean; PGD under 4
    "normalizations": 8,  # not in the paper, like the next four: batch, layer, instance and group under PGD twice
    "batch_statistics": 3,  # gains under noise and PGD twice
    "adapted_statistics": 8,  # gains under 4 corruptions at severities 3 and 5
    "resnet20": 10,  # noise and PGD twice, each in two boxes; 4 corruptions
    "strong_cifar10": 2,  # 1/255 and 2/255
    "strong_resnet20": 2,
    "table2_short": 6,  # not in the paper: clean, noise, corruptions, PGD twice in the box, strong
    "figure2": 6,  # B 250 - B 10 at depths 10 and 25 under 2; depth 55 - depth 10; B 250 - B 10 at depth 40
}
EXACT = {"table1": 1}  # of these, those in which nothing is random: the nearest centroid


def is_batch(cell: Cell) -> bool:
    return cell.normalization.name == "batch"


# ---------------------------------------------------------------- made-up numbers


def figure1(cell: Cell, column: str) -> float:
    """GD at 0 degrees, BNGD at 66.7 and less as c grows."""
    if column == "clean":
        return 0.99
    return 66.7 / (1 + cell.normalization.c) if cell.normalization.name == "batch" else 0.0


def figure1_swapped(cell: Cell, column: str) -> float:
    """GD at 30 degrees, BNGD at 10 and more as c grows."""
    if column == "clean":
        return 0.99
    return 10 + 5 * cell.normalization.c if cell.normalization.name == "batch" else 30.0


def table1_arm(cell: Cell) -> str:
    if cell.arch.name == "nearest_centroid":
        return "nearest centroid"
    if cell.normalization.name == "batch":
        return "T" if cell.normalization.affine else "F"
    return "WD" if cell.weight_decay else "GD"


def table1(cell: Cell, column: str) -> float:
    """The more tilted, the less robust: WD, GD, and BNGD with and without affine parameters alike."""
    arm = table1_arm(cell)
    if column == "tilt":
        return {"nearest centroid": 0.0, "WD": 15.0, "GD": 30.0, "F": 80.0, "T": 81.0}[arm]
    if column == "clean":
        return {"nearest centroid": 0.95, "WD": 0.96, "GD": 0.97, "F": 0.97, "T": 0.975}[arm]
    if column == "fgsm_quarter":
        return {"nearest centroid": 0.385, "WD": 0.1, "GD": 0.01, "F": 0.0, "T": 0.0}[arm]
    return {"nearest centroid": 0.9, "WD": 0.8, "GD": 0.7, "F": 0.4, "T": 0.41}[arm]


def table1_swapped(cell: Cell, column: str) -> float:
    """BNGD is the least tilted and the most robust arm, WD the other way round, and T is not like F."""
    arm = table1_arm(cell)
    if column == "tilt":
        return {"nearest centroid": 0.0, "WD": 60.0, "GD": 30.0, "F": 10.0, "T": 20.0}[arm]
    if column == "fgsm_quarter" and arm == "nearest centroid":
        return 0.5
    return {"nearest centroid": 0.9, "WD": 0.5, "GD": 0.7, "F": 0.8, "T": 0.9}[arm]


def along_c(cell: Cell) -> float:
    """0 at c = 1e-5, 1 at c = 10, even on a logarithmic scale; 0 without batch norm."""
    return (math.log10(cell.normalization.c) + 5) / 6 if cell.normalization.name == "batch" else 0.0


# At c = 1e-5 and at c = 10.
APPENDIX = {
    "clean": (0.98, 0.95),
    "awgn_pixel": (0.3, 0.63),
    "awgn": (0.4, 0.73),
    "bim": (0.2, 0.6),
    "tilt": (80.0, 40.0),
    "spectrum": (0.4, 0.1),
}


def appendix_a_mnist(cell: Cell, column: str) -> float:
    """Robustness grows with c, clean accuracy falls."""
    low, high = APPENDIX[column]
    return low + (high - low) * along_c(cell)


def appendix_a_mnist_swapped(cell: Cell, column: str) -> float:
    """The ends of the sweep of c change places."""
    high, low = APPENDIX[column]
    return low + (high - low) * along_c(cell)


RATIOS = {28: (1.0, 1.0), 56: (0.98, 0.999), 84: (0.96, 0.996), 112: (1.0, 0.987)}  # adversarial, clean


def table13(cell: Cell, column: str) -> float:
    """The loss without weight decay grows like the root of d = width^2; with it accuracies are as in the paper."""
    width = cell.data.width or 0
    if column.endswith(".loss"):
        return 1.0 if cell.weight_decay else width / 28
    adversarial, clean = RATIOS[width]
    return 0.97 * clean if column == "clean" else 0.7 * adversarial


def table13_swapped(cell: Cell, column: str) -> float:
    """The loss does not grow; with weight decay accuracies fall with the width."""
    if column.endswith(".loss"):
        return 1.0
    return 0.9 if cell.data.width == 28 else 0.5


def table6(cell: Cell, column: str) -> float:
    """What batch norm costs at each width, and 61 points under BIM from width 28 to 84."""
    kind, width = column.removesuffix("_box"), cell.data.width or 0
    without = {"clean": 0.98, "awgn": 0.8, "bim": {28: 0.66, 56: 0.55, 84: 0.45}[width]}[kind]
    costs = {"clean": -0.0008, "awgn": 0.164 if width == 28 else 0.145, "bim": 0.438 if width == 28 else 0.4}[kind]
    return without - costs if is_batch(cell) else without


def table6_swapped(cell: Cell, column: str) -> float:
    """Batch norm makes nets more robust."""
    return 0.9 if is_batch(cell) else 0.6


def table7(cell: Cell, column: str) -> float:
    """Batch norm costs accuracy with weight decay, which lifts it to that of the net without either."""
    kind = column.removesuffix("_box")
    costs = {"clean": 0.0139, "awgn": 0.1, "bim": 0.217}[kind] if is_batch(cell) else 0.0
    if not cell.weight_decay:
        return {"clean": 0.98, "awgn": 0.8, "bim": 0.66}[kind] - 2 * costs
    return {"clean": 0.977, "awgn": 0.85, "bim": 0.877}[kind] - costs


def table7_swapped(cell: Cell, column: str) -> float:
    """Batch norm makes nets better, and better by far than those without weight decay."""
    return 0.9 if is_batch(cell) else 0.6


def table6_or_7(cell: Cell, column: str) -> float:
    """As in Table 6 without weight decay, as in Table 7 with it."""
    return table7(cell, column) if cell.weight_decay else table6(cell, column)


def figure2(cell: Cell, column: str) -> float:
    """With batch norm large batches train deeper nets, and make shallow ones less robust."""
    if cell.normalization.name != "batch" or cell.arch.name != "deep":
        return 0.95
    if column == "clean":
        limit = 30 + 16 * (cell.train.batch_size - 10) / 240
        return 0.97 if cell.arch.depth < limit else 0.1
    return 0.9 - 0.002 * cell.train.batch_size


def figure2_swapped(cell: Cell, column: str) -> float:
    """Large batches make nets more robust and less accurate, and the deeper ones are the more accurate."""
    if cell.normalization.name != "batch" or cell.arch.name != "deep":
        return 0.95
    if column == "clean":
        return 0.5 + 0.005 * cell.arch.depth - 0.001 * cell.train.batch_size
    return 0.3 + 0.002 * cell.train.batch_size


def appendix_j(cell: Cell, column: str) -> float:
    """With batch norm images that fool are nearer, and noise is led to a class sooner."""
    near = 1.0 if is_batch(cell) else 2.0 if cell.weight_decay else 1.5
    return {"clean": 0.98, "cw": 0.0, "cw.distance": 0.7 * near, "fooling": 20 * near}.get(column, 0.5)


def appendix_j_swapped(cell: Cell, column: str) -> float:
    """Batch norm makes nets more robust to both."""
    near = 2.0 if is_batch(cell) else 1.0
    return {"clean": 0.98, "cw": 0.0, "cw.distance": 0.7 * near, "fooling": 20 * near}.get(column, 0.5)


# What batch norm costs: by experiment and kind of perturbation; .1 where the paper has no figure.
COSTS = {
    "table2": {"clean": 0.0, "awgn": 0.06, "pgd_inf": 0.173, "pgd_2": 0.059},
    "table2_cifar10_1": {"clean": -0.02, "awgn": 0.06, "pgd_inf": 0.15, "pgd_2": 0.034},
    "table3": {"clean": 0.0},
    "table4": {"clean": 0.0042, "awgn": 0.173, "pgd_inf": 0.296, "pgd_2": 0.172},
    "svhn": {"clean": -0.0186, "awgn": 0.055, "pgd_inf": 0.17, "pgd_2": 0.20},
    "table2_matched": {"clean": 0.0},
    "table2_short": {"clean": -0.03},
    "strong_cifar10": {"clean": 0.0},
    "strong_resnet20": {"clean": 0.0},
    "resnet20": {"clean": 0.0},
}


def harms(costs: dict[str, float], sign: float = 1.0) -> Values:
    """Batch norm costs so much under each kind of perturbation, and 1.1 points of accuracy on training images."""

    def value(cell: Cell, column: str) -> float:
        name, _, where = column.partition("@")
        cost = 0.011 if where == "train" else costs.get(name.removesuffix("_box"), 0.1)
        without = {"train": 0.95}.get(where, 0.9 if name == "clean" else 0.5)
        return without - sign * cost if is_batch(cell) else without

    return value


def normalizations(sign: float) -> Values:
    """Every normalization costs 10 points."""
    return lambda cell, column: 0.5 if cell.normalization.name == "none" else 0.5 - sign * 0.1


def gains(sign: float) -> Values:
    """With batch norm 10 points are gained by the statistics of the batch."""

    def value(cell: Cell, column: str) -> float:
        return 0.5 + sign * 0.1 if is_batch(cell) and column.endswith("@batch") else 0.5

    return value


def appendix_a_cifar(cell: Cell, column: str) -> float:
    """Robustness grows with c by 41 points, clean accuracy falls."""
    return 0.9 - 0.05 * along_c(cell) if column == "clean" else 0.3 + 0.41 * along_c(cell)


def appendix_a_cifar_swapped(cell: Cell, column: str) -> float:
    """Robustness falls with c, clean accuracy grows."""
    return 0.8 + 0.05 * along_c(cell) if column == "clean" else 0.7 - 0.41 * along_c(cell)


AGREES: dict[str, Values] = {
    "figure1": figure1,
    "table1": table1,
    "appendix_a_mnist": appendix_a_mnist,
    "table13": table13,
    "table6": table6,
    "table7": table7,
    "figure2": figure2,
    "width84": table6_or_7,
    "appendix_j": appendix_j,
    "appendix_a_cifar": appendix_a_cifar,
    "normalizations": normalizations(1.0),
    "batch_statistics": gains(1.0),
    "adapted_statistics": gains(1.0),
    **{name: harms(costs) for name, costs in COSTS.items()},
}
CONTRADICTS: dict[str, Values] = {
    "figure1": figure1_swapped,
    "table1": table1_swapped,
    "appendix_a_mnist": appendix_a_mnist_swapped,
    "table13": table13_swapped,
    "table6": table6_swapped,
    "table7": table7_swapped,
    "figure2": figure2_swapped,
    "width84": table6_swapped,
    "appendix_j": appendix_j_swapped,
    "appendix_a_cifar": appendix_a_cifar_swapped,
    "normalizations": normalizations(-1.0),
    "batch_statistics": gains(-1.0),
    "adapted_statistics": gains(-1.0),
    **{name: harms(costs, -1.0) for name, costs in COSTS.items()},
}


def made_up(root: Path, chosen: Experiment, values: Values, *, seeds: int | None = None) -> Path:
    """A results folder of numbers with a small spread over the seeds, of `seeds` of them only."""

    wanted = {str(part) for column in chosen.table.columns for part in chosen.columns[column].parts}

    def number(cell: Cell, column: str) -> float | None:
        return values(cell, column) * (1 + wobble(cell)) if column in wanted else None

    absent = set() if seeds is None else set(chosen.seeds[seeds:])
    return fill(root, chosen, number, n=N, also=number, missing=lambda cell: cell.seed in absent)


def judged(results: Results) -> list[Comparison]:
    return [comparison for comparison in results.comparisons if comparison.verdict != "context"]


def verdicts(results: Results) -> Counter[str]:
    return Counter(comparison.verdict for comparison in judged(results))


# ---------------------------------------------------------------- the verdicts


ARRAYS = {"boundaries", "spectra", "examples"}  # figures of more than numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", JUDGED)
def test_records_that_agree_with_the_paper_hold(tmp_path: Path, name: str) -> None:
    chosen = catalog.experiment(name)
    results = aggregate(chosen, made_up(tmp_path, chosen, AGREES[name]))
    assert (results.failed, results.missing) == (0, 0)
    assert [(c.claim.source, c.perturbation, c.verdict) for c in judged(results) if c.verdict != "holds"] == []
    assert len(judged(results)) == JUDGED[name]
    # The figures that are asked for are drawn of full records.
    wanted = tuple(kind for kind in chosen.table.figures if kind not in ARRAYS)
    if wanted:
        table = chosen.table.model_copy(update={"figures": wanted})
        drawn = figures.draw(aggregate(chosen.model_copy(update={"table": table}), tmp_path))
        assert tuple(figure.name.replace("-", "_") for figure in drawn) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", JUDGED)
def test_records_that_contradict_the_paper_fail(tmp_path: Path, name: str) -> None:
    chosen = catalog.experiment(name)
    results = aggregate(chosen, made_up(tmp_path, chosen, CONTRADICTS[name]))
    assert [(c.claim.source, c.perturbation, c.verdict) for c in judged(results) if c.verdict != "fails"] == []
    assert len(judged(results)) == JUDGED[name]


APPENDIX_J = {
    # what batch norm does to (the distance, the steps), the verdicts of the two
    "nearer, but later": ((0.35, 90.0), ["holds", "fails"]),
    "farther, but sooner": ((2.8, 20.0), ["fails", "holds"]),
    "no difference": ((1.4, 60.0), ["undecided", "undecided"]),
    "nothing is fooled": ((None, 20.0), ["not run", "holds"]),
}


@pytest.mark.parametrize("case", APPENDIX_J)
def test_the_claims_of_appendix_j_are_judged_apart(tmp_path: Path, case: str) -> None:
    chosen = catalog.experiment("appendix_j")
    (distance, steps), expected = APPENDIX_J[case]

    def number(cell: Cell, column: str) -> float | None:
        ours = {"cw.distance": distance, "fooling": steps} if is_batch(cell) else {"cw.distance": 1.4, "fooling": 60.0}
        value = ours.get(column, 0.5)
        return None if value is None else value * (1 + wobble(cell, 0.02))

    results = aggregate(chosen, fill(tmp_path, chosen, number, n=N, also=number))
    assert [(c.perturbation, c.verdict) for c in judged(results)] == list(
        zip(["cw.distance", "fooling"], expected, strict=True)
    )


def test_fooling_images_that_no_network_gets_to_decide_nothing(tmp_path: Path) -> None:
    """All count with the 500 steps that were allowed, in every arm and seed."""
    chosen = catalog.experiment("appendix_j")

    def number(cell: Cell, column: str) -> float:
        return 500.0 if column == "fooling" else appendix_j(cell, column)

    results = aggregate(chosen, fill(tmp_path, chosen, number, n=N, also=number))
    assert [c.verdict for c in judged(results) if c.perturbation == "fooling"] == ["undecided"]


def check_two_seeds_decide_nothing(root: Path, name: str) -> None:
    chosen = catalog.experiment(name)
    results = aggregate(chosen, made_up(root / name, chosen, AGREES[name], seeds=2))
    held = [c.claim for c in judged(results) if c.verdict == "holds"]
    assert [isinstance(claim, EqualsClaim) and claim.exact for claim in held] == [True] * EXACT.get(name, 0)
    assert verdicts(results)["undecided"] == JUDGED[name] - EXACT.get(name, 0)
    assert len(judged(results)) == JUDGED[name]


def test_two_seeds_decide_nothing(tmp_path: Path) -> None:
    for name in ("table6", "table1", "appendix_j"):
        check_two_seeds_decide_nothing(tmp_path, name)


@pytest.mark.slow
def test_two_seeds_decide_nothing_in_any_experiment(tmp_path: Path) -> None:
    for name in JUDGED:
        check_two_seeds_decide_nothing(tmp_path, name)


def check_previews(root: Path, name: str, scale: str) -> None:
    chosen = catalog.experiment(name, scale)  # type: ignore[arg-type]
    results = aggregate(chosen, made_up(root / f"{name}-{scale}", chosen, AGREES[name]))
    assert set(verdicts(results)) <= {"preview", "not run"}
    assert {c.verdict for c in results.comparisons if c.ours is not None} <= {"preview", "context"}


def test_the_smallest_scale_has_previews_of_what_it_runs(tmp_path: Path) -> None:
    for name in JUDGED:
        check_previews(tmp_path, name, "smoke")


@pytest.mark.slow
def test_all_scales_have_previews_of_what_they_run(tmp_path: Path) -> None:
    for name in JUDGED:
        for scale in catalog.experiment(name).scales:
            check_previews(tmp_path, name, scale)


def test_verdicts_are_previews_below_full_scale(tmp_path: Path) -> None:
    chosen = catalog.experiment("table6")
    root = made_up(tmp_path, chosen, AGREES["table6"])
    for scale in ("smoke", "quick", "cpu"):
        results = aggregate(chosen.model_copy(update={"scale": scale}), root)
        assert verdicts(results) == {"preview": JUDGED["table6"]}
        assert {c.verdict_at_full_scale for c in judged(results)} == {"holds"}


def test_without_records_nothing_is_judged(tmp_path: Path) -> None:
    for name, n in JUDGED.items():
        assert verdicts(aggregate(catalog.experiment(name), tmp_path)) == {"not run": n}


# ---------------------------------------------------------------- smoke runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A data folder with small stand-ins for CIFAR-10, CIFAR-10.1 and SVHN, read by TFDS from the published formats."""
    sets = [h.coloured(n, 32, seed) for seed, n in enumerate((300, 20, 10))]
    files = {
        "cifar10": h.cifar10_files(*sets[:2]),
        "cifar10_1/v6": h.cifar10_1_files(*sets[1]),
        "svhn_cropped": h.svhn_files(*sets),
    }
    with h.prepared(tmp_path_factory.mktemp("data"), files):
        yield


@pytest.fixture(scope="module")
def smokes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder for all smoke runs: what two experiments share is trained once."""
    return tmp_path_factory.mktemp("smokes")


# One of each kind decides whether work lands: the MLP and the widths. All run with the slow tests.
QUICK: tuple[str, ...] = ()
BEYOND = (  # the others: in other files
    "normalizations", "batch_statistics", "adapted_statistics", "strong_cifar10", "table2_matched",
    "resnet20", "strong_resnet20", "posthoc_c", "posthoc_c_conv", "table2_short", "table2_short_settings",
    "transfer_mnist", "transfer_cifar10",
)  # fmt: skip


SMOKE_NETS = ("alexnet", "resnet18")
# Without batch norm there are no statistics to be away from; nothing of random nets transfers.
EMPTY = {
    "appendix_i": {("none", "statistics"), ("none", "statistics.scale")},
    "appendix_e2": {
        (arm, f"from_{source}.transfer_rate") for arm in ("alexnet", "resnet18") for source in ("alexnet", "resnet18")
    },
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in (*catalog.names(), *BEYOND)]
)
def test_a_smoke_run_trains_measures_and_is_reported(smokes: Path, name: str, request: pytest.FixtureRequest) -> None:
    chosen = catalog.experiment(name, "smoke")
    if chosen.base.get("data", {}).get("name") in ("cifar10", "svhn_cropped"):
        request.getfixturevalue("photos")
    runner.run(chosen, smokes)
    results = aggregate(chosen, smokes)
    assert (results.failed, results.missing) == (0, 0)
    assert results.cells == len(runner.tasks(chosen))
    runs = [run for block in results.blocks for run in block.runs]
    measured = {(name, plan.name): plan for plan in chosen.plans for name in with_eps_grid(plan.perturbations)}
    assert {tuple(run.records) for run in runs} == {tuple(measured)}
    assert {tuple(run.measurements) for run in runs} == {tuple((name, "") for name in chosen.measurements)}
    empty = {
        (arm, column)
        for block in results.blocks
        for arm, columns in block.arms.items()
        for column, value in columns.items()
        if value.missing or not value.by_seed
    }
    assert empty == EMPTY.get(name, set())
    assert set(verdicts(results)) <= {"preview", "not run"}
    kinds = [f"-{kind}" for kind in chosen.table.figures] or [""]
    pictures = [f"{name}-smoke{kind}.{form}" for kind in kinds for form in ("svg", "png")]
    written = pages.write(smokes, "md", only=chosen)
    assert [path.name for path in written] == [*pictures, f"{name}-smoke.md"]
    assert [path for path in written if path.stat().st_size < 1000] == []
