"""Scoring against one target at a time: ``tokens[start:k]`` in, ``-log p(tokens[k])`` out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kerple_eval.models import base, scoring
from kerple_eval.models.base import LanguageModel
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.devices import resolve_device
from kerple_eval.models.scoring import NotFiniteError, batches, pass_ranks, score
from kerple_eval.protocols.full_context import FullContext
from kerple_eval.protocols.last import Last
from kerple_eval.protocols.sliding_window import SlidingWindow
from kerple_eval.types import UserError, Window
from tests.helpers import oracles, tiny
from tests.helpers.cases import each_case

CPU = torch.device("cpu")


def plan(documents: list[np.ndarray], length: int) -> list[tuple[int, Window]]:
    """Several protocols' windows over the documents, short last windows among them."""
    return [
        (number, window)
        for number, tokens in enumerate(documents)
        for protocol in (FullContext(), SlidingWindow(stride=2), Last(k=3))
        for window in protocol.plan(len(tokens), length, length)
    ]


@pytest.mark.parametrize("scheme", tiny.SCHEMES)
@each_case("chunk", [1, 40, 1 << 22])
def test_losses_are_those_of_one_target_at_a_time(
    scheme: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss of a native decoder, whatever the batch and however the head is cut."""
    monkeypatch.setitem(base.HEAD_CHUNK_ELEMENTS, "cpu", chunk)
    made = tiny.decoder(tiny.config(scheme, layers=1))
    weights = tiny.weights(made)
    documents = [tiny.tokens(n, seed=n) for n in (12, 9, 12)]
    windows = plan(documents, 5)
    found: dict[int, np.ndarray] = {}
    for members, losses in score(DecoderModel(made, CPU, torch.float64), documents, windows):
        found |= dict(zip(members, losses, strict=True))
    assert sorted(found) == list(range(len(windows)))
    known: dict[tuple[int, int, int], float] = {}
    for index, (document, window) in enumerate(windows):
        assert found[index].dtype == np.float32
        assert found[index].shape == (window.targets,)
        tokens = documents[document].tolist()
        for n, k in enumerate(range(window.first_target, window.stop + 1)):
            key = (document, window.start, k)
            if key not in known:
                last = oracles.decoder_logits(
                    weights, tokens[window.start : k], layers=1, heads=3, scheme=scheme
                )[-1]
                known[key] = oracles.negative_log_softmax(last, tokens[k])
            assert float(found[index][n]) == pytest.approx(known[key], rel=1e-6)


class Copying(LanguageModel):
    """Predicts, with weight ``sure``, that the next token is the present one plus one (mod V)."""

    def __init__(self, sure: float = 3.0, vocabulary: int = 7, cut: int = 100) -> None:
        self.device, self.dtype = CPU, torch.float32
        self.sure, self.vocabulary, self.cut = sure, vocabulary, cut
        self.rows: list[int] = []
        self.poison: int | None = None

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        self.rows.append(rows)
        out = torch.zeros(*inputs.shape, self.vocabulary)
        out.scatter_(2, ((inputs + 1) % self.vocabulary)[..., None], self.sure)
        if self.poison is not None:
            out[inputs == self.poison] = torch.nan
        yield from out[:, inputs.shape[1] - rows :].split(self.cut, dim=1)


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_the_shift(cut: int) -> None:
    """On 0, 1, 2, ... the model is right at every target; shifted by one it would be wrong at all."""
    tokens = np.arange(30) % 7
    windows = [(0, w) for w in SlidingWindow(stride=3).plan(30, 8, 8)]
    right = float(np.log(np.exp(3.0) + 6) - 3.0)
    model = Copying(cut=cut)
    for _, losses in score(model, [tokens], windows):
        for loss in losses:
            assert loss.tolist() == pytest.approx([right] * len(loss), rel=1e-6)
    wrong = float(np.log(np.exp(3.0) + 6))
    for _, losses in score(Copying(cut=cut), [np.zeros(30, dtype=np.int64)], windows):
        for loss in losses:
            assert loss.tolist() == pytest.approx([wrong] * len(loss), rel=1e-6)
    asked = {(w.inputs, w.targets) for _, w in windows}
    assert sorted(set(model.rows)) == sorted({targets for _, targets in asked})


def test_half_precision_logits_lose_nothing_more_in_the_loss() -> None:
    """The log-softmax of bfloat16 logits is taken in float32."""
    given = (4 * torch.randn(1, 6, 50, generator=torch.Generator().manual_seed(0))).bfloat16()

    class Fixed(Copying):
        def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
            yield given

    tokens = tiny.tokens(7, 50)
    ((_, (losses,)),) = score(Fixed(), [tokens], [(0, Window(0, 6, 1))])
    for n in range(6):
        expected = oracles.negative_log_softmax(given[0, n].double().numpy(), int(tokens[n + 1]))
        assert float(losses[n]) == pytest.approx(expected, rel=1e-6)


def test_the_head_never_sees_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most HEAD_CHUNK_ELEMENTS logits exist at a time, and only for scored rows."""
    monkeypatch.setitem(base.HEAD_CHUNK_ELEMENTS, "cpu", 11 * 4 * 3)
    model = DecoderModel(tiny.decoder(tiny.config("kerple-log")), CPU, torch.float32)
    inputs = torch.from_numpy(np.stack([tiny.tokens(20, seed=s) for s in range(3)]))
    with torch.no_grad():
        parts = list(model.logits(inputs, 10))
    assert [p.shape for p in parts] == [(3, 4, 11), (3, 4, 11), (3, 2, 11)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_case("dtype", [torch.bfloat16, torch.float16, torch.float32])
@each_case("shape", [(1, 1, 7), (3, 5, 50304), (2, 700, 999)])
def test_the_compiled_loss_is_the_oracle(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    logits = (20 * torch.randn(shape, generator=generator)).to("cuda", dtype)
    targets = torch.randint(shape[2], shape[:2], generator=generator).cuda()
    with torch.inference_mode():
        found = scoring._loss_on("cuda")(logits, targets)
    assert scoring._loss_on("cuda") is not scoring._cross_entropy
    exact = -logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)


def test_a_loss_that_cannot_be_compiled_is_computed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError("no C compiler found")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuses)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    scoring._loss_on.cache_clear()
    with pytest.warns(UserWarning, match="computed uncompiled, which is slower: no C compiler found"):
        assert scoring._loss_on("cuda") is scoring._cross_entropy
    scoring._loss_on.cache_clear()


def test_a_loss_that_is_not_finite_names_its_place() -> None:
    model = Copying()
    model.poison = 5
    documents = [np.zeros(12, dtype=np.int64), np.array([0, 1, 2, 3, 4, 3, 2, 5, 1, 0, 0, 0])]
    windows = [(d, w) for d in range(2) for w in FullContext().plan(12, 4, 4)]
    with pytest.raises(NotFiniteError, match="loss of target 8 of document 1 is nan"):
        list(score(model, documents, windows))


def test_an_infinite_loss_is_not_finite_either() -> None:
    with pytest.raises(NotFiniteError, match="loss of target 1 of document 0 is inf"):
        list(score(Copying(sure=-torch.inf), [np.arange(5)], [(0, Window(0, 4, 1))]))


@each_case("budget", [1, 7, 16, 64, 2048])
@each_case("seed", range(4))
def test_batches_cover_each_window_once_within_the_budget(budget: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = []
    for _ in range(60):
        start, inputs = int(rng.integers(50)), int(rng.integers(1, 9))
        windows.append(
            (int(rng.integers(3)), Window(start, start + inputs, start + int(rng.integers(1, inputs + 1))))
        )
    passes = batches(windows, budget)
    assert sorted(i for members in passes for i in members) == list(range(60))
    for members in passes:
        shapes = {(windows[i][1].inputs, windows[i][1].targets) for i in members}
        assert len(shapes) == 1
        assert members == sorted(members)
        inputs = windows[members[0]][1].inputs
        assert len(members) * inputs <= budget or len(members) == 1
    # No two passes of one shape could have been one.
    for shape in {(w.inputs, w.targets) for _, w in windows}:
        same = [m for m in passes if (windows[m[0]][1].inputs, windows[m[0]][1].targets) == shape]
        full = max(1, budget // shape[0])
        assert all(len(m) == full for m in same[:-1])


def test_batches_are_a_function_of_the_plan_alone() -> None:
    windows = plan([tiny.tokens(30), tiny.tokens(22)], 6)
    first = batches(windows, 24)
    torch.manual_seed(1)
    assert batches(tuple(windows), 24) == first
    # Windows of another document with the same shapes give the same passes.
    moved = [(d + 5, Window(w.start + 3, w.stop + 3, w.first_target + 3)) for d, w in windows]
    assert batches(moved, 24) == first
    assert batches([], 24) == []


def test_ranks_share_a_shape_s_windows_evenly() -> None:
    """A pass as large as a cell would leave seven of eight ranks idle."""
    for count, inputs, ranks in itertools.product((1, 7, 8, 64, 100), (512, 16384), (1, 3, 8)):
        windows = [(0, Window(i, i + inputs, i + 1)) for i in range(count)]
        passes = batches(windows, 32768, ranks=ranks)
        assert sorted(itertools.chain(*passes)) == list(range(count))
        assert max(map(len, passes)) <= -(-count // ranks)
        busiest = max(sum(map(len, passes[rank::ranks])) for rank in range(ranks))
        fits = max(1, 32768 // inputs)
        assert busiest <= -(-count // ranks) + min(fits, -(-count // ranks)), (count, inputs, ranks)
    eight = batches([(0, Window(i, i + 512, i + 1)) for i in range(64)], 32768, ranks=8)
    assert [len(p) for p in eight] == [8] * 8
    assert pass_ranks(torch.device("cpu"), 8) == 1
    assert pass_ranks(torch.device("cuda"), 8) == 8


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda_is_refused() -> None:
    with pytest.raises(UserError, match="no CUDA device is visible"):
        resolve_device("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scheme", tiny.SCHEMES)
def test_cuda_losses(scheme: str) -> None:
    made = tiny.decoder(tiny.config(scheme), dtype=torch.float32)
    weights = tiny.weights(made)
    tokens = tiny.tokens(20)
    windows = [(0, w) for w in SlidingWindow(stride=3).plan(20, 9, 9)]
    for members, losses in score(DecoderModel(made, torch.device("cuda"), torch.float32), [tokens], windows):
        for index, loss in zip(members, losses, strict=True):
            w = windows[index][1]
            logits = oracles.decoder_logits(
                weights, tokens[w.start : w.stop].tolist(), layers=2, heads=3, scheme=scheme
            )
            for n, k in enumerate(range(w.first_target, w.stop + 1)):
                expected = oracles.negative_log_softmax(logits[k - 1 - w.start], int(tokens[k]))
                assert float(loss[n]) == pytest.approx(expected, abs=2e-4)
