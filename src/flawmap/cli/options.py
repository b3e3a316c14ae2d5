"""Options that several commands share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawmap.files import as_path
from flawmap.quantities import rate_of
from flawmap.registry import FORMATS

Bundle = Annotated[
    Path, typer.Argument(parser=as_path, metavar="MODEL", help="The file that 'flawmap fit' wrote.")
]
Data = Annotated[
    Path,
    typer.Argument(
        parser=as_path,
        metavar="DATA",
        help="A folder of images, a data set (such as MVTec AD) or a table "
        "(.csv, .jsonl); its layout is recognised.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"The layout of the data, if it is not recognised: {', '.join(FORMATS.own)}.",
    ),
]
Categories = Annotated[
    list[str] | None,
    typer.Option(
        "--category", metavar="NAME", help="Use only this product; may be given several times."
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave unreadable images out and list them, do not stop."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON alone on standard output (errors as well)."),
]
FalseRejectRate = Annotated[
    float | None,
    typer.Option(
        parser=rate_of,
        metavar="RATE",
        help="Share of good parts that may raise the alarm: 0.01 or 1%. "
        "[default: 1% at 'fit', else unchanged]",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only warnings.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]
EncoderWeights = Annotated[
    Path | None,
    typer.Option(
        parser=as_path,
        metavar="FILE",
        help="The encoder's weights, for a model that does not carry them.",
    ),
]
