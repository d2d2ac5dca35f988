"""One layer's attention with a KERPLE bias: against bias-free SDPA, and as the release writes it."""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.models.decoder.attention import attention, make_table
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.schemes.kerple_log import KerpleLog
from kerple_eval.types import Geometry
from tests.benchmarks.harness import Row, interleaved

HEADS, DIM = 8, 64


def drawn(length: int, batch: int = 1, heads: int = HEADS, dim: int = DIM) -> tuple[KerpleLog, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    scheme = KerpleLog(Geometry(heads, dim, heads * dim, 1, 512))
    scheme.reset_parameters(generator)
    scheme.project_()
    return scheme, [torch.randn(batch, heads, length, dim, generator=generator) for _ in range(3)]


def ours(scheme: KerpleLog, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    table = make_table(scheme, q.shape[2], q.dtype, q.device)
    return attention(q, k, v, scheme, table)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def release(scheme: KerpleLog, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``megatron/mpu/layers.py`` and ``transformer.py`` of chijames/KERPLE: the bias built at every call."""
    length = q.shape[2]
    scores = torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    distance = torch.tril(torch.arange(length)[:, None] - torch.arange(length)).to(q.dtype)
    bias = -scheme.r1[:, None, None] * torch.log(1 + scheme.r2[:, None, None] * distance)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (scores + bias).masked_fill(future, -10000.0)
    return torch.matmul(torch.softmax(scores, dim=-1), v)


@torch.inference_mode()
def layer_rows() -> list[Row]:
    scheme, tensors = drawn(4096)
    torch.testing.assert_close(ours(scheme, *tensors), release(scheme, *tensors), rtol=0, atol=5e-6)
    fast = interleaved({"ours": partial(ours, scheme, *tensors), "plain": partial(plain, *tensors)}, 8)
    slow = interleaved({"release": partial(release, scheme, *tensors)}, 2)
    scheme, long = drawn(16384)
    far = interleaved({"ours": partial(ours, scheme, *long), "plain": partial(plain, *long)}, 9)
    more = _peak("ours", 16384) - _peak("plain", 16384)
    shape = f"[1, {HEADS}, 4096, {DIM}] float32, KERPLE bias"
    return [
        Row(f"layer {shape}", "bias-free causal SDPA", fast["ours"] / fast["plain"], at_most=1.35),
        Row(f"layer {shape}", "eager, as in the release", slow["release"] / fast["ours"], at_least=10),
        Row(
            f"layer [1, {HEADS}, 16384, {DIM}]",
            "bias-free causal SDPA",
            far["ours"] / far["plain"],
            at_most=1.4,
        ),
        Row("the same: GB above it at its peak", "bias-free causal SDPA", more, at_most=0.1),
    ]


def training_rows() -> list[Row]:
    rows = []
    for length, bound in ((512, 2.0), (2048, 4.0)):
        scheme, tensors = drawn(length, batch=4, heads=4, dim=32)
        leaves = [*(x.requires_grad_() for x in tensors), scheme.r1, scheme.r2]
        distance = (torch.arange(length)[:, None] - torch.arange(length)).clamp(min=0)
        future = torch.full((length, length), float("-inf")).triu(1)

        def materialised(
            tensors: list[Tensor] = tensors,
            distance: Tensor = distance,
            future: Tensor = future,
            scheme: KerpleLog = scheme,
        ) -> Tensor:
            bias = scheme.kernel(torch.arange(len(future)).float())[:, distance] + future
            return F.scaled_dot_product_attention(*tensors, attn_mask=bias)

        ways = {"ours": partial(ours, scheme, *tensors), "materialised": materialised}
        gradients = {n: torch.autograd.grad(way().square().sum(), leaves) for n, way in ways.items()}
        for a, b in zip(*gradients.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
        steps = {n: partial(_step, way, leaves) for n, way in ways.items()}
        times = interleaved(steps, 10)
        rows.append(
            Row(
                f"training, attention with gradients, {length}",
                "a materialised bias",
                times["materialised"] / times["ours"],
                at_least=bound,
            )
        )
    decoders = {name: _decoder(name) for name in ("kerple-log", "nope")}
    tokens = torch.randint(256, (4, 513), generator=torch.Generator().manual_seed(0))
    times = interleaved({n: partial(_train, d, tokens) for n, d in decoders.items()}, 6)
    rows.append(
        Row(
            "training step, zoo's shape, 512",
            "bias-free causal attention",
            times["kerple-log"] / times["nope"],
            at_most=1.4,
        )
    )
    return rows


def _step(way: partial[Tensor], leaves: list[Tensor]) -> None:
    torch.autograd.grad(way().square().sum(), leaves)


def _decoder(scheme: str) -> Decoder:
    config = DecoderConfig(
        vocab_size=256, layers=4, width=128, heads=4, mlp_width=512, train_length=512, scheme=scheme
    )
    made = Decoder(config)
    made.reset_parameters(0)
    return made


def _train(decoder: Decoder, tokens: Tensor) -> None:
    logits = decoder.head(decoder(tokens[:, :-1]))
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    decoder.zero_grad(set_to_none=True)


def _peak(way: str, length: int) -> float:
    """Peak resident gigabytes of a process of its own that attends once, by the operating system."""
    command = [sys.executable, "-m", "tests.benchmarks.attention_rows", way, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main(way: str, length: int) -> None:
    scheme, tensors = drawn(length)
    with torch.inference_mode():
        if way == "ours":
            ours(scheme, *tensors)
        else:
            plain(*tensors)
    print(resident_peak())


def resident_peak() -> float:
    """Gigabytes. Of this program alone: getrusage would count what its parent held when it was forked."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
