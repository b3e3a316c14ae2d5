"""A table as Markdown, LaTeX, CSV or HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from html import escape

from flawmap.bench.table import Column, Line, Table, Value
from flawmap.errors import unknown_name
from flawmap.report.style import STYLE

HEAD = ("data", "setting", "method", "encoder", "seeds")
_LABEL = HEAD.index("method")

_NOTHING = "–"

_ABOUT = ("device", "commit", "date")
"""What a row for machines says of where its figures come from."""

_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "–": "--",
}


def render(table: Table, form: str) -> str:
    """The table as text.

    Args:
        table: What `make_table` gave.
        form: "markdown", "latex", "csv" or "html".

    Raises:
        ConfigError: The form is unknown.
    """
    if form not in FORMS:
        raise unknown_name("table format", form, FORMS, where="--format")
    return FORMS[form](table)


def cell(column: Column, value: Value | None) -> str:
    """A figure with its spread, without emphasis.

    Example:
        >>> cell(Column("aupro", "AUPRO", 100), Value(0.9, 0.012))
        '90.00 ± 1.20'
    """
    if value is None or (value.mean is None and value.text is None):
        return _NOTHING
    if value.text is not None:
        return value.text
    assert value.mean is not None
    shown = f"{value.mean * column.scale:,.{column.digits}f}"
    if value.spread is not None:
        shown += f" ± {value.spread * column.scale:.{column.digits}f}"
    return shown


def markdown(table: Table) -> str:
    """GitHub's Markdown; the best in bold, published lines in italics."""
    head = [*HEAD, *(c.title for c in table.columns)]
    rule = ["---"] * len(HEAD) + ["---:"] * len(table.columns)
    rows = []
    for line in table.lines:
        words = [_markdown_text(text) for text in _words(line)]
        if line.source:
            words = [f"*{text}*" if text != _NOTHING else text for text in words]
        if marks := _marks(line, table):
            words[_LABEL] += f"<sup>{marks}</sup>"
        figures = []
        for column in table.columns:
            value = line.values.get(column.name)
            text = cell(column, value)
            figures.append(f"**{text}**" if value is not None and value.best else text)
        rows.append([*words, *figures])
    lines = [f"| {' | '.join(row)} |" for row in ([_markdown_text(h) for h in head], rule, *rows)]
    below = [f"{i}. {_markdown_text(text)}" for i, text in enumerate(table.footnotes, start=1)]
    notes = [f"- {_markdown_text(text)}" for text in table.notes]
    return "\n\n".join("\n".join(part) for part in (lines, below, notes) if part) + "\n"


def latex(table: Table) -> str:
    r"""A table for the package booktabs; the best in \textbf."""
    head = [*HEAD, *(c.title for c in table.columns)]
    rows = []
    previous = ""
    for line in table.lines:
        if previous and line.data != previous:
            rows.append(r"\midrule")
        previous = line.data
        words = [_latex_text(text) for text in _words(line)]
        if marks := _marks(line, table):
            words[_LABEL] += f"\\textsuperscript{{{marks}}}"
        figures = []
        for column in table.columns:
            value = line.values.get(column.name)
            text = _latex_text(cell(column, value))
            figures.append(rf"\textbf{{{text}}}" if value is not None and value.best else text)
        rows.append(" & ".join([*words, *figures]) + r" \\")
    notes = [f"{i}. {text}" for i, text in enumerate(table.footnotes, start=1)] + list(table.notes)
    n = len(head)
    return "\n".join(
        [
            f"% {' '.join(table.title.split())}",
            rf"\begin{{tabular}}{{{'l' * len(HEAD)}{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(_latex_text(text) for text in head) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            *(
                rf"\multicolumn{{{n}}}{{@{{}}p{{0.95\linewidth}}@{{}}}}"
                rf"{{\footnotesize {_latex_text(' '.join(note.split()))}}} \\"
                for note in notes
            ),
            r"\end{tabular}",
            "",
        ]
    )


def comma_separated(table: Table) -> str:
    """For machines: a row a line, means and spreads unrounded in the store's unit (published ones
    as shares), device, commit and date; the notes below a table are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = [f"{c.name}{end}" for c in table.columns for end in ("", "_std")]
    writer.writerow([*HEAD, "source", "complete", *figures, *_ABOUT, "remarks"])
    for line in table.lines:
        row: list[object] = [line.data, line.setting, line.label, line.encoder]
        row += [" ".join(map(str, line.seeds)), line.source, line.source == "" and line.complete]
        for column in table.columns:
            value = line.values.get(column.name, Value(None))
            row += [_plain(value.mean), _plain(value.spread)]
        row += [line.about.get(name, "") for name in _ABOUT]
        official = [c.footnote for c in table.columns if c.footnote]
        writer.writerow([*row, "; ".join([*line.marks, *official])])
    return out.getvalue()


def html(table: Table) -> str:
    """One self-contained page."""
    head = "".join(f"<th>{escape(text)}</th>" for text in HEAD)
    head += "".join(f'<th class="num">{escape(c.title)}</th>' for c in table.columns)
    body = ""
    for line in table.lines:
        words = [escape(text) for text in _words(line)]
        if marks := _marks(line, table):
            words[_LABEL] += f"<sup>{marks}</sup>"
        cells = "".join(f"<td>{text}</td>" for text in words)
        for column in table.columns:
            value = line.values.get(column.name)
            text = escape(cell(column, value))
            best = value is not None and value.best
            cells += f'<td class="num">{f"<strong>{text}</strong>" if best else text}</td>'
        body += f"<tr{' class=quiet' if line.source else ''}>{cells}</tr>"
    footnotes = "".join(f"<li>{escape(text)}</li>" for text in table.footnotes)
    notes = "".join(f"<li>{escape(text)}</li>" for text in table.notes)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(table.title)}</title><style>{STYLE}"
        "main{max-width:none}tr.quiet td{font-style:italic}</style></head><body><main>"
        f'<h1>{escape(table.title)}</h1><section><div class="scroll"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
        f"<ol>{footnotes}</ol><ul>{notes}</ul></section></main></body></html>\n"
    )


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)


FORMS: dict[str, Callable[[Table], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
    "html": html,
}
"""The forms of a table by name."""

ENDINGS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}
"""The form that the name of a file asks for."""


def _words(line: Line) -> list[str]:
    seeds = str(len(line.seeds)) if line.seeds else _NOTHING
    return [line.data, line.setting, line.label, line.encoder or _NOTHING, seeds]


def _marks(line: Line, table: Table) -> str:
    return ",".join(str(1 + table.footnotes.index(mark)) for mark in line.marks)


def _markdown_text(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def aligned(table: Table) -> tuple[Sequence[str], list[list[str]]]:
    """Head and rows as plain text, for a terminal; the best with a mark behind it."""
    rows = []
    for line in table.lines:
        words = _words(line)
        if marks := _marks(line, table):
            words[_LABEL] += f" [{marks}]"
        figures = []
        for column in table.columns:
            value = line.values.get(column.name)
            figures.append(cell(column, value) + (" <" if value is not None and value.best else ""))
        rows.append([*words, *figures])
    return [*HEAD, *(c.title for c in table.columns)], rows
