"""Predictions against a reference's: one target at a time in float64, and llama.cpp's own arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kerple_eval.models import base
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.divergence import ROWS, Parts, compare_logits
from kerple_eval.models.scoring import NotFiniteError, score
from kerple_eval.protocols.full_context import FullContext
from kerple_eval.protocols.sliding_window import SlidingWindow
from kerple_eval.types import Window
from tests.helpers import tiny
from tests.helpers.cases import each_case

CPU = torch.device("cpu")


def made(scheme: str, seed: int) -> DecoderModel:
    return DecoderModel(tiny.decoder(tiny.config(scheme, layers=1), seed), CPU, torch.float64)


@torch.inference_mode()
def prediction(model: DecoderModel, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probabilities ``[V]`` of the token after ``tokens``, normalised here."""
    (logits,) = model.logits(torch.from_numpy(tokens)[None], 1)
    x = logits[0, -1].double().numpy()
    return x - x.max() - math.log(np.exp(x - x.max()).sum())


def oracle(q: NDArray[np.float64], p: NDArray[np.float64], target: int) -> list[float]:
    """What :data:`ROWS` names, written out."""
    divergence = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    entropy = -math.fsum(math.exp(b) * b for b in q)
    rank = 1 + sum(b > q[target] for b in q)
    return [divergence, float(int(np.argmax(p)) == int(np.argmax(q))), entropy, float(rank)]


@each_case("chunk", [1, 30, 1 << 22])
def test_rows_are_those_of_one_target_at_a_time(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However either model's head is cut: the reference of other chunks than the model's."""
    monkeypatch.setitem(base.HEAD_CHUNK_ELEMENTS, "cpu", chunk)
    model, reference = made("kerple-log", 0), made("alibi", 1)
    documents = [tiny.tokens(n, seed=n) for n in (12, 9, 12)]
    windows = [
        (number, window)
        for number, tokens in enumerate(documents)
        for protocol in (FullContext(), SlidingWindow(stride=2))
        for window in protocol.plan(len(tokens), 5, 5)
    ]
    alone = {}
    for members, rows in score(model, documents, windows):
        alone |= dict(zip(members, rows, strict=True))
    seen = 0
    for members, found in score(model, documents, windows, reference=reference):
        for index, rows in zip(members, found, strict=True):
            document, window = windows[index]
            np.testing.assert_array_equal(rows[0], alone[index])  # to the bit what it is without a reference
            for n, k in enumerate(range(window.first_target, window.stop + 1)):
                tokens = documents[document]
                p, q = (prediction(m, tokens[window.start : k]) for m in (reference, model))
                np.testing.assert_allclose(rows[1:, n], oracle(q, p, int(tokens[k])), rtol=2e-6, atol=1e-9)
            seen += 1
    assert seen == len(windows)


def test_a_model_against_itself_from_other_windows() -> None:
    """Parts that differ from window to window, and one that ends after the targets it serves."""
    model, tokens = made("rope", 3), tiny.tokens(14, seed=5)
    windows = [(0, Window(0, 6, 1)), (0, Window(6, 12, 7))]
    parts: list[Parts] = [
        [(Window(0, 3, 1), 3), (Window(3, 6, 4), 3)],
        [(Window(5, 9, 7), 2), (Window(8, 13, 9), 4)],  # the last one predicts token 13 too
    ]
    found = {}
    for members, rows in score(model, [tokens], windows, reference=model, parts=parts):
        found |= dict(zip(members, rows, strict=True))
    for index, (_, window) in enumerate(windows):
        starts = [part.start for part, count in parts[index] for _ in range(count)]
        for n, k in enumerate(range(window.first_target, window.stop + 1)):
            p, q = (prediction(model, tokens[start:k]) for start in (starts[n], window.start))
            expected = oracle(q, p, int(tokens[k]))
            np.testing.assert_allclose(found[index][1:, n], expected, rtol=2e-6, atol=1e-9)


def llama_cpp(logits: NDArray[np.float64], base: NDArray[np.float64]) -> tuple[float, bool]:
    """perplexity.cpp ``log_softmax(n_vocab, logits, base_log_prob, tok, kld)``, line by line.

    In float64, and without what it does for its file, where the base's log-probabilities have 16 bits.
    """
    max_logit = max(logits)
    imax = int(np.argmax(logits))
    log_sum_exp = math.log(sum(math.exp(x - max_logit) for x in logits))
    max_logit += log_sum_exp
    base_max = max(base)
    base_log_sum_exp = math.log(sum(math.exp(x - base_max) for x in base))
    total, imax_base, largest = 0.0, -1, 0.0
    for i, x in enumerate(base):
        p_log_base = x - base_max - base_log_sum_exp
        if i == 0 or p_log_base > largest:
            largest, imax_base = p_log_base, i
        if p_log_base > -16:  # the tool leaves out the rest: less than V e^-16 of probability
            total += math.exp(p_log_base) * (p_log_base - logits[i] + max_logit)
    return float(total), imax == imax_base


def test_the_definitions_are_llama_cpps() -> None:
    generator = np.random.default_rng(2)
    logits, reference = generator.normal(0, 2, (2, 1, 50, 33))
    logits = reference + 0.05 * logits  # as of a quantised model
    targets = torch.from_numpy(generator.integers(33, size=(1, 50)))
    found = compare_logits(torch.from_numpy(logits), torch.from_numpy(reference), targets)[0].numpy()
    theirs = [llama_cpp(q, p) for q, p in zip(logits[0], reference[0], strict=True)]
    np.testing.assert_allclose(found[0], [kld for kld, _ in theirs], rtol=1e-9)
    assert found[1].tolist() == [float(same) for _, same in theirs] and 0 < found[1].mean() < 1


def test_equal_logits_and_tied_ones() -> None:
    """The lowest id of several largest is the argmax; a target's rank counts lower ids of its logit."""
    logits = torch.tensor([[[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, -torch.inf, 0.0, 2.0]]])
    other = torch.tensor([[[0.0, 0.0, 9.0, 0.0], [5.0, 0.0, 0.0, 0.0], [2.0, -torch.inf, 0.0, 2.0]]])
    divergence, agreement, entropy, rank = compare_logits(logits, other, torch.tensor([[2, 3, 3]]))[0]
    assert agreement.tolist() == [0, 1, 1]
    assert rank.tolist() == [2, 4, 2]
    assert divergence[2] == 0 and entropy[1] == pytest.approx(math.log(4), rel=1e-15)
    assert len(ROWS) == 4


def test_what_a_model_thinks_impossible_is_not_a_number() -> None:
    """KL is infinite where the reference gives a token that the model excludes."""

    class Excludes(DecoderModel):
        def logits(self, inputs: torch.Tensor, rows: int):  # type: ignore[no-untyped-def]
            for chunk in super().logits(inputs, rows):
                chunk[..., 4] = -torch.inf
                yield chunk

    model = Excludes(tiny.decoder(tiny.config("nope", layers=1)), CPU, torch.float64)
    tokens = np.array([1, 2, 3, 5, 6])
    with pytest.raises(NotFiniteError, match="divergence of target 1 of document 0 is inf"):
        list(score(model, [tokens], [(0, Window(0, 4, 1))], reference=made("nope", 1)))
