"""The top of the page: the verdict in words, and the figures that carry it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flawmap.evaluation import CategoryResult, Evaluation, ImageResult
from flawmap.report.curves import rate_limit
from flawmap.report.text import esc, name, percent
from flawmap.scoring import Threshold
from flawmap.types import Sample
from flawmap.wording import at_most, counted


@dataclass(frozen=True, slots=True)
class Judged:
    """Decisions on good images, or on defects.

    Attributes:
        n: Images judged.
        wrong: Of these, how many were decided wrongly.
        parts: Physical parts that they show.
        wrong_parts: Of these, how many have any view that was decided wrongly.
    """

    n: int
    wrong: int
    parts: int
    wrong_parts: int

    @classmethod
    def of(cls, images: Sequence[ImageResult]) -> Judged:
        """Counts over images with a verdict."""
        every = [image.sample for image in images]
        wrong = [image.sample for image in images if image.flagged != bool(image.sample.label)]
        return cls(len(every), len(wrong), len(_parts(every)), len(_parts(wrong)))


def _parts(samples: Iterable[Sample]) -> set[tuple[str, str]]:
    return {(sample.category, sample.part) for sample in samples}


@dataclass(frozen=True, slots=True)
class Tally:
    """Decisions at the calibrated thresholds; categories without one are not counted.

    Attributes:
        good: On good images; the wrong ones raised the alarm.
        defect: On defects; the wrong ones did not.
    """

    good: Judged
    defect: Judged

    @classmethod
    def of(cls, results: Iterable[CategoryResult]) -> Tally:
        """Counts over all images of these categories."""
        judged = [image for r in results for image in r.images if image.flagged is not None]
        good, defect = ([i for i in judged if i.sample.label == label] for label in (0, 1))
        return cls(Judged.of(good), Judged.of(defect))


def head(evaluation: Evaluation, title: str, subtitle: str) -> str:
    """The head of the page as HTML."""
    return (
        f'<header class="top"><p class="brand">flawmap<span> · test report</span></p>'
        f'<h1>{name(title)}</h1><p class="quiet">{esc(subtitle)}</p>'
        f'<p class="verdict">{verdict(evaluation)}</p>'
        f'<div class="tiles">{_tiles(evaluation)}</div>'
        f"{_promise(evaluation.categories)}</header>"
    )


def verdict(evaluation: Evaluation) -> str:
    """What the test showed, in one or two sentences of HTML."""
    tally = Tally.of(evaluation.categories.values())
    good, defect = _totals(evaluation)
    parts = []
    if tally.defect.n:
        found = tally.defect.n - tally.defect.wrong
        parts.append(f"found <strong>{found:,} of {counted(tally.defect.n, 'defect')}</strong>")
    if tally.good.n:
        good_images = counted(tally.good.n, "good image")
        parts.append(f"rejected <strong>{tally.good.wrong:,} of {good_images}</strong>")
    if parts:
        text = f"The detector {' and '.join(parts)}."
    else:
        text = "No threshold is set, so the detector ranks parts but passes no verdict."
        auroc = evaluation.mean["image_auroc"]
        if not math.isnan(auroc):
            text += (
                f" It scores a defect above a good part in <strong>{percent(auroc)}%</strong> "
                "of all pairs."
            )
    if not defect:
        text += " The test holds no defects, so it says nothing about how many are missed."
    if not good:
        text += " The test holds no good images, so it says nothing about false alarms."
    without = sum(r.threshold is None for r in evaluation.categories.values())
    if parts and without:
        without_words = counted(without, "category", "categories")
        text += (
            f" {without_words} without a threshold {'is' if without == 1 else 'are'} not counted."
        )
    return text


def _totals(evaluation: Evaluation) -> tuple[int, int]:
    counts = [result.counts for result in evaluation.categories.values()]
    return sum(c["good"] for c in counts), sum(c["defect"] for c in counts)


def _tiles(evaluation: Evaluation) -> str:
    tally = Tally.of(evaluation.categories.values())
    good, defect = _totals(evaluation)
    n = len(evaluation.categories)
    images = f"{good:,} good, {counted(defect, 'defect')}"
    images += f"<br>{counted(n, 'category', 'categories')}" if n > 1 else ""
    auroc = evaluation.mean["image_auroc"]
    if math.isnan(auroc):
        ranking = "needs good and defect images"
    else:
        ranking = "chance that a defect scores above a good part"
        defined = [r.metrics["image_auroc"] for r in evaluation.categories.values()]
        n_defined = sum(not math.isnan(value) for value in defined)
        ranking += f"<br>mean of {n_defined} categories" if n_defined > 1 else ""
    return (
        _tile("Test images", f"{good + defect:,}", images)
        + _tile("Image AUROC", _share(auroc), ranking)
        + _rate_tile("False rejects", tally.good, "good image")
        + _rate_tile("Escapes", tally.defect, "defect")
    )


def _share(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f'<data value="{value!r}">{esc(percent(value))}</data><span class="unit">%</span>'


def _rate_tile(label: str, judged: Judged, noun: str) -> str:
    if not judged.n:
        return _tile(label, "–", f"no {noun}s were judged at a threshold")
    words = f"{judged.wrong:,} of {counted(judged.n, noun)}<br>{limit_words(judged)}"
    return _tile(label, _share(judged.wrong / judged.n), f"{words} with 95% confidence")


def limit_words(judged: Judged) -> str:
    """What so many parts allow to say, with 95% confidence, of the rate on parts to come.

    Views of one part are not independent: a part counts once, as wrong if any of its views is.
    """
    limit = rate_limit(judged.wrong_parts, judged.parts)
    words = "no upper limit" if limit >= 1 else f"below {at_most(limit)}"
    over = "" if judged.parts == judged.n else f" over {counted(judged.parts, 'part')}"
    return words + over


def _tile(label: str, value: str, words: str) -> str:
    return (
        f'<div class="tile"><p class="tile-label">{label}</p><p class="tile-value">{value}</p>'
        f'<p class="tile-words">{words}</p></div>'
    )


def _promise(categories: Mapping[str, CategoryResult]) -> str:
    thresholds = {k: r.threshold for k, r in categories.items() if r.threshold is not None}
    if not thresholds:
        return (
            '<p class="promise"><strong>No threshold.</strong> It is set from good images alone: '
            "calibrate the detector with a few dozen good images that it has not learnt.</p>"
        )
    found = list(thresholds.values())
    text = (
        "<strong>What the thresholds promise.</strong> "
        if len(found) > 1
        else ("<strong>What the threshold promises.</strong> ")
    )
    if len(found) == 1:
        text += f"The next good part: {esc(found[0].explain())}."
    else:
        bounds = sorted(t.bound for t in found)
        approximate = "" if all(t.exact for t in found) else ", approximate where left-one-out"
        text += (
            f"Each was set from its category’s good images alone, before any defect was seen: "
            f"at most {_range([at_most(b) for b in bounds])} of good parts rejected in each "
            f"category (from {_range([f'{n:,}' for n in sorted(t.n for t in found)])} good images"
            f"{approximate})."
        )
    short = {k: t for k, t in thresholds.items() if not t.enough}
    text += _too_few(short, len(found))
    return f'<p class="promise{" warn" if short else ""}">{text}</p>'


def _range(ordered: list[str]) -> str:
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def _too_few(short: Mapping[str, Threshold], n: int) -> str:
    if not short or n == 1:
        return ""
    names = ", ".join(name(k) for k in list(short)[:5])
    names += f" and {len(short) - 5} more" if len(short) > 5 else ""
    asked = next(iter(short.values())).asked
    return f" Too few good images for the {asked:.2%} that was asked: {names}."
