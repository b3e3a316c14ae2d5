"""Quantities as people write them: shares and durations."""

from __future__ import annotations

import math
import re

from flawmap.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


_RATE = "false-reject rate"


def rate_of(text: str | float, *, what: str = _RATE, where: str = "--false-reject-rate") -> float:
    """A share of things as people write it: 0.01 or 1%.

    Args:
        text: What somebody wrote.
        what: The share.
        where: The option.

    Raises:
        ConfigError: It is no number, or lies outside (0, 1).
    """
    number, percent, rest = str(text).strip().partition("%")
    try:
        rate = float(number) / 100 if percent else float(number)
    except ValueError:
        rate = math.nan
    _require_share(math.nan if rest else rate, text, what, where)
    return rate


def require_rate(rate: float) -> None:
    """A false-reject rate that can be asked for.

    Raises:
        ConfigError: It lies outside (0, 1).
    """
    _require_share(rate, rate, _RATE, "--false-reject-rate")


def _require_share(share: float, given: str | float, what: str, where: str) -> None:
    if not 0 < share < 1:
        raise ConfigError(
            f"the {what} must lie between 0 and 1",
            where=where,
            given=given,
            expected="for example 0.01, or 1%",
        )


def seconds(text: str | float) -> float:
    """A duration: a number of seconds, or text such as "90s", "5m", "1.5h".

    Raises:
        ConfigError: The text is no positive duration.
    """
    given = text if isinstance(text, str) else f"{float(text):f}s"
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", given.lower())
    if not match or float(match[1]) <= 0:
        raise ConfigError(
            "the time budget is no duration",
            where="--time-budget",
            given=text,
            expected="a number and its unit: 90s, 5m or 1.5h",
        )
    return float(match[1]) * _UNITS[match[2]]
