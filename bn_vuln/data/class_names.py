"""Names of a model's classes in the order of its outputs, and labels brought to that order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from bn_vuln.config import nearest
from bn_vuln.data.describe import first_line
from bn_vuln.data.loading import Dataset
from bn_vuln.errors import UsageError
from bn_vuln.runtime import limits

# The names that each class goes by, the one to print last: ("tench",), or ("n01440764", "tench").
ClassNames: TypeAlias = tuple[tuple[str, ...], ...]
EXPECTED = (
    "expected a name a line, or JSON: a list of names, numbers to names, names to numbers, or numbers to [id, name]"
)


def read_class_names(path: str | Path) -> ClassNames:
    """Read the names of a model's classes, in the order of its outputs.

    Args:
        path: A text file with a name a line; or JSON: a list of names, {"0": name} as many tools write it, {name: 0} as
            Keras' `class_indices`, {"0": [id, name]} as Keras' imagenet_class_index.json. A name of a list may be such
            a pair too.

    Returns:
        The names that each class goes by.

    Raises:
        UsageError: The file cannot be read, is not of these forms, or names a class twice.
    """
    label = str(Path(path).expanduser().absolute())
    try:
        text = limits.read_file(Path(label), limits.TEXT_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = str(error.strerror or error) if isinstance(error, OSError) else f"no text ({first_line(error)})"
        raise UsageError(f"{label}: {reason}; {EXPECTED}") from None
    is_json = text.lstrip()[:1] in ("[", "{")
    names = _from_json(text, label) if is_json else _from_lines(text, label)
    if len(names) < 2:
        raise UsageError(f"{label}: {EXPECTED}, of two classes or more, received {len(names)}")
    seen: dict[tuple[str, ...], int] = {}
    for place, alternatives in enumerate(names):
        if alternatives in seen:
            places = f"{seen[alternatives]} and {place}"
            raise UsageError(f"{label}: expected each name once, {alternatives[-1]!r} is both class {places}")
        seen[alternatives] = place
    return names


def _from_lines(text: str, label: str) -> ClassNames:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise UsageError(f"{label}: {EXPECTED}, line {lines.index('') + 1} is empty")
    return tuple((line,) for line in lines)


def _from_json(text: str, label: str) -> ClassNames:
    try:
        found = limits.load_json(text)
    except ValueError as error:
        raise UsageError(f"{label}: no JSON ({first_line(error)}); {EXPECTED}") from None
    if isinstance(found, dict):
        if all(type(number) is int for number in found.values()):
            by_number = {number: name for name, number in found.items()}
        elif all(key.isdecimal() and len(key) < 10 for key in found):
            by_number = {int(key): name for key, name in found.items()}
        else:
            raise UsageError(f"{label}: {EXPECTED}, received other keys or values")
        missing = next((number for number in range(len(found)) if number not in by_number), None)
        if missing is not None:
            raise UsageError(f"{label}: expected the numbers 0 to {len(found) - 1}, {missing} is missing")
        found = [by_number[number] for number in range(len(found))]
    classes = [tuple(item) if isinstance(item, list) else (item,) for item in found]
    for place, names in enumerate(classes):
        if not names or not all(isinstance(name, str) and name for name in names):
            raise UsageError(f"{label}: {EXPECTED}, class {place} is {json.dumps(found[place])}")
    return tuple(classes)


def with_class_names(dataset: Dataset, names: ClassNames | Sequence[str], label: str) -> Dataset:
    """Bring the labels of a data set to the order of a model's outputs.

    Args:
        dataset: Its classes have names, which are looked for among those of the model: it may have some of them only.
            Classes that are mere numbers are those of the model already, and only get their names.
        names: Names of the model's classes, in the order of its outputs; of each one or several that it goes by.
        label: Where they are from, for the error message.

    Returns:
        The same examples with the numbers and names of the model's classes.

    Raises:
        UsageError: A class of the data is none of the model's, or several of them; or there are more numbers than
            names.
    """
    alternatives = [(name,) if isinstance(name, str) else tuple(name) for name in names]
    places: dict[str, list[int]] = {}
    for place, of_class in enumerate(alternatives):
        for name in dict.fromkeys(of_class):
            places.setdefault(name, []).append(place)
    classes = dataset.info.classes
    unknown = [name for name in classes if name not in places]
    data = dataset.info.label
    if unknown and not dataset.info.has_class_names:
        if len(classes) > len(alternatives):
            raise UsageError(f"{data}: has classes 0 to {len(classes) - 1}, {label} names {len(alternatives)}")
        numbers = np.arange(len(classes))
    else:
        if unknown:
            raise UsageError(
                f"{data}: class {unknown[0]!r} is not in {label}, which names {len(alternatives)} classes"
                f"{_nearest(unknown[0], places)}"
            )
        if shared := next((name for name in classes if len(places[name]) > 1), None):
            where = " and ".join(map(str, places[shared]))
            raise UsageError(f"{data}: class {shared!r} is ambiguous: in {label} it is class {where}")
        numbers = np.array([places[name][0] for name in classes])
        if len({*numbers.tolist()}) < len(classes):
            first, second = _same_class(classes, numbers.tolist())
            raise UsageError(f"{data}: classes {first!r} and {second!r} are one class in {label}")
    printed = [of_class[-1] for of_class in alternatives]
    unique = tuple(name if printed.count(name) == 1 else "/".join(alternatives[i]) for i, name in enumerate(printed))
    info = replace(dataset.info, classes=unique)
    return replace(dataset, labels=numbers.astype(np.int32)[dataset.labels], info=info)


def _nearest(name: str, known: Iterable[str]) -> str:
    """As `nearest`, for names that differ in upper and lower case too."""
    lower = {word.lower(): word for word in known}
    return f"; did you mean {lower[name.lower()]!r}?" if name.lower() in lower else nearest(name, lower.values())


def _same_class(classes: Sequence[str], numbers: Sequence[int]) -> tuple[str, str]:
    """The first two names that have one number."""
    second = next(i for i, number in enumerate(numbers) if number in numbers[:i])
    return classes[numbers.index(numbers[second])], classes[second]
