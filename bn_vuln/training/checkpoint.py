"""Checkpoints: all of a training at the end of an epoch, in one file, so that it goes on exactly where it was.

The order of the examples derives from (seed, epoch), so there is no other state: the model's variables (BN's statistics
and seeds of random layers among them), the optimizer's, the kept epoch's weights, and the history.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.runtime import backend
from bn_vuln.runtime.files import atomic_path
from bn_vuln.runtime.progress import Epoch

NAME = "checkpoint.npz"


@dataclass
class Kept:
    """The best epoch so far (or the last one, where the config selects it)."""

    epoch: Epoch
    weights: list[NDArray[Any]]


@dataclass
class State:
    """What a training has done: its history, the epoch kept, seconds so far, how often it was resumed, and whether
    all of it was deterministic."""

    history: list[Epoch]
    kept: Kept | None = None
    seconds: float = 0.0
    resumed: int = 0
    deterministic: bool = False


def save(folder: Path, cell_id: str, model: Any, optimizer: Any, state: State) -> None:
    """Write the checkpoint of a run folder aside and rename it."""
    about = {
        "cell_id": cell_id,
        "versions": backend.versions(),
        "history": [dataclasses.asdict(epoch) for epoch in state.history],
        "kept": dataclasses.asdict(state.kept.epoch) if state.kept else None,
        "seconds": state.seconds,
        "resumed": state.resumed,
        "deterministic": state.deterministic,
    }
    kept = state.kept.weights if state.kept else []
    groups = {"model": _variables(model), "optimizer": optimizer.variables, "kept": kept}
    arrays = {f"{group}_{i}": np.array(v) for group, variables in groups.items() for i, v in enumerate(variables)}
    with atomic_path(folder / NAME) as aside:
        np.savez(aside, **{"about": np.array(json.dumps(about)), **arrays})  # type: ignore[arg-type]


def exists(folder: Path) -> bool:
    """Whether a run folder has a checkpoint to go on from."""
    return (folder / NAME).exists()


def remove(folder: Path) -> None:
    """Remove the checkpoint of a finished run: its model and records say it all."""
    (folder / NAME).unlink(missing_ok=True)


def restore(folder: Path, cell_id: str, model: Any, optimizer: Any) -> State | str:
    """Put the model and the optimizer where the checkpoint of the folder left them; its state, or why it cannot be
    used (then nothing was changed)."""
    try:
        with np.load(folder / NAME, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = {key: file[key] for key in file.files if key != "about"}
        if about["cell_id"] != cell_id:
            return f"it is of another config ({about['cell_id']})"
        history = [Epoch(**fields) for fields in about["history"]]
        kept = Kept(Epoch(**about["kept"]), _group(arrays, "kept")) if about["kept"] else None
        pairs = [*_paired(_variables(model), _group(arrays, "model"))]
        pairs += _paired(optimizer.variables, _group(arrays, "optimizer"))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        return f"it cannot be read ({' '.join(str(error).split())[:150]})"
    for variable, value in pairs:
        variable.assign(value)
    deterministic = about["deterministic"] and backend.is_deterministic()
    return State(history, kept, float(about["seconds"]), int(about["resumed"]) + 1, deterministic)


def _variables(model: Any) -> list[Any]:
    """Every variable of a model: `weights` would leave out the seeds of random layers."""
    return list(model.variables)


def _group(arrays: dict[str, NDArray[Any]], group: str) -> list[NDArray[Any]]:
    """The arrays of a group, in their order."""
    count = sum(key.startswith(f"{group}_") for key in arrays)
    return [arrays[f"{group}_{i}"] for i in range(count)]


def _paired(variables: list[Any], values: list[NDArray[Any]]) -> list[tuple[Any, NDArray[Any]]]:
    """Variables with their values. Raises `ValueError` where they do not fit."""
    pairs = list(zip(variables, values, strict=True))
    for variable, value in pairs:
        if tuple(variable.shape) != value.shape:
            raise ValueError(f"{variable.path} has shape {tuple(variable.shape)}, not {value.shape}")
    return pairs
