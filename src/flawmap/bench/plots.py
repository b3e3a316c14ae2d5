"""Accuracy against what it costs: images/s, parameters, fitting time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawmap.bench.store import StoredCell
from flawmap.bench.table import COSTS, Column, Line, make_table
from flawmap.errors import BenchError, ConfigError, ExportError, unknown_name
from flawmap.files import atomic_path
from flawmap.metrics.catalog import MARK

AGAINST = ("images_per_second", "parameters", "fit_seconds")
"""The costs that `flawmap bench plot` draws by default, one panel each."""

_MARKERS = "osD^vP*X<>hp"
_ENDINGS = (".svg", ".png", ".pdf")


def plot(
    cells: Sequence[StoredCell],
    target: Path,
    *,
    metric: str = "image_auroc",
    against: Sequence[str] = AGAINST,
) -> None:
    """Draw one panel per cost, with a mark per method and a colour per data set.

    Args:
        cells: What a results file holds.
        target: An .svg, .png or .pdf file.
        metric: The vertical axis.
        against: The horizontal axes: names of costs.

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
        cells, columns=(metric, *against), published_from=(), with_significance=False
    )
    lines = [line for line in table.lines if metric in line.values]
    if not lines:
        raise BenchError(f"no finished cell has the metric '{metric}'", where="--metric")
    column = next(c for c in table.columns if c.name == metric)
    labels = list(dict.fromkeys(line.label for line in lines))
    data = list(dict.fromkeys((line.data, line.setting) for line in lines))
    with matplotlib.rc_context({"svg.hashsalt": "flawmap", "font.size": 9}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.2 * len(against), 3.8), layout="constrained")
        axes = figure.subplots(1, len(against), squeeze=False)[0]
        for panel, cost in zip(axes, against, strict=True):
            _panel(panel, lines, column, cost, labels, data)
        handles, names = axes[0].get_legend_handles_labels()
        footnote = f"{MARK} {column.footnote}" if column.footnote else ""
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=len(against),
            frameon=False,
            # Room is kept for a legend, not for text beside it.
            title=textwrap.fill(footnote, 60 * len(against)),
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
) -> None:
    column = COSTS[cost]
    for line in lines:
        x, y = line.values.get(cost), line.values[metric.name]
        if x is None or x.mean is None or y.mean is None:
            continue
        colour = f"C{data.index((line.data, line.setting)) % 10}"
        marker = _MARKERS[labels.index(line.label) % len(_MARKERS)]
        panel.errorbar(
            x.mean * column.scale,
            metric.scale * y.mean,
            xerr=None if x.spread is None else x.spread * column.scale,
            yerr=None if y.spread is None else metric.scale * y.spread,
            fmt=marker,
            color=colour,
            capsize=2,
            label=f"{line.label} on {line.data}, {line.setting}",
        )
    panel.set_xscale("log")
    panel.set_xlabel(column.title)
    panel.set_ylabel(metric.title if metric.name in COSTS else f"{metric.title}, %")
    panel.grid(alpha=0.3)


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
