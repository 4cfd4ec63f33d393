"""User data as `folder:PATH`: a folder of image files for each class, or images with a file of labels.

Options stand in the name, so that they go wherever it goes. `folder+no-exif:PATH`: images are not turned as their EXIF
orientation says. `folder+skip-bad:PATH`: files that are no images, or damaged, are left out. See `with_options`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bn_vuln.config.identity import ID_LENGTH
from bn_vuln.data import fingerprint, image_files, imagenet
from bn_vuln.data.describe import format_list
from bn_vuln.data.images import as_array, lazy_images, take
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.published import PUBLISHED, SPLIT_WORDS, WHOLE, Split, SplitDataset
from bn_vuln.errors import UsageError
from bn_vuln.runtime.limits import TEXT_BYTES, read_file
from bn_vuln.runtime.threads import map_in_order
from bn_vuln.typing import DatasetImages

NAME = re.compile(r"folder(?P<no_exif>\+no-exif)?(?P<skip_bad>\+skip-bad)?:(?P<path>.*)", re.DOTALL)
EXPECTED = (
    "expected PATH/CLASS/*, PATH/SPLIT/CLASS/* where SPLIT is train, val (valid, validation) or test, or images with a "
    "file labels.csv beside them (FILE,CLASS a line)"
)
LABELS = ("labels.csv", "labels.txt", "labels.tsv")
SEPARATOR = re.compile(r"[,\t]|(?<![,\t]) +(?=[^\s,]+$)")  # a comma, a tab, or the last space
IMAGENET_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
OR_LEFT_OUT = "; or leave such files out with --skip-bad"
LONGEST_LINE = 1000  # of a file of labels
IN_MEMORY = 200_000_000  # bytes of the images of a folder, above which they are decoded when they are asked for
ImageFiles = dict[str, dict[str, list[Path]]]  # split (or `whole`) -> class -> files, in order


class _Folder(NamedTuple):
    """What a name says."""

    root: Path
    exif: bool
    skip_bad: bool


def matches(name: str) -> bool:
    """Return True for folder:PATH, with or without options."""
    return NAME.fullmatch(name) is not None


def with_options(name: str, *, exif: bool = True, skip_bad: bool = False) -> str:
    """The name of the same folder, read with these options.

    Args:
        name: folder:PATH; any other name is returned as it is where the options are the default.
        exif: Turn images as their EXIF orientation says.
        skip_bad: Leave out files that are no images, or damaged.

    Returns:
        The name. Options of `name` stay.

    Raises:
        UsageError: There are options, and the name is not that of a folder.
    """
    match = NAME.fullmatch(name)
    if match is None:
        if exif and not skip_bad:
            return name
        raise UsageError(f"{name}: --no-exif and --skip-bad are for a folder of images, folder:PATH")
    return _name(_Folder(Path(match["path"]), exif and not match["no_exif"], skip_bad or bool(match["skip_bad"])))


def absolute_name(name: str) -> str:
    """The name with its path made absolute."""
    return _name(_parsed(name))


def _name(folder: _Folder) -> str:
    return f"folder{'' if folder.exif else '+no-exif'}{'+skip-bad' if folder.skip_bad else ''}:{folder.root}"


def _parsed(name: str) -> _Folder:
    match = NAME.fullmatch(name)
    assert match is not None
    path = Path(match["path"]).expanduser().absolute()
    return _Folder(path, exif=not match["no_exif"], skip_bad=bool(match["skip_bad"]))


def digest(name: str) -> str:
    """Digest of the names and bytes of all image files, and of whether they are turned.

    Raises:
        UsageError: As `read`, for what can be seen without decoding images.
    """
    return _digest(_parsed(name))


def _digest(folder: _Folder) -> str:
    files, _ = _good_files(folder)
    named_files = []
    for classes in files.values():
        for name, paths in sorted(classes.items()):
            for path in paths:
                inside = path.relative_to(folder.root)
                # Of images side by side the class is in no path.
                named_files.append(((Path(name) / inside if len(inside.parts) == 1 else inside).as_posix(), path))
    try:
        named = fingerprint.digest(named_files)
    except UsageError as error:  # a broken link, a pipe, a device
        raise UsageError(f"{error}{image_files.REMEDY}") from None
    return named if folder.exif else hashlib.sha256(f"{named}\0no-exif".encode()).hexdigest()[:ID_LENGTH]


def dataset_info(name: str) -> DatasetInfo:
    """Info of the data: classes by the names of their folders; mean and std are computed when they are first read.

    Raises:
        UsageError: As `read`.
    """
    return _dataset(name).info


def splits(name: str) -> tuple[str, ...]:
    """What the folder holds: some of `train`, `validation` and `test`, or `whole`.

    Raises:
        UsageError: As `read`.
    """
    return tuple(_dataset(name).splits)


def read(name: str, split: str) -> Split:
    """Read a split of a folder of images.

    The images are those of PATH/SPLIT/CLASS/* or of PATH/CLASS/*. Classes and files come in the order of their names;
    hidden files do not count. The classes of all splits together are those of the data.

    Args:
        name: folder:PATH, of files that `image_files` can read. They are gray where all are, else RGB.
        split: One of `splits`.

    Returns:
        The examples; `index` counts the files of the split in their order. The images are an array where all have one
        size and are together no larger than `IN_MEMORY`; else they are lazy.

    Raises:
        UsageError: A folder or file, which is named, is not there or not of this format.
    """
    return _dataset(name).splits[split]


def left_out(name: str) -> dict[str, str]:
    """Files that `+skip-bad` leaves out, by path, with what is wrong with each; none for any other name."""
    return {str(path): text for path, text in _good_files(_parsed(name))[1].items()} if matches(name) else {}


def _dataset(name: str) -> SplitDataset:
    folder = _parsed(name)
    return _load(folder, _digest(folder))


@functools.lru_cache(maxsize=2)
def _load(folder: _Folder, digest: str) -> SplitDataset:
    """The data set in a folder; `digest` keys the cache and names the data."""
    files, bad = _good_files(folder)
    names = sorted({name for classes in files.values() for name in classes})
    images, colours = _images(_all_files(files), folder.exif)
    splits: dict[str, Split] = {}
    for split, classes in files.items():
        sizes = [len(classes.get(name, [])) for name in names]
        labels = np.repeat(np.arange(len(names), dtype=np.int32), sizes)
        splits[split] = Split.whole(take(images, slice(len(labels))), labels)
        images = take(images, slice(len(labels), None))
    return SplitDataset.from_splits(
        f"folder:{digest}",
        tuple(names),
        splits,
        label=_name(folder),
        notes=(*_notes(folder.root, files, bad), *colours),
    )


def _images(paths: list[Path], exif: bool) -> tuple[DatasetImages, tuple[str, ...]]:
    """(all images, of one number of channels, lazy where they are of several sizes or many; a note on gray ones)."""
    lazy, colour = lazy_images(paths, exif=exif)
    notes: tuple[str, ...] = ()
    if 0 < len(colour) < len(paths):
        notes = (f"{len(colour)} of {len(paths)} images are colour ({colour[0]}), so all are taken as RGB",)
    return (lazy[:] if lazy.shape[1] and lazy.nbytes <= IN_MEMORY else as_array(lazy)), notes


def _listed(root: Path, bad: Mapping[Path, str]) -> str:
    """The number of files that are left out, and why."""
    messages = format_list([message.removeprefix(f"{root}/") for message in bad.values()])
    return f"{len(bad)} file{'s' if len(bad) > 1 else ''}: {messages}"


def _notes(root: Path, files: ImageFiles, bad: Mapping[Path, str]) -> tuple[str, ...]:
    notes = [f"left out {_listed(root, bad)}"] if bad else []
    parents = [root] if WHOLE in files else [path for path in _visible(root) if path.name.lower() in SPLIT_WORDS]
    hidden = [path.name for parent in parents for path in parent.glob(".*") if path.is_dir()]
    notes += [f"hidden folders are not read: {format_list(sorted(hidden))}"] if hidden else []
    if WHOLE not in files:
        unread = [path.name for path in _visible(root) if SPLIT_WORDS.get(path.name.lower(), "-") not in (*files, "-")]
        notes += [f"{name}/ holds no folders of classes and is not read" for name in unread]
    return tuple(notes)


def files_by_split(root: Path) -> ImageFiles:
    """Find the files under a folder, whatever they are.

    Args:
        root: Folder of the classes, or of splits.

    Returns:
        split (some of `train`, `validation` and `test`, or `whole` alone) -> class -> paths, in the order of their
        names.

    Raises:
        UsageError: There is no such folder, two are for one split, or there are fewer than two classes.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; {EXPECTED}")
    folders: dict[str, Path] = {}  # split -> its folder
    for path in _visible(root):
        split = SPLIT_WORDS.get(path.name.lower())
        # A class may be called train, but it holds no folders.
        if split is not None and any(inner.is_dir() for inner in _visible(path)):
            if split in folders:
                raise UsageError(
                    f"{root}: expected one folder for {split}, received {folders[split].name} and {path.name}"
                )
            folders[split] = path
    files = {split: _files_by_class(folders[split]) for split in PUBLISHED if split in folders}
    files = files or {WHOLE: _labelled(root) if not _folders(root) else _files_by_class(root)}
    classes = {name for by_class in files.values() for name in by_class}
    if len(classes) < 2:
        received = "none" if not classes else f"1, {next(iter(classes))}"
        raise UsageError(f"{root}: expected folders of two classes or more, received {received}; {_hint(root)}")
    return files


def _hint(root: Path) -> str:
    """The folder below that may have been meant, where there is one, or what a folder should hold."""
    folder, inner = root, _folders(root)
    for _ in range(5):  # links may go in a circle
        if len(inner) != 1 or inner[0].name.lower() in SPLIT_WORDS:
            break
        folder, inner = inner[0], _folders(inner[0])
    return f"did you mean folder:{folder}?" if inner and folder != root else EXPECTED


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    return {path.name: _visible(path) for path in _folders(folder)}


def _labelled(folder: Path) -> dict[str, list[Path]]:
    """Images that lie side by side, by class: that of a file of labels, or of ImageNet's validation images by name.

    Raises:
        UsageError: The file of labels is not of its form, or does not fit the images.
    """
    table = next((folder / name for name in LABELS if (folder / name).is_file()), None)
    images = {path.name: path for path in _visible(folder) if path != table}
    numbers = {name: IMAGENET_VALIDATION.fullmatch(name) for name in images}
    if table is not None:
        classes = _read_labels(table, images)
    elif images and all(numbers.values()):
        known = imagenet.validation_classes()
        classes = {name: known[int(match[1]) - 1] for name, match in numbers.items() if match}
    else:
        return {}
    by_class: dict[str, list[Path]] = {}
    for name, path in images.items():
        if name not in classes:
            raise UsageError(f"{path}: {table} has no class for it; add it, or move the image")
        by_class.setdefault(classes[name], []).append(path)
    return by_class


def _read_labels(table: Path, images: Mapping[str, Path]) -> dict[str, str]:
    """The class of each image: two columns, separated by a comma, a tab or a space; a head is left out."""
    classes: dict[str, str] = {}
    try:
        lines = read_file(table, TEXT_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{table}: expected lines of text, FILE,CLASS ({error})") from None
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE:
            raise UsageError(f"{table}: line {number}: expected FILE,CLASS, received {len(line):,} characters")
        parts = [
            part.strip() for part in re.split(r"[,\t]" if re.search(r"[,\t]", line) else r"\s+(?=\S+$)", line.strip())
        ]
        if parts == [""] or (number == 1 and len(parts) == 2 and parts[0] not in images and "." not in parts[0]):
            continue
        if len(parts) != 2 or not all(parts):
            raise UsageError(f"{table}: line {number}: expected FILE,CLASS, received {line.strip()[:80]!r}")
        if parts[0] not in images:
            raise UsageError(f"{table}: line {number}: there is no image {parts[0]!r} beside it")
        if classes.setdefault(parts[0], parts[1]) != parts[1]:
            raise UsageError(f"{table}: line {number}: {parts[0]} is of class {classes[parts[0]]!r} in a line before")
    return classes


def _visible(folder: Path) -> list[Path]:
    """Content of a folder that is not hidden, in the order of the names; nothing where there is no folder."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def _all_files(files: ImageFiles) -> list[Path]:
    return [path for classes in files.values() for _, paths in sorted(classes.items()) for path in paths]


def _good_files(folder: _Folder) -> tuple[ImageFiles, Mapping[Path, str]]:
    """The files that are read, and those that are left out, with what is wrong with them."""
    files = files_by_split(folder.root)
    bad: Mapping[Path, str] = {}
    if folder.skip_bad:
        bad = _bad_files(tuple((path, *_state(path)) for path in _all_files(files)), folder.exif)
        files = {
            split: {name: [path for path in paths if path not in bad] for name, paths in classes.items()}
            for split, classes in files.items()
        }
    elif folders := [path for path in _all_files(files) if path.is_dir()]:
        raise UsageError(f"{folders[0]}: expected an image file, received a folder; {EXPECTED}{OR_LEFT_OUT}")
    for split, classes in files.items():
        if not any(classes.values()):
            why = f"; left out {_listed(folder.root, bad)}" if bad else ""
            raise UsageError(
                f"{folder.root}: {'' if split == WHOLE else f'{split}: '}no images in the folders of classes{why}"
            )
    for name in sorted({name for classes in files.values() for name in classes}):
        if not any(classes.get(name) for classes in files.values()):
            why = f"; left out {_listed(folder.root, bad)}" if bad else ""
            raise UsageError(f"{folder.root}: the class {name} has no images{why}; give it some, or remove its folder")
    return files, bad


def _state(path: Path) -> tuple[int, int]:
    """What tells whether a file has changed."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _bad_files(files: tuple[tuple[Path, int, int], ...], exif: bool) -> Mapping[Path, str]:
    """Files that cannot be decoded -> what is wrong with them."""

    def message(path: Path) -> str | None:
        try:
            image_files.decode(path, image_files.read_header(path, exif=exif).channels, exif=exif)
        except UsageError as error:
            return str(error).removesuffix(image_files.REMEDY)
        return None

    paths = [path for path, *_ in files]
    with image_files.quiet():
        found = dict(zip(paths, map_in_order(message, paths), strict=True))
    return {path: text for path, text in found.items() if text is not None}
