"""FlexAttention's blocks left out head by head: the same outputs, certified, whatever the values are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kerple_eval.models.decoder import flex as module
from kerple_eval.models.decoder.attention import attention, eager_attention
from kerple_eval.models.decoder.flex import BLOCK, FlexScores
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.base import Scheme
from tests.helpers import tiny
from tests.helpers.cases import each_case

CPU = torch.device("cpu")
KEYS = 1100  # nine blocks, a part of a tenth, and zeros after


def by_blocks(
    q: Tensor, k: Tensor, v: Tensor, *, score_mod: Any, block_mask: Any, kernel_options: Any
) -> Tensor:
    """What the compiled loop computes: blocks that the mask does not list are not seen, whatever it says."""
    heads, rows, keys = q.shape[1], q.shape[2], k.shape[2]
    h, i, j = torch.arange(heads)[:, None, None], torch.arange(rows)[:, None], torch.arange(keys)
    part, whole = (
        _dense(*pair, keys // BLOCK).repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
        for pair in (
            (block_mask.kv_num_blocks, block_mask.kv_indices),
            (block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
        )
    )
    seen = whole | (part & block_mask.mask_mod(0, h, i, j))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = score_mod(scores, 0, h, i, j).masked_fill(~seen, -torch.inf)
    return torch.where(seen.any(-1, keepdim=True), scores.softmax(-1), 0.0) @ v


def _dense(counts: Tensor, indices: Tensor, columns: int) -> Tensor:
    """``[H, R, C]`` of the first ``counts [1, H, R]`` of ``indices [1, H, R, C]``."""
    listed = torch.arange(columns) < counts[0, ..., None]
    found = torch.zeros(indices.shape[1:], dtype=torch.bool)
    return found.scatter(2, indices[0].long(), listed)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short windows are pruned, by a loop that visits the listed blocks alone."""
    monkeypatch.setattr(module, "PAYS", 0.0)
    monkeypatch.setattr(module, "_uncompiled", lambda: by_blocks)


def scheme(name: str, window: int | None = None) -> Scheme:
    modifiers = {"window": {"width": window}} if window else {}
    return tiny.decoder(tiny.config(name, modifiers=modifiers)).scheme.at(0)


def drawn(rows: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator, dtype=torch.float64) for n in (rows, KEYS, KEYS))
    return [scale * q, k, v]


def pruned(made: Scheme, tensors: list[Tensor]) -> tuple[Tensor, FlexScores]:
    with torch.inference_mode():
        table = FlexScores(made, KEYS, tensors[0].dtype, CPU, prune=True)
        return attention(*tensors, made, table), table


@each_case("name", ["alibi", "kerple-power"])
@each_case("rows", [KEYS, 150, 1])
@each_case("scale", [0.1, 3.0])
def test_blocks_left_out_change_nothing(name: str, rows: int, scale: float) -> None:
    made, tensors = scheme(name), drawn(rows, scale)
    out, table = pruned(made, tensors)
    with torch.inference_mode():
        torch.testing.assert_close(out, eager_attention(*tensors, made), rtol=0, atol=1e-12)
    assert table.pruned.causal == 3 * sum(range(KEYS - rows + 1, KEYS + 1))
    assert table.pruned.scores > 0
    assert table.pruned.bound <= 2**-53
    if scale == 0.1:
        assert table.pruned.left_out > 0.15


def test_a_window_s_blocks_stay_out() -> None:
    made, tensors = scheme("alibi", window=300), drawn(KEYS)
    out, _ = pruned(made, tensors)
    with torch.inference_mode():
        torch.testing.assert_close(out, eager_attention(*tensors, made), rtol=0, atol=1e-12)


def test_values_that_are_seen_from_afar_are_computed_again() -> None:
    """Only the certificate sees them: the blocks of queries that they reach get all their keys."""
    made, tensors = scheme("alibi"), drawn(KEYS, 0.1)
    _, before = pruned(made, tensors)
    tensors[2][:, :, 0] = 1e200
    out, after = pruned(made, tensors)
    with torch.inference_mode():
        exact = eager_attention(*tensors, made)
    change = (out - exact).abs().amax(-1) / exact.abs().amax(-1)
    assert float(change.max()) < 1e-12
    assert after.pruned.scores > before.pruned.scores
    assert after.pruned.bound <= 2**-53


def test_numbers_that_are_not_finite_stay_so() -> None:
    made, tensors = scheme("alibi"), drawn(KEYS, 0.1)
    tensors[1][0, 1, 700] = torch.nan
    out, _ = pruned(made, tensors)
    with torch.inference_mode():
        assert torch.equal(out.isfinite(), eager_attention(*tensors, made).isfinite())


def test_what_is_not_worth_its_norms_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    alibi, flat = scheme_of(tiny.config("alibi")), scheme("kerple-log")
    for pays, length, made, worth in (
        (5300.0, 2048, alibi, False),
        (5300.0, 65536, alibi, True),
        (0.0, 4096, flat, False),
    ):
        monkeypatch.setattr(module, "PAYS", pays)
        table = FlexScores(made, length, torch.float32, CPU, prune=True)
        assert (table.bounds is not None) == worth


@pytest.mark.slow
def test_compiled_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's generated loop visits the blocks that each head lists."""
    from torch.nn.attention import flex_attention  # noqa: PLC0415

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    monkeypatch.setattr(module, "_uncompiled", module._compiled)
    made = scheme("alibi").float()
    generator = torch.Generator().manual_seed(0)
    tensors = [0.3 * torch.randn(2, 3, KEYS, 16, generator=generator) for _ in range(3)]
    for large in (1.0, 1e6):
        tensors[2][:, :, 0] = large
        out, table = pruned(made, tensors)
        with torch.inference_mode():
            exact = eager_attention(*(x.double() for x in tensors), made)
        change = (out - exact).abs().amax(-1) / exact.abs().amax(-1)
        assert float(change.max()) < 1e-5
        assert (table.pruned.left_out > 0.1) == (large == 1.0)  # else most blocks are computed twice
        assert table.pruned.bound <= 2**-24
