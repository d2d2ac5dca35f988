"""How sums, products, powers and functions are written: as text that can be read back, and as LaTeX.

A kernel is written as a sign and an expression: ``-D^p`` is minus ``D**p``, ``-log(1 - k)`` is minus
``log(1 + ...)`` with the expression of -k inside. What is here knows no kernel; each kernel writes itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kerple_eval.schemes.kernels.parameters import Exponent, Parameter, Scale


@dataclass(frozen=True)
class Notation:
    """One notation: its signs, and what is written with them."""

    times: str
    divide: Callable[[str, list[str]], str]
    power: Callable[[str, str], str]
    group: Callable[[str], str]
    call: Callable[[str, str], str]
    name: Callable[[str], str]
    number: Callable[[float], str]

    def signed(self, terms: Iterable[tuple[bool, str]], negated: bool = False) -> str:
        """A sum, or its negative, of terms (whether it is minus an expression, the expression)."""
        out = ""
        for negative, magnitude in terms:
            minus = negative != negated
            out += (" - " if minus else " + ") if out else ("-" if minus else "")
            out += magnitude
        return out

    def minus(self, number: str, terms: Iterable[tuple[bool, str]]) -> str:
        """``number`` less the terms."""
        return number + "".join((" + " if negative else " - ") + magnitude for negative, magnitude in terms)

    def scaled(self, scale: Scale, inside: str) -> str:
        number = [] if scale.coefficient == 1 else [self.number(scale.coefficient)]
        top = self.times.join([*number, *(self.name(name) for name in scale.up), inside])
        return self.divide(top, [self.name(name) for name in scale.down]) if scale.down else top

    def exponent(self, exponent: Exponent) -> str:
        return self.name(exponent.name) if isinstance(exponent, Parameter) else self.number(float(exponent))


def _latex_number(x: float) -> str:
    mantissa, e, exponent = f"{x:.6g}".partition("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if e else mantissa


def _text_number(x: float) -> str:
    return str(int(x)) if x == int(x) and abs(x) < 1e15 else repr(x)


TEXT = Notation(
    times="*",
    divide=lambda top, below: "/".join([top, *below]),
    power=lambda base, exponent: f"{base}**{exponent}",
    group=lambda inside: f"({inside})",
    call=lambda name, inside: f"{name}({inside})",
    name=str,
    number=_text_number,
)
LATEX = Notation(
    times=r"\,",
    divide=lambda top, below: rf"\frac{{{top}}}{{{' '.join(below)}}}",
    power=lambda base, exponent: f"{base}^{{{exponent}}}",
    group=lambda inside: rf"\left({inside}\right)",
    call=lambda name, inside: rf"\{name}\left({inside}\right)",
    name=lambda name: re.sub(r"(\d+)", r"_{\1}", name),
    number=_latex_number,
)
