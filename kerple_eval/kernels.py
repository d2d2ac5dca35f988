"""Conditionally positive definite (CPD) kernels of the distance between two tokens.

A symmetric k is *positive definite* (PD) when ``sum_ij c_i c_j k(x_i, x_j) >= 0`` for every finite
point set and every real c; *conditionally* PD when that holds for every c with ``sum_i c_i = 0``.
So a kernel is CPD exactly when every matrix ``K_ij = k(x_i, x_j)`` is positive semi-definite on
the subspace orthogonal to the all-ones vector **1** (KERPLE, Chi et al. 2022, Definition 1).

Kernels here are functions of the distance ``D = |i - j| >= 0`` (tokens):

* power        ``-r1 D^r2``             r1 > 0, 0 < r2 <= 2   (Corollary 1a)
* logarithmic  ``-r1 log(1 + r2 D)``    r1, r2 > 0            (Corollary 1b with p = 1)

**The offset.** For a fixed finite point set and a *strictly* CPD kernel some c >= 0 makes
``K + c 1 1^T`` positive semi-definite (Lemma 1); softmax does not see c, since it adds the same
number to every logit of a row. The lemma needs care: c grows with the number of points (an
unbounded ``-D^p`` has none that serves an infinite set), and at exponent 2 the matrix is singular
on **1**'s complement and *no* c works for three or more points, although the kernel is CPD.
:func:`pd_offset` computes the smallest c or says that there is none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor], Tensor]


def log_kernel(distance: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """``-r1 log(1 + r2 D)``; broadcasts, so ``r [H, 1]`` and ``D [n]`` give ``[H, n]`` (logits)."""
    return -r1 * torch.log1p(r2 * distance)


def power_kernel(distance: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """``-r1 D^r2``; broadcasts. The gradient in r2 at D = 0 is its limit, 0."""
    # D^r2 log D is 0 * -inf at D = 0; a positive stand-in keeps the gradient finite there.
    positive = distance > 0
    safe = torch.where(positive, distance, torch.ones_like(distance))
    return -r1 * torch.where(positive, safe**r2, torch.zeros_like(distance))


class NoOffsetError(ValueError):
    """No constant makes the kernel matrix of these points positive semi-definite."""


def kernel_matrix(kernel: Kernel, points: Tensor) -> Tensor:
    """``K_ij = kernel(|x_i - x_j|)`` in float64; points ``[n]`` -> ``[n, n]``."""
    x = points.to(torch.float64)
    return kernel((x[:, None] - x[None, :]).abs())


def _points(n: int, points: Tensor | None) -> Tensor:
    if points is not None:
        return points
    if n < 2:
        raise ValueError(f"a kernel matrix needs at least two points, got n={n}")
    return torch.arange(n, dtype=torch.float64)


def _split(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K in an orthonormal basis (Z, 1/sqrt n): ``Z^T K Z``, ``Z^T K u`` and ``u^T K u``."""
    n = matrix.shape[0]
    ones = torch.full((n, 1), n**-0.5, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.cat([ones, torch.eye(n, dtype=torch.float64)[:, 1:]], dim=1))
    u, z = basis[:, :1], basis[:, 1:]
    return z.T @ matrix @ z, z.T @ matrix @ u, (u.T @ matrix @ u).squeeze()


def smallest_eigenvalue(kernel: Kernel, n: int = 64, *, points: Tensor | None = None) -> float:
    """Smallest eigenvalue of K on the subspace orthogonal to **1** (float64).

    Points are ``0 .. n-1`` unless given as ``points [n]``.
    """
    inner, _, _ = _split(kernel_matrix(kernel, _points(n, points)))
    return float(torch.linalg.eigvalsh(inner)[0])


def is_cpd(kernel: Kernel, n: int = 64, *, points: Tensor | None = None, tolerance: float = 1e-10) -> bool:
    """Whether K is positive semi-definite on 1's complement, up to rounding.

    The smallest eigenvalue may be as low as ``-tolerance * largest |eigenvalue|``: a kernel such
    as ``-D^2`` has exact zeros there. Passing is evidence for these points, not a proof; failing
    is a proof that the kernel is not CPD.
    """
    inner, _, _ = _split(kernel_matrix(kernel, _points(n, points)))
    if not bool(torch.isfinite(inner).all()):
        return False
    eigenvalues = torch.linalg.eigvalsh(inner)
    return bool(eigenvalues[0] >= -tolerance * eigenvalues.abs().max())


def pd_offset(
    kernel: Kernel, n: int = 64, *, points: Tensor | None = None, tolerance: float = 1e-10
) -> float:
    """Smallest c >= 0 for which ``K + c 1 1^T`` is positive semi-definite on these points.

    With ``A = Z^T K Z``, ``b = Z^T K u``, ``a = u^T K u`` (u = 1/sqrt n) the block matrix is PSD
    exactly when A is, b lies in A's range and ``a + c n - b^T A^+ b >= 0`` (Schur complement).
    For strictly CPD kernels this is ``-1 / (1^T K^-1 1)``.

    Raises:
        ValueError: K is not CPD on these points, or not finite.
        NoOffsetError: K is CPD but b leaves A's range, as for ``-D^2`` on three points.
    """
    matrix = kernel_matrix(kernel, _points(n, points))
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("not CPD on these points: the kernel is not finite")
    inner, edge, corner = _split(matrix)
    eigenvalues, vectors = torch.linalg.eigh(inner)
    scale = eigenvalues.abs().max()
    if eigenvalues[0] < -tolerance * scale:
        raise ValueError(f"not CPD on these points: smallest eigenvalue {float(eigenvalues[0]):g}")
    coordinates = (vectors.T @ edge).squeeze(1)
    null = eigenvalues <= tolerance * scale
    if bool((coordinates[null].abs() > tolerance**0.5 * coordinates.abs().max()).any()):
        raise NoOffsetError(
            "CPD, but singular on the complement of 1: no constant makes it positive definite here"
        )
    reach = (coordinates[~null] ** 2 / eigenvalues[~null]).sum()
    return max(0.0, float((reach - corner) / matrix.shape[0]))
