"""Words for people: names that can be printed, lists cut short, numbers with their nouns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context

_UP = Context(prec=3, rounding=ROUND_CEILING)


def shown(path: str | os.PathLike[str]) -> str:
    """A path that can be printed: bytes that are no UTF-8 are shown as a replacement mark."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def listed(lines: Sequence[str], limit: int = 20) -> str:
    """The first `limit` lines, one below the other, and how many more there are."""
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(f"  {line}" for line in [*lines[:limit], *more])


def few(names: Sequence[str], limit: int = 5) -> str:
    """The first `limit` names in one line, and how many more there are.

    Example:
        >>> few(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def precision_word(name: str) -> str:
    """A precision for people.

    Example:
        >>> precision_word("32-true")
        'float32'
    """
    return {"32-true": "float32", "bf16-mixed": "bfloat16"}.get(name, name)


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "defect"), counted(1200, "category", "categories")
        ('1 defect', '1,200 categories')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def at_most(share: float) -> str:
    """A bound in percent with three digits, rounded up: what is shown promises no more than it.

    Args:
        share: In 0..1.

    Example:
        >>> at_most(0.01), at_most(1 / 121), at_most(0.010276), at_most(1.0)
        ('1%', '0.827%', '1.03%', '100%')
    """
    # Less by what floats may add: 1 - 99 / 100 is a little above 0.01.
    rounded = _UP.create_decimal_from_float(100 * share * (1 - 1e-9))
    return f"{rounded.normalize():f}%"
