"""Training seeds and text as separate sources of uncertainty.

S models that differ in the training seed alone, scored on the same n documents: sums s_kd (nats),
counts c_d (targets), C = sum c_d, R_k = sum_d s_kd / C, R = mean R_k.

* ``spread``: mean +- standard deviation over seeds (S - 1 in the denominator), as the KERPLE paper's
  tables; the text does not vary in it.
* ``crossed``: seeds and documents as crossed random effects without replication. With
  x_kd = (s_kd - R_k c_d) n / C the linearised contribution of document d under seed k,

      x_kd = document_d + rest_kd,     R_k = R + seed_k,
      MS_A = n sum_k (R_k - R)^2 / (S-1),   MS_B = S sum_d x_.d^2 / (n-1),
      MS_AB = sum_kd (x_kd - x_.d)^2 / ((S-1)(n-1)),

  the variance components are (MS_A - MS_AB)/n, (MS_B - MS_AB)/S and MS_AB, and the variance of R is
  (MS_A + MS_B - MS_AB) / (S n), with Satterthwaite's degrees of freedom (Searle, Casella and
  McCulloch, Variance Components, 1992, chapter 4). A component estimated below zero is reported as
  estimated and counts as zero in the variance of R. Documents of uneven size enter as in
  :mod:`kerple_eval.stats.intervals`: residuals leave-one-out, n_e - 1 degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kerple_eval.stats.documents import Counts, Sums, effective_documents
from kerple_eval.stats.intervals import Interval, t_interval
from kerple_eval.types import UserError


@dataclass(frozen=True, slots=True)
class Spread:
    """``std`` is None where there is one seed."""

    mean: float
    std: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over seeds (S - 1 in the denominator)."""
    if not values:
        raise UserError("a mean over seeds needs a seed; none given")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, len(values))


@dataclass(frozen=True, slots=True)
class Crossed:
    """The pooled interval of the mean over seeds, and the variance components (nats per target squared).

    ``seed`` is the variance of the mean loss between seeds; ``document`` of a document's contribution,
    so that document / n is what text adds to the variance of the mean; ``rest`` what is particular to a
    seed on a document, with noise. Estimates may lie below zero, which says: none seen.
    """

    interval: Interval
    seed: float
    document: float
    rest: float
    seeds: int
    documents: int

    @property
    def seed_share(self) -> float:
        """Share of the variance of the mean that comes from seeds, components below zero as zero."""
        seed = max(self.seed, 0.0) / self.seeds
        document = max(self.document, 0.0) / self.documents
        whole = seed + document + self.rest / (self.seeds * self.documents)
        return seed / whole if whole else 0.0


def crossed(sums: Sums, counts: Counts | Sums, *, level: float = 0.95) -> Crossed:
    """Pooled interval of the mean over seeds of ``sum(sums[k]) / sum(counts)``; ``sums [S, n]``.

    Raises:
        UserError: fewer than two seeds or documents; one seed's interval is over documents alone.
    """
    s, n = sums.shape
    if s < 2 or n < 2:
        raise UserError(f"seeds and text cannot be told apart with {s} seed and {n} documents")
    sizes = np.asarray(counts, dtype=np.float64)
    share = sizes / sizes.sum()
    ratios = sums.sum(axis=1) / sizes.sum()
    mean = float(ratios.mean())
    leave_one_out = (1 - 1 / n) / (1 - share)  # 1 where documents are of one size
    x = (sums - ratios[:, None] * sizes) * (n / sizes.sum()) * leave_one_out  # [S, n]
    by_document = x.mean(axis=0)
    ms_seed = n * float(((ratios - mean) ** 2).sum()) / (s - 1)
    ms_document = s * float((by_document**2).sum()) / (n - 1)
    ms_rest = float(((x - by_document) ** 2).sum()) / ((s - 1) * (n - 1))
    over_documents = effective_documents(sizes) - 1
    freedom = {"seed": s - 1, "document": over_documents, "rest": (s - 1) * over_documents}
    terms = {"seed": ms_seed, "document": ms_document, "rest": -ms_rest}
    if ms_seed < ms_rest:
        del terms["seed"]
        terms["rest"] += ms_rest
    if ms_document < ms_rest:
        del terms["document"]
        terms["rest"] += ms_rest
    total = sum(terms.values())
    spread_of = sum(value**2 / freedom[name] for name, value in terms.items())
    degrees = total**2 / spread_of if spread_of else float(s - 1)
    error = float(np.sqrt(total / (s * n)))
    return Crossed(
        interval=t_interval(mean, error, degrees, level, "crossed"),
        seed=(ms_seed - ms_rest) / n,
        document=(ms_document - ms_rest) / s,
        rest=ms_rest,
        seeds=s,
        documents=n,
    )
