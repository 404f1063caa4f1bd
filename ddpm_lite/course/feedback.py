"""One page for each student: points, the named mistake, and the equation to look at.

A page is one file without a script and without a request to anywhere. All that comes from a student
is escaped, and nothing of the hidden inputs is known here.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable

from ddpm_lite.course.assignment import Assignment, Task
from ddpm_lite.course.gradebook import Result
from ddpm_lite.course.marking import Mark

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0; }
section { border-left: 5px solid #999; padding: .2rem 0 .2rem .9rem; margin: 1.4rem 0; }
.right { border-color: #009E73; } .wrong, .trouble { border-color: #D55E00; }
.blank { border-color: #999; } .person { border-color: #0072B2; }
.points { float: right; font-variant-numeric: tabular-nums; }
p { margin: .4rem 0; }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; color: #555; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .3rem .5rem; text-align: left; border-bottom: 1px solid #ddd;
  vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
@media print { details { display: none; } section { break-inside: avoid; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SAID = {
    "right": "✓ Right.",
    "wrong": "✗ Not right yet.",
    "trouble": "✗ There was nothing to compare.",
    "blank": "○ Not attempted.",
    "person": "… A person marks this.",
}


def words(line: str) -> str:
    """A sentence of the book as HTML: *stress* is the only mark-up that the messages have."""
    return re.sub(r"\*(\w[\w\s-]*)\*", r"<em>\1</em>", html.escape(line))


def page(title: str, body: Iterable[str]) -> str:
    """A page of its own, around parts that are HTML already."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def feedback(assignment: Assignment, result: Result) -> str:
    """A student's page."""
    marks = {mark.id: mark for mark in result.marks}
    known = [result.points(task.id) for task in assignment.tasks]
    total = sum(points for points in known if points is not None)
    open_points = sum(t.points for t in assignment.tasks if result.points(t.id) is None)
    later = f"; {open_points} points wait for a person" if open_points else ""
    title = f"{assignment.name}: {result.student}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><strong>{total:g} of {assignment.points} points</strong>{later}.</p>",
    ]
    body += [_section(assignment, task, result, marks.get(task.id)) for task in assignment.tasks]
    return page(title, body)


def _section(assignment: Assignment, task: Task, result: Result, mark: Mark | None) -> str:
    exercise = assignment.exercise(task.id)
    points, hand = result.points(task.id), result.by_hand.get(task.id)
    status = mark.status if mark else "person"
    if task.id in result.submission.person:
        status = "person"
    lines = list(mark.lines) if mark and status in ("wrong", "trouble") else []
    said = SAID[status]
    if hand:
        said, lines = "… Marked by a person.", [hand.comment] if hand.comment else []
    shown = "–" if points is None else f"{points:g}"
    text = result.submission.answers.get(task.id) or result.submission.texts.get(task.id) or ""
    answer = (
        f"<details><summary>Your answer</summary><pre>{html.escape(text)}</pre></details>"
        if text.strip()
        else ""
    )
    return (
        f'<section class="{status}"><span class="points">{shown} of {task.points}</span>'
        f"<h2>Exercise {exercise.id}: {html.escape(exercise.title)}</h2><p>{said}</p>"
        + "".join(f"<p>{words(line)}</p>" for line in lines)
        + f"{answer}</section>"
    )


def file_name(student: str) -> str:
    """A safe name for a student's page; names that differ get names that differ."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", student)[:60].strip("_")
    if safe == student:
        return f"{safe}.html"
    mark = hashlib.sha256(student.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe or 'student'}-{mark}.html"
