"""How long marking takes, beside nbgrader's own autograder on the same submissions.

    python benchmarks/grading.py                    200 submissions of five exercises, two workers

The submissions are those of tools/rehearse_term.py: right, blank, hostile, and wrong in every
catalogued way, over and over. `book grade` marks all of them, each in a process of its own that
holds no solution; `nbgrader autograde` executes the notebooks of the first few (--beside) that are
not hostile, one after another as it always does, in kernels without limits. Both are commands as an
instructor types them, start included, and what is compared is seconds per submission.

The result goes to benchmarks/results/grading.json, with the machine named. Needs the extra
`grading`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from unet_step import machine

from ddpm_lite.course.assignment import Assignment
from ddpm_lite.storage import to_json, write_atomically

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from rehearse_term import book, submissions, write  # noqa: E402

EXERCISES = ["3.2", "3.4", "3.5", "3.6", "3.8"]


def hand_in(course, count, hostile):
    """`count` submissions in the course's folder, the same ones in turn."""
    assignment = Assignment.read(course / "private" / "ps1.json")
    made = {
        name: answers
        for name, (answers, _) in submissions(assignment, 1000).items()
        if hostile or not name.startswith("hostile")
    }
    names = list(made)
    for i in range(count):
        name = names[i % len(names)]
        target = course / "submitted" / f"student-{i:03d}" / "ps1" / "ps1.ipynb"
        # nbgrader restores what it handed out, so it must be its own release that comes back
        write(assignment, course / "release" / "ps1" / "ps1.ipynb", made[name], target)


def timed(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def nbgrader(course, *words):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for alembic
    environ = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nbgrader", *words]
    done = subprocess.run(command, cwd=course, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nbgrader {' '.join(words)} failed:\n{done.stderr[-2000:]}")


def course_in(folder):
    """A course with one assignment, released by nbgrader."""
    book("assign", "ps1", "--exercises", *EXERCISES, "--out", folder)
    nbgrader(folder, "generate_assignment", "ps1", "--force")
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--submissions", type=int, default=200)
    parser.add_argument("--beside", type=int, default=20, help="submissions for nbgrader")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/grading.json")
    given = parser.parse_args()
    about = machine(argparse.Namespace(device="cpu"))
    with tempfile.TemporaryDirectory() as place:
        course = course_in(Path(place) / "course")
        seconds = {}
        for name, count, hostile in (
            ("all, hostile ones among them", given.submissions, True),
            ("book grade", given.beside, False),
        ):
            shutil.rmtree(course / "submitted", ignore_errors=True)
            shutil.rmtree(course / "graded", ignore_errors=True)
            hand_in(course, count, hostile)
            words = ["--out", course / "graded", "--workers", given.workers]
            seconds[name] = timed(lambda words=words: book("grade", course / "submitted", *words))
        seconds["nbgrader autograde"] = timed(lambda: nbgrader(course, "autograde", "ps1"))
    each = {
        "all, hostile ones among them": seconds["all, hostile ones among them"] / given.submissions,
        "book grade": seconds["book grade"] / given.beside,
        "nbgrader autograde": seconds["nbgrader autograde"] / given.beside,
    }
    result = {
        "what": "marking submissions of five exercises: book grade beside nbgrader autograde",
        "command": f"python benchmarks/grading.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": about,
        "exercises": EXERCISES,
        "workers": given.workers,
        "submissions": {"all": given.submissions, "beside nbgrader": given.beside},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds per submission": {name: round(value, 2) for name, value in each.items()},
        "book grade / nbgrader": round(each["book grade"] / each["nbgrader autograde"], 3),
    }
    write_atomically(given.out, to_json(result))
    print(to_json(result).decode())


if __name__ == "__main__":
    main()
