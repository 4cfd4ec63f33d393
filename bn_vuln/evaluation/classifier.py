"""A classifier under evaluation: a run of ours, or any Keras model that a user brings."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bn_vuln import config, data, records
from bn_vuln.config import digest
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.models import custom_layers
from bn_vuln.runtime import backend

InputScale = Literal["0-1", "0-255"]


@dataclass(frozen=True)
class Classifier:
    """A Keras model with what is needed to attack it.

    `identity` is the cell that trained it, or {"weights": sha256, ...} for a foreign model; `id` its hash. `dataset` is
    the name, or the path, under which its data set is loaded; `classes` and `subset_seed` as `data.load` takes them.
    `training`: the model is called in training mode.
    `width` is the width of its (square) input; `shape` the full input shape without the batch.
    """

    model: Any
    info: DatasetInfo
    identity: dict[str, Any]
    id: str
    validation: int
    width: int
    shape: tuple[int, ...]
    input_scale: InputScale = "0-1"
    from_probabilities: bool = False
    dataset: str = "mnist"
    classes: tuple[int, ...] | None = None
    subset_seed: int | None = None
    training: bool = False

    def predict(self, pixels: Any) -> Any:
        """Float pixels in [0, 1], [n, width, width, channels] -> logits [n, classes], in inference mode (unless
        `training`, with BN's statistics of the batch)."""
        tf = backend.tensorflow()
        x = pixels * 255.0 if self.input_scale == "0-255" else pixels
        if self.shape != tuple(x.shape[1:]):
            x = tf.reshape(x, (-1, *self.shape))
        outputs = self.model(x, training=self.training)
        if self.from_probabilities:
            return tf.math.log(tf.maximum(outputs, tf.constant(1e-30, outputs.dtype)))
        return outputs


def from_model(
    model: Any,
    info: DatasetInfo,
    identity: dict[str, Any],
    *,
    dataset: str | None = None,
    validation: int = 5000,
    input_scale: InputScale = "0-1",
    from_probabilities: bool = False,
    source: str = "model",
) -> Classifier:
    """Wrap a Keras model; `dataset` defaults to the info' name. Raises `UsageError` where its
    input or output cannot fit the data set."""
    shape, width = _fit_input(model, info, source)
    outputs = getattr(model, "output_shape", None)
    if not isinstance(outputs, tuple) or len(outputs) != 2 or outputs[1] != len(info.classes):
        raise UsageError(
            f"{source}: expected outputs of shape (None, {len(info.classes)}) for {info.name}, received {outputs}"
        )
    return Classifier(
        model,
        info,
        identity,
        digest(identity),
        validation,
        width,
        shape,
        input_scale,
        from_probabilities,
        dataset or info.name,
    )


def _fit_input(model: Any, info: DatasetInfo, source: str) -> tuple[tuple[int, ...], int]:
    """(input shape without batch, width in pixels): images, images without channel axis, or flat vectors."""
    received = getattr(model, "input_shape", None)
    shape = tuple(received[1:]) if isinstance(received, tuple) else ()
    native, channels = info.shape[1], info.shape[2]
    if len(shape) == 3 and shape[2] == channels and shape[:2] == (None, None):
        return info.shape, native
    if len(shape) == 3 and shape[2] == channels and shape[0] == shape[1] and shape[0] >= native:
        return shape, shape[0]
    if len(shape) == 2 and channels == 1 and shape[0] == shape[1] and (shape[0] or 0) >= native:
        return shape, shape[0]
    width = round(((shape[0] or 0) / channels) ** 0.5) if len(shape) == 1 else 0
    if width >= native and shape == (width * width * channels,):
        return shape, width
    raise UsageError(
        f"{source}: expected an input of {info.name}'s shape {info.shape} (or wider, or flat), received {received}"
    )


def from_run(folder: Path) -> Classifier:
    """The classifier of a run folder. Raises `BnvulnError` where training failed or never finished."""
    cell = records.read_cell(folder)
    training = records.read_training(folder)
    path = folder / "model.keras"
    if training is None or not path.exists():
        raise BnvulnError(f"{folder}: no finished training here (no {'model.keras' if training else 'training.json'})")
    if training.state == "failed":
        raise BnvulnError(f"{folder}: failed to train ({training.reason}); there is nothing to evaluate")
    found = from_model(
        load_keras(path),
        _trained_on(cell, training),
        config.identity_of(cell),
        dataset=cell.data.name,
        validation=cell.data.validation,
        source=str(path),
    )
    return replace(found, classes=cell.data.classes, subset_seed=cell.seed if cell.data.subset_seed == "seed" else None)


def _trained_on(cell: config.Cell, training: records.TrainingRecord) -> DatasetInfo:
    """The info that a run has recorded, so that it can be opened wherever its data are by now."""
    if training.dataset_info is None:
        return data.dataset_info(cell.data.name)
    return DatasetInfo.from_plain(training.dataset_info)


def from_keras(
    path: Path, dataset: str, *, input_scale: InputScale = "0-1", from_probabilities: bool = False
) -> Classifier:
    """Any `.keras` classifier on a data set. Its identity is the sha256 of its weights and how it is called."""
    identity = {
        "weights": weights_sha256(path),
        "input_scale": input_scale,
        "from_probabilities": from_probabilities,
    }
    return from_model(
        load_keras(path),
        data.dataset_info(dataset),
        identity,
        dataset=dataset,
        input_scale=input_scale,
        from_probabilities=from_probabilities,
        source=str(path),
    )


def load_keras(path: Path) -> Any:
    """A Keras model from a file, uncompiled. Raises `BnvulnError` in one line where it cannot be read."""
    backend.tensorflow()
    import keras

    custom_layers.register()
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds; all of them mean the same to the user
        raise BnvulnError(f"{path}: Keras cannot load it: {' '.join(str(error).split())[:300]}") from None


def weights_sha256(path: Path) -> str:
    """The sha256 of the weights inside a `.keras` file (the file itself holds a date)."""
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
    except (zipfile.BadZipFile, KeyError, OSError):
        raise UsageError(f"{path}: not a .keras file (save the model with model.save('model.keras'))") from None
