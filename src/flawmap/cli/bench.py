"""`flawmap bench`: grids of methods, data and seeds, and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from flawmap.cli import options, show
from flawmap.cli.bench_tables import Results, cells_of_file, plot, print_table, table
from flawmap.files import as_path, is_text, require_writable
from flawmap.progress import duration

if TYPE_CHECKING:
    from flawmap.bench.grid import Cell, Grid
    from flawmap.bench.results import StoredCell

NAME = "bench"
FAILED = 9

_EPILOG = """\b
Examples:
  flawmap bench --data bottle=mvtec/bottle --method patchcore --method dinomaly --seed 0 --seed 1
  flawmap bench grid.yaml --results results.sqlite --jobs 2
  flawmap bench table results.sqlite
  flawmap bench table results.sqlite --output table.tex --column image_auroc --column aupro
  flawmap bench plot results.sqlite --output accuracy.svg

\b
A grid file:
  data: {mvtec: /data/mvtec, tiles: {path: /data/tiles, format: magnetic-tile}}
  methods: [patchcore, {method: dinomaly, name: dinomaly 280, options: {data.size: 280}}]
  settings: [unified, separate]
  seeds: [0, 1, 2]

\b
A cell is one combination: a model that is fitted and measured. A grid that was stopped goes on
where it was with the same command; nothing is run twice. A cell that fails is written down with
its reason, and the others go on.
"""

_RUN = """\b
'flawmap bench GRID' is short for 'flawmap bench run GRID'; 'flawmap bench run --help' lists its
options.

"""


class _RunByDefault(TyperGroup):
    """`flawmap bench GRID` is short for `flawmap bench run GRID`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else "--help"
        is_option = first.startswith("-") and first not in ("--help", "-h")
        # A word that is neither is a command that was misspelt.
        is_file = bool(Path(first).suffix) or Path(first).is_file()
        if is_option or (first not in self.commands and is_file):
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    name=NAME,
    cls=_RunByDefault,
    help="Compare methods over data sets and seeds.",
    epilog=_RUN + _EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("run", epilog=_EPILOG)
def run(
    grid: Annotated[
        Path | None,
        typer.Argument(
            parser=as_path, metavar="[GRID]", help="A YAML file that describes the grid."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="A data set; may be given several times."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A method, or auto, which chooses; may be given several times."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="unified|separate",
            help="One model for all categories, or one each; both may be given.",
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(metavar="N", help="A seed; may be given several times.")
    ] = None,
    category: options.Categories = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="For every method; by default its own.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|gpu|NAME",
            help="For every line that names none. [default: cpu, or what auto chooses]",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A metric beside the usual ones, see 'flawmap evaluate --help'; may be given "
            "several times.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=C",
            help="Any other option, for every line of the grid.",
        ),
    ] = None,
    results: Annotated[
        Path,
        typer.Option(
            parser=as_path, metavar="FILE", help="Where every finished cell is stored at once."
        ),
    ] = Path("results.sqlite"),
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", metavar="N", help="Cells at a time; their times then compete."
        ),
    ] = 1,
    retry: Annotated[
        bool, typer.Option("--retry", help="Run cells again that failed before.")
    ] = False,
    keep_models: Annotated[
        bool,
        typer.Option(
            "--keep-models",
            help="Keep every model in FILE.work, each beside a cell.json that says what it is.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what is left to do; run nothing.")
    ] = False,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a grid.

    Fits and measures every combination of methods, data sets and seeds, each in processes of its
    own, and stores each as it ends.
    """
    from flawmap.bench.grid import cells_of
    from flawmap.bench.runner import run_cells
    from flawmap.bench.store import Store
    from flawmap.config import read_pairs

    flags = _flags(data, method, setting, seed, category, preset, metric)
    described = _grid(grid, flags).with_options(encoder, dict(read_pairs(settings or ())))
    cells = cells_of(described, None if quiet else show.note, device=device)
    if dry_run:
        _print_plan(cells, results, retry, json)
        return
    with Store(results, create=True) as store:
        summary = run_cells(
            cells,
            store,
            jobs=jobs,
            retry=retry,
            keep_models=keep_models,
            device=device,
            progress=show.progress(quiet),
        )
        if json:
            show.json_out({**summary.__dict__, "results": str(results), "cells": len(cells)})
        else:
            show.note(
                f"{summary.done} cells finished now, {summary.before} before, "
                f"{len(summary.failed)} failed, {duration(summary.seconds)}"
            )
            if summary.done + summary.before:
                print_table(store.cells(), published_from=described.published_from)
            show.note("")
            show.note("tables and plots:")
            show.note("  " + show.command("bench", "table", results, "--output", "table.md"))
            show.note("  " + show.command("bench", "plot", results, "--output", "plot.svg"))
    if summary.failed:
        raise typer.Exit(FAILED)


app.command("table")(table)
app.command("plot")(plot)


@app.command("status")
def status(results: Results, json: options.Json = False) -> None:
    """List the cells: finished, failed and why, running."""
    cells = cells_of_file(results, None)
    if json:
        show.json_out([cell.__dict__ for cell in cells])
        return
    rows = [
        [c.status, c.data, c.setting, _shortened(c.categories), c.label, str(c.seed), _remark(c)]
        for c in cells
    ]
    head = ["status", "data", "setting", "categories", "method", "seed", "remark"]
    show.table(head, rows, text_columns=len(head))


@app.command("forget")
def forget(results: Results) -> None:
    """Remove failed cells, and what unfinished ones left.

    Models that --keep-models kept stay.
    """
    from flawmap.bench.store import Store
    from flawmap.bench.work import forget_unfinished
    from flawmap.errors import BenchError

    with Store(results) as store:
        if running := store.under_way():
            raise BenchError(
                f"{running} cells are being run",
                where=str(results),
                hint="wait until they are finished, or stop them; after a crash wait a minute",
            )
        count = store.forget_failed()
        forget_unfinished(store)
    show.note(f"{count} failed cells are forgotten")


@app.command("export")
def export(
    results: Results,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=as_path, metavar="FILE", help="A .json file.")
    ],
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this data set; several times.")
    ] = None,
) -> None:
    """Write the cells as JSON.

    With every figure, cost, option, version and device. The file is small enough to be kept with
    code; 'table', 'plot' and 'status' read it as well.
    """
    from flawmap.bench.results import write_cells

    require_writable(output, "--output", own=is_text)
    cells = [c for c in cells_of_file(results, data) if c.status != "running"]
    write_cells(cells, output)
    show.note(f"{len(cells)} cells: {output}")


@app.command("import")
def import_(
    exports: Annotated[
        list[Path],
        typer.Argument(
            parser=as_path,
            metavar="EXPORT...",
            help="Files of 'flawmap bench export', or results files.",
        ),
    ],
    results: Annotated[
        Path,
        typer.Option(
            parser=as_path, metavar="FILE", help="Where the cells go; made if it is not there."
        ),
    ] = Path("results.sqlite"),
) -> None:
    """Take finished cells over into a results file.

    No grid runs them again. What that file has finished itself stays as it is. Image scores come
    with the cells of a results file; an export has none.
    """
    from flawmap.bench.store import Store, read_scored

    found = [scored for path in exports for scored in read_scored(path)]
    with Store(results, create=True) as store:
        added = store.add([cell for cell, _ in found], [scores for _, scores in found])
    show.note(f"{added} of {len(found)} cells are new in {results}")


def _flags(
    data: list[str] | None,
    method: list[str] | None,
    setting: list[str] | None,
    seed: list[int] | None,
    category: list[str] | None,
    preset: str | None,
    metric: list[str] | None,
) -> dict[str, Any]:
    """What was given on the command line, as a part of a grid's tree."""
    from flawmap.errors import ConfigError

    tree: dict[str, Any] = {}
    if data:
        places: dict[str, Any] = {}
        for text in data:
            name, equals, place = text.partition("=")
            # A folder's own name may hold the sign.
            has_name = equals and not {"/", "\\"} & set(name)
            path = as_path(place if has_name else text)
            name = name if has_name else path.resolve().name
            if name in places:
                raise ConfigError(
                    f"two data sets are called '{name}'",
                    where="--data",
                    given=text,
                    hint="give each a name: --data NAME=PATH",
                )
            places[name] = {"path": path.absolute(), "categories": category}
        tree["data"] = places
    elif category:
        raise ConfigError(
            "--category needs --data",
            where="--category",
            hint="in a grid file, name the categories beside the path of the data",
        )
    if method:
        tree["methods"] = list(method)
    named = {"settings": setting, "seeds": seed, "preset": preset, "metrics": metric}
    tree.update({name: value for name, value in named.items() if value})
    return tree


def _grid(path: Path | None, flags: dict[str, Any]) -> Grid:
    """The grid file, in which what the command line gives replaces what it says."""
    from flawmap.bench.grid import make_grid, read_grid
    from flawmap.errors import ConfigError

    if path is None:
        for name in ("data", "methods"):
            if name not in flags:
                raise ConfigError(
                    f"the grid has no {name}",
                    where="the command line",
                    hint="name a grid file, or give --data and --method; see 'flawmap bench run "
                    "--help'",
                )
        return make_grid(flags, where="the command line")
    return read_grid(path, instead=flags)


def _print_plan(cells: list[Cell], results: Path, retry: bool, json: bool) -> None:
    from flawmap.bench.known import Known
    from flawmap.bench.store import Store

    stored: list[StoredCell] = []
    if results.is_file():
        with Store(results) as store:
            stored = store.cells()
    known = Known(stored)
    states = [known.status(cell) or "to do" for cell in cells]
    if json:
        show.json_out(
            [
                {"cell": str(c), "key": c.key, "status": s}
                for c, s in zip(cells, states, strict=True)
            ]
        )
        return
    for cell, state in zip(cells, states, strict=True):
        show.out(f"{state:8} {cell}")
    left = () if retry else ("failed",)
    todo = sum(state not in ("done", *left) for state in states)
    text = f"{len(cells)} cells, {todo} to do"
    if not retry and (failed := states.count("failed")):
        text += f"; {failed} failed before and are left alone without --retry"
    show.note(text)


def _shortened(names: tuple[str, ...]) -> str:
    return (
        ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
    )


def _remark(cell: StoredCell) -> str:
    if cell.error:
        return " ".join(str(cell.error.get("message")).split())
    seconds = cell.cost.get("fit_seconds")
    return "" if seconds is None else f"fit {duration(seconds)}"
