"""The top of the page: the verdict in words, and the figures that carry it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flawmap.evaluation import CategoryResult, Evaluation
from flawmap.report.curves import rate_limit
from flawmap.report.text import esc, name, percent
from flawmap.scoring import Threshold
from flawmap.wording import counted


@dataclass(frozen=True, slots=True)
class Tally:
    """Decisions at the calibrated thresholds; categories without one are not counted.

    Attributes:
        good: Good images judged.
        rejected: Of these, how many raised the alarm.
        defect: Defects judged.
        missed: Of these, how many did not.
    """

    good: int
    rejected: int
    defect: int
    missed: int

    @classmethod
    def of(cls, results: Iterable[CategoryResult]) -> Tally:
        """Counts over all images of these categories."""
        judged = [image for r in results for image in r.images if image.flagged is not None]
        good = [image.flagged for image in judged if image.sample.label == 0]
        defect = [image.flagged for image in judged if image.sample.label == 1]
        return cls(
            len(good), sum(map(bool, good)), len(defect), len(defect) - sum(map(bool, defect))
        )


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
    if tally.defect:
        found = tally.defect - tally.missed
        parts.append(f"found <strong>{found:,} of {counted(tally.defect, 'defect')}</strong>")
    if tally.good:
        parts.append(
            f"rejected <strong>{tally.rejected:,} of {counted(tally.good, 'good part')}</strong>"
        )
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
        text += " The test holds no good parts, so it says nothing about false alarms."
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
        + _rate_tile("False rejects", tally.rejected, tally.good, "good part")
        + _rate_tile("Escapes", tally.missed, tally.defect, "defect")
    )


def _share(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f'<data value="{value!r}">{esc(percent(value))}</data><span class="unit">%</span>'


def _rate_tile(label: str, events: int, n: int, noun: str) -> str:
    if not n:
        return _tile(label, "–", f"no {noun}s were judged at a threshold")
    words = f"{events:,} of {counted(n, noun)}<br>{limit_words(events, n)} with 95% confidence"
    return _tile(label, _share(events / n), words)


def limit_words(events: int, n: int) -> str:
    """What so many images allow to say, with 95% confidence, of the rate on parts to come."""
    limit = rate_limit(events, n)
    return "no upper limit" if limit >= 1 else f"below {esc(percent(limit))}%"


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
            f"at most {_range([f'{b:.2%}' for b in bounds])} of good parts rejected in each "
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
