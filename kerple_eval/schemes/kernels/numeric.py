"""Whether a function of distance is a (conditionally) positive definite kernel, by eigenvalues.

A kernel is CPD exactly when every matrix ``K_ij = k(x_i, x_j)`` is positive semi-definite on the
subspace orthogonal to the all-ones vector **1**, and PD when it is so everywhere (KERPLE, Chi et al.
2022, Definition 1). Checks are made in float64 on a finite point set.

**The offset.** For a fixed finite point set and a *strictly* CPD kernel some c >= 0 makes
``K + c 1 1^T`` positive semi-definite (Lemma 1); softmax does not see c, since it adds the same
number to every logit of a row. The lemma needs care: c grows with the number of points (an
unbounded ``-D^p`` has none that serves an infinite set), and at exponent 2 the matrix is singular
on **1**'s complement and *no* c works for three or more points, although the kernel is CPD.
:func:`pd_offset` computes the smallest c or raises :class:`NoOffsetError`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor], Tensor]


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


def is_pd(kernel: Kernel, n: int = 64, *, points: Tensor | None = None, tolerance: float = 1e-10) -> bool:
    """Whether K itself is positive semi-definite, up to rounding (as in :func:`is_cpd`)."""
    matrix = kernel_matrix(kernel, _points(n, points))
    if not bool(torch.isfinite(matrix).all()):
        return False
    eigenvalues = torch.linalg.eigvalsh(matrix)
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
