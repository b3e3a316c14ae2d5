"""`flawmap fit`: learn from good images and write a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawmap.cli import options, show
from flawmap.files import as_path
from flawmap.progress import duration
from flawmap.wording import precision_word

if TYPE_CHECKING:
    from flawmap.detector import Detector

NAME = "fit"
EPILOG = """\b
Examples:
  flawmap fit photos --output part.flawmap
  flawmap fit mvtec --output all.flawmap --method dinomaly --preset gpu
  flawmap fit mvtec -o two.flawmap --category bottle --category cable --separate
  flawmap fit photos -o part.flawmap --set data.size=320 --set scoring.sigma=2
"""


def run(
    data: options.Data,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=as_path,
            metavar="FILE",
            help="The model that is written; one that was there is kept as FILE.old.",
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The algorithm; see 'flawmap methods'. auto chooses by the images, the device, "
            "the time and the other options. [default: auto]",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The pretrained network; see 'flawmap encoders'. [default: the method's]",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|gpu|NAME",
            help="Options for a laptop, for a graphics card, or others that the method names. "
            "[default: cpu, or what auto chooses]",
        ),
    ] = None,
    format: options.Format = None,
    category: options.Categories = None,
    separate: Annotated[
        bool, typer.Option("--separate", help="One model per product instead of one for all.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Decides everything random. [default: 0]")
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Plan the fit to end in this time: 90s, 5m, 1.5h."),
    ] = None,
    false_reject_rate: options.FalseRejectRate = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=C",
            help="Any other option, such as training.device=cpu, several times; see "
            "'flawmap methods --options'.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(parser=as_path, metavar="FILE", help="Options from a YAML file; --set wins."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a fit that was stopped.")
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            parser=as_path,
            metavar="MODEL",
            help="Begin with what this model has learnt, to add a product to it; DATA should hold "
            "the old products too.",
        ),
    ] = None,
    skip_bad: options.SkipBad = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn from good images; write a model.

    Only good images of the training split are learnt; one file is written that scores any new
    image. Its threshold comes from good images too: from held-out ones if there are enough, else,
    with PatchCore, from each learnt image scored as if it had not been learnt (approximate), and
    with other methods from the few that are held out.
    """
    from flawmap.api import fit

    detector = fit(
        data,
        output=output,
        method=method,
        encoder=encoder,
        preset=preset,
        format=format,
        categories=category,
        separate=separate,
        seed=seed,
        time_budget=time_budget,
        false_reject_rate=false_reject_rate,
        config_file=config,
        options=settings or (),
        resume=resume,
        start=start,
        skip_bad=skip_bad,
        progress=show.progress(quiet),
    )
    if not detector.fabric.is_global_zero:
        return
    if json:
        show.json_out(summary(detector, output))
    else:
        _print(detector, output, data, format, quiet)


def summary(detector: Detector, output: Path) -> dict[str, Any]:
    """What a fit did, as plain JSON values."""
    fitted = detector.fitted
    thresholds = detector.calibration.thresholds()
    return {
        "bundle": str(output),
        "bytes": output.stat().st_size,
        "method": detector.config.method.name,
        "chosen": list(detector.config.chosen),
        "encoder": detector.config.encoder.name,
        "categories": list(detector.categories),
        "separate": detector.config.separate,
        "images": {
            "learnt": fitted.data.get("learnt_images"),
            "held_out": fitted.data.get("held_out_images"),
            "skipped": [
                {"path": path, "reason": reason} for path, reason in fitted.data.get("skipped", ())
            ],
        },
        "false_reject_rate": detector.calibration.rate,
        "thresholds": {name: found.to_dict() for name, found in thresholds.items()},
        "notes": detector.calibration.cautions(),
        "seconds": dict(fitted.seconds),
        "device": fitted.device,
        "precision": fitted.precision,
        "fingerprint": fitted.data.get("fingerprint"),
    }


def _print(detector: Detector, output: Path, data: Path, format: str | None, quiet: bool) -> None:
    facts = summary(detector, output)
    images, seconds = facts["images"], facts["seconds"]
    show.out(f"{output}  {show.size(facts['bytes'])}")
    show.out(f"  method      {facts['method']}, encoder {facts['encoder']}")
    for reason in facts["chosen"]:
        show.out(f"    chosen    {reason}")
    show.out(
        f"  images      {images['learnt']} learnt, {images['held_out']} held out, "
        f"{len(images['skipped'])} skipped"
    )
    for skipped in images["skipped"]:
        show.out(f"    skipped {skipped['path']}: {skipped['reason']}")
    parts = ", ".join(f"{stage} {duration(spent)}" for stage, spent in seconds.items())
    show.out(f"  time        {duration(sum(seconds.values()))} ({parts})")
    show.out(f"  device      {facts['device']}, {precision_word(facts['precision'])}")
    show.out("  thresholds")
    thresholds = detector.calibration.thresholds()
    off = detector.config.calibration.strategy == "off"
    why = "calibration.strategy=off" if off else "too few good images"
    for name in facts["categories"]:
        show.out(f"    {name}: {show.promise(thresholds.get(name), why)}")
    if quiet:
        return
    show.note("")
    if detector.fitted.data.get("test_images"):
        show.note("measure it on the test images:")
        read_as = () if format is None else ("--format", format)
        show.note(
            "  " + show.command("evaluate", output, data, *read_as, "--report", "report.html")
        )
    show.note("next, look at new images:")
    show.note("  " + show.command("predict", output, "IMAGES", "--output", "result", "--overlays"))
