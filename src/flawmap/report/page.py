"""The page: one HTML file that asks the network for nothing."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from flawmap.errors import ExportError
from flawmap.files import write_text
from flawmap.progress import Progress, Silent
from flawmap.report.charts import histogram_chart, pr_chart, roc_chart
from flawmap.report.curves import histogram
from flawmap.report.decisions import mistakes, other_thresholds
from flawmap.report.details import details, notes_of
from flawmap.report.gallery import gallery
from flawmap.report.head import Tally, head
from flawmap.report.style import STYLE
from flawmap.report.tables import (
    calibrated_table,
    defects_table,
    metrics_table,
    optional_table,
)
from flawmap.report.text import esc, name, percent
from flawmap.wording import counted

if TYPE_CHECKING:
    from flawmap.detector import Detector
    from flawmap.evaluation import CategoryResult, Evaluation

# A browser that heeds this sends nothing, even if a hostile name slipped through the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

# Drawn over the bars of images on the wrong side of the threshold.
_HATCH = (
    '<svg class="hatch" aria-hidden="true"><defs><pattern id="hatch" width="5" height="5" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path d="M0 0V5"/></pattern>'
    "</defs></svg>"
)


def write_report(
    detector: Detector,
    evaluation: Evaluation,
    path: Path,
    *,
    progress: Progress | None = None,
) -> None:
    """Write the report of an evaluation, atomically.

    The gallery's images are scored again for their maps, so their files must still be there; one
    that is not is named in the page.

    Args:
        detector: The detector that was evaluated.
        evaluation: Its figures.
        path: The HTML file.
        progress: Where progress is shown; nowhere by default.

    Raises:
        ExportError: The disk is full or the folder cannot be written.

    Example:
        >>> write_report(detector, evaluation, Path("report.html"))  # doctest: +SKIP
    """
    page = render(detector, evaluation, progress=progress)
    write_text(path, page, error=ExportError)


def render(
    detector: Detector,
    evaluation: Evaluation,
    *,
    each: int = 4,
    progress: Progress | None = None,
    now: datetime | None = None,
) -> str:
    """The page as text; see `write_report`.

    Args:
        each: Images in each group of the gallery (misses, false alarms, finds).
        now: The time that the page gives as its own; the present by default.
    """
    names = list(evaluation.categories)
    heading = _heading(names)
    when = (now or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M %Z")
    config = detector.config
    encoder = "" if detector.encoder.spec.family == "none" else f" on {config.encoder.name}"
    file = "" if detector.source is None else f"{Path(detector.source.path).name}: "
    subtitle = f"{file}{config.method.name}{encoder}, {when}"
    sections = ""
    with (progress or Silent()).task("Drawing the report", len(names)) as task:
        for index, category in enumerate(names):
            sections += _category(detector, evaluation, index, category, each)
            task.update(index + 1)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{esc(heading)} – flawmap report</title><style>{STYLE}</style></head><body>"
        f'{_HATCH}<a class="skip" href="#metrics">Skip to the figures</a>'
        f"{head(evaluation, heading, subtitle)}<main>{notes_of(evaluation.notes)}{_contents(names)}"
        f'<section id="metrics"><h2>Metrics</h2>{metrics_table(evaluation)}'
        f"{optional_table(evaluation)}</section>"
        "<section><h2>At the calibrated threshold</h2>"
        f"{calibrated_table(evaluation)}</section>{sections}"
        f'<section id="details"><h2>How this came about</h2>{details(detector, evaluation)}'
        "</section></main></body></html>\n"
    )


def _heading(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if len(names) <= 3:
        return ", ".join(names[:-1]) + " and " + names[-1]
    return f"{len(names)} categories"


def _contents(names: list[str]) -> str:
    if len(names) < 2:
        return ""
    links = "".join(
        f'<li><a href="#c{index}">{name(category)}</a></li>' for index, category in enumerate(names)
    )
    links += '<li><a href="#details">details</a></li>'
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _longest_side(n_categories: int) -> int:
    """px of the pictures' longest side: with many categories smaller, to keep the file light."""
    if n_categories <= 4:
        return 480
    return 384 if n_categories <= 8 else 288


def _category(
    detector: Detector, evaluation: Evaluation, index: int, category: str, each: int
) -> str:
    result = evaluation.categories[category]
    longest = _longest_side(len(evaluation.categories))
    root = str(evaluation.data.get("root", ""))
    kinds = defects_table(result)
    pictures = gallery(detector, result, root=root, each=each, longest=longest)
    return (
        f'<section class="category" id="c{index}"><h2>{name(category)}</h2>'
        f'<p class="quiet">{_summary(result)}</p>'
        f'<div class="plots">{_plots(result)}</div>'
        + mistakes(result, root)
        + other_thresholds(detector.calibration, category, result)
        + (f"<h3>By kind of defect</h3>{kinds}" if kinds else "")
        + f"<h3>Pictures</h3>{_toggles(index)}{pictures}</section>"
    )


def _summary(result: CategoryResult) -> str:
    counts = result.counts
    parts = [f"{counted(counts['good'], 'good image')}, {counted(counts['defect'], 'defect')}"]
    if counts["defect"] and counts["defects_with_mask"] != counts["defect"]:
        parts[0] += f" ({counts['defects_with_mask']:,} with a mask)"
    tally = Tally.of([result])
    if tally.good.n:
        parts.append(f"{tally.good.wrong:,} good rejected")
    if tally.defect.n:
        parts.append(f"{counted(tally.defect.wrong, 'defect')} missed")
    return esc(" · ".join(parts))


def _plots(result: CategoryResult) -> str:
    labels = [int(r.sample.label or 0) for r in result.images]
    scores = [r.score for r in result.images]
    threshold = None if result.threshold is None else result.threshold.value
    parts = [_plot("Scores", "", histogram_chart(histogram(labels, scores, threshold), threshold))]
    if 0 < sum(labels) < len(labels):
        tally = Tally.of([result])
        good, defect = tally.good, tally.defect
        roc = pr = None
        if threshold is not None:
            found = defect.n - defect.wrong
            roc = (good.wrong / good.n, found / defect.n)
            alarms = found + good.wrong
            pr = (found / defect.n, found / alarms) if alarms else None
        auroc, ap = result.metrics["image_auroc"], result.metrics["image_ap"]
        parts += [
            _plot("ROC", _figure("AUROC", auroc), roc_chart(labels, scores, roc)),
            _plot("Precision and recall", _figure("AP", ap), pr_chart(labels, scores, pr)),
        ]
    else:
        there = "good images" if not sum(labels) else "defects"
        parts.append(
            f'<p class="plot none">The test holds {there} only. ROC and precision-recall curves '
            "need good images and defects.</p>"
        )
    return "".join(parts)


def _figure(title: str, value: float) -> str:
    return "" if math.isnan(value) else f"{title} {percent(value)}%"


def _plot(title: str, figure: str, chart: str) -> str:
    return (
        f'<figure class="plot"><figcaption><b>{esc(title)}</b> <span>{esc(figure)}</span>'
        f"</figcaption>{chart}</figure>"
    )


def _toggles(index: int) -> str:
    """Check boxes that hide the outlines, by style alone: the page runs no script."""
    return "".join(
        f'<label class="toggle"><input type="checkbox" class="show-{what}" id="c{index}-{what}" '
        f"checked> {words}</label>"
        for what, words in (("mask", "true masks"), ("box", "regions found"))
    )
