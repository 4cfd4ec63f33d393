"""A classifier under evaluation: a run of this package, or an external Keras model."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bn_vuln import config, data, records
from bn_vuln.config import Resize, digest
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.models import custom_layers
from bn_vuln.runtime import backend
from bn_vuln.typing import KerasModel, Plain, Tensor

if TYPE_CHECKING:
    from bn_vuln.external.outputs import Outputs
    from bn_vuln.external.trial import Trial


@dataclass(frozen=True)
class Classifier:
    """A Keras model with what is needed to attack it.

    Attributes:
        model: the Keras model.
        info: the data set that it was trained on; of an external model, the data set that it is measured on.
        identity: the cell that trained it; of an external model, hashes of the model and how it is called.
        id: hash of the identity.
        validation: number of validation examples that were held out of the training set.
        size: height and width of its input, in pixels.
        shape: full shape of its input, without the batch.
        dataset: name or path that its data set is loaded by.
        classes: as `data.load` takes them.
        subset_seed: as `data.load` takes it.
        training: True where it is called in training mode, so that BN uses the statistics of the batch.
        input_scale: what becomes of pixels in [0, 1], where the model takes others.
        outputs: what becomes of the model's outputs, where they are not logits [n, classes].
        resize: how images that are larger than its input, or of another shape, are brought to it.
        external: True for a model that is no run of this package.
        trial: what a first call of an external model found.
        label: what its user calls it.
    """

    model: KerasModel
    info: DatasetInfo
    identity: Plain
    id: str
    validation: int
    size: tuple[int, int]
    shape: tuple[int, ...]
    dataset: str = "mnist"
    classes: tuple[int, ...] | None = None
    subset_seed: int | None = None
    training: bool = False
    input_scale: Callable[[Tensor], Tensor] | None = None
    outputs: Outputs | None = None
    resize: Resize = "none"
    external: bool = False
    trial: Trial | None = None
    label: str = "model"

    @property
    def channels(self) -> int:
        """Channels of the images that it takes."""
        return self.info.shape[2]

    def predict(self, pixels: Tensor) -> Tensor:
        """Return the logits float32 [n, classes] of pixels in [0, 1], float32 [n, height, width, channels]."""
        x = self.to_input(pixels)
        if self.outputs is None:
            return self.model(x, training=self.training)
        return self.outputs.logits(self.model, x, training=self.training)

    def to_input(self, pixels: Tensor) -> Tensor:
        """Return what the model is called with for pixels in [0, 1]."""
        tf = backend.tensorflow()
        x = pixels if self.input_scale is None else self.input_scale(pixels)
        if self.shape == tuple(x.shape[1:]):
            return x
        if self.shape == (x.shape[3], *x.shape[1:3]):
            return tf.transpose(x, (0, 3, 1, 2))
        return tf.reshape(x, (-1, *self.shape))


def from_model(
    model: KerasModel,
    info: DatasetInfo,
    identity: Plain,
    *,
    dataset: str | None = None,
    validation: int = 5000,
    source: str = "model",
) -> Classifier:
    """Wrap a Keras model that returns logits.

    Args:
        model: its input is an image, an image without channel axis, or a flat vector, of pixels in [0, 1]; it returns
            logits [n, classes].
        info: the data set that it was trained on.
        identity: what identifies it; its hash is the id.
        dataset: name or path that the data set is loaded by; None: the name in `info`.
        validation: number of validation examples that were held out of the training set.
        source: its name in error messages.

    Returns:
        The classifier.

    Raises:
        UsageError: where input or outputs do not fit the data set.
    """
    shape, size = fit_input(model, info, source)
    outputs = getattr(model, "output_shape", None)
    if not isinstance(outputs, tuple) or len(outputs) != 2 or outputs[1] != len(info.classes):
        raise UsageError(
            f"{source}: expected outputs of shape (None, {len(info.classes)}) for {info.name}, received {outputs}"
        )
    return Classifier(model, info, identity, digest(identity), validation, size, shape, dataset or info.name)


def fit_input(model: KerasModel, info: DatasetInfo, source: str) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Find what of a model's input is height, width and channels.

    Args:
        model: its input is an image, one without channel axis, one with channels first, or a flat vector.
        info: the data set: its channels, and its size where the model leaves that open.
        source: the model's name in error messages.

    Returns:
        (shape of the input without the batch, (height, width) of the images).

    Raises:
        UsageError: where it is none of these, or has other channels than the data.
    """
    received = getattr(model, "input_shape", None)
    shape = tuple(received[1:]) if isinstance(received, tuple) else ()
    height, width, channels = info.shape
    if len(shape) == 3 and shape[2] == channels:
        size = (shape[0] or height, shape[1] or width)
        return (*size, channels), size
    if len(shape) == 3 and shape[0] == channels and None not in shape:
        return shape, (shape[1], shape[2])
    if len(shape) == 2 and channels == 1:
        size = (shape[0] or height, shape[1] or width)
        return size, size
    if len(shape) == 1 and shape[0] == height * width * channels:
        return shape, (height, width)
    side = round(((shape[0] or 0) / channels) ** 0.5) if len(shape) == 1 else 0
    if side and shape == (side * side * channels,):
        return shape, (side, side)
    raise UsageError(f"{source}: expected an input of images {info.shape}, of any size, or flat, received {received}")


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
