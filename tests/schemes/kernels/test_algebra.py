"""What the closure rules build is CPD or PD in float64, and what leaves them is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kerple_eval.schemes.kernels import (
    CPD,
    PD,
    ClosureError,
    Parameter,
    Scale,
    add,
    constant,
    exp,
    is_cpd,
    is_pd,
    log,
    log_kernel,
    parse_kernel,
    power,
    power_kernel,
    product,
    root,
    scaled,
)
from kerple_eval.schemes.kernels.algebra import (
    Constant,
    Exp,
    Log,
    PDConstant,
    PDScaled,
    PDSum,
    Power,
    Product,
    Root,
    Scaled,
    Sum,
)
from kerple_eval.schemes.kernels.parameters import Range, draw
from kerple_eval.types import UserError
from tests.helpers.cases import each_case
from tests.schemes.kernels import random_kernels

R1, R2, R3 = (Parameter(f"r{n}") for n in (1, 2, 3))
SEEDS = range(150)


def eigenvalues(kernel: CPD, values: dict[str, float], points: np.ndarray, cpd: bool) -> np.ndarray:
    """Of K, or of K on the complement of 1 (by centring), from the formula evaluated by hand."""
    k = np.array([[random_kernels.by_hand(kernel, abs(x - y), values) for y in points] for x in points])
    if cpd:
        centre = np.eye(len(points)) - 1 / len(points)
        k = centre @ k @ centre
    return np.linalg.eigvalsh(k)


# --- Every kernel that the rules build -------------------------------------------------------


@each_case("seed", SEEDS)
def test_random_kernels_are_what_their_type_says(seed: int) -> None:
    """Random kernel, random parameters, uneven points: eigenvalues, by the package and apart from it."""
    rng = np.random.default_rng(seed)
    kernel = random_kernels.kernel(rng, depth=3)
    values = draw(kernel.parameters, torch.Generator().manual_seed(seed))
    points = random_kernels.uneven(rng, 9)
    found = eigenvalues(kernel, values, points, cpd=not isinstance(kernel, PD))
    assert found[0] >= -1e-9 * np.abs(found).max(), str(kernel)
    bound = kernel.bind(values)
    assert is_cpd(bound, points=torch.from_numpy(points), tolerance=1e-9)
    if isinstance(kernel, PD):
        assert is_pd(bound, points=torch.from_numpy(points), tolerance=1e-9)


@each_case("seed", SEEDS)
def test_random_kernels_evaluate_to_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = random_kernels.kernel(rng, depth=3)
    d = np.concatenate([[0.0, 1e-3, 0.5], np.arange(1, 40), [512.0, 16384.0]])
    rows = [draw(kernel.parameters, torch.Generator().manual_seed(s)) for s in (seed, seed + 1)]
    tensors = {
        name: torch.tensor([[row[name]] for row in rows], dtype=torch.float64, requires_grad=True)
        for name in kernel.parameters
    }
    got = kernel(torch.from_numpy(d), tensors)
    expected = np.array([[random_kernels.by_hand(kernel, x, row) for x in d] for row in rows])
    whole = got.detach().expand(2, len(d)).numpy()
    np.testing.assert_allclose(whole, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert kernel.upper >= expected.max() - 1e-12
    if tensors:
        for gradient in torch.autograd.grad(got.sum(), list(tensors.values())):
            assert bool(torch.isfinite(gradient).all()), str(kernel)


@each_case("seed", range(40))
def test_float32_is_close_to_float64(seed: int) -> None:
    kernel = random_kernels.kernel(np.random.default_rng(seed), depth=2)
    values = draw(kernel.parameters, torch.Generator().manual_seed(seed))
    wide = {n: torch.tensor([[v]], dtype=torch.float32).double() for n, v in values.items()}
    d = torch.arange(4096)
    exact = kernel(d.double(), wide)
    narrow = kernel(d.float(), {n: v.float() for n, v in wide.items()})
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


GRID = (0.01, 0.5, 1.0, 1.5, 2.0)


@each_case(("p", "q"), list(itertools.product(GRID, GRID)))
def test_each_rule_on_a_grid(p: float, q: float) -> None:
    """Fact 2 (scale, sum), Fact 3 (root, log), Schoenberg and Schur, of every pair of base kernels."""
    one, two = power(p), power(q)
    points = torch.tensor([0.0, 0.5, 1.0, 4.0, 4.25, 9.0, 30.0], dtype=torch.float64)
    cpd = [
        2.5 * one,
        one + two,
        log(one),
        log(one + 0.3 * two),
        log(root(one + two, 0.3)),
        root(log(two), q / 4),
    ]
    for alpha in (0.01, 0.5, 0.99):
        cpd += [root(one, alpha), root(one + two, alpha)]
    pd = [exp(one), exp(one + two), exp(one) + exp(two), exp(one) * exp(two), exp(log(one)), 0.1 * exp(two)]
    cpd += [
        one + exp(two),
        2 * (one + exp(two)),
        exp(one) - 3.0,
        log(exp(one) - 1.0),
        root(exp(one) - 1.0, 0.5),
    ]
    pd += [exp(exp(one)), exp(one + exp(two)), exp(one) + 2.0, exp(one) * (exp(two) + 0.5)]
    for kernel in cpd:
        assert isinstance(kernel, CPD)
        assert not isinstance(kernel, PD)
    for kernel in pd:
        assert isinstance(kernel, PD)
        assert is_pd(kernel.bind({}), points=points)
    for kernel in cpd + pd:
        assert is_cpd(kernel.bind({}), points=points), str(kernel)


def test_a_cpd_kernel_need_not_be_pd() -> None:
    """So the two types say different things: -D and log(1 + D) have a negative eigenvalue."""
    for kernel in (power(), log(power()), power() + exp(power())):
        assert not is_pd(kernel.bind({}), 8)


@pytest.mark.parametrize("kernel", [power(2.0), log(power(2.0)), root(power(1.5), 0.9), exp(power())])
def test_a_kernel_is_largest_at_zero(kernel: CPD) -> None:
    """2 k(D) <= 2 k(0), which is how k <= 0 is decided."""
    values = kernel(torch.linspace(0, 50, 200, dtype=torch.float64), {})
    assert float(values.max()) == float(values[0]) == pytest.approx(kernel.upper, abs=1e-15)


@pytest.mark.parametrize("offset", [0.25, 4.0])
def test_the_bound_of_a_root_holds_at_every_alpha(offset: float) -> None:
    """-(offset + D)^r1 is largest at D = 0, at one end of r1's interval or the other."""
    kernel = root(power() - offset, R1)
    values = [float(kernel.bind({"r1": a})(torch.zeros(1, dtype=torch.float64))) for a in (0.01, 0.3, 0.99)]
    assert kernel.upper == pytest.approx(max(values))


# --- What leaves the closure -------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "p = 2.1": (lambda: power(2.1), "0 < p <= 2 only, got p = 2.1"),
    "p = 2 + a hair": (lambda: power(math.nextafter(2, 3)), "0 < p <= 2"),
    "p = 0": (lambda: power(0.0), "0 < p <= 2"),
    "p < 0": (lambda: power(-1.0), "0 < p <= 2"),
    "p = nan": (lambda: power(math.nan), "0 < p <= 2"),
    "negative scale": (lambda: -2 * power(), "scale must be positive"),
    "zero scale": (lambda: 0 * power(), "scale must be positive"),
    "nan scale": (lambda: math.nan * power(), "scale must be positive"),
    "infinite scale": (lambda: scaled(math.inf, power()), "scale must be positive and finite"),
    "negative": (lambda: -power(), "negative scale"),
    "difference": (lambda: power() - power(2.0), "difference"),
    "difference of PD": (lambda: exp(power()) - exp(power(2.0)), "difference"),
    "number minus kernel": (lambda: 1 - power(), "negative scale"),
    "alpha = 1": (lambda: root(power(1.5), 1.0), "0 < alpha < 1, got alpha = 1"),
    "alpha = 0": (lambda: root(power(1.5), 0.0), "0 < alpha < 1"),
    "alpha > 1": (lambda: root(log(power()), 1.01), "0 < alpha < 1"),
    "alpha = nan": (lambda: root(log(power()), math.nan), "0 < alpha < 1"),
    "a D to the 2.1": (lambda: root(2 * power(), 2.1), "0 < p <= 2"),
    "root of PD": (lambda: root(exp(power()), 0.5), "can reach 1 at D = 0"),
    "log of PD": (lambda: log(exp(power())), "needs k <= 0"),
    "log of a positive constant": (lambda: log(constant(0.5)), "needs k <= 0"),
    "log of too little taken off": (lambda: log(exp(power()) - 0.99), "can reach 0.01"),
    "log of a scaled PD": (lambda: log(R1 * exp(power()) - 5.0), "any positive number"),
    "product of CPD": (lambda: power() * power(), "product is taken of PD kernels"),
    "product of CPD and PD": (lambda: exp(power()) * power(), "product is taken of PD kernels"),
    "quotient": (lambda: exp(power()) / exp(power(2.0)), "quotient"),
    "a parameter's constant": (lambda: R1 * constant(1.0), "constants are numbers"),
    "root of a constant": (lambda: root(constant(-2.0), R1), "constants are numbers"),
    "infinite constant": (lambda: constant(math.inf), "finite"),
    "Exp of no kernel": (lambda: Exp(3.0), "Schoenberg"),  # type: ignore[arg-type]
    "Log of no kernel": (lambda: Log(lambda d: -d), "CPD where k is"),  # type: ignore[arg-type]
    "Root of no kernel": (lambda: Root(None, 0.5), "CPD where k is"),  # type: ignore[arg-type]
    "Scaled of no kernel": (lambda: Scaled(Scale(), 3.0), "scaled kernel"),  # type: ignore[arg-type]
    "Sum of no kernel": (lambda: Sum((power(), 3.0)), "every term"),  # type: ignore[arg-type]
    "PDScaled of CPD": (lambda: PDScaled(Scale(2.0), power()), "PD where the kernel is"),
    "PDSum of CPD": (lambda: PDSum((exp(power()), power())), "PD where every term is"),
    "Product of CPD": (lambda: Product((exp(power()), power())), "PD kernels"),
    "PDConstant below 0": (lambda: PDConstant(-1.0), "PD from 0 on"),
    "a sum of one": (lambda: Sum((power(),)), "two terms"),
    "a product of one": (lambda: Product((exp(power()),)), "two factors"),
    "name": (lambda: Parameter("x"), "named r1, r2"),
    "name r0": (lambda: Parameter("r0"), "named r1, r2"),
}


@each_case("case", REFUSED)
def test_leaving_the_closure_is_refused_with_the_rule(case: str) -> None:
    build, rule = REFUSED[case]
    with pytest.raises(ClosureError) as caught:
        build()
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("p", [2.01, 2.1, 3.0])
def test_what_is_refused_is_indeed_no_kernel(p: float) -> None:
    """The refusals above are not caution: each has a negative eigenvalue on some points."""
    assert not is_cpd(lambda d: -(d**p), 24)
    assert not is_cpd(lambda d: -d + 2 * d**0.5, 24)
    assert not is_cpd(lambda d: torch.exp(-d) - 2 * torch.exp(-(d**2)), 24)
    assert not is_cpd(lambda d: -(torch.log1p(d) ** 3), 64)
    assert not is_cpd(lambda d: d * d.sqrt(), 24)


# --- One kernel, however it was put together; parameters ----------------------------------------


def test_builders_give_one_form() -> None:
    k, e = power(1.5), exp(power())
    assert add(k, add(e, k)) == add(add(k, e), k) == k + e + k
    assert add(k, constant(1), e, constant(2)) == add(k, e, constant(3.0))
    assert k + 1.0 - 1.0 == k
    assert scaled(2, scaled(R1, k)) == scaled(R1, scaled(2, k)) == Scale(2.0, ("r1",)) * k
    assert 1 * k == k
    assert power(1.0, R1) == R1 * power() == root(R1 * power(), 1.0)
    assert root(2 * power(), 0.5) == power(0.5, 2)
    assert product(2 * e, R1 * product(e, e)) == 2 * (R1 * product(e, e, e))
    assert product(e, constant(2)) == 2 * e
    assert (e + e) / R1 == scaled(Scale(1.0, (), ("r1",)), add(e, e))
    assert log(constant(-1.0)) == Constant(-math.log(2))
    assert exp(constant(-1.0)) == PDConstant(math.exp(-1))
    assert root(constant(-4.0), 0.5) == Constant(-2.0)
    assert power(R1) == Power(R1)
    assert power() != power(1.5)


RANGES = {
    "-r1*log(1+r2*D)": {"r1": Range(0.01, None, 0, 2), "r2": Range(0.01, None, 0, 1)},
    "-r1*D**r2": {"r1": Range(0.01, None, 0, 1), "r2": Range(0.01, 2.0, 0, 2)},
    "-r2*log(1+r1*D**r10)": {
        "r1": Range(0.01, None, 0, 1), "r2": Range(0.01, None, 0, 2), "r10": Range(0.01, 2.0, 0, 2)
    },
    "r1*exp(-r2*D**2)": {"r1": Range(0.01, None, 0, 1), "r2": Range(0.01, None, 0, 1)},
    "-log(1+D)**r1": {"r1": Range(0.01, 0.99, 0, 1)},
    "-(r1*D)**r2": {"r1": Range(0.01, None, 0, 1), "r2": Range(0.01, 2.0, 0, 2)},
    "-D/r1": {"r1": Range(0.01, None, 0, 1)},
    "-r1*D**r1": {"r1": Range(0.01, 2.0, 0, 1)},
    "-r1*log(1+D**r1)**r1": {"r1": Range(0.01, 0.99, 0, 1)},
    "-r1*log(1+D**r1)": {"r1": Range(0.01, 2.0, 0, 2)},
    "-r1*log(1+D)-r1*D": {"r1": Range(0.01, None, 0, 1)},
    "-D": {},
}  # fmt: skip


@each_case("formula", RANGES)
def test_where_a_parameter_stands_gives_its_range(formula: str) -> None:
    found = parse_kernel(formula).parameters
    assert found == RANGES[formula]
    assert list(found) == list(RANGES[formula])


def test_kerples_own_kernels_are_the_same_to_the_bit() -> None:
    d = torch.arange(16384, dtype=torch.float32)
    values = {f"r{n}": torch.rand(6, 1, generator=torch.Generator().manual_seed(n)) + 0.01 for n in (1, 2)}
    r1, r2 = values["r1"], values["r2"]
    assert torch.equal(parse_kernel("-r1*log(1+r2*D)")(d, values), log_kernel(d, r1, r2))
    assert torch.equal(parse_kernel("-r1*D**r2")(d, values), power_kernel(d, r1, r2))


def test_draws_are_random_and_inside() -> None:
    kernel = parse_kernel("-r1*log(1+r2*D)**r3 - r4*D**r5")
    rows = [draw(kernel.parameters, torch.Generator().manual_seed(s)) for s in range(200)]
    for name, r in kernel.parameters.items():
        values = [row[name] for row in rows]
        assert r.lowest <= min(values)
        assert max(values) <= (r.highest or r.stop)
        assert max(values) - min(values) > 0.8 * (min(r.stop, r.highest or r.stop) - r.start)
