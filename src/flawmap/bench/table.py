"""Tables of results: what they show, before it is written in any form.

A line is a method with its options on a data set, in one setting. Its figure is the mean over
categories for each seed, then mean and sample standard deviation over seeds. A line that lacks
categories says so and is never the best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flawmap.bench.groups import RESUMED, SHARED, Figures, Group, groups_of
from flawmap.bench.notes import about, failures, said, significance
from flawmap.bench.published import FIGURES, MAIN_TABLES, Published, dataset_of, published
from flawmap.bench.results import StoredCell
from flawmap.errors import BenchError, ConfigError, unknown_name
from flawmap.metrics.catalog import CATALOG, CROP, HEADLINE, MARK, info, names


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        name: As in the store.
        title: With its unit.
        scale: What a stored value is multiplied by to be shown.
        digits: Decimals shown.
        higher_is_better: None for figures that are not judged.
        over_categories: How the cells of separate models become one figure.
        timed: Whether it depends on the machine and on what else that did.
        footnote: Below the table, for metrics that are not official.
    """

    name: str
    title: str
    scale: float = 1.0
    digits: int = 2
    higher_is_better: bool | None = True
    over_categories: Callable[[Sequence[float]], float] = statistics.fmean
    timed: bool = False
    footnote: str = ""


COSTS = {
    column.name: column
    for column in (
        Column("fit_seconds", "fit, s", 1, 1, False, math.fsum, True),
        # Of rates: as many images of each category.
        Column("images_per_second", "images/s", 1, 1, True, statistics.harmonic_mean, True),
        Column("latency_p50_ms", "latency p50, ms", 1, 1, False, statistics.fmean, True),
        Column("latency_p95_ms", "latency p95, ms", 1, 1, False, statistics.fmean, True),
        Column("fit_peak_memory_mib", "peak memory of the fit, MiB", 1, 0, False, max),
        Column("score_peak_memory_mib", "peak memory of scoring, MiB", 1, 0, False, max),
        Column("fit_peak_gpu_memory_mib", "peak GPU memory of the fit, MiB", 1, 0, False, max),
        Column("score_peak_gpu_memory_mib", "peak GPU memory of scoring, MiB", 1, 0, False, max),
        Column("parameters", "parameters, M", 1e-6, 2, False, max),
        Column("macs", "MACs, G", 1e-9, 2, False, max),
        Column("bundle_bytes", "model, MB", 1e-6, 1, False, math.fsum),
    )
}
"""What a cell costs; see `measure`."""

DEFAULT_COLUMNS = (
    *FIGURES,
    *(name + CROP for name in HEADLINE if CATALOG[name].per_pixel),
    "fit_seconds",
    "images_per_second",
)
"""Those of which a results file has figures are shown."""


@dataclass(frozen=True)
class Value:
    """One figure of a line.

    Attributes:
        mean: In the store's unit; None if it is undefined.
        spread: Sample standard deviation over seeds; None for a single seed.
        text: As printed elsewhere; shown as it is.
        best: The highest (or lowest) that the table shows in this data set's column.
        complete: Whether it is over all seeds and categories of its line, and was taken on a
            machine that did nothing else: only then it can be the best.
    """

    mean: float | None
    spread: float | None = None
    text: str | None = None
    best: bool = False
    complete: bool = True


@dataclass(frozen=True)
class Line:
    """A method with its options on a data set.

    Attributes:
        data: The data set's name; with a category behind it where a line stands for one.
        setting: "unified" or "separate".
        label: What the grid or the paper calls the method.
        encoder: The network that sees the images.
        seeds: The seeds that count.
        values: By column; columns without a figure lack.
        marks: Footnotes that concern this line alone.
        source: Of a published line; "" for ours.
        complete: Whether every category of the data set is in it.
        cells: Of ours: those that its figures come from.
    """

    data: str
    setting: str
    label: str
    encoder: str
    seeds: tuple[int, ...]
    values: Mapping[str, Value]
    marks: tuple[str, ...] = ()
    source: str = ""
    complete: bool = True
    cells: tuple[StoredCell, ...] = ()

    @property
    def about(self) -> dict[str, str]:
        """Device, commit and date of ours; several with semicolons between, "" if not known."""
        return {key: "; ".join(said(self.cells, key)) for key in ("device", "commit", "date")}


@dataclass(frozen=True)
class Table:
    """What is written as Markdown, LaTeX, CSV or HTML.

    Attributes:
        title: Heading.
        columns: The columns of figures.
        lines: In the order shown.
        footnotes: Below the table, in this order; marks of columns and lines refer to them.
        notes: Further sentences: significance, failures, hardware.
    """

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def columns_of(wanted: Sequence[str], formats: Sequence[str] = ("",)) -> tuple[Column, ...]:
    """Columns by name: metrics and costs.

    Args:
        wanted: The names.
        formats: Readers of the data sets: what is official for all of them stands unmarked; the
            footnote of what is not names those that it concerns.

    Raises:
        ConfigError: A name is unknown; the nearest right one is given.
    """
    found = []
    for name in wanted:
        if name in COSTS:
            found.append(COSTS[name])
            continue
        if name not in names():
            raise unknown_name("column", name, [*names(), *COSTS], where="--column")
        metric = info(name)
        # One goes down as the other goes up: neither is best by itself.
        judged = name not in ("false_reject_rate", "escape_rate")
        footnote = metric.footnote(formats)
        found.append(
            Column(
                name,
                metric.short + (MARK if footnote else ""),
                100,
                2,
                True if judged else None,
                footnote=f"{metric.short}: {footnote}" if footnote else "",
            )
        )
    return tuple(found)


def make_table(
    cells: Sequence[StoredCell],
    *,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    by_category: bool = False,
    published_from: Collection[str] = MAIN_TABLES,
    with_significance: bool = True,
    only_with: str = "",
    title: str = "Results",
) -> Table:
    """The table of a results file.

    Args:
        cells: What the file holds.
        columns: Names of metrics and costs; those that no line has are left out.
        by_category: A line for each category of each method instead of their mean.
        published_from: Add what papers print for the same data set in these tables of theirs; see
            `published.TABLES`.
        with_significance: Add notes on whether differences are beyond chance.
        only_with: One of the columns: lines without a figure in it are left out, with their
            commits, machines and seeds below the table.
        title: Heading.

    Raises:
        BenchError: No cell is finished.
        ConfigError: A column is unknown.
    """
    done = [c for c in cells if c.status == "done" and c.figures]
    if not done:
        reasons = [f"  {c}: {(c.error or {}).get('message')}" for c in cells if c.error]
        failed = "; those that failed:\n" + "\n".join(reasons[:10]) if reasons else ""
        raise BenchError(
            f"no cell is finished{failed}",
            hint="run the benchmark first: flawmap bench GRID --results FILE",
        )
    wanted = columns_of(columns, sorted({c.format for c in done}))
    groups, notes = groups_of(done)
    having = _categories_with(groups)

    def shown(line: Line) -> bool:
        return not only_with or only_with in line.values

    made = [
        (group, [line for line in _lines(group, wanted, by_category, having) if shown(line)])
        for group in groups
    ]
    groups = [group for group, lines in made if lines]
    lines = [line for _, found in made for line in found]
    kept = [c for c in wanted if any(c.name in line.values for line in lines)]
    if not kept:
        raise ConfigError(
            "no finished cell has any of these columns",
            where="--column",
            given=", ".join(columns),
            hint="run the grid again with these names under 'metrics'",
        )
    lines = _with_best(lines, kept)
    if published_from and not by_category:
        lines, more = _with_published(lines, groups, kept, published_from)
        lines = [line for line in lines if shown(line)]
        notes += more
    if with_significance:
        judged = [c for c in kept if c.higher_is_better and c.name not in COSTS]
        notes += significance(groups, {c.name: c.title.rstrip(MARK) for c in judged})
    notes += failures(cells)
    notes += about([cell for line in lines for cell in line.cells])
    line_marks = [mark for line in lines for mark in line.marks]
    footnotes = [c.footnote for c in kept if c.footnote]
    return Table(
        title=title,
        columns=tuple(kept),
        lines=tuple(lines),
        footnotes=tuple(dict.fromkeys([*footnotes, *line_marks])),
        notes=tuple(notes),
    )


Having = Mapping[tuple[str, str], Collection[str]]
"""The categories in which any line has a metric, by data set and metric."""


def _categories_with(groups: Sequence[Group]) -> Having:
    having: dict[tuple[str, str], set[str]] = {}
    for group in groups:
        for figures in group.by_seed.values():
            for category, found in figures.items():
                for metric in found:
                    having.setdefault((group.data, metric), set()).add(category)
    return having


def _lines(
    group: Group, columns: Sequence[Column], by_category: bool, having: Having
) -> list[Line]:
    seeds = group.counted_seeds
    timed = {c.name for c in columns if c.timed}
    counted = [c for c in group.cells if c.seed in seeds]
    parts = [(category,) for category in group.categories] if by_category else [group.categories]
    measured = {category for figures in seeds.values() for category in figures}
    lines = []
    for part in parts:
        marks = group.marks(part)
        alone = SHARED not in marks
        if not timed:
            marks = tuple(mark for mark in marks if mark not in (SHARED, RESUMED))
        per_seed: dict[str, list[float]] = {}
        partial: dict[str, list[str]] = {}
        for column in columns:
            over: list[str] = []
            if column.name in COSTS:
                values = _costs(group, column, part)
            else:
                here = having.get((group.data, column.name), ())
                wanted = [c for c in part if c in here and c in measured]
                values, over = _means(seeds, column.name, wanted)
            if not values:
                continue
            per_seed[column.name] = values
            if len(values) < len(seeds):
                over.append(f"{len(values)} of these {len(seeds)} seeds")
            if over:
                partial[column.name] = over
        titles = {c.name: c.title.rstrip(MARK) for c in columns}
        cells = tuple(c for c in counted if set(c.categories) & set(part))
        lines.append(
            Line(
                data=f"{group.data}/{part[0]}" if by_category else group.data,
                setting=group.setting,
                label=group.label,
                encoder=", ".join(sorted({c.encoder for c in cells})),
                seeds=tuple(sorted(seeds)),
                values={
                    name: Value(
                        statistics.fmean(v),
                        statistics.stdev(v) if len(v) > 1 else None,
                        complete=name not in partial and (alone or name not in timed),
                    )
                    for name, v in per_seed.items()
                },
                marks=(
                    *marks,
                    *(f"{titles[name]}: over {', '.join(over)}" for name, over in partial.items()),
                ),
                complete=group.complete,
                cells=cells,
            )
        )
    return lines


def _costs(group: Group, column: Column, part: Sequence[str]) -> list[float]:
    """A cost of each seed in which all models have it."""
    found = []
    for seed in group.counted_seeds:
        costs = group.costs(seed, part)
        values = [float(cost[column.name]) for cost in costs if cost.get(column.name)]
        if values and len(values) == len(costs):
            found.append(column.over_categories(values))
    return found


def _means(
    seeds: Mapping[int, Mapping[str, Figures]], metric: str, categories: Sequence[str]
) -> tuple[list[float], list[str]]:
    """The mean over categories of each seed that has the most of them, and what is missing.

    Means over other categories are another figure: they never stand in one mean over seeds.
    """
    known = [
        {c: figures[c][metric] for c in categories if metric in figures.get(c, {})}
        for figures in seeds.values()
    ]
    most: dict[str, float] = max(known, key=len, default={})
    if not most:
        return [], []
    over = [] if len(most) == len(categories) else [f"{len(most)} of {len(categories)} categories"]
    return [statistics.fmean(v.values()) for v in known if v.keys() == most.keys()], over


def _with_best(lines: Sequence[Line], columns: Sequence[Column]) -> list[Line]:
    """Mark the best of each data set; equal as shown is equally good.

    Times of several machines are not compared.
    """
    marked = list(lines)
    for data in {line.data for line in lines}:
        rows = [i for i, line in enumerate(lines) if line.data == data and line.complete]
        if len(rows) < 2:
            continue
        for column in columns:
            found = {i: lines[i].values.get(column.name) for i in rows}
            shown = {
                i: round(value.mean * column.scale, column.digits)
                for i, value in found.items()
                if value is not None and value.mean is not None and value.complete
            }
            machines = {lines[i].about.get("device") for i in shown} if column.timed else ()
            judged = column.higher_is_better is not None and len(machines) < 2
            if not judged or len(set(shown.values())) < 2:
                continue
            top = max(shown.values()) if column.higher_is_better else min(shown.values())
            for i, value in shown.items():
                if value == top:
                    best = replace(marked[i].values[column.name], best=True)
                    values = {**marked[i].values, column.name: best}
                    marked[i] = replace(marked[i], values=values)
    return marked


def _with_published(
    lines: Sequence[Line],
    groups: Sequence[Group],
    columns: Sequence[Column],
    tables: Collection[str],
) -> tuple[list[Line], list[str]]:
    """Ours, and below those of each data set what papers print for it."""
    result: list[Line] = []
    notes: list[str] = []
    shown = {c.name for c in columns}
    for data in dict.fromkeys(line.data for line in lines):
        mine = [line for line in lines if line.data == data]
        result += mine
        of_data = [g for g in groups if g.data == data]
        known = dataset_of(of_data[0].cells[0].format, of_data[0].test_images())
        if known is None:
            continue
        name, size = known
        settings = {line.setting for line in mine}
        for paper in published():
            if paper.dataset != name or paper.table not in tables:
                continue
            figures, over = _placed(paper, shown)
            if paper.setting not in settings or not shown & set(figures):
                continue
            marks = [f"published: {paper.source}", *over]
            if paper.note:
                marks.append(f"{paper.method}, {paper.setting}: {paper.note}")
            result.append(
                Line(
                    data=data,
                    setting=paper.setting,
                    label=paper.method,
                    encoder="",
                    seeds=(),
                    values={k: Value(float(v) / 100, text=v) for k, v in figures.items()},
                    marks=tuple(marks),
                    source=paper.source,
                    complete=False,
                )
            )
        if len(of_data[0].categories) < size:
            notes.append(
                f"'{data}': ours are means over {len(of_data[0].categories)} of the {size} "
                "categories that the published figures are means over"
            )
    return result, notes


def _placed(paper: Published, shown: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The figures of a paper by column, and what must be said of them."""
    pixel = {name for name in paper.figures if info(name).per_pixel}
    if not paper.cropped or not pixel & {name.removesuffix(CROP) for name in shown}:
        return dict(paper.figures), []
    if not any(name + CROP in shown for name in pixel):
        return dict(paper.figures), [
            f"{paper.method}, {paper.setting}: pixel metrics over the centre crop alone"
        ]
    return {k + CROP if k in pixel else k: v for k, v in paper.figures.items()}, []
