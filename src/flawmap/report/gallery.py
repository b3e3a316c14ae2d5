"""Which images of a category are shown, and how: picture, heat map, true mask, regions, verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flawmap.data.images import read_image
from flawmap.data.masks import read_mask
from flawmap.errors import FlawmapError
from flawmap.outputs.heat import HeatScale, heat_picture
from flawmap.report.pictures import (
    data_uri,
    outline,
    shrink_map,
    shrink_mask,
    shrink_picture,
    small_size,
)
from flawmap.report.text import esc, name, number, short_path, told_apart
from flawmap.types import BoolArray, FloatArray
from flawmap.wording import counted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from flawmap.detector import Detector
    from flawmap.evaluation import CategoryResult, ImageResult
    from flawmap.types import Prediction, Region

_MAX_BOXES = 12
_NEAR = 0.03
"""Maps are coarse: a peak this close to the mask (share of the long side) counts as inside."""


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are shown together.

    Attributes:
        title: Heading.
        words: What they are, in a sentence.
        images: In the order shown.
    """

    title: str
    words: str
    images: tuple[ImageResult, ...]


@dataclass(frozen=True, slots=True)
class _Shown:
    """One image, small enough to be kept until the heat scale of its category is known."""

    picture: npt.NDArray[np.uint8]
    reconstruction: npt.NDArray[np.uint8] | None
    anomaly_map: FloatArray
    mask: str
    regions: tuple[Region, ...]
    source: tuple[int, int]
    pixel_threshold: float | None
    elsewhere: bool


def choose(result: CategoryResult, each: int) -> tuple[Group, ...]:
    """The worst misses, the worst false alarms and the best finds of a category.

    Args:
        result: The category.
        each: How many images a group shows at most.

    Returns:
        Groups that have images; no image is in two of them.
    """
    by_score = sorted(result.images, key=lambda r: (r.score, r.sample.path))
    defects = [r for r in by_score if r.sample.label == 1]
    goods = [r for r in reversed(by_score) if r.sample.label == 0]
    misses = defects[:each]
    finds = [r for r in reversed(defects[each:]) if r.flagged is not False][:each]
    missed = sum(r.flagged is False for r in defects)
    rejected = sum(r.flagged is True for r in goods)
    judged = result.threshold is not None
    groups = (
        _misses(misses, missed, len(defects), judged),
        _alarms(goods[:each], rejected, len(goods), judged),
        Group("Best finds", "The highest-scoring defects.", tuple(finds)),
    )
    return tuple(group for group in groups if group.images)


def _misses(images: Sequence[ImageResult], missed: int, of: int, judged: bool) -> Group:
    if not judged:
        title, words = "Hardest defects", "The lowest-scoring defects; there is no threshold."
    elif missed:
        title = "Worst misses"
        words = f"{missed:,} of {counted(of, 'defect')} missed; the lowest scores first."
    else:
        title = "No defect missed"
        words = f"All of {counted(of, 'defect')} found; these came closest to being missed."
    return Group(title, words, tuple(images))


def _alarms(images: Sequence[ImageResult], rejected: int, of: int, judged: bool) -> Group:
    if not judged:
        title = "Most suspicious good images"
        words = "The highest-scoring good images; there is no threshold."
    elif rejected:
        title = "False alarms"
        words = f"{rejected:,} of {counted(of, 'good image')} rejected; the highest scores first."
    else:
        title = "No false alarm"
        words = f"None of {counted(of, 'good image')} rejected; these came closest."
    return Group(title, words, tuple(images))


def gallery(
    detector: Detector,
    result: CategoryResult,
    *,
    root: str,
    each: int,
    longest: int,
) -> str:
    """The gallery of a category as HTML; its images are scored again for their maps.

    Args:
        detector: Gives the maps.
        result: The category.
        root: File names are shown relative to this folder.
        each: How many images a group shows at most.
        longest: Longest side of a picture on the page in px.
    """
    groups = choose(result, each)
    images = [image for group in groups for image in group.images]
    shown = list(_prepare(detector, images, longest))
    usable = [s for s in shown if isinstance(s, _Shown)]
    if not usable:
        scale = None
    else:
        scale = HeatScale.of([s.anomaly_map for s in usable], usable[0].pixel_threshold)
    parts = []
    rebuilt = any(s.reconstruction is not None for s in usable)
    # Three pictures side by side need more room than two.
    wide = " wide" if rebuilt else ""
    if scale:
        parts.append(_legend(scale, any(s.mask for s in usable), rebuilt))
    at = 0
    for group in groups:
        cards = []
        for image in group.images:
            cards.append(_card(image, shown[at], scale, root))
            at += 1
        parts.append(
            f'<section class="group"><h4>{esc(group.title)}</h4>'
            f'<p class="quiet">{esc(group.words)}</p>'
            f'<div class="cards{wide}">{"".join(cards)}</div></section>'
        )
    return "".join(parts)


def _prepare(
    detector: Detector, images: Sequence[ImageResult], longest: int
) -> Iterator[_Shown | str]:
    """Each image ready to be drawn, or the reason why it cannot be shown."""
    white = detector.config.data.white_level
    for image in images:
        # One by one: full-size maps are large, and a file that has gone since the evaluation
        # costs its own card only.
        try:
            prediction = next(iter(detector.predict_samples([image.sample], batch_size=1)))
            rgb = read_image(image.sample.path, white_level=white)
            size = small_size(prediction.anomaly_map.shape, longest)
            mask = _mask(image, prediction)
            rebuilt = detector.reconstruct(image.sample, size)
            yield _Shown(
                picture=shrink_picture(rgb, size),
                reconstruction=None if rebuilt is None else shrink_picture(rebuilt, size),
                anomaly_map=shrink_map(prediction.anomaly_map, size),
                mask="" if mask is None else outline(shrink_mask(mask, size)),
                regions=prediction.regions[:_MAX_BOXES],
                source=prediction.anomaly_map.shape,
                pixel_threshold=prediction.pixel_threshold,
                elsewhere=mask is not None and _peak_outside(prediction.anomaly_map, mask),
            )
        except FlawmapError as error:
            yield error.message


def _mask(image: ImageResult, prediction: Prediction) -> BoolArray | None:
    if image.sample.label != 1 or not image.sample.masks:
        return None
    return read_mask(image.sample.masks, prediction.anomaly_map.shape)


def _peak_outside(anomaly_map: FloatArray, mask: BoolArray) -> bool:
    """Whether the map's peak is clearly outside a mask: an alarm for the wrong reason."""
    y, x = divmod(int(anomaly_map.argmax()), anomaly_map.shape[1])
    reach = round(_NEAR * max(mask.shape)) + 1
    near = mask[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
    return bool(mask.any() and not near.any())


def _card(image: ImageResult, shown: _Shown | str, scale: HeatScale | None, root: str) -> str:
    file = short_path(image.sample.path, root)
    kind = "good" if image.sample.label == 0 else "defect"
    # The kind of defect is left out where it only repeats the word.
    what = image.sample.defect if image.sample.defect not in ("", kind) else ""
    if isinstance(shown, str) or scale is None:
        pictures = f'<p class="missing">This image can no longer be shown: {esc(shown)}</p>'
    else:
        pictures = _pair(shown, scale, f"{kind} image {file}", image.score)
    more = " three" if isinstance(shown, _Shown) and shown.reconstruction is not None else ""
    hint = ""
    if isinstance(shown, _Shown) and shown.elsewhere and image.flagged is not False:
        hint = '<span class="hint">The strongest response lies outside the true mask.</span>'
    truth = f'<span class="truth {kind}">{kind}</span>'
    truth += f" {name(what)}" if what else ""
    return (
        f'<figure class="card"><div class="pair{more}">{pictures}</div><figcaption>'
        f'<span class="line"><span>{truth}</span>{_verdict(image, kind)}</span>'
        f'<span class="file">{name(file)}</span>{hint}</figcaption></figure>'
    )


def _verdict(image: ImageResult, kind: str) -> str:
    if image.threshold is None:
        return f'<span class="score">score {_score(image, number(image.score))}</span>'
    mine, limit = told_apart(image.score, image.threshold)
    found = "defect" if image.flagged else "good"
    words = {
        ("defect", "defect"): "✓ found",
        ("defect", "good"): "✗ missed",
        ("good", "good"): "✓ passed",
        ("good", "defect"): "✗ false alarm",
    }[kind, found]
    tone = "right" if kind == found else "error"
    sign = "&gt;" if image.flagged else "≤"
    return (
        f'<span class="score">score {_score(image, mine)} {sign} {limit} '
        f'<strong class="{tone}">{words}</strong></span>'
    )


def _score(image: ImageResult, text: str) -> str:
    return f'<data value="{image.score!r}">{text}</data>'


def _pair(shown: _Shown, scale: HeatScale, alt: str, score: float) -> str:
    height, width = shown.picture.shape[:2]
    mask = f'<path class="mask-halo" d="{shown.mask}"/><path class="mask" d="{shown.mask}"/>'
    mask = mask if shown.mask else ""
    sx, sy = width / shown.source[1], height / shown.source[0]
    boxes = "".join(_box(region.box, sx, sy) for region in shown.regions)
    plain = data_uri(shown.picture)
    heat = data_uri(heat_picture(shown.picture, shown.anomaly_map, scale))
    told = f"Heat map of {alt}: score {number(score)}, {counted(len(shown.regions), 'region')}"
    # Thin strips keep a visible height.
    ratio = min(max(width / height, 0.1), 10)

    def panel(uri: str, text: str, marks: str) -> str:
        over = (
            f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
            f'aria-hidden="true">{marks}</svg>'
        )
        return (
            f'<span class="pic" style="--ratio:{ratio:.4g}">'
            f'<img src="{uri}" width="{width}" height="{height}" alt="{esc(text)}">'
            f"{over if marks else ''}</span>"
        )

    truth = ", its true mask outlined" if mask else ""
    first = panel(plain, f"Picture of {alt}{truth}", mask)
    last = panel(heat, told, boxes + mask)
    if shown.reconstruction is None:
        return first + last
    rebuilt = panel(data_uri(shown.reconstruction), f"Reconstruction of {alt}", mask)
    return "".join(
        f'<span class="panel">{pic}<span class="what">{what}</span></span>'
        for what, pic in (("image", first), ("reconstruction", rebuilt), ("heat map", last))
    )


def _box(box: tuple[int, int, int, int], sx: float, sy: float) -> str:
    left, top, width, height = box
    place = (
        f'x="{left * sx:.1f}" y="{top * sy:.1f}" '
        f'width="{max(width * sx, 2):.1f}" height="{max(height * sy, 2):.1f}"'
    )
    return f'<rect class="box-halo" {place}/><rect class="box" {place}/>'


def _legend(scale: HeatScale, masks: bool, rebuilt: bool) -> str:
    middle = "threshold of a pixel" if scale.anchored else "middle"
    items = [
        '<span class="key"><span class="bar" aria-hidden="true"></span>'
        f"<span>usual <b>{number(scale.low)}</b></span>"
        f"<span>{middle} <b>{number(scale.middle)}</b></span>"
        f"<span>strong <b>{number(scale.high)}</b></span></span>"
    ]
    if masks:
        items.append('<span class="swatch-mask" aria-hidden="true"></span> true mask')
    if scale.anchored:
        items.append('<span class="swatch-box" aria-hidden="true"></span> region found')
    spans = "".join(f'<span class="legend-item">{item}</span>' for item in items)
    between = "in the middle what a good part would look like there, " if rebuilt else ""
    regions = (
        " Regions lie above the threshold of a pixel, which is set like that of the image score, "
        "which alone gives the verdict."
        if scale.anchored
        else ""
    )
    return (
        f'<div class="legend">{spans}</div><p class="quiet">Left the picture, {between}right its '
        f"heat map, on one scale for the category.{regions} Point at a picture to see it without "
        "outlines.</p>"
    )
