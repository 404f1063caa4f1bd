"""What the tests of the course share: assignments, and known answers as a student's cells."""

from ddpm_lite.course.answers import answer_source
from ddpm_lite.course.assignment import Assignment, Task
from ddpm_lite.exercises import all_exercises, find

MARKED = [exercise for exercise in all_exercises() if exercise.kind != "explain"]


def assignment(*ids, name="ps1", points=None):
    tasks = tuple(Task(id, points or find(id).points) for id in ids)
    return Assignment(name=name, tasks=tasks, seed=5)


def right(*ids):
    """{id: the text of a right answer}."""
    return {id: answer_source(find(id), find(id).reference) for id in ids}


def wrong(id, name):
    """The text of a catalogued wrong answer."""
    return answer_source(find(id), find(id).wrong[name][0])
