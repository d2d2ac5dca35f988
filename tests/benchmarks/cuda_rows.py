"""The rows that need a GPU: ``python -m tests.benchmarks --cuda``, within ten minutes on an H100 or H200.

Checks come first (losses against float64 on CPU at a length that allows it), then times, then peak memory.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.evaluation.budget import measured as found_budget
from kerple_eval.models.base import Description, Shape
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.pass_time import PassShape, pass_work
from kerple_eval.models.scoring import Budget, score
from kerple_eval.types import Window
from tests.benchmarks.harness import Row, interleaved

SHAPE = "162M KERPLE-log, bfloat16"
FILL = "fill by: python -m tests.benchmarks --cuda"
CONFIG = DecoderConfig(
    vocab_size=50304, layers=12, width=768, heads=12, mlp_width=3072, train_length=512, scheme="kerple-log"
)
DESCRIPTION = Description(
    format="native", scheme="kerple-log", vocab_size=50304, parameters=162_000_000, train_length=512,
    seed=None, prefix_invariant=True, max_length=None, weights_sha256="", architecture="decoder",
    shape=Shape(layers=12, width=768, heads=12, kv_heads=12, head_dim=64, mlp_width=3072),
    stored_dtypes=(),
)  # fmt: skip
#: The paper's Table 3: three corpora x six schemes x five seeds, 320 windows at each of six lengths.
CHECKPOINTS, WINDOWS, LENGTHS = 90, 320, (512, 1024, 2048, 4096, 8192, 16384)


def unmeasured() -> list[Row]:
    return [Row(*row, None, at_least=low, at_most=high, note=FILL) for row, low, high in ROWS]


ROWS: tuple[tuple[tuple[str, str], float | None, float | None], ...] = (
    ((f"CUDA, {SHAPE}, 16384", "the release's attention, same weights"), 8, None),
    (("the same: peak GB", "-"), None, 4),
    (("131,072 tokens in one window fit: GB", "the card's memory"), None, 140),
    (("the same, 16384: share of the card's matrix rate", "FLOP floor"), 0.4, None),
    (("the same, 2048: share of the card's matrix rate", "FLOP floor"), 0.5, None),
    (("the paper's Table 3, 90 checkpoints: GPU hours", "-"), None, 1),
    (("the same, 16384: FlexAttention", "SDPA with strips of bias"), 1, None),
    (("sliding 4096/256: FlexAttention", "whole windows through last layer and head"), 1.15, None),
    (("training step of the same, 2 x 2048: FlexAttention", "every score at once"), 1, None),
)


def measured() -> list[Row]:
    """Checks, then times, then the table's rows."""
    device = torch.device("cuda")
    decoder = Decoder(CONFIG)
    decoder.reset_parameters(0)
    ids = np.random.default_rng(0).integers(CONFIG.vocab_size, size=131073)
    exact = losses(DecoderModel(_copy(decoder).double(), torch.device("cpu"), torch.float64), ids, 600)
    _check(decoder, ids, exact)
    model = DecoderModel(_copy(decoder), device, torch.bfloat16, "flex")
    strips = DecoderModel(_copy(decoder), device, torch.bfloat16, "sdpa")
    budget = found_budget(model, 512)
    _say(f"budget {budget} tokens a pass")
    seconds = {}
    for n in LENGTHS:
        seconds[n] = _seconds(model, ids, n, budget)
        _say(f"{n}: {seconds[n] * 1e3:.2f} ms a window")
    by_strips = _seconds(strips, ids, 16384, budget)
    peak, far = _peak(model, ids, 16384), _peak(model, ids, 131072)
    slow = _release_seconds(model, ids, 16384)
    slid, whole = _sliding(model, ids)
    rate = _matrix_rate()
    share = {n: sum(pass_work(PassShape(1, n, n), DESCRIPTION)) / seconds[n] / rate for n in (2048, 16384)}
    hours = CHECKPOINTS * WINDOWS * sum(seconds.values()) / 3600
    found = (
        slow / seconds[16384],
        peak,
        far,
        share[16384],
        share[2048],
        hours,
        by_strips / seconds[16384],
        whole / slid,
        _training(decoder),
    )
    note = f"{rate / 1e12:.0f} TFLOP/s measured, {budget} tokens a pass"
    return [
        Row(*row, ratio, at_least=low, at_most=high, note=note)
        for (row, low, high), ratio in zip(ROWS, found, strict=True)
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check(decoder: Decoder, ids: np.ndarray, exact: np.ndarray) -> None:
    """Every way in both precisions against float64 on the CPU, whole windows and scored rows."""
    device = torch.device("cuda")
    for dtype, tolerance in ((torch.float32, 5e-3), (torch.bfloat16, 0.5)):
        for backend in ("flex", "sdpa", "eager"):
            model = DecoderModel(_copy(decoder), device, dtype, backend)
            found = losses(model, ids, 600)
            np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance)
            assert abs(float(found.mean() - exact.mean())) < 0.02
            ((_, (rows,)),) = score(model, [ids], [(0, Window(0, 600, 541))])
            np.testing.assert_allclose(rows, exact[-60:], rtol=0, atol=tolerance)
            _say(f"{backend} in {dtype}: largest error {np.abs(found - exact).max():.2e} nats")


def _copy(decoder: Decoder) -> Decoder:
    made = Decoder(decoder.config)
    made.load_state_dict(decoder.state_dict())
    return made


def losses(model: DecoderModel, ids: np.ndarray, length: int) -> np.ndarray:
    ((_, rows),) = score(model, [ids], [(0, Window(0, length, 1))])
    return rows[0]


def _peak(model: DecoderModel, ids: np.ndarray, length: int) -> float:
    """Gigabytes that one window takes, weights included."""
    losses(model, ids, length)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    losses(model, ids, length)
    return torch.cuda.max_memory_allocated() / 1e9


def _seconds(model: DecoderModel, ids: np.ndarray, length: int, budget: int) -> float:
    """Seconds a window, several sharing a forward pass as a run would have them."""
    count = max(1, budget // length)
    windows = [(0, Window(i, i + length, i + 1)) for i in range(count)]

    def work() -> None:
        for _ in score(model, [ids], windows, budget=Budget(budget)):
            pass

    work()
    return interleaved({"ours": work}, 5)["ours"] / count


def _sliding(model: DecoderModel, ids: np.ndarray) -> tuple[float, float]:
    """Seconds of eight windows of 4096 that score 256: as they are, and every row computed."""
    windows = [(0, Window(i * 256, i * 256 + 4096, i * 256 + 4096 - 255)) for i in range(8)]
    whole = [(d, Window(w.start, w.stop, w.start + 1)) for d, w in windows]

    def work(chosen: list[tuple[int, Window]]) -> None:
        for _ in score(model, [ids], chosen, budget=Budget(8 * 4096)):
            pass

    ways = {"rows": partial(work, windows), "whole": partial(work, whole)}
    for way in ways.values():
        way()
    times = interleaved(ways, 5)
    return times["rows"], times["whole"]


def _training(decoder: Decoder) -> float:
    """Seconds of a step with every score in memory over one with FlexAttention; gradients compared first."""
    made = _copy(decoder).cuda()
    drawn = np.random.default_rng(1).integers(CONFIG.vocab_size, size=(2, 2049))
    tokens = torch.from_numpy(drawn).cuda()

    def step(backend: str) -> list[Tensor]:
        made.backend = backend
        made.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = made.head(made(tokens[:, :-1]))
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        return [p.grad for p in made.parameters() if p.grad is not None]

    for a, b in zip(step("flex"), step("eager"), strict=True):
        assert float((a - b).norm()) < 0.05 * float(b.norm())
    times = interleaved({name: partial(step, name) for name in ("flex", "eager")}, 5)
    return times["eager"] / times["flex"]


def _release_seconds(model: DecoderModel, ids: np.ndarray, length: int) -> float:
    """The same model with the release's attention: the bias [H, L, L] built and added in every layer."""
    decoder = model.decoder
    inputs = torch.from_numpy(ids[:length])[None].to(model.device)
    r1, r2 = (decoder.scheme.get_parameter(n)[:, None, None] for n in ("r1", "r2"))

    @torch.inference_mode()
    def work() -> None:
        x = decoder.embedding(inputs)
        for layer in decoder.layers:
            attend = layer.attention
            packed = attend.qkv(layer.attention_norm(x))
            q, k, v = packed.view(1, length, 3, 12, 64).permute(2, 0, 3, 1, 4).unbind(0)
            y = _release_attention(q, k, v, r1.to(q.dtype), r2.to(q.dtype))
            x = x + attend.out(y.transpose(1, 2).reshape(1, length, -1))
            x = x + layer.mlp_out(layer.activation(layer.mlp_in(layer.mlp_norm(x))))
        logits = decoder.head(decoder.norm(x)).float()
        F.cross_entropy(logits[0, :-1], inputs[0, 1:])

    work()
    return interleaved({"release": work}, 2)["release"]


def _release_attention(q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    length = q.shape[2]
    scores = torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    steps = torch.arange(length, device=q.device)
    distance = torch.tril(steps[:, None] - steps).to(q.dtype)
    scores = scores - r1 * torch.log(1 + r2 * distance)
    scores = scores.masked_fill(
        torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1), -10000.0
    )
    return torch.matmul(torch.softmax(scores, dim=-1), v)


def _matrix_rate() -> float:
    """bfloat16 matrix products of 8192 x 8192, FLOP/s."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    work = partial(torch.matmul, a, b)
    work()
    return 2 * 8192**3 / interleaved({"mm": work}, 10)["mm"]
