"""Quantities as people write them: shares and durations."""

from __future__ import annotations

import math
import re

from flawmap.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def rate_of(text: str) -> float:
    """A false-reject rate as people write it: 0.01 or 1%.

    Raises:
        ConfigError: It is no number, or lies outside (0, 1).
    """
    number, percent, rest = text.strip().partition("%")
    try:
        rate = float(number) / 100 if percent else float(number)
    except ValueError:
        rate = math.nan
    require_rate(math.nan if rest else rate, text)
    return rate


def require_rate(rate: float, given: str | float | None = None) -> None:
    """A false-reject rate that can be asked for.

    Args:
        rate: The share of good parts.
        given: What somebody wrote, where it differs.

    Raises:
        ConfigError: It lies outside (0, 1).
    """
    if not 0 < rate < 1:
        raise ConfigError(
            "the false-reject rate must lie between 0 and 1",
            where="--false-reject-rate",
            given=rate if given is None else given,
            expected="for example 0.01, or 1%",
        )


def seconds(text: str | float) -> float:
    """A duration: a number of seconds, or text such as "90s", "5m", "1.5h".

    Raises:
        ConfigError: The text is no positive duration.
    """
    given = f"{text}s" if isinstance(text, int | float) else text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", given.lower())
    if not match or float(match[1]) <= 0:
        raise ConfigError(
            "the time budget is no duration",
            where="--time-budget",
            given=text,
            expected="a number and its unit: 90s, 5m or 1.5h",
        )
    return float(match[1]) * _UNITS[match[2]]
