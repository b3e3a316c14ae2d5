"""`flawmap split`: keep some good images for a test."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flawmap.cli import options, show
from flawmap.files import as_path, require_writable
from flawmap.quantities import rate_of

NAME = "split"
EPILOG = """\b
Examples:
  flawmap split parts --output parts.csv
  flawmap split parts -o parts.csv --test 30%
  flawmap fit parts.csv -o part.flawmap
  flawmap evaluate part.flawmap parts.csv

\b
A folder with good parts and kinds of defects has no good parts to test with: all are learnt. Here
some are kept; the table that is written names every image, and no file is moved. Write it beside
the folder, not into it.

\b
JSON: {"output", "categories": {NAME: {"train", "test_good", "test_defect"}}}
"""


def run(
    data: options.Data,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=as_path, metavar="FILE", help="The table to write (.csv)."
        ),
    ],
    test: Annotated[
        float,
        typer.Option(
            parser=partial(rate_of, what="share of good images to test with", where="--test"),
            metavar="SHARE",
            help="Good images of each product that are kept for the test: 0.2 or 20%.",
        ),
    ] = 0.2,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Decides which.")] = 0,
    format: options.Format = None,
    category: options.Categories = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out what cannot be listed, such as broken links."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Keep some good images for a test.

    Writes a table of all images, in which some good ones are not learnt but tested.
    """
    from flawmap.data.detect import read_data
    from flawmap.data.holdout import hold_out, write_table
    from flawmap.errors import ConfigError

    if output.suffix.lower() != ".csv":
        raise ConfigError(
            "the table is a CSV file", where="--output", given=output, expected="a name.csv"
        )
    # Whoever wrote a table by hand would not get it back.
    require_writable(output, "--output", own=lambda path: False)
    whole = read_data(data, format=format, categories=category, skip_bad=skip_bad)
    for problem in whole.problems:
        show.note(f"skipped {problem}")
    table = hold_out(whole, test, seed)
    write_table(table.samples, output)
    counts = {
        name: {
            "train": len(table.select(category=name, split="train")),
            "test_good": len(table.select(category=name, split="test", label=0)),
            "test_defect": len(table.select(category=name, split="test", label=1)),
        }
        for name in table.categories
    }
    if json:
        show.json_out({"output": str(output), "categories": counts})
        return
    show.out(str(output))
    show.table(
        ["category", "to learn", "good to test", "defects to test"],
        [[name, *map(str, of.values())] for name, of in counts.items()],
    )
    if quiet:
        return
    show.note("next:")
    show.note("  " + show.command("fit", output, "--output", "part.flawmap"))
    show.note("  " + show.command("evaluate", "part.flawmap", output, "--report", "report.html"))
