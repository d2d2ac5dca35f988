"""Formulas as text: read into the algebra, written back, set in LaTeX."""

from __future__ import annotations

import math

import numpy as np
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
    log,
    parse_kernel,
    power,
    product,
    root,
)
from kerple_eval.schemes.kernels.parameters import draw
from kerple_eval.schemes.kernels.parsing import LONGEST
from tests.helpers import oracles
from tests.helpers.cases import each_case
from tests.schemes.kernels import random_kernels

R1, R2, R3, R4, R5 = (Parameter(f"r{n}") for n in range(1, 6))

#: text -> the kernel, its text as printed, its LaTeX
FORMULAS: dict[str, tuple[CPD, str, str]] = {
    "-D": (power(), "-D", "-D"),
    "-r1*D**r2": (R1 * power(R2), "-r1*D**r2", r"-r_{1}\,D^{r_{2}}"),
    "-r1*log(1+r2*D**r3)": (
        R1 * log(R2 * power(R3)),
        "-r1*log(1 + r2*D**r3)",
        r"-r_{1}\,\log\left(1 + r_{2}\,D^{r_{3}}\right)",
    ),
    "r1*exp(-r2*D**2)": (
        R1 * exp(R2 * power(2.0)),
        "r1*exp(-r2*D**2)",
        r"r_{1}\,\exp\left(-r_{2}\,D^{2}\right)",
    ),
    "-(r1*D)**0.5": (power(0.5, R1), "-(r1*D)**0.5", r"-\left(r_{1}\,D\right)^{0.5}"),
    "-(r1*D**r2)**0.5": (
        root(R1 * power(R2), 0.5),
        "-(r1*D**r2)**0.5",
        r"-\left(r_{1}\,D^{r_{2}}\right)^{0.5}",
    ),
    "-log(1+D)**r1": (
        root(log(power()), R1),
        "-(log(1 + D))**r1",
        r"-\left(\log\left(1 + D\right)\right)^{r_{1}}",
    ),
    "-r1*D**r2 - r3*log(1+r4*D**r5)": (
        R1 * power(R2) + R3 * log(R4 * power(R5)),
        "-r1*D**r2 - r3*log(1 + r4*D**r5)",
        r"-r_{1}\,D^{r_{2}} - r_{3}\,\log\left(1 + r_{4}\,D^{r_{5}}\right)",
    ),
    "-r1*(D + log(1.5+D))": (
        R1 * (power() + log(power() - 0.5)),
        "-r1*(D + log(1.5 + D))",
        r"-r_{1}\,\left(D + \log\left(1.5 + D\right)\right)",
    ),
    "-log(2-exp(-D))": (
        log(exp(power()) - 1.0),
        "-log(2 - exp(-D))",
        r"-\log\left(2 - \exp\left(-D\right)\right)",
    ),
    "-log(1+log(1+D)**.5)": (
        log(root(log(power()), 0.5)),
        "-log(1 + (log(1 + D))**0.5)",
        r"-\log\left(1 + \left(\log\left(1 + D\right)\right)^{0.5}\right)",
    ),
    "0.5*r1*exp(-D/r2)*exp(-D**2)+1": (
        add(0.5 * (R1 * product(exp(power() / R2), exp(power(2.0)))), constant(1.0)),
        "0.5*r1*exp(-D/r2)*exp(-D**2) + 1",
        r"0.5\,r_{1}\,\exp\left(-\frac{D}{r_{2}}\right)\,\exp\left(-D^{2}\right) + 1",
    ),
    "-1e-5*D/r10/r2": (
        Scale(1e-5, (), ("r10", "r2")) * power(),
        "-1e-05*D/r2/r10",
        r"-\frac{1 \cdot 10^{-5}\,D}{r_{2} r_{10}}",
    ),
    "exp(exp(-D)-D)": (
        exp(exp(power()) + power()),
        "exp(exp(-D) - D)",
        r"\exp\left(\exp\left(-D\right) - D\right)",
    ),
    "1 - D": (power() + 1.0, "-D + 1", "-D + 1"),
    "-2*(1+D)": (2 * (power() - 1.0), "-2*(D + 1)", r"-2\,\left(D + 1\right)"),
    "-(1+D)**0.5": (root(power() - 1.0, 0.5), "-(D + 1)**0.5", r"-\left(D + 1\right)^{0.5}"),
}  # fmt: skip

#: Other spellings of the same kernels.
SAME = {
    "-D": ["(-D)", "-1*D", "D*-1", "-D/1", "-(D)", "--(-D)", "+-D", " - D ", "-D**1", "D/-1", "-D*2/2",
           "-D+0", "-exp(0)*D", "log(1)-D", "-(3-2)**2*D"],
    "-r1*D**r2": ["-(D**r2)*r1", "r1*-D**r2", "-1.0*r1*D**(r2)", "-(r1)*(D)**(r2)", "-D**r2*r1"],
    "-(r1*D)**0.5": ["-(D*r1)**.5", "-(r1*D)**(1/2)", "-(r1*D)**5e-1", "-(r1*D)**2**-1"],
    "exp(-D)*exp(-D)": ["-exp(-D)*-exp(-D)", "-(-exp(-D)*exp(-D))", "-(exp(-D)*(-exp(-D)))"],
    "1 - D": ["-D+1", "-(D-1)", "-(-1+D)", "2-D-1", "-D + 0.5 + 0.5"],
    "-log(2-exp(-D))": ["-log(1-(exp(-D)-1))", "-log(1+1-exp(-D))", "-log(-exp(-D)+2)"],
}  # fmt: skip


@each_case("text", FORMULAS)
def test_formulas_are_read_and_written(text: str) -> None:
    kernel, printed, latex = FORMULAS[text]
    assert parse_kernel(text) == kernel
    assert str(kernel) == printed
    assert parse_kernel(printed) == kernel
    assert kernel.latex() == latex


@each_case(("text", "other"), [(t, o) for t, others in SAME.items() for o in others])
def test_other_spellings_are_the_same_kernel(text: str, other: str) -> None:
    assert parse_kernel(other) == parse_kernel(text)


@each_case("text", [*FORMULAS, *(other for others in SAME.values() for other in others)])
def test_a_formula_means_what_its_arithmetic_means(text: str) -> None:
    kernel = parse_kernel(text)
    values = draw(kernel.parameters, torch.Generator().manual_seed(0))
    d = torch.arange(50, dtype=torch.float64)
    got = kernel.bind(values)(d)
    rows = {name: [value] for name, value in values.items()}
    expected = [oracles.formula(text, rows, 1, n)[0] for n in range(50)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


@each_case("seed", range(300))
def test_every_kernel_is_written_so_that_it_reads_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = random_kernels.kernel(rng, depth=int(rng.integers(1, 4)))
    if len(str(kernel)) <= LONGEST:
        again = parse_kernel(str(kernel))
        assert again == kernel
        assert isinstance(again, PD) == isinstance(kernel, PD)
        assert str(again) == str(kernel)


@each_case("seed", range(100))
def test_latex_is_balanced(seed: int) -> None:
    latex = random_kernels.kernel(np.random.default_rng(seed), depth=3).latex()
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left(") == latex.count(r"\right)") == latex.count("(")
    assert "*" not in latex
    assert "None" not in latex


@each_case("seed", range(400))
def test_random_text_gives_a_kernel_or_a_line(seed: int) -> None:
    """Tokens of the grammar in random order: never another exception, never a kernel that is none."""
    rng = np.random.default_rng(seed)
    parts = [
        "D",
        "D",
        "r1",
        "r2",
        "2",
        "0.5",
        "1",
        "0",
        "-",
        "-",
        "+",
        "*",
        "/",
        "**",
        "(",
        ")",
        "log(",
        "exp(",
        "(1+",
    ]
    for _ in range(50):
        text = "-" + "".join(parts[i] for i in rng.integers(0, len(parts), rng.integers(1, 9)))
        text += ")" * (text.count("(") - text.count(")"))
        try:
            kernel = parse_kernel(text)
        except ClosureError as error:
            assert str(error).isprintable()
            continue
        values = draw(kernel.parameters, torch.Generator().manual_seed(seed))
        rows = {name: [value] for name, value in values.items()}
        for d in (1, 2, 7):
            got = float(kernel.bind(values)(torch.tensor(float(d), dtype=torch.float64)))
            assert math.isclose(got, oracles.formula(text, rows, 1, d)[0], rel_tol=1e-9, abs_tol=1e-12), text


#: Formulas that are kernels, and the plain formula of each; floats would misjudge a sign or a bound.
EXACT = {
    "-log(1 + D - 0.1 - 0.2 + 0.3)": lambda d: -math.log(1 + d),
    "-(D + 0.1 + 0.2 - 0.3)**0.5": lambda d: -math.sqrt(d),
    "-log(1 + 0.1*(D+1) + 0.2*(D+1) - 0.3)": lambda d: -math.log(1 + 0.3 * d),
    "-D**(0.1**2*200)": lambda d: -d * d,
    "-log(0.5 + D)": lambda d: -math.log(0.5 + d),
    "-log(1e-3 + D**2)": lambda d: -math.log(1e-3 + d * d),
    "-log(0.25 + D + log(1+D))": lambda d: -math.log(0.25 + d + math.log1p(d)),
    "-log(0.2 + 0.3*(1+D)**0.5)": lambda d: -math.log(0.2 + 0.3 * math.sqrt(1 + d)),
    "-log(1 - 0.7 + D)": lambda d: -math.log(0.3 + d),
    "exp(-log(0.5 + D))": lambda d: 1 / (0.5 + d),
    "-log(1 + log(0.5 + D) + 0.6931471805599453)": lambda d: -math.log1p(math.log1p(2 * d)),
}


@each_case("text", EXACT)
def test_signs_are_decided_without_rounding(text: str) -> None:
    kernel = parse_kernel(text)
    distance = torch.arange(200, dtype=torch.float64)
    expected = [EXACT[text](d) for d in range(200)]
    np.testing.assert_allclose(kernel(distance, {}).numpy(), expected, rtol=1e-13, atol=1e-15)
    assert is_cpd(kernel.bind({}))
    assert parse_kernel(str(kernel)) == kernel


def test_a_logarithm_of_any_positive_constant_and_kernel() -> None:
    """``-log(c + X)`` against the formula, CPD by its eigenvalues, for random X and c down to 1e-6."""
    generator = torch.Generator().manual_seed(0)
    distance = torch.arange(48, dtype=torch.float64)
    for n in range(40):
        inner = parse_kernel(("-D", "-r1*D**r2", "-log(1+r1*D)**r2", "-r1*log(1+D)-D**1.5")[n % 4])
        values = draw(inner.parameters, generator)
        c = 10.0 ** -(6 * n / 40)
        kernel = parse_kernel(f"-log({c!r} - ({inner}))")
        rows = {name: torch.tensor([[x]], dtype=torch.float64) for name, x in values.items()}
        got = kernel(distance, rows).flatten()
        torch.testing.assert_close(
            got, -torch.log(c - inner(distance, rows).flatten()), rtol=1e-12, atol=1e-12
        )
        assert is_cpd(kernel.bind(values), 48)
