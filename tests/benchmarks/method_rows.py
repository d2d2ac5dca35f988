"""One layer's attention with methods that move or hide keys: against bias-free SDPA, and scores in memory."""

from __future__ import annotations

from functools import partial

import torch

from kerple_eval.models.decoder.attention import attention, make_table
from kerple_eval.schemes.assembly import build_scheme
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry
from tests.benchmarks.attention_rows import DIM, HEADS, drawn, plain
from tests.benchmarks.harness import Row, interleaved

METHODS = ("self-extend", "dca", "streaming-sink")


def made(name: str, length: int) -> Scheme:
    """RoPE trained at half the ``length``, with the method's own choices."""
    return build_scheme("rope", {}, {name: {}}, Geometry(HEADS, DIM, HEADS * DIM, 1, length // 2))


@torch.inference_mode()
def method_rows() -> list[Row]:
    """Seconds of a layer that the pass does not begin with: what the runs of keys are is found already."""
    rows = []
    for length, memory in ((4096, True), (16384, False)):
        _, (q, k, v) = drawn(length)
        for name in METHODS:
            scheme = made(name, length)
            ours = partial(attention, q, k, v, scheme, make_table(scheme, length, q.dtype, q.device))
            ways = {"ours": ours, "plain": partial(plain, q, k, v)}
            if memory:
                ways["memory"] = partial(attention, q, k, v, scheme, None)
                torch.testing.assert_close(ours(), ways["memory"](), rtol=0, atol=5e-6)
            ours()
            seconds = interleaved(ways, 5 if memory else 3)
            work = f"layer [1, {HEADS}, {length}, {DIM}], rope, {name}"
            ratio = seconds["ours"] / seconds["plain"]
            rows.append(Row(work, "bias-free causal SDPA", ratio, at_most=None if memory else 2.0))
            if memory:
                ratio = seconds["memory"] / seconds["ours"]
                rows.append(Row(work, "its scores in memory", ratio, at_least=2.0))
    return rows
