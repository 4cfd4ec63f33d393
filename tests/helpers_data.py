"""Tiny archives of the true formats, put where TFDS looks for finished downloads, and folders of images."""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bn_vuln import data
from bn_vuln.data import tfds
from bn_vuln.data.tfds import paths

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10 = "cifar-10-binary.tar.gz"

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def examples(n: int, size: int, channels: int, seed: int = 0, classes: int = 10) -> Arrays:
    """Random images uint8 [n, size, size, channels], and labels uint8 [n] that go through the classes in turn."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, size, size, channels), np.uint8)
    return images, (np.arange(n) % classes).astype(np.uint8)


def coloured(n: int, size: int, seed: int = 0) -> Arrays:
    """Images uint8 [n, size, size, 3], the upper two thirds of one colour for each class, the rest grey, with a little
    noise: a net learns them in seconds. Labels uint8 [n] that go through ten classes in turn."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 10).astype(np.uint8)
    corners = [(red, green, blue) for red in (40, 215) for green in (40, 215) for blue in (40, 215)]
    colours = np.array([*corners, (128, 128, 128), (215, 128, 40)])[:, None, None]
    images = colours[labels] + rng.integers(-30, 31, (n, size, size, 3))
    images[:, 2 * size // 3 :] = 128  # without a contrast nothing is left behind instance normalization
    return images.astype(np.uint8), labels


def sorted_pairs(images: Any, labels: Any) -> list[tuple[bytes, int]]:
    """(image, label) pairs in an order that depends on their content alone."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


# ---------------------------------------------------------------- files as published


def idx_files(train: Arrays, test: Arrays) -> dict[str, bytes]:
    """The four files of MNIST, Fashion-MNIST and KMNIST, which have the same names."""
    files = {}
    for prefix, (images, labels) in (("train", train), ("t10k", test)):
        head = np.array([2051, *images.shape[:3]], ">i4").tobytes()
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(head + images.tobytes())
        head = np.array([2049, len(labels)], ">i4").tobytes()
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(head + labels.tobytes())
    return files


def cifar10_files(train: Arrays, test: Arrays) -> dict[str, bytes]:
    """The archive of CIFAR-10: five training batches and one to test, a record is a label and three planes."""
    batches = zip(*(np.array_split(array, 5) for array in train), strict=True)
    files = {f"data_batch_{i}.bin": _records(*batch) for i, batch in enumerate(batches, 1)}
    files |= {"test_batch.bin": _records(*test), "batches.meta.txt": "\n".join([*CIFAR10_CLASSES, "", ""]).encode()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return {CIFAR10: packed.getvalue()}


def _records(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels[:, None], planes], 1).tobytes()


def cifar10_1_files(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> dict[str, bytes]:
    """The two arrays of CIFAR-10.1 v6."""
    files = {}
    for name, array in (("data", images), ("labels", labels)):
        packed = io.BytesIO()
        np.save(packed, array)
        files[f"cifar10.1_v6_{name}.npy"] = packed.getvalue()
    return files


def svhn_files(train: Arrays, test: Arrays, extra: Arrays) -> dict[str, bytes]:
    """The three files of SVHN: MATLAB's, images [32, 32, 3, n], the label of a zero is 10."""
    from scipy.io import savemat

    files = {}
    for split, (images, labels) in (("train", train), ("test", test), ("extra", extra)):
        packed = io.BytesIO()
        savemat(packed, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        files[f"{split}_32x32.mat"] = packed.getvalue()
    return files


# ---------------------------------------------------------------- putting them where TFDS looks


def seed_downloads(name: str, files: dict[str, bytes]) -> None:
    """Put files among TFDS' finished downloads, under the hashes that it registers: it does not hash them again."""
    from tensorflow_datasets.core.download import resource

    builder = tfds.find_builder(name)
    for url, info in builder.url_infos.items():
        if info.filename in files:
            target = paths.downloads() / builder.name / resource.get_dl_fname(url, info.checksum)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files[info.filename])
            resource.write_info_file(
                url=url, path=target, dataset_name=builder.name, original_fname=info.filename, url_info=info
            )


def go_offline(monkeypatch: pytest.MonkeyPatch, folder: Path, refuse: Callable[..., Any]) -> Path:
    """`folder` as an empty data folder; `refuse` is called where the network is asked, and TFDS must not download."""
    from tensorflow_datasets.core.download import downloader

    monkeypatch.setenv(paths.DATA_DIR, str(folder))
    monkeypatch.delenv(paths.MANUAL_DIR, raising=False)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(downloader._Downloader, "_sync_download", lambda *_, **__: pytest.fail("TFDS downloads"))
    return folder


@contextlib.contextmanager
def prepared(folder: Path, sets: dict[str, dict[str, bytes]]) -> Iterator[Path]:
    """`folder` as the data folder, with data sets of TFDS prepared from these files by its own code."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(paths.DATA_DIR, str(folder))
        monkeypatch.delenv(paths.MANUAL_DIR, raising=False)
        for name, files in sets.items():
            seed_downloads(name, files)
            data.prepare(name)
        yield folder


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """The files in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def register(monkeypatch: Any, name: str, folder: Path) -> None:
    """Let TFDS register the sizes and hashes of the files of its names in a folder."""
    from tensorflow_datasets.core.download import checksums

    registered = tfds.find_builder(name).url_infos
    for url, info in registered.items():
        if (folder / info.filename).exists():
            monkeypatch.setitem(registered, url, checksums.compute_url_info(folder / info.filename))


def few_idx_images(monkeypatch: Any, train: int, test: int) -> None:
    """TFDS' reader of IDX files takes the numbers of images from constants, not from the files."""
    from tensorflow_datasets.image_classification import mnist

    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", train)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", test)


# ---------------------------------------------------------------- folders of images


def png(image: NDArray[np.uint8]) -> bytes:
    """An image [h, w, channels] as PNG."""
    from bn_vuln.runtime import backend

    encoded: bytes = backend.tensorflow().io.encode_png(image).numpy()
    return encoded


def image_folder(root: Path, images: NDArray[np.uint8], labels: Any, classes: list[str]) -> Path:
    """A folder of PNG files for each class; the names of the files are the places in the array."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        write_files(root / classes[label], {f"{i:03}.png": png(image)})
    return root
