"""What a class has misunderstood: which mistakes, in which exercise, how many students.

For the instructor, and without names: as a table, as a picture and as CSV, what should be taught
again first.
"""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from ddpm_lite.course.assignment import Assignment
from ddpm_lite.course.feedback import page, words
from ddpm_lite.course.gradebook import Result, table
from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, figure, use_book_style

KINDS = {  # in the order of the picture's bars
    "right": ("right", GREEN),
    "named": ("a known mistake", VERMILLION),
    "wrong": ("another mistake", ORANGE),
    "trouble": ("nothing to compare", PURPLE),
    "blank": ("not attempted", GREY),
    "person": ("for a person", BLUE),
}


@dataclass(frozen=True)
class Summary:
    """One exercise in a class."""

    exercise: Exercise
    kinds: Counter[str]
    mistakes: Counter[str]

    @property
    def marked(self) -> int:
        """How many have attempted it, as far as that was marked here."""
        return sum(self.kinds[kind] for kind in ("right", "named", "wrong", "trouble"))

    @property
    def trouble(self) -> float:
        """The share of those who attempted it and are not right: what to teach again."""
        return 1 - self.kinds["right"] / self.marked if self.marked else 0.0


def summaries(assignment: Assignment, results: Sequence[Result]) -> list[Summary]:
    """All exercises, those with which most have trouble first."""
    found = []
    for task in assignment.tasks:
        marks = [mark for one in results for mark in one.marks if mark.id == task.id]
        kinds = Counter("named" if mark.mistake else mark.status for mark in marks)
        mistakes = Counter(mark.mistake for mark in marks if mark.mistake)
        found.append(Summary(assignment.exercise(task.id), kinds, mistakes))
    return sorted(found, key=lambda summary: -summary.trouble)


def as_csv(found: Sequence[Summary]) -> str:
    """One row for each mistake and each other outcome."""
    rows = [["exercise", "outcome", "students", "message"]]
    for summary in found:
        id = summary.exercise.id
        for name, count in summary.mistakes.most_common():
            rows.append([id, name, str(count), summary.exercise.wrong[name][1]])
        for kind, (said, _) in KINDS.items():
            if kind != "named" and summary.kinds[kind]:
                rows.append([id, said, str(summary.kinds[kind]), ""])
    return table(rows)


def picture(found: Sequence[Summary]) -> bytes:
    """A bar for each exercise, in pieces by what became of the answers; PNG."""
    use_book_style()
    fig, ax = figure(row_height=0.9 + 0.32 * len(found))
    names = [f"{summary.exercise.id}" for summary in found]
    left = [0] * len(found)
    for kind, (said, colour) in KINDS.items():
        counts = [summary.kinds[kind] for summary in found]
        if any(counts):
            ax.barh(names, counts, left=left, color=colour, label=said)
            left = [a + b for a, b in zip(left, counts, strict=True)]
    ax.invert_yaxis()
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="students", ylabel="exercise")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, frameon=False)
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    return file.getvalue()


def report(assignment: Assignment, results: Sequence[Result], image: bytes) -> str:
    """The page for the instructor."""
    found = summaries(assignment, results)
    told = ", ".join(
        f"{summary.exercise.id} ({summary.trouble:.0%} of {summary.marked})"
        for summary in found
        if summary.trouble >= 0.3
    )
    alternative = "; ".join(
        f"exercise {s.exercise.id}: "
        + ", ".join(f"{s.kinds[kind]} {KINDS[kind][0]}" for kind in KINDS if s.kinds[kind])
        for s in found
    )
    encoded = base64.b64encode(image).decode()
    body = [
        f"<h1>{html.escape(assignment.name)}: what to teach again</h1>",
        f"<p>{len(results)} submissions. Not right, of those who tried, at least three in ten: "
        f"<strong>{html.escape(told or 'none')}</strong>.</p>",
        f'<p><img alt="{html.escape(alternative)}" style="max-width:100%" '
        f'src="data:image/png;base64,{encoded}"></p>',
        *(_part(summary) for summary in found),
    ]
    return page(f"{assignment.name}: misconceptions", body)


def _part(summary: Summary) -> str:
    exercise, kinds = summary.exercise, summary.kinds
    rows = [
        (count, f"{exercise.wrong[name][1]} ({name})")
        for name, count in summary.mistakes.most_common()
    ]
    rows += [(kinds[kind], KINDS[kind][0]) for kind in KINDS if kind != "named"]
    lines = [
        f'<tr><td class="number">{count}</td><td>{words(text)}</td></tr>'
        for count, text in rows
        if count
    ]
    head = f"{exercise.id}: {exercise.title}, equation ({exercise.equation})"
    return f"<section><h2>{html.escape(head)}</h2><table>{''.join(lines)}</table></section>"
