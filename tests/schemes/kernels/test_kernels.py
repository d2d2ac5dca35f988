"""CPD kernels against eigenvalues, inverses and exact fractions computed apart from the package."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from kerple_eval.schemes.kernels import (
    NoOffsetError,
    is_cpd,
    kernel_matrix,
    log_kernel,
    pd_offset,
    power_kernel,
    smallest_eigenvalue,
)
from tests.helpers.cases import each_case

UNEVEN = [0.0, 0.25, 1.0, 1.5, 4.0, 4.125, 9.0, 17.0, 40.0, 41.0]
Formula = Callable[[float], float]


def power(exponent: float, scale: float = 1.0) -> Callable[[Tensor], Tensor]:
    r1, r2 = torch.tensor(scale, dtype=torch.float64), torch.tensor(exponent, dtype=torch.float64)
    return lambda distance: power_kernel(distance, r1, r2)


def logarithmic(r1: float, r2: float) -> Callable[[Tensor], Tensor]:
    a, b = (torch.tensor(r, dtype=torch.float64) for r in (r1, r2))
    return lambda distance: log_kernel(distance, a, b)


def matrix(formula: Formula, points: list[float]) -> np.ndarray:
    return np.array([[formula(abs(x - y)) for y in points] for x in points])


def eigenvalue_off_ones(k: np.ndarray) -> float:
    """Smallest eigenvalue of K on 1's complement: basis of the differences e_i - e_0, orthonormal."""
    n = len(k)
    differences = np.eye(n)[:, 1:] - np.eye(n)[:, :1]
    basis = np.linalg.qr(differences)[0]
    return float(np.linalg.eigvalsh(basis.T @ k @ basis)[0])


@each_case("points", [None, UNEVEN])
@each_case("exponent", [0.01, 0.5, 1.0, 1.5, 1.9, 2.0])
def test_power_is_cpd_up_to_two(exponent: float, points: list[float] | None) -> None:
    given = None if points is None else torch.tensor(points)
    assert is_cpd(power(exponent), 24, points=given)
    expected = eigenvalue_off_ones(matrix(lambda d: -(d**exponent) if d else 0.0, points or [*range(24)]))
    assert smallest_eigenvalue(power(exponent), 24, points=given) == pytest.approx(
        expected, rel=1e-6, abs=1e-9 * 24**exponent
    )
    assert expected > -1e-9 * 24 * 41**exponent


@each_case("points", [None, UNEVEN])
@each_case("exponent", [2.1, 3.0])
def test_power_is_not_cpd_above_two(exponent: float, points: list[float] | None) -> None:
    given = None if points is None else torch.tensor(points)
    expected = eigenvalue_off_ones(matrix(lambda d: -(d**exponent), points or [*range(24)]))
    assert expected < -1e-3
    assert smallest_eigenvalue(power(exponent), 24, points=given) == pytest.approx(expected, rel=1e-6)
    assert not is_cpd(power(exponent), 24, points=given)


@each_case("points", [None, UNEVEN])
@each_case(("r1", "r2"), [(1.0, 1.0), (0.01, 0.01), (2.0, 100.0), (3.5, 0.2)])
def test_logarithm_is_cpd(r1: float, r2: float, points: list[float] | None) -> None:
    given = None if points is None else torch.tensor(points)
    assert is_cpd(logarithmic(r1, r2), 32, points=given)
    k = matrix(lambda d: -r1 * math.log(1 + r2 * d), points or [*range(32)])
    expected = eigenvalue_off_ones(k)
    assert expected > 0
    assert smallest_eigenvalue(logarithmic(r1, r2), 32, points=given) == pytest.approx(expected, rel=1e-6)


def test_sign_decides() -> None:
    """+D is the negative of a CPD kernel: every non-zero eigenvalue turns over."""
    assert not is_cpd(lambda d: d, 8)
    assert is_cpd(lambda d: -d, 8)


def test_a_kernel_that_is_not_finite_is_not_cpd() -> None:
    for value in (math.nan, -math.inf):

        def broken(d: Tensor, value: float = value) -> Tensor:
            return torch.where(d > 3, value, -d)

        assert not is_cpd(broken, 8)
        with pytest.raises(ValueError, match="not finite"):
            pd_offset(broken, 8)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two points, got n=1"):
        is_cpd(power(1.0), 1)


# Smallest offsets for positions 0..N-1, computed from -1 / (1^T K^-1 1) when the paper was checked
# for this project (four significant digits; -|x| is (N-1)/2 exactly).
OFFSETS: dict[str, tuple[Callable[[Tensor], Tensor], Formula, list[float]]] = {
    "D^0.5": (power(0.5), lambda d: -math.sqrt(d), [0.977, 2.293, 4.742, 9.56]),
    "D": (power(1.0), lambda d: -d, [1.5, 7.5, 31.5, 127.5]),
    "D^1.5": (power(1.5), lambda d: -(d**1.5), [3.238, 37.76, 327.1, 2668]),
    "D^1.9": (power(1.9), lambda d: -(d**1.9), [17.88, 435.8, 6796, 97250]),
    "log(1+D)": (logarithmic(1, 1), lambda d: -math.log(1 + d), [0.7478, 1.730, 2.912, 4.210]),
    "log(1+D^2)": (
        lambda d: -torch.log(1 + d**2),
        lambda d: -math.log(1 + d * d),
        [1.151, 3.197, 5.683, 8.36],
    ),
}


@each_case("name", OFFSETS)
@each_case("column", range(4))
def test_offset_matches_the_table(name: str, column: int) -> None:
    kernel, formula, values = OFFSETS[name]
    n = [4, 16, 64, 256][column]
    offset = pd_offset(kernel, n)
    assert offset == pytest.approx(values[column], rel=6e-4)
    inverse = np.linalg.inv(matrix(formula, [*range(n)]))
    assert offset == pytest.approx(-1 / inverse.sum(), rel=1e-6)


@each_case("name", OFFSETS)
def test_offset_is_the_smallest(name: str) -> None:
    """A hair more makes K + c positive definite, a hair less leaves a negative eigenvalue."""
    kernel, formula, _ = OFFSETS[name]
    given = torch.tensor(UNEVEN)
    offset = pd_offset(kernel, points=given)
    k = matrix(formula, UNEVEN)
    assert offset == pytest.approx(-1 / np.linalg.inv(k).sum(), rel=1e-6)
    assert np.linalg.eigvalsh(k + offset * (1 + 1e-6))[0] > 0
    assert np.linalg.eigvalsh(k + offset * (1 - 1e-3))[0] < 0


def test_offset_of_a_positive_definite_kernel_is_zero() -> None:
    assert pd_offset(lambda d: torch.exp(-d), 6) == 0.0


@each_case("n", [3, 4, 16, 64])
def test_no_offset_at_exponent_two(n: int) -> None:
    assert is_cpd(power(2.0), n)
    with pytest.raises(NoOffsetError):
        pd_offset(power(2.0), n)


def test_exponent_two_has_no_offset_by_exact_fractions() -> None:
    """v = (1+c, -2c, c) on positions 0, 1, 2 gives v^T (K + c) v = -3c < 0 whatever c."""
    for c in (Fraction(1, 1000), Fraction(1), Fraction(10**9)):
        v = (1 + c, -2 * c, c)
        form = sum(v[i] * v[j] * (c - (i - j) ** 2) for i in range(3) for j in range(3))
        assert form == -3 * c


def test_two_points_have_an_offset_at_exponent_two() -> None:
    """K = [[0, -D^2], [-D^2, 0]] has eigenvector 1 with value -D^2: c = D^2 / 2."""
    assert pd_offset(power(2.0), 2) == pytest.approx(0.5, rel=1e-12)
    assert pd_offset(power(2.0), points=torch.tensor([0.0, 3.0])) == pytest.approx(4.5, rel=1e-12)


@each_case("kernel", [power(2.1), power(3.0), lambda d: d])
def test_offset_refuses_a_kernel_that_is_not_cpd(kernel: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="not CPD") as caught:
        pd_offset(kernel, 16)
    assert not isinstance(caught.value, NoOffsetError)


@each_case("name", OFFSETS)
def test_the_offset_changes_no_softmax(name: str) -> None:
    kernel, _, _ = OFFSETS[name]
    offset = pd_offset(kernel, 32)
    assert offset > 0.5
    scores = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = kernel_matrix(kernel, torch.arange(32))
    causal = torch.full((32, 32), -math.inf, dtype=torch.float64).triu(1)
    for mask in (torch.zeros_like(causal), causal):
        without = (scores + bias + mask).softmax(-1)
        with_it = (scores + bias + offset + mask).softmax(-1)
        torch.testing.assert_close(with_it, without, rtol=0, atol=1e-12 * max(1, offset))


def test_kernel_matrix_is_the_formula_in_float64() -> None:
    points = torch.tensor([0.0, 1.0, 4.0, 4.5], dtype=torch.float32)
    made = kernel_matrix(logarithmic(0.7, 0.3), points)
    assert made.dtype == torch.float64
    expected = matrix(lambda d: -0.7 * math.log(1 + 0.3 * d), points.tolist())
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-14)


@each_case("exponent", [0.01, 0.5, 1.0, 2.0])
def test_power_gradients_are_finite_at_distance_zero(exponent: float) -> None:
    """d/dr1 = -D^r2 and d/dr2 = -r1 D^r2 log D, whose limit at D = 0 is 0."""
    r1 = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    r2 = torch.tensor([[exponent]], dtype=torch.float64, requires_grad=True)
    for d in (0.0, 1.0, 3.0):
        value = power_kernel(torch.tensor([d], dtype=torch.float64), r1, r2)
        got = torch.autograd.grad(value.sum(), (r1, r2))
        raised = d**exponent if d else 0.0
        assert value.item() == pytest.approx(-0.5 * raised)
        assert float(got[0]) == pytest.approx(-raised)
        assert float(got[1]) == pytest.approx(-0.5 * raised * math.log(d) if d else 0.0)
