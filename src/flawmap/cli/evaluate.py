"""`flawmap evaluate`: the figures of a model on a test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawmap.cli import options, show

if TYPE_CHECKING:
    from flawmap.evaluation import Evaluation

NAME = "evaluate"
EPILOG = """\b
Columns: I- is per image, P- is per pixel (at 256 x 256); 1 is best. "false reject" is the share
of good images above the threshold, "escape" the share of defects below it. A dash means undefined:
pixel figures need masks.

\b
Examples:
  flawmap evaluate part.flawmap photos --report report.html
  flawmap evaluate all.flawmap mvtec --json > figures.json

\b
JSON: {"mean": {...}, "categories": {NAME: {"image_auroc", "image_ap", "image_f1max",
"pixel_auroc", "pixel_ap", "pixel_f1max", "aupro", ...}}, ...}
"""

COLUMNS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1max": "P-F1max",
    "aupro": "AUPRO",
}


def run(
    model: options.Bundle,
    data: options.Data,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one HTML page with figures and images."),
    ] = None,
    format: options.Format = None,
    category: options.Categories = None,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    encoder_weights: options.EncoderWeights = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model on a test split.

    Scores the labelled test images of a data set and prints how good the model is, per product.
    """
    from flawmap.api import evaluate
    from flawmap.detector import load

    result = evaluate(
        load(model, device=device, encoder_weights=encoder_weights),
        data,
        format=format,
        categories=category,
        report=report,
        skip_bad=skip_bad,
        progress=show.progress(quiet),
    )
    if json:
        show.json_out(result.to_dict())
    else:
        print_figures(result)
    if report is not None:
        show.note(f"report: {report}")


def print_figures(result: Evaluation) -> None:
    """The table of figures, with a line for the mean."""
    named = {name: part.metrics for name, part in result.categories.items()}
    rows = []
    for name, metrics in {**named, "mean": result.mean}.items():
        figures = [show.number(metrics.get(key)) for key in COLUMNS]
        rates = [show.percent(metrics.get(key)) for key in ("false_reject_rate", "escape_rate")]
        rows.append([name, *figures, *rates])
    show.table(["category", *COLUMNS.values(), "false reject", "escape"], rows)
    show.out()
    for name, part in result.categories.items():
        show.out(
            f"{name}: {part.counts['good']} good, {part.counts['defect']} defects "
            f"({part.counts['defects_with_mask']} with masks); "
            f"threshold {show.promise(part.threshold)}"
        )
    rate = result.n_images / result.seconds if result.seconds else 0.0
    show.out(f"{result.n_images} images, {rate:.1f} images per second")
    for text in result.notes:
        show.note(f"note: {text}")
