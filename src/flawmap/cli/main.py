"""The entry point: names the commands, and turns errors into text and exit codes."""

from __future__ import annotations

import os
import re
import sys
import warnings
from typing import Annotated, TextIO

import typer

from flawmap import __version__
from flawmap.cli import (
    bench,
    calibrate,
    demo,
    doctor,
    encoders,
    evaluate,
    fit,
    inspect,
    methods,
    predict,
    split,
    synthesise,
)
from flawmap.cli.errors import (
    BROKEN_PIPE,
    INTERRUPTED,
    as_dict,
    as_text,
    exit_code,
    is_reported,
)
from flawmap.cli.show import json_out, note
from flawmap.errors import FlawmapWarning

_EPILOG = """\b
A first try, with pictures of good parts in the folder 'photos':
  flawmap inspect photos
  flawmap fit photos --output part.flawmap
  flawmap predict part.flawmap new_photos --output result --overlays

\b
Every command takes --help and --debug (show where an error comes from).

\b
Exit codes:
  0  done                           6   the model is missing, damaged or not writable
  1  unexpected error               7   a result cannot be written
  2  a wrong option or name         9   a benchmark failed in part, or has no results
  3  something wrong with the data  10  predict --fail-on-defect found a defect
  4  encoder weights are missing    130 stopped by Ctrl-C
  5  the fit could not go on        141 the reader of a pipe went away
"""

app = typer.Typer(
    name="flawmap",
    help="Find flaws on products after seeing good ones only.",
    epilog=_EPILOG,
    add_completion=False,
    # Rich doubles the time that --help takes; tables and progress use it all the same.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"flawmap {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    return


for _module in (
    *(fit, evaluate, predict, calibrate, inspect, split, synthesise),
    *(methods, encoders, demo, doctor),
):
    app.command(_module.NAME, epilog=_module.EPILOG)(_module.run)
app.add_typer(bench.app, name=bench.NAME)


def main() -> None:
    """Run the command line of this process."""
    if hasattr(sys.stdout, "reconfigure"):
        # A name that the terminal's encoding lacks is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    sys.exit(run(sys.argv[1:]))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours read as any other note; those of libraries keep Python's own form."""
    if issubclass(category, FlawmapWarning):
        note(f"note: {message}")
    else:
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)


def run(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: As after the program's name.

    Returns:
        The exit code.
    """
    head = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug, wants_json = "--debug" in head, "--json" in head
    # It is taken anywhere, so that it can be put behind a command that has just failed.
    rest = [a for a in head if a != "--debug"] + arguments[len(head) :]
    try:
        code = app(rest or ["--help"], prog_name="flawmap", standalone_mode=False)
        # What is left in the buffer may find the pipe closed: that shows here, not at the exit.
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        # Typer itself ends the program when a pipe is closed, and for nothing else here.
        return _closed_pipe()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        from flawmap.errors import FlawmapError

        if isinstance(error, FlawmapError) and error.hint and rest[:1] in _ALL_OR_NOTHING:
            error.hint = re.sub(", or leave [a-z ]* with --skip-bad$", "", error.hint)
        return _failed(error, debug=debug, wants_json=wants_json)
    if code == INTERRUPTED:
        note(_STOPPED.get(rest[0] if rest else "", "stopped"))
    return code if isinstance(code, int) else 0


_ALL_OR_NOTHING = (["bench"], ["demo"], ["synthesise"])
"""Commands that leave no image out, so no hint may say that they can."""

_STOPPED = {
    "fit": "stopped; the same command with --resume goes on (a one-pass method begins anew)",
    "predict": "stopped; what was written before is complete",
    "bench": "stopped; what is finished is kept, and the same command goes on",
}
"""What is left after Ctrl-C."""


def _failed(error: Exception, *, debug: bool, wants_json: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    else:
        note(as_text(error))
    try:
        if wants_json and not is_reported(error):
            json_out(as_dict(error))
        sys.stdout.flush()
    except BrokenPipeError:
        return _closed_pipe()
    return exit_code(error)


def _closed_pipe() -> int:
    # Python flushes once more at its exit; without this it would complain about the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


if __name__ == "__main__":
    main()
