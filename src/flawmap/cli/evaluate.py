"""`flawmap evaluate`: the figures of a model on a test split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawmap.cli import options, show
from flawmap.files import as_path

if TYPE_CHECKING:
    from flawmap.evaluation import Evaluation

NAME = "evaluate"
EPILOG = """\b
Columns: I- is per image, P- is per pixel (at 256 x 256); 1 is best. "false reject" is the share
of good images above the threshold, "escape" the share of defects not above it. A dash means
undefined: pixel figures need masks. A star marks a metric that is not the official one.

\b
Metrics for --metric:
  aupro_0.05              AUPRO up to a false-positive rate of 0.05
  pro_per_image           PRO with the regions of each image averaged first
  pixel_ap_edge           pixel AP within 3 px of a defect's border
  pixel_ap_centre         pixel AP over all other pixels
  pixel_auroc_defects     pixel AUROC over defective images alone
  spro_0.05               saturated PRO, original size only
  spro_0.05_by_kind       mean of the next two, official for MVTec LOCO
  spro_0.05_logical       saturated PRO of logical defects and good images alone
  spro_0.05_structural    saturated PRO of structural defects and good images alone
  image_auroc_by_kind     mean of the next two, official for MVTec LOCO
  image_auroc_logical     image AUROC of logical defects alone
  image_auroc_structural  image AUROC of structural defects alone
  sample_auroc            AUROC over parts with several views
  segf1                   pixel F1 at the calibrated pixel threshold, original size only
With _original behind their names, the first five are taken at original size. _crop behind a name,
such as aupro_crop, means the centre crop alone that the network sees, as some papers print.

\b
Examples:
  flawmap evaluate part.flawmap bolt --report report.html
      (bolt holds train/good, test/good and test/<defect>)
  flawmap evaluate all.flawmap mvtec --json > figures.json
  flawmap evaluate all.flawmap mvtec --metric aupro_0.05 --metric segf1

\b
JSON: {"mean": {...}, "categories": {NAME: {"image_auroc", "image_ap", "image_f1max",
"pixel_auroc", "pixel_ap", "pixel_f1max", "aupro", ...}}, ...}
"""


def run(
    model: options.Bundle,
    data: options.Data,
    report: Annotated[
        Path | None,
        typer.Option(
            parser=as_path, metavar="FILE", help="Write one HTML page with figures and images."
        ),
    ] = None,
    format: options.Format = None,
    category: options.Categories = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Give this metric beside the usual ones; may be given several times. See below.",
        ),
    ] = None,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    encoder_weights: options.EncoderWeights = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model on a test split.

    Scores the labelled test images of a data set and prints how good the model is, per product.
    """
    from flawmap.bundle import require_file
    from flawmap.metrics.catalog import resolve

    # Before torch is loaded: what is wrong is said at once.
    metrics = resolve(metric or ())
    require_file(model)
    from flawmap.api import evaluate
    from flawmap.loading import load

    result = evaluate(
        load(model, device=device, encoder_weights=encoder_weights),
        data,
        format=format,
        categories=category,
        metrics=metrics,
        report=report,
        skip_bad=skip_bad,
        progress=show.progress(quiet),
    )
    if json:
        show.json_out(result.to_dict())
    else:
        print_figures(result, metrics)
    if report is not None:
        show.note(f"report: {report}")


def print_figures(result: Evaluation, metrics: Sequence[str] = ()) -> None:
    """The table of figures, with a line for the mean.

    Args:
        result: The figures.
        metrics: Columns beside the seven and the rates at the threshold.
    """
    from flawmap.metrics.catalog import HEADLINE, MARK, info

    rates = ("false_reject_rate", "escape_rate")
    columns = [*HEADLINE, *(name for name in metrics if name not in (*HEADLINE, *rates))]
    footnotes = result.not_official
    rows = []
    named = {name: part.metrics for name, part in result.categories.items()}
    for category, found in {**named, "mean": result.mean}.items():
        figures = [show.number(found.get(name)) for name in columns]
        rows.append([category, *figures, *(show.percent(found.get(name)) for name in rates)])
    titles = [info(name).short + (MARK if name in footnotes else "") for name in columns]
    show.table(["category", *titles, *(info(name).short for name in rates)], rows)
    show.out()
    for name in columns:
        if name in footnotes:
            show.out(f"{MARK} {info(name).short}: {footnotes[name]}")
    for name, part in result.categories.items():
        limit = show.promise(part.threshold)
        show.out(
            f"{name}: {part.counts['good']} good, {part.counts['defect']} defects "
            f"({part.counts['defects_with_mask']} with masks); "
            f"{limit if part.threshold is None else f'threshold {limit}'}"
        )
    rate = result.n_images / result.seconds if result.seconds else 0.0
    show.out(f"{result.n_images} images, {rate:.1f} images per second")
    for text in result.notes:
        show.note(f"note: {text}")
