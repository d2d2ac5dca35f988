"""Kernels of the distance between two tokens, built by rules that keep them CPD or PD.

A symmetric k is *positive definite* (PD) when ``sum_ij c_i c_j k(x_i, x_j) >= 0`` for every finite
point set and every real c; *conditionally* PD (CPD) when that holds for every c with ``sum_i c_i = 0``.
Every PD kernel is CPD. KERPLE's biases are CPD kernels of ``D = |i - j| >= 0`` (tokens).

    -D^p           CPD for 0 < p <= 2                    Power       Fact 4, Corollary 1
    c              CPD; PD where c >= 0                  Constant
    a k            CPD (PD where k is), a > 0            Scaled      Fact 2
    k1 + k2        CPD (PD where both are)               Sum         Fact 2
    -(-k)^alpha    CPD for CPD k <= 0, 0 < alpha < 1     Root        Fact 3
    -log(1 - k)    CPD for CPD k <= 0                    Log         Fact 3
    exp(k)         PD for CPD k                          Exp         Schoenberg
    k1 k2          PD for PD k1, k2                      Product     Schur

Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921), Section 3, after Berg,
Christensen, Ressel, "Harmonic Analysis on Semigroups" (1984), Chapter 3. ``(a D)^p`` is the base
kernel on scaled points.

The types carry the guarantee: a :class:`PD` is a :class:`CPD`, and whatever would leave the rules
raises :class:`~kerple_eval.kernels.parameters.ClosureError` when it is built. ``k <= 0`` is decided at
D = 0, where a CPD kernel of distance is largest: ``2 k(D) <= 2 k(0)`` is the definition at two points
with c = (1, -1).

    r1, r2 = Parameter("r1"), Parameter("r2")
    k = r1 * log(r2 * power(1.5))         # -r1*log(1 + r2*D**1.5)
    k(distance, {"r1": ..., "r2": ...})   # logits
"""

from __future__ import annotations

import math
from typing import overload

from kerple_eval.kernels.expression import CPD, PD, Factor
from kerple_eval.kernels.nodes import (
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
    all_pd,
)
from kerple_eval.kernels.parameters import ONE, ClosureError, Exponent, Parameter, Scale


def power(exponent: Exponent = 1.0, rate: Factor = 1.0) -> CPD:
    """``-(rate D)^exponent``; at exponent 1 the rate is a scale."""
    number = exponent if isinstance(exponent, Parameter) else float(exponent)
    if number == 1.0:
        return scaled(rate, Power(1.0))
    return Power(number, Scale.of(rate))


def constant(value: float) -> CPD:
    return PDConstant(float(value)) if value >= 0 else Constant(float(value))


@overload
def scaled(scale: Factor, kernel: PD) -> PD: ...
@overload
def scaled(scale: Factor, kernel: CPD) -> CPD: ...
def scaled(scale: Factor, kernel: CPD) -> CPD:
    """``scale * kernel``; a scale of a scale is one, and 1 is none."""
    factor = Scale.of(scale)
    if isinstance(kernel, Scaled):
        factor, kernel = factor * kernel.scale, kernel.kernel
    if factor == ONE:
        return kernel
    if isinstance(kernel, Constant):
        if factor.names:
            raise ClosureError("a parameter alone is a constant: constants are numbers")
        return constant(factor.coefficient * kernel.value)
    return PDScaled(factor, kernel) if isinstance(kernel, PD) else Scaled(factor, kernel)


def add(*kernels: CPD) -> CPD:
    """The sum; sums within are opened and numbers put together at the end."""
    terms: list[CPD] = []
    number = 0.0
    for kernel in kernels:
        for term in kernel.terms if isinstance(kernel, Sum) else (kernel,):
            if isinstance(term, Constant):
                number += term.value
            else:
                terms.append(term)
    if number or not terms:
        terms.append(constant(number))
    if len(terms) == 1:
        return terms[0]
    cls = PDSum if all(isinstance(term, PD) for term in terms) else Sum
    return cls(tuple(terms))


def product(*kernels: CPD) -> PD:
    """The product of PD kernels; products within are opened and scales put in front."""
    all_pd(kernels, "a product is taken of PD kernels, such as exp(k)")
    factors: list[CPD] = []
    scale = ONE
    for kernel in kernels:
        if isinstance(kernel, Scaled):
            scale, kernel = scale * kernel.scale, kernel.kernel  # noqa: PLW2901 - what is left of it
        if isinstance(kernel, Constant):
            scale = scale * Scale(kernel.value)
        else:
            factors += kernel.factors if isinstance(kernel, Product) else (kernel,)
    if not factors:
        return PDConstant(scale.coefficient)
    whole = factors[0] if len(factors) == 1 else Product(tuple(factors))
    assert isinstance(whole, PD)
    return scaled(scale, whole)


def root(kernel: CPD, alpha: Exponent) -> CPD:
    """``-(-kernel)^alpha``; of ``-a D`` it is the base kernel ``-(a D)^alpha``, alpha up to 2."""
    number = alpha if isinstance(alpha, Parameter) else float(alpha)
    rate, base = (kernel.scale, kernel.kernel) if isinstance(kernel, Scaled) else (ONE, kernel)
    if base == Power(1.0):
        return power(number, rate)
    made = Root(kernel, number)
    if isinstance(kernel, Constant):
        if isinstance(number, Parameter):
            raise ClosureError("a parameter alone is a constant: constants are numbers")
        return constant(-((-kernel.value) ** number))
    return made


def log(kernel: CPD) -> CPD:
    """``-log(1 - kernel)``."""
    made = Log(kernel)
    return constant(-math.log1p(-kernel.value)) if isinstance(kernel, Constant) else made


def exp(kernel: CPD) -> PD:
    """``exp(kernel)``."""
    made = Exp(kernel)
    return PDConstant(made.upper) if isinstance(kernel, Constant) else made
