"""`flawmap doctor`: whether this machine can do the work."""

from __future__ import annotations

import typer

from flawmap.cli import options, show

NAME = "doctor"
EPILOG = """\b
Exit code 0: fitting and scoring work here (warnings may remain). 1: fitting does not, and what to
do is said.
"""


def run(json: options.Json = False) -> None:
    """Check that this machine can do the work.

    Looks at Python, packages, device, threads, memory, disk and encoders, and says what to do
    about each problem.
    """
    from flawmap.cli.checks import run_checks

    found = run_checks()
    works = all(check.status != "error" for check in found)
    if json:
        show.json_out({"ok": works, "checks": [check.to_dict() for check in found]})
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            show.out(f"{check.status:<8} {check.name:<{width}}  {check.found}")
            if check.advice:
                show.out(f"{'':<8} {'':<{width}}  -> {check.advice}")
        show.out()
        show.out("fitting and scoring work here" if works else "fitting does not work here yet")
    if not works:
        raise typer.Exit(1)
