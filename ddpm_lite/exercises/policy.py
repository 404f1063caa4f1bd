"""Whether hints and solutions may be shown: always in the book, in an assignment as it says.

An assignment's first cell calls ``obey``. It is a rule of the house, not a lock: who has the book
has its solutions.
"""

from __future__ import annotations

import datetime

OPEN, SHUT = "on", "off"

_rules = {"hints": OPEN, "solutions": OPEN}


def obey(*, hints: str = OPEN, solutions: str = OPEN) -> None:
    """Show hints and solutions always ("on"), never ("off"), or from an ISO date on.

    Raises ValueError for anything else, and then nothing has changed.
    """
    asked = {"hints": hints, "solutions": solutions}
    for name, rule in asked.items():
        check_rule(name, rule)
    _rules.update(asked)


def check_rule(name: str, rule: str) -> None:
    """ValueError unless a rule is "on", "off" or a date."""
    if rule not in (OPEN, SHUT):
        try:
            datetime.date.fromisoformat(rule)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} is {rule!r}; allowed are 'on', 'off' or a date such as '2026-12-15'."
            ) from None


def closed(name: str) -> str:
    """Why ``name``, hints or solutions, may not be shown now; empty if they may."""
    rule = _rules[name]
    if rule == OPEN:
        return ""
    if rule == SHUT:
        return f"In this assignment {name} are off."
    day = datetime.date.fromisoformat(rule)
    if datetime.date.today() >= day:
        return ""
    return f"In this assignment {name} open on {day.day} {day:%B %Y}."
