"""One tree of errors: each class carries a process exit code and an HTTP status.

Every message says what went wrong, where, what was given, what is expected and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 30
"""Names that an error lists; a longer list would hide the rest of the message."""


class FlawmapError(Exception):
    """Base of every error that flawmap raises for something a user can cause.

    Args:
        message: What went wrong, in one sentence.
        where: The file, option or step concerned.
        given: The value that was given.
        expected: What would have been right.
        hint: What to do next.
    """

    exit_code = 1
    http_status = 500

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        given: object | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.given = given
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        for name, value in (
            ("where", self.where),
            ("given", self.given),
            ("expected", self.expected),
            ("what to do", self.hint),
        ):
            if value is not None:
                lines.append(f"  {name}: {value}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """The error as plain JSON values, for `--json` and HTTP answers."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "given": None if self.given is None else str(self.given),
            "expected": self.expected,
            "hint": self.hint,
        }


class FlawmapWarning(UserWarning):
    """Something that a user should know and that stops nothing."""


class ConfigError(FlawmapError):
    """An option, a name or a configuration file is wrong."""

    exit_code = 2
    http_status = 422


class DataError(FlawmapError):
    """Images, masks, folders or tables are missing, unreadable or contradictory."""

    exit_code = 3
    http_status = 400


class WeightsError(FlawmapError):
    """Pretrained weights are missing or are not the ones asked for."""

    exit_code = 4
    http_status = 503


class FitError(FlawmapError):
    """Training could not go on: a NaN loss, a full disk, too little data."""

    exit_code = 5
    http_status = 500


class BundleError(FlawmapError):
    """A bundle is truncated, altered, too new or not a bundle."""

    exit_code = 6
    http_status = 422


class ExportError(FlawmapError):
    """A detector, a report, a picture or predictions cannot be written as asked."""

    exit_code = 7
    http_status = 500


class ServeError(FlawmapError):
    """The inspection server cannot do what was asked."""

    exit_code = 8
    http_status = 500


class BenchError(FlawmapError):
    """A file of benchmark results cannot be used, or holds nothing to show."""

    exit_code = 9
    http_status = 500


def wrong_size(message: str, given: tuple[int, int], fit: tuple[int, int]) -> ConfigError:
    """The error for an input of a size that something does not take.

    Args:
        message: What takes which sizes.
        given: Height and width in px.
        fit: The nearest that fit.
    """
    return ConfigError(
        message,
        where="data.size",
        given=given,
        expected=f"({fit[0]}, {fit[1]}), the nearest that fits",
        hint=f"--set 'data.size=[{fit[0]},{fit[1]}]'",
    )


_EXTRA = {"torch", "torchvision", "timm", "lightning_fabric"}


def missing_extra(error: ImportError) -> ConfigError | None:
    """The error for a package of the extra `torch` that is not installed; None for others."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRA:
        return None
    return ConfigError(
        f"fitting and scoring need the package '{package}', which is not installed",
        where="the installation",
        hint="pip install torch torchvision, both in this one command, then "
        "pip install 'flawmap[torch]'; 'flawmap doctor' checks the result",
    )


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like `name`, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown_name(kind: str, name: str, choices: Iterable[str], *, where: str) -> ConfigError:
    """The error for a name that is not in a table, with the nearest right one."""
    known = sorted(choices)
    guess = nearest(name, known)
    shown = ", ".join(known[:_LISTED])
    if len(known) > _LISTED:
        shown += f", ... and {len(known) - _LISTED} more"
    return ConfigError(
        f"unknown {kind} '{name}'",
        where=where,
        given=name,
        expected=f"one of: {shown}",
        hint=f"did you mean '{guess}'?" if guess else None,
    )
