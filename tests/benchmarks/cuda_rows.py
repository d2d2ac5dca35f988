"""The rows that need a GPU: ``python -m tests.benchmarks --cuda``, in parts of less than ten minutes each.

Checks come first: losses of 600 tokens against float64 on the CPU, whole windows and scored rows, with the
weights of attention three times as large as they are drawn, so that scores matter. In float32 torch's
memory-efficient attention multiplies on tensor cores by split TF32, Triton's dot in IEEE float32. Split TF32
writes a factor as a sum of two numbers of 11 bits and leaves out the product of both lower ones: three terms
of at most 2^-22 of |a b| each, where float32's own rounding is 2^-24. Simulated on the CPU by ``python -m
tests.benchmarks.split_tf32`` the largest error of a loss is 4.0e-5 nats by split TF32 and 4.5e-5 by float32
itself, most of which is the rounding of linear layers; one TF32 product in its place gives 2.0e-2.
:data:`TOLERANCE` lies ten times above the first two and forty times below the last, so a card that rounds
once where it should split is found out. bfloat16 keeps 8 bits of everything (0.36 nats on the CPU), so there
the mean is what tells: it moved by 2.4e-3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

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
from tests.benchmarks.parts import Found, Part

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
PREDICTED = {16384: "predicted 17.9 on an H100 (docs/decisions/2026-11-27.md)"}


TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 1.0}  # of a loss, in nats
MEAN = 0.02  # of the tokens' mean loss
DEVICE = torch.device("cuda")
SCALE = 3.0  # of the weights of attention in the checks
BACKENDS = ("flex", "sdpa", "eager")
TOKENS = 600


def unmeasured() -> list[Row]:
    """The rows with a bound, for the table of a machine without a card."""
    rows = [row for part in PARTS.values() if not part.check for row in part.rows]
    return [replace(row, note=FILL) for row in rows if row.at_least or row.at_most]


@cache
def _drawn() -> Decoder:
    """The model of every row."""
    decoder = Decoder(CONFIG)
    decoder.reset_parameters(0)
    return decoder


@cache
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(CONFIG.vocab_size, size=131073)


def _model(attention: str = "flex", dtype: torch.dtype = torch.bfloat16) -> DecoderModel:
    return DecoderModel(_copy(_drawn()), DEVICE, dtype, attention)


def sharpened() -> Decoder:
    """The model of the checks."""
    decoder = _copy(_drawn())
    for layer in decoder.layers:
        for linear in (layer.attention.qkv, layer.attention.out):
            linear.weight.data.mul_(SCALE)
    return decoder


def exact_losses(decoder: Decoder) -> np.ndarray:
    return losses(DecoderModel(_copy(decoder).double(), torch.device("cpu"), torch.float64), tokens(), TOKENS)


def _checks() -> Iterator[Found]:
    decoder, ids = sharpened(), tokens()
    exact = exact_losses(decoder)
    for dtype in TOLERANCE:
        for backend in BACKENDS:
            model = DecoderModel(_copy(decoder), DEVICE, dtype, backend)
            found = losses(model, ids, TOKENS)
            ((_, (rows,)),) = score(model, [ids], [(0, Window(0, TOKENS, TOKENS - 59))])
            error = max(np.abs(found - exact).max(), np.abs(rows - exact[-60:]).max())
            mean = abs(float(found.mean() - exact.mean()))
            yield (error if mean <= MEAN else math.inf), f"mean off by {mean:.1e}"


def _lengths() -> Iterator[Found]:
    model, ids = _model(), tokens()
    budget = found_budget(model, 512)
    seconds = {}
    for n in LENGTHS:
        seconds[n] = _seconds(model, ids, n, budget)
        yield seconds[n] * 1e3, f"{budget} tokens a pass"
    rate = _matrix_rate()
    for n in (16384, 2048):
        share = sum(pass_work(PassShape(1, n, n), DESCRIPTION)) / seconds[n] / rate
        yield share, f"{rate / 1e12:.0f} TFLOP/s measured"
    yield CHECKPOINTS * WINDOWS * sum(seconds.values()) / 3600, "the times above x 90 x 320"


def _others() -> Iterator[Found]:
    model, ids = _model(), tokens()
    ours = _seconds(model, ids, 16384, 16384)
    yield _release_seconds(model, ids, 16384) / ours, f"{ours * 1e3:.1f} ms a window"
    yield _seconds(_model("sdpa"), ids, 16384, 16384) / ours, ""


def _memory() -> Iterator[Found]:
    model, ids = _model(), tokens()
    for length in (16384, 131072):
        yield _peak(model, ids, length), f"of {torch.cuda.mem_get_info()[1] / 1e9:.0f}"


def _rows_alone() -> Iterator[Found]:
    rows, whole = _sliding(_model(), tokens())
    yield whole / rows, ""


def _steps() -> Iterator[Found]:
    yield _training(_drawn()), "gradients agree"


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
    text = torch.from_numpy(drawn).cuda()

    def step(backend: str) -> list[Tensor]:
        made.backend = backend
        made.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = made.head(made(text[:, :-1]))
        F.cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten()).backward()
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


def _row(work: str, against: str, low: float | None = None, high: float | None = None, note: str = "") -> Row:
    return Row(work, against, None, at_least=low, at_most=high, note=note)


#: Seconds: a flex program takes 20 s to compile at most, its passes little; a process 30 s to begin.
PARTS = {
    "checks": Part(
        f"losses of {TOKENS} tokens by {', '.join(BACKENDS)} in two precisions; 4 flex programs", 240,
        tuple(
            _row(f"{backend}, {str(dtype)[6:]}: largest error, nats", "float64 on the CPU", None, limit)
            for dtype, limit in TOLERANCE.items() for backend in BACKENDS
        ),
        _checks, check=True,
    ),
    "lengths": Part(
        "seconds a window, as many to a pass as the card likes; 6 flex programs", 300,
        (
            *(_row(f"CUDA, {SHAPE}, {n}: ms a window", "-", note=PREDICTED.get(n, "")) for n in LENGTHS),
            *(
                _row(f"the same, {n}: share of the card's matrix rate", "FLOP floor", low, note=note)
                for n, low, note in ((16384, 0.4, "predicted 0.50"), (2048, 0.5, "predicted 0.57"))
            ),
            _row("the paper's Table 3, 90 checkpoints: GPU hours", "-", None, 1),
        ),
        _lengths,
    ),
    "others": Part(
        "the release's attention, and SDPA with strips of bias, with the same weights; 1 flex program", 120,
        (
            _row(f"CUDA, {SHAPE}, 16384", "the release's attention, same weights", 8),
            _row("the same, 16384: FlexAttention", "SDPA with strips of bias", 1),
        ),
        _others,
    ),
    "memory": Part(
        "peaks of one window; 2 flex programs", 120,
        (
            _row("the same: peak GB", "-", None, 4),
            _row("131,072 tokens in one window fit: GB", "the card's memory", None, 140),
        ),
        _memory,
    ),
    "rows": Part(
        "windows of which 256 rows are scored; 3 flex programs", 120,
        (_row("sliding 4096/256: FlexAttention", "whole windows through last layer and head", 1.15),),
        _rows_alone,
    ),
    "step": Part(
        "a training step, gradients compared first; 2 flex programs", 150,
        (_row("training step of the same, 2 x 2048: FlexAttention", "every score at once", 1),),
        _steps,
    ),
}  # fmt: skip
