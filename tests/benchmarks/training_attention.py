"""Forward and backward of one layer's attention with a learned KERPLE bias, against what it replaces.

    python -m tests.benchmarks.training_attention

Prints milliseconds (best of ten) and ratios to bias-free causal attention, all in one run; gradients
are compared with eager attention's first.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.model.attention import attention, eager_attention, make_table
from kerple_eval.schemes.kerple_log import KerpleLog
from kerple_eval.types import Geometry

BATCH, HEADS, LENGTH, DIM = 8, 4, 512, 32


def main() -> None:
    torch.manual_seed(0)
    scheme = KerpleLog(Geometry(HEADS, DIM, HEADS * DIM, 1, LENGTH))
    q, k, v = (torch.randn(BATCH, HEADS, LENGTH, DIM, requires_grad=True) for _ in range(3))
    up = torch.randn(BATCH, HEADS, LENGTH, DIM)
    distance = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).clamp(min=0)
    future = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)

    def ours() -> Tensor:
        table = make_table(scheme, LENGTH, q.dtype, q.device)
        return attention(q, k, v, scheme, table)

    def masked() -> Tensor:
        bias = scheme.kernel(torch.arange(LENGTH).float())[:, distance] + future
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    ways: dict[str, Callable[[], Tensor]] = {
        "causal, no bias": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "blocked backward": ours,
        "SDPA, materialised bias": masked,
        "eager, as in the release": lambda: eager_attention(q, k, v, scheme),
    }
    leaves = (q, k, v, scheme.r1, scheme.r2)
    reference = torch.autograd.grad((ways["eager, as in the release"]() * up).sum(), leaves)
    got = torch.autograd.grad((ours() * up).sum(), leaves)
    for a, b in zip(got, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    times = {name: _best(way, up, leaves) for name, way in ways.items()}
    base = times["causal, no bias"]
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        print(f"{name:26s} {seconds * 1e3:7.1f} ms  {seconds / base:5.2f} x")


def _best(way: Callable[[], Tensor], up: Tensor, leaves: tuple[Tensor, ...]) -> float:
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        torch.autograd.grad((way() * up).sum(), leaves, allow_unused=True)
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
