"""Ids: the same for the same content, another one for every field, and those of published results for ever."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_records import small
from pydantic import BaseModel

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
from bn_vuln.experiments.runner import tasks

FULL_CELL = validate(
    Cell,
    {
        "data": {"width": 56, "limit": 100},
        "arch": {"name": "mlp", "hidden": [20, 10]},
        "normalization": "batch",
        "weight_decay": 0.01,
        "train": {"schedule": {"name": "step", "epochs": [3]}, "adversarial": {"eps": 0.1}, "augment": {}},
        "mend": {"relative_c": 0.1, "finetune": {"adversarial": {"eps": 0.1}}},
    },
    "cell",
)
BIM = Attack(attack="bim", eps=0.1, unit="standardized", box="none", steps=100, step_size=1e-3, keep="last")  # type: ignore[call-arg]
NOISE = AWGN(std=1, unit="standardized", clip="none")


def id_of(model: BaseModel) -> str:
    return digest(identity_of(model))


def test_an_id_is_a_hash_of_the_canonical_json() -> None:
    text = json.dumps(to_plain(Cell()), sort_keys=True, separators=(",", ":"))
    assert digest(to_plain(Cell())) == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert canonical_json({"b": [1, 2.5, None], "a": {"d": "é", "c": True}}) == (
        '{"a":{"c":true,"d":"\\u00e9"},"b":[1,2.5,null]}'
    )
    for number in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": [number]})


def test_known_ids_stay() -> None:
    """Those of all published results are in tests/records/test_packed.py."""
    assert id_of(Cell()) == "4e5108929f37"
    assert digest(perturbation_identity(Evaluation(), "mnist", BIM)) == "062b1144ca07"
    assert digest(perturbation_identity(Evaluation(limit=1000), "mnist", Clean())) == "998b4cdbf519"


def test_later_fields_are_left_out_of_an_id_at_their_default() -> None:
    later = {"nesterov", "betas", "warmup", "label_smoothing", "adversarial", "augment"}
    assert set(to_plain(Train())) - set(identity_of(Train())) == later
    other = validate(Train, {"label_smoothing": 0.1}, "train")
    assert set(to_plain(other)) - set(identity_of(other)) == later - {"label_smoothing"}


def test_a_cell_without_a_change_has_the_id_of_its_base() -> None:
    mended = Cell(normalization={"name": "batch"}, mend={"reestimate": True})  # type: ignore[arg-type]
    plain = Cell(normalization={"name": "batch"})  # type: ignore[arg-type]
    assert "mend" in identity_of(mended)
    assert mended.base == plain
    assert id_of(mended.base) == id_of(plain) == id_of(plain.base) != id_of(mended)
    assert "mend" not in identity_of(plain)


def test_user_data_are_identified_by_their_content() -> None:
    here, there, changed = (
        identity_of(validate(Cell, {"data": {"name": name, "digest": content}}, "cell"))
        for name, content in (("a.npz", "1" * 12), ("/b/c.npz", "1" * 12), ("a.npz", "2" * 12))
    )
    assert here == there != changed
    assert here["data"]["name"] == f"npz:{'1' * 12}"
    assert Cell(data={"name": "folder:x", "digest": "3"}).data.canonical == "folder:3"  # type: ignore[arg-type]


def reordered(data: Any) -> Any:
    return {key: reordered(data[key]) for key in reversed(data)} if isinstance(data, dict) else data


def test_the_order_of_keys_and_the_way_of_writing_do_not_matter() -> None:
    plain = identity_of(FULL_CELL)
    assert list(reordered(plain)) != list(plain)
    assert digest(reordered(plain)) == digest(plain)
    for one, other in (
        ({}, {"train": {"epochs": 20}}),
        ({"weight_decay": 0}, {"weight_decay": "0/1"}),
        ({"normalization": "batch"}, {"normalization": {"name": "batch", "c": "1e-5"}}),
        ({"normalization": "l2", "weight_decay": 0.1}, {"normalization": "none", "weight_decay": "1/10"}),
        ({"data": "mnist"}, {"data": {"name": "mnist", "width": None}}),
    ):
        assert id_of(validate(Cell, one, "cell")) == id_of(validate(Cell, other, "cell")), other


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
def test_every_field_changes_the_id() -> None:
    paths = list(leaves(FULL_CELL))
    assert {path[0] for path in paths} == set(Cell.model_fields)
    assert {path[1] for path in paths if path[0] == "train"} == set(Train.model_fields)
    ids = [id_of(FULL_CELL), *(id_of(with_other_leaf(FULL_CELL, path)) for path in paths)]
    assert len(set(ids)) == len(paths) + 1
    for perturbation in (BIM, NOISE):
        others = [with_other_leaf(perturbation, (field,)) for field in type(perturbation).model_fields]
        ids = [digest(perturbation_identity(Evaluation(), "mnist", one)) for one in (perturbation, *others)]
        assert len(set(ids)) == len(others) + 1
    evaluations = [Evaluation(), *(with_other_leaf(Evaluation(), (field,)) for field in Evaluation.model_fields)]
    assert len({digest(perturbation_identity(one, "mnist", BIM)) for one in evaluations}) == len(evaluations)


def test_the_data_set_trained_on_stands_in_for_none() -> None:
    assert perturbation_identity(Evaluation(), "mnist", BIM) == perturbation_identity(
        Evaluation(dataset="mnist"), "other", BIM
    )


@pytest.mark.parametrize("perturbation", [Clean(), BIM, NOISE])
def test_no_field_of_a_perturbation_hides_one_of_the_evaluation(perturbation: BaseModel) -> None:
    found, own = perturbation_identity(Evaluation(), "mnist", perturbation), set(identity_of(perturbation))
    assert set(found) == {*Evaluation.model_fields, *own}
    assert len(found) == len(Evaluation.model_fields) + len(own)


def test_no_path_device_or_version_in_an_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = canonical_json([identity_of(FULL_CELL), perturbation_identity(Evaluation(), "mnist", BIM)])
    words = ["/", "path", "folder", "device", "version", "jobs", socket.gethostname()]
    assert [word for word in words if word in text] == []
    before = id_of(FULL_CELL), id_of(BIM)
    monkeypatch.setattr("bn_vuln.version.__version__", "99")
    assert (id_of(FULL_CELL), id_of(BIM)) == before
    task = tasks(small())[0]
    here = task.folder(Path("runs")).name
    monkeypatch.chdir(tmp_path)
    assert task.folder(tmp_path).name == here == id_of(task.cell)
