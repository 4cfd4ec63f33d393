"""Checkpoints: the state of a training at the end of an epoch, in one file, so that it goes on exactly where it was.

The order of the examples derives from (seed, epoch), so there is no other state: the model's variables (BN's statistics
and seeds of random layers among them), the optimizer's, the kept epoch's weights, and the history.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bn_vuln import records
from bn_vuln.records import digests
from bn_vuln.runtime import backend, files
from bn_vuln.runtime.progress import Epoch
from bn_vuln.typing import Arrays, KerasModel, Optimizer, Plain, Variable

NAME = "checkpoint.npz"


@dataclass
class SelectedEpoch:
    """The best epoch so far, or the last one where the config selects that, with the weights of the model."""

    epoch: Epoch
    weights: list[NDArray[np.generic]]


@dataclass
class TrainingState:
    """The state of a training.

    Attributes:
        history: the epochs so far.
        selected: the epoch whose weights will be kept; None while no epoch had a finite loss.
        seconds: spent in epochs.
        resumed: how often the training was resumed.
        deterministic: True where all of it was.
    """

    history: list[Epoch]
    selected: SelectedEpoch | None = None
    seconds: float = 0.0
    resumed: int = 0
    deterministic: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, in memory: it stays as it is while the training goes on."""

    state: TrainingState
    model: list[NDArray[np.generic]]
    optimizer: list[NDArray[np.generic]]

    def save(self, folder: Path, cell_id: str) -> None:
        """Write the checkpoint of a run folder atomically (temporary file, then rename)."""
        state, selected = self.state, self.state.selected
        about = {
            "cell_id": cell_id,
            "versions": backend.versions(),
            "history": [dataclasses.asdict(epoch) for epoch in state.history],
            "kept": dataclasses.asdict(selected.epoch) if selected else None,
            "seconds": state.seconds,
            "resumed": state.resumed,
            "deterministic": state.deterministic,
        }
        groups = {"model": self.model, "optimizer": self.optimizer, "kept": selected.weights if selected else []}
        arrays = {f"{group}_{i}": array for group, own in groups.items() for i, array in enumerate(own)}
        digests.write_arrays(folder / NAME, {"about": np.array(json.dumps(about)), **arrays}, compressed=False)


def take(model: KerasModel, optimizer: Optimizer, state: TrainingState) -> Checkpoint:
    """Return the checkpoint of a training at the end of an epoch."""
    variables = model.variables, optimizer.variables  # not `weights`, which leaves out the seeds of random layers
    model_arrays, optimizer_arrays = ([np.array(variable) for variable in group] for group in variables)
    return Checkpoint(dataclasses.replace(state, history=[*state.history]), model_arrays, optimizer_arrays)


def read(folder: Path) -> bytes | None:
    """Return the checkpoint of a run folder, empty where it cannot be read; None where there is none."""
    if not (folder / NAME).exists():
        return None
    try:
        return records.read_file(folder / NAME)
    except OSError:
        return b""


def remove(folder: Path) -> None:
    """Remove the checkpoint of a finished run, which has its model and records."""
    files.remove(folder / NAME)


def parse(content: bytes) -> tuple[Plain, Arrays]:
    """Read a checkpoint, of the bytes of its file: what it says of the training, and its arrays.

    Raises:
        ValueError: It is damaged.
    """
    arrays = digests.checked_arrays(content)
    try:
        about = json.loads(str(arrays.pop("about")))
    except (KeyError, RecursionError) as error:
        raise ValueError(f"no checkpoint ({records.first_line(error)})") from None
    if not isinstance(about, dict):
        raise ValueError("no checkpoint")
    return about, arrays


def restore(content: bytes, cell_id: str, model: KerasModel, optimizer: Optimizer) -> TrainingState | str:
    """Put model and optimizer into the state of the checkpoint.

    Args:
        content: what `read` returned.
        cell_id: id of the cell that is trained; the checkpoint must be of the same one.
        model: a model of the cell.
        optimizer: its optimizer.

    Returns:
        The state of the training; or the reason why the checkpoint cannot be used, and then nothing was changed.
    """
    try:
        about, arrays = parse(content)
        if about["cell_id"] != cell_id:
            return f"it is of another config ({about['cell_id']})"
        history = [Epoch(**fields) for fields in about["history"]]
        kept = about["kept"]
        selected = SelectedEpoch(Epoch(**kept), _group(arrays, "kept")) if kept else None
        pairs = [
            *_paired(model.variables, _group(arrays, "model")),
            *_paired(optimizer.variables, _group(arrays, "optimizer")),
        ]
        list(_paired(model.weights, selected.weights if selected else model.get_weights()))
        numbers = float(about["seconds"]), int(about["resumed"]) + 1
        deterministic = bool(about["deterministic"]) and backend.is_deterministic()
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        return f"it cannot be read ({records.first_line(error)})"
    for variable, value in pairs:
        variable.assign(value)
    return TrainingState(history, selected, *numbers, deterministic)


def _group(arrays: Arrays, group: str) -> list[NDArray[np.generic]]:
    """The arrays of a group, in their order."""
    count = sum(key.startswith(f"{group}_") for key in arrays)
    return [arrays[f"{group}_{i}"] for i in range(count)]


def _paired(
    variables: Sequence[Variable], values: Sequence[NDArray[np.generic]]
) -> Iterator[tuple[Variable, NDArray[np.generic]]]:
    """Yield variables with their values. Raises `ValueError` where they do not fit."""
    for variable, value in zip(variables, values, strict=True):
        if value.dtype.kind not in "fiu":
            raise ValueError(f"{variable.path} has values of type {value.dtype}")
        if tuple(variable.shape) != value.shape:
            raise ValueError(f"{variable.path} has shape {tuple(variable.shape)}, not {value.shape}")
        yield variable, value
