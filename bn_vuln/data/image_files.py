"""One image file: opened, turned, and decoded to 8 bits, gray or RGB, with Pillow.

What becomes of a pixel is what `Image.convert("RGB")` makes of it, as in `keras.utils.load_img` and torchvision: an
alpha channel is dropped, not composited; palettes, CMYK and YCCK become RGB; ICC profiles are not applied. Gray images
of 16 bits are the exception: that clips them at 255, here they are scaled. Of animations and pages the first is taken.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from bn_vuln.data.describe import first_line
from bn_vuln.data.transforms import Resize, placement
from bn_vuln.errors import UsageError
from bn_vuln.runtime.files import regular_file_stat
from bn_vuln.runtime.limits import check_expansion

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow's other readers are never called
REMEDY = "; remove it, or leave such files out with --skip-bad"
STORED_REMEDY = "; its file is damaged: prepare the data set again"
FORMAT_NAMES = "PNG, JPEG, BMP, GIF, WebP, TIFF or PPM"
OTHER_FORMATS = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".tga", ".dng", ".cr2", ".nef", ".dcm")
GRAY_MODES = ("1", "L", "LA", "La")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
PALETTE_MODES = ("P", "PA")
TURNS = {  # EXIF orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image file that lies inside of another file.

    Attributes:
        name: what messages call it: the file, and its place in it.
        data: its bytes, in a file that is mapped into memory.
    """

    name: str
    data: memoryview

    def __str__(self) -> str:
        return self.name

    @property
    def suffix(self) -> str:
        """No suffix says what it is."""
        return ""


ImageFile: TypeAlias = Path | StoredImage


class Header(NamedTuple):
    """What a file says before its pixels are decoded: the size, after turning, and the number of channels, 1 or 3."""

    height: int
    width: int
    channels: int


def read_header(path: ImageFile, *, exif: bool = True) -> Header:
    """Read size and channels of an image file; only images with a palette are decoded for it.

    Args:
        path: A file of `FORMATS`.
        exif: Whether the image will be turned as its EXIF orientation says.

    Returns:
        The header; the channels are 1 where all colours are gray by mode or palette.

    Raises:
        UsageError: The file, which is named, is no image, a damaged one, or of a mode without a right conversion.
    """
    with _opened(path) as image:
        width, height = image.size
        if exif and _orientation(image) >= 5:
            width, height = height, width
        return Header(height, width, 1 if _is_gray(image, path) else 3)


def decode(path: ImageFile, channels: int, *, exif: bool = True) -> Image.Image:
    """Decode an image file.

    Args:
        path: A file of `FORMATS`.
        channels: 1 or 3; a gray image gets three equal channels, of a colour image the luma is taken.
        exif: Turn the image as its EXIF orientation says. Those of TIFF, where it is part of the format, are turned
            always.

    Returns:
        An image of mode `L` or `RGB`.

    Raises:
        UsageError: As `read_header`.
    """
    with _opened(path) as image:
        turn = TURNS.get(_orientation(image)) if exif else None
        _is_gray(image, path)
        image.load()
        bytes_ = _scaled(image) if image.mode.startswith("I") else image
        turned = bytes_ if turn is None else bytes_.transpose(turn)
        straight = turned.convert("LA") if turned.mode == "La" else turned
        return straight.convert("L" if channels == 1 else "RGB")


def resize(image: Image.Image, size: tuple[int, int], how: Resize) -> Image.Image:
    """Bring an image to a size, as Pillow does: 8 bits, bilinear, antialiased where reduced.

    Args:
        image: Mode `L` or `RGB`.
        size: (height, width).
        how: As `transforms.resize_pixels` takes it.

    Returns:
        An image of this size; the same one where it has it.

    Raises:
        UsageError: The sizes differ, and `how` is `none`.
    """
    native = (image.height, image.width)
    if native == size and how != "imagenet":
        return image
    (rows, columns), (top, left) = placement(native, size, how)
    resized = image.resize((columns, rows), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size[1], top + size[0]))  # zeros where it is larger than the image


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings of odd files, in all threads: what it cannot read it raises for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _opened(path: ImageFile) -> Iterator[Image.Image]:
    """An image file without its pixels; every error, also of what is done with it, is one line that names it."""
    try:
        size = regular_file_stat(path).st_size if isinstance(path, Path) else len(path.data)
        if size == 0:
            raise UsageError(f"{path}: an empty file; expected an image")
        with Image.open(path if isinstance(path, Path) else io.BytesIO(path.data), formats=FORMATS) as image:
            check_expansion(size, image.width * image.height * len(image.getbands()))
            yield image
    except Exception as error:  # Pillow's readers raise errors of any type for damaged files
        text = f"{_reason(path, error)}{REMEDY if isinstance(path, Path) else STORED_REMEDY}"
        # Names of files may hold line ends, and bytes that are no text.
        raise UsageError(text.replace("\n", "\\n").encode(errors="backslashreplace").decode()) from None


def _reason(path: ImageFile, error: Exception) -> str:
    """What is wrong with a file, beginning with its path."""
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        if (suffix := path.suffix.lower()) in OTHER_FORMATS:
            return f"{path}: {suffix[1:].upper()} is not read; convert it to PNG or JPEG"
        return f"{path}: no {FORMAT_NAMES} image, or a damaged one"
    if isinstance(error, Image.DecompressionBombError):
        return f"{path}: an image of more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, made to fill the memory"
    text = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return f"{path}: cannot be read, or is damaged ({text})"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, before the pixels are decoded; 1 where there is none, or TIFF's reader sees to it."""
    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # that of PNG would decode the pixels
    except Exception:  # no orientation can be read from damaged EXIF
        return 1
    return value if value in TURNS else 1


def _is_gray(image: Image.Image, path: ImageFile) -> bool:
    """True for a gray image; raise `UsageError` for a mode without a right conversion to 8 bits."""
    if image.mode in PALETTE_MODES:
        colours = np.asarray(image.convert("RGB"))
        return bool((colours == colours[..., :1]).all())
    if image.mode in COLOUR_MODES:
        return image.mode == "RGBA" and "LA;16B" in str(
            getattr(image, "tile", "")
        )  # so Pillow reads gray with alpha of 16 bits
    if image.mode in GRAY_MODES or image.mode.startswith("I;16"):
        return True
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # which have 16 bits at most
        return True
    names = {"I": "whole numbers of 32 bits or with a sign", "F": "floating-point numbers"}
    received = names.get(image.mode, f"mode {image.mode}")
    raise UsageError(f"{path}: expected 8 or 16 bits a channel, gray or RGB, received {received}; convert it")


def _scaled(image: Image.Image) -> Image.Image:
    """A gray image of 12 or 16 bits as 8 bits: scaled, not clipped."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0]  # BitsPerSample of TIFF
    values = np.rint(np.asarray(image, np.float64) * 255 / (2**bits - 1)).astype(np.uint8)
    return Image.fromarray(255 - values if tags.get(262) == 0 else values)  # PhotometricInterpretation: white is zero
