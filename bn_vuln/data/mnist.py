"""The original MNIST files (Y. LeCun, C. Cortes), bundled, checked by sha256 at every load."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import BnvulnError
from bn_vuln.typing import Labels, StoredImages

FOLDER = Path(__file__).parent / "files" / "mnist"
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
INFO = DatasetInfo(
    name="mnist",
    shape=(28, 28, 1),
    classes=tuple("0123456789"),
    # Mean and std of the 60,000 training images, to the digits that everybody uses.
    mean=(0.1307,),
    std=(0.3081,),
    sizes={"train": 60000, "test": 10000},
)


def read(split: str, folder: Path = FOLDER) -> tuple[StoredImages, Labels]:
    """Read `train` or `test` from the bundled files.

    Args:
        split: `train` or `test`.
        folder: Folder of the four files.

    Returns:
        Images uint8 [n, 28, 28, 1] and labels int32 [n].

    Raises:
        BnvulnError: A file is missing, or corrupt (with both hashes).
    """
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", header=16)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", header=8)
    return images.reshape(-1, 28, 28, 1), labels.astype(np.int32)


def _read_idx(path: Path, header: int) -> NDArray[np.uint8]:
    """The bytes behind the header of a gzipped IDX file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BnvulnError(f"{path}: {error.strerror}; reinstall bnvuln, which ships it") from None
    found, expected = hashlib.sha256(content).hexdigest(), SHA256[path.name]
    if found != expected:
        raise BnvulnError(
            f"{path}: corrupt: its sha256 is {found}, expected {expected}; reinstall bnvuln, which ships it"
        )
    return np.frombuffer(gzip.decompress(content), np.uint8, offset=header)
