"""`flawmap predict`: score new images."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawmap.cli import options, show
from flawmap.cli.errors import DEFECT_FOUND
from flawmap.files import as_path
from flawmap.wording import counted, few

if TYPE_CHECKING:
    from flawmap.errors import DataError
    from flawmap.outputs import PredictionWriter
    from flawmap.types import Sample

NAME = "predict"
EPILOG = """\b
Examples:
  flawmap predict part.flawmap photo.png
  flawmap predict part.flawmap photos --output result --maps --overlays
  flawmap predict part.flawmap photos --json > result.json
  flawmap predict part.flawmap photo.png --fail-on-defect || echo reject

\b
DIR receives predictions.csv and predictions.jsonl; maps/ and overlays/, with sub-folders as those
of the images; and skipped.jsonl with --skip-bad. Files of an earlier run there are replaced.

\b
A PNG map is stretched to its own range: value = png / 65535 * (map_max - map_min) + map_min,
with map_min and map_max in the image's record. npy maps hold the values themselves.

\b
JSON: one array with an object per image, written as images are scored:
[{"path", "category", "score", "threshold", "verdict", "size", "pixel_threshold",
"regions": [{"box": [left, top, width, height], "area", "peak", "peak_at": [x, y]}]}, ...]
If it fails half-way, the last item is {"error": ...} and the exit code is not 0.

\b
Which product an image shows is told by --category, the data set, or the nearest folder above it
that is named like one; it decides which threshold counts. Where nothing tells, the category is "*"
and the threshold is the one over all products.
"""


def run(
    model: options.Bundle,
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=as_path,
            metavar="PATH",
            help="Images, folders (all images below), tables, or data sets (their test split).",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", parser=as_path, metavar="DIR", help="Write CSV and JSON Lines there."
        ),
    ] = None,
    maps: Annotated[
        bool, typer.Option("--maps", help="Also write an anomaly map per image.")
    ] = False,
    map_format: Annotated[
        str, typer.Option(metavar="png|npy", help="16-bit PNG, or exact numpy arrays.")
    ] = "png",
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write each image with its flaws marked.")
    ] = False,
    category: Annotated[
        str | None, typer.Option(metavar="NAME", help="The product that all images show.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Read every PATH as a data set of this layout; see 'flawmap fit --help'.",
        ),
    ] = None,
    fail_on_defect: Annotated[
        bool,
        typer.Option(
            "--fail-on-defect",
            help="Exit with 10 if any image is a defect, with 3 if any was skipped or got no "
            "verdict; the model needs a threshold.",
        ),
    ] = False,
    skip_bad: options.SkipBad = False,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Images at a time. [default: the model's]"),
    ] = None,
    device: options.Device = "auto",
    encoder_weights: options.EncoderWeights = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score new images and mark their flaws.

    Says of each image how anomalous it is, whether it is a defect, and where the flaws are.
    """
    _check(output, maps, map_format, overlays)
    from flawmap.bundle import require_file

    # Before torch is loaded: a wrong path is said at once.
    require_file(model)
    from flawmap.data.detect import existing

    for path in paths:
        existing(path)
    from flawmap.data.inputs import find_images, with_categories
    from flawmap.errors import ConfigError, DataError
    from flawmap.loading import load
    from flawmap.outputs import Tally, drawn_before, predictions
    from flawmap.types import EVERY

    detector = load(model, device=device, encoder_weights=encoder_weights)
    # Layouts without a split of their own are split as the fit did.
    found = find_images(
        paths,
        format=format,
        skip_bad=skip_bad,
        leave_out=() if output is None else drawn_before(output),
        seed=detector.config.seed,
        known=detector.categories,
    )
    for text in found.notes:
        show.note(text)
    if fail_on_defect and not detector.calibration.categories:
        raise ConfigError(
            "the model has no threshold, so no image can be a defect",
            where="--fail-on-defect",
            given=str(model),
            expected="a model with a threshold",
            hint="give it one: flawmap calibrate MODEL GOOD_IMAGES",
        )
    samples = with_categories(
        found.samples,
        detector.categories,
        category=category,
        unified=EVERY in detector.models,
    )
    unknown = sum(s.category == EVERY for s in samples)
    if unknown and len(detector.categories) > 1:
        show.note(
            f"{counted(unknown, 'image')} of no product that the model knows "
            f"({few(detector.categories)}): judged by the threshold over all of them; --category "
            "names the product"
        )
    tally = Tally(skipped=len(found.problems))
    with ExitStack() as stack:
        task = stack.enter_context(show.progress(quiet).task("Scoring", len(samples)))
        writer = None
        if output is not None:
            white_level = detector.config.data.white_level
            writer = stack.enter_context(
                _writer(output, found.roots, map_format if maps else None, overlays, white_level)
            )
        array = stack.enter_context(show.JsonArray()) if json else None
        for problem in found.problems:
            show.note(f"skipped {problem}")
            if writer is not None:
                writer.skip(problem.path, problem.reason)
        on_skip = partial(_skip, writer) if skip_bad else None
        results = predictions(detector, samples, tally, batch_size=batch_size, on_skip=on_skip)
        for done, prediction in enumerate(results, start=1):
            record = prediction.to_dict() if writer is None else writer.write(prediction)
            if array is not None:
                array.add(record)
            elif writer is None:
                verdict = prediction.verdict or "-"
                show.out(f"{verdict:<7} {prediction.score:>10.4f}  {record['path']}")
            task.update(done)
    show.note(str(tally))
    if output is not None and not json:
        show.out(str(output / "predictions.csv"))
    if fail_on_defect and tally.defect:
        raise typer.Exit(DEFECT_FOUND)
    if fail_on_defect and (tally.skipped or tally.undecided):
        # Nobody has looked at them, or nothing says what they are.
        raise typer.Exit(DataError.exit_code)


def _skip(writer: PredictionWriter | None, sample: Sample, error: DataError) -> None:
    """Tell of an image that is left out."""
    show.note(f"skipped {sample.path}: {error.message}")
    if writer is not None:
        writer.skip(sample.path, error.message)


def _check(output: Path | None, maps: bool, map_format: str, overlays: bool) -> None:
    from flawmap.errors import ConfigError, unknown_name

    if map_format not in ("png", "npy"):
        raise unknown_name("map format", map_format, ("png", "npy"), where="--map-format")
    if output is None and (maps or overlays):
        raise ConfigError(
            "maps and overlays need a folder to lie in",
            where="--maps" if maps else "--overlays",
            hint="add --output DIR",
        )


def _writer(
    output: Path,
    roots: tuple[str, ...],
    maps: str | None,
    overlays: bool,
    white_level: int | None,
) -> PredictionWriter:
    from flawmap.outputs import PredictionWriter

    return PredictionWriter(
        output,
        roots=roots,
        maps="npy" if maps == "npy" else "png" if maps == "png" else None,
        overlays=overlays,
        white_level=white_level,
    )
