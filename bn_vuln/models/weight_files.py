"""Files of published weights: where they are fetched from, kept and read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import backend, limits
from bn_vuln.runtime.files import atomic_path
from bn_vuln.typing import Floats, Plain

FOLDER_VARIABLE = "BNVULN_WEIGHTS"
TORCHVISION = "https://download.pytorch.org/models/"
TIMM = "https://huggingface.co/timm/{name}.tv_in1k/resolve/main/model.safetensors"
BAGNETS = (
    "https://bitbucket.org/wielandbrendel/bag-of-feature-pretrained-models/raw/"
    "249e8fa82c0913623a807d9d35eeab9da7dcc2a8/"
)
# Files of torchvision (IMAGENET1K_V1) and of the authors of BagNets; each ends in the first digits of its sha256.
FILES = {
    "vgg11": "vgg11-8a719046.pth",
    "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg13": "vgg13-19584684.pth",
    "vgg13_bn": "vgg13_bn-abd245e5.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "vgg19_bn": "vgg19_bn-c79401a0.pth",
    "alexnet": "alexnet-owt-7be5be79.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "densenet121": "densenet121-a639ec97.pth",
    "bagnet9": "bagnet8-34f4ccd2.pth.tar",
    "bagnet17": "bagnet16-105524de.pth.tar",
    "bagnet33": "bagnet32-2ddd53ed.pth.tar",
}
KEPT = ".safetensors"
SOURCES = ("torchvision", "timm", "bagnets")


class Origin(NamedTuple):
    """Where weights come from: the address, and the first digits of the file's sha256, "" where none are known."""

    url: str
    sha256: str


def folder() -> Path:
    """Return the folder that weights are kept in: $BNVULN_WEIGHTS, else ~/.cache/bnvuln/weights."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/bnvuln/weights").expanduser()


def sources(name: str) -> tuple[str, ...]:
    """Return the sources of a net's weights, the one by default first."""
    if name.startswith("bagnet"):
        return ("bagnets",)
    return ("torchvision",) if name == "alexnet" else ("torchvision", "timm")


def origin(name: str, source: str) -> Origin:
    """Return where the weights of a net come from.

    Raises:
        UsageError: The source does not have this net.
    """
    if source not in sources(name):
        raise UsageError(f"{source} has no weights of {name}: expected {' or '.join(sources(name))}")
    if source == "timm":
        return Origin(TIMM.format(name=name), "")
    file = FILES[name]
    address = TORCHVISION if source == "torchvision" else BAGNETS
    return Origin(address + file, file.partition(".")[0].rpartition("-")[2])


def check(name: str, weights: str | Path) -> None:
    """Refuse what is neither a source of a net's weights nor a file, nor a folder that has it.

    Raises:
        UsageError: There is no such file, or the source does not have this net.
    """
    if str(weights) in SOURCES:
        origin(name, str(weights))
    elif not (path := _named(name, weights)).is_file():
        raise UsageError(
            f"--weights {path}: no such file; expected a file, a folder of NAME{KEPT}, {', '.join(SOURCES)} or random"
        )


def path_of(name: str, weights: str | Path) -> Path:
    """Return the file of a net's weights, fetched where it is not on this machine.

    Args:
        name: a net.
        weights: a source, a file, or a folder of files NAME.safetensors.

    Raises:
        UsageError: see `check`.
        BnvulnError: It cannot be fetched.
    """
    check(name, weights)
    return fetch(name, str(weights)) if str(weights) in SOURCES else _named(name, weights)


def _named(name: str, weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    return path / f"{name}{KEPT}" if path.is_dir() else path


def kept(name: str) -> Path:
    """Return the file that the weights of a net are kept in, whether it is there or not."""
    return folder() / f"{name}{KEPT}"


def listed() -> list[Plain]:
    """Return for each net the sources of its weights, the file they are kept in, and its size, None if not there."""
    return [
        {
            "name": name,
            "sources": list(sources(name)),
            "file": str(kept(name)),
            "bytes": kept(name).stat().st_size if kept(name).is_file() else None,
        }
        for name in FILES
    ]


def fetch(name: str, source: str | None = None, sha256: str | None = None, *, force: bool = False) -> Path:
    """Fetch the weights of a net where they are not on this machine, and keep them as .safetensors.

    Args:
        name: a net.
        source: `torchvision` or `bagnets`, whose files need the extra `torch` to be converted once; or `timm`; None:
            the first of `sources`.
        sha256: of the file, or its first digits, 8 or more, in place of the known ones; those of timm's files are not
            known here.
        force: fetch them even if they are on this machine.

    Returns:
        The file.

    Raises:
        UsageError: The source does not have this net, or digits of the file's sha256 are not known, or are none.
        BnvulnError: It cannot be fetched or converted, or is another file.
    """
    source = source or sources(name)[0]
    where, target = origin(name, source), kept(name)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise UsageError(f"--sha256: expected 8 to 64 hexadecimal digits, received {sha256!r}")
    if target.exists() and not force:
        return target
    expected = sha256 or where.sha256
    if not expected:
        raise UsageError(
            f"{where.url}: its sha256 is not known here: give it (bnvuln weights fetch {name} --source {source} "
            f"--sha256 HEX; its page has it), or put the file there as {target}"
        )
    elsewhere = f"put them there as {target}, or name a file with --weights"
    if not where.url.endswith(KEPT):
        _torch(where.url, f"without it {elsewhere}")
    backend.start()
    import keras

    target.parent.mkdir(parents=True, exist_ok=True)  # else Keras takes a folder of its own
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the progress
            file = where.url.rpartition("/")[2]
            fetched = Path(
                keras.utils.get_file(file, where.url, cache_dir=folder(), cache_subdir="", force_download=force)
            )
    except Exception as error:  # whatever the network raises
        raise BnvulnError(
            f"the weights of {name} are not on this machine, and {where.url} cannot be fetched ({_text(error)}): "
            f"{elsewhere}"
        ) from None
    with fetched.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if not found.startswith(expected.lower()):
        fetched.unlink()
        raise BnvulnError(f"{where.url}: expected sha256 {expected}..., received {found}; it was removed")
    if fetched.suffix == KEPT:
        fetched.replace(target)
    else:
        write(target, read(fetched))
        fetched.unlink()
    return target


def write(path: Path, tensors: Mapping[str, Floats]) -> None:
    """Write tensors by key as .safetensors."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, temporary)


def read(path: Path) -> Mapping[str, Floats]:
    """Read the tensors of a file of weights, by key.

    Args:
        path: .safetensors; .pth, .pt or .pth.tar with PyTorch, which reads them without running code.

    Raises:
        BnvulnError: The file is damaged or of another kind, or PyTorch is missing.
    """
    try:
        size = path.stat().st_size
        limits.check_expansion(size, size)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                limits.check_archive(archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BnvulnError(f"{path}: cannot be read as weights ({_text(error)})") from None
    if path.suffix == KEPT:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, struct.error) as error:
            raise BnvulnError(f"{path}: no readable .safetensors file ({_text(error)})") from None
    if path.suffix not in (".pth", ".pt", ".tar"):
        raise BnvulnError(f"{path}: expected weights as .safetensors, or .pth with the extra torch")
    torch = _torch(path, ".safetensors need nothing")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # pickle raises anything
        raise BnvulnError(
            f"{path}: no weights of PyTorch: it is damaged, or holds more than tensors, which would be code"
        ) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    state = state if isinstance(state, Mapping) else {}
    if any(value.numel() * value.element_size() > size for value in state.values() if torch.is_tensor(value)):
        raise BnvulnError(f"{path}: a tensor in it is larger than the file")
    tensors = {str(key): value.detach().float().numpy() for key, value in state.items() if torch.is_tensor(value)}
    if not tensors:
        raise BnvulnError(f"{path}: there are no tensors in it: expected a state_dict")
    return tensors


def _torch(file: Path | str, otherwise: str) -> ModuleType:
    try:
        import torch
    except ImportError:
        raise BnvulnError(
            f"{file}: files of PyTorch need the extra torch (pip install 'bnvuln[torch]'); {otherwise}"
        ) from None
    return torch


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
