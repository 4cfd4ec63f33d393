"""The examples that a classifier is evaluated on, and the classifier with the BN statistics that are asked for."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bn_vuln import data
from bn_vuln.analysis import metrics
from bn_vuln.config import Evaluation
from bn_vuln.data.describe import format_shape
from bn_vuln.data.transforms import check_width, pixel_array
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.fit_images import fit_images
from bn_vuln.evaluation.kept_parts import KeptParts
from bn_vuln.evaluation.sanity_checks import SAMPLE
from bn_vuln.models import bn_statistics
from bn_vuln.runtime import backend
from bn_vuln.runtime import batch_size as batching
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.runtime.memory import check_memory
from bn_vuln.runtime.progress import Progress, Quiet, progress_task
from bn_vuln.typing import AnyArray, Arrays, DatasetImages, Images, Index, KerasModel, Labels, Logits, Mask, Tensor

LAZY_BYTES, ARRAY_BYTES = 2**27, 2**30  # of float32 pixels at once, of images in files and in memory
LARGE_IMAGE = 2**17  # bytes of float32 pixels, from which on images in memory are measured in small parts, too
SAMPLE_BYTES = 2**28  # of the pixels of `SAMPLE` examples
LAZY_BATCH_BYTES = 1e9  # of the activations of a batch of images in files
BN_BATCH_SIZE = 500  # with bn_statistics: batch; the batch size changes the predictions


class EvalSet:
    """A classifier with its examples: pixels, labels, and logits batch by batch.

    Images of files are decoded when they are asked for, so that of a large set only a part is in memory (`parts`).

    Attributes:
        classifier: the classifier with the BN statistics of the evaluation.
        dataset: the examples, as they are stored, none larger than the classifier's input.
        batch_size: examples at a time, over all replicas.
    """

    def __init__(
        self,
        classifier: Classifier,
        evaluation: Evaluation,
        *,
        batch_size: int | None = None,
        distribution: Distribution = ONE_DEVICE,
    ) -> None:
        """Load the examples.

        Args:
            classifier: opened in the scope of the distribution.
            evaluation: data set, split, limit and BN statistics.
            batch_size: examples at a time, over all replicas; None: as many as memory holds.
            distribution: the devices.

        Raises:
            UsageError: as `load`; and, with the statistics of the batch, for a batch size, or a number of replicas that
                does not divide the batches.
        """
        self.distribution = distribution
        self.dataset = load(classifier, evaluation)
        backend.start()
        distribution.agree(data_set=self.dataset.info.name, images=self.dataset.index, labels=self.dataset.labels)
        with distribution.scope():
            self.classifier = with_statistics(classifier, evaluation)
        if self.classifier.training:
            _check_batches(len(self.dataset), batch_size, distribution.replicas)
            batch_size = BN_BATCH_SIZE
        if batch_size is None:
            shape = (*self.classifier.size, self.classifier.channels)
            memory = LAZY_BATCH_BYTES if self._lazy else math.inf
            model = self.classifier.model
            each = distribution.from_chief(lambda: batching.estimate_batch_size(model, shape, memory))
            batch_size = distribution.replicas * each
            batch_size = min(batch_size, self._most_at_once) if self._lazy else batch_size
        self.batch_size = batch_size
        self.predict_batch = distribution.compile_sharded(self.classifier.predict, signature=[self.signature[0]])

    @functools.cached_property
    def pixels(self) -> Images:
        """Clean images, float32 [n, height, width, channels], at the size of the classifier's input.

        Raises `UsageError` where memory does not hold them: `parts` are smaller.
        """
        check_memory_of_images(self.dataset, self.classifier)
        return self.at_input(self.dataset.images[:])

    @functools.cached_property
    def clean_logits(self) -> Logits:
        """Logits of the clean images, float32 [n, classes]."""
        return self.predict_clean(Quiet())

    def predict_clean(self, progress: Progress, kept: KeptParts | None = None) -> Logits:
        """Return `clean_logits`, and report how many images are read where they are in files.

        `kept` has the parts that are done already.
        """
        if "clean_logits" not in self.__dict__:
            found, parts = [], self._parts()
            kept = kept or KeptParts(None, {})
            progress = Quiet() if len(parts) == 1 else progress
            images = data.decoded_ahead(self.dataset.images, parts)
            with progress_task(progress, "clean images", len(self), "images"), contextlib.closing(images):
                for number, (part, decode) in enumerate(zip(parts, images, strict=True)):
                    found.append(kept.get(number, functools.partial(self._clean_part, part, decode))["logits"])
                    progress.advance(part.stop)
            self.clean_logits = np.concatenate(found)
        return self.clean_logits

    def _clean_part(self, part: slice, decode: Callable[[], DatasetImages]) -> Arrays:
        held = "pixels" in self.__dict__ or part == slice(0, len(self))
        return {"logits": self.logits(self.pixels[part] if held else self.at_input(decode()))}

    @property
    def clean_correct(self) -> Mask:
        """Bool [n], True where the clean image is classified correctly."""
        return metrics.is_correct(self.clean_logits, self.labels)

    @property
    def labels(self) -> Labels:
        """True classes, int32 [n]."""
        return self.dataset.labels

    @property
    def index(self) -> NDArray[np.int32]:
        """Number of each example in its published split, int32 [n]: the seed of its random draws."""
        return self.dataset.index.astype(np.int32)

    @property
    def signature(self) -> list[object]:
        """Specifications of the tensors (pixels, labels, index), for any number of examples."""
        vector = backend.spec((None,), "int32")
        return [backend.spec((None, *self.classifier.size, self.classifier.channels), "float32"), vector, vector]

    def __len__(self) -> int:
        return len(self.dataset)

    def at_input(self, images: DatasetImages) -> Images:
        """Pixels, float32 [m, height, width, channels], of stored images, enlarged to the classifier's input."""
        return pixel_array(images, self.classifier.size)

    def map_batches(
        self, function: Callable[..., AnyArray], *arrays: AnyArray, on_batch: Callable[[int], None] | None = None
    ) -> AnyArray:
        """Call a function of arrays on batches of their first axis, and join what it returns.

        Args:
            function: arrays [b, ...] -> array [b, ...].
            arrays: each [m, ...].
            on_batch: called with the number of examples that are done.

        Returns:
            [m, ...].
        """
        return batching.map_batches(function, *arrays, batch_size=self.batch_size, on_batch=on_batch)[0]

    def logits(self, images: Images) -> Logits:
        """Logits, float32 [m, classes], of float32 pixels [m, height, width, channels]."""
        return self.map_batches(self.predict_batch, images)

    def subset(self, positions: Index) -> EvalSet:
        """Return an eval set of the examples at these positions."""
        other = copy.copy(self)
        other.dataset, other.clean_logits = self.dataset.take(positions), self.clean_logits[positions]
        other.__dict__.pop("pixels", None)
        if "pixels" in self.__dict__:
            other.pixels = self.pixels[positions]
        return other

    def parts(self) -> Generator[tuple[Index, Callable[[], EvalSet]]]:
        """Yield (positions, what returns the eval set) of consecutive examples, as many as memory should hold at once.

        While a part is in use, images in files are decoded for the next. Close it where it is not used up.
        """
        parts = self._parts()
        with contextlib.closing(data.decoded_ahead(self.dataset.images, parts)) as images:
            for part, decode in zip(parts, images, strict=True):
                positions = np.arange(part.start, part.stop)
                yield positions, functools.partial(self._part, positions, decode)

    def _part(self, positions: Index, decode: Callable[[], DatasetImages]) -> EvalSet:
        if len(positions) == len(self):
            return self
        part = self.subset(positions)
        if "pixels" not in part.__dict__:
            part.dataset = replace(part.dataset, images=decode())
        return part

    @property
    def in_parts(self) -> bool:
        """True where memory should not hold the pixels of all examples at once."""
        return len(self._parts()) > 1

    @property
    def _lazy(self) -> bool:
        return data.as_lazy(self.dataset.images) is not None

    @property
    def sample_size(self) -> int:
        """Number of examples for a check that holds their pixels."""
        return min(SAMPLE, max(1, SAMPLE_BYTES // self._bytes_each))

    @property
    def _bytes_each(self) -> int:
        return 4 * self.classifier.channels * int(np.prod(self.classifier.size))

    @property
    def _most_at_once(self) -> int:
        """Number of examples whose pixels may be in memory at once, as far as one batch allows it."""
        few = self._lazy or self._bytes_each > LARGE_IMAGE
        return max(1, (LAZY_BYTES if few else ARRAY_BYTES) // self._bytes_each)

    def _parts(self) -> list[slice]:
        n = len(self.dataset)
        size = max(1, self._most_at_once // self.batch_size) * self.batch_size
        return [slice(i, min(n, i + size)) for i in range(0, n, size)]


def check_same_input(first: Classifier, other: Classifier, evaluation: Evaluation) -> None:
    """Check that two models take the same images: resizing an adversarial example would make another perturbation.

    Raises:
        UsageError: Their data set, its classes and channels, or the size of their inputs differ.
    """

    def requirements(one: Classifier) -> dict[str, tuple[object, str]]:
        """By name, what must be equal, and how it is said."""
        return {
            "data set": (evaluation.dataset or one.info.name, one.dataset),
            "classes": (one.info.classes, _listed(one.info.classes)),
            "channels": (one.info.shape[2], str(one.info.shape[2])),
            "size of the input": (one.size, format_shape(one.size)),
        }

    expected = requirements(first)
    for name, (received, text) in requirements(other).items():
        if received != expected[name][0]:
            raise _unfit(first, other, f"{name} {text} against {expected[name][1]}")


def check_same_examples(first: EvalSet, other: EvalSet) -> None:
    """Check that two eval sets have the same images: validation examples, or a subset by the seed, may be others.

    Raises:
        UsageError: They differ.
    """
    one, two = first.dataset, other.dataset  # index and labels, with the name of the data, make the images
    same = one.info.name == two.info.name and np.array_equal(one.index, two.index)
    if not same or not np.array_equal(one.labels, two.labels):
        raise _unfit(first.classifier, other.classifier, "other examples of the split")


def _unfit(first: Classifier, other: Classifier, difference: str) -> UsageError:
    return UsageError(
        f"{other.label} does not take the images of {first.label}: {difference}; expected models of one data set (an "
        "external model's is named with --data), with the same examples, classes, channels and size of the input"
    )


def check_memory_of_images(dataset: data.Dataset, classifier: Classifier, copies: int = 1) -> None:
    """Refuse examples of which memory does not hold `copies` float32 arrays. Raises `UsageError`."""
    shape = (*classifier.size, classifier.channels)
    what = f"{dataset.info.label}: {len(dataset):,} images of {format_shape(shape)}"
    check_memory(4.0 * copies * len(dataset) * math.prod(shape), what, "take fewer of them with --limit")


def _check_batches(n: int, batch_size: int | None, replicas: int) -> None:
    """Raise `UsageError` where BN's statistics would be of other examples than a batch's."""
    if batch_size is not None:
        raise UsageError(f"batch size is fixed at {BN_BATCH_SIZE} with bn_statistics: batch")
    size = min(BN_BATCH_SIZE, n)
    if size % replicas:
        raise UsageError(
            f"strategy: BN takes its statistics from batches of {size} here, which {replicas} replicas do not "
            "divide; use --strategy none"
        )


def with_statistics(classifier: Classifier, evaluation: Evaluation) -> Classifier:
    """Return the classifier with the BN statistics of the evaluation.

    Args:
        classifier: one without BN is returned as it is.
        evaluation: `bn_statistics` is `tracked`, `batch` or `reestimated`.

    Returns:
        A classifier with a copy or a view of the model, or the same one for `tracked`; layers that act in training only
        are held off, and named.

    Raises:
        UsageError: where `reestimate_statistics` cannot tell what a BN layer of another class tracks.
    """
    kind = evaluation.bn_statistics
    if kind == "tracked" or not bn_statistics.has_batch_normalization(classifier.model):
        return classifier

    held_off = bn_statistics.held_off(classifier.model, classifier.to_input(_noise(classifier)))
    classifier = replace(classifier, held_off=held_off)
    if kind == "batch":
        return replace(classifier, model=bn_statistics.use_batch_statistics(classifier.model), training=True)
    examples, batch_size = training_examples(classifier)
    if data.is_user_data(classifier.dataset):  # published sets are mixed, user data may go class by class
        examples = data.subset(examples, len(examples), classifier.dataset)

    def call(model: KerasModel, pixels: Tensor) -> Tensor:
        return replace(classifier, model=model, training=True).predict(pixels)

    model = bn_statistics.reestimate_statistics(
        classifier.model, examples.images, batch_size, width=classifier.size, call=call
    )
    return replace(classifier, model=model)


def _noise(classifier: Classifier) -> Tensor:
    """A few images of noise, on which layers show what they do in training."""
    shape = (8, *classifier.size, classifier.channels)
    return backend.place(np.random.default_rng(0).uniform(size=shape), "float32")


def training_examples(classifier: Classifier, dataset: str | None = None) -> tuple[data.Dataset, int]:
    """Return the examples that a classifier was trained on, and the batch size of its training.

    Args:
        classifier: of an external model all training examples of its data set are taken, brought to its classes and
            input, and a batch size of 100.
        dataset: name or path of its data, where they were moved.

    Returns:
        (examples, batch size).

    Raises:
        UsageError: as `load`.
    """
    examples = _stored_training_examples(classifier, dataset)
    if classifier.external:
        examples = _with_classes_of(classifier, examples)
        examples = fit_images(examples, classifier.size, classifier.channels, classifier.resize)
    return examples, classifier.identity.get("train", {}).get("batch_size", 100)


def _stored_training_examples(classifier: Classifier, dataset: str | None = None) -> data.Dataset:
    cell = classifier.identity
    limited = {key: cell["data"][key] for key in ("limit", "balanced") if key in cell.get("data", {})}
    return data.load(
        dataset or classifier.dataset,
        "train",
        validation=classifier.validation,
        classes=classifier.classes,
        subset_seed=classifier.subset_seed,
        **limited,
    )


def load(classifier: Classifier, evaluation: Evaluation) -> data.Dataset:
    """Load the examples of an evaluation, checked against what the classifier takes.

    Of the training split only the examples that the classifier was trained on are taken. For BN with the statistics of
    the batch they are in a fixed random order even without a limit, since a published order may go class by class; and
    of a larger set there are whole batches alone, since a smaller batch would make another classifier.

    Args:
        classifier: the classifier; its data set stands in where the evaluation names none.
        evaluation: data set, split, limit and BN statistics.

    Returns:
        The examples.

    Raises:
        UsageError: for an unknown data set, one that has changed since the training, a limit above the size of the
            split or that does not make whole batches, and for other classes, channels or widths than the classifier's.
    """
    name, trained = evaluation.dataset or classifier.dataset, classifier.info

    def read(limit: int | None) -> data.Dataset:
        if _is_training_set(classifier, evaluation):
            return data.subset(
                _stored_training_examples(classifier, name), limit, f"{name}: limit: what was trained on"
            )
        return data.load(
            name,
            evaluation.split,
            validation=classifier.validation,
            limit=limit,
            classes=classifier.classes,
            subset_seed=classifier.subset_seed if evaluation.split != "test" else None,
        )

    try:
        dataset = read(evaluation.limit)
        if evaluation.bn_statistics == "batch":
            whole = _whole_batches(len(dataset), evaluation.limit)
            dataset = dataset if whole == evaluation.limit else read(whole)
    except UsageError as error:
        moved = evaluation.dataset is None and ":" in trained.name  # user data, by their digest
        raise UsageError(f"{error}" + ("; if the data were moved, name them with --data" if moved else "")) from None
    if evaluation.dataset is None and dataset.info.name != trained.name:
        raise UsageError(f"{name} has changed since this was trained on it; name the data to measure on with --data")
    dataset = _with_classes_of(classifier, dataset)
    if classifier.external or classifier.resize != "none":
        return fit_images(dataset, classifier.size, classifier.channels, classifier.resize)
    height, width, channels = dataset.info.shape
    if channels != trained.shape[2]:
        raise UsageError(f"{name}: expected images of {trained.shape[2]} channels, received {channels}")
    check_width(min(classifier.size), max(height, width), name)
    return dataset


def _with_classes_of(classifier: Classifier, dataset: data.Dataset) -> data.Dataset:
    """The examples with the classes of the classifier, where theirs are the same, or numbers without names."""
    info, classes = dataset.info, classifier.info.classes
    if classifier.class_names is not None:
        return data.with_class_names(dataset, classifier.class_names, "class names")
    if info.classes == classes:
        return dataset
    if info.has_class_names or len(info.classes) > len(classes):
        raise UsageError(
            f"{info.label}: its classes ({_listed(info.classes)}) are not those of the model ({_listed(classes)})"
        )
    return replace(dataset, info=replace(info, classes=classes))


def _listed(names: tuple[str, ...]) -> str:
    """Some names of classes."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])}, ... {len(names)} in all"


def _is_training_set(classifier: Classifier, evaluation: Evaluation) -> bool:
    """True for the training split of the data that the classifier was trained on, whether they are named or not."""
    own = evaluation.dataset is None or data.dataset_info(evaluation.dataset).name == classifier.info.name
    return own and evaluation.split == "train"


def share_trained_on(classifier: Classifier, evaluation: Evaluation, info: data.DatasetInfo) -> float:
    """Return the share of the split `all` that a run was trained on or chosen by; 0 for any other split.

    Args:
        classifier: of an external model nobody knows.
        evaluation: its split matters.
        info: the data that are measured.
    """
    if classifier.external or evaluation.split != "all" or info.name != classifier.info.name:
        return 0.0
    return 1 - info.size("test") / info.size("all")


def _whole_batches(n: int, limit: int | None) -> int:
    """The number of n examples that make whole batches. Raises `UsageError` where a limit asks for others."""
    whole = n - n % BN_BATCH_SIZE if n > BN_BATCH_SIZE else n
    if limit not in (None, whole):
        raise UsageError(
            f"limit: bn_statistics: batch takes BN's statistics from batches of {BN_BATCH_SIZE}; "
            f"expected a multiple of {BN_BATCH_SIZE}, or fewer, received {limit}"
        )
    return whole


def without_large_limit(evaluation: Evaluation, classifier: Classifier) -> Evaluation:
    """Return the evaluation without a limit that the split is too small for, as a suite's may be.

    Args:
        evaluation: data set, split and limit.
        classifier: the classifier; its data set stands in where the evaluation names none.

    Returns:
        The same evaluation, or one without a limit.
    """
    info = data.dataset_info(evaluation.dataset) if evaluation.dataset else classifier.info
    size = info.size(evaluation.split, classifier.validation)
    if _is_training_set(classifier, evaluation):
        size = len(_stored_training_examples(classifier, evaluation.dataset))
    large = evaluation.limit is not None and 0 < size < evaluation.limit
    return evaluation.model_copy(update={"limit": None}) if large else evaluation
