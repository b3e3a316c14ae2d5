"""Printing: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from flawmap.wording import shown

if TYPE_CHECKING:
    from flawmap.progress import Progress
    from flawmap.scoring import Threshold


def out(text: str = "") -> None:
    """A line of the result."""
    print(shown(text), file=_results())


def note(text: str) -> None:
    """A line for people, beside the result."""
    print(shown(text), file=sys.stderr, flush=True)


def _results() -> TextIO:
    # While Rich shows a live bar it stands in for standard output, and would send results that go
    # to a file or a pipe to standard error instead.
    proxied: TextIO | None = getattr(sys.stdout, "rich_proxied_file", None)
    return sys.stdout if proxied is None or proxied.isatty() else proxied


def json_out(value: Any) -> None:
    """The whole result as JSON."""
    from flawmap.outputs.records import to_json

    print(to_json(value, indent=2, ascii_only=True), file=_results())


class JsonArray:
    """A JSON array that is written item by item, so that it needs no memory.

    When the work fails after the first item, the error becomes the array's last item: what stands
    on standard output is valid JSON all the same. Before the first item nothing is written, and
    the error stands alone.
    """

    def __init__(self) -> None:
        self._begun = False

    def add(self, item: Any) -> None:
        """Write one item."""
        from flawmap.outputs.records import to_json

        text = (",\n" if self._begun else "[") + to_json(item, ascii_only=True)
        print(text, end="", file=_results())
        self._begun = True

    def __enter__(self) -> JsonArray:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, BrokenPipeError):
            return
        if error is None:
            print("]" if self._begun else "[]", file=_results())
        elif self._begun:
            from flawmap.cli.errors import as_dict, remember_reported

            self.add(as_dict(error))
            print("]", file=_results())
            remember_reported(error)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """A table: Rich's on a terminal, aligned columns elsewhere.

    Args:
        head: Names of the columns.
        rows: Cells.
        text_columns: How many columns, from the left, are text; the others are figures.
    """
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table()
        for index, name in enumerate(head):
            drawn.add_column(name, justify="left" if index < text_columns else "right")
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        Console().print(drawn)
        return
    whole = [head, *rows]
    widths = [max(len(row[i]) for row in whole) for i in range(len(head))]
    for row in whole:
        cells = [
            cell.ljust(widths[i]) if i < text_columns else cell.rjust(widths[i])
            for i, cell in enumerate(row)
        ]
        out("  ".join(cells).rstrip())


def progress(quiet: bool) -> Progress:
    """Where a command shows its progress."""
    from flawmap.progress import Quiet, default_progress

    return Quiet() if quiet else default_progress()


def number(value: float | None) -> str:
    """A figure, or a dash for one that is undefined."""
    return "-" if value is None or value != value else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None or value != value else f"{value:.2%}"


def size(n: float) -> str:
    """Bytes for people.

    Example:
        >>> size(4_200_000)
        '4.2 MB'
    """
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def promise(threshold: Threshold | None, why: str = "") -> str:
    """A threshold in one line, or how to get one."""
    if threshold is None:
        because = f": {why}" if why else ""
        return f"no threshold{because}; flawmap calibrate MODEL GOOD_IMAGES sets one"
    return f"{threshold.value:.4g}; {threshold.explain()}"


def command(*words: object) -> str:
    """A command that can be pasted into a shell."""
    import shlex

    return "flawmap " + shlex.join(str(word) for word in words)
