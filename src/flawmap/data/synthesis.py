"""Synthetic defects on good images, with their masks.

Two families. Blended textures: a mask from thresholded Perlin noise, filled with a texture that
lets some of the image through (Zavrtanik et al., DRAEM, ICCV 2021, arXiv 2108.07610; reference code
MIT; also used by DeSTSeg and DMDD). CutPaste: a piece of the image, recoloured, pasted elsewhere as
a patch or as a thin turned scar (Li et al., CVPR 2021, arXiv 2104.04015).

What differs: the noise is computed at turned places instead of being turned as a picture; an empty
mask is drawn anew, so that no defect means no defect by choice only; where pasting changes nothing,
as on a plain ground, a texture is blended in instead; textures need no download, and are grey on a
grey image.

Everything comes from the generator that is passed in: the same seed and sample give the same defect
in any thread, process or order.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from scipy import ndimage

from flawmap.config import OFF, Section, UserPath
from flawmap.data.images import RgbArray, as_float, read_image
from flawmap.data.lister import list_images
from flawmap.data.textures import perlin, procedural
from flawmap.errors import DataError
from flawmap.explain import explain
from flawmap.files import is_folder
from flawmap.types import BoolArray, FloatArray

Kind = Literal["perlin", "patch", "scar"]
Texture = Literal["procedural", "images", "folder"]

_TRIES = 8
"""What shall be seen is drawn so often before something else is taken."""

_LEAST_CHANGE = 2 / 255
"""Of a px' colour, to be seen."""

_LEAST_MEAN_CHANGE = 4 / 255
"""Of a blended defect's px."""

_GREY = 4 / 255
"""An image whose channels differ by less on average is grey, whatever camera or file it is of."""

_KEPT_BYTES = 512 * 2**20
"""Of pictures of a texture folder: decoding takes longer than everything else."""
_TEXTURE_SIDE = 1024
"""Longer ones are made so long, in px."""

_keeping = threading.Lock()
"""Defects are drawn in threads."""

_LEAST = 1 / 4096
"""Share of the px that a blended defect covers at least."""


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class SynthesisConfig(Section):
    """How synthetic defects look."""

    kinds: Annotated[tuple[Kind, ...], BeforeValidator(_several)] = Field(
        default=("perlin",), min_length=1
    )
    """Drawn with equal chances: perlin (a blended texture), patch, scar (CutPaste)."""
    textures: Annotated[tuple[Texture, ...], BeforeValidator(_several)] = Field(
        default=("procedural", "images"), min_length=1
    )
    """What blended defects are filled with, with equal chances: drawn textures, other training
    images (of the same batch, where a method learns from them), or those of `texture_folder`."""
    texture_folder: UserPath | None = Field(default=None, validate_default=True)
    """A folder of pictures of textures; belongs to textures=folder."""
    none_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the images that stay as they are."""
    opacity: tuple[float, float] = (0.2, 1.0)
    """Range of the share of the texture in a blended px; the image gives the rest."""
    scales: tuple[int, int] = (0, 5)
    """Range of k: the noise has 2^k cells per axis, drawn for each axis."""
    threshold: Annotated[float, Field(gt=-1, lt=1)] = 0.5
    """Noise above it is a defect."""
    foreground: Annotated[Literal["off", "auto"], OFF] = "off"
    """auto: where an object stands out from the border of the image, defects lie on it."""

    @field_validator("texture_folder")
    @classmethod
    def _used(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        textures = info.data.get("textures")
        if textures is not None and ("folder" in textures) != (value is not None):
            raise ValueError("texture_folder belongs to textures=folder, and is needed there")
        return value

    @field_validator("opacity")
    @classmethod
    def _share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("it must be a range within 0 and 1, for example [0.2, 1.0]")
        return value

    @field_validator("scales")
    @classmethod
    def _powers(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] <= value[1] <= 8:
            raise ValueError("it must be a range within 0 and 8, for example [0, 5]")
        return value


def make_synthesis(tree: Mapping[str, Any]) -> SynthesisConfig:
    """Options from plain values.

    Raises:
        ConfigError: Names the option, what was given and what is expected.
    """
    try:
        return SynthesisConfig.model_validate(dict(tree))
    except ValidationError as error:
        raise explain(error, SynthesisConfig) from error


class Synthesis:
    """Draws defects on images.

    Args:
        config: How they look.
        textures: Files of the texture folder; see `list_textures`.

    Example:
        >>> image = np.full((64, 64, 3), 0.5, dtype=np.float32)
        >>> defect, mask = Synthesis()(image, np.random.default_rng(0))
        >>> bool(np.array_equal(defect[~mask], image[~mask])), bool(mask.any())
        (True, True)
    """

    def __init__(self, config: SynthesisConfig | None = None) -> None:
        self.config = config or SynthesisConfig()
        folder = self.config.texture_folder
        self.textures = () if folder is None else tuple(list_textures(folder))
        self._pictures: dict[str, npt.NDArray[np.uint8]] = {}
        self._room = _KEPT_BYTES

    def __call__(
        self,
        image: FloatArray,
        generator: np.random.Generator,
        others: Sequence[FloatArray] = (),
        *,
        always: bool = False,
    ) -> tuple[FloatArray, BoolArray]:
        """A defect on one image.

        Args:
            image: (H, W, 3) float32, RGB in [0, 1].
            generator: Draws everything; one of its own for each image and step.
            others: Further training images, (h, w, 3) float32, for textures=images; without any,
                turned pieces of the image itself are taken.
            always: Draw a defect whatever `none_share` says.

        Returns:
            The image with the defect, (H, W, 3) float32 in [0, 1], and its mask, (H, W); outside
            the mask every px is as it was. The mask is empty only if no defect was drawn.
        """
        height, width = image.shape[:2]
        if generator.uniform() < self.config.none_share and not always:
            return image.copy(), np.zeros((height, width), dtype=np.bool_)
        allowed = object_mask(image) if self.config.foreground == "auto" else None
        kind = self.config.kinds[generator.integers(len(self.config.kinds))]
        pasted = kind != "perlin" and _pasted(image, generator, allowed, _PASTED[kind])
        return pasted or self._blended(image, generator, others, allowed)

    def _blended(
        self,
        image: FloatArray,
        generator: np.random.Generator,
        others: Sequence[FloatArray],
        allowed: BoolArray | None,
    ) -> tuple[FloatArray, BoolArray]:
        mask = self._mask((image.shape[0], image.shape[1]), generator, allowed)
        # Only what changes is drawn.
        box = _box(mask)
        places = np.flatnonzero(mask)
        found = image.copy()
        flat = found.reshape(-1, 3)
        before = flat[places].T
        grey = _is_grey(image)
        for _ in range(_TRIES):
            texture = self._texture(image, mask[box], generator, others)
            if grey:
                # Colour alone would give the defect away.
                texture = texture[:1]
            opacity = np.float32(generator.uniform(*self.config.opacity))
            mixed = before + opacity * (texture - before)
            # A defect that nobody can see would teach nonsense.
            if np.abs(mixed - before).max(axis=0).mean() >= _LEAST_MEAN_CHANGE:
                break
        # Rounding must not carry a px out of range.
        flat[places] = np.clip(mixed, 0, 1, out=mixed).T
        return found, mask

    def _mask(
        self,
        size: tuple[int, int],
        generator: np.random.Generator,
        allowed: BoolArray | None,
    ) -> BoolArray:
        low, high = self.config.scales
        least = max(1, round(size[0] * size[1] * _LEAST))
        for _ in range(_TRIES):
            cells = 2 ** generator.integers(low, high + 1, 2)
            angle = generator.uniform(-math.pi / 2, math.pi / 2)
            noise = perlin(size, (int(cells[0]), int(cells[1])), angle, generator)
            mask: BoolArray = noise > self.config.threshold
            if allowed is not None:
                mask &= allowed
            if np.count_nonzero(mask) >= least:
                return mask
        if allowed is not None:
            noise = np.where(allowed, noise, -np.inf)
        limit = np.partition(noise, -least, axis=None)[-least]
        highest: BoolArray = noise >= limit
        return highest if allowed is None else highest & allowed

    def _texture(
        self,
        image: FloatArray,
        inside: BoolArray,
        generator: np.random.Generator,
        others: Sequence[FloatArray],
    ) -> FloatArray:
        """Colours of the px inside, (3, N): numpy is slow where the innermost axis is short."""
        kind = self.config.textures[generator.integers(len(self.config.textures))]
        if kind == "procedural":
            return procedural(inside, generator)
        if kind == "folder":
            source: RgbArray = self._kept(self.textures[generator.integers(len(self.textures))])
        else:
            source = others[int(generator.integers(len(others)))] if len(others) else image
        return _rearranged(source, inside, generator)

    def _kept(self, path: str) -> npt.NDArray[np.uint8]:
        """A picture of the texture folder, (h, w, 3); those that come first are kept, as many as
        there is room for."""
        found = self._pictures.get(path)
        if found is None:
            found = _texture_picture(path)
            with _keeping:
                if path not in self._pictures and found.nbytes <= self._room:
                    self._pictures[path] = found
                    self._room -= found.nbytes
        return found


def _texture_picture(path: str) -> npt.NDArray[np.uint8]:
    picture = read_image(path)
    if picture.dtype != np.uint8:
        picture = (picture * 255).round()
    found = picture.astype(np.uint8, copy=False)
    if max(found.shape) > _TEXTURE_SIDE:
        small = Image.fromarray(found)
        small.thumbnail((_TEXTURE_SIDE, _TEXTURE_SIDE))
        found = np.asarray(small)
    return found


def list_textures(folder: Path) -> tuple[str, ...]:
    """The pictures of a texture folder, sorted.

    Raises:
        DataError: There are none.
    """
    if not is_folder(folder):
        raise DataError(
            "the texture folder is not there",
            where=str(folder),
            hint="name a folder of pictures of textures, or use textures=procedural",
        )
    found = list_images(folder)
    if not found:
        raise DataError(
            "the texture folder holds no pictures",
            where=str(folder),
            hint="name a folder of pictures of textures, or use textures=procedural",
        )
    return found


def object_mask(image: FloatArray) -> BoolArray | None:
    """Where the object is, for images of one object on a plain ground.

    Otsu's threshold on the smoothed grey image; the side that touches the border less is the
    object, its holes filled.

    Args:
        image: (H, W, 3) float32 in [0, 1].

    Returns:
        (H, W), or None where nothing stands out: textures, or an object that fills the image.

    Source: Otsu, "A threshold selection method from gray-level histograms" (1979).
    """
    grey = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    grey = ndimage.uniform_filter(grey, 5)
    if float(grey.max() - grey.min()) < 1 / 255:
        return None
    counts, edges = np.histogram(grey, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    split = int(np.nanargmax(between))
    # How much of the variance the split explains: a texture has no two levels.
    explained = float(between[split]) / float(below[-1]) ** 2 / max(float(grey.var()), 1e-12)
    bright: BoolArray = grey > edges[split + 1]
    border = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    found = ~bright if border.mean() > 0.5 else bright
    touching = min(border.mean(), 1 - border.mean())
    share = found.mean()
    if explained < 0.7 or touching > 0.1 or not 0.05 < share < 0.95:
        return None
    filled: BoolArray = ndimage.binary_fill_holes(found)
    return filled


def _rearranged(source: RgbArray, inside: BoolArray, generator: np.random.Generator) -> FloatArray:
    """A texture from a picture: a random piece, turned by quarters, mirrored, recoloured.

    Returns:
        (3, N), a column for each px inside.
    """
    places = np.nonzero(inside)
    if generator.uniform() < 0.5:
        # Turned by a quarter, the picture's columns are the rows of the piece.
        places = places[::-1]
    index = np.zeros(len(places[0]), dtype=np.intp)
    for place, have in zip(places, source.shape[:2], strict=True):
        # From a random place on, forwards or backwards; places wrap around.
        step = 1 if generator.uniform() < 0.5 else -1
        index = index * have + (place * step + generator.integers(have)) % have
    gain = generator.uniform(0.6, 1.4, 3).astype(np.float32)
    shift = generator.uniform(-0.15, 0.15, 3).astype(np.float32)
    piece = as_float(source.reshape(-1, 3)[index]).T * gain[:, None] + shift[:, None]
    found: FloatArray = np.clip(piece, 0, 1, out=piece)
    return found


Shape = Callable[[np.random.Generator, int, int], tuple[float, float, float]]


def _patch(generator: np.random.Generator, height: int, width: int) -> tuple[float, float, float]:
    """Height, width in px and angle of a CutPaste patch."""
    area = generator.uniform(0.02, 0.15) * height * width
    aspect = generator.uniform(0.3, 1) if generator.uniform() < 0.5 else generator.uniform(1, 3.3)
    return math.sqrt(area / aspect), math.sqrt(area * aspect), 0.0


def _scar(generator: np.random.Generator, height: int, width: int) -> tuple[float, float, float]:
    """Height, width in px and angle of a scar; given at 256 px in the paper."""
    scale = min(height, width) / 256
    long, thin = generator.uniform(10, 25) * scale, generator.uniform(2, 16) * scale
    return long, thin, generator.uniform(-math.pi / 4, math.pi / 4)


_PASTED: dict[Kind, Shape] = {"patch": _patch, "scar": _scar}


def _pasted(
    image: FloatArray,
    generator: np.random.Generator,
    allowed: BoolArray | None,
    shape: Shape,
) -> tuple[FloatArray, BoolArray] | None:
    """A piece of the image on another place of it; None if that would change next to nothing."""
    height, width = image.shape[:2]
    for _ in range(_TRIES):
        high, wide, angle = shape(generator, height, width)
        high, wide = min(max(high, 1), height), min(max(wide, 1), width)
        centre = _place(generator, height, width, allowed)
        reach = math.ceil(math.hypot(high, wide) / 2) + 1
        box = tuple(
            slice(max(0, at - reach), min(n, at + reach + 1))
            for at, n in zip(centre, (height, width), strict=True)
        )
        y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - centre[0]
        x = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None, :] - centre[1]
        cos, sin = math.cos(angle), math.sin(angle)
        # Places within the piece, upright.
        v, u = cos * y + sin * x, cos * x - sin * y
        inside: BoolArray = (np.abs(v) <= high / 2) & (np.abs(u) <= wide / 2)
        if allowed is not None:
            inside &= allowed[box]
        top, left = generator.uniform(0, height - high), generator.uniform(0, width - wide)
        rows = np.clip(np.rint(v[inside] + high / 2 + top), 0, height - 1).astype(np.intp)
        columns = np.clip(np.rint(u[inside] + wide / 2 + left), 0, width - 1).astype(np.intp)
        gain = generator.uniform(0.9, 1.1, 3).astype(np.float32)
        if _is_grey(image):
            gain[:] = gain[0]
        found, mask = image.copy(), np.zeros((height, width), dtype=np.bool_)
        mask[box] = inside
        found[mask] = np.clip(image[rows, columns] * gain, 0, 1)
        # A piece of plain ground on the same ground would be no defect.
        changed = np.abs(found[mask] - image[mask]).max(axis=-1) > _LEAST_CHANGE
        if changed.mean() > 0.5:
            return found, mask
    return None


def _place(
    generator: np.random.Generator, height: int, width: int, allowed: BoolArray | None
) -> tuple[int, int]:
    if allowed is None:
        return int(generator.integers(height)), int(generator.integers(width))
    index = int(generator.choice(np.flatnonzero(allowed)))
    return index // width, index % width


def _is_grey(image: FloatArray) -> bool:
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return float(np.abs(red - green).mean()) < _GREY and float(np.abs(blue - green).mean()) < _GREY


def _box(mask: BoolArray) -> tuple[slice, slice]:
    """The smallest rectangle that holds the mask, which is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
