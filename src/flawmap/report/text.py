"""Numbers and names as HTML text."""

from __future__ import annotations

import html
import math
import re
from pathlib import PurePath

# Control characters and lone surrogates may stand in file names, but not in an HTML file.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def esc(value: object) -> str:
    """Text that is safe in HTML content and in quoted attributes."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True)


def name(value: object) -> str:
    """A user's name for something: escaped, and kept from turning the text around it."""
    return f"<bdi>{esc(value)}</bdi>"


def percent(value: float) -> str:
    """A share in 0..1 in percent with one decimal, without the sign.

    What is not perfect is never rounded to perfect.

    Example:
        >>> percent(0.9876), percent(0.9999), percent(1.0), percent(0.0002)
        ('98.8', '>99.9', '100.0', '<0.1')
    """
    if 0.9995 <= value < 1:
        return ">99.9"
    if 0 < value < 0.0005:
        return "<0.1"
    return f"{100 * value:.1f}"


def number(value: float, digits: int = 4) -> str:
    """A score with four significant digits, or more where asked.

    Example:
        >>> number(3.14159), number(12345.6), number(0.00001234)
        ('3.142', '12346', '1.234e-05')
    """
    if not math.isfinite(value):
        return str(value)
    if digits == 4 and 1000 <= abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def told_apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to see which one is larger.

    Example:
        >>> told_apart(0.43701, 0.43704), told_apart(2.0, 2.0)
        (('0.43701', '0.43704'), ('2', '2'))
    """
    for digits in (4, 5, 7, 10, 17):
        if a == b or number(a, digits) != number(b, digits):
            break
    return number(a, digits), number(b, digits)


def short_path(path: str, root: str) -> str:
    """A file's name below the data's root, or its last three parts when it lies elsewhere."""
    pure = PurePath(path)
    try:
        return pure.relative_to(root).as_posix()
    except ValueError:
        return "/".join(pure.parts[-3:]) if pure.is_absolute() else pure.as_posix()
