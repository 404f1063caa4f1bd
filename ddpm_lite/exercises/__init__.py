"""Exercises: ``check`` an answer, get a ``hint``, see a ``solution``, look at your ``progress``."""

from ddpm_lite.exercises.engine import check, hint, progress, solution
from ddpm_lite.exercises.exercise import Exercise, all_exercises, find, register
from ddpm_lite.exercises.policy import obey

__all__ = [
    "Exercise",
    "all_exercises",
    "check",
    "find",
    "hint",
    "obey",
    "progress",
    "register",
    "solution",
]
