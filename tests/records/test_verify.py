"""`bnvuln verify`, and damage of every kind to new files of every kind: a number is the one from before, or damaged."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_findings import pair, write_case
from helpers_records import HARM, by_arm, fill, small, training, write_at, write_model

from bn_vuln import api, records
from bn_vuln.auditing import findings
from bn_vuln.auditing.pieces import Clock, Pieces
from bn_vuln.auditing.pieces import read as read_piece
from bn_vuln.config import digest, identity_of, to_yaml
from bn_vuln.config.grid import expand
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation import kept_parts
from bn_vuln.evaluation.kept_parts import KeptParts
from bn_vuln.experiments import runner
from bn_vuln.experiments.verification import Verification, verify
from bn_vuln.records import ExternalRecord, Store, digests, open_store
from bn_vuln.reporting import audit_page
from bn_vuln.runtime import lease
from bn_vuln.runtime.files import atomic_write
from bn_vuln.training import checkpoint
from bn_vuln.training.checkpoint import Checkpoint, TrainingState

EXPERIMENT = small(measurements={"angle": {"kind": "tilt"}}, seeds=[0])
EPOCH = "number,loss,train_accuracy,validation_accuracy\n1,0.1,0.99,0.97\n"
Bnvuln = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs`, which has every kind of file, as new ones are, and what is packed of it in `packed`."""
    top = tmp_path_factory.mktemp("whole")
    root = top / "runs"
    numbers = {(arm, "angle"): (1.5, 2.5) for arm in ("none", "batch")}
    fill(root, EXPERIMENT, by_arm(HARM), n=40, also=by_arm(numbers), arrays=lambda *_: {"angles": np.arange(4.0)})
    atomic_write(root / "experiments" / "small-full.yaml", records.to_yaml(EXPERIMENT))
    cells = expand(EXPERIMENT)
    for cell in cells:
        folder = root / digest(identity_of(cell))
        atomic_write(folder / "config.yaml", records.to_yaml(cell))
        atomic_write(folder / "history.csv", EPOCH)
        write_model(folder / "model.keras", folder.name)
        found = {"model_sha256": records.model_sha256(folder / "model.keras"), "history_sha256": digests.of_text(EPOCH)}
        record = training(folder.name).model_copy(update=found)
        atomic_write(folder / "training.json", records.to_json(record))
        name = "bim" if cell.normalization.name == "none" else "clean"
        plan, accuracy = EXPERIMENT.plans[0], HARM[cell.normalization.name, name][cell.seed]
        write_at(folder, plan, cell, name, accuracy, 40, arrays={"distances": np.arange(40.0)})
    for number, weights in enumerate(("w", "x")):
        identity = {"weights": weights}
        external = ExternalRecord(cell_id=digest(identity), source=f"net{number}.keras", identity=identity)
        records.write_external(root / external.cell_id, external)
    going_on = root / digest({"going": "on"})
    Checkpoint(TrainingState([]), [np.arange(6.0)], [np.arange(3)]).save(going_on, going_on.name)
    KeptParts(going_on, {"a": 1}).get(0, lambda: {"correct": np.arange(9)})
    audit = write_case(top / "audits" / "pair", pair())
    Pieces(audit, {"model": "m"}, Clock(None)).get("one", lambda: {"curve": [0.5, 0.25]})
    atomic_write(top / "small.yaml", to_yaml(EXPERIMENT))
    api.publish(str(top / "small.yaml"), top / "packed", source=root, models=0)
    (top / "small.yaml").unlink()
    return top


@pytest.fixture
def top(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "top")


def run(top: Path, number: int = 0) -> Path:
    return top / "runs" / digest(identity_of(expand(EXPERIMENT)[number]))


def set_aside(found: Verification) -> list[Path]:
    return [one.path for one in found.problems if not one.left_over]


def test_what_is_whole_has_no_problem(top: Path) -> None:
    before = files(top)
    for repair in (False, True):
        found = verify(top, repair=repair)
        assert (found.problems, found.unknown, found.busy, found.commands) == ([], [], [], [])
        assert found.files == len(before) - len(list(top.glob("**/*.html")))
    assert files(top) == before
    for one in (*(top / "runs").iterdir(), top / "packed", top / "audits", top / "audits" / "pair"):
        if one.name != "experiments":
            assert verify(one).is_whole


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_published_stores_are_whole() -> None:
    results = Path(__file__).parents[2] / "results"
    for name in ("paper", "beyond", "posthoc"):
        assert verify(results / name).problems == []


# ---------------------------------------------------------------- problems, one by one


def flip(path: Path, place: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def first(folder: Path, pattern: str) -> Path:
    return min(folder.glob(pattern))


def test_each_file_that_changed_is_named_set_aside_and_made_again(top: Path, bnvuln: Bnvuln) -> None:
    one, other = run(top), run(top, 1)
    changed = {
        first(one, "records/*.json"): "correct",
        first(other, "outcomes/*.npz"): "",
        first(other, "measurements/*.npz"): "",
        other / "history.csv": "",
    }
    for path in changed:
        if path.suffix == ".json":
            path.write_text(path.read_text().replace('"seconds": 1.0', '"seconds": 1.5'))  # which nothing else checks
        elif path.suffix == ".csv":
            path.write_text(path.read_text().replace(",0.1,", ",0.10,"))
        else:
            shutil.copy(first(one, f"{path.parent.name}/{path.stem}.npz"), path)
    digests.write_arrays(first(other, "measurements/*.npz"), {"angles": np.arange(4.0) + 1})
    code, out, err = bnvuln("verify", top / "runs")
    assert code == 1
    for path in changed:
        assert f"\n{path}: " in f"\n{out}", path
        assert path.exists()
    assert f"{len(changed)} problems" in out
    assert f"next: bnvuln reproduce small.yaml --out {top}/runs" in err
    code, out, err = bnvuln("verify", top / "runs", "--repair")
    assert code == 0
    for path in changed:
        assert not path.exists()
        assert path.with_name(f"{path.name}.damaged").exists()
    assert verify(top / "runs").problems == []
    assert [task.finished(top / "runs") for task in runner.tasks(EXPERIMENT)].count(False) == 2


def test_what_a_killed_process_left_is_removed(top: Path, bnvuln: Bnvuln) -> None:
    one = run(top)
    dead = {"host": "here", "machine": lease._machine(), "pid": 2**22 + 1, "started": 1}
    (one / lease.LOCK).write_text(json.dumps(dead))
    left = [one / "records" / ".abc.123.0123abcd.json", one / ".model.77.0123abcd.keras", one / lease.LOCK]
    old, new = top / "runs" / ".page.5.0123abcd.html", top / "runs" / ".page.6.0123abcd.html"
    for path in (*left[:2], old, new):
        path.write_text("half")
    os.utime(old, (0, 0))
    Checkpoint(TrainingState([]), [], []).save(one, one.name)  # of a run that is finished
    left += [one / checkpoint.NAME, old]
    assert sorted(p.path for p in verify(top / "runs").problems) == sorted(left)
    assert bnvuln("verify", top / "runs", "-q", "--repair")[0] == 0
    assert not any(path.exists() for path in left)
    assert new.exists()  # it may be written now
    assert verify(top / "runs").problems == []


def test_other_names_are_told_and_left_alone(top: Path, bnvuln: Bnvuln) -> None:
    others = [top / "runs" / "notes.txt", run(top) / "records" / "x.txt", run(top) / "mine", top / "packed" / "x.md"]
    for path in others:
        path.write_text("mine")
    code, out, _ = bnvuln("verify", top, "--repair", "--json")
    found = json.loads(out)
    assert (code, sorted(found["unknown"]), found["problems"]) == (0, sorted(map(str, others)), [])
    assert all(path.read_text() == "mine" for path in others)


def test_outcomes_without_a_record_and_records_without_outcomes(top: Path) -> None:
    record, outcomes = first(run(top), "records/*.json"), first(run(top, 1), "outcomes/*.npz")
    for path in (record, outcomes):
        path.unlink()
    alone = run(top) / "outcomes" / f"{record.stem}.npz"
    found = verify(top / "runs", repair=True)
    assert {one.path: one.reason for one in found.problems} == {
        alone: "arrays of no record",
        outcomes: "not there, but its record is",
    }
    assert verify(top / "runs").problems == []
    assert not (run(top, 1) / "records" / f"{outcomes.stem}.json").exists()


def test_swapped_files_are_found(top: Path) -> None:
    """Each is whole by itself: outcomes with the same counts, the model of another folder, another experiment."""
    one = run(top)
    path = first(one, "records/*.json")
    correct = records.read_correct(one, path.stem)
    record = records.read_record(path)
    records.write_record(one, record, correct[::-1])
    mirrored = (one / "outcomes" / f"{path.stem}.npz").read_bytes()
    records.write_record(one, record, correct)
    assert verify(top / "runs").problems == []
    (one / "outcomes" / f"{path.stem}.npz").write_bytes(mirrored)
    assert [path.parent.name for path in set_aside(verify(top / "runs"))] == ["outcomes"]
    models = sorted((top / "runs").glob("*/model.json"))
    shutil.copy(models[0], models[1])
    (problem,) = verify(models[1].parent).problems
    assert f"that of {models[0].parent.name}" in problem.reason
    experiments = top / "runs" / "experiments"
    shutil.copy(experiments / "small-full.yaml", experiments / "other-full.yaml")
    assert experiments / "other-full.yaml" in set_aside(verify(top / "runs"))


def test_a_packed_store_is_not_repaired(top: Path, bnvuln: Bnvuln) -> None:
    packed = top / "packed"
    lines = (packed / "records.jsonl").read_text().splitlines(keepends=True)
    (packed / "records.jsonl").write_text("".join(lines[:-1]))  # each line that is left is whole
    (packed / "models" / "more.keras").write_text("x")
    before = files(packed)
    code, out, _ = bnvuln("verify", packed, "--repair")
    assert code == 1
    assert f"{packed}/records.jsonl: " in out
    assert "SHA256SUMS does not name it; restore the file from where the store is from" in out
    assert files(packed) == before
    (packed / "SHA256SUMS").unlink()  # as of older stores
    assert "no number" in verify(packed).problems[0].reason


def test_sums_are_those_of_sha256sum(top: Path) -> None:
    assert os.system(f"cd {top}/packed && sha256sum --check --quiet SHA256SUMS") == 0


def test_a_folder_that_a_process_works_in_is_left_alone(top: Path) -> None:
    one = run(top)
    flip(first(one, "records/*.json"))
    with lease.locked(one):
        found = verify(top / "runs", repair=True)
    assert (found.busy, found.problems) == ([one], [])
    assert len(verify(top / "runs").problems) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_cannot_be_renamed_stays_a_problem(top: Path) -> None:
    experiments = top / "runs" / "experiments"
    flip(experiments / "small-full.yaml")
    experiments.chmod(0o500)
    (problem,) = verify(top / "runs", repair=True).problems
    experiments.chmod(0o700)
    assert "not repaired: Permission denied" in problem.text


def test_folders_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        verify(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no results folder, run, packed store or audit"):
        verify(tmp_path)
    (tmp_path / "x.txt").write_text("mine")
    with pytest.raises(UsageError, match="no results folder, run, packed store or audit"):
        verify(tmp_path)


def test_folders_and_pipes_in_place_of_files_are_problems(top: Path) -> None:
    for number, path in enumerate(sorted(path for path in run(top).rglob("*") if path.is_file())):
        content = path.read_bytes()
        path.unlink()
        path.mkdir() if number % 2 else os.mkfifo(path)
        assert path in set_aside(verify(run(top)))
        path.rmdir() if number % 2 else path.unlink()
        path.write_bytes(content)


def test_a_mended_model_is_compared_with_its_card(top: Path) -> None:
    model = top / "runs" / "mended.keras"
    write_model(model, "w")
    atomic_write(model.with_suffix(".md"), f"# Card\n\nThe file has sha256 {digests.of_file(model)}.\n")
    assert verify(top / "runs").is_whole
    write_model(model, "x")
    assert [one.reason for one in verify(top / "runs").problems] == ["not the model that its card is of"]


@pytest.mark.slow
def test_thousands_of_records_are_read_fast(top: Path) -> None:
    one = run(top)
    record = records.read_record(first(one, "records/*.json"))
    for number in range(10_000):
        perturbation = {**record.perturbation, "limit": number + 1000}
        found = record.model_copy(update={"perturbation": perturbation, "perturbation_id": digest(perturbation)})
        records.write_record(one, found, np.arange(40) < record.correct)
    begun = time.monotonic()
    assert verify(one).is_whole
    assert time.monotonic() - begun < 60


# ---------------------------------------------------------------- digests


def test_each_new_file_has_a_digest(top: Path) -> None:
    for path in (path for name in ("runs", "audits") for path in files(top / name)):
        if path.suffix == ".json":
            assert "sha256" in json.loads(path.read_text()), path
        elif path.suffix == ".npz":
            assert "sha256" in np.load(path), path
        elif path.suffix == ".yaml":
            assert path.read_text().startswith("# sha256: "), path
        else:
            assert path.suffix in (".csv", ".keras"), path  # which training.json has the digests of
    for path in (top / "packed").glob("*.jsonl"):
        assert all("sha256" in json.loads(line) for line in path.read_text().splitlines())


def test_publishing_keeps_older_lines_as_they_are(top: Path, tmp_path: Path) -> None:
    packed = top / "packed"
    for path in packed.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        older = [{key: row[key] for key in row if key not in ("sha256", "arrays_sha256")} for row in rows[:-1]]
        path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in (*older, rows[-1])))
    experiment = packed / "experiments" / "small-full.yaml"
    experiment.write_text(to_yaml(EXPERIMENT))
    before = files(packed)
    atomic_write(tmp_path / "small.yaml", to_yaml(EXPERIMENT))
    api.publish(str(tmp_path / "small.yaml"), packed, source=top / "runs")
    assert {path: content for path, content in files(packed).items() if path.name != "SHA256SUMS"} == {
        path: content for path, content in before.items() if path.name != "SHA256SUMS"
    }


def test_a_config_that_its_user_changed_says_how_to_keep_the_change(top: Path) -> None:
    path = run(top) / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 1", "epochs: 1  # one"))
    with pytest.raises(records.DamagedError, match="if you changed it, remove that line"):
        records.read_cell(run(top))
    path.write_text(path.read_text().partition("\n")[2])
    assert records.read_cell(run(top)) == expand(EXPERIMENT)[0]


# ---------------------------------------------------------------- damage at random


Numbers = dict[tuple[str, ...], Any]


def numbers(top: Path, parts: Iterable[str] = ("runs", "packed", "audits")) -> Numbers:
    """Everything that can be read of these folders, each as its reader sees it; what is damaged is not there."""
    found: Numbers = {}
    for name in {"runs", "packed"} & {*parts}:
        store = open_store(top / name)
        for cell_id in store.attempt(store.cells) or []:
            found |= {(name, *key): value for key, value in numbers_of(store, cell_id).items()}
        with contextlib.suppress(BnvulnError):
            found |= {(name, one.name): one for one in store.experiments()}
    for path in (top / "runs").glob("*/checkpoint.npz"):
        with contextlib.suppress(OSError, ValueError):
            found["runs", "checkpoint"] = str(checkpoint.parse(path.read_bytes()))
    for path in (top / "runs").glob("*/parts/*/*.npz"):
        found["runs", "part"] = str(kept_parts.read(path))
    for path in (top / "audits").glob("*/pieces/*/*.json"):
        found["audits", "piece"] = str(read_piece(path))
    with contextlib.suppress(BnvulnError):
        found["audits", "findings"] = findings.read(top / "audits" / "pair")
    for number, model in enumerate(pair().models):
        with contextlib.suppress(BnvulnError):
            path = top / "audits" / "pair" / f"examples_{number}.npz"
            found["audits", path.name] = str(findings.read_examples(path, model.id))
    return {key: value for key, value in found.items() if value not in (None, "None") and key[0] in parts}


def numbers_of(store: Store, cell_id: str) -> Numbers:
    found: Numbers = {}
    with contextlib.suppress(BnvulnError):
        found[cell_id, "cell"] = store.cell(cell_id)
    model = store.model(cell_id)
    if model is not None:
        with contextlib.suppress(ValueError):
            found[cell_id, "model"] = records.model_sha256(model)
    for name, read in (("training", store.training), ("history", store.history), ("external", store.external)):
        found[cell_id, name] = read(cell_id)
    for record in store.attempt(lambda: store.records(cell_id)) or []:
        key = (cell_id, record.perturbation_id)
        correct = store.correct(*key)
        found |= {key: record, (*key, "correct"): None if correct is None else correct.tolist()}
        found |= {(*key, name): array.tolist() for name, array in store.arrays(*key).items()}
    for measurement in store.attempt(lambda: store.measurements(cell_id)) or []:
        key = (cell_id, measurement.measurement_id)
        found |= {key: measurement}
        found |= {(*key, name): array.tolist() for name, array in store.measurement_arrays(*key).items()}
    return found


def use(top: Path) -> None:
    """Commands that read all; each may refuse in one line."""
    readers: list[Callable[[], object]] = [
        lambda: api.report(top / "runs", form="csv"),
        lambda: api.report(top / "packed", form="csv"),
        lambda: [task.finished(top / "runs") for task in runner.tasks(EXPERIMENT)],
        lambda: records.entries(open_store(top / "runs")),
        lambda: audit_page.html(findings.read(top / "audits" / "pair"), top / "audits" / "pair"),
    ]
    for read in readers:
        with contextlib.suppress(BnvulnError):
            read()


def damage(paths: list[Path], chance: random.Random) -> dict[Path, bytes]:
    """Damage one file, or exchange two of a kind; what they were."""
    path = chance.choice(paths)
    content = path.read_bytes()
    kind = chance.choice(("flip", "flip", "flip", "half", "nothing", "swap"))
    if kind == "swap":
        other = chance.choice([one for one in paths if one.suffix == path.suffix])
        before = {path: content, other: other.read_bytes()}
        path.write_bytes(before[other])
        other.write_bytes(content)
        return before
    changed = bytearray(content if kind == "flip" else content[: len(content) // 2 if kind == "half" else 0])
    for _ in range(chance.choice((1, 1, 2, 8)) if kind == "flip" else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(changed))
    return {path: content}


@pytest.mark.parametrize(
    "seeds", [range(100), *(pytest.param(range(n, n + 100), marks=pytest.mark.slow) for n in range(100, 500, 100))]
)
def test_a_number_is_the_one_from_before_or_damaged(top: Path, seeds: range) -> None:
    expected = numbers(top)
    paths = list(files(top))
    for seed in seeds:
        before = damage(paths, random.Random(seed))
        parts = {path.relative_to(top).parts[0] for path in before}
        found, problems = numbers(top, parts), [one for part in parts for one in verify(top / part).problems]
        for key, value in found.items():
            assert value == expected[key], (seed, *before, key)
        if found.keys() != {key for key in expected if key[0] in parts}:
            folders = {one.path.parent for one in problems}
            assert folders & {parent for path in before for parent in path.parents}, (seed, *before)
        if seed % 5 == 0:
            use(top)
        for path, content in before.items():
            path.write_bytes(content)
    assert numbers(top) == expected
