"""Schema of the records: one measured number each, with its identity. Accuracies are fractions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from bn_vuln.typing import Plain

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
    def _with_present_names(cls, data: object) -> object:
        return {RENAMED.get(key, key): value for key, value in data.items()} if isinstance(data, Mapping) else data


class Flag(_Frozen):
    """A warning that a number may be unreliable.

    `check` is its number in docs/method/checks.md; `value` is what tripped it.
    """

    check: int
    name: str
    value: float
    message: str

    @property
    def text(self) -> str:
        """The flag in one line: `check 16: one seed: the spread over seeds is unknown`."""
        return f"check {self.check}: {self.message}"


class Record(_Versioned):
    """One measured accuracy with its identity.

    Attributes:
        cell: What trained the model, as its id hashes it; {"weights": sha256} and how it is called for an external one.
        perturbation: {dataset, split, limit, bn_statistics, kind, every field of the attack or noise}.
        n: Number of examples, of which `correct` are classified correctly.
        accuracy: A fraction, as `top5` (None below six classes) and `target_rate` (the share of examples that are
            classified as the target of a targeted attack).
        loss: Mean cross-entropy in nats; None where it is not finite, or before it was recorded.
        seconds: Wall time.
        bn_folded: BN layers that were folded away in the copy that an attack differentiates; `bn_kept` were not.
        n_evaluations: Points at which an attack evaluated the classifier, mean over the examples; of attacks that
            keep the first success.
        robust_after: Examples that were still correct after each attack of an ensemble.
        mean_distance: Of a minimum-norm attack, in the unit of the perturbation, over the examples that were correct
            when clean and that it fooled; likewise `median_distance`.
        corruption_source: Images `made` by the published formulas, or those of the published `archive`.
        bn_batch_size: Examples in a batch, where BN has the statistics of the batch: consecutive ones of the fixed
            random order that limits take them in.
        held_off: Layers that act in training only (dropout, augmentation), which stayed off where BN has the statistics
            of the batch, or re-estimated ones.
        source_correct: Of a transfer, examples that the source still classifies correctly under the attack on it.
        eligible: Examples that could transfer: both models classify them correctly when clean, and they are adversarial
            for the source. Of these `transferred` are misclassified here too.
    """

    cell_id: str
    perturbation_id: str
    cell: Plain
    perturbation: Plain
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
    hosts: int = 1
    bn_folded: int = 0
    bn_kept: int = 0
    n_evaluations: float | None = None
    robust_after: dict[str, int] = {}
    mean_distance: float | None = None
    median_distance: float | None = None
    corruption_source: Literal["made", "archive"] | None = None
    bn_batch_size: int | None = None
    held_off: tuple[str, ...] = ()
    source_correct: int | None = None
    eligible: int | None = None
    transferred: int | None = None

    @property
    def kind(self) -> str:
        """The kind of the perturbation: clean, awgn, corruption, attack, minimal or transfer."""
        return str(self.perturbation["kind"])

    @property
    def transfer_rate(self) -> float | None:
        """The share of the eligible examples that transferred; None where there are none."""
        return self.transferred / self.eligible if self.eligible and self.transferred is not None else None


class MeasurementRecord(_Versioned):
    """One number measured of a model besides accuracy, with its identity.

    `value` is in `unit` (deg, steps, std, or % for fractions), over `n` examples; None, over none, where the model has
    no such number, as without BN the distance of its statistics. `details` are further numbers of it; arrays lie
    beside the record as .npz; `held_off` is as in `Record`.
    """

    cell_id: str
    measurement_id: str
    cell: Plain
    measurement: Plain
    value: float | None
    unit: str
    n: int
    details: dict[str, float] = {}
    held_off: tuple[str, ...] = ()
    versions: dict[str, str]
    device: str
    seconds: float


class TrainingRecord(_Versioned):
    """The end of a training.

    `state` is `trained`, or `failed` for a net that did not learn (`reason` says how). The accuracies are those of the
    kept epoch (`best_epoch`, from 1), None where there is none. `seconds` is the time spent in epochs, over all
    `resumed` times. `synchronized` says if BN's statistics are those over all `replicas` (on `hosts`), None
    without BN; `global_batch_size` is shared by the replicas, and the learning rate is that of the config for it.
    `dataset_info` describes the data. `model_sha256` is the hash of architecture and weights in model.keras, None where
    no model was kept, and in older records; `history_sha256` is that of history.csv.
    """

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
    hosts: int = 1
    global_batch_size: int | None = None
    synchronized: bool | None = None
    deterministic: bool = False
    resumed: int = 0
    dataset_info: Plain | None = None
    model_sha256: str | None = None
    history_sha256: str | None = None


class ExternalRecord(_Versioned):
    """An external model, whose records lie in the same folder.

    `source` is the model as the user spelled it, `path` the absolute path of its file, None where it is none.
    `identity` is what `cell_id` hashes, and `found` what the trial call found of its input and outputs.
    """

    cell_id: str
    source: str
    path: str | None = None
    identity: Plain
    found: Plain = {}
