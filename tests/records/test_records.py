"""Records: identities that stay, files that are whole, locks that one process holds."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_records import small, training
from pydantic import BaseModel, ValidationError

from bn_vuln import records
from bn_vuln.config import (
    AWGN,
    Attack,
    Cell,
    Clean,
    Evaluation,
    Train,
    canonical_json,
    digest,
    identity_of,
    perturbation_identity,
    to_plain,
    validate,
)
from bn_vuln.errors import BnvulnError
from bn_vuln.experiments.runner import tasks
from bn_vuln.records import (
    Flag,
    Record,
    clear_run,
    is_stale_lock,
    lock,
    locked,
    read_correct,
    read_record,
    read_records,
    read_training,
    run_folders,
    to_json,
    write_record,
)
from bn_vuln.runtime.files import atomic_path, atomic_write

FULL_CELL = validate(
    Cell,
    {
        "data": {"width": 56, "limit": 100},
        "arch": {"name": "mlp", "hidden": [20, 10]},
        "normalization": "batch",
        "weight_decay": 0.01,
        "train": {"schedule": {"name": "step", "epochs": [3]}, "adversarial": {"eps": 0.1}, "augment": {}},
    },
    "cell",
)
BIM = Attack(attack="bim", eps=0.1, unit="standardized", box="none", steps=100, step_size=1e-3, keep="last")  # type: ignore[call-arg]
PERTURBATIONS = {"attack": BIM, "awgn": AWGN(std=1, unit="standardized", clip="none")}


def record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "cell_id": "c" * 12,
        "perturbation_id": "p" * 12,
        "cell": to_plain(Cell()),
        "perturbation": perturbation_identity(Evaluation(), "mnist", BIM),
        "n": 3,
        "correct": 1,
        "accuracy": 1 / 3,
        "flags": (Flag(check=18, name="steps", value=0.05, message="too few"),),
        "versions": {"bnvuln": "0.0"},
        "device": "CPU",
        "seconds": 0.1,
    }
    return Record(**{**fields, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


# ---------------------------------------------------------------- identities


def test_an_id_is_a_hash_of_the_canonical_json() -> None:
    text = json.dumps(to_plain(Cell()), sort_keys=True, separators=(",", ":"))
    assert digest(to_plain(Cell())) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_id_of_the_default_cell_stays() -> None:
    assert digest(identity_of(Cell())) == "4e5108929f37"


def test_later_fields_are_left_out_of_an_id_at_their_default() -> None:
    later = {"nesterov", "betas", "warmup", "label_smoothing", "adversarial", "augment"}
    assert set(to_plain(Train())) - set(identity_of(Train())) == later
    other = validate(Train, {"label_smoothing": 0.1}, "train")
    assert set(to_plain(other)) - set(identity_of(other)) == later - {"label_smoothing"}


def test_own_data_are_identified_by_their_content() -> None:
    here, there, changed = (
        identity_of(validate(Cell, {"data": {"name": name, "digest": content}}, "cell"))
        for name, content in (("a.npz", "1" * 12), ("/b/c.npz", "1" * 12), ("a.npz", "2" * 12))
    )
    assert here == there != changed
    assert here["data"]["name"] == f"npz:{'1' * 12}"
    assert Cell(data={"name": "folder:x", "digest": "3"}).data.canonical == "folder:3"  # type: ignore[arg-type]


def test_the_id_of_a_perturbation_stays() -> None:
    assert digest(perturbation_identity(Evaluation(), "mnist", BIM)) == "062b1144ca07"
    assert digest(perturbation_identity(Evaluation(limit=1000), "mnist", Clean())) == "998b4cdbf519"


def test_canonical_json_sorts_and_has_no_spaces() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": {"d": "é", "c": True}}) == (
        '{"a":{"c":true,"d":"\\u00e9"},"b":[1,2.5,null]}'
    )


def reordered(data: Any) -> Any:
    return {key: reordered(data[key]) for key in reversed(data)} if isinstance(data, dict) else data


def test_the_order_of_keys_does_not_matter() -> None:
    plain = identity_of(FULL_CELL)
    other = reordered(plain)
    assert list(other) != list(plain)
    assert digest(other) == digest(plain)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"train": {"epochs": 20}}),
        ({"weight_decay": 0}, {"weight_decay": "0/1"}),
        ({"normalization": "batch"}, {"normalization": {"name": "batch", "c": "1e-5"}}),
        ({"normalization": "l2", "weight_decay": 0.1}, {"normalization": "none", "weight_decay": "1/10"}),
        ({"data": "mnist"}, {"data": {"name": "mnist", "width": None}}),
    ],
)
def test_two_ways_to_write_a_cell_have_one_id(one: dict[str, Any], other: dict[str, Any]) -> None:
    ids = {digest(identity_of(validate(Cell, data, "cell"))) for data in (one, other)}
    assert len(ids) == 1


def leaves(model: BaseModel) -> Iterator[tuple[str, ...]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from ((name, *rest) for rest in leaves(value))
        else:
            yield (name,)


def different(value: Any) -> Any:
    if value is None:
        return 1
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    return (*value, 9) if isinstance(value, tuple) else value + 1


def with_other_leaf(model: BaseModel, path: tuple[str, ...]) -> BaseModel:
    name, *rest = path
    value = getattr(model, name)
    return model.model_copy(update={name: with_other_leaf(value, tuple(rest)) if rest else different(value)})


# Values outside their Literal are fine here: only the identity is looked at.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("path", list(leaves(FULL_CELL)), ids=".".join)
def test_every_field_of_a_cell_changes_its_id(path: tuple[str, ...]) -> None:
    assert digest(identity_of(with_other_leaf(FULL_CELL, path))) != digest(identity_of(FULL_CELL))


def test_the_fields_walked_are_all_fields() -> None:
    assert {path[0] for path in leaves(FULL_CELL)} == set(Cell.model_fields)
    assert {path[1] for path in leaves(FULL_CELL) if path[0] == "train"} == set(Train.model_fields)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(("kind", "field"), [(k, f) for k, p in PERTURBATIONS.items() for f in type(p).model_fields])
def test_every_field_of_a_perturbation_changes_its_id(kind: str, field: str) -> None:
    perturbation = PERTURBATIONS[kind]
    other = with_other_leaf(perturbation, (field,))
    ids = {digest(perturbation_identity(Evaluation(), "mnist", p)) for p in (perturbation, other)}
    assert len(ids) == 2


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("field", Evaluation.model_fields)
def test_every_field_of_the_evaluation_changes_the_id(field: str) -> None:
    other = with_other_leaf(Evaluation(), (field,))
    ids = {digest(perturbation_identity(e, "mnist", BIM)) for e in (Evaluation(), other)}
    assert len(ids) == 2


def test_the_data_set_trained_on_stands_in_for_none() -> None:
    assert perturbation_identity(Evaluation(), "mnist", BIM) == perturbation_identity(
        Evaluation(dataset="mnist"), "other", BIM
    )


@pytest.mark.parametrize("perturbation", [Clean(), *PERTURBATIONS.values()])
def test_no_field_of_a_perturbation_hides_one_of_the_evaluation(perturbation: BaseModel) -> None:
    found = perturbation_identity(Evaluation(), "mnist", perturbation)
    own = set(identity_of(perturbation))
    assert set(found) == {*Evaluation.model_fields, *own}
    assert len(found) == len(Evaluation.model_fields) + len(own)


def test_no_path_device_or_version_in_an_identity() -> None:
    text = canonical_json([identity_of(FULL_CELL), perturbation_identity(Evaluation(), "mnist", BIM)])
    words = ["/", "path", "folder", "device", "version", "jobs", socket.gethostname()]
    assert [word for word in words if word in text] == []


def test_the_results_folder_does_not_change_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks(small())[0]
    here = task.folder(Path("runs")).name
    monkeypatch.chdir(tmp_path)
    assert task.folder(tmp_path).name == here == digest(identity_of(task.cell))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": [number]})
    with pytest.raises(ValueError, match="JSON"):
        to_json(record(accuracy=number))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("n", [1, 3, 7, 8, 9, 1001])
def test_outcomes_come_back_bit_by_bit(tmp_path: Path, n: int) -> None:
    outcomes = np.random.default_rng(n).random(n) < 0.5
    write_record(tmp_path, record(n=n), outcomes)
    found = read_correct(tmp_path, "p" * 12)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, outcomes)


def test_records_come_back(tmp_path: Path) -> None:
    written = record(top5=0.9, target_rate=0.1)
    path = write_record(tmp_path, written, np.array([True, False, False]))
    assert path == records.record_path(tmp_path, "p" * 12)
    assert read_record(path) == written
    assert names(tmp_path) == ["outcomes", "records"]
    assert names(path.parent) == ["pppppppppppp.json"]


def test_a_record_is_plain_json(tmp_path: Path) -> None:
    path = write_record(tmp_path, record(), np.array([True, False, False]))
    data = json.loads(path.read_text())
    assert data["accuracy"] == 1 / 3
    assert data["schema_version"] == records.SCHEMA
    assert list(data) == sorted(data)


def test_all_records_of_a_folder_in_order(tmp_path: Path) -> None:
    for key in ("b", "a", "c"):
        write_record(tmp_path, record(perturbation_id=key), np.ones(3, bool))
    assert [r.perturbation_id for r in read_records(tmp_path)] == ["a", "b", "c"]
    assert read_records(tmp_path / "elsewhere") == []


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        record().accuracy = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cell_id": "x"}', to_json(record())[:-40], "null"])
def test_damaged_records_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "records" / "x.json"
    atomic_write(path, content)
    with pytest.raises(BnvulnError) as caught:
        read_records(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_records_with_unknown_fields_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**json.loads(to_json(record())), "extra": 1}))
    with pytest.raises(BnvulnError, match=r"x\.json.*extra"):
        read_record(path)


def test_records_of_another_schema_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(to_json(record()).replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(BnvulnError, match=r"x\.json"):
        read_record(path)


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_damaged_outcomes_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "outcomes" / "x.npz"
    if content is not None:
        atomic_write(path, content)
    with pytest.raises(BnvulnError, match=r"x\.npz"):
        read_correct(tmp_path, "x")


@pytest.mark.parametrize("failed", [False, True])
def test_trainings_come_back(tmp_path: Path, failed: bool) -> None:
    written = training("c" * 12, failed=failed)
    atomic_write(tmp_path / "training.json", to_json(written))
    assert read_training(tmp_path) == written


def test_no_training_yet(tmp_path: Path) -> None:
    assert read_training(tmp_path) is None


def test_damaged_trainings_are_named(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"state": "trained"}')
    with pytest.raises(BnvulnError, match=r"training\.json: not a readable"):
        read_training(tmp_path)


def half_write(path: Path, error: BaseException) -> None:
    with atomic_path(path) as aside:
        aside.write_text("half of the n")
        assert path.read_text() == "old"
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.json"
    atomic_write(path, "old")
    with pytest.raises(type(error)):
        half_write(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_failing_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    atomic_write(path, "old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_failing_first_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "new" / "file.json", "new")
    assert names(tmp_path / "new") == []


def test_a_record_appears_after_its_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(records.folder, "atomic_write", lambda path, content: order.append(path.suffix))
    write_record(tmp_path, record(), np.ones(3, bool))
    assert order == [".npz", ".json"]


@pytest.mark.parametrize("suffix", [".npz", ".keras", ".json"])
def test_what_is_written_aside_keeps_its_suffix_and_folder(tmp_path: Path, suffix: str) -> None:
    with atomic_path(tmp_path / f"file{suffix}") as aside:
        aside.write_bytes(b"content")
        assert (aside.parent, aside.suffix) == (tmp_path, suffix)
    assert names(tmp_path) == [f"file{suffix}"]


# ---------------------------------------------------------------- run folders


def test_run_folders_hold_a_config_or_records(tmp_path: Path) -> None:
    atomic_write(tmp_path / "b" / "config.yaml", "")
    (tmp_path / "a" / "records").mkdir(parents=True)
    (tmp_path / "experiments").mkdir()
    atomic_write(tmp_path / "c" / "lock.json", "{}")
    atomic_write(tmp_path / "file.txt", "")
    assert [folder.name for folder in run_folders(tmp_path)] == ["a", "b"]
    assert run_folders(tmp_path / "nowhere") == []


def test_clearing_a_run_keeps_the_lock_and_what_is_not_ours(tmp_path: Path) -> None:
    write_record(tmp_path, record(), np.ones(3, bool))
    for name in ("training.json", "model.keras", "history.csv", "config.yaml", "lock.json", "notes.txt"):
        atomic_write(tmp_path / name, "x")
    clear_run(tmp_path)
    assert [p.name for p in sorted(tmp_path.rglob("*")) if p.is_file()] == ["lock.json", "notes.txt"]
    clear_run(tmp_path)


# ---------------------------------------------------------------- locks

HOLD = """
import sys
from pathlib import Path
from bn_vuln.records import locked
with locked(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], bool]]:
    """Another process that locks `folder`, and whether it got it; it lets go at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline() == "True\n"
        finally:
            process.communicate("\n")


def got(folder: Path) -> bool:
    with locked(folder) as mine:
        return mine


def write_lock(folder: Path, pid: int, host: str | None = None) -> Path:
    owner = {"host": socket.gethostname() if host is None else host, "pid": pid, "time": 0.0}
    atomic_write(folder / "lock.json", json.dumps(owner))
    return folder / "lock.json"


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_a_file_for_as_long_as_it_is_held(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with locked(folder) as mine:
        assert mine
        assert json.loads((folder / "lock.json").read_text())["pid"] == os.getpid()
    assert names(folder) == []
    assert got(folder)


def fail_while_locked(folder: Path) -> None:
    with locked(folder):
        raise RuntimeError("training broke")


def test_a_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="training broke"):
        fail_while_locked(tmp_path)
    assert names(tmp_path) == []


def test_a_second_lock_of_this_process_fails(tmp_path: Path) -> None:
    with locked(tmp_path) as first:
        assert first
        assert not got(tmp_path)


def test_a_lock_keeps_other_processes_out(tmp_path: Path) -> None:
    with locked(tmp_path) as mine, other_process(tmp_path) as (_, theirs):
        assert mine
        assert not theirs
    assert names(tmp_path) == []


def test_a_lock_of_another_process_keeps_us_out_until_it_ends(tmp_path: Path) -> None:
    with other_process(tmp_path) as (_, theirs):
        assert theirs
        assert not got(tmp_path)
        assert not is_stale_lock(tmp_path)
        assert names(tmp_path) == ["lock.json"]
    assert got(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with other_process(tmp_path) as (process, theirs):
        assert theirs
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(tmp_path) == ["lock.json"]
        assert is_stale_lock(tmp_path)
        with locked(tmp_path) as mine:
            assert mine
            assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_a_dead_pid_of_another_host_says_nothing(tmp_path: Path, dead_pid: int) -> None:
    path = write_lock(tmp_path, dead_pid, "elsewhere")
    before = path.read_text()
    assert not is_stale_lock(tmp_path)
    assert not got(tmp_path)
    assert path.read_text() == before


def test_a_process_that_may_not_be_signalled_lives(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lock(tmp_path, dead_pid)

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not got(tmp_path)


def test_without_a_lock_nothing_is_stale(tmp_path: Path) -> None:
    assert not is_stale_lock(tmp_path)


@pytest.mark.parametrize(("age", "taken"), [(0, False), (3600, True)], ids=["fresh", "old"])
def test_a_lock_without_content_is_taken_over_when_old(tmp_path: Path, age: float, taken: bool) -> None:
    path = tmp_path / "lock.json"
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    assert got(tmp_path) is taken
    assert path.exists() is not taken


def test_a_stale_lock_is_taken_over_by_one_of_many(tmp_path: Path, dead_pid: int) -> None:
    path = write_lock(tmp_path, dead_pid)
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lock._take_over, [path.resolve()] * 8))
    lock._held.discard(path.resolve())
    assert sum(taken) == 1


def test_who_saw_a_stale_lock_looks_again_before_taking_it(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lock(tmp_path, dead_pid)
    locked = lock.fcntl.flock

    def overtaken(*arguments: Any) -> None:
        locked(*arguments)
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "time": time.time()}))

    monkeypatch.setattr(lock.fcntl, "flock", overtaken)
    assert not got(tmp_path)
    assert json.loads(path.read_text())["pid"] == os.getppid()
