"""Every equation has something behind it, and every fault planted in the tiny book is found."""

from types import SimpleNamespace

import pytest
import tiny_book

from ddpm_lite.book import equations, manifest

SECOND = r"""
# %% [markdown]
# And once more,
#
# $$
# a + b - b = a .
# \tag{3.2}
# $$

# %%
claim("3.2", a + b - b, min(a, b))
"""


@pytest.fixture
def book(tmp_path):
    return tiny_book.make(tmp_path / "book", tiny_book.CHAPTER + SECOND)


def problems(book):
    return equations.problems(equations.read_book(book))


def plant(book, old, new):
    tiny_book.edit(book.chapters[0].source, old, new)
    return problems(book)


def add(book, cell):
    source = book.chapters[0].source
    source.write_text(source.read_text(encoding="utf-8") + cell, encoding="utf-8")
    return problems(book)


def only(found, complaint):
    """There is one problem, it says `complaint`, and it names file and line."""
    assert len(found) == 1, found
    assert complaint in found[0]
    assert found[0].startswith("03_tiny.py:")
    return int(found[0].split(":")[1])


def test_reads_the_tiny_book(book):
    (reading,) = equations.read_book(book)
    assert problems(book) == []
    assert [(e.number, e.section) for e in reading.numbered] == [
        ("3.1", "3.1 A sum"),
        ("3.2", "3.1 A sum"),
    ]
    assert [c.equation for c in reading.claims] == ["3.1", "3.2"]
    assert [number for number, _ in reading.references] == ["3.1"]
    lines = book.chapters[0].source.read_text(encoding="utf-8").splitlines()
    assert lines[reading.numbered[0].line - 1] == r"# \tag{3.1}"
    assert lines[reading.claims[1].line - 1].startswith('claim("3.2"')


def test_an_equation_with_nothing_behind_it(book):
    found = plant(book, 'claim("3.2", a + b - b, min(a, b))', "print(a)")
    line = only(found, "nothing stands behind (3.2): no claim and no exercise")
    assert "3.2" in book.chapters[0].source.read_text(encoding="utf-8").splitlines()[line - 1]


def test_an_exercise_may_stand_behind_an_equation(book, monkeypatch):
    exercise = SimpleNamespace(
        id="3.1", equation="3.2", hints=("see (3.1)",), wrong={}, rubric=(), reference=abs
    )
    monkeypatch.setattr(manifest, "known_exercises", lambda: {"3.1": exercise})
    tiny_book.edit(book.root / "book.toml", "seconds = 20", 'seconds = 20\nexercises = ["3.1"]')
    book = manifest.load(book.root)
    assert plant(book, 'claim("3.2", a + b - b, min(a, b))', "print(a)") == []
    exercise.equation = "3.9"
    assert any("exercise 3.1 is about (3.9)" in problem for problem in problems(book))
    exercise.equation, exercise.wrong = "3.2", {"x": (abs, "No: see (3.7).")}
    assert problems(book) == [
        "exercise 3.1: its hints or answers refer to (3.7), which is nowhere in the book"
    ]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            'claim("3.2", a',
            'claim("3.3", a',
            "claim of (3.3), which is no equation of this chapter",
        ),
        (
            'claim("3.2", a',
            'claim("2.1", a',
            "claim of (2.1), which is no equation of this chapter",
        ),
    ],
)
def test_an_orphan_claim(book, old, new, complaint):
    assert any(complaint in problem for problem in plant(book, old, new))


@pytest.mark.parametrize("name", ["NUMBER", 'f"3.{2}"', '"3." + "2"'])
def test_a_claim_must_name_its_equation_by_a_literal(book, name):
    found = plant(book, 'claim("3.2", a + b', f"claim({name}, a + b")
    assert any("must name its equation by a literal" in problem for problem in found)


@pytest.mark.parametrize(
    ("tag", "complaint"),
    [
        ("3.1", "(3.1) is given to two equations"),
        ("3.4", "(3.4) is out of order: (3.2) is next"),
        ("2.2", "(2.2) is no equation number of chapter 3"),
        ("3.2a", "(3.2a) is no equation number of chapter 3"),
    ],
)
def test_tags_count_up_by_one(book, tag, complaint):
    tiny_book.edit(book.chapters[0].source, 'claim("3.2"', f'claim("{tag}"')
    only(plant(book, r"\tag{3.2}", rf"\tag{{{tag}}}"), complaint)


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("see (3.8)", ["3.8"]),
        ("see (3.1), (3.8) and (T.4)", ["3.8", "T.4"]),
        ("by (3.1, 3.8)", ["3.8"]),
        ("from (3.1)–(3.8)", ["3.8"]),
        ("in [(9.3)](#3.1-A-sum)", ["9.3"]),
        (r"$a \overset{(3.8)}{=} b$", ["3.8"]),
        (r"$a = b \text{ by (3.8)}$", ["3.8"]),
        ("with probability (0.5), $f(3.8)$, f(3.8), `x(3.8)`, section 3.8, (3.0), (v3.8)", []),
        ("the interval $(1.5, 2.5)$, the model of (2.75 GB), and (3.10.2)", []),
    ],
)
def test_references_to_what_does_not_exist(book, sentence, wrong):
    found = plant(book, "And once more,", sentence)
    assert [p.split("refers to ")[1].split(")")[0].strip("(") for p in found] == wrong


def test_references_in_comments_count_and_strings_do_not(book):
    found = add(book, '\n# %%\nprint("(3.9)")  # two steps of (3.8)\n')
    only(found, "refers to (3.8)")


@pytest.mark.parametrize(
    ("code", "same"),
    [
        ("claim('3.2', a, a)", True),
        ("claim('3.2', a + b, b + a)", False),
        ("claim('3.2', left=min(a, b), right=min(a, b))", True),
        ("c = a\nclaim('3.2', c, a)", True),
        ("c = min(a, b)\nd = min(a, b)\nclaim('3.2', c, d)", True),
        ("c = min(a, b)\nclaim('3.2', float(c), c.item())", True),
        ("c, d = min(a, b), max(a, b)\nclaim('3.2', c, min(a, b))", True),
        ("c, d = divmod(a, b)\nclaim('3.2', c, d)", False),
        ("c, d = divmod(a, b)\nclaim('3.2', d, divmod(a, b)[1])", True),
        ("c = a\nc = 2 * c\nclaim('3.2', c, a)", False),
        ("c = a\nfor _ in range(3):\n    c = c / 2\nclaim('3.2', c, a)", False),
        ("for c in (a, b):\n    claim('3.2', c, c)", True),
        ("c, d = [], []\nc.append(a)\nd.append(b)\nclaim('3.2', c, d)", False),
        ("c = torch.zeros(2)\nd = torch.zeros(2)\nc[0] = 1\nclaim('3.2', c, d)", False),
        ("c = torch.tensor(a)\nclaim('3.2', c, a)", True),
        ("claim('3.2', 2 * 0.25, 2.0 * 0.25)", True),
    ],
)
def test_a_claim_of_a_thing_with_itself(book, code, same):
    found = add(book, f"\n# %%\n{code}\n")
    if same:
        only(found, "claim of (3.2): both sides are the same expression")
    else:
        assert found == []


def test_at_most_a_fifth_of_the_displays_may_go_without_number(book):
    found = add(book, "\n# %% [markdown]\n# $$ a = a $$\n")
    assert len(found) == 1
    assert "1 of 3 displayed equations have no number (at most a fifth may)" in found[0]
    numbered = "".join(
        f'\n# %% [markdown]\n# $$ a < {n} \\tag{{3.{n}}} $$\n\n# %%\nclaim("3.{n}", a, {n})\n'
        for n in (3, 4)
    )
    assert add(book, numbered) == []  # 1 of 5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (r"\[ a = b \]", r"\[ outside $$"),
        (r"\begin{align} a = b \end{align}", r"\begin{align} outside $$"),
        (r"$a = b \tag{3.3}$", r"\tag{3.3} stands outside $$"),
        ("$$ a = b", "a $$ without its partner"),
    ],
)
def test_displays_that_the_checks_would_not_see(book, text, complaint):
    found = add(book, f"\n# %% [markdown]\n# {text}\n")
    assert any(complaint in problem for problem in found)


def test_code_in_the_text_is_no_equation(book):
    assert add(book, '\n# %% [markdown]\n# Write `$$ a \\tag{3.9} $$` and `claim("3.9")`.\n') == []


def test_a_cell_that_is_no_python_is_named(book):
    found = add(book, "\n# %%\nif a:\n")
    assert any("not Python" in problem for problem in found)
