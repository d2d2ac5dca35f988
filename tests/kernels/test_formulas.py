"""Formulas as text: read into the algebra, written back, set in LaTeX; everything else refused."""

from __future__ import annotations

import math
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from kerple_eval.kernels import (
    CPD,
    PD,
    ClosureError,
    Parameter,
    Scale,
    add,
    constant,
    exp,
    log,
    parse_kernel,
    power,
    product,
    root,
)
from kerple_eval.kernels.parameters import draw
from kerple_eval.kernels.parsing import DEEPEST, LONGEST
from tests import oracles
from tests.kernels import random_kernels

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
    "1 - D": ["-D+1", "-(D-1)", "-(-1+D)", "2-D-1", "-D + 0.5 + 0.5"],
    "-log(2-exp(-D))": ["-log(1-(exp(-D)-1))", "-log(1+1-exp(-D))", "-log(-exp(-D)+2)"],
}  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_read_and_written(text: str) -> None:
    kernel, printed, latex = FORMULAS[text]
    assert parse_kernel(text) == kernel
    assert str(kernel) == printed
    assert parse_kernel(printed) == kernel
    assert kernel.latex() == latex


@pytest.mark.parametrize(("text", "other"), [(t, o) for t, others in SAME.items() for o in others])
def test_other_spellings_are_the_same_kernel(text: str, other: str) -> None:
    assert parse_kernel(other) == parse_kernel(text)


@pytest.mark.parametrize("text", [*FORMULAS, *(other for others in SAME.values() for other in others)])
def test_a_formula_means_what_its_arithmetic_means(text: str) -> None:
    kernel = parse_kernel(text)
    values = draw(kernel.parameters, torch.Generator().manual_seed(0))
    d = torch.arange(50, dtype=torch.float64)
    got = kernel.bind(values)(d)
    rows = {name: [value] for name, value in values.items()}
    expected = [oracles.formula(text, rows, 1, n)[0] for n in range(50)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(300))
def test_every_kernel_is_written_so_that_it_reads_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = random_kernels.kernel(rng, depth=int(rng.integers(1, 4)))
    if len(str(kernel)) <= LONGEST:
        again = parse_kernel(str(kernel))
        assert again == kernel
        assert isinstance(again, PD) == isinstance(kernel, PD)
        assert str(again) == str(kernel)


@pytest.mark.parametrize("seed", range(100))
def test_latex_is_balanced(seed: int) -> None:
    latex = random_kernels.kernel(np.random.default_rng(seed), depth=3).latex()
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left(") == latex.count(r"\right)") == latex.count("(")
    assert "*" not in latex
    assert "None" not in latex


# --- Refusals ----------------------------------------------------------------------------------

GRAMMAR = "a formula has D, r1, r2"

#: text -> (sub-expression or character named, its column, rule)
REFUSED: dict[str, tuple[str, int, str]] = {
    # outside the closure
    "D": ("D", 1, "minus it is"),
    "r1*D**r2": ("r1*D**r2", 1, "minus it is"),
    "-exp(-D)": ("-exp(-D)", 1, "minus it is"),
    "-D**2.1": ("D**2.1", 2, "0 < p <= 2 only, got p = 2.1"),
    "-D-r1*D**2.0001": ("D**2.0001", 7, "0 < p <= 2"),
    "-D**0": ("D**0", 2, "0 < p <= 2"),
    "-D**-1": ("D**-1", 2, "0 < p <= 2"),
    "-D**-r1": ("D**-r1", 2, "an exponent is a number or one parameter"),
    "-D**(2*r1)": ("D**(2*r1)", 2, "an exponent is a number or one parameter"),
    "-D**D": ("D**D", 2, "an exponent is a number or one parameter"),
    "-2**D": ("2**D", 2, "a power is taken of D or of a kernel"),
    "-r1**2*D": ("r1**2", 2, "a power is taken of D or of a kernel"),
    "-D+D**0.5": ("-D+D**0.5", 1, "difference"),
    "exp(-D)-exp(-2*D)": ("exp(-D)-exp(-2*D)", 1, "difference"),
    "-log(1+D-D**2)": ("1+D-D**2", 6, "difference"),
    "-D*D": ("-D*D", 1, "product is taken of PD"),
    "exp(-D)*D": ("exp(-D)*D", 1, "product is taken of PD"),
    "0*D": ("0*D", 1, "scale must be positive"),
    "-D*(1-1)": ("-D*(1-1)", 1, "scale must be positive"),
    "-log(1+D)**1.5": ("log(1+D)**1.5", 2, "0 < alpha < 1, got alpha = 1.5"),
    "-log(1+D)**1": ("log(1+D)**1", 2, "0 < alpha < 1"),
    "-(1+r1*D)**2": ("(1+r1*D)**2", 2, "0 < alpha < 1"),
    "-(-D)**0.5": ("(-D)**0.5", 2, "taken of what is positive"),
    "exp(-D)**0.5": ("exp(-D)**0.5", 1, "exp(a*k)"),
    "exp(-D)**r1": ("exp(-D)**r1", 1, "exp(a*k)"),
    "exp(D)": ("exp(D)", 1, "Schoenberg"),
    "exp(r1*log(1+D))": ("exp(r1*log(1+D))", 1, "Schoenberg"),
    "exp(r1)*exp(-D)": ("exp(r1)", 1, "Schoenberg"),
    "-log(D)": ("log(D)", 2, "can reach 1 at D = 0"),
    "-log(0.5+D)": ("log(0.5+D)", 2, "can reach 0.5 at D = 0"),
    "-log(1+D-exp(-r1*D))": ("log(1+D-exp(-r1*D))", 2, "can reach 1 at D = 0"),
    "-log(1-D)": ("log(1-D)", 2, "log is taken of 1 - k"),
    "-log(exp(-D))": ("log(exp(-D))", 2, "log is taken of 1 - k"),
    "-log(r1)*D": ("log(r1)", 2, "log is taken of 1 - k"),
    "-log(r1+D)": ("r1+D", 6, "constants are numbers"),
    "r1-D": ("r1-D", 1, "constants are numbers"),
    "-D**(r1+1)": ("r1+1", 6, "constants are numbers"),
    "1/(1+D)": ("1/(1+D)", 1, "exp(-log(1 + X))"),
    "-r1/D": ("-r1/D", 1, "dividing by a kernel"),
    "r1": ("r1", 1, "depends on D"),
    "-0.5*r1/r2": ("-0.5*r1/r2", 1, "depends on D"),
    "7": ("7", 1, "depends on D"),
    "exp(1)": ("exp(1)", 1, "depends on D"),
    # numbers
    "-D/0": ("-D/0", 1, "division by zero"),
    "-D/(1-1.0)": ("-D/(1-1.0)", 1, "division by zero"),
    "-1/0*D": ("-1/0", 1, "division by zero"),
    "-0**-1*D": ("0**-1", 2, "division by zero"),
    "-1e999*D": ("1e999", 2, "not a finite number"),
    "-D**9**9**9": ("9**9**9", 5, "not a finite number"),
    "-9**9**9**9**9*D": ("9**9**9", 8, "not a finite number"),
    "-1e308*10*D": ("-1e308*10", 1, "not a finite number"),
    "-1e308*r1*10*D": ("-1e308*r1*10", 1, "positive and finite"),
    "-1e-300*r1*1e-300*D": ("-1e-300*r1*1e-300", 1, "scale must be positive"),
    "-(-1)**0.5*D": ("(-1)**0.5", 2, "not a finite number"),
    "-log(0)*D": ("log(0)", 2, "not a finite number"),
    "-log(-1)*D": ("log(-1)", 2, "not a finite number"),
    "-exp(1e4)*D": ("exp(1e4)", 2, "not a finite number"),
    "-1" + "0" * 290 + "**9*D": ("1" + "0" * 290 + "**9", 2, "not a finite number"),
    # names and shapes of Python that a formula does not have
    "-x*D": ("x", 2, "unknown name"),
    "-d": ("d", 2, "did you mean D?"),
    "-R1*D": ("R1", 2, "did you mean r1?"),
    "-Log(1+D)": ("Log(1+D)", 2, GRAMMAR),
    "-r0*D": ("r0", 2, "unknown name"),
    "-r100*D": ("r100", 2, "unknown name"),
    "-r*D": ("r", 2, "unknown name"),
    "-log*D": ("log", 2, "takes an argument"),
    "-True*D": ("True", 2, GRAMMAR),
    "-None*D": ("None", 2, GRAMMAR),
    "-1j*D": ("1j", 2, GRAMMAR),
    "D.real": ("D.real", 1, GRAMMAR),
    "-D.__class__": ("_", 4, GRAMMAR),
    "__import__('os')": ("_", 1, GRAMMAR),
    "eval(D)": ("eval(D)", 1, GRAMMAR),
    "-sqrt(D)": ("sqrt(D)", 2, GRAMMAR),
    "-D(3)": ("D(3)", 2, GRAMMAR),
    "log()": ("log()", 1, GRAMMAR),
    "log(*D)": ("*D", 5, GRAMMAR),
    "exp(**D)": ("exp(**D)", 1, GRAMMAR),
    "log(1+D)(D)": ("log(1+D)(D)", 1, GRAMMAR),
    "-D if D else D": ("-D if D else D", 1, GRAMMAR),
    "-D or D": ("-D or D", 1, GRAMMAR),
    "not D": ("not D", 1, GRAMMAR),
    "-D//2": ("-D//2", 1, GRAMMAR),
    "await D": ("await D", 1, GRAMMAR),
    "()": ("()", 1, GRAMMAR),
    "(yield)": ("yield", 2, GRAMMAR),
    "...": ("...", 1, GRAMMAR),
    # characters
    "-D^2": ("^", 3, "a power is written **"),
    "-D%2": ("%", 3, GRAMMAR),
    "-D@D": ("@", 3, GRAMMAR),
    "~D": ("~", 1, GRAMMAR),
    "-D<3": ("<", 3, GRAMMAR),
    "[D]": ("[", 1, GRAMMAR),
    "(D,D)": (",", 3, GRAMMAR),
    "log(x=D)": ("=", 6, GRAMMAR),
    "lambda: D": (":", 7, GRAMMAR),
    "(D:=1)": (":", 3, GRAMMAR),
    "f'{D}'": ("'", 2, GRAMMAR),
    "-D # a": ("#", 4, GRAMMAR),
    "-D\n-D": (r"\n", 3, GRAMMAR),
    "-D\x00": (r"\x00", 3, GRAMMAR),
    "\N{MINUS SIGN}D": (r"\u2212", 1, GRAMMAR),
    "-\N{FULLWIDTH LATIN CAPITAL LETTER D}": (r"\uff24", 2, GRAMMAR),
    "-D\N{RIGHT-TO-LEFT OVERRIDE}": (r"\u202e", 3, GRAMMAR),
    "-D**\N{SUPERSCRIPT TWO}": (r"\xb2", 5, GRAMMAR),
    "-r\N{ARABIC-INDIC DIGIT ONE}*D": (r"\u0661", 3, GRAMMAR),
    "-D\N{PILE OF POO}": (r"\U0001f4a9", 3, GRAMMAR),
    "-1_0*D": ("_", 3, GRAMMAR),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=ascii)
def test_refusals_name_the_place_and_the_rule(text: str) -> None:
    part, column, rule = REFUSED[text]
    with pytest.raises(ClosureError) as caught:
        parse_kernel(text)
    message = str(caught.value)
    assert rule in message
    assert f"'{part}'" in message or f'"{part}"' in message
    if f"'{part}': " not in message or part != text:
        assert f"column {column}" in message
    assert message.isascii()
    assert message.isprintable()


BROKEN = ["-", "-D*", "2D", "-D)", "(-D", "-D D", "-log(1+D", "-D***2", "*D", "-D+/2", "-3.4.5*D", "-08*D",
          "for", "import os", "-1e*D", "0x*D", "-r1 r2", "-D if", ".", "1or D"]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_expression_is_refused_in_one_line(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ClosureError) as caught:
            parse_kernel(text)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_formula_is_refused(text: str) -> None:
    with pytest.raises(ClosureError, match="empty formula"):
        parse_kernel(text)


HOSTILE = {
    "10k parentheses": "(" * 10_000 + "D" + ")" * 10_000,
    "nothing but parentheses": "(" * LONGEST,
    "10k minus signs": "-" * 10_001 + "D",
    "minus signs that fit": "-" * (LONGEST - 1) + "D",
    "powers": "-D" + "**2" * 99,
    "powers of numbers": "-" + "9**" * 90 + "9*D",
    "nested logarithms": "-" + "log(1+" * 42 + "D" + ")" * 42,
    "a digit string": "-" + "9" * 5000 + "*D",
    "a long name": "-" + "r" * 200 + "*D",
    "a million characters": "-D" + "+1" * 500_000,
    "null bytes": "-D" + "\0" * 50,
    "emoji": "\N{PILE OF POO}" * 200,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_once_in_one_line(name: str) -> None:
    limit = sys.getrecursionlimit()
    began = time.perf_counter()
    with pytest.raises(ClosureError) as caught:
        parse_kernel(HOSTILE[name])
    assert time.perf_counter() - began < 1
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2 * LONGEST + 200
    assert sys.getrecursionlimit() == limit


def test_depth_and_length_up_to_the_bounds_are_read() -> None:
    deep = "-" + "log(1+" * ((DEEPEST - 1) // 2) + "D" + ")" * ((DEEPEST - 1) // 2)
    assert parse_kernel(deep)(torch.tensor([0.0, 1.0]), {})[1] < 0
    wide = "-" + "(" * ((LONGEST - 2) // 2) + "D" + ")" * ((LONGEST - 2) // 2)
    assert parse_kernel(wide) == power()
    assert parse_kernel(f"-D{' ' * (LONGEST - 4)}-D") == power() + power()
    with pytest.raises(ClosureError, match=f"at most {LONGEST} characters, this one {LONGEST + 1}"):
        parse_kernel(f"-D{' ' * (LONGEST - 3)}-D")


@pytest.mark.parametrize("seed", range(400))
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
