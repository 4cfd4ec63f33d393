"""Schema of the records: one measured number each, with its identity. Accuracies are fractions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

SCHEMA: Literal[1] = 1


class _Frozen(BaseModel):
    """A part of a file: immutable, and without fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# Fields that were renamed since records of them were published: the name in those records -> the field.
RENAMED = {"looked_at": "n_evaluations", "standing": "robust_after", "facts": "dataset_info"}


class _Versioned(_Frozen):
    """The content of a file."""

    schema_version: Literal[1] = SCHEMA

    @model_validator(mode="before")
    @classmethod
    def _with_present_names(cls, data: Any) -> Any:
        return {RENAMED.get(key, key): value for key, value in data.items()} if isinstance(data, Mapping) else data


class Flag(_Frozen):
    """Why a number may lie. `check` is its number in docs/method/checks.md; `value` is what tripped it."""

    check: int
    name: str
    value: float
    message: str

    @property
    def text(self) -> str:
        """`check 12: rounded to 8 bits ...`"""
        return f"check {self.check}: {self.message}"


class Record(_Versioned):
    """One measured accuracy with its identity.

    `cell` is what trained the model, as its id hashes it (or {"weights": sha256} for a model that is not ours),
    `perturbation` is {dataset, split, limit, kind, every field of the attack or noise, bn_statistics}. `n` examples, of
    which `correct` are classified correctly; `accuracy`, `top5` (None below six classes) and `target_rate` (examples
    classified as the target of a targeted attack) are fractions; `loss` is the mean cross-entropy in nats (None where
    it is not finite, or before it was recorded); `seconds` is wall time. `bn_folded` BN layers were
    folded away in the copy whose gradients an attack climbed, `bn_kept` were not. Attacks that count any iterate say at
    how many points the classifier was evaluated, `n_evaluations` (mean over the examples), and how many
    examples were still correct, `robust_after` each attack of an ensemble. Minimum-norm attacks have the
    `mean_distance` and the `median_distance` of the examples that were correct when clean and adversarial then, in the
    unit of the perturbation. Corruptions have
    a `corruption_source`: whether the images were `made` or those of the published `archive`. Where BN has the
    statistics of the batch, that is `bn_batch_size` examples, in the fixed random order that limits take them in.
    """

    cell_id: str
    perturbation_id: str
    cell: dict[str, Any]
    perturbation: dict[str, Any]
    n: int
    correct: int
    accuracy: float
    top5: float | None = None
    target_rate: float | None = None
    loss: float | None = None
    flags: tuple[Flag, ...] = ()
    versions: dict[str, str]
    device: str
    seconds: float
    replicas: int = 1
    bn_folded: int = 0
    bn_kept: int = 0
    n_evaluations: float | None = None
    robust_after: dict[str, int] = {}
    mean_distance: float | None = None
    median_distance: float | None = None
    corruption_source: Literal["made", "archive"] | None = None
    bn_batch_size: int | None = None

    @property
    def kind(self) -> str:
        return str(self.perturbation["kind"])


class MeasurementRecord(_Versioned):
    """One number measured of a model besides accuracy: `value` in `unit` (deg, steps, std, or % for fractions), over
    `n` examples, with its identity. None, over none, where the model has no such number, as without BN the distance of
    its statistics. `details` are further numbers of it; arrays lie beside the record as .npz."""

    cell_id: str
    measurement_id: str
    cell: dict[str, Any]
    measurement: dict[str, Any]
    value: float | None
    unit: str
    n: int
    details: dict[str, float] = {}
    versions: dict[str, str]
    device: str
    seconds: float


class TransferRecord(_Versioned):
    """How one model, the target, does on adversarial examples of a model, the source, with its identity.

    `source` and `target` are the models' cells and `perturbation` the attack on the source, as in `Record`. Of `n`
    examples the target classifies `clean_correct` correctly when clean and `correct` after the attack on the source;
    `fooled` of the former are misclassified then. `transferred` of the `eligible` ones, which both models classify
    correctly when clean and which fool the source, fool the target: `transfer_rate` is their share, None where there
    are none. `flags` are those of the attack on the source, `target_flags` those of the target. `seconds` is wall time,
    that of the attack included; versions, device and BN layers are as in `Record`.
    """

    transfer_id: str
    source_id: str
    target_id: str
    source: dict[str, Any]
    target: dict[str, Any]
    perturbation: dict[str, Any]
    n: int
    clean_correct: int
    clean_accuracy: float
    correct: int
    accuracy: float
    fooled: int
    eligible: int
    transferred: int
    transfer_rate: float | None
    flags: tuple[Flag, ...] = ()
    target_flags: tuple[Flag, ...] = ()
    versions: dict[str, str]
    device: str
    seconds: float
    replicas: int = 1
    bn_folded: int = 0
    bn_kept: int = 0


class TrainingRecord(_Versioned):
    """How a training ended. `state` is `trained`, or `failed` for a net that did not learn (`reason` says how);
    the accuracies are those of the kept epoch (`best_epoch`, from 1), None where there is none. `seconds` is the time
    spent in epochs, over all `resumed` times. `synchronized`: BN's statistics over the `replicas`, None without BN.
    `dataset_info` is that of the data."""

    cell_id: str
    state: str
    reason: str | None = None
    best_epoch: int | None = None
    epochs: int
    loss: float | None = None
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    parameters: int
    images_per_second: float
    versions: dict[str, str]
    device: str
    seconds: float
    replicas: int = 1
    global_batch_size: int | None = None
    synchronized: bool | None = None
    deterministic: bool = False
    resumed: int = 0
    dataset_info: dict[str, Any] | None = None
