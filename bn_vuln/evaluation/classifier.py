"""A classifier under evaluation: a run of this package, or an external Keras model."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bn_vuln import config, data, records
from bn_vuln.config import digest
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.models import custom_layers
from bn_vuln.runtime import backend
from bn_vuln.typing import KerasModel, Plain, Tensor

InputScale = Literal["0-1", "0-255"]


@dataclass(frozen=True)
class Classifier:
    """A Keras model with what is needed to attack it.

    Attributes:
        model: the Keras model.
        info: the data set that it was trained on.
        identity: the cell that trained it, or {"weights": sha256, ...} of an external model.
        id: hash of the identity.
        validation: number of validation examples that were held out of the training set.
        width: height and width of its input, in pixels.
        shape: full shape of its input, without the batch.
        input_scale: the pixel values that it expects, 0 to 1 or 0 to 255.
        from_probabilities: True where it ends in a softmax.
        dataset: name or path that its data set is loaded by.
        classes: as `data.load` takes them.
        subset_seed: as `data.load` takes it.
        training: True where it is called in training mode, so that BN uses the statistics of the batch.
    """

    model: KerasModel
    info: DatasetInfo
    identity: Plain
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

    def predict(self, pixels: Tensor) -> Tensor:
        """Return the logits [n, classes] of pixels in [0, 1], float [n, width, width, channels]."""
        tf = backend.tensorflow()
        x = pixels * 255.0 if self.input_scale == "0-255" else pixels
        if self.shape != tuple(x.shape[1:]):
            x = tf.reshape(x, (-1, *self.shape))
        outputs = self.model(x, training=self.training)
        if self.from_probabilities:
            outputs = tf.math.log(tf.maximum(outputs, tf.constant(1e-30, outputs.dtype)))
        return outputs


def from_model(
    model: KerasModel,
    info: DatasetInfo,
    identity: Plain,
    *,
    dataset: str | None = None,
    validation: int = 5000,
    input_scale: InputScale = "0-1",
    from_probabilities: bool = False,
    source: str = "model",
) -> Classifier:
    """Wrap a Keras model.

    Args:
        model: its input is an image, an image without channel axis, or a flat vector; it returns logits [n, classes],
            or probabilities.
        info: the data set that it was trained on.
        identity: what identifies it; its hash is the id.
        dataset: name or path that the data set is loaded by; None: the name in `info`.
        validation: number of validation examples that were held out of the training set.
        input_scale: the pixel values that the model expects.
        from_probabilities: True where the model ends in a softmax.
        source: its name in error messages.

    Returns:
        The classifier.

    Raises:
        UsageError: where input or outputs do not fit the data set.
    """
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


def _fit_input(model: KerasModel, info: DatasetInfo, source: str) -> tuple[tuple[int, ...], int]:
    """(input shape without batch, width in pixels) of images, images without channel axis, or flat vectors."""
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
    """Open the classifier of a run.

    Args:
        folder: run folder with config.yaml, training.json and model.keras, or STORE/CELL of a packed store that has
            the model.

    Returns:
        The classifier, with the info of its data set as it was recorded, so that it opens wherever the data are now.

    Raises:
        UsageError: where the folder is no run folder.
        BnvulnError: where its training failed or never finished.
    """
    store, cell_id = records.open_run(folder)
    cell, training, path = store.cell(cell_id), store.training(cell_id), store.model(cell_id)
    if training is None or path is None:
        raise BnvulnError(f"{folder}: no finished training here (no {'model.keras' if training else 'training.json'})")
    if training.state == "failed":
        raise BnvulnError(f"{folder}: failed to train ({training.reason}); there is nothing to evaluate")
    recorded = training.dataset_info
    classifier = from_model(
        load_keras(path),
        data.dataset_info(cell.data.name) if recorded is None else DatasetInfo.from_plain(recorded),
        config.identity_of(cell),
        dataset=cell.data.name,
        validation=cell.data.validation,
        source=str(path),
    )
    subset_seed = cell.seed if cell.data.subset_seed == "seed" else None
    return replace(classifier, classes=cell.data.classes, subset_seed=subset_seed)


def from_keras(
    path: Path, dataset: str, *, input_scale: InputScale = "0-1", from_probabilities: bool = False
) -> Classifier:
    """Open a `.keras` classifier.

    Args:
        path: the file.
        dataset: name or path of the data set that it was trained on.
        input_scale: the pixel values that it expects.
        from_probabilities: True where it ends in a softmax.

    Returns:
        The classifier; its identity is the sha256 of its weights and how it is called.

    Raises:
        UsageError: where there is no such file, or where input or outputs do not fit the data set.
        BnvulnError: where Keras cannot load it.
    """
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


def load_keras(path: Path) -> KerasModel:
    """Load a Keras model, uncompiled.

    Args:
        path: the `.keras` file.

    Returns:
        The model.

    Raises:
        BnvulnError: in one line, where it cannot be loaded.
    """
    backend.tensorflow()
    import keras

    custom_layers.register()
    try:
        model: KerasModel = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds; all of them mean the same to the user
        raise BnvulnError(f"{path}: Keras cannot load it: {' '.join(str(error).split())[:300]}") from None
    return model


def weights_sha256(path: Path) -> str:
    """Return the sha256 of the weights inside a `.keras` file; the file itself holds a date.

    Args:
        path: the `.keras` file.

    Returns:
        64 hexadecimal digits.

    Raises:
        UsageError: where there is no such file, or none of Keras.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
    except (zipfile.BadZipFile, KeyError, OSError):
        raise UsageError(f"{path}: not a .keras file (save the model with model.save('model.keras'))") from None
