"""Writes the tables of README.md and docs/ from the files in benchmarks/results.

    python benchmarks/write_tables.py            # rewrite what stands between the markers
    python benchmarks/write_tables.py --check    # exit with 1 if a page is out of date

A page marks the place of a table, with words of people before and after it:

    <!-- results: NAME -->
    <!-- end of results -->

NAME is that of a file in benchmarks/results. What `flawmap bench export` wrote becomes what
`flawmap bench table` shows; `<!-- results: NAME by=category columns=image_auroc,aupro -->` chooses
lines (by=data, category or method) and columns, of which the first
says which lines count. Any other file is {"meta": {...}, "rows": [{...},
...]}: `vs_anomalib` has a row per run and category, and becomes means over seeds with their spread,
with what could not be run and its reason below (`form=pairs` puts both libraries into one line); of
`metrics_speed` the rows at one number of maps are shown; of all others each row is a line. A chart
of the same name is shown below its table, unless it is by category.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splits import by_image

if TYPE_CHECKING:
    from flawmap.bench.table import Table

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(
    r"(?P<start><!-- results: (?P<name>\w+)(?P<choices>( \w+=[\w,.]+)*) -->\n)"
    r".*?(?P<end><!-- end of results -->)",
    re.DOTALL,
)
ACCURACY = ("image_auroc", "image_ap", "aupro", "pixel_auroc", "fit_seconds", "images_per_second")
AGAINST = ("data", "category", "library", "method", "settings", "setting", "encoder", "size")
AGAINST_FIGURES = {
    "image_auroc": ("image AUROC", 4),
    "aupro": ("AUPRO", 4),
    "fit_seconds": ("fit, s", 1),
    "images_per_second": ("images/s", 1),
    "peak_memory_mb": ("peak memory, MB", 0),
}
PEER = "anomalib"
OWN = {"own_image_auroc": "image_auroc", "own_aupro": "aupro"}
"""The peer's own figures, and flawmap's of the same outputs."""
FINE_TUNED = "vit-s14"
"""This encoder must never pass for another one."""

DETAILS = frozenset(
    {
        *("stages", "values", "configuration", "commit", "date", "device", "fingerprint", "split"),
        # Of passes in a warm process beside one with the start of loaders.
        "score_speedup",
    }
)
"""What a results file keeps and no table shows."""

Row = Mapping[str, Any]


def table(results: Path, name: str, choices: Mapping[str, str], page: Path) -> str:
    """What stands between two markers.

    Args:
        results: The folder of the results files.
        name: Of the file, without its ending.
        choices: What the marker says after the name.
        page: The page, from whose folder a chart is found.
    """
    path = results / f"{name}.json"
    if not path.is_file():
        return "Not measured yet."
    content = json.loads(path.read_text(encoding="utf-8"))
    parts = [grid(path, **choices) if "cells" in content else section(name, content, **choices)]
    if by_image(name, content):
        place = os.path.relpath(results.parent.parent / "docs" / "results.md", page.parent)
        link = f"{place.replace(os.sep, '/')}#magnetic-tiles-by-tile-and-by-image"
        parts.append(
            "*Magnetic tiles are split by image here: other exposures of most test tiles were "
            f"learnt. How much that flatters a method: [by tile and by image]({link}).*"
        )
    if "by" not in choices and (chart := path.with_suffix(".svg")).is_file():
        parts.append(f"![{name}]({os.path.relpath(chart, page.parent).replace(os.sep, '/')})")
    return "\n\n".join(parts)


def section(name: str, content: Row, form: str = "lines") -> str:
    """One table with its caption; `form` is "lines", or for `vs_anomalib` also "pairs"."""
    if form not in ("lines", "pairs") or (form == "pairs" and name != "vs_anomalib"):
        raise ValueError(f"{name}: there is no form={form} of it")
    if name == "metrics_speed":
        content = at_one_count(content)
    meta, rows = content.get("meta", {}), content["rows"]
    if name == "vs_anomalib":
        body = "\n\n".join([pairs(rows) if form == "pairs" else against(rows), *not_run(rows)])
    else:
        body = generic(rows)
    # Seeds and weights are those of what was run.
    run = [row for row in rows if not row.get("reason")]
    return f"{body}\n\n{caption(meta, run, with_seeds=name == 'vs_anomalib')}"


def grid(path: Path, by: str = "data", columns: str = ",".join(ACCURACY)) -> str:
    """The table of a grid: a line per method and data set, or category (by=category), or per
    method alone, for a grid on one data set (by=method). Lines without a figure in the first
    column are left out."""
    from flawmap.bench.render import markdown as render
    from flawmap.bench.store import read_cells
    from flawmap.bench.table import make_table

    names = columns.split(",")
    shown = make_table(
        read_cells(path), columns=names, by_category=by != "data", only_with=names[0]
    )
    # A line of auto may have several.
    encoders = {name for line in shown.lines for name in line.encoder.split(", ")}
    about = about_weights(sorted(encoders))
    body = wide(shown) if by == "method" else render(shown)
    return "\n\n".join([body, f"*{' '.join(about)}*"])


def wide(shown: Table) -> str:
    """A line per method, with a column for each figure of each category; of one data set.

    What one model of all costs is one figure.

    Raises:
        ValueError: A method has two lines for one category, as of two settings or data sets.
    """
    from flawmap.bench.render import cell
    from flawmap.bench.table import COSTS

    unified = {line.setting for line in shown.lines} == {"unified"}
    of_one = {column.name for column in shown.columns if unified and column.name in COSTS}
    first = shown.lines[0].data.rpartition("/")[2]
    keys = {
        (line.data.rpartition("/")[2], column)
        for line in shown.lines
        for column in shown.columns
        if column.name in line.values and line.values[column.name].mean is not None
        if column.name not in of_one or line.data.rpartition("/")[2] == first
    }
    order = sorted(keys, key=lambda key: (shown.columns.index(key[1]), key[0]))
    # What holds for every line needs no mark at each.
    of_all = set.intersection(*(set(line.marks) for line in shown.lines))
    footnotes = [text for text in shown.footnotes if text not in of_all]
    lines: dict[str, dict[str, Any]] = {}
    for line in shown.lines:
        category = line.data.rpartition("/")[2]
        members = lines.setdefault(line.label, {})
        if category in members:
            one, other = (f"{n.data}, {n.setting}" for n in (members[category], line))
            raise ValueError(f"'{line.label}' stands for both {one} and {other}: by=category")
        members[category] = line
    body = []
    for label, members in lines.items():
        figures = []
        for category, column in order:
            line = members.get(category)
            value = line.values.get(column.name) if line else None
            text = cell(column, value)
            best = value is not None and value.best and column.name not in of_one
            figures.append(f"**{text}**" if best else text)
        seeds = {len(line.seeds) for line in members.values()}
        mine = {mark for line in members.values() for mark in line.marks} - of_all
        marks = sorted(footnotes.index(mark) + 1 for mark in mine)
        raised = f"<sup>{','.join(map(str, marks))}</sup>" if marks else ""
        body.append([f"{label}{raised}", "/".join(map(str, sorted(seeds))), *figures])
    titles = (
        column.title if column.name in of_one else f"{category} {column.title}"
        for category, column in order
    )
    head = ["method", "seeds", *titles]
    below = "\n".join(f"{i}. {text}" for i, text in enumerate(footnotes, start=1))
    notes = "\n".join(f"- {note}" for note in [*sorted(of_all), *shown.notes])
    return "\n\n".join(part for part in (markdown(head, body, n_text=1), below, notes) if part)


def over_seeds(
    rows: Sequence[Row], group: Sequence[str], figures: Mapping[str, tuple[str, int]]
) -> str:
    """A line per group with the mean and spread of each figure that any row has.

    Args:
        rows: A row per seed.
        group: The columns that tell lines apart.
        figures: Columns of figures, to their heads and digits.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(text(row.get(key)) for key in group), []).append(row)
    shown = [key for key in figures if any(figure(row.get(key)) is not None for row in rows)]
    head = [*group, "seeds", *(figures[key][0] for key in shown)]
    lines = []
    for key, members in groups.items():
        values = [
            spread([figure(row.get(column)) for row in members], figures[column][1])
            for column in shown
        ]
        seeds = len({row.get("seed") for row in members})
        lines.append([*key, str(seeds), *values])
    return markdown(head, lines, n_text=len(group))


def against(rows: Sequence[Row]) -> str:
    """A line per library, data set and settings."""
    run = [{**row, "library": library(row)} for row in in_order(rows) if not row.get("reason")]
    # What the peer says itself is shown on the lines where it says something else.
    differs = {
        (own, *(row.get(key) for key in AGAINST))
        for row in run
        for own, ours in OWN.items()
        if row.get(own) != row.get(ours)
    }
    for row in run:
        here = tuple(row.get(key) for key in AGAINST)
        row.update({own: row.get(own) if (own, *here) in differs else None for own in OWN})
    figures = dict(AGAINST_FIGURES)
    for own, ours in OWN.items():
        figures[own] = (f"anomalib's own {AGAINST_FIGURES[ours][0]}", 4)
    return over_seeds(run, AGAINST, figures)


def pairs(rows: Sequence[Row]) -> str:
    """A line per data set, method and settings; each cell has flawmap's figure and the peer's.

    Methods that one of the two alone has are left out: they stand in the full table.
    """
    lines: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in in_order(rows):
        if not row.get("reason") and row.get("settings") != "default":
            encoder = f"{text(row.get('encoder'))}, {text(row.get('size'))} px"
            settings = text(row.get("settings"))
            line = lines.setdefault((_where(row), text(row.get("method")), settings, encoder), {})
            line.setdefault(text(row.get("library")), []).append(row)
    theirs = {key[1] for key, members in lines.items() if PEER in members}
    shared = theirs & {key[1] for key, members in lines.items() if "flawmap" in members}
    head = ["data", "method", "settings", "encoder", "seeds"]
    head += [f"{name}, flawmap / anomalib" for name, _ in AGAINST_FIGURES.values()]
    body = []
    for key, members in lines.items():
        if key[1] not in shared:
            continue
        seeds = {row.get("seed") for found in members.values() for row in found}
        cells = []
        for column, (_, digits) in AGAINST_FIGURES.items():
            shown = [
                spread([figure(row.get(column)) for row in members.get(name, [])], digits)
                for name in ("flawmap", PEER)
            ]
            own = next((name for name, ours in OWN.items() if ours == column), "")
            said = spread([figure(row.get(own)) for row in members.get(PEER, [])], digits)
            if said not in ("–", shown[1]):
                shown[1] += f" (own {said})"
            cells.append("–" if set(shown) == {"–"} else " / ".join(shown))
        body.append([*key, str(len(seeds)), *cells])
    return markdown(head, body, n_text=4)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """By data set, method, settings and library; methods as they come."""
    methods = list(dict.fromkeys(row.get("method") for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            _where(row),
            methods.index(row.get("method")),
            text(row.get("settings")),
            text(row.get("setting")),
            text(row.get("library")),
        ),
    )


def _where(row: Row) -> str:
    """A data set, and the category of several."""
    data, category = text(row.get("data")), text(row.get("category"))
    return data if category.replace("_", " ") == data else f"{data}/{category}"


def not_run(rows: Sequence[Row]) -> list[str]:
    """What could not be run, and why; one paragraph or none."""
    failed: dict[str, list[str]] = {}
    for row in rows:
        if row.get("reason"):
            what = f"{library(row)} {row.get('method')}, {row.get('settings')}: {row['reason']}"
            failed.setdefault(what, []).append(_where(row))
    notes = [f"- {what} ({', '.join(dict.fromkeys(where))})" for what, where in failed.items()]
    return ["Not run to an end:\n\n" + "\n".join(notes)] if notes else []


def library(row: Row) -> str:
    """Name and version."""
    return f"{text(row.get('library'))} {text(row.get('version'))}".removesuffix(" –")


def spread(values: Iterable[float | None], digits: int) -> str:
    """Mean ± sample standard deviation; the mean alone for one value.

    >>> spread([0.9, 1.0], 2)
    '0.95 ± 0.07'
    """
    found = [v for v in values if v is not None]
    if not found:
        return "–"
    mean = f"{statistics.fmean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.{digits}f}"


def generic(rows: Sequence[Row]) -> str:
    """A line per row; columns in the order in which they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in DETAILS))
    columns.sort(key=lambda key: any(figure(row.get(key)) is not None for row in rows))
    n_text = sum(all(figure(row.get(key)) is None for row in rows) for key in columns)
    lines = [[text(row.get(key)) for key in columns] for row in rows]
    return markdown([key.replace("_", " ") for key in columns], lines, n_text=n_text)


def at_one_count(content: Row) -> Row:
    """The rows of metrics_speed.py at one number of maps; the others stand in its chart."""
    meta = dict(content["meta"])
    count = meta.pop("headline_maps")
    rows = [
        {key: value for key, value in row.items() if key != "maps"}
        for row in content["rows"]
        if row["maps"] == count
    ]
    return {"meta": {**meta, "data": f"{count:,} {meta['data']}"}, "rows": rows}


def caption(meta: Row, rows: Sequence[Row], *, with_seeds: bool) -> str:
    """Weights, data, seeds, hardware, versions and commit, in one paragraph."""
    known = {key: value for key, value in meta.items() if key != "split"}
    parts = []
    if known.get("what"):
        what = text(known.pop("what")).rstrip(".")
        parts.append(f"{what[:1].upper()}{what[1:]}.")
    encoders = sorted({str(row["encoder"]) for row in rows if row.get("encoder")})
    named = known.pop("weights", None) or known.pop("encoder", None)
    parts += about_weights(encoders, text(named) if named else "")
    data = known.pop("data", None) or ", ".join(
        sorted({str(row["data"]) for row in rows if row.get("data")})
    )
    if data:
        parts.append(f"Data: {text(data)}.")
    if with_seeds:
        known.pop("seeds", None)
        seeds = sorted({row["seed"] for row in rows if row.get("seed") is not None})
        several = "Mean ± standard deviation over the seeds" if len(seeds) > 1 else "Seed"
        parts.append(f"{several} {', '.join(map(str, seeds))}; undefined figures are –.")
    else:
        seeds = known.pop("seeds", known.pop("seed", None))
        if seeds is not None:
            parts.append(f"Seeds: {text(seeds)}.")
    device = text(known.pop("device", known.pop("hardware", "not recorded")))
    device = "; ".join(_named(rows, "device")) or device
    threads = known.pop("threads", None)
    if threads is not None and "thread" not in device:
        device += f", {text(threads)} thread{'' if threads == 1 else 's'}"
    parts.append(f"Hardware: {device}.")
    versions = known.pop("versions", None)
    listed = _named(rows, "versions")
    if versions and not all(row.get("versions") for row in rows):
        of_others = (
            ", ".join(f"{k} {v}" for k, v in versions.items())
            if isinstance(versions, Mapping)
            else text(versions)
        )
        listed = sorted({*listed, of_others})
    if listed:
        parts.append(f"Versions: {'; '.join(listed)}.")
    date = known.pop("date", None)
    commit = known.pop("commit", None)
    commit = ", ".join(_named(rows, "commit")) or commit
    date = ", ".join(_named(rows, "date")) or date
    parts.append(f"Commit: {text(commit) if commit else 'not recorded'}.")
    if date:
        parts.append(f"Date: {text(date)}.")
    for key, value in known.items():
        if value not in (None, "", [], {}) and not isinstance(value, Mapping):
            parts.append(f"{key.replace('_', ' ').capitalize()}: {text(value)}.")
    return "*" + " ".join(part.replace("*", "\\*") for part in parts) + "*"


def _named(rows: Sequence[Row], key: str) -> list[str]:
    """What the rows say of something, each value once."""
    return sorted({str(row[key]) for row in rows if row.get(key)})


def about_weights(encoders: Sequence[str], named: str = "") -> list[str]:
    """Which weights a table's figures were made with."""
    from flawmap.encoders.table import ENCODERS

    weights = named or "; ".join(
        f"{name} from the package {ENCODERS[name].package}"
        if name in ENCODERS and ENCODERS[name].package
        else name
        for name in encoders
    )
    parts = [f"Weights: {weights}."] if weights else []
    if FINE_TUNED in " ".join([*encoders, named]):
        parts.append(
            f"{FINE_TUNED} has DINOv2's architecture, its weights may have been fine-tuned for "
            "saliency: these are no figures of Meta's weights."
        )
    return parts


def figure(value: object) -> float | None:
    """A defined number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def text(value: object) -> str:
    """A cell."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    return " ".join(str(value).split()).replace("|", "\\|")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], *, n_text: int) -> str:
    """A Markdown table; columns after the first `n_text` are aligned to the right."""
    rule = ["---" if i < n_text else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *lines])


def filled(page: Path, results: Path) -> str:
    """A page's text with its tables as they should be.

    Raises:
        ValueError: A marker has no end.
    """

    def one(match: re.Match[str]) -> str:
        choices = dict(choice.split("=") for choice in match["choices"].split())
        content = table(results, match["name"], choices, page)
        return f"{match['start']}\n{content}\n\n{match['end']}"

    old = page.read_text(encoding="utf-8")
    if old.count("<!-- results:") != len(MARKED.findall(old)):
        raise ValueError(f"{page.name}: a marker of results is misspelt, or has no end")
    return MARKED.sub(one, old)


def pages(root: Path) -> list[Path]:
    """README.md and the documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the tables of README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="README.md, docs, benchmarks")
    options = parser.parse_args(arguments)
    old = []
    for page in pages(options.root):
        text = filled(page, options.root / "benchmarks" / "results")
        if text != page.read_text(encoding="utf-8"):
            old.append(page)
            if not options.check:
                page.write_text(text, encoding="utf-8")
    if old and options.check:
        names = ", ".join(page.name for page in old)
        print(f"out of date: {names}; run python benchmarks/write_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
