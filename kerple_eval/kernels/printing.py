"""A kernel as text that ``parse_kernel`` reads back, and as LaTeX.

Every kernel is written as a sign and an expression: ``-D^p`` is minus ``D**p``, ``-log(1 - k)`` is
minus ``log(1 + ...)`` with the expression of -k inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kerple_eval.kernels.expression import CPD
from kerple_eval.kernels.nodes import Constant, Exp, Log, Power, Product, Root, Scaled, Sum
from kerple_eval.kernels.parameters import ONE, Exponent, Scale


@dataclass(frozen=True)
class Style:
    """How the signs are set."""

    times: str
    divide: Callable[[str, list[str]], str]
    power: Callable[[str, str], str]
    group: Callable[[str], str]
    call: Callable[[str, str], str]
    name: Callable[[str], str]
    number: Callable[[float], str]


def _latex_number(x: float) -> str:
    mantissa, e, exponent = f"{x:.6g}".partition("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if e else mantissa


def _text_number(x: float) -> str:
    return str(int(x)) if x == int(x) and abs(x) < 1e15 else repr(x)


TEXT = Style(
    times="*",
    divide=lambda top, below: "/".join([top, *below]),
    power=lambda base, exponent: f"{base}**{exponent}",
    group=lambda inside: f"({inside})",
    call=lambda name, inside: f"{name}({inside})",
    name=str,
    number=_text_number,
)
LATEX = Style(
    times=r"\,",
    divide=lambda top, below: rf"\frac{{{top}}}{{{' '.join(below)}}}",
    power=lambda base, exponent: f"{base}^{{{exponent}}}",
    group=lambda inside: rf"\left({inside}\right)",
    call=lambda name, inside: rf"\{name}\left({inside}\right)",
    name=lambda name: re.sub(r"(\d+)", r"_{\1}", name),
    number=_latex_number,
)


def text(kernel: CPD) -> str:
    return _signed(kernel, TEXT)


def latex(kernel: CPD) -> str:
    return _signed(kernel, LATEX)


def _signed(kernel: CPD, style: Style, negated: bool = False) -> str:
    """The kernel, or its negative: a sum's terms joined by their signs."""
    terms = kernel.terms if isinstance(kernel, Sum) else (kernel,)
    out = ""
    for term in terms:
        negative, magnitude = _magnitude(term, style)
        if out:
            out += " - " if negative != negated else " + "
        elif negative != negated:
            out = "-"
        out += magnitude
    return out


def _magnitude(kernel: CPD, style: Style) -> tuple[bool, str]:
    """Whether the kernel is minus the expression, and the expression: no sum but in a group."""
    negative = True
    match kernel:
        case Power(exponent, rate):
            base = _scaled(rate, style.name("D"), style)
            if exponent == 1:
                out = base
            else:
                out = style.power(base if rate == ONE else style.group(base), _exponent(exponent, style))
        case Constant(value):
            negative, out = value < 0, style.number(abs(value))
        case Scaled(scale, inner):
            negative, inside = _magnitude(inner, style)
            out = _scaled(scale, inside, style)
        case Sum(terms):
            negative, _ = _magnitude(terms[0], style)
            out = style.group(_signed(kernel, style, negated=negative))
        case Root(inner, alpha):
            base = style.group(_signed(inner, style, negated=True))
            out = style.power(base, _exponent(alpha, style))
        case Log(inner):
            out = style.call("log", _one_minus(inner, style))
        case Exp(inner):
            negative, out = False, style.call("exp", _signed(inner, style))
        case Product(factors):
            negative, out = False, style.times.join(_magnitude(factor, style)[1] for factor in factors)
        case _:
            raise AssertionError(f"no way to write a {type(kernel).__name__}")
    return negative, out


def _one_minus(kernel: CPD, style: Style) -> str:
    """``1 - k``, the number at its end joined to the 1."""
    terms = kernel.terms if isinstance(kernel, Sum) else (kernel,)
    number = 1.0
    if isinstance(terms[-1], Constant):
        number, terms = number - terms[-1].value, terms[:-1]
    out = style.number(number)
    for term in terms:
        negative, magnitude = _magnitude(term, style)
        out += (" + " if negative else " - ") + magnitude
    return out


def _scaled(scale: Scale, inside: str, style: Style) -> str:
    number = [] if scale.coefficient == 1 else [style.number(scale.coefficient)]
    top = style.times.join([*number, *(style.name(name) for name in scale.up), inside])
    return style.divide(top, [style.name(name) for name in scale.down]) if scale.down else top


def _exponent(exponent: Exponent, style: Style) -> str:
    return style.number(exponent) if isinstance(exponent, float) else style.name(str(exponent))
