"""Arrays of images and labels as people have them, brought to the form that data sets are stored in, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bn_vuln.config import nearest
from bn_vuln.data.describe import format_list, format_shape
from bn_vuln.data.published import Split, SplitDataset
from bn_vuln.errors import UsageError
from bn_vuln.typing import AnyArray, DatasetImages, Labels

TOLERANCE = 1e-5  # by which float pixels may leave [0, 1], as rounding makes them
DARK = 63  # whole pixels of 0 to 255 that do not exceed this are doubtful: images of 4 to 6 bits have such
# Floats that exceed 1 but not this are taken neither for pixels in [0, 1] nor, all nearly black, for those of 0 to 255.
UNCLEAR = 16.0
MOST_CLASSES = 100_000  # larger labels are no class numbers


@dataclass(frozen=True)
class CheckedImages:
    """Images in the form that data sets are stored in.

    Attributes:
        arrays: By name, all uint8, or all float32 pixels in [0, 1]; [n, height, width, 1 or 3].
        notes: As in `DatasetInfo`, like `flags`.
    """

    arrays: dict[str, DatasetImages]
    notes: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class CheckedLabels:
    """Labels as class numbers.

    Attributes:
        arrays: By name, int32 [n].
        classes: Names of the classes; their numbers where they have no names.
        notes: As in `DatasetInfo`, like `flags`.
    """

    arrays: dict[str, Labels]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    flags: tuple[str, ...]


# ---------------------------------------------------------------- images


def checked_images(arrays: Mapping[str, AnyArray], label: str) -> CheckedImages:
    """Check the images of all splits of a data set, and bring them to one type.

    Args:
        arrays: By the name that messages give them: [n, height, width] or [n, height, width, 1 or 3], all of one height
            and width. Whole numbers are bytes of 0 to 255, floats are pixels in [0, 1] or, where they exceed 1, of 0 to
            255; booleans are black and white.
        label: Beginning of the error messages.

    Returns:
        uint8 images where all pixels are whole numbers of 0 to 255 (or booleans), else float32 pixels in [0, 1].

    Raises:
        UsageError: An array has another type, shape or range; the message says what was expected and received.
    """
    shaped = {name: _with_channels(array, f"{label}: {name}") for name, array in arrays.items()}
    first, *others = shaped
    for other in others:
        if shaped[other].shape[1:] != shaped[first].shape[1:]:
            sizes = [f"{name}: {format_shape(shaped[name].shape[1:])}" for name in (first, other)]
            raise UsageError(f"{label}: expected images of one shape, received {' and '.join(sizes)}")
    kinds = {name: _kind(array, f"{label}: {name}") for name, array in shaped.items()}
    _refuse_two_ranges(kinds, label)
    as_bytes = all(kind in ("bytes", "booleans", "whole floats of 0-255") for kind in kinds.values())
    notes, flags = [], []
    for name, array in shaped.items():
        low, high = float(array.min()), float(array.max())
        notes += _note(name, array, kinds[name], as_bytes)
        flags += _flags(name, kinds[name], low, high)
    stored = {name: _converted(array, kinds[name], as_bytes) for name, array in shaped.items()}
    return CheckedImages(stored, tuple(notes), tuple(flags))


def _with_channels(array: AnyArray, label: str) -> AnyArray:
    """The array as [n, height, width, 1 or 3]; `UsageError` for any other shape."""
    expected = "expected images [n, height, width] or [n, height, width, 1 or 3]"
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.size:
        return images
    remedy = ""
    if not array.size and array.ndim in (3, 4):
        remedy = "; there are no images in it"
    elif array.ndim == 4 and array.shape[1] in (1, 3, 4):
        remedy = "; move the channels last by x.transpose(0, 2, 3, 1)"
    elif array.ndim == 4 and array.shape[3] == 4:
        remedy = "; of RGBA images take x[..., :3], which leaves transparency out"
    elif array.ndim == 4 and array.shape[3] == 2:
        remedy = "; of gray images with transparency take x[..., :1]"
    elif array.ndim == 2 and array.shape[0]:
        size = round(array.shape[1] ** 0.5)
        remedy = f"; of flat images make them by x.reshape(-1, {size}, {size})" if size**2 == array.shape[1] else ""
    raise UsageError(f"{label}: {expected}, received {list(array.shape)}{remedy}")


def _kind(array: AnyArray, label: str) -> str:
    """What the pixels of an array are; `UsageError` where they are none."""
    if array.dtype.kind == "b":
        return "booleans"
    if array.dtype == np.uint8:
        return "bytes"
    if array.dtype.kind not in "iuf":
        raise UsageError(
            f"{label}: expected pixels, uint8 of 0 to 255 or floats in [0, 1] or of 0 to 255, received {array.dtype}"
        )
    low, high = float(array.min()), float(array.max())
    found = f"received {array.dtype} from {low:.6g} to {high:.6g}"
    if not np.isfinite([low, high]).all():
        start, wrong = next((start, bad) for start, part in _parts(array) if (bad := ~np.isfinite(part)).any())
        image = start + int(np.argmax(wrong.any((1, 2, 3))))
        raise UsageError(f"{label}: expected finite pixels, image {image} has NaN or infinite ones")
    if array.dtype.kind in "iu":
        if low < 0 or high > 255:
            deep = high > 255 and low >= 0
            remedy = "; of 16-bit images make bytes by np.uint8(x // 257)" if deep else ""
            raise UsageError(f"{label}: expected whole pixels of 0 to 255, {found}{remedy}")
        return "bytes"
    if low < -TOLERANCE:
        cause = "they look scaled to [-1, 1] or standardized" if low < -0.5 else "some are negative"
        raise UsageError(
            f"{label}: expected pixels in [0, 1] or of 0 to 255, {found}: {cause}; give the pixels before that "
            "((x + 1) / 2, x * std + mean, or np.clip(x, 0, 1)), and say what the model takes with --input-scale"
        )
    if high <= 1 + TOLERANCE:
        return "floats in [0, 1]"
    if high > 255 + 255 * TOLERANCE:
        raise UsageError(
            f"{label}: expected pixels in [0, 1] or of 0 to 255, {found}; divide them by their largest possible value"
        )
    if all(np.array_equal(part, np.floor(part)) for _, part in _parts(array)):
        return "whole floats of 0-255"
    if high <= UNCLEAR:
        raise UsageError(
            f"{label}: expected pixels in [0, 1] or of 0 to 255, {found}, which is neither; divide them by their "
            "largest possible value, or cut what exceeds 1 by np.clip(x, 0, 1)"
        )
    return "floats of 0-255"


def _parts(array: AnyArray) -> Iterator[tuple[int, AnyArray]]:
    """An array in pieces, each with its beginning, so that what is computed of them stays small."""
    return ((start, array[start : start + 1000]) for start in range(0, len(array), 1000))


def _refuse_two_ranges(kinds: Mapping[str, str], label: str) -> None:
    """Raise `UsageError` where the floats of one array are in [0, 1] and those of another of 0 to 255."""
    small = next((name for name, kind in kinds.items() if kind == "floats in [0, 1]"), None)
    large = next((name for name, kind in kinds.items() if kind.endswith("floats of 0-255")), None)
    if small and large:
        raise UsageError(
            f"{label}: expected pixels of one range, received {small} in [0, 1] and {large} of 0 to 255; "
            "bring both to one"
        )


def _note(name: str, array: AnyArray, kind: str, as_bytes: bool) -> list[str]:
    """What is to be said about the pixels of an array."""
    if kind == "floats in [0, 1]":
        return [f"{name}: {array.dtype.name} pixels in [0, 1]"]
    if kind == "floats of 0-255":
        return [f"{name}: {array.dtype.name} pixels of 0 to 255, divided by 255"]
    if array.dtype == np.uint8:
        return [] if as_bytes else [f"{name}: uint8 pixels, divided by 255"]
    if kind == "booleans":
        return [f"{name}: booleans, taken for black and white"]
    return [f"{name}: {array.dtype.name} pixels of 0 to 255, all whole" + ("" if as_bytes else ", divided by 255")]


def _flags(name: str, kind: str, low: float, high: float) -> list[str]:
    """What makes the pixels of an array doubtful."""
    if low == high:
        return [f"{name}: all pixels are {high:g}"]
    if kind not in {"booleans", "floats in [0, 1]"} and high <= 1:
        return [
            f"{name}: all pixels are 0 or 1 of 255, nearly black: were pixels in [0, 1] cast to whole numbers? "
            "Save them as floats, or times 255"
        ]
    if kind not in {"booleans", "floats in [0, 1]"} and high <= DARK:
        return [
            f"{name}: no pixel exceeds {high:g} of 255, all are dark: do they have fewer bits, as of 0 to 15? Divide "
            "them by their largest possible value"
        ]
    if kind == "floats in [0, 1]" and high <= 1.001 / 255:
        return [f"{name}: no pixel exceeds 1/255, all are nearly black: were they divided by 255 twice?"]
    return []


def _converted(array: AnyArray, kind: str, as_bytes: bool) -> DatasetImages:
    """The stored form of an array."""
    if as_bytes:
        if array.dtype == np.uint8:
            return np.ascontiguousarray(array)
        return array.astype(np.uint8) * np.uint8(255 if kind == "booleans" else 1)
    if kind in ("floats in [0, 1]", "booleans"):
        pixels = np.ascontiguousarray(array, np.float32)
    else:
        pixels = array.astype(np.float32) / np.float32(255)
    inside = pixels.min() >= 0 and pixels.max() <= 1
    return pixels if inside else np.clip(pixels, 0, 1)


# ---------------------------------------------------------------- labels


def checked_labels(arrays: Mapping[str, AnyArray], names: AnyArray | None, label: str) -> CheckedLabels:
    """Check the labels of all splits of a data set, and bring them to class numbers.

    Not every class needs an example: a model can be evaluated on some of its classes.

    Args:
        arrays: By the name that messages give them: whole numbers >= 0 of any type, names of classes as text, [n] or
            [n, 1], or one-hot rows [n, classes].
        names: Names of the classes [classes], in the order of their numbers; None where they have none.
        label: Beginning of the error messages.

    Returns:
        The class numbers. Text without `names` makes the classes, in alphabetical order, unless it is all numbers.

    Raises:
        UsageError: An array has another type or shape, or holds other labels.
    """
    classes = None if names is None else _checked_names(names, f"{label}: classes")
    arrays = {name: _column(array, f"{label}: {name}") for name, array in arrays.items()}
    text = {name: _words(array) for name, array in arrays.items() if array.dtype.kind in "US"}
    notes: list[str] = []
    if text:
        if len(text) < len(arrays):
            other = next(name for name in arrays if name not in text)
            raise UsageError(f"{label}: expected labels of one kind, {next(iter(text))} is text, {other} is not")
        return _of_text(text, classes, label)
    numbers = {}
    columns = 0
    for name, array in arrays.items():
        if array.ndim == 2:
            if columns not in (0, array.shape[1]):
                raise UsageError(f"{label}: {name}: expected {columns} one-hot columns, received {array.shape[1]}")
            columns = array.shape[1]
            numbers[name] = _of_one_hot(array, f"{label}: {name}")
        else:
            numbers[name] = _whole_numbers(array, f"{label}: {name}")
    if columns:
        notes.append(f"labels: one-hot rows of {columns} classes")
    return _with_classes(numbers, classes, columns, label, notes)


def _with_classes(
    numbers: dict[str, Labels], classes: tuple[str, ...] | None, columns: int, label: str, notes: list[str]
) -> CheckedLabels:
    """Labels with their classes; `UsageError` for labels beyond them."""
    highest = max(numbers, key=lambda name: int(numbers[name].max()))
    k = int(numbers[highest].max()) + 1
    if classes is not None and max(k, columns) > len(classes):
        received = f"{columns} one-hot columns" if columns else f"a label {k - 1} in {highest}"
        raise UsageError(f"{label}: classes names 0 to {len(classes) - 1}, received {received}")
    lowest = min(int(array.min()) for array in numbers.values())
    flags = []
    if classes is None and not columns:
        present = np.unique(np.concatenate([*numbers.values()]))
        if lowest == 1 and k > 2:
            flags.append(f"no label is 0, they are 1 to {k - 1}: if they count from 1, subtract 1")
        if len(present) > 1 and present[-1] in (254, 255, 65535) and present[-2] < present[-1] - 1:
            flags.append(
                f"the label {present[-1]} is far from the others, {present[0]} to {present[-2]}: if it marks images "
                "without a class, leave them out"
            )
    return CheckedLabels(numbers, classes or tuple(map(str, range(max(k, columns)))), tuple(notes), tuple(flags))


def _checked_names(array: AnyArray, label: str) -> tuple[str, ...]:
    """Names of the classes, each once, from text [K]; `UsageError` for any other array."""
    if array.ndim != 1 or array.dtype.kind not in "US" or not len(array):
        raise UsageError(f"{label}: expected names [K], received {array.dtype} {list(array.shape)}")
    names = _words(array)
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise UsageError(f"{label}: expected each name once, {twice!r} is there twice")
    return tuple(names)


def _words(array: AnyArray) -> list[str]:
    """The text of an array [n] of str or bytes."""
    return [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in array.tolist()]


def _column(array: AnyArray, label: str) -> AnyArray:
    """The labels as [n], or one-hot [n, classes]; `UsageError` for any other shape or type."""
    expected = "expected labels [n] or [n, 1], or one-hot rows [n, classes]"
    if array.ndim not in (1, 2) or not array.size:
        raise UsageError(f"{label}: {expected}, received {list(array.shape)}")
    if array.dtype.kind not in "biufUS":
        raise UsageError(f"{label}: expected whole numbers or text, received {array.dtype}")
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "US":
        raise UsageError(f"{label}: {expected}, received text {list(array.shape)}")
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _of_one_hot(array: AnyArray, label: str) -> Labels:
    """Class numbers of one-hot rows; `UsageError` at the first row that has not exactly one 1 and else 0."""
    binary = ((array == 0) | (array == 1)).all(1)
    wrong = ~binary | ((array == 1).sum(1) != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        if binary[row]:
            received = f"row {row} has {int((array[row] == 1).sum())} ones: each image must have one class"
        else:
            received = f"row {row} holds {array[row][(array[row] != 0) & (array[row] != 1)][0]}"
        raise UsageError(f"{label}: expected one-hot rows, one 1 and else 0, {received}")
    return array.argmax(1).astype(np.int32)


def _whole_numbers(array: AnyArray, label: str) -> Labels:
    """Class numbers of whole numbers >= 0 of any type; `UsageError` for other numbers."""
    if array.dtype.kind == "f":
        wrong = ~np.isfinite(array) | (array != np.floor(array))
        if wrong.any():
            place = int(np.argmax(wrong))
            raise UsageError(f"{label}: expected whole numbers, label {place} is {array[place]}")
    if array.min() < 0 or array.max() >= MOST_CLASSES:
        low, high = (f"{value:.10g}" for value in (array.min(), array.max()))
        cause = "; leave out the images that have no class" if array.min() < 0 else ""
        cause = "; of labels -1 and 1 make them by (y + 1) // 2" if set(np.unique(array)) <= {-1, 1} else cause
        raise UsageError(f"{label}: expected class numbers of 0 to K-1, received {low} to {high}{cause}")
    return array.astype(np.int32)


def _of_text(text: dict[str, list[str]], classes: tuple[str, ...] | None, label: str) -> CheckedLabels:
    """Class numbers of labels that are names of classes, or numbers written as text."""
    found = {word for words in text.values() for word in words}
    if all(word.isdecimal() and len(word) < 6 for word in found) and not (classes and found <= {*classes}):
        numbers = {name: np.array(list(map(int, words)), np.int32) for name, words in text.items()}
        return _with_classes(numbers, classes, 0, label, ["labels: numbers written as text"])
    names = classes or tuple(sorted(found))
    if unknown := sorted(found - {*names}):
        raise UsageError(f"{label}: classes does not name the label {unknown[0]!r}{nearest(unknown[0], names)}")
    places = {name: place for place, name in enumerate(names)}
    numbers = {name: np.array([places[word] for word in words], np.int32) for name, words in text.items()}
    notes = () if classes else (f"labels: text; the classes, in alphabetical order: {format_list(names)}",)
    return CheckedLabels(numbers, names, notes, ())


# ---------------------------------------------------------------- data sets


def dataset(
    name: str,
    pairs: Mapping[str, tuple[str, str]],
    arrays: Mapping[str, AnyArray],
    class_names: AnyArray | None,
    *,
    label: str,
    notes: tuple[str, ...] = (),
) -> SplitDataset:
    """Make a data set of arrays.

    Args:
        name: The name that identifies the data.
        pairs: Published split, or `whole` -> names of its images and labels.
        arrays: All of these, by name.
        class_names: As `checked_labels` takes them.
        label: The data as their user knows them.
        notes: What is to be said beside what is found here.

    Returns:
        The data set.

    Raises:
        UsageError: As `checked_images` and `checked_labels`; or there are not as many labels as images.
    """
    images = checked_images({x: arrays[x] for x, _ in pairs.values()}, label)
    labels = checked_labels({y: arrays[y] for _, y in pairs.values()}, class_names, label)
    splits = {}
    for split, (x, y) in pairs.items():
        found, classes = images.arrays[x], labels.arrays[y]
        if len(found) != len(classes):
            remedy = f"; of one image make {x} by x[None]" if len(classes) == 1 and arrays[x].ndim == 3 else ""
            raise UsageError(
                f"{label}: {x} has {len(found)} images and {y} {len(classes)} labels, expected as many{remedy}"
            )
        splits[split] = Split.whole(found.view(), classes)  # a view, so that a caller's own array stays writable
    return SplitDataset.from_splits(
        name,
        labels.classes,
        splits,
        label=label,
        notes=(*notes, *images.notes, *labels.notes),
        flags=(*images.flags, *labels.flags),
    )
