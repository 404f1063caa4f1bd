"""Finds claims of a thing with itself, without running them.

`claim("3.5", x, x)` shows nothing, and neither does `y = x; claim("3.5", x.item(), float(y))`. So
names that a chapter assigns once, at top level, are replaced by what they stand for, conversions
that change no number are taken off, and the two sides are compared as syntax trees.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Callable

# What changes the type or the shape of a number, but not the number.
METHODS = {
    "item",
    "tolist",
    "numpy",
    "double",
    "clone",
    "detach",
    "cpu",
    "squeeze",
    "flatten",
    "contiguous",
}
FUNCTIONS = {"float", "tensor", "as_tensor", "array", "asarray", "squeeze"}


def same_expression(code: ast.Module) -> Callable[[ast.expr, ast.expr], bool]:
    """The test for two expressions in the chapter whose code cells, joined, are `code`."""
    fingerprint = _Fingerprint(_meanings(code))
    return lambda left, right: fingerprint(left) == fingerprint(right)


def _meanings(code: ast.Module) -> dict[str, ast.expr]:
    """name -> expression, for the names that a chapter binds exactly once, at top level."""
    bound = Counter(
        node.id
        for node in ast.walk(code)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    bound.update(node.arg for node in ast.walk(code) if isinstance(node, ast.arg))
    found: dict[str, ast.expr] = {}
    for statement in code.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            found |= _unpacked(statement.targets[0], statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value:
            found |= _unpacked(statement.target, statement.value)
    changed = _changed_in_place(code)
    return {
        name: value for name, value in found.items() if bound[name] == 1 and name not in changed
    }


def _changed_in_place(code: ast.Module) -> set[str]:
    """Names whose value may change later: `x[0] = …`, `x.attribute = …`, `x.append(…)`."""
    found: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            base: ast.expr = node.value
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            base = getattr(node.value.func, "value", node.value)  # called for its effect
        else:
            continue
        found |= {base.id} if isinstance(base, ast.Name) else set()
    return found


def _unpacked(target: ast.expr, value: ast.expr) -> dict[str, ast.expr]:
    """`a, b = f(x)` gives a = f(x)[0], b = f(x)[1]; `a, b = x, y` gives a = x, b = y."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if not isinstance(target, ast.Tuple) or any(
        isinstance(part, ast.Starred) for part in target.elts
    ):
        return {}
    if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
        parts = value.elts
    else:
        parts = [ast.Subscript(value, ast.Constant(i), ast.Load()) for i in range(len(target.elts))]
    return {
        name: part
        for t, v in zip(target.elts, parts, strict=True)
        for name, part in _unpacked(t, v).items()
    }


class _Fingerprint:
    """A string for an expression, equal for two that say the same; each name is read once."""

    def __init__(self, meaning: dict[str, ast.expr]) -> None:
        self.meaning = meaning
        self.names: dict[str, str] = {}

    def __call__(self, node: object) -> str:
        if isinstance(node, ast.Name) and node.id in self.meaning:
            return self._name(node.id)
        if isinstance(node, ast.Call) and (inside := _converted(node)) is not None:
            return self(inside)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return repr(float(node.value))
        if isinstance(node, list):
            parts = [self(item) for item in node]
        elif isinstance(node, ast.AST):
            parts = [type(node).__name__, *(self(value) for _, value in ast.iter_fields(node))]
        else:
            return repr(node)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _name(self, name: str) -> str:
        if name not in self.names:
            self.names[name] = name  # what `x = f(x)` meets when it comes round
            self.names[name] = self(self.meaning[name])
        return self.names[name]


def _converted(call: ast.Call) -> ast.expr | None:
    """What `call` converts, or None if it does more than that: x for float(x) and for x.item()."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    if name in METHODS and isinstance(call.func, ast.Attribute) and not call.args:
        return call.func.value
    return call.args[0] if name in FUNCTIONS and len(call.args) == 1 else None
