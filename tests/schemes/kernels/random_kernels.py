"""Random kernels of the algebra, built by its rules alone, and their formula in plain arithmetic."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from kerple_eval.schemes.kernels import (
    CPD,
    PD,
    Parameter,
    add,
    constant,
    exp,
    log,
    power,
    product,
    root,
    scaled,
)
from kerple_eval.schemes.kernels.algebra import Constant, Exp, Log, Power, Product, Root, Scaled, Sum
from kerple_eval.schemes.kernels.parameters import Exponent, Scale


def number(rng: Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 2)


def name(rng: Generator) -> Parameter:
    return Parameter(f"r{rng.integers(1, 13)}")


def scale(rng: Generator) -> Scale:
    made = Scale(number(rng, 0.1, 3.0)) if rng.random() < 0.5 else Scale()
    for _ in range(rng.integers(0, 3)):
        made = made * Scale.of(name(rng))
    return made * Scale.of(name(rng)).inverse() if rng.random() < 0.2 else made


def exponent(rng: Generator, top: float) -> Exponent:
    return name(rng) if rng.random() < 0.5 else number(rng, 0.1, top)


def negative(rng: Generator, depth: int) -> CPD:
    """A CPD kernel <= 0."""
    kind = rng.integers(0, 6) if depth else 0
    if kind == 0:
        return power(exponent(rng, 2.0), scale(rng) if rng.random() < 0.3 else 1.0)
    if kind == 1:
        return scaled(scale(rng), negative(rng, depth - 1))
    if kind == 2:
        return add(negative(rng, depth - 1), negative(rng, depth - 1))
    if kind == 3:
        return root(negative(rng, depth - 1), exponent(rng, 0.95))
    if kind == 4:
        return log(negative(rng, depth - 1))
    bounded = exp(negative(rng, depth - 1))
    return add(bounded, constant(-math.ceil(bounded.upper)))


def positive(rng: Generator, depth: int) -> PD:
    kind = rng.integers(0, 4) if depth else 0
    if kind == 0:
        return exp(negative(rng, max(0, depth - 1)))
    if kind == 1:
        return scaled(scale(rng), positive(rng, depth - 1))
    if kind == 2:
        return positive(rng, depth - 1) + positive(rng, depth - 1)
    return product(positive(rng, depth - 1), positive(rng, depth - 1))


def kernel(rng: Generator, depth: int) -> CPD:
    kind = rng.integers(0, 4)
    if kind == 0:
        return negative(rng, depth)
    if kind == 1:
        return positive(rng, depth)
    if kind == 2:
        return add(negative(rng, depth - 1), positive(rng, depth - 1), constant(number(rng, -2, 2)))
    return exp(add(negative(rng, depth - 1), positive(rng, max(0, depth - 2))))


def by_hand(made: CPD, d: float, values: dict[str, float]) -> float:
    """The kernel at one distance, rule by rule, in Python floats."""

    def factor(s: Scale) -> float:
        return s.coefficient * math.prod(values[n] for n in s.up) / math.prod(values[n] for n in s.down)

    def exponent(p: Exponent) -> float:
        return values[p.name] if isinstance(p, Parameter) else p

    match made:
        case Power(p, rate):
            value = -((factor(rate) * d) ** exponent(p))
        case Constant(c):
            value = c
        case Scaled(s, k):
            value = factor(s) * by_hand(k, d, values)
        case Sum(terms):
            value = sum(by_hand(k, d, values) for k in terms)
        case Root(k, alpha):
            value = -(max(0.0, -by_hand(k, d, values)) ** exponent(alpha))
        case Log(k):
            value = -math.log(1 - by_hand(k, d, values))
        case Exp(k):
            value = math.exp(by_hand(k, d, values))
        case Product(factors):
            value = math.prod(by_hand(k, d, values) for k in factors)
        case _:
            raise AssertionError(made)
    return value


def uneven(rng: Generator, count: int) -> np.ndarray:
    """Distinct points, clustered and spread, unsorted."""
    return np.unique(np.round(np.concatenate([rng.uniform(0, 3, count), rng.uniform(0, 60, count)]), 3))
