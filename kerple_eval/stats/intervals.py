"""Intervals of a ratio of sums over documents: mean loss, perplexity, bits per byte.

R = sum s_i / sum c_i over n documents (s_i nats, c_i targets, C = sum c_i; where a tool's protocol weighs
windows, weighted losses and weights, so that R is that tool's number). The default is the delta method: R
is linearised, r_i = s_i - R c_i, and

    se^2 = (n-1)/n * sum (r_i / (1 - c_i/C))^2 / C^2,   R +- t_{q} se,   q = n_e - 1 degrees of freedom.

r_i / (1 - c_i/C) is the residual against the other documents' ratio (the leave-one-out or HC3 form,
MacKinnon and White 1985), and n_e = C^2 / sum c_i^2 the effective number of documents (Kish 1965). With
documents of one size this is the textbook n/(n-1) sum r_i^2 / C^2 with t_{n-1} to the last digit; with
uneven sizes the textbook form (``delta-plain`` here) falls short of its level (results/statistics).
``bootstrap`` draws documents with replacement (SciPy, bias-corrected and accelerated).

The interval is of the mean over documents like these, given the model: another training seed is not
in it (:mod:`kerple_eval.stats.seeds`). The interval of perplexity is exp of the ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from kerple_eval.records.reductions import perplexity
from kerple_eval.stats.documents import Counts, DocumentSums, Sums, effective_documents
from kerple_eval.types import UserError

#: Below this there is no interval and no test.
MINIMUM_DOCUMENTS = 5
#: From here on, with sizes nearly even (as good as n / 1.5 of one size), an interval covers 93 to 97 %;
#: elsewhere ``coverage_note`` says what it covers.
ENOUGH_DOCUMENTS, EVEN = 50, 1.5
RESAMPLES = 9999
METHODS = ("delta", "delta-plain", "bootstrap")


@dataclass(frozen=True, slots=True)
class Interval:
    """``estimate`` and the interval around it at ``level``; ``error`` is the standard error."""

    estimate: float
    low: float
    high: float
    level: float
    method: str
    error: float
    freedom: float | None = None  # degrees of freedom of t

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def times(self, factor: float) -> Interval:
        """In another unit."""
        return replace(
            self, estimate=self.estimate * factor, low=self.low * factor, high=self.high * factor,
            error=self.error * factor,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CellInterval:
    """A cell's numbers with their intervals; None, with the reason in ``note``, where there is none.

    ``ppl`` holds the ends alone: exp of the ends of ``nll``, None for an end beyond the largest float.
    """

    documents: int
    effective: float
    mean: float  # nats per target, the cell's ``nll``
    nll: Interval | None
    ppl: tuple[float | None, float | None] | None
    bits_per_byte: Interval | None
    note: str | None


def ratio_interval(
    sums: Sums, counts: Counts | Sums, *, level: float = 0.95, method: str = "delta", seed: int = 0
) -> Interval:
    """Interval of ``sum(sums) / sum(counts)`` over at least two documents; ``seed`` is the bootstrap's."""
    if method not in METHODS:
        raise UserError(f"unknown interval {method!r}: available: {', '.join(METHODS)}")
    _check_level(level)
    if len(sums) < 2:
        raise UserError(f"an interval needs documents to vary over; {len(sums)} given")
    sizes = np.asarray(counts, dtype=np.float64)
    if method == "bootstrap":
        return _bootstrap(sums, sizes, level, seed)
    estimate, error = linearised(sums, sizes, leave_one_out=method == "delta")
    freedom = effective_documents(sizes) - 1 if method == "delta" else len(sums) - 1.0
    return t_interval(estimate, error, freedom, level, method)


def linearised(sums: Sums, sizes: Sums, *, leave_one_out: bool = True) -> tuple[float, float]:
    """The ratio of sums and its standard error."""
    n, total = len(sums), sizes.sum()
    ratio = sums.sum() / total
    residuals = sums - ratio * sizes
    if leave_one_out:
        variance = (n - 1) / n * ((residuals / (1 - sizes / total)) ** 2).sum()
    else:
        variance = n / (n - 1) * (residuals**2).sum()
    return float(ratio), float(math.sqrt(variance) / total)


def t_interval(estimate: float, error: float, freedom: float, level: float, method: str) -> Interval:
    from scipy.special import stdtrit  # noqa: PLC0415 - quantile of t, for any real freedom

    reach = float(stdtrit(freedom, (1 + level) / 2)) * error
    return Interval(estimate, estimate - reach, estimate + reach, level, method, error, freedom)


def _bootstrap(sums: Sums, sizes: Sums, level: float, seed: int) -> Interval:
    from scipy.stats import bootstrap  # noqa: PLC0415

    estimate = float(sums.sum() / sizes.sum())
    if np.ptp(sums / sizes) == 0:  # every resample gives the same ratio; SciPy would return NaN
        return Interval(estimate, estimate, estimate, level, "bootstrap", 0.0)

    def ratio(s: Sums, c: Sums, axis: int = -1) -> Sums:
        return np.asarray(s.sum(axis=axis) / c.sum(axis=axis))

    result = bootstrap(
        (sums, sizes), ratio, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=batch(len(sums)),
        confidence_level=level, method="BCa", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = (float(end) for end in result.confidence_interval)
    return Interval(estimate, low, high, level, "bootstrap", float(result.standard_error))


def batch(documents: int) -> int:
    """Resamples at a time: some 80 MB."""
    return max(1, min(1000, 10_000_000 // documents))


def sums_interval(
    found: DocumentSums, *, level: float = 0.95, method: str = "delta", seed: int = 0
) -> CellInterval:
    """Intervals over a finished cell's documents; none, and why, below ``MINIMUM_DOCUMENTS``."""
    _check_level(level)
    effective = effective_documents(found.counts)
    if why := shortage(found.counts):
        return CellInterval(len(found), effective, found.mean, None, None, None, why)
    nll = ratio_interval(found.sums, found.counts, level=level, method=method, seed=seed)
    bits_per_byte = None
    if found.bytes is not None:
        nats = ratio_interval(found.sums, found.bytes, level=level, method=method, seed=seed)
        bits_per_byte = nats.times(1 / math.log(2))
    ends = (perplexity(nll.low), perplexity(nll.high))
    note = coverage_note(len(found), effective, level)
    return CellInterval(len(found), effective, found.mean, nll, ends, bits_per_byte, note)


def shortage(counts: Counts | Sums) -> str | None:
    """Why documents of these sizes carry no interval; None where they do."""
    effective = effective_documents(counts)
    if len(counts) < MINIMUM_DOCUMENTS:
        return not_enough(len(counts))
    if effective < 2:
        return f"not enough documents: of {len(counts)} the largest holds nearly all targets"
    return None


def not_enough(documents: int, what: str = "an interval") -> str:
    return f"not enough documents: {documents}, and {what} needs {MINIMUM_DOCUMENTS}"


def coverage_note(documents: int, effective: float, level: float = 0.95) -> str | None:
    """What an interval over so few or so uneven documents covers; None where it covers its level.

    The figures are the lowest and highest of the simulated worlds of ``results/statistics`` at the
    nearest smaller number of documents.
    """
    even = effective >= documents / EVEN
    if documents >= ENOUGH_DOCUMENTS and even:
        return None
    how = f"{documents} documents, as good as {effective:.0f} of one size"
    if level != 0.95:
        return f"{how}: too few or too uneven for an interval to be sure of covering {100 * level:g} %"
    low, high = COVERAGE[max(n for n in COVERAGE if n <= documents)][0 if even else 1]
    return f"{how}: in simulation such a 95 % interval covers {low:.0f} to {high:.0f} %"


#: Documents -> (lowest, highest) coverage in percent of the default interval, results/statistics: over the
#: worlds with nearly even sizes, and over all.
COVERAGE: dict[int, tuple[tuple[float, float], tuple[float, float]]] = {
    5: ((92.5, 95.3), (92.5, 96.6)),
    10: ((92.3, 95.3), (90.0, 95.5)),
    20: ((93.0, 95.1), (90.5, 95.1)),
    30: ((92.9, 95.0), (90.1, 95.0)),
    50: ((93.8, 94.9), (90.6, 94.9)),
    100: ((94.0, 95.1), (91.8, 95.1)),
    200: ((94.6, 95.3), (92.6, 95.3)),
}


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"level {level}: a level lies between 0 and 1, as 0.95")
