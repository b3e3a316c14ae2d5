"""Accuracy against what it costs: images/s, parameters, fitting time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawmap.bench.groups import RESUMED, SHARED
from flawmap.bench.notes import said
from flawmap.bench.results import StoredCell
from flawmap.bench.table import COSTS, Column, Line, make_table
from flawmap.errors import BenchError, ConfigError, ExportError, unknown_name
from flawmap.files import atomic_path
from flawmap.metrics.catalog import MARK
from flawmap.wording import few

AGAINST = ("images_per_second", "parameters", "fit_seconds")
"""The costs that `flawmap bench plot` draws by default, one panel each."""

_MARKERS = "osD^vP*X<>hp"
_FEW_COLOURS = 10
_ENDINGS = (".svg", ".png", ".pdf")


def plot(
    cells: Sequence[StoredCell],
    target: Path,
    *,
    metric: str = "image_auroc",
    against: Sequence[str] = AGAINST,
    by_category: bool = False,
    join: bool = False,
) -> None:
    """Draw one panel per cost, with a mark per method and a colour per data set.

    Args:
        cells: What a results file holds.
        target: An .svg, .png or .pdf file.
        metric: The vertical axis.
        against: The horizontal axes: names of costs.
        by_category: A colour per category instead.
        join: Join what has one colour by a line: one method with options that cost more and more.

    Raises:
        BenchError: No finished cell has the metric.
        ConfigError: A name is unknown, or matplotlib is not installed.
        ExportError: The file cannot be written.
    """
    for name in against:
        if name not in COSTS:
            raise unknown_name("cost", name, COSTS, where="--against")
    if target.suffix.lower() not in _ENDINGS:
        raise ConfigError(
            "the form of the picture is unknown",
            where="--output",
            given=target,
            expected=f"a name that ends with {', '.join(_ENDINGS)}",
        )
    matplotlib = _matplotlib()
    table = make_table(
        cells,
        columns=(metric, *against),
        by_category=by_category,
        published_from=(),
        with_significance=False,
    )
    lines = [line for line in table.lines if metric in line.values]
    if not lines:
        raise BenchError(f"no finished cell has the metric '{metric}'", where="--metric")
    column = next(c for c in table.columns if c.name == metric)
    labels = list(dict.fromkeys(line.label for line in lines))
    data = list(dict.fromkeys((line.data, line.setting) for line in lines))
    with matplotlib.rc_context({"svg.hashsalt": "flawmap", "font.size": 9}):
        from matplotlib.figure import Figure

        # One panel needs room for the legend below it.
        figure = Figure(figsize=(max(6.3, 4.2 * len(against)), 4.2), layout="constrained")
        axes = figure.subplots(1, len(against), squeeze=False)[0]
        for panel, cost in zip(axes, against, strict=True):
            _panel(panel, lines, column, cost, labels, data, join)
        notes = [f"{MARK} {column.footnote}"] if column.footnote else []
        if any(_hollow(line, metric, cost) for line in lines for cost in against):
            notes.append("hollow: not over all categories or seeds, or timed beside other cells")
        if any(COSTS[name].timed for name in (metric, *against) if name in COSTS):
            notes += _about_times(lines)
        figure.legend(
            handles=_legend(labels, data),
            loc="outside lower center",
            ncols=min(6, 2 * len(against)),
            frameon=False,
            # Room is kept for a legend, not for text beside it.
            title="\n".join(textwrap.fill(note, 60 * len(against)) for note in notes),
            title_fontsize=7,
        )
        with atomic_path(target, error=ExportError) as path:
            # Without a date the same results give the same file.
            metadata = {"Date": None} if target.suffix.lower() == ".svg" else None
            figure.savefig(path, format=target.suffix[1:].lower(), metadata=metadata, dpi=150)


def _panel(
    panel: Any,
    lines: Sequence[Line],
    metric: Column,
    cost: str,
    labels: Sequence[str],
    data: Sequence[tuple[str, str]],
    join: bool,
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    column = COSTS[cost]
    joined: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in lines:
        x, y = line.values.get(cost), line.values[metric.name]
        if x is None or x.mean is None or y.mean is None:
            continue
        colour = _colour(data, (line.data, line.setting))
        place = (x.mean * column.scale, metric.scale * y.mean)
        joined.setdefault((line.data, line.setting), []).append(place)
        panel.errorbar(
            *place,
            xerr=None if x.spread is None else x.spread * column.scale,
            yerr=None if y.spread is None else metric.scale * y.spread,
            fmt=_marker(labels, line.label),
            color=colour,
            capsize=2,
            # Such figures are no match for the others.
            markerfacecolor="none" if _hollow(line, metric.name, cost) else colour,
        )
    if join:
        for key, places in joined.items():
            panel.plot(*zip(*sorted(places), strict=True), color=_colour(data, key), alpha=0.5)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel(column.title)
    panel.set_ylabel(metric.title if metric.name in COSTS else f"{metric.title}, %")
    panel.grid(alpha=0.3)


def _hollow(line: Line, *names: str) -> bool:
    """Whether the line, or one of these figures of it, cannot be compared with others."""
    figures = [line.values[name] for name in names if name in line.values]
    return not line.complete or not all(figure.complete for figure in figures)


def _about_times(lines: Sequence[Line]) -> list[str]:
    """What must be known of times, with the lines that it concerns if not all."""
    notes = []
    for mark in (SHARED, RESUMED):
        marked = [line for line in lines if mark in line.marks]
        names = list(dict.fromkeys(line.label for line in marked))
        if marked:
            notes.append(mark if len(marked) == len(lines) else f"{few(names)}: {mark}")
    devices = said([cell for line in lines for cell in line.cells], "device")
    if len(devices) > 1:
        notes.append(f"times of several devices: {'; '.join(devices)}")
    return notes


def _legend(labels: Sequence[str], data: Sequence[tuple[str, str]]) -> list[Any]:
    """A grey mark for each method, then a colour for each data set."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [
        Line2D([], [], color="grey", linestyle="none", marker=_marker(labels, label), label=label)
        for label in labels
    ]
    colours = [Patch(color=_colour(data, key), label=f"{key[0]}, {key[1]}") for key in data]
    return [*marks, *colours]


def _marker(labels: Sequence[str], label: str) -> str:
    place = labels.index(label)
    # More than there are marks: their numbers.
    return _MARKERS[place] if place < len(_MARKERS) else f"${place + 1}$"


def _colour(data: Sequence[tuple[str, str]], key: tuple[str, str]) -> Any:
    from matplotlib import colormaps

    place = data.index(key)
    if len(data) <= _FEW_COLOURS:
        return f"C{place}"
    return colormaps["turbo"]((place + 0.5) / len(data))


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "plots need matplotlib, which is not installed",
            where="the installation",
            hint="pip install 'flawmap[bench]'",
        ) from error
    return matplotlib
