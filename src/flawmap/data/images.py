"""Decoding: any of the formats that cameras and editors write, as an RGB array.

Pillow decodes. Beyond it: 16-bit images keep their precision, in colour too; a pixel limit is
checked on the header, before any memory is taken; every failure is a DataError that names the file.

What counts as the image is what a viewer shows: the EXIF orientation is applied, and transparent
pixels are composited over black, because what an editor left under them is arbitrary and invisible
to the person who judges the part. An alpha channel that is zero everywhere is an unused channel
and is dropped. Colour profiles are not applied: a camera on a line has one fixed profile.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from flawmap.data.deep import GREY_ALPHA, joined, loses_bytes, other_bytes, raw_mode
from flawmap.data.lister import UnreadableImageError
from flawmap.errors import ConfigError, DataError
from flawmap.types import FloatArray
from flawmap.wording import shown

MAX_PIXELS = 200_000_000
"""The largest image that is decoded unless asked otherwise: 0.6 GB as 8-bit RGB."""

RgbArray: TypeAlias = npt.NDArray[np.uint8 | np.float32]
"""(H, W, 3): uint8 in 0..255 or float32 in [0, 1]."""

_ORIENTATION = 0x0112
_WHITE_16 = 65535
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_KEYED_MODES = frozenset({"P", "L", "RGB", "1"})
"""Those of files in which one colour may stand for nothing."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of an image says, and what decoding showed.

    Attributes:
        mode: Pillow's name for the way pixels are stored, "L", "RGB", "I;16", ...
        bits: Bits of one channel: 1, 8, 16 or 32.
        peak: The largest stored value of an image of more than 8 bits, else None.
    """

    mode: str
    bits: int
    peak: float | None = None


def read_image(
    path: str | os.PathLike[str],
    *,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> RgbArray:
    """Decode an image file.

    Args:
        path: A PNG, JPEG, BMP, TIFF or WebP file; of several frames the first counts.
        white_level: The stored value that is white, for images of more than 8 bits (4095 for a
            12-bit camera); None is 65535. Larger values become white. 8-bit images ignore it.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        (H, W, 3) RGB: uint8 for sources of up to 8 bits a channel, float32 in [0, 1] for others.

    Raises:
        DataError: The file is missing, broken, truncated, too large or no image.
        ConfigError: `white_level` or `max_pixels` is not positive.
    """
    return read_image_info(path, white_level=white_level, max_pixels=max_pixels)[0]


def read_image_info(
    path: str | os.PathLike[str],
    *,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[RgbArray, ImageInfo]:
    """Like `read_image`, with what is known about the source.

    Raises:
        DataError: As `read_image`.
        ConfigError: As `read_image`.
    """
    name = shown(path)
    try:
        with Path(path).open("rb") as file:
            return decode_image(file, name=name, white_level=white_level, max_pixels=max_pixels)
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error), where=name) from error


def decode_image(
    source: bytes | IO[bytes],
    *,
    name: str,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[RgbArray, ImageInfo]:
    """Decode an image that is open or in memory; see `read_image`.

    Args:
        source: The bytes of a file, or the file opened for reading bytes.
        name: What messages call it.
        white_level: As for `read_image`.
        max_pixels: As for `read_image`.

    Raises:
        DataError: As `read_image`.
        ConfigError: As `read_image`.
    """
    _require_positive("white_level", white_level)
    _require_positive("max_pixels", max_pixels)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with _opened(file, name, max_pixels) as image:
        raw, mode, loses = raw_mode(image), image.mode, loses_bytes(image)
        deep = _loaded(image, file, name)
        if deep is not None:
            # Pillow turns grey with alpha into colour.
            rgb, info = _deep_colour(deep, "LA" if raw == GREY_ALPHA else mode, white_level)
        elif loses and white_level is not None:
            raise DataError(
                "a white level cannot be applied to this kind of 16-bit image",
                where=name,
                given=f"{mode} ({raw})",
                expected="grey, RGB or RGBA",
                hint="convert it to a 16-bit RGB PNG",
            )
        else:
            rgb, info = _from_pillow(image, name, white_level)
        return np.ascontiguousarray(_upright(rgb, _orientation(image))), info


def header_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) in px as the file stores it, perhaps lying on its side; nothing is decoded.

    Raises:
        DataError: The file is missing, or no image.
    """
    name = shown(path)
    try:
        with Path(path).open("rb") as file, _opened(file, name, MAX_PIXELS) as image:
            return image.height, image.width
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error), where=name) from error


def read_values(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The values of an image as they are stored, for those that are no picture, such as masks.

    Returns:
        (H, W) or (H, W, C), upright, of any type; colours where the file has a palette or alpha.

    Raises:
        DataError: The file cannot be read.
    """
    name = shown(path)
    try:
        with Path(path).open("rb") as file, _opened(file, name, MAX_PIXELS) as image:
            deep = _loaded(image, file, name)
            if deep is not None:
                values: npt.NDArray[Any] = deep[..., :3]
                if deep[..., 3:].any():
                    values = np.where(deep[..., 3:] == 0, 0, values)
            elif image.mode == "P" or image.mode in _ALPHA_MODES or image.mode == "CMYK":
                # The index of a palette means nothing: editors sort palettes as they like.
                values = _from_pillow(image, name, None)[0]
            else:
                values = np.asarray(image)
            turned = _upright(values, _orientation(image))
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error), where=name) from error
    return np.ascontiguousarray(turned)


def as_float(image: RgbArray) -> npt.NDArray[np.float32]:
    """An image in float32, RGB in [0, 1], whichever type it was decoded to."""
    found = image.astype(np.float32, copy=False)
    return found / np.float32(255) if image.dtype == np.uint8 else found


def to_rgb(image: npt.NDArray[Any] | Image.Image, *, white_level: int | None = None) -> RgbArray:
    """An image that is in memory already, as RGB.

    Args:
        image: A Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of
            uint8, uint16, bool or float in [0, 1].
        white_level: As for `read_image`.

    Returns:
        (H, W, 3): uint8 for uint8 and bool, else float32 in [0, 1].

    Raises:
        DataError: The shape, the type or the range is another one; or with a white level, it is a
            Pillow image of 16 bits in colour or with alpha, of which Pillow keeps 8.
        ConfigError: `white_level` is not positive.
    """
    _require_positive("white_level", white_level)
    if isinstance(image, Image.Image):
        name = shown(getattr(image, "filename", "") or "the image")
        if white_level is not None and loses_bytes(image):
            raise DataError(
                "Pillow keeps 8 of the 16 bits of an image of this kind: no white level fits them",
                where=name,
                given=f"{image.mode} ({raw_mode(image)})",
                expected="a path, or a uint16 array",
                hint="give the path in place of the opened image",
            )
        _load(image, name)
        rgb, _ = _from_pillow(image, name, white_level)
        return np.ascontiguousarray(_upright(rgb, _orientation(image)))
    values = np.asarray(image)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.size == 0 or not (
        values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    ):
        first = values.ndim == 3 and values.shape[0] in (1, 3, 4)
        raise DataError(
            "an array of this shape is no image",
            given=f"shape {np.shape(image)}",
            expected="(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), at least 1 x 1 px",
            hint="channels come last: image.transpose(1, 2, 0)" if first else None,
        )
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype == np.uint16:
        values = _deep(values, white_level)
    elif values.dtype != np.uint8:
        values = _checked_floats(values)
    return _three_channels(values)


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(
            f"{name} must be positive", where=name, given=value, expected="an integer of 1 or more"
        )


def _plugin(start: bytes) -> type[ImageFile.ImageFile] | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if start.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if start.startswith(b"BM"):
        return BmpImageFile
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffImageFile
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return WebPImageFile
    return None


def _opened(file: IO[bytes], name: str, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header.

    Image.open would judge the size by a limit of the whole process and warn; the format's own
    class is called instead, and the limit of this call applies.
    """
    start = file.read(16)
    plugin = _plugin(start)
    if plugin is None:
        reason = "the file is empty" if not start else "it is no PNG, JPEG, BMP, TIFF or WebP file"
        raise UnreadableImageError(reason, where=name)
    if plugin is WebPImageFile:
        # Its decoder takes the memory of the whole canvas when it is opened.
        width, height = _webp_size(file)
        _require_small(width, height, name, max_pixels)
    file.seek(0)
    try:
        image = plugin(file, name)
    except Exception as error:  # decoders raise whatever their parser stumbles on
        raise UnreadableImageError(_reason(error), where=name) from error
    _require_small(*image.size, name, max_pixels)
    return image


def _webp_size(file: IO[bytes]) -> tuple[int, int]:
    """(width, height) of the canvas; (1, 1) where the header is odd, which the decoder refuses."""
    file.seek(12)
    head = file.read(18)
    try:
        if head[:4] == b"VP8X":
            return (
                int.from_bytes(head[12:15], "little") + 1,
                int.from_bytes(head[15:18], "little") + 1,
            )
        if head[:4] == b"VP8L":
            bits = struct.unpack("<I", head[9:13])[0]
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if head[:4] == b"VP8 ":
            width, height = struct.unpack("<HH", head[14:18])
            return width & 0x3FFF, height & 0x3FFF
    except struct.error:
        pass
    return 1, 1


def _require_small(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(
            f"the image is too large: {width} x {height} px, {width * height / 1e6:.0f} megapixels",
            where=name,
            expected=f"at most {max_pixels / 1e6:g} megapixels",
            hint="cut it into parts, or make it smaller; read_image in Python takes max_pixels",
        )


def _load(image: Image.Image, name: str) -> None:
    """Decode the pixels; a truncated file is refused, never filled up."""
    try:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            # Pillow's TIFF reader warns by its own limit here; ours has been checked. The filters
            # of warnings are shared by all threads, so they are touched for such giants only.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image.load()
        else:
            image.load()
    except Image.DecompressionBombError as error:
        raise DataError(
            f"the image is too large for Pillow: {image.width} x {image.height} px",
            where=name,
            expected=f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels",
            hint="cut it into parts, or raise PIL.Image.MAX_IMAGE_PIXELS",
        ) from error
    except Exception as error:  # decoders raise whatever their parser stumbles on
        raise UnreadableImageError(_reason(error), where=name) from error


def _loaded(
    image: ImageFile.ImageFile, file: IO[bytes], name: str
) -> npt.NDArray[np.uint16] | None:
    """Decode the pixels; those of 16-bit colour or alpha, of which Pillow keeps the high bytes
    alone, are given back as (H, W, 3) or (H, W, 4)."""
    raw, other = raw_mode(image), other_bytes(image, file)
    _load(image, name)
    if other is None:
        return None
    _load(other, name)
    return joined(image, other, raw)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    text = str(error) or type(error).__name__
    return f"it is {'truncated' if 'truncated' in text.casefold() else 'broken'} ({text})"


def _deep_colour(
    values: npt.NDArray[np.uint16], mode: str, white_level: int | None
) -> tuple[RgbArray, ImageInfo]:
    peak = float(values[..., :3].max())
    return _three_channels(_deep(values, white_level)), ImageInfo(f"{mode};16", 16, peak)


def _deep(values: npt.NDArray[np.uint16], white_level: int | None) -> FloatArray:
    """16-bit values in [0, 1]; a white level is one of the colours, alpha has the whole range."""
    scaled = _scaled(values, white_level or _WHITE_16)
    if values.ndim == 3 and values.shape[2] == 4:
        scaled[..., 3] = _scaled(values[..., 3], _WHITE_16)
    return scaled


def _from_pillow(
    image: Image.Image, name: str, white_level: int | None
) -> tuple[RgbArray, ImageInfo]:
    """A loaded Pillow image as RGB."""
    mode = image.mode
    if mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        info = ImageInfo(mode, 16, float(values.max()))
        return _three_channels(_scaled(values, white_level or _WHITE_16)), info
    if mode in ("I", "F"):
        return _from_numbers(np.asarray(image), mode, name, white_level)
    try:
        if mode in _ALPHA_MODES or (mode in _KEYED_MODES and "transparency" in image.info):
            rgba = np.asarray(image.convert("RGBA"))
            return _three_channels(rgba), ImageInfo(mode, 8)
        rgb: RgbArray = np.array(image if mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise UnreadableImageError(f"its colours ({mode}) cannot become RGB", where=name) from error
    return rgb, ImageInfo(mode, 1 if mode == "1" else 8)


def _from_numbers(
    values: npt.NDArray[Any], mode: str, name: str, white_level: int | None
) -> tuple[RgbArray, ImageInfo]:
    """32-bit integers and floats, whose white is not known from the file alone."""
    if not np.isfinite(values).all() or values.min() < 0:
        raise UnreadableImageError("it holds negative or not finite values", where=name)
    peak = float(values.max())
    if white_level is None:
        # Older versions of Pillow give 16-bit files as 32-bit integers.
        white = 1 if mode == "F" else _WHITE_16
        if peak > white:
            raise DataError(
                f"the image holds values up to {peak:g}, and its white is not known",
                where=name,
                expected=f"values from 0 to {white}, or a white level",
                hint="give the value that is white: --set data.white_level=VALUE",
            )
    else:
        white = white_level
    info = ImageInfo(mode, 16 if mode == "I" and peak <= _WHITE_16 else 32, peak)
    return _three_channels(_scaled(values, white)), info


def _scaled(values: npt.NDArray[Any], white: int) -> FloatArray:
    scaled = values.astype(np.float32)
    scaled /= np.float32(white)
    return np.minimum(scaled, np.float32(1), out=scaled)


def _checked_floats(values: npt.NDArray[Any]) -> FloatArray:
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(
            "an array of this type is no image",
            given=str(values.dtype),
            expected="uint8, uint16, bool, or float from 0 to 1",
            hint="image.astype(numpy.uint8), if its values are 0 to 255",
        )
    if not np.isfinite(values).all():
        raise DataError(
            "the image holds values that are not finite (NaN or infinity)",
            expected="floats from 0 to 1",
            hint="replace them before scoring",
        )
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise DataError(
            "the values of the image are out of range",
            given=f"{low:g} to {high:g}",
            expected="floats from 0 to 1",
            hint="divide by 255" if low >= 0 and high <= 255 else "scale it to 0 to 1",
        )
    return values.astype(np.float32)


def _three_channels(values: npt.NDArray[Any]) -> RgbArray:
    """(H, W), (H, W, 3) or (H, W, 4) of uint8 or float32 as (H, W, 3) of the same type."""
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2)
    if values.shape[2] == 3:
        return np.ascontiguousarray(values)
    colour, alpha = values[..., :3], values[..., 3:]
    if values.dtype != np.uint8:
        return np.ascontiguousarray(colour if alpha.max() == 0 else colour * alpha)
    if alpha.min() == 255 or alpha.max() == 0:
        return np.ascontiguousarray(colour)
    product = colour.astype(np.uint16) * alpha.astype(np.uint16)
    return ((product + 127) // 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 to 8."""
    if isinstance(image, TiffImageFile):
        # Pillow turns these while it loads them; older versions keep the tag all the same.
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not make the pixels unusable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(rgb: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    if orientation in (5, 6, 7, 8):
        rgb = rgb.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return rgb
