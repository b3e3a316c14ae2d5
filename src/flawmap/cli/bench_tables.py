"""`flawmap bench table` and `flawmap bench plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawmap.cli import show
from flawmap.files import as_path, is_text, require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flawmap.bench.results import StoredCell

Results = Annotated[
    Path,
    typer.Argument(
        parser=as_path, metavar="RESULTS", help="The file that 'flawmap bench' or 'export' wrote."
    ),
]


def table(
    results: Results,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=as_path,
            metavar="FILE",
            help="Write it; the name's ending (.md, .tex, .csv, .html) says in which form.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="markdown|latex|csv|html", help="Print it in this form."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A metric or a cost, several times. [default: the seven metrics, "
            "pixel_auroc_defects and metrics over the crop where they were measured, the fit's "
            "seconds and images/s]",
        ),
    ] = None,
    all_columns: Annotated[
        bool, typer.Option("--all-columns", help="Every metric and cost that was measured.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this data set; several times.")
    ] = None,
    by_category: Annotated[
        bool, typer.Option("--by-category", help="A line per category instead of their mean.")
    ] = False,
    published: Annotated[
        bool,
        typer.Option(
            "--published/--no-published", help="What papers print for the same public data set."
        ),
    ] = True,
    published_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="From these tables of the papers instead of main, separate and seed: components, "
            "mixer, dropout, model_size, input_size, encoder, attribution; several times.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(metavar="TEXT", help="Heading.")] = "Results",
) -> None:
    """Make a table of results.

    Mean over categories, then mean and spread over seeds; the best in bold; published figures
    beside ours where they are known; whether differences are beyond chance.
    """
    from flawmap.bench.published import MAIN_TABLES, require_table
    from flawmap.bench.render import ENDINGS, render
    from flawmap.bench.table import COSTS, DEFAULT_COLUMNS, make_table
    from flawmap.errors import BenchError, ConfigError
    from flawmap.files import write_text
    from flawmap.metrics.catalog import names

    if output is not None:
        require_writable(output, "--output", own=is_text)
    cells = cells_of_file(results, data)
    for name in published_from or ():
        require_table(name, where="--published-from")
    papers = tuple(published_from or MAIN_TABLES) if published else ()
    wanted = (*names(), *COSTS) if all_columns else tuple(column or DEFAULT_COLUMNS)
    if output is not None and form is None:
        form = ENDINGS.get(output.suffix.lower())
        if form is None:
            raise ConfigError(
                "the name does not say in which form the table is written",
                where="--output",
                given=output,
                expected=f"a name that ends with {', '.join(ENDINGS)}",
                hint="or name the form with --format",
            )
    if form is None:
        print_table(cells, wanted, by_category=by_category, published_from=papers)
        return
    text = render(
        make_table(
            cells, columns=wanted, by_category=by_category, published_from=papers, title=title
        ),
        form,
    )
    if output is None:
        show.out(text.rstrip("\n"))
    else:
        write_text(output, text, error=BenchError)
        show.note(f"table: {output}")


def plot(
    results: Results,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=as_path, metavar="FILE", help="An .svg, .png or .pdf file."
        ),
    ],
    metric: Annotated[str, typer.Option(metavar="NAME", help="The vertical axis.")] = "image_auroc",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COST",
            help="A horizontal axis, several times. [default: images_per_second, parameters, "
            "fit_seconds]",
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this data set; several times.")
    ] = None,
    by_category: Annotated[
        bool, typer.Option("--by-category", help="A colour per category instead of their mean.")
    ] = False,
    join: Annotated[
        bool,
        typer.Option(
            "--join", help="Join what has one colour: one method with options that cost more."
        ),
    ] = False,
) -> None:
    """Draw accuracy against images/s, parameters and fitting time."""
    from flawmap.bench.plots import AGAINST
    from flawmap.bench.plots import plot as draw

    require_writable(output, "--output", own=lambda path: True)
    draw(
        cells_of_file(results, data),
        output,
        metric=metric,
        against=tuple(against or AGAINST),
        by_category=by_category,
        join=join,
    )
    show.note(f"plot: {output}")


def print_table(
    cells: Sequence[StoredCell],
    columns: Sequence[str] | None = None,
    *,
    by_category: bool = False,
    published_from: Sequence[str] | None = None,
) -> None:
    """Show the table of cells on the screen; without columns the usual ones."""
    from flawmap.bench.published import MAIN_TABLES
    from flawmap.bench.render import aligned
    from flawmap.bench.table import DEFAULT_COLUMNS, make_table

    made = make_table(
        cells,
        columns=columns or DEFAULT_COLUMNS,
        by_category=by_category,
        published_from=MAIN_TABLES if published_from is None else published_from,
    )
    head, rows = aligned(made)
    show.table(head, rows, text_columns=4)
    show.out()
    for number, text in enumerate(made.footnotes, start=1):
        show.out(f"[{number}] {text}")
    for text in made.notes:
        show.out(text)


def cells_of_file(results: Path, data: list[str] | None) -> list[StoredCell]:
    """The cells of a results file, or those of the data sets that are named."""
    from flawmap.bench.store import read_cells
    from flawmap.errors import unknown_name

    cells = read_cells(results)
    known = {cell.data for cell in cells}
    for name in data or ():
        if name not in known:
            raise unknown_name("data set", name, known, where="--data")
    return [cell for cell in cells if not data or cell.data in data]
