"""Equations that are checked where they stand, and numbers that print the same on any machine.

``claim("3.5", left, right)`` says that equation (3.5) holds for these numbers. One side is written
out in the chapter from the symbols; the other comes from somewhere else: the library, an oracle,
autograd, SymPy or a simulation. A claim that passes is then tried again with its left side changed
by one per cent, and raises if that passes too: a check that cannot fail is not a check.

``fact("label", value)`` prints a number to a few digits, and refuses one that another machine might
round the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ClaimError", "Passed", "claim", "fact", "ledger"]

LOOSEST = 1e-8  # the loosest tolerance of a deterministic claim
STANDARD_ERRORS = 5  # the room of a Monte-Carlo claim: chance alone fails one in two million
NOISIEST = 0.02  # the largest standard error, as a share of the quantity
ORDER_ROOM = 0.1  # how far a measured order may be from the stated one
BITE = 0.01  # every claim of equality must notice a change of this size
RELATIONS = ("==", "<=", "order", "definition")


class ClaimError(AssertionError):
    """An equation that does not hold, or a claim that shows nothing."""


@dataclass(frozen=True)
class Passed:
    """One line of the ledger: a claim that held, and the change that it was seen to notice."""

    equation: str
    relation: str  # as given: "==", "<=", "order", "definition"
    kind: str  # exact | Monte-Carlo | symbolic | inequality | order
    numbers: int  # how many numbers were compared
    bite: str  # what was changed, so that the claim failed as it should
    note: str = ""

    @property
    def bites(self) -> bool:
        """True: a claim that does not notice its ``bite`` raises and never gets here."""
        return bool(self.bite)


class _Outcome(NamedTuple):
    said: str
    kind: str
    numbers: int
    bite: str


_passed: list[Passed] = []


def ledger() -> tuple[Passed, ...]:
    """Every claim that has passed in this process, in the order in which it was made."""
    return tuple(_passed)


def claim(
    equation: str,
    left: Any,
    right: Any,
    *,
    relation: str = "==",
    tol: float | None = None,
    standard_error: Any = None,
    scale: Any = None,
    note: str = "",
) -> None:
    """Check one equation on numbers and print a line, or raise ``ClaimError``.

    ``left`` and ``right`` are numbers or arrays (float, NumPy, torch, SymPy) of one shape, or one
    of them is a single number. What is compared depends on ``relation``:

    - ``"=="``: ``|left - right| <= tol * scale``, with ``tol`` 1e-10 unless given, at most 1e-8;
      with ``standard_error``, ``|left - right| <= 5 * standard_error`` instead. SymPy expressions
      with free symbols are compared by simplifying their difference.
    - ``"definition"``: the same, marked as a definition in the index.
    - ``"<="``: ``left <= right`` everywhere but for rounding, and somewhere by more than rounding.
    - ``"order"``: ``left`` is ``(sizes, errors)``, and the least-squares slope of log error against
      log size is ``right`` within 0.1, or within a smaller ``tol``.

    ``scale`` is the size by which a difference is judged: ``max |right|`` unless given. It must be
    given when ``right`` is zero. ``note`` adds a few words to the printed line.
    """
    where = f"({equation})"
    if relation not in RELATIONS:
        raise ClaimError(f"{where}: unknown relation {relation!r}; one of {', '.join(RELATIONS)}.")
    if standard_error is not None and relation != "==":
        raise ClaimError(f"{where}: standard_error goes with the relation '==' only.")
    if standard_error is not None and tol is not None:
        raise ClaimError(f"{where}: give tol or standard_error, not both.")
    if _same(left, right):
        raise ClaimError(f"{where}: both sides are the same object, which always equals itself.")

    if relation == "order":
        outcome = _order(where, left, right, tol)
    elif _is_symbolic(left) or _is_symbolic(right):
        if relation == "<=" or not (tol is standard_error is scale is None):
            raise ClaimError(f"{where}: symbols are compared exactly: no tol, scale or '<='.")
        outcome = _symbolic(where, left, right)
    elif relation == "<=":
        outcome = _inequality(where, left, right, tol, scale)
    elif standard_error is not None:
        outcome = _monte_carlo(where, left, right, standard_error, scale)
    else:
        outcome = _exact(where, left, right, tol, scale)
    _passed.append(Passed(equation, relation, outcome.kind, outcome.numbers, outcome.bite, note))
    said = ("definition: " if relation == "definition" else "") + outcome.said
    print(f"✓ ({equation})  {said}" + (f" — {note}" if note else ""))


# ---- equalities and inequalities between numbers -------------------------------------------------


def _exact(where: str, left: Any, right: Any, tol: float | None, scale: Any) -> _Outcome:
    tol = _tolerance(where, tol, default=1e-10, most=LOOSEST)
    sides = _Sides(where, left, right, scale)
    sides.room = tol * sides.scale
    sides.require(np.abs(sides.left - sides.right), "left = right", f"{tol:g} of the scale")
    return _Outcome(f"left = right to {tol:g}, {sides.count}", "exact", sides.size, sides.bite())


def _monte_carlo(where: str, left: Any, right: Any, standard_error: Any, scale: Any) -> _Outcome:
    sides = _Sides(where, left, right, scale)
    error = _numbers(where, "standard_error", standard_error)
    if error.size == 1:
        error = error.reshape(())
    elif error.shape != sides.shape:
        raise ClaimError(f"{where}: standard_error has shape {error.shape}, not {sides.shape}.")
    if (error <= 0).any():
        raise ClaimError(f"{where}: standard_error must be positive.")
    if (error > NOISIEST * sides.scale).any():
        raise ClaimError(
            f"{where}: the standard error, up to {np.max(error):.3g}, is more than {NOISIEST:.0%} "
            f"of the quantity, {np.max(sides.scale):.3g}. Draw more samples."
        )
    sides.room = STANDARD_ERRORS * error
    words = f"{STANDARD_ERRORS} standard errors"
    sides.require(np.abs(sides.left - sides.right), "left = right", words)
    said = f"left = right within {words}, {sides.count}"
    return _Outcome(said, "Monte-Carlo", sides.size, sides.bite())


def _inequality(where: str, left: Any, right: Any, tol: float | None, scale: Any) -> _Outcome:
    tol = _tolerance(where, tol, default=1e-12, most=LOOSEST)
    sides = _Sides(where, left, right, scale)
    sides.room = tol * sides.scale
    sides.require(sides.left - sides.right, "left <= right", f"{tol:g} of the scale, for rounding")
    if not (sides.right - sides.left > sides.room).any():
        raise ClaimError(f"{where}: too weak: left and right are equal, so the reverse holds too.")
    return _Outcome(f"left ≤ right, {sides.count}", "inequality", sides.size, "sides exchanged")


class _Sides:
    """Both sides of a claim as float64 arrays, and the room that is left between them."""

    def __init__(self, where: str, left: Any, right: Any, scale: Any) -> None:
        self.where = where
        single = any("float32" in str(getattr(side, "dtype", "")) for side in (left, right))
        self.advice = " One side is float32; compute in float64." if single else ""
        left, right = _numbers(where, "left", left), _numbers(where, "right", right)
        if left.shape != right.shape and left.size != 1 and right.size != 1:
            raise ClaimError(f"{where}: left has shape {left.shape} and right {right.shape}.")
        self.left, self.right = (x.reshape(()) if x.size == 1 else x for x in (left, right))
        self.scale = self._scale(scale)
        self.shape = np.broadcast(self.left, self.right).shape
        self.size = math.prod(self.shape)
        self.count = "1 number" if self.size == 1 else f"{self.size} numbers"
        self.room: Any = 0.0

    def _scale(self, scale: Any) -> np.ndarray:
        if scale is None:
            if not self.right.any():
                raise ClaimError(f"{self.where}: right is zero; give scale=…, to judge left by.")
            return np.max(np.abs(self.right))
        scale = _numbers(self.where, "scale", scale)
        scale = scale.reshape(()) if scale.size == 1 else scale
        if scale.ndim and scale.shape != np.broadcast(self.left, self.right).shape:
            raise ClaimError(f"{self.where}: scale has shape {scale.shape}, unlike left and right.")
        if (scale <= 0).any():
            raise ClaimError(f"{self.where}: scale must be positive.")
        return scale

    def require(self, excess: np.ndarray, statement: str, allowance: str) -> None:
        """Refuse the claim if the excess is more than the room anywhere."""
        fails = np.atleast_1d(excess > self.room)
        if not fails.any():
            return
        place = np.unravel_index(int(np.argmax(fails)), self.shape)
        left, right, room = (
            float(np.broadcast_to(x, self.shape)[place]) for x in (self.left, self.right, self.room)
        )
        at = f"at index {tuple(map(int, place))}, " if self.shape else ""
        raise ClaimError(
            f"{self.where} does not hold ({statement}): {at}left is {left:.12g} and right is "
            f"{right:.12g}, {abs(left - right):.2g} apart where {room:.2g} is allowed "
            f"({allowance}); {fails.sum()} of {self.count} fail.{self.advice}"
        )

    def bite(self) -> str:
        """Change the left side by one per cent: the claim must now fail. What was changed."""
        if (np.abs(self.left) <= self.room).all():  # zero here: a share of it would be zero too
            changed, words = self.left + BITE * self.scale, "1 % of the scale added to left"
        else:
            changed, words = self.left * (1 + BITE), "left times 1.01"
        if (np.abs(changed - self.right) <= self.room).all():
            raise ClaimError(
                f"{self.where}: too weak: a 1 % error would pass ({words}, which changes it by up "
                f"to {np.max(np.abs(changed - self.left)):.2g}, where {np.min(self.room):.2g} is "
                f"allowed). Draw more samples, or give scale=…."
            )
        return words


def _tolerance(where: str, tol: float | None, default: float, most: float) -> float:
    tol = default if tol is None else float(tol)
    if not 0 < tol <= most:
        raise ClaimError(f"{where}: tol is {tol:g}; it lies between 0 and {most:g}.")
    return tol


# ---- orders of convergence -----------------------------------------------------------------------


def _order(where: str, left: Any, right: Any, tol: float | None) -> _Outcome:
    tol = _tolerance(where, tol, default=ORDER_ROOM, most=ORDER_ROOM)
    if not (isinstance(left, tuple | list) and len(left) == 2):
        raise ClaimError(f"{where}: for an order, left is the pair (sizes, errors).")
    sizes, errors = _numbers(where, "sizes", left[0]), _numbers(where, "errors", left[1])
    stated = _numbers(where, "right", right)
    if stated.size != 1 or not stated.any():
        raise ClaimError(f"{where}: for an order, right is one number, and not zero.")
    if sizes.ndim != 1 or sizes.shape != errors.shape or sizes.size < 3:
        raise ClaimError(f"{where}: an order needs three or more sizes, and as many errors.")
    if (sizes <= 0).any() or (errors <= 0).any():
        raise ClaimError(f"{where}: sizes and errors must be positive; their logs are fitted.")
    if sizes.max() < 4 * sizes.min():
        raise ClaimError(f"{where}: too weak: the sizes span less than a factor of 4.")
    slope, order = _slope(sizes, errors), stated.item()
    if abs(slope - order) > tol:
        raise ClaimError(
            f"{where} does not hold: the slope of log error against log size is {slope:.4g}, "
            f"not {order:g} within {tol:g}."
        )
    # 1 % of every error leaves a slope as it is. What an order must tell apart is another order.
    if abs(_slope(sizes, errors * np.sqrt(sizes)) - order) <= tol:
        raise ClaimError(f"{where}: too weak: half an order more would pass.")
    said = f"order {order:g} within {tol:g}, {sizes.size} sizes"
    return _Outcome(said, "order", sizes.size, "half an order added")


def _slope(sizes: np.ndarray, errors: np.ndarray) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


# ---- identities between symbols ------------------------------------------------------------------


def _is_symbolic(value: Any) -> bool:
    return bool(getattr(value, "free_symbols", None))


def _symbolic(where: str, left: Any, right: Any) -> _Outcome:
    import sympy

    difference = sympy.simplify(left - right)
    if difference != 0:
        raise ClaimError(f"{where} does not hold: left - right simplifies to {difference}, not 0.")
    if sympy.simplify(left * sympy.Rational(101, 100) - right) == 0:
        raise ClaimError(f"{where}: too weak: both sides are zero.")
    return _Outcome("left = right, by algebra", "symbolic", 0, "left times 1.01")


# ---- facts ---------------------------------------------------------------------------------------


def fact(label: str, value: Any, digits: int = 3, *, uncertainty: float | None = None) -> None:
    """Print ``label: 0.374``, a number to ``digits`` significant digits that hold on any machine.

    ``uncertainty`` is how far the value may be off elsewhere, absolutely; 1e-6 of the value unless
    given. A number that might then round to other digits is refused with ``ValueError``: choose
    other digits, or compute it more exactly. Integers are exact, and printed in full. A list or a
    vector prints its numbers in one line.
    """
    if not 1 <= digits <= 6:
        raise ValueError(f"{label}: digits is {digits}; it goes from 1 to 6.")
    vector = isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1
    values = list(value) if vector else [value]
    if not values:
        raise ValueError(f"{label}: there is no number to print.")
    print(f"{label}: " + ", ".join(_stable(label, one, digits, uncertainty) for one in values))


def _stable(label: str, value: Any, digits: int, uncertainty: float | None) -> str:
    """The digits of one number, or ``ValueError`` if they hang on its last bits."""
    array = _numbers(label, "the value", value, error=ValueError)
    if array.size != 1:
        raise ValueError(f"{label}: one number is wanted, not an array of shape {array.shape}.")
    if _is_integer(value) and uncertainty is None:
        return str(int(value))
    number = array.item()
    uncertainty = 1e-6 * abs(number) if uncertainty is None else float(uncertainty)
    if not (math.isfinite(uncertainty) and uncertainty >= 0):
        raise ValueError(f"{label}: uncertainty is {uncertainty}; it is zero or more.")
    if number == uncertainty == 0:
        return "0"
    if abs(number) <= uncertainty:
        raise ValueError(f"{label}: {number:.9g} is not known from zero at ± {uncertainty:.2g}.")
    low, high = (_significant(number + sign * uncertainty, digits) for sign in (-1, 1))
    if low != high:
        raise ValueError(
            f"{label}: {number:.9g} ± {uncertainty:.2g} prints as {low} or as {high}; choose other "
            f"digits, or state the uncertainty if it is smaller."
        )
    return low


def _significant(number: float, digits: int) -> str:
    """A number to some significant digits: plain from 1e-4 to 1e7, with an exponent beyond."""
    rounded = f"{number:.{digits - 1}e}"
    mantissa, power = rounded.split("e")
    if not -4 <= int(power) < 7:
        return f"{mantissa}e{int(power)}"
    return f"{float(rounded):.{max(digits - 1 - int(power), 0)}f}"


def _is_integer(value: Any) -> bool:
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return isinstance(value, int) or dtype.startswith(("int", "uint"))


# ---- numbers, wherever they come from ------------------------------------------------------------


def _numbers(
    where: str, name: str, value: Any, error: Callable[[str], Exception] = ClaimError
) -> np.ndarray:
    """``value`` as a float64 array; what is not finite real numbers is refused."""
    try:
        array = np.asarray(_on_cpu(value))
        if array.size == 0:
            raise TypeError("it is empty")
        if array.dtype.kind not in "iufO":
            raise TypeError(f"its type is {array.dtype}")
        if array.dtype.kind == "O":  # SymPy's numbers, among others; float() refuses what is none
            array = np.array([float(x) for x in array.flat]).reshape(array.shape)
        array = array.astype(np.float64)
    except (TypeError, ValueError) as reason:
        raise error(f"{where}: {name} must be numbers: {reason}.") from None
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)][0]
        raise error(f"{where}: {name} holds {bad}, which is not a finite number.")
    return array


def _on_cpu(value: Any) -> Any:
    """Torch tensors, also inside lists, as NumPy arrays."""
    if isinstance(value, list | tuple):
        return [_on_cpu(one) for one in value]
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def _same(left: Any, right: Any) -> bool:
    """One object, or one memory seen twice. Python shares small ints, so an int proves nothing."""
    if left is right:
        return not isinstance(left, int)
    views = []
    for side in (left, right):
        if hasattr(side, "data_ptr"):
            views.append((side.data_ptr(), tuple(side.shape), side.stride(), str(side.dtype)))
        elif isinstance(side, np.ndarray):
            views.append((side.ctypes.data, side.shape, side.strides, str(side.dtype)))
    return len(views) == 2 and views[0] == views[1] and 0 not in views[0][1]
