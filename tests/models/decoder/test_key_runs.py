"""Attention by runs of keys against all scores at once in float64."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kerple_eval.models.decoder import attention as module
from kerple_eval.models.decoder import fused, key_runs
from kerple_eval.models.decoder.attention import attention, eager_attention, make_table
from kerple_eval.models.decoder.key_runs import KeyRuns
from kerple_eval.schemes.base import Move, Scheme
from kerple_eval.schemes.catalogue import SCHEMES
from tests.models.decoder.test_attention import largest_storage
from tests.schemes.test_modifiers import DIM, HEADS, made_of

LENGTH = 61
CPU = torch.device("cpu")

#: What rope is combined with (trained length 8), and how many moves it makes.
MODIFIED = {
    "self-extend=9,group=4": 1, "rerope=5": 1, "leaky-rerope=7": 1, "dca=13,local=4": 2, "string=11": 1,
    "streaming-sink=8,sinks=2": 1, "lm-infinite=8,start=3,limit=6": 1, "rerope=5,log-n=6": 1,
    "self-extend=9,group=4,window=20": 1, "streaming-sink=20,window=6": 1, "sink=0.7": 0,
    "rerope=5,sink=-1": 1, "streaming-sink=8,temperature=5,sink=2": 1,
}  # fmt: skip


def modified(text: str) -> Scheme:
    made = made_of(f"rope,{text}")
    made.reset_parameters(torch.Generator().manual_seed(0))
    return made


class Random(Scheme):
    """Any mask and any moves: ``pairs [L, L]`` are 0 (hidden), 1 (as they stand), 2 or 3 (moved)."""

    def __init__(self, seed: int, logit: float | None) -> None:
        super().__init__(modified("sink=1").geometry)
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randint(4, (LENGTH, LENGTH), generator=generator)
        self.pairs = coarse.repeat_interleave(1 + seed % 5, 0).repeat_interleave(1 + seed % 7, 1)
        self.pairs = self.pairs[:LENGTH, :LENGTH].clone().fill_diagonal_(1)
        self.logit = logit

    def of(self, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        return self.pairs[positions_q][:, positions_k]

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        return (q * (1 + torch.sin(positions_q.double()))[:, None].to(q),
                k * (1 + torch.cos(positions_k.double()))[:, None].to(k))  # fmt: skip

    def visible(self, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        return self.of(positions_q, positions_k) > 0

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> Sequence[Move]:
        pairs = self.of(positions_q, positions_k)
        return [
            (pairs == 2, positions_q // 3, positions_k + 5),
            (pairs == 3, positions_q * 0 + 9, -positions_k),
        ]

    def sink(self) -> Tensor | None:
        return None if self.logit is None else torch.full((HEADS,), self.logit)


@functools.cache
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, HEADS, LENGTH, DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    return q, k, v


def check(scheme: Scheme, monkeypatch: pytest.MonkeyPatch, chunks: Sequence[int] = (5, 16, 64)) -> None:
    """All queries, the last 23 and the last one; float64, and float32 and bfloat16 within their rounding."""
    q, k, v = drawn()
    monkeypatch.setattr(key_runs, "MOST_RUNS", 3 * LENGTH)
    monkeypatch.setattr(module, "_general", None)  # not that way
    with torch.no_grad():
        exact = eager_attention(q, k, v, scheme)
        for chunk in chunks:
            monkeypatch.setattr(module, "QUERY_CHUNK", chunk)
            monkeypatch.setattr(key_runs, "STRIP_ELEMENTS", 7 * chunk)
            table = make_table(scheme, LENGTH, q.dtype, CPU)
            assert isinstance(table, KeyRuns)
            for rows in (LENGTH, 23, 1):
                for _ in range(2):  # the runs as found, and as kept
                    out = attention(q[:, :, -rows:], k, v, scheme, table)
                    torch.testing.assert_close(out, exact[:, :, -rows:], rtol=0, atol=1e-12)
        narrow = attention(q.float(), k.float(), v.float(), scheme, table)
        torch.testing.assert_close(narrow.double(), exact, rtol=0, atol=5e-6)
        half = [x.bfloat16() for x in (q, k, v)]
        out = attention(*half, scheme, table)
        whole = eager_attention(*half, scheme)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), whole.float(), rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("text", MODIFIED)
def test_every_modifier(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = modified(text)
    rows = torch.arange(LENGTH)
    assert len(scheme.remap(rows, rows)) == MODIFIED[text]
    check(scheme, monkeypatch)


def test_every_scheme_that_moves_is_above() -> None:
    moving = {name for name in SCHEMES if SCHEMES.load(name).remap is not Scheme.remap}
    assert moving <= {name for text in MODIFIED for name in SCHEMES if text.startswith(name)}


@pytest.mark.parametrize("text", MODIFIED)
def test_a_moved_position_is_a_function_of_its_own(text: str) -> None:
    """What :meth:`Scheme.remap` promises, and the runs go by."""
    scheme, rows = modified(text), torch.arange(LENGTH)
    for number, (_, whole_q, whole_k) in enumerate(scheme.remap(rows, rows)):
        for part in (rows[:1], rows[7:30], rows[-1:]):
            assert torch.equal(scheme.remap(part, rows)[number][2], whole_k)
            assert torch.equal(scheme.remap(rows, part)[number][1], whole_q)


@pytest.mark.parametrize("logit", [None, 0.5, -30.0])
@pytest.mark.parametrize("seed", range(12))
def test_any_mask_and_any_moves(seed: int, logit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Random(seed, logit), monkeypatch, chunks=(4, 61))


def test_scattered_keys_have_their_scores_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a block of the end; what was found of those before is of no use."""
    monkeypatch.setattr(module, "QUERY_CHUNK", 4)
    (q, k, v), scheme = drawn(), Random(0, 0.5)
    with torch.no_grad():
        table = make_table(scheme, LENGTH, q.dtype, CPU)
        assert isinstance(table, KeyRuns)
        assert len(table._runs(scheme, 0, 4)) < key_runs.MOST_RUNS
        for _ in range(2):
            out = attention(q, k, v, scheme, table)
            assert table.scattered
            torch.testing.assert_close(out, eager_attention(q, k, v, scheme), rtol=0, atol=1e-12)
    assert len(table._found) < LENGTH / 4  # no block was looked at after that one


@pytest.mark.parametrize("size", [3, 17])
def test_values_of_another_size_than_keys(size: int) -> None:
    """As in latent attention."""
    scheme, (q, k, v) = modified("self-extend=9,group=4"), drawn()
    v = v.repeat(1, 1, 1, 5)[..., :size]
    with torch.no_grad():
        out = attention(q, k, v, scheme, make_table(scheme, LENGTH, q.dtype, CPU))
        torch.testing.assert_close(out, eager_attention(q, k, v, scheme), rtol=0, atol=1e-12)


def test_without_torch_s_private_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "FUSED", "no_such_operation")
    for scheme in (Random(1, 0.5), modified("self-extend=9,group=4")):
        check(scheme, monkeypatch, chunks=(8,))


def test_runs_are_few() -> None:
    """A block of 16 rows: full runs without a mask, and the edges, which are as wide as the block."""
    scheme, length = modified("self-extend=100,group=4"), 1000
    for start in range(0, length, 16):
        runs = KeyRuns(16)._runs(scheme, start, start + 16)
        assert len(runs) <= 5
        masks = [run.mask for run in runs if run.mask is not None]
        assert all(mask.shape[1] <= 31 for mask in masks)
        if start > 200:
            assert [run.is_causal for run in runs].count(True) == 2  # near keys and far ones, each to its end
            assert sum(run.stop - run.start for run in runs) == start + 16 + 15  # the far edge is near's too


@pytest.mark.parametrize("text", ["self-extend=9,group=4", "streaming-sink=8,sinks=2", "rerope=5,sink=-1"])
def test_memory_grows_linearly(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_CHUNK", 32)
    monkeypatch.setattr(key_runs, "STRIP_ELEMENTS", 32 * 64)
    scheme, length = modified(text).float(), 1200
    tensors = [torch.randn(1, HEADS, length, DIM) for _ in range(3)]
    with torch.no_grad():
        table = make_table(scheme, length, torch.float32, CPU)
        assert largest_storage(lambda: attention(*tensors, scheme, table)) <= HEADS * length * DIM
        assert largest_storage(lambda: eager_attention(*tensors, scheme)) >= HEADS * length**2


def test_what_changes_scores_is_not_computed_so() -> None:
    for text in ("kerple-log,self-extend=9", "fox", "cope", "stick-breaking"):
        assert not KeyRuns.serves(made_of(text), CPU)
    scheme = modified("rerope=5")
    assert KeyRuns.serves(scheme, CPU)
    assert not KeyRuns.serves(scheme, torch.device("cuda"))
    scheme.softcap = 5.0
    assert not KeyRuns.serves(scheme, CPU)
