"""How an error ends a command: its text, its JSON and the exit code."""

from __future__ import annotations

from typing import Any

import typer

INTERRUPTED = 130
BROKEN_PIPE = 141
DEFECT_FOUND = 10

# Typer carries a copy of Click in some versions and imports it in others: its public class leads
# to the right base in both.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

_reported: list[BaseException] = []


def _known(error: BaseException) -> BaseException:
    """An error of ours for one that a missing package, or too small a card, raised."""
    from flawmap.errors import FitError, missing_extra

    if type(error).__name__ == "OutOfMemoryError":
        return FitError(
            f"the graphics card has too little memory: {' '.join(str(error).split())}",
            hint="compute on the CPU (--device cpu; to fit --set training.device=cpu), or take a "
            "smaller batch (to fit --set training.batch_size=4; to predict --batch-size 4)",
        )
    extra = missing_extra(error) if isinstance(error, ImportError) else None
    return extra or error


def exit_code(error: BaseException) -> int:
    """The exit code that stands for an error."""
    from flawmap.errors import FlawmapError

    error = _known(error)
    if isinstance(error, FlawmapError | USAGE_ERROR):
        return int(error.exit_code)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def as_dict(error: BaseException) -> dict[str, Any]:
    """An error as plain JSON values."""
    from flawmap.errors import FlawmapError

    error = _known(error)
    if isinstance(error, FlawmapError):
        return {**error.to_dict(), "exit_code": exit_code(error)}
    name = type(error).__name__
    if isinstance(error, USAGE_ERROR):
        name, message = "UsageError", error.format_message()
    else:
        message = "stopped" if isinstance(error, KeyboardInterrupt) else str(error)
    return {"error": name, "message": message, "exit_code": exit_code(error)}


def as_text(error: BaseException) -> str:
    """An error for people."""
    from flawmap.errors import FlawmapError

    error = _known(error)
    if isinstance(error, FlawmapError):
        return f"error: {error}"
    if isinstance(error, USAGE_ERROR):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "flawmap"
        return f"error: {error.format_message()}\n  what to do: see '{path} --help'"
    line = " ".join(str(error).split()) or "no message"
    return (
        f"error: unexpected {type(error).__name__}: {line}\n"
        "  what to do: run the same command with --debug to see where; please report it"
    )


def remember_reported(error: BaseException) -> None:
    """This error is in the JSON on standard output already."""
    _reported[:] = [error]


def is_reported(error: BaseException) -> bool:
    """Whether `remember_reported` was called for this error."""
    return any(error is known for known in _reported)
