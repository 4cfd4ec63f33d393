"""What lies in a folder is checked: wrong numbers, files of another run, damaged bytes. Each costs itself alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_records import HARM, by_arm, fill, small, training, write_model
from helpers_runs import MessageLog

from bn_vuln import api, records
from bn_vuln.config import Cell, digest, identity_of, perturbation_identity, read_yaml, to_yaml, validate
from bn_vuln.config.grid import expand
from bn_vuln.errors import BnvulnError, ConfigError
from bn_vuln.experiments import runner
from bn_vuln.records import DamagedError, ExternalRecord, FolderStore, open_store
from bn_vuln.reporting.aggregate import aggregate
from bn_vuln.runtime.files import atomic_write

EXPERIMENT = small(measurements={"angle": {"kind": "tilt"}}, seeds=[0])
NAMES = {
    digest(perturbation_identity(EXPERIMENT.evaluation, "mnist", perturbation)): name
    for name, perturbation in EXPERIMENT.perturbations.items()
}
Fields = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder as a run leaves it, with every kind of file, and `packed` beside it. Tests copy it."""
    root = tmp_path_factory.mktemp("whole") / "runs"
    numbers = {(arm, "angle"): (1.5, 2.5) for arm in ("none", "batch")}
    fill(root, EXPERIMENT, by_arm(HARM), n=40, also=by_arm(numbers), arrays=lambda *_: {"angles": np.arange(4.0)})
    for cell in expand(EXPERIMENT):
        folder = root / digest(identity_of(cell))
        atomic_write(folder / "config.yaml", to_yaml(cell))
        atomic_write(folder / "history.csv", "number,loss,train_accuracy,validation_accuracy\n1,0.1,0.99,0.97\n")
        write_model(folder / "model.keras", folder.name)
        record = training(folder.name).model_copy(update={"model_sha256": records.model_sha256(folder / "model.keras")})
        atomic_write(folder / "training.json", records.to_json(record))
    identity = {"weights": "w"}
    external = ExternalRecord(cell_id=digest(identity), source="net.keras", identity=identity)
    records.write_external(root / external.cell_id, external)
    atomic_write(root / "small.yaml", to_yaml(EXPERIMENT))
    api.publish(str(root / "small.yaml"), root.parent / "packed", source=root, models=0)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "runs")


def read_all(root: Path) -> list[str]:
    """Read everything in a results folder, where each accuracy must be right; what was said of damage."""
    store = open_store(root)
    for cell_id in store.cells():
        for read in (store.training, store.history, store.model, store.external):
            read(cell_id)
        for record in store.records(cell_id):
            name, arm = NAMES[record.perturbation_id], record.cell["normalization"]["name"]
            assert (record.n, record.accuracy) == (40, round(40 * HARM[arm, name][0]) / 40)
            store.correct(cell_id, record.perturbation_id)
            store.arrays(cell_id, record.perturbation_id)
        for measurement in store.measurements(cell_id):
            store.measurement_arrays(cell_id, measurement.measurement_id)
        if (root / cell_id / "config.yaml").exists() or not isinstance(store, FolderStore):
            try:
                store.cell(cell_id)
            except DamagedError as error:
                store.note(error.damaged)
    return [one.text for one in store.damaged]


def test_what_is_whole_is_read_without_a_word(root: Path) -> None:
    assert read_all(root) == read_all(root.parent / "runs") == []
    assert aggregate(EXPERIMENT, root).damaged == []


# ---------------------------------------------------------------- wrong numbers

WRONG: list[tuple[str, Fields, str]] = [
    ("records", {"accuracy": 2.0}, "accuracy: expected"),
    ("records", {"accuracy": 0.5}, "accuracy: expected"),
    ("records", {"accuracy": float("nan")}, "NaN is no number"),
    ("records", {"accuracy": float("inf")}, "Infinity is no number"),
    ("records", {"accuracy": -1.0, "correct": -40}, "correct: expected 0 to 40"),
    ("records", {"correct": 41, "accuracy": 41 / 40}, "correct: expected 0 to 40, received 41"),
    ("records", {"correct": 1, "accuracy": 1 / 40}, "but 1 of 40 in the record"),
    ("records", {"n": 0, "correct": 0, "accuracy": 0.0}, "n: expected at least 1"),
    ("records", {"n": 41, "correct": 0, "accuracy": 0.0}, "but 0 of 41 in the record"),
    ("records", {"top5": 1.5}, "top5: expected 0 to 1"),
    ("records", {"target_rate": -0.1}, "target_rate: expected 0 to 1"),
    ("records", {"loss": -0.5}, "loss: expected a finite number, at least 0"),
    ("records", {"mean_distance": -1.0}, "mean_distance"),
    ("records", {"median_distance": -1.0}, "median_distance"),
    ("records", {"robust_after": {"a": 3, "b": 4}}, "robust_after b: expected 0 to 3, received 4"),
    ("records", {"robust_after": {"a": 41}}, "robust_after a: expected 0 to 40"),
    ("records", {"source_correct": 41}, "source_correct: expected 0 to 40"),
    ("records", {"eligible": 41, "transferred": 0}, "eligible: expected 0 to 40"),
    ("records", {"eligible": 1, "transferred": 2}, "transferred: expected 0 to 1"),
    ("records", {"eligible": 40, "transferred": 40}, "transferred: expected 0 to"),
    ("records", {"seconds": -1}, "seconds"),
    ("records", {"flags": [{"check": 1, "name": "x", "value": None, "message": "x"}]}, "flags.0.value"),
    ("records", {"cell_id": "0" * 12}, "cell_id: expected"),
    ("records", {"perturbation_id": "0" * 12}, "perturbation_id: expected"),
    ("records", {"perturbation": {}}, "kind: missing"),
    ("records", {"cell": {"a": 1}}, "cell_id: expected"),
    ("records", {"cell": {"a": 1}, "cell_id": digest({"a": 1})}, "that of run"),
    ("records", {"device": "\ud800"}, "surrogates not allowed"),
    ("measurements", {"value": 181.0}, "value: expected at most 180"),
    ("measurements", {"value": -1.0}, "value: expected a finite number"),
    ("measurements", {"value": None}, "value: None over 40 examples"),
    ("measurements", {"details": {"scale": float("nan")}}, "NaN is no number"),
    ("measurements", {"measurement_id": "0" * 12}, "measurement_id: expected"),
    ("training", {"validation_accuracy": 1.01}, "validation_accuracy: expected 0 to 1"),
    ("training", {"best_epoch": 2}, "best_epoch: expected 1 to 1"),
    ("training", {"state": "done"}, "state: expected trained or failed"),
    ("training", {"cell_id": "0" * 12}, "that of run 000000000000"),
    ("training", {"model_sha256": "0" * 64}, "not the model that training.json is of"),
    ("training", {"loss": 0.2}, "loss 0.1, but 0.2 in its record"),
    ("training", {"epochs": 2}, "1 epochs, but 2"),
    ("training", {"dataset_info": {"name": "mnist"}}, "dataset_info: shape, classes"),
    ("model", {"identity": {"weights": "x"}}, "cell_id: expected"),
]  # fmt: skip


def json_file(root: Path, kind: str) -> Path:
    """A file of a kind in the first folder that has one."""
    return min(root.glob(f"*/{kind}.json" if kind in ("training", "model") else f"*/{kind}/*.json"))


def without_digests(content: bytes) -> Fields:
    """What a JSON file says, as older ones did, in which the numbers alone can tell that they are wrong."""
    return {key: value for key, value in json.loads(content).items() if key not in ("sha256", "arrays_sha256")}


@pytest.mark.parametrize(("kind", "changes", "reason"), WRONG)
def test_a_wrong_number_counts_as_missing_and_is_named(root: Path, kind: str, changes: Fields, reason: str) -> None:
    path = json_file(root, kind)
    path.write_text(json.dumps({**without_digests(path.read_bytes()), **changes}))
    (said,) = read_all(root)
    assert reason in said
    assert str(path.relative_to(root).parts[0]) in said
    assert "\n" not in said


def test_a_number_too_large_for_a_float_is_none(root: Path) -> None:
    path = json_file(root, "records")
    path.write_text(json.dumps(without_digests(path.read_bytes())).replace('"seconds": 1.0', '"seconds": 1e999'))
    assert "seconds: expected a finite number" in read_all(root)[0]


def test_a_key_twice_is_named(root: Path) -> None:
    path = json_file(root, "records")
    path.write_text(path.read_text().replace('"n": 40', '"n": 40, "n": 40'))
    assert "the key 'n' twice" in read_all(root)[0]
    config = path.parents[1] / "config.yaml"
    config.write_text(config.read_text() + "seed: 0\n")
    with pytest.raises(DamagedError, match=r"config\.yaml: not valid YAML: line \d+: the key 'seed' is there twice"):
        records.read_cell(path.parents[1])


PACKED: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("records.jsonl", lambda text: text + text.splitlines(keepends=True)[0], "2 lines of"),
    ("cells.jsonl", lambda text: text + text.splitlines(keepends=True)[0], "2 lines of"),
    ("measurements.jsonl", lambda text: text.replace(b'"value": 1.5', b'"value": 200'), "at most 180"),
    ("records.jsonl", lambda text: text.replace(b'"n": 40', b'"n": 41', 1), "accuracy: expected"),
    ("records.jsonl", lambda text: text.replace(b'"n": 40', b'"n": "x"', 1), "n: expected a valid integer"),
    ("records.jsonl", lambda text: text.replace(b'"cell_id": "', b'"cell_id": 1, "x": "', 1), "no object with"),
    ("records.jsonl", lambda text: text[:-20], "truncated"),
    ("perturbations.json", lambda text: text.replace(b'"bim"', b'"pgd"'), "the hash of its fields"),
    ("cells.jsonl", lambda text: text.replace(b'"seed": 0', b'"seed": 7', 1), "the hash of its identity"),
    ("cells.jsonl", lambda text: text.replace(b'"model": "models/', b'"model": "../models/', 1), "is not in"),
    ("outcomes.npz", lambda _: b"", "not readable"),
    ("history.csv.gz", lambda text: text[:-9], "not readable"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "reason"), PACKED)
def test_packed_lines_are_checked_too(
    whole: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    packed = shutil.copytree(whole.parent / "packed", tmp_path / "packed")
    assert read_all(packed) == []
    for path in packed.glob("*.jsonl"):
        lines = [json.dumps(without_digests(line)) + "\n" for line in path.read_bytes().splitlines()]
        path.write_text("".join(lines))
    assert read_all(packed) == []
    before = (packed / name).read_bytes()
    (packed / name).write_bytes(change(before))
    assert (packed / name).read_bytes() != before
    said = read_all(packed)
    assert any(reason in line and name in line for line in said)
    log = MessageLog()
    assert api.report(packed, form="csv", progress=log)  # the rest is rendered
    with pytest.raises(BnvulnError):  # what is published already must be whole
        api.publish(str(whole / "small.yaml"), packed, source=whole)
    api.unpack(packed, tmp_path / "again", progress=log)
    assert read_all(tmp_path / "again") == []


# ---------------------------------------------------------------- a run folder is one thing


def test_what_is_of_another_run_is_refused_by_name(root: Path) -> None:
    one, other = (root / digest(identity_of(cell)) for cell in expand(EXPERIMENT)[:2])
    assert records.open_trained(one)[1].cell_id == one.name
    cases = {
        "config.yaml": f"that of run {other.name}, but the folder is named as run {one.name}; if the folder",
        "training.json": f"that of run {other.name}, but this folder is of run {one.name}",
        "model.keras": "not the model that training.json is of",
    }
    for name, reason in cases.items():
        kept = (one / name).read_bytes()
        shutil.copy(other / name, one / name)
        with pytest.raises(BnvulnError) as caught:
            records.open_trained(one)
        assert f"{one / name}: {reason}" in str(caught.value)
        (one / name).write_bytes(kept)
    assert records.open_trained(one)
    record = min((other / "records").iterdir())
    shutil.copy(record, one / "records")
    store = FolderStore(root)
    assert record.stem not in [found.perturbation_id for found in store.records(one.name)]
    assert f"that of run {other.name}" in store.damaged[0].text


def test_a_run_may_have_any_name_but_that_of_another_run(root: Path) -> None:
    one, other = (root / digest(identity_of(cell)) for cell in expand(EXPERIMENT)[:2])
    renamed = one.rename(root / "my run")
    assert records.open_trained(renamed)[1].cell_id == one.name
    assert len(FolderStore(root).records("my run")) == 2
    shutil.copy(min((other / "records").iterdir()), renamed / "records")
    store = FolderStore(root)
    assert len(store.records("my run")) == 1
    assert f"that of run {other.name}, but this folder is of run {one.name}" in store.damaged[0].text
    copied = shutil.copytree(renamed, root / "0123456789ab")
    with pytest.raises(DamagedError, match=f"name it {one.name} "):
        records.read_cell(copied)


def test_older_runs_without_a_hash_of_their_model_are_read(root: Path) -> None:
    folder = root / digest(identity_of(expand(EXPERIMENT)[0]))
    atomic_write(folder / "training.json", records.to_json(training(folder.name)))
    write_model(folder / "model.keras", "others")
    assert records.open_trained(folder)[1].model_sha256 is None
    (folder / "model.keras").write_bytes(b"PK")
    with pytest.raises(DamagedError, match=r"model\.keras: no readable model"):
        records.open_trained(folder)


# ---------------------------------------------------------------- a damaged file costs itself


def test_commands_go_on_and_name_what_they_left_out(root: Path, bnvuln: Callable[..., tuple[int, str, str]]) -> None:
    runs = [root / digest(identity_of(cell)) for cell in expand(EXPERIMENT)[:2]]
    damaged = next(runs[0] / "records" / f"{own}.json" for own, name in NAMES.items() if name == "bim")
    damaged.write_text(damaged.read_text().replace('"correct": ', '"correct": 1'))
    code, out, err = bnvuln("report", root, "--format", "csv")
    assert (code, out) == (0, f"{root}/report/small-full.csv\n")
    assert f"damaged, counted as missing: {damaged}: not a readable record" in err
    assert "measure it again: bnvuln reproduce NAME" in err
    table = (root / "report" / "small-full.csv").read_text()
    assert table.count("missing") == 1
    code, out, err = bnvuln("compare", *runs)
    assert (code, str(damaged) in err, out.count("clean")) == (0, True, 1)
    code, out, _ = bnvuln("report", root, "--json", "--format", "md")
    (found,) = json.loads(out)["experiments"]
    assert [one["path"] for one in found["damaged"]] == [str(damaged)]
    assert str(damaged) in (root / "report" / "small-full.md").read_text()
    code, out, err = bnvuln("publish", root / "small.yaml", "--from", root, "--to", root.parent / "packed")
    assert (code, "published 1 of 2 cells" in out, str(damaged) in err) == (0, True, True)


def test_unpacking_replaces_what_is_damaged(whole: Path, root: Path) -> None:
    for path in (json_file(root, "records"), json_file(root, "training")):
        path.write_text("{")
    folder = root / FolderStore(root).cells()[0]
    for path in (folder / "config.yaml", max(folder.glob("measurements/*.npz"))):
        path.write_bytes(b"\xff")
    api.unpack(whole.parent / "packed", root)
    assert read_all(root) == []


# ---------------------------------------------------------------- bytes at random


def archive(members: list[tuple[str, bytes]]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return content.getvalue()


def npy(shape: str, dtype: str = "|u1") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def pickled() -> bytes:
    content = io.BytesIO()
    np.savez(content, correct=np.array([{}], object), n=np.array(1))
    return content.getvalue()


HOSTILE = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\x00" * 100,
    b"PK\x03\x04",
    b"a: &a [*a]", b"? {a: 1}\n: 1", b"!!bool x: 1", b"- " * 100_000, b"a: 2001-99-99", b"&a a: *a",
    "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}' if i else 'x'] * 10)}]\n" for i in range(9)).encode(),
    archive([("correct.npy", npy("(10**15,)")), ("n.npy", npy("()", "<i8") + bytes(8))]),
    archive([("correct.npy", npy("(1000000000000000,)")), ("n.npy", npy("()", "<i8") + bytes(8))]),
    archive([("correct.npy", npy("(-1,)")), ("n.npy", npy("(2,)", "<f8") + bytes(16))]),
    archive([("correct.npy", npy("(5,)", "<O8")), ("n.npy", npy("()", "<i8") + bytes(8))]),
    archive([("correct", b"text"), ("n", b"5")]), archive([]), pickled(), archive([("a.npy", npy("(" * 3000))]),
    archive([("model.weights.h5", b""), ("config.json", b"{}")]),
    archive([("correct.npy", npy("(80000000,)") + bytes(80_000_000))]),
]  # fmt: skip


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(5)
    if kind == 0 or not content:
        return chance.choice(HOSTILE)
    if kind == 1:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 4))):
        place = chance.randrange(len(changed))
        changed[place] = chance.randrange(256) if kind == 2 else changed[place] ^ (1 << chance.randrange(8))
    return bytes(changed)


def use_all(root: Path, target: Path) -> None:
    """Every reader of a command, each of which may refuse in one line, but not otherwise."""
    folders = sorted(path for path in root.iterdir() if (path / "records").is_dir())
    readers: list[Callable[[], object]] = [
        lambda: read_all(root),
        lambda: api.report(root, form="csv"),
        lambda: [task.finished(root) for task in runner.tasks(EXPERIMENT)],
        lambda: [task.damaged(root) for task in runner.tasks(EXPERIMENT)],
        lambda: api.compare(*folders[:2]) if folders else None,
        lambda: [records.open_trained(folder) for folder in folders],
        lambda: api.unpack(root, target) if not folders else None,
    ]
    for read in readers:
        with contextlib.suppress(BnvulnError):
            read()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["runs", "packed"])
def test_damaged_bytes_end_in_one_line(whole: Path, tmp_path: Path, kind: str, seed: int) -> None:
    root = shutil.copytree(whole.parent / kind, tmp_path / kind)
    kept = root / FolderStore(root).cells()[0] if kind == "runs" else root
    chance = random.Random(seed)
    files = sorted(path for path in kept.rglob("*") if path.is_file())
    for number in range(12):
        path = chance.choice(files)
        content = path.read_bytes()
        path.write_bytes(damaged_bytes(content, chance))
        use_all(root, tmp_path / f"unpacked {number}")
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["runs", "packed"])
def test_folders_and_pipes_in_place_of_files_end_in_one_line(whole: Path, tmp_path: Path, kind: str) -> None:
    root = shutil.copytree(whole.parent / kind, tmp_path / kind)
    kept = root / FolderStore(root).cells()[0] if kind == "runs" else root
    for number, path in enumerate(sorted(path for path in kept.rglob("*") if path.is_file())):
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        use_all(root, tmp_path / f"unpacked {number}")
        path.rmdir()
        if path.suffix != ".yaml":
            os.mkfifo(path)
            use_all(root, tmp_path / f"unpacked again {number}")
            path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize("content", HOSTILE)
def test_hostile_checkpoints_are_not_used(tmp_path: Path, content: bytes) -> None:
    from bn_vuln.training import checkpoint

    (tmp_path / checkpoint.NAME).write_bytes(content)
    nothing: Any = SimpleNamespace(variables=[], weights=[], get_weights=list)
    assert "it cannot be read (" in str(checkpoint.restore(checkpoint.read(tmp_path), "id", nothing, nothing))


@pytest.mark.parametrize("content", HOSTILE)
def test_hostile_configs_end_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        validate(Cell, read_yaml(tmp_path / "x.yaml"), "x.yaml")
    assert "x.yaml" in str(caught.value)
