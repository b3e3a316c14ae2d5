"""`flawmap calibrate`: other thresholds for a model that is fitted already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawmap.cli import options, show
from flawmap.files import as_path

NAME = "calibrate"
EPILOG = """\b
Examples:
  flawmap calibrate part.flawmap --false-reject-rate 0.001
  flawmap calibrate part.flawmap new_good_photos --output part2.flawmap

\b
DATA must show good parts that were not in the fit: images that were learnt score too low, and the
threshold would promise too much. Defects in DATA are never looked at.
"""


def run(
    model: options.Bundle,
    data: Annotated[
        Path | None,
        typer.Argument(
            parser=as_path,
            metavar="[DATA]",
            help="Good images that were not in the fit; without it only the rate changes.",
        ),
    ] = None,
    false_reject_rate: options.FalseRejectRate = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=as_path,
            metavar="FILE",
            help="Write there, not in place; another model there is kept as FILE.old.",
        ),
    ] = None,
    format: options.Format = None,
    category: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The product of DATA, if its folder has another name."),
    ] = None,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    encoder_weights: options.EncoderWeights = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Change the threshold of a model.

    Nothing is fitted again: only what counts as too anomalous changes.
    """
    from flawmap.recalibrate import calibrate

    result = calibrate(
        model,
        data,
        false_reject_rate=false_reject_rate,
        output=output,
        format=format,
        category=category,
        skip_bad=skip_bad,
        device=device,
        encoder_weights=encoder_weights,
        progress=show.progress(quiet),
    )
    for text in result.notes:
        show.note(f"note: {text}")
    if json:
        show.json_out(result.to_dict())
        return
    show.out(f"{result.bundle}: false-reject rate {result.old_rate:.3%} -> {result.rate:.3%}")
    for name in sorted({*result.old, *result.new}):
        show.out(f"  {name}")
        show.out(f"    old {show.promise(result.old.get(name))}")
        show.out(f"    new {show.promise(result.new.get(name))}")
    for path, reason in result.skipped:
        show.note(f"skipped {path}: {reason}")
