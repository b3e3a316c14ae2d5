"""The tables of the page. What is undefined is a dash, and a note below says why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flawmap.evaluation import CategoryResult, Evaluation
from flawmap.metrics.catalog import ALWAYS, CROP, HEADLINE, MARK, ORIGINAL, info
from flawmap.pixels import APART, SPRO
from flawmap.report.head import Judged, Tally, limit_words
from flawmap.report.text import esc, name, number, percent

_TITLES = {
    "image_auroc": "AUROC",
    "image_ap": "AP",
    "image_f1max": "F1-max",
    "pixel_auroc": "AUROC",
    "pixel_ap": "AP",
    "pixel_f1max": "F1-max",
    "aupro": "AUPRO",
}
_FULL = tuple(metric for metric in ALWAYS if metric.endswith(ORIGINAL))
_SEVERAL_VIEWS = (
    " Views of one part are not independent: where a part was tested in several, this is over "
    "parts, of which one counts if any of its views does."
)


class Reasons:
    """Footnotes for dashes: each reason is given once, under a letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def dash(self, reason: str) -> str:
        """A dash that refers to its reason."""
        count = len(self._letters)
        letter = self._letters.setdefault(reason, chr(ord("a") + count % 26))
        return f'<abbr title="{esc(reason)}">–<sup>{letter}</sup></abbr>'

    def html(self) -> str:
        """The notes below the table."""
        if not self._letters:
            return ""
        notes = "".join(f"<li><sup>{v}</sup> {esc(k)}</li>" for k, v in self._letters.items())
        return f'<ul class="reasons" aria-label="Why a figure is missing">{notes}</ul>'


def why_undefined(metric: str, counts: Mapping[str, int], has_threshold: bool) -> str:
    """Why a metric of a category is NaN."""
    if metric in ("f1", "false_reject_rate", "escape_rate", "segf1") and not has_threshold:
        return "no threshold is set"
    if not counts["defect"]:
        return "no defects in the test"
    if not counts["good"] and (metric.startswith("image") or metric == "false_reject_rate"):
        return "no good images in the test"
    if metric == "sample_auroc":
        return "no images are known to show one part, or no part is good or no part a defect"
    if metric in APART["image_auroc"]:
        return "the data set judges no kinds of defects apart, or one of them is not in the test"
    if not info(metric).per_pixel:
        return "cannot be computed from these images"
    if not counts["defects_with_mask"]:
        return "no defect has a mask"
    if metric == SPRO:
        return "the data set defines no saturation, or the masks mark no px or every one"
    if metric in APART[SPRO]:
        return (
            "the data set defines no saturation or judges no kinds of defects apart, or one of "
            "them is not in the test"
        )
    if metric.endswith(CROP):
        return "the network sees the whole image, or the masks mark no px of its crop or every one"
    return "the masks mark no px, or leave none unmarked"


def metrics_table(evaluation: Evaluation) -> str:
    """The seven metrics per category and their mean, pixel metrics at both sizes, in percent."""
    reasons = Reasons()
    columns = (*HEADLINE, *_FULL)
    footnotes = evaluation.not_official
    heads = "".join(
        f'<th scope="col" class="n{_edge(metric)}">{_TITLES[metric.removesuffix(ORIGINAL)]}'
        f"{_mark(metric, footnotes)}</th>"
        for metric in columns
    )
    body = _body(evaluation, columns, reasons)
    return (
        scroll(
            "Metrics in percent",
            '<thead><tr><th scope="col" rowspan="2">category</th>'
            '<th scope="colgroup" colspan="3" class="edge">image</th>'
            '<th scope="colgroup" colspan="4" class="edge">pixel, 256 × 256</th>'
            '<th scope="colgroup" colspan="4" class="edge">pixel, full size</th></tr>'
            f"<tr>{heads}</tr></thead>{body}",
        )
        + '<p class="quiet">In percent; 100 is perfect. None of these depends on the threshold. '
        "F1-max picks its threshold on the test itself and so is an upper bound. AUPRO counts "
        "every flaw alike, small or large, up to 30% false-positive px."
        + (
            " The mean is unweighted, over the categories where a figure is defined.</p>"
            if len(evaluation.categories) > 1
            else "</p>"
        )
        + _not_official(columns, footnotes)
        + reasons.html()
    )


def _body(evaluation: Evaluation, metrics: Sequence[str], reasons: Reasons) -> str:
    """A row per category, and one for the mean if there are several."""
    rows = []
    for index, (category, result) in enumerate(evaluation.categories.items()):
        cells = "".join(_metric_cell(metric, result, reasons) for metric in metrics)
        link = f'<a href="#c{index}">{name(category)}</a>'
        rows.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
    foot = ""
    if len(evaluation.categories) > 1:
        cells = "".join(_mean_cell(metric, evaluation, reasons) for metric in metrics)
        foot = f'<tfoot><tr><th scope="row">mean</th>{cells}</tr></tfoot>'
    return f"<tbody>{''.join(rows)}</tbody>{foot}"


def optional_table(evaluation: Evaluation) -> str:
    """The metrics that were asked for beside the seven, in percent; "" when there are none."""
    if not evaluation.optional:
        return ""
    reasons = Reasons()
    footnotes = evaluation.not_official
    heads = "".join(
        f'<th scope="col" class="n">{esc(info(metric).title)}{_mark(metric, footnotes)}</th>'
        for metric in evaluation.optional
    )
    body = _body(evaluation, evaluation.optional, reasons)
    return (
        "<h3>Further metrics</h3>"
        + scroll(
            "Further metrics in percent",
            f'<thead><tr><th scope="col">category</th>{heads}</tr></thead>{body}',
            narrow=True,
        )
        + _not_official(evaluation.optional, footnotes)
        + reasons.html()
    )


def _not_official(metrics: Sequence[str], footnotes: Mapping[str, str]) -> str:
    """The footnotes of a table with these metrics; "" where all are official."""
    notes = "".join(
        f"<li>{MARK} {esc(info(metric).title)}: {esc(footnotes[metric])}</li>"
        for metric in metrics
        if metric in footnotes
    )
    return f'<ul class="reasons" aria-label="Not the official metric">{notes}</ul>' * bool(notes)


def _mark(metric: str, footnotes: Mapping[str, str]) -> str:
    """A star with the footnote behind it, for a metric that is not official."""
    if metric not in footnotes:
        return ""
    return f'<abbr title="{esc(footnotes[metric])}">{MARK}</abbr>'


def _edge(metric: str) -> str:
    """Columns that begin a group of columns are set off by a line."""
    first = ("image_auroc", "pixel_auroc", "pixel_auroc_original")
    return " edge" if metric in first else ""


def _metric_cell(metric: str, result: CategoryResult, reasons: Reasons) -> str:
    value = result.metrics[metric]
    if math.isnan(value):
        reason = why_undefined(metric, result.counts, result.threshold is not None)
        return f'<td class="n{_edge(metric)}">{reasons.dash(reason)}</td>'
    return f'<td class="n{_edge(metric)}">{_share(value)}</td>'


def _mean_cell(metric: str, evaluation: Evaluation, reasons: Reasons) -> str:
    value = evaluation.mean[metric]
    if math.isnan(value):
        return f'<td class="n{_edge(metric)}">{reasons.dash("undefined in every category")}</td>'
    return f'<td class="n{_edge(metric)}">{_share(value)}</td>'


def _share(value: float) -> str:
    return f'<data value="{value!r}">{esc(percent(value))}</data>'


def calibrated_table(evaluation: Evaluation) -> str:
    """What happens at each category's calibrated threshold."""
    reasons = Reasons()
    rows = []
    for index, (category, result) in enumerate(evaluation.categories.items()):
        tally = Tally.of([result])
        threshold = result.threshold
        promise = "–" if threshold is None else esc(threshold.explain())
        value = (
            reasons.dash("no threshold is set")
            if threshold is None
            else f'<data value="{threshold.value!r}">{number(threshold.value)}</data>'
        )
        cells = (
            f'<td class="n">{value}</td>'
            + _rate_cell("false_reject_rate", result, tally.good, reasons)
            + _rate_cell("escape_rate", result, tally.defect, reasons)
            + _metric_cell("f1", result, reasons)
            + f'<td class="words">{promise}</td>'
        )
        link = f'<a href="#c{index}">{name(category)}</a>'
        rows.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
    whole = Tally.of(evaluation.categories.values())
    several_views = any(judged.parts < judged.n for judged in (whole.good, whole.defect))
    foot = ""
    if len(evaluation.categories) > 1:
        cells = "".join(
            _mean_cell(metric, evaluation, reasons)
            for metric in ("false_reject_rate", "escape_rate", "f1")
        )
        foot = f'<tfoot><tr><th scope="row">mean</th><td></td>{cells}<td></td></tr></tfoot>'
    return (
        scroll(
            "At the calibrated threshold",
            '<thead><tr><th scope="col">category</th><th scope="col" class="n">threshold</th>'
            '<th scope="col" class="n">false rejects, %</th>'
            '<th scope="col" class="n">escapes, %</th><th scope="col" class="n">F1, %</th>'
            '<th scope="col" class="words">promised for the next good part</th></tr></thead>'
            f"<tbody>{''.join(rows)}</tbody>{foot}",
        )
        + '<p class="quiet">A false reject is a good image above the threshold, an escape a defect '
        "at or below it. “Below” is what so many images rule out with 95% confidence, if parts to "
        f"come are like the ones tested.{_SEVERAL_VIEWS * several_views}</p>" + reasons.html()
    )


def _rate_cell(metric: str, result: CategoryResult, judged: Judged, reasons: Reasons) -> str:
    value = result.metrics[metric]
    if math.isnan(value):
        return _metric_cell(metric, result, reasons)
    return (
        f'<td class="n">{_share(value)}<small>{judged.wrong:,} of {judged.n:,}<br>'
        f"{limit_words(judged)}</small></td>"
    )


def defects_table(result: CategoryResult) -> str:
    """Each kind of defect against the good images; "" when defects have no names."""
    # Readers name a defect of unknown kind by the word itself: one such row would say nothing.
    if set(result.by_defect) <= {"defect"}:
        return ""
    reasons = Reasons()
    rows = []
    for kind, value in sorted(result.by_defect.items(), key=lambda item: _rank(item[1])):
        flagged = [
            image.flagged
            for image in result.images
            if image.sample.label == 1 and image.sample.defect == kind
        ]
        found = (
            reasons.dash("no threshold is set")
            if result.threshold is None
            else f"{sum(map(bool, flagged)):,} of {len(flagged):,}"
        )
        if math.isnan(value):
            auroc = reasons.dash("no good images in the test")
            bar = ""
        else:
            auroc = _share(value)
            bar = f'<span class="meter" aria-hidden="true"><i style="width:{value:.1%}"></i></span>'
        rows.append(
            f'<tr><th scope="row">{name(kind)}</th><td class="n">{len(flagged):,}</td>'
            f'<td class="n">{found}</td><td class="n">{auroc}</td>'
            f'<td class="bar-cell">{bar}</td></tr>'
        )
    return (
        scroll(
            "Kinds of defect",
            '<thead><tr><th scope="col">kind of defect</th><th scope="col" class="n">images</th>'
            '<th scope="col" class="n">found</th><th scope="col" class="n">image AUROC, %</th>'
            f'<td class="bar-cell"></td></tr></thead><tbody>{"".join(rows)}</tbody>',
            narrow=True,
        )
        + reasons.html()
    )


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def scroll(label: str, inner: str, *, narrow: bool = False) -> str:
    """A table that scrolls sideways by itself on a narrow screen, by keyboard too."""
    return (
        f'<div class="scroll" role="region" aria-label="{esc(label)}" tabindex="0">'
        f"<table{' class=narrow' if narrow else ''}>{inner}</table></div>"
    )
