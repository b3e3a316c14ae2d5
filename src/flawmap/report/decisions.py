"""What the threshold decides: every image on its wrong side by name, and other thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flawmap.evaluation import CategoryResult, ImageResult
from flawmap.report.tables import scroll
from flawmap.report.text import esc, name, number, short_path
from flawmap.scoring import Calibration
from flawmap.wording import at_most, counted

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""False-reject rates whose thresholds are shown beside the one that was asked for."""

_MOST = 200
"""Images that are named."""


def mistakes(result: CategoryResult, root: str) -> str:
    """Every missed defect and every rejected good image by name; "" when there is none.

    Args:
        result: The category.
        root: File names are shown relative to this folder.
    """
    missed = [r for r in result.images if r.flagged is False and r.sample.label == 1]
    rejected = [r for r in result.images if r.flagged and r.sample.label == 0]
    parts = (
        _listed(counted(len(missed), "missed defect"), sorted(missed, key=_by_score), root),
        _listed(
            counted(len(rejected), "rejected good image"),
            sorted(rejected, key=_by_score, reverse=True),
            root,
        ),
    )
    return "".join(parts)


def _by_score(image: ImageResult) -> tuple[float, str]:
    return image.score, image.sample.path


def _listed(title: str, images: list[ImageResult], root: str) -> str:
    if not images:
        return ""
    rows = "".join(
        f'<tr><td class="n">{number(r.score)}</td><td>{name(r.sample.defect)}</td>'
        f"<td>{name(short_path(r.sample.path, root))}</td></tr>"
        for r in images[:_MOST]
    )
    more = f"<p>and {len(images) - _MOST:,} more</p>" if len(images) > _MOST else ""
    table = scroll(
        title,
        '<thead><tr><th scope="col" class="n">score</th><th scope="col">kind</th>'
        f'<th scope="col">file</th></tr></thead><tbody>{rows}</tbody>',
        narrow=True,
    )
    return (
        f"<details><summary>{esc(title)}, by name</summary>"
        f'<div class="fold">{table}{more}</div></details>'
    )


def other_thresholds(calibration: Calibration, category: str, result: CategoryResult) -> str:
    """What other false-reject rates would decide on the tested images; "" without a threshold.

    Args:
        calibration: The good images' scores that thresholds are set from.
        category: Whose threshold it is.
        result: Its figures.
    """
    if result.threshold is None:
        return ""
    asked = result.threshold.asked
    rows: dict[float, str] = {}
    # With few good images the threshold moves from one score to the next.
    steps = (math.ceil(1000 * k / (result.threshold.n + 1)) / 1000 for k in range(1, 7))
    in_force = result.threshold.value
    for rate in sorted({*RATES, asked, *(step for step in steps if step <= max(RATES))}):
        found = calibration.at(rate).threshold(category)
        # Rates that good images are too few for all give the highest score: the last one stands.
        if found is None or (found.value == in_force and rate != asked):
            continue
        now = ' class="now"' if rate == asked else ""
        rows[found.value] = (
            f'<tr{now}><td class="n">{100 * rate:g}%</td>'
            f'<td class="n">at most {at_most(found.bound)}</td>'
            f'<td class="n">{number(found.value)}</td>'
            f'<td class="n">{_wrong(result.images, 0, found.value)}</td>'
            f'<td class="n">{_wrong(result.images, 1, found.value)}</td></tr>'
        )
    if len(rows) < 2:
        return ""
    table = scroll(
        "Other thresholds",
        '<thead><tr><th scope="col" class="n">rate asked for</th>'
        '<th scope="col" class="n">promised</th><th scope="col" class="n">threshold</th>'
        '<th scope="col" class="n">good rejected</th>'
        f'<th scope="col" class="n">defects missed</th></tr></thead><tbody>{"".join(rows.values())}'
        "</tbody>",
        narrow=True,
    )
    return (
        "<details><summary>What other thresholds would decide</summary>"
        f'<div class="fold">{table}<p class="quiet">Each is set from good images alone, as the one '
        "in force, with <code>flawmap calibrate MODEL --false-reject-rate RATE</code>. Whoever "
        "chooses by this table has looked at the test: look at new images then.</p></div></details>"
    )


def _wrong(images: Iterable[ImageResult], label: int, threshold: float) -> str:
    """How many are decided wrongly, of how many."""
    scores = [r.score for r in images if r.sample.label == label]
    wrong = sum((score > threshold) != bool(label) for score in scores)
    return f"{wrong:,} of {len(scores):,}" if scores else "–"
