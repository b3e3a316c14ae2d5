"""16-bit images of which Pillow keeps the high byte of each value alone: in colour, or with alpha.

A second image of the same file is told that its bytes lie in another way, and gives the others.
"""

from __future__ import annotations

import io
import sys
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

GREY_ALPHA = "LA;16B"
_COLOUR = frozenset(f"{mode};16{order}" for mode in ("RGB", "RGBA") for order in "BLN")


def raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, in Pillow's words; "" once they are loaded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def loses_bytes(image: Image.Image) -> bool:
    """Whether loading the pixels will drop the low bytes; nobody can tell afterwards."""
    raw = raw_mode(image)
    # "BGR;16" has 16 bits for all three colours.
    return ";16" in raw and raw != "BGR;16" and not image.mode.startswith(("I", "F"))


def other_bytes(image: ImageFile.ImageFile, file: IO[bytes]) -> ImageFile.ImageFile | None:
    """A second image of a file, for what is lost of the first; neither is loaded yet.

    Returns:
        Of RGB and RGBA the low bytes, in as many channels. Of grey with alpha four channels: the
        high and the low byte of grey, and of alpha. None for every other image.
    """
    raw = raw_mode(image)
    if raw != GREY_ALPHA and raw not in _COLOUR:
        return None
    file.seek(0)
    other = type(image)(io.BytesIO(file.read()))
    if raw == GREY_ALPHA:
        other._mode = "RGBA"
        _read_as(other, "RGBA")
    else:
        # Told that the file has the other byte order, Pillow keeps the low byte.
        order = {"little": "L", "big": "B"}[sys.byteorder] if raw[-1] == "N" else raw[-1]
        _read_as(other, raw[:-1] + ("B" if order == "L" else "L"))
    return other


def joined(image: Image.Image, other: Image.Image, raw: str) -> npt.NDArray[np.uint16]:
    """The values of a 16-bit file.

    Args:
        image: What Pillow made of it.
        other: The `other_bytes`, loaded.
        raw: The `raw_mode` of the first before it was loaded.

    Returns:
        (H, W, 3) or (H, W, 4).
    """
    if raw == GREY_ALPHA:
        pairs = np.asarray(other).astype(np.uint16)
        grey, alpha = pairs[..., 0] << 8 | pairs[..., 1], pairs[..., 2] << 8 | pairs[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=-1)
    values: npt.NDArray[np.uint16] = np.asarray(image).astype(np.uint16) << 8 | np.asarray(other)
    return values


def _read_as(image: ImageFile.ImageFile, raw: str) -> None:
    """Take the file's pixels for ones that lie in another way."""
    for index, tile in enumerate(image.tile):
        arguments = tile[3]
        new: Any = (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
        # A named tuple or, in older versions of Pillow, a plain one.
        fields = (tile[0], tile[1], tile[2], new)
        changed: Any = type(tile)(*fields) if hasattr(tile, "_fields") else fields
        image.tile[index] = changed
