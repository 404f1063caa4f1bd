"""What the reader sees: the same words as a box in a notebook and as lines in a terminal."""

from __future__ import annotations

import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass

MARKS = {
    "right": "✓",
    "done": "✓",
    "wrong": "✗",
    "attempted": "✗",
    "blank": "○",
    "noted": "✎",
    "hint": "•",
}
# Okabe and Ito's colours: distinct to colour-blind readers, visible on white and on black.
COLOURS = {
    "right": "#009E73",
    "wrong": "#D55E00",
    "blank": "#888888",
    "noted": "#0072B2",
    "hint": "#0072B2",
}


@dataclass(frozen=True)
class Row:
    """One line of a table: a label, a text at its right, and a mark before it."""

    label: str
    text: str
    mark: str = ""
    heading: bool = False


@dataclass(frozen=True)
class Box:
    """A heading with a mark, sentences, and perhaps a table or a piece of code."""

    tone: str
    title: str
    lines: Sequence[str] = ()
    rows: Sequence[Row] = ()
    code: str = ""


def show(box: Box) -> None:
    """Display a box: HTML beside plain text in a notebook, the plain text printed elsewhere."""
    if _in_notebook():
        from IPython.display import display

        display({"text/plain": as_text(box), "text/html": as_html(box)}, raw=True)
    else:
        print(as_text(box))


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel; IPython is not imported to find out."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def as_text(box: Box) -> str:
    """The box as lines of plain text."""
    lines = [f"{MARKS[box.tone]} {box.title}", *(f"  {line}" for line in box.lines)]
    width = max((len(row.label) for row in box.rows), default=0)
    for row in box.rows:
        mark = " " if row.heading else MARKS[row.mark]
        lines.append(f"  {mark} {row.label:<{width}}  {row.text}")
    lines += [f"    {line}".rstrip() for line in box.code.splitlines()]
    return "\n".join(lines)


def as_html(box: Box) -> str:
    """The box as HTML that takes its text colour from the page, be it light or dark."""
    colour = COLOURS[box.tone]
    mark = f'<span style="color:{colour}">{MARKS[box.tone]}</span>'
    parts = [f"<b>{mark} {html.escape(box.title)}</b>"]
    parts += [f'<div style="margin-top:0.3em">{html.escape(line)}</div>' for line in box.lines]
    if box.rows:
        rows = "".join(map(_html_row, box.rows))
        parts.append(f'<table style="margin:0.4em 0 0 0">{rows}</table>')
    if box.code:
        parts.append(f'<pre style="margin:0.5em 0 0 0">{html.escape(box.code)}</pre>')
    style = (
        f"border-left:4px solid {colour};padding:0.4em 0.8em;margin:0.3em 0;"
        "background:rgba(128,128,128,0.08)"
    )
    return f'<div style="{style}">{"".join(parts)}</div>'


def _html_row(row: Row) -> str:
    cells = ["" if row.heading else MARKS[row.mark], html.escape(row.label), html.escape(row.text)]
    if row.heading:
        cells = [f"<b>{cell}</b>" for cell in cells]
    open_cell = '<td style="text-align:left;padding:0.1em 1em 0.1em 0">'
    return f"<tr>{''.join(f'{open_cell}{cell}</td>' for cell in cells)}</tr>"
