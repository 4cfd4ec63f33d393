"""Plans: parts of experiments one after another, of which none stops the others; and what is published of a part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_records import fill, wobble
from helpers_runs import SMALL, MessageLog

from bn_vuln import api, data, records
from bn_vuln.config import Cell
from bn_vuln.config.grid import expand
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.experiments import catalog, plans, runner
from bn_vuln.reporting import pages
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.runtime import backend

Run = Callable[..., tuple[int, str, str]]


def write(path: Path, content: Any) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """The file of an experiment whose two cells are trained in a second each."""
    content = {
        "name": "small", "title": "Small", "claim": "none", "source": "none", "base": SMALL,
        "grid": {"normalization": ["none", "batch"]}, "seeds": [0, 1], "evaluation": {"limit": 50},
        "perturbations": {"clean": {"kind": "clean"}}, "table": {"columns": {"clean": "clean"}},
    }  # fmt: skip
    return write(tmp_path / "small.yaml", content)


@pytest.fixture
def plan(tmp_path: Path, small: str) -> str:
    """A plan of three parts: data that are not there, one that will fail where the test says so, and one that runs."""
    parts = [
        {"experiment": "table2", "where": {"arch.name": "vgg8"}, "seeds": [0]},
        {"experiment": small, "where": {"normalization.name": "none"}, "seeds": [1]},
        {"experiment": small, "seeds": [0]},
    ]
    return write(tmp_path / "plan.yaml", {"title": "Tried", "parts": parts})


@pytest.fixture
def without_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    real = data.prepare

    def prepare(name: str) -> Any:
        if name == "cifar10":
            raise UsageError("cifar10: cannot be downloaded")
        return real(name)

    monkeypatch.setattr(data, "prepare", prepare)


# ---------------------------------------------------------------- the plan that ships


@pytest.mark.parametrize("name", catalog.names("plans"))
def test_every_part_of_a_shipped_plan_has_cells_of_its_own(name: str) -> None:
    seen: set[tuple[str, Cell]] = set()
    for part in catalog.plan(name).parts:
        experiment, todo = plans.resolve(part)
        own = {(part.experiment, task.cell) for task in todo}
        assert own
        assert not own & seen
        assert experiment.as_published
        assert len({task.cell.normalization.name for task in todo}) == 2  # pairs
        seen |= own


def test_with_jax_the_first_part_on_a_gpu_is_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "name", lambda: "jax")
    first, *_, last = catalog.plan("gpu").parts
    assert (first.experiment, last.experiment) == ("table2", "svhn")
    published = catalog.experiment("table2_vgg8")
    assert [task.cell for task in plans.resolve(first)[1]] == expand(published)
    assert [task.ids() for task in plans.resolve(first)[1]] == [task.ids() for task in runner.tasks(published)]


# ---------------------------------------------------------------- running


def test_a_part_without_data_is_skipped_and_one_that_fails_stops_no_other(
    bnvuln: Run, plan: str, without_cifar10: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, root = runner.run, tmp_path / "runs"

    def run(experiment: Any, root: Path, **options: Any) -> None:
        if options["where"].get("normalization.name"):
            raise RuntimeError("out of memory")
        real(experiment, root, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", run)
        code, out, err = bnvuln("reproduce", "--plan", plan, "--out", root, "--json", "--set", "train.epochs=1")
    assert code == 1
    found = json.loads(out)["parts"]
    assert [(one["state"], one["reason"]) for one in found] == [
        ("skipped", "cifar10: cannot be downloaded"), ("failed", "out of memory"), ("finished", ""),
    ]  # fmt: skip
    assert [one.get("results", {}).get("missing") for one in found] == [None, None, 2]
    assert "skipped: table2 at scale full, arch.name vgg8, seed 0: cifar10: cannot be downloaded\n" in err
    assert "1 skipped, 1 failed, 1 finished" in err
    assert len(records.run_folders(root)) == 2
    assert list((root / "report").glob("small-full-*.html"))
    code, out, err = bnvuln("reproduce", "--plan", plan, "--out", root, "--set", "train.epochs=1")
    assert code == 0  # the part that had failed is made, the finished one left as it is
    assert "1 skipped, 2 finished" in err
    assert out.count("Claim: none") == 2
    assert len(records.run_folders(root)) == 3


def test_each_part_is_there_before_the_next_one_begins(
    plan: str, without_cifar10: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(runner, "run", lambda experiment, root, *, where, **_: begun.append(where))
    log = MessageLog()
    outcomes = api.reproduce_plan(plan, root=tmp_path, progress=log)
    assert (next(outcomes).state, begun) == ("skipped", [])
    assert (next(outcomes).state, len(begun)) == ("finished", 1)
    assert [one.state for one in outcomes] == ["finished"]
    assert begun == [{"normalization.name": "none", "seed": [1]}, {"seed": [0]}]
    assert log.lines[0] == "part 1/3: table2 at scale full, arch.name vgg8, seed 0"


def test_an_override_that_does_not_fit_a_part_skips_it(
    plan: str, without_cifar10: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "run", lambda *_, **__: None)
    outcomes = list(api.reproduce_plan(plan, root=tmp_path, overrides=["perturbations.awgn.std=0.1"]))
    assert [one.state for one in outcomes] == ["skipped"] * 3
    assert "no perturbation 'awgn' here" in outcomes[1].reason


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"experiment": "table2", "where": {"arch.name": "vgg9"}}, "table2: no cell has arch.name vgg9"),
        ({"experiment": "tabel2"}, "did you mean 'table2'"),
        ({"experiment": "table2", "scale": "whole"}, "plan.yaml: parts.0.scale: expected 'smoke'"),
        ({"experiment": "table2", "seed": [0]}, "unknown key 'seed'; did you mean 'seeds'?"),
        ({"where": {}}, "plan.yaml: parts.0.experiment: missing"),
    ],
)
def test_a_wrong_part_is_refused_before_anything_is_run(
    bnvuln: Run, tmp_path: Path, small: str, part: Any, message: str
) -> None:
    path = write(tmp_path / "plan.yaml", {"title": "Wrong", "parts": [part, {"experiment": small}]})
    code, out, err = bnvuln("reproduce", "--plan", path, "--out", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_is_not_there_is_refused(bnvuln: Run, tmp_path: Path) -> None:
    assert "plan 'gpus' is not known (known: gpu); did you mean 'gpu'?" in bnvuln("reproduce", "--plan", "gpus")[2]
    for words in (["table2"], ["--seeds", "0"], ["--where", "a=b"], ["--scale", "smoke"]):
        code, _, err = bnvuln("reproduce", *words, "--plan", "gpu", "--out", tmp_path)
        option = words[0] if words[0].startswith("--") else "NAME"
        assert (code, "--plan" in err, option in err) == (2, True, True)


def test_a_dry_run_of_a_plan_lists_its_cells(bnvuln: Run, tmp_path: Path, plan: str) -> None:
    out = bnvuln("reproduce", "--plan", plan, "--dry-run", "--out", tmp_path / "runs")[1]
    heads = [line for line in out.splitlines() if not line.startswith("  ")]
    assert [head.rpartition(": ")[2] for head in heads] == ["2 cells", "1 cells", "2 cells"]
    printed = json.loads(bnvuln("reproduce", "--plan", plan, "--dry-run", "--json")[1])
    assert [len(part["cells"]) for part in printed["parts"]] == [2, 1, 2]
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- what is made of a part


def harm(cell: Cell, column: str) -> float:
    """Batch norm costs what the paper says of VGG8."""
    cost = {"awgn": 0.06, "pgd_inf": 0.173, "pgd_2": 0.059, "clean@train": 0.011, "clean": 0.0}.get(column, 0.1)
    return 0.9 - (cost if cell.normalization.name == "batch" else 0) + wobble(cell)


def verdicts(results: Results) -> dict[str, set[tuple[str, int]]]:
    found: dict[str, set[tuple[str, int]]] = {}
    for one in results.comparisons:
        found.setdefault(one.where["arch.name"], set()).add((one.verdict, one.ours.n if one.ours else 0))
    return found


def test_a_part_at_full_scale_gets_verdicts_and_the_other_rows_none(tmp_path: Path) -> None:
    experiment = catalog.experiment("table2")
    fill(tmp_path / "runs", experiment, harm, missing=lambda cell: cell.arch.name != "vgg8" or cell.seed > 2)
    for task in runner.tasks(experiment, {"arch.name": "vgg8", "seed": [0, 1, 2]}):
        assert task.finished(tmp_path / "runs")
    results = aggregate(experiment, tmp_path / "runs")
    assert verdicts(results) == {"vgg8": {("holds", 3)}, "wrn": {("not run", 0)}}
    assert results.missing == 14
    for form in ("html", "md", "csv", "tex"):
        assert pages.write(tmp_path / "runs", form, experiment)
    page = (tmp_path / "runs" / "report" / "table2-full.md").read_text()
    assert "10 claims: 7 hold, 3 not run" in page
    assert "20 trainings, 14 not run" in page


def test_two_seeds_of_a_part_decide_nothing(tmp_path: Path) -> None:
    experiment = catalog.experiment("table2")
    fill(tmp_path, experiment, harm, missing=lambda cell: cell.arch.name != "vgg8" or cell.seed > 1)
    assert verdicts(aggregate(experiment, tmp_path)) == {"vgg8": {("undecided", 2)}, "wrn": {("not run", 0)}}


def test_a_part_is_published_and_completed_later(tmp_path: Path) -> None:
    experiment, source, target = catalog.experiment("table2"), tmp_path / "runs", tmp_path / "packed"
    for seeds, published in ((3, 6), (5, 10)):
        fill(source, experiment, harm, missing=lambda cell: cell.arch.name != "vgg8" or cell.seed >= seeds)  # noqa: B023
        for task in runner.tasks(experiment, {"arch.name": "vgg8", "seed": list(range(seeds))}):
            (task.folder(source) / "config.yaml").write_text(yaml.safe_dump(api.to_plain(task.cell)))
        (done,) = api.publish("table2", target, source=source)
        assert (done.published, done.cells) == (published, 20)
        (stored,) = records.open_store(target).experiments()
        assert verdicts(aggregate(stored, target)) == {"vgg8": {("holds", seeds)}, "wrn": {("not run", 0)}}


def test_a_part_of_a_sweep_without_its_ends_has_no_verdict(tmp_path: Path) -> None:
    """The claim compares c = 10 with c = 1e-5, of which one is missing."""
    experiment = catalog.experiment("appendix_a_cifar")
    fill(tmp_path, experiment, harm, missing=lambda cell: getattr(cell.normalization, "c", 0) == 10)
    assert {one.verdict for one in aggregate(experiment, tmp_path).comparisons} == {"not run"}


def test_a_part_of_user_data_that_are_gone_is_refused(tmp_path: Path, small: str) -> None:
    content = {**yaml.safe_load(Path(small).read_text()), "base": {"data": str(tmp_path / "gone.npz")}}
    path = write(tmp_path / "plan.yaml", {"title": "t", "parts": [{"experiment": write(Path(small), content)}]})
    with pytest.raises((ConfigError, UsageError), match=r"gone\.npz"):
        list(api.reproduce_plan(path, root=tmp_path / "runs"))
