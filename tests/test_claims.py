"""Claims bite, refuse what shows nothing, and print the same line on any machine."""

import math

import numpy as np
import pytest
import sympy
import torch

from ddpm_lite import claims
from ddpm_lite.claims import ClaimError, claim, fact, ledger

float64 = torch.float64


@pytest.fixture(autouse=True)
def empty_ledger(monkeypatch):
    monkeypatch.setattr(claims, "_passed", [])


def printed(capsys) -> str:
    return capsys.readouterr().out


# ---- what a claim accepts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (0.1 + 0.2, 0.3),
        ([0.1 + 0.2, 1.0], torch.tensor([0.3, 1.0], dtype=float64)),
        (torch.tensor([[0.3]], dtype=float64, requires_grad=True), np.float64(0.3)),
        (np.full((2, 3), 0.5), 0.5),
        (0.5, np.full((2, 3), 0.5)),
        (sympy.Rational(3, 10), 0.3),
        ([sympy.sqrt(2), 1], np.array([math.sqrt(2), 1.0])),
        ([torch.tensor(0.5, dtype=float64), 1.0], [0.5, 1]),
        (len([1, 2, 3]), 3),
        (torch.arange(3), np.arange(3.0)),
    ],
)
def test_numbers_from_anywhere(left, right):
    claim("3.5", left, right)
    assert len(ledger()) == 1


def test_the_line_holds_no_measured_number(capsys):
    claim("3.5", [0.1 + 0.2, 1.0], [0.3, 1.0], tol=1e-12, note="by hand")
    claim("2.2", 0.5, np.float64(0.5), relation="definition")
    claim("3.6", 1.0003, 1.0, standard_error=1e-3)
    claim("4.9", [1.0, 2.0], [1.0, 3.0], relation="<=")
    claim("T.12", ([1, 2, 4], [0.1, 0.21, 0.39]), 1.0, relation="order")
    assert printed(capsys).splitlines() == [
        "✓ (3.5)  left = right to 1e-12, 2 numbers — by hand",
        "✓ (2.2)  definition: left = right to 1e-10, 1 number",
        "✓ (3.6)  left = right within 5 standard errors, 1 number",
        "✓ (4.9)  left ≤ right, 2 numbers",
        "✓ (T.12)  order 1 within 0.1, 3 sizes",
    ]


def test_the_ledger_says_what_was_claimed_and_what_it_noticed():
    x = sympy.Symbol("x")
    claim("3.5", [1.0, 2.0], np.array([1.0, 2.0]), note="twice")
    claim("3.6", 1.0003, 1.0, standard_error=1e-3)
    claim("4.9", [1.0, 2.0], [1.0, 3.0], relation="<=")
    claim("T.12", ([1, 2, 4], [0.1, 0.2, 0.4]), 1.0, relation="order")
    claim("4.5", (x + 1) ** 2, x**2 + 2 * x + 1)
    claim("4.6", 0.0, 0, scale=2.0)
    kinds = [(entry.equation, entry.kind, entry.numbers, entry.bite) for entry in ledger()]
    assert kinds == [
        ("3.5", "exact", 2, "left times 1.01"),
        ("3.6", "Monte-Carlo", 1, "left times 1.01"),
        ("4.9", "inequality", 2, "sides exchanged"),
        ("T.12", "order", 3, "half an order added"),
        ("4.5", "symbolic", 0, "left times 1.01"),
        ("4.6", "exact", 1, "1 % of the scale added to left"),
    ]
    assert ledger()[0].note == "twice"
    assert all(entry.bites for entry in ledger())


# ---- a false claim -------------------------------------------------------------------------------


def test_a_failure_names_equation_index_values_and_tolerance():
    left, right = np.ones((2, 3)), np.ones((2, 3))
    left[1, 2] = 1.25
    with pytest.raises(ClaimError) as failure:
        claim("3.5", left, right, tol=1e-9)
    said = str(failure.value)
    for part in ("(3.5)", "index (1, 2)", "left is 1.25", "right is 1", "1e-09", "1 of 6 numbers"):
        assert part in said
    assert ledger() == ()


def test_the_first_of_several_differences_is_shown():
    with pytest.raises(ClaimError, match=r"index \(1,\), left is 3 and right is 2, .* 2 of 3"):
        claim("3.5", [1.0, 3.0, 4.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("share", [1.01, 0.99, 1.0001, 1 + 1e-7])
def test_a_small_error_turns_an_exact_claim_red(share):
    with pytest.raises(ClaimError, match="does not hold"):
        claim("3.5", 0.374 * share, 0.374)


def test_a_simulation_six_standard_errors_off_is_red():
    claim("3.6", 1.0 + 4.9e-4, 1.0, standard_error=1e-4)
    with pytest.raises(ClaimError, match="5 standard errors"):
        claim("3.6", 1.0 + 5.1e-4, 1.0, standard_error=1e-4)


def test_the_standard_error_may_differ_between_numbers():
    claim("3.6", [1.002, 1.0], [1.0, 1.0], standard_error=[1e-3, 1e-4])
    with pytest.raises(ClaimError, match=r"index \(1,\)"):
        claim("3.6", [1.002, 1.002], [1.0, 1.0], standard_error=[1e-3, 1e-4])


def test_float32_is_pointed_out():
    with pytest.raises(ClaimError, match="float32"):
        claim("3.5", torch.tensor([0.1]), 0.1)


def test_scale_may_be_a_number_or_one_for_each():
    claim("3.5", [1e-12, 1.0], [0.0, 1.0], tol=1e-10)
    with pytest.raises(ClaimError, match=r"index \(0,\)"):
        claim("3.5", [1.1e-6, 1.0], [1e-6, 1.0], tol=1e-8, scale=[1e-6, 1.0])
    claim("3.5", [1e-6 + 1e-15, 1.0], [1e-6, 1.0], tol=1e-8, scale=[1e-6, 1.0])


# ---- a claim that shows nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"left": 1.0, "right": 1, "tol": 1e-7}, "tol is 1e-07"),
        ({"left": 1.0, "right": 1, "tol": 0}, "tol is 0"),
        ({"left": 1.0, "right": np.nan}, "right holds nan"),
        ({"left": [1.0, np.inf], "right": 1.0}, "left holds inf"),
        ({"left": [1.0, 2.0], "right": [1.0, 2.0, 3.0]}, r"shape \(2,\) and right \(3,\)"),
        ({"left": np.ones((2, 1)), "right": np.ones((1, 2))}, r"shape \(2, 1\)"),
        ({"left": 1.0, "right": 1, "relation": "~"}, "unknown relation"),
        ({"left": 1.0, "right": 1, "relation": "<=", "standard_error": 0.1}, "'==' only"),
        ({"left": 1.0, "right": 1, "relation": "definition", "standard_error": 0.1}, "'==' only"),
        ({"left": 1.0, "right": 1, "tol": 1e-9, "standard_error": 1e-3}, "not both"),
        ({"left": 1.0, "right": 1, "standard_error": 0.021}, "more than 2%"),
        ({"left": 1.0, "right": 1, "standard_error": 0.0}, "must be positive"),
        ({"left": 1.0, "right": 1, "standard_error": np.nan}, "holds nan"),
        ({"left": [1.0, 1.0], "right": 1.0, "standard_error": [1e-3] * 3}, r"shape \(3,\)"),
        ({"left": 1.0, "right": 1, "scale": 0.0}, "scale must be positive"),
        ({"left": 1.0, "right": 1, "scale": [1.0, 1.0]}, "scale has shape"),
        ({"left": 0.0, "right": 0}, "give scale"),
        ({"left": True, "right": 1.0}, "type is bool"),
        ({"left": 1j, "right": 1.0}, "type is complex128"),
        ({"left": "one", "right": 1.0}, "must be numbers"),
        ({"left": None, "right": 1.0}, "must be numbers"),
        ({"left": [], "right": 1.0}, "it is empty"),
        ({"left": [[1.0], [1.0, 2.0]], "right": 1.0}, "must be numbers"),
    ],
)
def test_refused(arguments, reason):
    arguments = dict(arguments)
    with pytest.raises(ClaimError, match=reason):
        claim("3.5", arguments.pop("left"), arguments.pop("right"), **arguments)
    assert ledger() == ()


def test_a_thing_with_itself_is_refused():
    tensor, number = torch.ones(3, dtype=float64), 0.25
    for left, right in [
        (tensor, tensor),
        (tensor, tensor[:]),
        (tensor, tensor.view(3)),
        (tensor, tensor.detach()),
        (tensor.numpy(), tensor.numpy()[:]),
        (number, number),
    ]:
        with pytest.raises(ClaimError, match="same object"):
            claim("3.5", left, right)
    claim("3.5", tensor, tensor.clone())
    claim("3.5", tensor[:2], tensor[1:])


def test_a_simulation_too_noisy_to_notice_one_per_cent_is_refused():
    with pytest.raises(ClaimError, match="a 1 % error would pass"):
        claim("3.6", 1.001, 1.0, standard_error=3e-3)
    claim("3.6", 1.001, 1.0, standard_error=1e-3)


def test_a_zero_left_side_is_disturbed_by_a_share_of_the_scale():
    with pytest.raises(ClaimError, match="too weak"):
        claim("3.6", 0.001, 0, standard_error=3e-3, scale=1.0)
    claim("3.6", 0.001, 0, standard_error=1e-3, scale=1.0)
    claim("3.5", 1e-17, 0, scale=1.0)


def test_the_bite_is_one_per_cent(monkeypatch):
    monkeypatch.setattr(claims, "BITE", 0.0)
    with pytest.raises(ClaimError, match="too weak"):
        claim("3.5", 1.0, np.float64(1.0))


# ---- inequalities --------------------------------------------------------------------------------


def test_an_inequality_holds_everywhere_and_not_the_other_way():
    claim("4.9", [1.0, 1.0 + 1e-15], [1.0, 2.0], relation="<=")
    claim("4.9", [0.0, 1.0], [1.0, 1.0], relation="<=")
    claim("4.9", [1.0 + 1e-15, 0.0], [1.0, 1.0], relation="<=")  # rounding is forgiven
    with pytest.raises(ClaimError, match=r"left <= right\): at index \(1,\)"):
        claim("4.9", [0.0, 1.1], [1.0, 1.0], relation="<=")
    with pytest.raises(ClaimError, match="too weak"):
        claim("4.9", [1.0, 2.0], np.array([1.0, 2.0]), relation="<=")
    with pytest.raises(ClaimError, match="too weak"):
        claim("4.9", [1.0, 2.0 - 1e-14], np.array([1.0, 2.0]), relation="<=")


def test_every_inequality_that_passes_fails_when_it_is_turned_round():
    left, right = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 3.0])
    claim("4.9", left, right, relation="<=")
    with pytest.raises(ClaimError):
        claim("4.9", right, left, relation="<=")


# ---- orders --------------------------------------------------------------------------------------


def test_the_measured_slope_is_the_order():
    sizes = np.array([0.1, 0.05, 0.025, 0.0125])
    claim("T.12", (sizes, 3 * sizes**2), 2.0, relation="order")
    for wrong in (1.0, 1.5, 2.2, -2.0):
        with pytest.raises(ClaimError, match="slope of log error"):
            claim("T.12", (sizes, 3 * sizes**2), wrong, relation="order")
    with pytest.raises(ClaimError, match=r"slope of log error .* is 2\.05"):
        claim("T.12", (sizes, sizes**2.05), 2.0, relation="order", tol=0.01)


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        ([1.0, 2.0, 3.0], 1.0, "the pair"),
        (([1, 2], [1, 2]), 1.0, "three or more sizes"),
        (([1, 2, 4], [1, 2]), 1.0, "three or more sizes"),
        (([1, 2, 3], [1, 2, 3]), 1.0, "less than a factor of 4"),
        (([1, 2, 4], [1, 0, 4]), 1.0, "must be positive"),
        (([1, 2, 4], [1, 1, 1]), 0.0, "not zero"),
        (([1, 2, 4], [1, np.nan, 1]), 1.0, "errors holds nan"),
    ],
)
def test_an_order_that_shows_nothing_is_refused(left, right, reason):
    with pytest.raises(ClaimError, match=reason):
        claim("T.12", left, right, relation="order")


def test_an_order_has_a_tenth_of_room_at_most():
    with pytest.raises(ClaimError, match=r"tol is 0\.2"):
        claim("T.12", ([1, 2, 4], [1, 2, 4]), 1.0, relation="order", tol=0.2)


# ---- symbols -------------------------------------------------------------------------------------


def test_symbols_are_compared_by_algebra(capsys):
    a, b = sympy.symbols("alpha beta", positive=True)
    claim("4.5", (a + b) ** 2 - a**2, 2 * a * b + b**2)
    assert printed(capsys) == "✓ (4.5)  left = right, by algebra\n"
    with pytest.raises(ClaimError, match=r"simplifies to alpha\*\*2"):
        claim("4.5", (a + b) ** 2, 2 * a * b + b**2)
    with pytest.raises(ClaimError, match="compared exactly"):
        claim("4.5", a, b, relation="<=")
    with pytest.raises(ClaimError, match="compared exactly"):
        claim("4.5", a * (a + b), a**2 + a * b, tol=1e-9)
    with pytest.raises(ClaimError, match="same object"):
        claim("4.5", a, a)


# ---- facts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.37412, 3, "0.374"),
        (0.37, 3, "0.370"),
        (-0.37412, 2, "-0.37"),
        (99.97, 3, "100"),
        (12345.6, 3, "12300"),
        (1.5e9, 3, "1.50e9"),
        (0.00012345, 2, "0.00012"),
        (3.14e-7, 3, "3.14e-7"),
        (1000, 2, "1000"),
        (np.int64(7), 3, "7"),
        (torch.tensor(7), 3, "7"),
        (torch.tensor([0.25]), 2, "0.25"),
        (sympy.sqrt(2), 3, "1.41"),
        (0.0, 3, "0"),
        ([0.1, torch.tensor(2.0), 3], 2, "0.10, 2.0, 3"),
        (np.array([0.1234, 0.5678]), 2, "0.12, 0.57"),
    ],
)
def test_a_fact_prints_significant_digits(value, digits, text, capsys):
    fact("share", value, digits)
    assert printed(capsys) == f"share: {text}\n"


def test_a_number_near_a_rounding_boundary_is_refused():
    with pytest.raises(ValueError, match=r"prints as 0\.374 or as 0\.375"):
        fact("share", 0.3745)
    with pytest.raises(ValueError, match="prints as"):
        fact("share", 0.3745001)
    fact("share", 0.374501)
    fact("share", 0.3745001, uncertainty=1e-9)
    fact("share", 0.3745, digits=2)


def test_the_uncertainty_is_believed():
    fact("share", 0.3742)
    with pytest.raises(ValueError, match="prints as"):
        fact("share", 0.3742, uncertainty=5e-4)
    with pytest.raises(ValueError, match="known from zero"):
        fact("share", 1e-5, uncertainty=1e-4)
    with pytest.raises(ValueError, match="known from zero"):
        fact("share", 0.0, uncertainty=1e-4)
    with pytest.raises(ValueError, match="uncertainty"):
        fact("share", 0.3742, uncertainty=-1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "x", 1j, True, [], np.ones((2, 2))])
def test_a_fact_is_a_finite_number(value):
    with pytest.raises(ValueError):
        fact("share", value)


@pytest.mark.parametrize("digits", [0, 7])
def test_digits_are_few(digits):
    with pytest.raises(ValueError, match="digits"):
        fact("share", 0.3742, digits)
