"""A classifier under evaluation: a run of this package, or an external Keras model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bn_vuln import config, data, records
from bn_vuln.config import ExternalModel, Resize, digest
from bn_vuln.data import imagenet
from bn_vuln.data.class_names import ClassNames
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.fit_images import fit_images
from bn_vuln.external import input_scale, loading, outputs
from bn_vuln.external.identity import model_identity
from bn_vuln.external.input_scale import InputScale
from bn_vuln.external.outputs import Output
from bn_vuln.external.trial import ModelInput, Trial, find_input, try_model
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Images, KerasModel, Labels, Plain, Tensor


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
        input: how it takes images: with channels last or first, without channels, or flat.
        dataset: name or path that its data set is loaded by.
        classes: as `data.load` takes them.
        subset_seed: as `data.load` takes it.
        training: True where it is called with training=True, so that BN uses the statistics of the batch.
        held_off: names of the layers that act in training only, which stay off then.
        input_scale: what becomes of pixels in [0, 1], where the model takes others.
        output: what becomes of the model's outputs, where they are not logits [n, classes].
        resize: how images of an external model that are larger than its input, or of another shape, are brought to it.
        external: True for a model that is no run of this package.
        class_names: names of an external model's classes, where the user gave them.
        trial: what a first call of an external model found.
        found: the same and what becomes of the images, in lines for people.
        scale_doubt: why the input scale that the user gave seems to be another.
        label: what its user calls it.
        path: its run folder, or the file of an external model.
    """

    model: KerasModel
    info: DatasetInfo
    identity: Plain
    id: str
    validation: int
    size: tuple[int, int]
    input: ModelInput
    dataset: str = "mnist"
    classes: tuple[int, ...] | None = None
    subset_seed: int | None = None
    training: bool = False
    held_off: tuple[str, ...] = ()
    input_scale: InputScale | None = None
    output: Output | None = None
    resize: Resize = "none"
    external: bool = False
    class_names: Sequence[str] | ClassNames | None = None
    trial: Trial | None = None
    found: tuple[str, ...] = ()
    scale_doubt: str | None = None
    label: str = "model"
    path: Path | None = None

    @property
    def channels(self) -> int:
        """Channels of the images that it takes."""
        return self.info.shape[2]

    def predict(self, pixels: Tensor) -> Tensor:
        """Return the logits float32 [n, classes] of pixels in [0, 1], float32 [n, height, width, channels]."""
        x = self.to_input(pixels)
        if self.output is None:
            return self.model(x, training=self.training)
        return self.output.logits(self.model, x, training=self.training)

    def to_input(self, pixels: Tensor) -> Tensor:
        """Return what the model is called with for pixels in [0, 1]."""
        return self.input.arrange(pixels if self.input_scale is None else self.input_scale(pixels))


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
    found, size = _input_of(model, info, source)
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != len(info.classes):
        raise UsageError(
            f"{source}: expected outputs of shape (None, {len(info.classes)}) for {info.label}, received {shape}"
        )
    return Classifier(
        model, info, identity, digest(identity), validation, size, found, dataset or info.name, label=source
    )


def _input_of(model: KerasModel, info: DatasetInfo, source: str) -> tuple[ModelInput, tuple[int, int]]:
    """(what a model takes, (height, width)); a size that it leaves open is that of the data."""
    found = find_input(model, info.shape, source)
    if found.channels not in (None, info.shape[2]):
        kinds = {1: "gray", 2: "two-channel", 3: "RGB"}
        hints = {
            (3, 1): "; give --gray-to-rgb",
            (
                1,
                3,
            ): "; save them as gray images (files: image.convert('L') of Pillow; arrays: x @ (0.299, 0.587, 0.114))",
        }
        hint = _doubts(info) + hints.get((found.channels or 0, info.shape[2]), "")
        raise UsageError(
            f"{source}: it takes {kinds[found.channels or 0]} images, those of {info.label} are "
            f"{kinds[info.shape[2]]}{hint}"
        )
    return found, (found.height or info.shape[0], found.width or info.shape[1])


def _doubts(info: DatasetInfo) -> str:
    """What was found in the data when they were read, at the end of a message."""
    return "".join(f"; {text}" for text in (*info.notes, *info.flags))


def from_run(folder: Path) -> Classifier:
    """Open the classifier of a run.

    Args:
        folder: run folder with config.yaml, training.json and model.keras, or STORE/CELL of a packed store that has
            the model.

    Returns:
        The classifier, with the info of its data set as it was recorded, so that it opens wherever the data are now.

    Raises:
        UsageError: where the folder is no run folder.
        BnvulnError: where its training failed or never finished, or a file is damaged or of another run.
    """
    cell, training, path = records.open_trained(folder)
    recorded = training.dataset_info
    classifier = from_model(
        loading.load_keras(path),
        data.dataset_info(cell.data.name) if recorded is None else DatasetInfo.from_plain(recorded),
        config.identity_of(cell),
        dataset=cell.data.name,
        validation=cell.data.validation,
        source=str(path),
    )
    subset_seed = cell.seed if cell.data.subset_seed == "seed" else None
    own_folder = folder if folder.is_dir() else None
    if cell.weights is not None:  # a net for ImageNet, whose images have any size
        classifier = replace(classifier, resize="imagenet", class_names=imagenet.classes())
    return replace(classifier, classes=cell.data.classes, subset_seed=subset_seed, label=str(folder), path=own_folder)


def from_external(
    target: loading.Target,
    options: ExternalModel,
    dataset: str,
    split: str,
    *,
    validation: int = 0,
    custom_objects: loading.CustomObjects | None = None,
    class_names: Sequence[str] | None = None,
) -> Classifier:
    """Open a Keras model that is no run of this package, and find out how it is to be called.

    Args:
        target: a file, `keras.applications:NAME`, or a Keras model.
        options: what the user says about it; `auto` is decided here.
        dataset: name or path of the data that it is measured on.
        split: the split that is reported; what has to be decided is decided on another one where there is one.
        validation: number of examples held out of the training set where the data have no validation split.
        custom_objects: custom objects by name, instead of the file in `options`.
        class_names: names of the model's classes in the order of its outputs, instead of the file in `options`.

    Returns:
        The classifier. Its identity is the model by value, and every setting of its input and outputs.

    Raises:
        UsageError: where the model is of another kind, does not fit the data, or something cannot be decided.
        BnvulnError: where Keras cannot load it.
    """
    names: Sequence[str] | ClassNames | None = class_names
    if options.class_names is not None:
        names = data.read_class_names(options.class_names)
    info = data.dataset_info(dataset)
    own_head = options.weights not in (None, "imagenet")  # of a model of keras.applications
    loaded = loading.load(
        target,
        weights=options.weights,
        classes=len(names or info.classes) if own_head else None,
        custom_objects=options.custom_objects if custom_objects is None else custom_objects,
    )
    own_names, names = names, names or loaded.class_names
    if options.gray_to_rgb and info.shape[2] == 1:
        info = _as_rgb(info)
    found, size = _input_of(loaded.model, info, loaded.source)
    resize = _resize(loaded.resize if options.resize == "auto" else options.resize, info, size, loaded.source)
    other = next((s for s in ("train", "validation") if s != split and s in data.splits(dataset)), split)
    examples = _examples(dataset, other, validation, names, options)
    examples = fit_images(examples, size, info.shape[2], resize)
    unsettled = Classifier(
        loaded.model,
        replace(info, classes=examples.info.classes),
        {},
        "",
        validation,
        size,
        found,
        dataset,
        resize=resize,
        external=True,
        class_names=names,
        label=loaded.source,
        path=loaded.path,
    )
    settled = _settled(unsettled, options, loaded, examples, other)
    identity = {**model_identity(loaded.model, loaded.custom_objects), **_how_it_is_called(settled, own_names)}
    return replace(settled, identity=identity, id=digest(identity))


def _examples(
    dataset: str, split: str, validation: int, names: Sequence[str] | ClassNames | None, options: ExternalModel
) -> data.Dataset:
    """Some labelled images, by which is decided what a model takes and returns."""
    limit = min(input_scale.IMAGES, data.dataset_info(dataset).size(split, validation))
    examples = data.load(dataset, split, validation=validation, limit=limit)
    return examples if names is None else data.with_class_names(examples, names, options.class_names or "class names")


def _settled(
    classifier: Classifier, options: ExternalModel, loaded: loading.LoadedModel, examples: data.Dataset, split: str
) -> Classifier:
    """The classifier with its input scale, its output and its classes, and what a trial call found."""
    model, info = classifier.model, classifier.info
    n_classes = _count_classes(model, info, classifier.class_names, options.head, classifier.label)
    images = pixel_array(examples.images[:], classifier.size)
    decision = _decide_scale(classifier, options, loaded.input_scale, images, examples.labels, n_classes, split)
    classifier = replace(classifier, input_scale=decision.scale, scale_doubt=decision.flag)
    inputs = classifier.to_input(backend.place(images[: outputs.IMAGES]))
    output = outputs.find_output(
        model, inputs, n_classes, declared=options.output, head=options.head, source=classifier.label
    )
    custom = () if loaded.custom_objects is None else (loaded.custom_objects.name,)
    trial = try_model(model, inputs, classifier.input, output, source=classifier.label, custom=custom)
    if decision.flag is not None:
        trial = replace(trial, flags=(*trial.flags, decision.flag))
    # Numbers, of which the data do not have them all, are those of the model.
    classes = info.classes if len(info.classes) >= n_classes else tuple(map(str, range(n_classes)))
    return replace(
        classifier,
        info=replace(info, classes=classes),
        output=trial.output,
        trial=trial,
        found=(*trial.lines(decision.text), *_said(examples, classifier.size, classifier.resize)),
    )


def _how_it_is_called(classifier: Classifier, names: Sequence[str] | ClassNames | None) -> Plain:
    """The part of an external model's identity that is not the model: every setting of its input and outputs.

    `names` are the class names that were given: those that a model is known by are not told again.
    """
    assert classifier.input_scale is not None
    assert classifier.output is not None
    validation = classifier.validation
    return {
        "input_scale": classifier.input_scale.name,
        "size": list(classifier.size),
        "channels": classifier.channels,
        "resize": classifier.resize,
        "output": classifier.output.kind,
        "head": list(classifier.output.path),
        **({} if names is None else {"class_names": [name if isinstance(name, str) else list(name) for name in names]}),
        **({"validation": validation} if validation else {}),
    }


def _resize(asked: Resize, info: DatasetInfo, size: tuple[int, int], source: str) -> Resize:
    """How images are brought to the size: nothing is done where all have it."""
    if 0 in size:
        raise UsageError(
            f"{source}: it takes images of any size, and {info.label} has several: bring them to one, or save the "
            "model with an input of a fixed size"
        )
    return "none" if info.shape[:2] == size else asked


def _as_rgb(info: DatasetInfo) -> DatasetInfo:
    """The info of gray images that are repeated for each channel."""
    return replace(info, shape=(*info.shape[:2], 3), mean=info.mean * 3, std=info.std * 3)


def _said(examples: data.Dataset, size: tuple[int, int], resize: Resize) -> list[str]:
    """Lines on what becomes of the images."""
    lines = [f"{'data':15}{note}" for note in (*examples.info.notes, *examples.info.flags)]
    if resize != "none":
        lines.append(f"{'resize':15}images are brought to {size[0]} x {size[1]}: {resize}")
    return lines


def _count_classes(
    model: KerasModel, info: DatasetInfo, names: Sequence[object] | None, head: str | None, source: str
) -> int:
    """The number of classes: that of the names, or of the model's outputs where the data have numbers alone."""
    n, shape = len(names or info.classes), getattr(model, "output_shape", None)
    columns = shape[-1] if isinstance(shape, tuple) and len(shape) >= 2 and isinstance(shape[-1], int) else None
    if columns is None or head is not None or columns in (n, 1):
        return n
    if names is None and not info.has_class_names and columns > n:
        return columns
    if names is None and not info.has_class_names:
        raise UsageError(
            f"{source}: it has {columns} outputs, for classes 0 to {columns - 1}, and the labels of {info.label} go up "
            f"to {n - 1}{_doubts(info)}; make them the numbers of its outputs"
        )
    what = f"{len(names)} names of classes" if names else f"{n} classes in {info.label}"
    raise UsageError(
        f"{source}: it has {columns} outputs, for {what}; name the classes in the order of its outputs with "
        "--class-names FILE"
    )


def _decide_scale(
    classifier: Classifier,
    options: ExternalModel,
    known: str | None,
    images: Images,
    labels: Labels,
    n_classes: int,
    split: str,
) -> input_scale.Decision:
    """What becomes of pixels: as the user says, as is known of the model, or by its accuracy."""
    given = None if options.input_scale == "auto" else input_scale.parse(options.input_scale, classifier.channels)
    if given is None and known is not None:
        return input_scale.Decision(
            input_scale.parse(known, classifier.channels), f"as {classifier.label.partition(':')[0]} has it"
        )
    model, source = classifier.model, classifier.label
    some = backend.place(images[: outputs.IMAGES])
    tried = [given] if given is not None else input_scale.scales(classifier.channels)
    candidates = [scale(some) for scale in tried]
    inputs = classifier.to_input(ops.concatenate(candidates, axis=0))
    output = outputs.find_output(model, inputs, n_classes, declared=options.output, head=options.head, source=source)

    def logits(x: Tensor) -> Tensor:
        return output.logits(model, classifier.to_input(x))

    if given is not None:
        return input_scale.Decision(given, "as given", input_scale.doubt(given, logits, images, labels, model=model))
    return input_scale.decide(
        logits,
        images,
        labels,
        split=split,
        model=model,
        seen=input_scale.seen(lambda x: model(classifier.to_input(x), training=False), images),
        doubts=classifier.info.flags,
        source=source,
    )
