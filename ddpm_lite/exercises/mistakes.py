"""The general mistakes: the slips that every chapter invites, under one name each.

Where a mistake follows mechanically from the right answer, a function here makes the wrong answer
from the reference. Each returns one entry of an exercise's ``wrong``:

    wrong={
        **variance_as_std(three_steps, value=1, see="3.6"),
        **known("shared-noise", one_noise_for_all, "Standard deviations do not add, see (3.4)."),
        "my-own-name": (a_function, "What to say."),
    }

The wrong answers have the reference's signature. ``value`` numbers the reference's values from 0,
and is left out where there is only one; ``see`` is the number of an equation.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

Answer = Callable[..., Any]
Entry = dict[str, tuple[Any, str]]

MESSAGES = {
    "root-dropped": "A factor multiplies the variable, so it carries a square root, see ({see}).",
    "variance-as-std": "That is the square root of the variance, see ({see}).",
    "std-as-variance": "That is the square of the standard deviation, see ({see}).",
    "one-step-late": "Your t is one too large. t runs from 0, which is clean data, to T.",
    "one-step-early": "Your t is one too small. t runs from 0, which is clean data, to T.",
    "alpha-for-alpha-bar": "You used one step's α_t where ᾱ_t, the product, belongs, see ({see}).",
    "alpha-bar-for-alpha": "You used ᾱ_t, the product, where one step's α_t belongs, see ({see}).",
    "sum-for-mean": "You summed where ({see}) takes the mean.",
    "noise-at-the-last-step": "The step to s = 0 adds no noise: its variance is zero, see ({see}).",
    "stale-eps": "You clipped x̂_0 but kept the old ε; they no longer fit, see ({see}).",
    "beta-for-beta-tilde": "You used β_t where the posterior's variance β̃_t belongs, see ({see}).",
    "beta-tilde-for-beta": "You used the posterior's variance β̃_t where β_t belongs, see ({see}).",
    "guidance-sign": "Guidance leads from the unconditional towards the conditional, see ({see}).",
}


def known(name: str, answer: Any, message: str = "", *, see: str = "") -> Entry:
    """A general mistake that the author wrote out; without a message, the catalogue's is used."""
    if name not in MESSAGES:
        raise ValueError(f"{name!r} is no general mistake; give it as a plain entry instead.")
    return {name: (answer, message or MESSAGES[name].format(see=see))}


def root_dropped(reference: Answer, *, value: int | None = None, see: str) -> Entry:
    """The value squared: its square root was forgotten."""
    return known("root-dropped", _on_value(reference, value, lambda x: x**2), see=see)


def variance_as_std(reference: Answer, *, value: int | None = None, see: str) -> Entry:
    """The square root of a variance, where the variance was asked for."""
    return known("variance-as-std", _on_value(reference, value, lambda x: x**0.5), see=see)


def std_as_variance(reference: Answer, *, value: int | None = None, see: str) -> Entry:
    """The square of a standard deviation, where the standard deviation was asked for."""
    return known("std-as-variance", _on_value(reference, value, lambda x: x**2), see=see)


def off_by_one(reference: Answer, *, argument: str = "t") -> Entry:
    """``t + 1`` in the place of ``t`` and the reverse; past the end it raises, as the slip does."""
    return known("one-step-late", _shifted(reference, argument, 1)) | known(
        "one-step-early", _shifted(reference, argument, -1)
    )


def _on_value(reference: Answer, value: int | None, change: Callable[[Any], Any]) -> Answer:
    """The reference with one of its values changed."""

    @functools.wraps(reference)
    def answer(*arguments: Any) -> Any:
        values = reference(*arguments)
        if value is None:
            return change(values)
        return tuple(change(x) if place == value else x for place, x in enumerate(values))

    return answer


def _shifted(reference: Answer, argument: str, by: int) -> Answer:
    """The reference with one of its arguments shifted."""
    place = list(inspect.signature(reference).parameters).index(argument)

    @functools.wraps(reference)
    def answer(*arguments: Any) -> Any:
        shifted = list(arguments)
        shifted[place] += by
        return reference(*shifted)

    return answer
