"""Text that is no formula, or one that the rules do not build: one line with the place and the rule."""

from __future__ import annotations

import sys
import time
import warnings

import pytest
import torch

from kerple_eval.schemes.kernels import ClosureError, parse_kernel, power
from kerple_eval.schemes.kernels.parsing import DEEPEST, LONGEST
from tests.helpers.cases import each_case

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
    "-2**D": ("2**D", 2, "exp is taken of a CPD kernel (Schoenberg)"),
    "2**(-D)": ("2**(-D)", 1, "is written with exp: exp(-0.693*D)"),
    "0.5**D": ("0.5**D", 1, "is written with exp: exp(-0.693*D)"),
    "10**(-r1*D**r2)": ("10**(-r1*D**r2)", 1, "is written with exp: exp(-2.3*r1*D**r2)"),
    "1**(-D)": ("1**(-D)", 1, "exp is taken of a CPD kernel (Schoenberg)"),
    "(-2)**(-D)": ("(-2)**(-D)", 1, "exp is taken of a CPD kernel (Schoenberg)"),
    "-D**2.0000000000001": ("D**2.0000000000001", 2, "got p = 2.0000000000001"),
    "-D**2.00000000000000000001": ("D**2.00000000000000000001", 2, "got p = 2.00000000000000000001"),
    "-D**(0.1+0.2-0.3)": ("D**(0.1+0.2-0.3)", 2, "got p = 0"),
    "(0.3-0.1-0.2)*D": ("(0.3-0.1-0.2)*D", 1, "a scale must be positive, got 0"),
    "-(D+0.1+0.2-0.30000000000000001)**0.5": (
        "(D+0.1+0.2-0.30000000000000001)**0.5", 2, "can reach 1e-17 at D = 0",
    ),
    "-log(1e-310+D)": ("log(1e-310+D)", 2, "positive and finite"),
    "-log(1e300*(1e300*(1+D)))": ("1e300*(1e300*(1+D))", 6, "positive and finite"),
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
    "-log(D-0.5)": ("log(D-0.5)", 2, "can reach 1.5 at D = 0"),
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


@each_case("text", REFUSED)
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


@each_case("text", BROKEN)
def test_what_is_no_expression_is_refused_in_one_line(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ClosureError) as caught:
            parse_kernel(text)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()


@each_case("text", ["", " ", "\n\t "])
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


@each_case("name", HOSTILE)
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
