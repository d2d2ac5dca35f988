"""The rows that need a GPU: ``python -m tests.benchmarks --cuda``, within ten minutes on an H100 or H200.

Checks come first (losses against float64 on CPU at a length that allows it), then times, then peak memory.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.checkpoints.decoder_model import DecoderModel
from kerple_eval.model.config import DecoderConfig
from kerple_eval.model.decoder import Decoder
from kerple_eval.scoring import score
from kerple_eval.types import Window
from tests.benchmarks.harness import Row, interleaved

SHAPE = "162M KERPLE-log, bfloat16"
FILL = "fill by: python -m tests.benchmarks --cuda"
#: The paper's Table 3: three corpora x six schemes x five seeds, 320 windows at each of six lengths.
CHECKPOINTS, WINDOWS, LENGTHS = 90, 320, (512, 1024, 2048, 4096, 8192, 16384)


def unmeasured() -> list[Row]:
    return [
        Row(f"CUDA, {SHAPE}, 16384", "the release's attention, same weights", None, at_least=8, note=FILL),
        Row("the same: peak GB", "-", None, at_most=4, note=FILL),
        Row("131,072 tokens in one window fit: GB", "the card's memory", None, at_most=140, note=FILL),
        Row("the same, 16384: share of the card's matrix rate", "FLOP floor", None, at_least=0.4, note=FILL),
        Row("the same, 2048: share of the card's matrix rate", "FLOP floor", None, at_least=0.5, note=FILL),
        Row("the paper's Table 3, 90 checkpoints: GPU hours", "-", None, at_most=1, note=FILL),
    ]


def measured() -> list[Row]:
    device = torch.device("cuda")
    config = DecoderConfig(
        vocab_size=50304,
        layers=12,
        width=768,
        heads=12,
        mlp_width=3072,
        train_length=512,
        scheme="kerple-log",
    )
    decoder = Decoder(config)
    decoder.reset_parameters(0)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=131073)
    exact = _losses(DecoderModel(_copy(decoder).double(), torch.device("cpu"), torch.float64), ids, 600)
    single = _losses(DecoderModel(_copy(decoder), device, torch.float32), ids, 600)
    np.testing.assert_allclose(single, exact, rtol=0, atol=2e-3)
    model = DecoderModel(decoder, device, torch.bfloat16)
    half = _losses(model, ids, 600)
    assert abs(float(half.mean() - exact.mean())) < 0.02, "bfloat16 is far from float64"
    seconds = {n: _seconds(model, ids, n) for n in LENGTHS}
    torch.cuda.reset_peak_memory_stats()
    _losses(model, ids, 16384)
    peak = torch.cuda.max_memory_allocated() / 1e9
    slow = _release_seconds(model, ids, 16384)
    torch.cuda.reset_peak_memory_stats()
    _losses(model, ids, 131072)
    far = torch.cuda.max_memory_allocated() / 1e9
    rate = _matrix_rate()
    share = {n: _flops(config, n) / seconds[n] / rate for n in (2048, 16384)}
    hours = CHECKPOINTS * WINDOWS * sum(seconds.values()) / 3600
    return [
        Row(
            f"CUDA, {SHAPE}, 16384",
            "the release's attention, same weights",
            slow / seconds[16384],
            at_least=8,
        ),
        Row("the same: peak GB", "-", peak, at_most=4),
        Row("131,072 tokens in one window fit: GB", "the card's memory", far, at_most=140),
        Row(
            "the same, 16384: share of the card's matrix rate",
            "FLOP floor",
            share[16384],
            at_least=0.4,
            note=f"{rate / 1e12:.0f} TFLOP/s measured",
        ),
        Row("the same, 2048: share of the card's matrix rate", "FLOP floor", share[2048], at_least=0.5),
        Row("the paper's Table 3, 90 checkpoints: GPU hours", "-", hours, at_most=1),
    ]


def _copy(decoder: Decoder) -> Decoder:
    made = Decoder(decoder.config)
    made.load_state_dict(decoder.state_dict())
    return made


def _losses(model: DecoderModel, ids: np.ndarray, length: int) -> np.ndarray:
    ((_, rows),) = score(model, [ids], [(0, Window(0, length, 1))])
    return rows[0]


def _seconds(model: DecoderModel, ids: np.ndarray, length: int) -> float:
    """Seconds a window, several sharing a forward pass as a run would have them."""
    count = max(1, 32768 // length)
    windows = [(0, Window(i, i + length, i + 1)) for i in range(count)]

    def work() -> None:
        for _ in score(model, [ids], windows):
            pass

    work()
    return interleaved({"ours": work}, 5)["ours"] / count


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


def _flops(config: DecoderConfig, length: int) -> float:
    """Body 24 l d^2 L, causal attention 2 l d L^2, head 2 d V L."""
    layers, width = config.layers, config.width
    return float(
        24 * layers * width**2 * length
        + 2 * layers * width * length**2
        + 2 * width * config.vocab_size * length
    )


def _matrix_rate() -> float:
    """bfloat16 matrix products of 8192 x 8192, FLOP/s."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    work = partial(torch.matmul, a, b)
    work()
    return 2 * 8192**3 / interleaved({"mm": work}, 10)["mm"]
