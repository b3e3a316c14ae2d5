"""`flawmap inspect`: what a data set holds and what would go wrong with it."""

from __future__ import annotations

from typing import Annotated

import typer

from flawmap.cli import options, show

NAME = "inspect"
EPILOG = """\b
Examples:
  flawmap inspect photos
  flawmap inspect mvtec --category bottle --json

\b
Exit code 0: no error was found. 3: a fit or an evaluation would fail, and why is said.
"""


def run(
    data: options.Data,
    format: options.Format = None,
    category: options.Categories = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="For layouts without a split of their own.")
    ] = 0,
    white_level: Annotated[
        int | None,
        typer.Option(metavar="N", help="The value of white in 16-bit images, such as 4095."),
    ] = None,
    skip_bad: options.SkipBad = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check a data set before a fit.

    Reads every image and says what is there and what would go wrong.
    """
    from flawmap.data.detect import read_data
    from flawmap.data.inspect import inspect
    from flawmap.errors import DataError

    table = read_data(data, format=format, categories=category, seed=seed, check=False)
    with show.progress(quiet).task("Reading images", len(table)) as task:
        result = inspect(
            table,
            white_level=white_level,
            skip_bad=skip_bad,
            on_progress=lambda done, total: task.update(done),
        )
    if json:
        show.json_out(result.to_dict())
    else:
        show.out(result.to_text())
    if not result.ok:
        raise typer.Exit(DataError.exit_code)
