"""The text of a known answer, cut out of the book so that it stands alone in a notebook's cell.

An answer in ``ddpm_lite.exercises`` leans on its module: imports, helpers, other answers, and where
a general mistake was made from the reference, on the function that made it. Here all that it uses
is gathered, in an order in which it can be executed.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
from types import CodeType, FunctionType
from typing import Any

from ddpm_lite.course.assignment import answer_name
from ddpm_lite.exercises.exercise import Exercise


def answer_source(exercise: Exercise, answer: Any) -> str:
    """Self-contained text that defines ``answer_name(exercise)`` as a known answer does.

    ``answer`` is the reference or one of the wrong answers; for a number, the number.
    """
    name = answer_name(exercise)
    if not isinstance(answer, FunctionType):
        return f"{name} = {answer!r}\n"
    return "\n\n\n".join(_definition(name, answer)) + "\n"


def _definition(name: str, function: FunctionType) -> list[str]:
    """The statements that define a function under a name, what it uses first."""
    before: list[str] = []
    renamed: dict[str, ast.expr] = {}
    for variable, value in inspect.getclosurevars(function).nonlocals.items():
        if isinstance(value, FunctionType):  # what a maker of mistakes holds on to
            before += _definition(f"_{variable}", value)
        else:
            before.append(f"_{variable} = {value!r}")
        renamed[variable] = ast.Name(f"_{variable}")
    node = _node(function)
    module = {} if renamed else _top_level(function.__code__.co_filename)
    used = _used(node, module)
    if isinstance(node, ast.FunctionDef):
        renamed[node.name] = ast.Name(name)
        used.pop(node.name, None)
    if name in used:  # a wrong answer that calls the right one
        renamed[name] = ast.Name(f"_right_{name}")
    change = _Rename(renamed)
    before += [ast.unparse(change.visit(ast.parse(text))) for text in used.values()]
    if isinstance(node, ast.Lambda):
        return [*before, f"{name} = {ast.unparse(change.visit(node))}"]
    return [*before, ast.unparse(_bare(change.visit(node), name))]


def _bare(node: ast.FunctionDef, name: str) -> ast.FunctionDef:
    """A function without decorators, annotations and doc-string, as a student would write it."""
    node.name, node.decorator_list, node.returns = name, [], None
    for argument in [*node.args.args, *filter(None, [node.args.vararg])]:
        argument.annotation = None
    if ast.get_docstring(node) is not None:
        del node.body[0]
    return node


def _node(function: FunctionType) -> ast.FunctionDef | ast.Lambda:
    """A copy of the piece of syntax that a function was made from."""
    code = function.__code__
    for node in ast.walk(_tree(code.co_filename)):
        if isinstance(node, ast.FunctionDef | ast.Lambda) and _makes(node, code):
            return copy.deepcopy(node)
    raise LookupError(f"{function} is not in {code.co_filename}")


def _makes(node: ast.FunctionDef | ast.Lambda, code: CodeType) -> bool:
    """Several lambdas may begin on one line: where their code stands tells them apart."""
    if isinstance(node, ast.FunctionDef):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        return (node.name, first) == (code.co_name, code.co_firstlineno)
    if (code.co_name, code.co_firstlineno) != ("<lambda>", node.lineno):
        return False
    spans = [place for place in code.co_positions() if None not in place and place[2] != place[3]]
    return all(
        (node.lineno, node.col_offset) <= (line, start)
        and (end, stop) <= (node.end_lineno, node.end_col_offset)
        for line, end, start, stop in spans
    )


@functools.cache
def _tree(path: str) -> ast.Module:
    with open(path, encoding="utf-8") as file:
        return ast.parse(file.read())


@functools.cache
def _top_level(path: str) -> dict[str, str]:
    """What a module defines by name, as text, in its own order."""
    found = {}
    for statement in _tree(path).body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                one = copy.copy(statement)
                one.names = [alias]
                found[(alias.asname or alias.name).partition(".")[0]] = ast.unparse(one)
        elif isinstance(statement, ast.FunctionDef):
            found[statement.name] = ast.unparse(_bare(copy.deepcopy(statement), statement.name))
        elif isinstance(statement, ast.ClassDef):
            found[statement.name] = ast.unparse(statement)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = ast.unparse(statement)
    return found


def _used(node: ast.AST, module: dict[str, str]) -> dict[str, str]:
    """Everything of the module that a piece of it uses, directly or not, in the module's order."""
    waiting, names = [node], set()
    while waiting:
        for part in ast.walk(waiting.pop()):
            if isinstance(part, ast.Name) and part.id in module and part.id not in names:
                names.add(part.id)
                waiting.append(ast.parse(module[part.id]))
    return {name: text for name, text in module.items() if name in names}


class _Rename(ast.NodeTransformer):
    """Other names for some variables and for the functions of these names."""

    def __init__(self, names: dict[str, ast.expr]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.names.get(node.id, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        new = self.names.get(node.name)
        if isinstance(new, ast.Name):
            node.name = new.id
        return self.generic_visit(node)
