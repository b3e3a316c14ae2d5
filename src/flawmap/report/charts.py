"""Charts as SVG text: pure functions, no drawing library, colours from the page's style sheet.

Every chart is an `<svg role="img">` with a sentence for those who cannot see it. Good and defect
differ by row, label and hatching, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flawmap.report.curves import Floats, Histogram, pr_points, roc_points, thin, ticks
from flawmap.report.text import esc, number

WIDTH, HEIGHT = 380, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 14, 44


class Axes:
    """Maps data to px of a chart.

    Args:
        x: (lowest, highest) of the data.
        y: (lowest, highest) of the data.
        top: px of the upper edge.
        bottom: px of the lower edge.
        log_y: y is drawn by its logarithm; its range must be positive.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        top: float = TOP,
        bottom: float = HEIGHT - BOTTOM,
        log_y: bool = False,
    ) -> None:
        self.x, self.y, self.top, self.bottom, self.log_y = x, y, top, bottom, log_y

    def at_x(self, value: Floats | float) -> Floats:
        """px from the left."""
        share = (np.asarray(value, dtype=np.float64) - self.x[0]) / (self.x[1] - self.x[0])
        return np.asarray(LEFT + share * (WIDTH - RIGHT - LEFT))

    def at_y(self, value: Floats | float) -> Floats:
        """px from the top."""
        v, (low, high) = np.asarray(value, dtype=np.float64), self.y
        if self.log_y:
            v, low, high = np.log10(v), math.log10(low), math.log10(high)
        return np.asarray(self.bottom - (v - low) / (high - low) * (self.bottom - self.top))

    def base(self) -> str:
        """The line that bars and curves stand on."""
        return f'<path class="axis" d="M{LEFT} {_px(self.bottom)}H{WIDTH - RIGHT}"/>'

    def x_axis(self, label: str, values: Sequence[float], *, as_percent: bool = False) -> str:
        """Ticks with numbers, and what the axis shows."""
        parts = [self.base()]
        for value in values:
            at = _px(float(self.at_x(value)))
            parts.append(
                f'<path class="tick" d="M{at} {_px(self.bottom)}v5"/>'
                f'<text class="num" x="{at}" y="{_px(self.bottom + 17)}" text-anchor="middle">'
                f"{_tick(value, as_percent)}</text>"
            )
        middle = _px((LEFT + WIDTH - RIGHT) / 2)
        parts.append(
            f'<text class="label" x="{middle}" y="{_px(self.bottom + 36)}" text-anchor="middle">'
            f"{esc(label)}</text>"
        )
        return "".join(parts)

    def y_axis(self, label: str, values: Sequence[float], *, as_percent: bool = False) -> str:
        """Grid lines with numbers, and what the axis shows."""
        parts = []
        for value in values:
            at = _px(float(self.at_y(value)))
            parts.append(
                f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>'
                f'<text class="num" x="{LEFT - 7}" y="{at}" dy="0.35em" text-anchor="end">'
                f"{_tick(value, as_percent)}</text>"
            )
        middle = _px((self.top + self.bottom) / 2)
        parts.append(
            f'<text class="label" transform="translate(13 {middle}) rotate(-90)" '
            f'text-anchor="middle">{esc(label)}</text>'
        )
        return "".join(parts)


def roc_chart(
    labels: Sequence[int], scores: Sequence[float], operating: tuple[float, float] | None
) -> str:
    """The ROC curve.

    Args:
        labels: 0 good, 1 defect; both must occur.
        scores: As many.
        operating: (false-reject rate, share of defects found) at the threshold.
    """
    axes = Axes((0, 1), (0, 1))
    x, y = roc_points(labels, scores)
    px, py = thin(axes.at_x(x), axes.at_y(y))
    line = "M" + "L".join(f"{_px(a)} {_px(b)}" for a, b in zip(px, py, strict=True))
    body = _unit_axes(axes, "good images rejected (%)", "defects found (%)")
    body += f'<path class="chance" d="M{_at(axes, 0, 0)}L{_at(axes, 1, 1)}"/>'
    body += _area_and_line(axes, line)
    body += _operating(axes, operating, below=18)
    told = "ROC curve: share of defects found against share of good images rejected."
    if operating:
        told += (
            f" At the threshold {operating[1]:.1%} of defects are found and "
            f"{operating[0]:.1%} of good images are rejected."
        )
    return _svg(body, told)


def pr_chart(
    labels: Sequence[int], scores: Sequence[float], operating: tuple[float, float] | None
) -> str:
    """The precision-recall curve, in steps.

    Args:
        labels: 0 good, 1 defect; both must occur.
        scores: As many.
        operating: (recall, precision) at the threshold; None where nothing raises the alarm.
    """
    axes = Axes((0, 1), (0, 1))
    recall, precision = pr_points(labels, scores)
    # Each step as two corners, so that thinning sees what is drawn.
    x = np.append(0.0, np.repeat(recall, 2)[:-1])
    y = np.repeat(precision, 2)
    px, py = thin(axes.at_x(x), axes.at_y(y))
    line = "M" + "L".join(f"{_px(a)} {_px(b)}" for a, b in zip(px, py, strict=True))
    share = sum(labels) / len(labels)
    body = _unit_axes(axes, "defects found, recall (%)", "alarms that are right, precision (%)")
    body += f'<path class="chance" d="M{_at(axes, 0, share)}L{_at(axes, 1, share)}"/>'
    body += _area_and_line(axes, line)
    body += _operating(axes, operating, below=40)
    told = "Precision-recall curve."
    if operating:
        told += (
            f" At the threshold {operating[0]:.1%} of defects are found and "
            f"{operating[1]:.1%} of alarms are right."
        )
    return _svg(body, told)


def histogram_chart(bars: Histogram, threshold: float | None) -> str:
    """Scores of good images above those of defects, with the threshold through both.

    Bars on the wrong side of the threshold are hatched.
    """
    low, high = float(bars.edges[0]), float(bars.edges[-1])
    half = (HEIGHT - BOTTOM - TOP) / 2
    body, bottom = "", float(TOP)
    values = ticks(low, high, 5)
    for kind, counts in (("good", bars.good), ("defect", bars.defect)):
        top, bottom = bottom + 18, bottom + half
        peak = max(int(counts.max()), 1)
        axes = Axes((low, high), (0, peak), top=top, bottom=bottom)
        marks = [v for v in ticks(0, peak, 3) if v == int(v)]
        body += axes.y_axis("images", marks)
        for i, count in enumerate(counts.tolist()):
            if not count:
                continue
            left, right = (float(axes.at_x(float(e))) for e in bars.edges[i : i + 2])
            height = bottom - float(axes.at_y(count))
            # An edge is the threshold itself; half a bin away from it, rounding does not matter.
            alarm = threshold is not None and (bars.edges[i] + bars.edges[i + 1]) / 2 > threshold
            wrong = threshold is not None and alarm == (kind == "good")
            place = (
                f'x="{_px(left + 0.5)}" y="{_px(bottom - height)}" '
                f'width="{_px(max(right - left - 1, 0.6))}" height="{_px(height)}"'
            )
            body += (
                f"<g><title>{number(float(bars.edges[i]))} to {number(float(bars.edges[i + 1]))}: "
                f'{count} {kind}</title><rect class="{kind}" {place}/>'
            )
            body += f'<rect class="wrong" {place}/></g>' if wrong else "</g>"
        body += f'<text class="kind {kind}-text" x="{LEFT + 4}" y="{_px(top - 5)}">'
        body += f"{kind}, {int(counts.sum()):,}</text>"
        body += axes.base() if kind == "good" else axes.x_axis("image score", values)
    if threshold is not None:
        at = float(axes.at_x(threshold))
        anchor = "end" if at > (LEFT + WIDTH) * 0.62 else "start"
        shift = -5 if anchor == "end" else 5
        body += f'<path class="threshold" d="M{_px(at)} {TOP - 8}V{HEIGHT - BOTTOM}"/>'
        body += (
            f'<text class="threshold-text" x="{_px(at + shift)}" y="{TOP}" '
            f'text-anchor="{anchor}">threshold {number(threshold)}</text>'
        )
    told = f"Histogram of the scores of {bars.good.sum()} good images and {bars.defect.sum()} "
    told += "defects" + ("." if threshold is None else f", threshold at {number(threshold)}.")
    return _svg(body, told)


def loss_chart(steps: Sequence[float], losses: Sequence[float]) -> str:
    """A loss curve; by its logarithm where the loss spans more than a factor of twenty."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    low, high = float(y.min()), float(y.max())
    log = low > 0 and high / low > 20
    if not log:
        margin = (high - low) * 0.06 or max(abs(high), 1.0) * 0.06
        low, high = low - margin, high + margin
    axes = Axes((min(0.0, float(x.min())), max(float(x.max()), 1.0)), (low, high), log_y=log)
    if log:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        marks = [10.0**p for p in powers] or [low, high]
    else:
        marks = ticks(low, high, 5)
    px, py = thin(axes.at_x(x), axes.at_y(y))
    line = "M" + "L".join(f"{_px(a)} {_px(b)}" for a, b in zip(px, py, strict=True))
    body = axes.y_axis("loss" + (" (logarithmic)" if log else ""), marks)
    body += axes.x_axis("iteration", ticks(*axes.x, 5)) + f'<path class="curve" d="{line}"/>'
    if x.size == 1:
        body += f'<circle class="point" cx="{_px(px[0])}" cy="{_px(py[0])}" r="3"/>'
    told = f"Loss curve, from {number(float(y[0]))} to {number(float(y[-1]))}"
    return _svg(body, f"{told} in {number(float(x[-1]))} iterations.")


def _unit_axes(axes: Axes, x: str, y: str) -> str:
    marks = ticks(0, 1)
    return axes.y_axis(y, marks, as_percent=True) + axes.x_axis(x, marks, as_percent=True)


def _area_and_line(axes: Axes, line: str) -> str:
    first, last = line[1:].split("L")[0].split(" ")[0], line.split("L")[-1].lstrip("M")
    ground = _px(axes.bottom)
    area = f"{line}L{last.split(' ')[0]} {ground}L{first} {ground}Z"
    return f'<path class="area" d="{area}"/><path class="curve" d="{line}"/>'


def _operating(axes: Axes, point: tuple[float, float] | None, *, below: float) -> str:
    """The point, with its label `below` px lower: under both curves lies nothing."""
    if point is None:
        return ""
    x, y = float(axes.at_x(point[0])), float(axes.at_y(point[1]))
    side = "end" if point[0] > 0.5 else "start"
    dx = -11 if side == "end" else 11
    dy = below if y + below < axes.bottom - 8 else -10
    return (
        f'<circle class="operating" cx="{_px(x)}" cy="{_px(y)}" r="5"/>'
        f'<text class="operating-text" x="{_px(x + dx)}" y="{_px(y + dy)}" '
        f'text-anchor="{side}">at the threshold</text>'
    )


def _at(axes: Axes, x: float, y: float) -> str:
    return f"{_px(float(axes.at_x(x)))} {_px(float(axes.at_y(y)))}"


def _px(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _tick(value: float, as_percent: bool) -> str:
    return f"{100 * value:.0f}" if as_percent else f"{value:g}"


def _svg(body: str, told: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(told)}">'
        f"{body}</svg>"
    )
