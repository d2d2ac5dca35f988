"""Keys left out of attention: the certificate against the true change, in float64, for friend and foe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kerple_eval
from kerple_eval.models.decoder import backends
from kerple_eval.models.decoder import pruning as module
from kerple_eval.models.decoder.attention import KernelTable, attention, eager_attention, make_table
from kerple_eval.models.decoder.backends import resolve_backend
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.models.decoder.pruning import GateBounds, KernelBounds, PrunedShare, pruned_attention
from kerple_eval.records.cell import Cell
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import UserError
from tests.helpers import tiny
from tests.helpers.cases import each_case
from tests.helpers.command import make_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that a short window has many of."""
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "TALL", 48)
    monkeypatch.setattr(module, "CALL", 64)


def drawn(rows: int, keys: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows + 1000 * keys)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator, dtype=torch.float64) for n in (rows, keys, keys))
    return [(scale * q).to(dtype), k.to(dtype), v.to(dtype)]


def bounds_of(kernel: Tensor) -> KernelBounds:
    """Of ``kernel [H, reach]`` by rising distance."""
    future = kernel.new_full((len(kernel), 63), -math.inf)
    return KernelBounds(torch.cat([kernel.flip(1), future], 1).contiguous(), kernel.shape[1])


def whole(q: Tensor, k: Tensor, v: Tensor, kernel: Tensor) -> Tensor:
    """Attention written out, in float64."""
    q, k, v, kernel = (x.double() for x in (q, k, v, kernel))
    positions = torch.arange(k.shape[2])
    distance = positions[k.shape[2] - q.shape[2] :, None] - positions
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + kernel[:, distance.clamp(min=0)]
    return scores.masked_fill(distance < 0, -math.inf).softmax(-1) @ v


def gates(keys: int, steepest: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """c ``[2, 3, keys]`` of gates drawn from the text, one head forgetting fast, one hardly at all."""
    generator = torch.Generator().manual_seed(keys)
    logs = -torch.rand(2, 3, keys, generator=generator, dtype=torch.float64)
    return (logs * torch.tensor([2 * steepest, steepest / 2, steepest / 32])[:, None]).cumsum(-1).to(dtype)


def whole_by_gates(q: Tensor, k: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """Attention written out, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    rows = torch.arange(k.shape[2] - q.shape[2], k.shape[2])
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + (c[:, :, rows, None] - c[:, :, None])
    return scores.masked_fill(torch.arange(k.shape[2]) > rows[:, None], -math.inf).softmax(-1) @ v


def change(found: Tensor, exact: Tensor) -> Tensor:
    """Of each row, relative to its largest element: ``[B, H, Q]``."""
    return (found.double() - exact).abs().amax(-1) / exact.abs().amax(-1)


def slopes(reach: int, steepest: float) -> Tensor:
    return -torch.tensor([steepest, steepest / 4, steepest / 64])[:, None] * torch.arange(reach)


@each_case("steepest", [0.1, 1.0, 8.0])
@each_case("scale", [0.1, 1.0, 10.0])
@each_case(("rows", "keys"), [(200, 200), (37, 200), (1, 150)])
def test_what_is_left_out_is_within_rounding(steepest: float, scale: float, rows: int, keys: int) -> None:
    q, k, v = drawn(rows, keys, scale, torch.float64)
    bounds = bounds_of(slopes(keys, steepest).double())
    out, share = pruned_attention(q, k, v, bounds)
    assert change(out, whole(q, k, v, slopes(keys, steepest))).max() < 1e-14
    assert share.bound <= 2**-53
    assert 0 < share.scores <= share.causal == 3 * sum(range(keys - rows + 1, keys + 1))
    if steepest == 8.0 and scale < 10 and rows > 1:
        assert share.left_out > 0.5


@each_case("rounding", [1e-2, 1e-4])
@each_case("scale", [0.3, 3.0])
def test_the_certificate_is_above_the_true_change(
    rounding: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rounding so coarse that what is left out can be seen."""
    monkeypatch.setattr(module, "MARGIN", 1.0)
    q, k, v = drawn(200, 200, scale, torch.float64)
    bounds = bounds_of(slopes(200, 2.0).double())
    bounds.rounding = rounding
    work = module._Pruned(q, k, v, bounds)
    work.attend_near()
    certified = work.errors(work.out, work.lowest)
    true = change(work.out, whole(q, k, v, slopes(200, 2.0))).amax(0)
    assert (true <= certified + 1e-14).all()
    assert work.share.scores < work.share.causal
    assert scale > 1 or true.max() > rounding * 1e-6  # what was left out can be seen
    work.attend_uncertified()
    assert change(work.out, whole(q, k, v, slopes(200, 2.0))).max() <= rounding
    assert work.share.bound <= rounding


@each_case("steepest", [0.02, 1.0, 8.0])
@each_case("scale", [0.1, 10.0])
@each_case(("rows", "keys"), [(200, 200), (37, 200), (1, 150)])
def test_gates_that_forget_leave_out_what_rounding_loses(
    steepest: float, scale: float, rows: int, keys: int
) -> None:
    q, k, v = drawn(rows, keys, scale, torch.float64)
    c = gates(keys, steepest)
    out, share = pruned_attention(q, k, v, GateBounds(c, torch.float64))
    assert change(out, whole_by_gates(q, k, v, c)).max() < 1e-14
    assert share.bound <= 2**-53
    assert 0 < share.scores <= share.causal == 3 * sum(range(keys - rows + 1, keys + 1))
    if steepest == 8.0 and scale < 10:
        assert share.left_out > 0.3
    if steepest == 0.02:
        assert share.left_out == 0


@each_case("rounding", [1e-2, 1e-4])
@each_case("scale", [0.3, 3.0])
def test_the_certificate_of_gates_is_above_the_true_change(
    rounding: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARGIN", 1.0)
    q, k, v = drawn(200, 200, scale, torch.float64)
    c = gates(200, 1.0)
    bounds = GateBounds(c, torch.float64)
    bounds.rounding = rounding
    work = module._Pruned(q, k, v, bounds)
    work.attend_near()
    true = change(work.out, whole_by_gates(q, k, v, c)).amax(0)
    assert (true <= work.errors(work.out, work.lowest) + 1e-14).all()
    assert work.share.scores < work.share.causal
    assert scale > 1 or true.max() > rounding * 1e-6  # what was left out can be seen
    work.attend_uncertified()
    assert change(work.out, whole_by_gates(q, k, v, c)).max() <= rounding


def test_a_gate_does_not_hide_a_large_value_or_a_large_score() -> None:
    """One gate forgets all but e^-40; a value of 1e30 or a key that scores 60 more is seen all the same."""
    keys = 64
    c = torch.zeros(1, 1, keys, dtype=torch.float64)
    c[:, :, 32:] = -40.0
    for large in ("value", "key", ""):
        q, k, v = torch.ones(1, 1, keys, 4), torch.zeros(1, 1, keys, 4), torch.ones(1, 1, keys, 4)
        v[:, :, 0] = 1e30 if large == "value" else 3.0
        k[:, :, 0] = 30.0 if large == "key" else 0.0
        out, share = pruned_attention(q, k, v, GateBounds(c, torch.float32))
        assert change(out, whole_by_gates(q, k, v, c)).max() < 1e-6
        assert (share.left_out > 0.2) == (not large)


def test_gates_that_are_not_finite_stay_so() -> None:
    q, k, v = drawn(40, 40)
    c = gates(40, 8.0)
    c[0, 1, 20:] = math.nan
    out, _ = pruned_attention(q, k, v, GateBounds(c, torch.float32))
    assert out[0, 1, 20:].isnan().all()
    assert out[0, 1, :20].isfinite().all()
    assert out[:, [0, 2]].isfinite().all()


@each_case("modifier", [None, "log-n"])
@each_case("slowest", [0.0, 20.0])
def test_fox_is_the_oracle(modifier: str | None, slowest: float) -> None:
    """Each layer by its own gates; where no gradients are wanted."""
    options = {"scheme_options": {"slowest": slowest}, "modifiers": {modifier: {}} if modifier else {}}
    decoder = tiny.decoder(tiny.config("fox", **options)).double()
    tokens = torch.randint(decoder.config.vocab_size, (2, 150), generator=torch.Generator().manual_seed(0))
    found = {}
    for backend in ("sdpa", "pruned"):
        decoder.backend = backend
        with torch.inference_mode():
            found[backend] = decoder(tokens, 70)
    torch.testing.assert_close(found["pruned"], found["sdpa"], rtol=0, atol=1e-12)
    assert decoder.pruned.left_out > 0.05
    decoder.pruned = PrunedShare()
    torch.testing.assert_close(decoder(tokens, 70).detach(), found["sdpa"], rtol=0, atol=1e-12)
    assert decoder.pruned.causal == 0


def test_the_bound_of_a_kernel_is_the_sum_over_what_is_left_out() -> None:
    """Exact for the last query, whose distances are all there are, and above it for the others."""
    q, v, kernel = torch.zeros(1, 3, 100, 4), torch.ones(1, 3, 100, 4), slopes(100, 0.5)
    lowest = (torch.arange(100) - 7).clamp(min=0).expand(3, -1)
    found = module.Certificate(q, q, v, bounds_of(kernel)).errors(v, lowest)
    left = torch.stack([kernel.double().exp()[:, min(row, 7) + 1 : row + 1].sum(1) for row in range(100)], 1)
    torch.testing.assert_close(
        found[:, -1].double(), 2 * left[:, -1] * math.exp(module.SLACK), rtol=1e-5, atol=0
    )
    assert (found >= 2 * left).all()
    assert (found[:, :8] == 0).all()


def noted(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """By head, the rows of each call that attended a chunk or several over the same keys."""
    attended: dict[int, list[int]] = {0: [], 1: [], 2: []}
    attend = module._Pruned._attend

    def note(self: module._Pruned, heads: slice, rows: slice, lowest: int) -> None:
        for head in range(heads.start, heads.stop):
            attended[head].append(rows.stop - rows.start)
        attend(self, heads, rows, lowest)
        assert (self.lowest[heads, rows] == lowest).all()

    monkeypatch.setattr(module._Pruned, "_attend", note)
    return attended


def test_chunks_of_a_head_that_sees_far_attend_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certified over the keys that took part; too few rows to gain by it attend chunk by chunk."""
    monkeypatch.setattr(module, "CALL", 0)
    attended = noted(monkeypatch)
    q, k, v = drawn(170, 400, dtype=torch.float64)
    kernel = slopes(400, 8.0).double()
    kernel[2] /= 4  # sees all
    out, share = pruned_attention(q, k, v, bounds_of(kernel))
    assert attended == {0: [16] * 10 + [10], 1: [16] * 10 + [10], 2: [64, 64, 16, 16, 10]}
    assert change(out, whole(q, k, v, kernel)).max() < 1e-14
    assert share.left_out > 0.3


@each_case("far", [None, 5, 9])
def test_chunks_of_a_head_that_sees_near_attend_in_a_row(
    far: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one batch, but where one of them sees much farther; each is certified over the keys it took."""
    monkeypatch.setattr(module, "CALL", 256)
    attended = noted(monkeypatch)
    q, k, v = drawn(170, 400, dtype=torch.float64)
    if far is not None:
        q[:, :, 16 * far] *= 100
    kernel = slopes(400, 8.0).double()
    kernel[1] *= 4
    kernel[2] /= 4  # sees all
    out, share = pruned_attention(q, k, v, bounds_of(kernel))
    row = [10] if far is None else [16] * 10 + [10]
    assert attended == {0: row, 1: row, 2: [64, 64, 16, 16, 10]}
    assert change(out, whole(q, k, v, kernel)).max() < 1e-14
    assert share.bound <= 2**-53
    assert share.left_out > 0.3


def test_a_large_value_far_away_is_not_lost() -> None:
    """A weight of 2^-25 on a value of 2^30 moves an output of 1 to 33."""
    keys = 64
    q, k = torch.zeros(1, 1, keys, 4), torch.zeros(1, 1, keys, 4)
    v = torch.ones(1, 1, keys, 4)
    v[:, :, 0] = 2.0**30
    kernel = torch.full((1, keys), -40.0)
    kernel[:, 0] = 0
    kernel[:, keys - 1] = -25 * math.log(2)
    out, share = pruned_attention(q, k, v, bounds_of(kernel))
    assert out[0, 0, -1, 0].item() == pytest.approx(33, rel=1e-5)
    assert change(out, whole(q, k, v, kernel)).max() < 1e-6
    flat = torch.full((1, keys), -60.0)
    flat[:, 0] = 0
    v[:, :, 0] = 1e4
    out, share = pruned_attention(q, k, v, bounds_of(flat))
    assert share.left_out > 0.3
    v[:, :, 0] = 1e20  # the same weights: only the certificate sees it
    out, share = pruned_attention(q, k, v, bounds_of(flat))
    assert share.left_out < 0.1
    assert change(out, whole(q, k, v, flat)).max() < 1e-6


def test_outputs_that_cancel_are_not_certified_by_their_values() -> None:
    keys = 64
    q, k, v = torch.zeros(1, 1, keys, 4), torch.zeros(1, 1, keys, 4), torch.zeros(1, 1, keys, 4)
    v[:, :, 0] = 1.0  # all outputs are what little of it arrives
    flat = torch.full((1, keys), -60.0)
    flat[:, 0] = 0
    out, share = pruned_attention(q, k, v, bounds_of(flat))
    assert share.scores >= share.causal
    assert change(out, whole(q, k, v, flat)).max() < 1e-6


def test_numbers_that_are_not_finite_stay_so() -> None:
    q, k, v = drawn(40, 40)
    q[0, 0, 5], k[1, 1, 3] = math.nan, math.nan
    kernel = slopes(40, 8.0)
    distance = torch.arange(40)[:, None] - torch.arange(40)
    bias = kernel[:, distance.clamp(min=0)].masked_fill(distance < 0, -math.inf).expand(2, -1, -1, -1)
    out, share = pruned_attention(q, k, v, bounds_of(kernel))
    assert share.left_out > 0
    assert torch.equal(
        out.isfinite(), F.scaled_dot_product_attention(q, k, v, attn_mask=bias.contiguous()).isfinite()
    )


@each_case("name", ["alibi", "kerple-power", "kerple-log", "t5", "kernel"])
@each_case("window", [None, 40])
def test_schemes_are_the_oracle(name: str, window: int | None) -> None:
    modifiers = {"window": {"width": window}} if window else {}
    scheme: Scheme = tiny.decoder(tiny.config(name, modifiers=modifiers)).scheme.at(0)
    tensors = drawn(150, 150, dtype=torch.float64)
    with torch.inference_mode():
        table = make_table(scheme, 150, torch.float64, CPU, "pruned")
        assert isinstance(table, KernelTable)
        out = attention(*tensors, scheme, table)
        torch.testing.assert_close(out, eager_attention(*tensors, scheme), rtol=0, atol=1e-12)
    assert (table.bounds is not None) == (table.pruned.causal > 0)


def test_a_flat_kernel_costs_no_norms() -> None:
    steep = make_table(scheme_of(tiny.config("alibi")), 5000, torch.float32, CPU, "pruned")
    assert isinstance(steep, KernelTable)
    assert steep.bounds is not None
    flat = make_table(tiny.decoder(tiny.config("kerple-log")).scheme, 5000, torch.float64, CPU, "pruned")
    assert isinstance(flat, KernelTable)
    assert flat.bounds is None


def test_asked_for_by_name() -> None:
    assert resolve_backend("pruned", scheme_of(tiny.config("fox")), "fox", CPU, torch.float32) == "pruned"
    masked = scheme_of(tiny.config("fox", modifiers={"window": {"width": 8}}))
    with pytest.raises(UserError, match="fox,window=8 on cpu has none"):
        resolve_backend("pruned", masked, "fox,window=8", CPU, torch.float32)
    for name in ("rope", "fire", "nope"):
        with pytest.raises(UserError, match=f"attention pruned: .* {name} on cpu has none; use auto"):
            resolve_backend("pruned", scheme_of(tiny.config(name)), name, CPU, torch.float32)
    assert resolve_backend("pruned", scheme_of(tiny.config("t5")), "t5", CPU, torch.float32) == "pruned"


def test_asked_for_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    alibi, fox = (scheme_of(tiny.config(name, width=96)) for name in ("alibi", "fox"))
    with pytest.raises(UserError, match="fox on cuda has none"):
        resolve_backend("pruned", fox, "fox", CUDA, torch.bfloat16)
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    with pytest.raises(UserError, match="attention pruned: needs triton"):
        resolve_backend("pruned", alibi, "alibi", CUDA, torch.bfloat16)
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    monkeypatch.setattr(backends, "shared_memory_limit", lambda _: 232_448)
    assert resolve_backend("pruned", alibi, "alibi", CUDA, torch.bfloat16) == "pruned"


def test_a_run_records_what_was_left_out(tmp_path: Path) -> None:
    make_model(tmp_path / "alibi", "alibi")
    (tmp_path / "text.txt").write_text("A line of text, and a longer one after it. " * 40)
    runs = {
        attention: kerple_eval.evaluate(
            tmp_path / "alibi",
            text=tmp_path / "text.txt",
            lengths=[64, 1024],
            device="cpu",
            attention=attention,
            out=tmp_path / attention,
        )
        for attention in ("sdpa", "pruned")
    }
    for with_all, cell in zip(runs["sdpa"].cells(), runs["pruned"].cells(), strict=True):
        assert isinstance(with_all, Cell)
        assert isinstance(cell, Cell)
        assert with_all.header.pruned is None
        assert cell.header.attention == "pruned"
        assert cell.header.pruned is not None
        assert cell.header.pruned.left_out >= 0
        assert cell.header.pruned.bound <= 2**-24
        for a, b in zip(with_all.losses, cell.losses, strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=0, atol=2e-6)
    assert cell.header.pruned.left_out > 0.02
