"""Decodes every image and mask once, so that all broken ones are named before a fit starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flawmap.data.check import Finding, require_sound
from flawmap.data.images import ImageInfo, RgbArray, decode_image
from flawmap.data.lister import Problem, UnreadableImageError, canonical, raise_unreadable
from flawmap.data.masks import read_mask
from flawmap.data.pictures import Watch
from flawmap.data.pool import Share, map_in_threads
from flawmap.data.samples import SampleTable
from flawmap.errors import DataError
from flawmap.resources import default_threads
from flawmap.types import Sample
from flawmap.wording import shown

_CHUNK = 1 << 20
_DEEP = 255
_LOW_RANGE = 0.5


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What decoding showed of one image.

    Attributes:
        sample: The image.
        size: (height, width) in px, upright.
        info: How it is stored.
        grey: All three channels are equal.
        pixels: See `picture_of`.
        content: A sha256 of the file and of its masks' files.
        mask_fraction: The share of pixels inside the masks; None without masks.
    """

    sample: Sample
    size: tuple[int, int]
    info: ImageInfo
    grey: bool
    pixels: bytes
    content: bytes
    mask_fraction: float | None


@dataclass(frozen=True)
class Verification:
    """The outcome for a whole table.

    Attributes:
        table: The samples that can be used.
        problems: The files that cannot: unreadable images and masks, masks of another size,
            good images with defect pixels in their masks.
        facts: One per usable sample, in the table's order.
        content_fingerprint: A sha256 over names, labels and file contents of the usable samples.
    """

    table: SampleTable
    problems: tuple[Problem, ...]
    facts: tuple[ImageFacts, ...]
    content_fingerprint: str

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) in px of each usable image."""
        return tuple(f.size for f in self.facts)

    def require(self, *, skip_bad: bool = False) -> SampleTable:
        """The usable samples.

        Args:
            skip_bad: Do without the others, rather than refuse; they stay in `problems`.

        Raises:
            UnreadableFilesError: There are problems; all of them are in its `problems`.
            DataError: What is left has no good training images.
        """
        if not skip_bad:
            raise_unreadable(self.problems, where=shown(self.table.root))
        require_sound(self.table, skip_bad=True)
        return self.table


def verify(
    table: SampleTable,
    *,
    threads: int | None = None,
    white_level: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    share: Share | None = None,
    watch: Watch | None = None,
) -> Verification:
    """Decode every image and mask of a table in threads.

    Args:
        table: The images.
        threads: Number of threads; None is the number of cores, at most 8.
        white_level: As for `images.read_image`.
        on_progress: Called as on_progress(done, total) after each image.
        share: Of several processes, each of which gets the whole result; None decodes all.
        watch: Is shown every image as it was decoded, in the threads.
    """
    threads = threads or default_threads()

    def examine(sample: Sample) -> ImageFacts | Problem:
        return _examine(sample, white_level, watch)

    samples = table.samples if share is None else share.of(table.samples)
    results: list[ImageFacts | Problem] = []
    for result in map_in_threads(examine, samples, threads=threads, ahead=4 * threads):
        results.append(result)
        if on_progress is not None:
            on_progress(len(results), len(samples))
    if share is not None:
        results = share.joined(results)
    problems = [*table.problems, *(r for r in results if isinstance(r, Problem))]
    facts = [r for r in results if not isinstance(r, Problem)]
    kept = [f.sample for f in facts]
    return Verification(
        table=replace(table, samples=tuple(kept)),
        problems=tuple(dict.fromkeys(problems)),
        facts=tuple(facts),
        content_fingerprint=_fingerprint(table, facts),
    )


def picture_of(rgb: RgbArray) -> bytes:
    """A blake2b of the pixels: equal for exact duplicates, whatever their file's name or format."""
    digest = hashlib.blake2b(f"{rgb.shape} {rgb.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(rgb).data)
    return digest.digest()


def range_findings(facts: Sequence[ImageFacts], white_level: int | None) -> Iterable[Finding]:
    """Whether 16-bit images use so little of their range that they look dark or black."""
    peaks = [f.info.peak for f in facts if f.info.bits == 16 and f.info.peak is not None]
    if not peaks or white_level is not None:
        return
    peak = max(peaks)
    if _DEEP < peak <= _LOW_RANGE * 65535:
        white = (1 << int(peak).bit_length()) - 1
        yield Finding(
            "warning",
            f"the 16-bit images use values up to {peak:g} of 65535 only, so they look dark",
            f"fit with --set data.white_level={white}",
        )
    elif peak <= _DEEP:
        yield Finding(
            "warning",
            f"the 16-bit images use values up to {peak:g} of 65535 only, so they look black",
            "fit with --set data.white_level=255",
        )


def _examine(sample: Sample, white_level: int | None, watch: Watch | None) -> ImageFacts | Problem:
    content = hashlib.sha256()
    place = sample.path
    try:
        with Path(sample.path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                content.update(chunk)
            file.seek(0)
            rgb, info = decode_image(file, name=shown(sample.path), white_level=white_level)
        size = (rgb.shape[0], rgb.shape[1])
        fraction = None
        if sample.masks:
            union = np.zeros(size, dtype=np.bool_)
            for mask in sample.masks:
                place = mask
                content.update(Path(mask).read_bytes())
                union |= read_mask([mask], size)
            fraction = float(union.mean())
            if fraction and sample.label == 0:
                return Problem(sample.path, "labelled good, but its mask has defect pixels")
    except UnreadableImageError as error:
        return Problem(place, error.reason)
    except DataError as error:
        given = f" ({error.given}, expected {error.expected})" if error.given else ""
        return Problem(place, error.message + given)
    except OSError as error:
        return Problem(place, error.strerror or str(error))
    if watch is not None:
        watch(sample, rgb)
    first = rgb[..., 0]
    return ImageFacts(
        sample=sample,
        size=size,
        info=info,
        grey=bool((first == rgb[..., 1]).all() and (first == rgb[..., 2]).all()),
        pixels=picture_of(rgb),
        content=content.digest(),
        mask_fraction=fraction,
    )


def _fingerprint(table: SampleTable, facts: list[ImageFacts]) -> str:
    rows = sorted(
        json.dumps(
            [
                canonical(table.relative(f.sample.path)),
                f.sample.category,
                f.sample.split,
                f.sample.label,
                f.sample.defect,
                f.content.hex(),
            ]
        )
        for f in facts
    )
    return hashlib.sha256(b"\n".join(r.encode() for r in rows)).hexdigest()
