"""Files of published weights: where they are fetched from, kept and read."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime.files import atomic_path
from bn_vuln.typing import Floats

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
SOURCES = ("torchvision", "timm", "bagnets")


class Origin(NamedTuple):
    """Where weights come from: the address, and the first digits of the file's sha256, "" where none are known."""

    url: str
    sha256: str


def folder() -> Path:
    """Return the folder that weights are kept in: $BNVULN_WEIGHTS, else ~/.cache/bnvuln/weights."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/bnvuln/weights").expanduser()


def default_source(name: str) -> str:
    """Return the source of a net's weights: `bagnets` for these, else `torchvision`."""
    return "bagnets" if name.startswith("bagnet") else "torchvision"


def origin(name: str, source: str) -> Origin:
    """Return where the weights of a net come from.

    Raises:
        UsageError: The source does not have this net.
    """
    bagnet = name.startswith("bagnet")
    if source == "timm" and not bagnet and name != "alexnet":
        return Origin(TIMM.format(name=name), "")
    if source == default_source(name):
        file = FILES[name]
        return Origin((BAGNETS if bagnet else TORCHVISION) + file, file.partition(".")[0].rpartition("-")[2])
    raise UsageError(f"{source} has no weights of {name}: expected {default_source(name)}")


def check(name: str, weights: str | Path) -> None:
    """Refuse what is neither a source of a net's weights nor a file.

    Raises:
        UsageError: There is no such file, or the source does not have this net.
    """
    if str(weights) in SOURCES:
        origin(name, str(weights))
    elif not Path(weights).expanduser().is_file():
        raise UsageError(f"--weights {weights}: no such file; expected a file, {', '.join(SOURCES)} or random")


def path_of(name: str, weights: str | Path) -> Path:
    """Return the file of a net's weights, fetched where it is not on this machine.

    Args:
        name: a net.
        weights: a source, or a file.

    Raises:
        UsageError: see `check`.
        BnvulnError: It cannot be fetched.
    """
    check(name, weights)
    if str(weights) not in SOURCES:
        return Path(weights).expanduser()
    kept = folder() / f"{name}.safetensors"
    return kept if kept.exists() else fetch(name, str(weights))


def fetch(name: str, source: str, sha256: str | None = None) -> Path:
    """Fetch the weights of a net, and keep them as .safetensors.

    Args:
        name: a net.
        source: `torchvision` or `bagnets`, whose files need the extra `torch` to be converted once; or `timm`.
        sha256: of the file, in place of the known digits; for timm's files it has to be given.

    Returns:
        The file.

    Raises:
        UsageError: No digits of the file's sha256 are known.
        BnvulnError: It cannot be fetched, or is another file.
    """
    import keras

    where = origin(name, source)
    expected = sha256 or where.sha256
    if not expected:
        raise UsageError(f"{where.url}: its sha256 is not known here: give it with --sha256 (its page has it)")
    target = folder() / f"{name}.safetensors"
    try:
        fetched = Path(
            keras.utils.get_file(where.url.rpartition("/")[2], where.url, cache_dir=folder(), cache_subdir="fetched")
        )
    except Exception as error:  # whatever the network raises
        raise BnvulnError(
            f"the weights of {name} are not on this machine, and {where.url} cannot be fetched "
            f"({str(error).splitlines()[0]}): put them there as {target}, or name a file with --weights"
        ) from None
    with fetched.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if not found.startswith(expected.lower()):
        fetched.unlink()
        raise BnvulnError(f"{where.url}: expected sha256 {expected}..., received {found}; it was removed")
    if fetched.suffix == ".safetensors":
        target.parent.mkdir(parents=True, exist_ok=True)
        fetched.replace(target)
    else:
        convert(fetched, target)
        fetched.unlink()
    return target


def convert(path: Path, target: Path) -> None:
    """Write the tensors of a file of PyTorch as .safetensors.

    Raises:
        BnvulnError: PyTorch is missing, or the file holds no tensors.
    """
    from safetensors.numpy import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        save_file({key: np.ascontiguousarray(value) for key, value in read(path).items()}, temporary)


def read(path: Path) -> Mapping[str, Floats]:
    """Read the tensors of a file of weights, by key.

    Args:
        path: .safetensors; .pth, .pt or .pth.tar with PyTorch, which reads them without running code.

    Raises:
        BnvulnError: The file is damaged or of another kind, or PyTorch is missing.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, struct.error) as error:
            raise BnvulnError(f"{path}: no readable .safetensors file ({error})") from None
    if path.suffix not in (".pth", ".pt", ".tar"):
        raise BnvulnError(f"{path}: expected weights as .safetensors, or .pth with the extra torch")
    try:
        import torch
    except ImportError:
        raise BnvulnError(
            f"{path}: files of PyTorch need the extra torch (pip install 'bnvuln[torch]'); .safetensors need nothing"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises anything
        raise BnvulnError(f"{path}: no readable weights of PyTorch ({str(error).splitlines()[0]})") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    tensors = {key: value.numpy() for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise BnvulnError(f"{path}: there are no tensors in it: expected a state_dict")
    return tensors
