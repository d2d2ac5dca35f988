"""Whole scoring, against the loops people run today, written as their tools have them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.hf.model import HfModel
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.models.scoring import score
from kerple_eval.protocols.sliding_window import SlidingWindow
from kerple_eval.types import Window
from tests.benchmarks.harness import Row, interleaved

CPU = torch.device("cpu")
V, LENGTH, STRIDE = 50304, 1024, 512
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


def losses(model: Any, ids: np.ndarray, windows: Sequence[Window]) -> list[np.ndarray]:
    """Per window, in order."""
    out: dict[int, np.ndarray] = {}
    for members, rows in score(model, [ids], [(0, w) for w in windows]):
        out |= dict(zip(members, rows, strict=True))
    return [out[i] for i in range(len(windows))]


# --- A Hugging Face Llama ------------------------------------------------------------------------


def llama() -> Any:
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def guide(model: Any, ids: Tensor) -> list[float]:
    """The perplexity guide of Hugging Face's documentation: mean loss of each window."""
    found, previous, length = [], 0, ids.shape[1]
    for begin in range(0, length, STRIDE):
        end = min(begin + LENGTH, length)
        count = end - previous
        inputs = ids[:, begin:end]
        labels = inputs.clone()
        labels[:, :-count] = -100
        found.append(float(model(inputs, labels=labels).loss))
        previous = end
        if end == length:
            break
    return found


def guide_windows(length: int) -> list[Window]:
    """The targets that the guide scores, with the same inputs."""
    windows, previous = [], 0
    for begin in range(0, length, STRIDE):
        end = min(begin + LENGTH, length)
        windows.append(Window(begin, end - 1, max(previous, begin + 1)))
        previous = end
        if end == length:
            break
    return windows


@torch.no_grad()
def rolling(model: Any, ids: Tensor) -> list[float]:
    """lm-evaluation-harness' ``loglikelihood_rolling``: disjoint windows, log-softmax of every row."""
    tokens, found = ids[0].tolist(), []
    for begin in range(0, len(tokens) - 1, LENGTH):
        stop = min(begin + LENGTH, len(tokens) - 1)
        start = max(0, stop - LENGTH)  # the last window is filled up with what came before
        logits = F.log_softmax(model(ids[:, start:stop]).logits, dim=-1)
        wanted = ids[:, begin + 1 : stop + 1]
        rows = logits[:, -(stop - begin) :]
        found.append(-float(torch.gather(rows, 2, wanted[..., None]).sum()))
    return found


@torch.no_grad()
def yarn(model: Any, ids: Tensor) -> list[float]:
    """YaRN's ``eval/perplexity.py`` with its stride at the window: a forward with labels a window."""
    found = []
    for begin in range(0, ids.shape[1] - 1, LENGTH):
        inputs = ids[:, begin : begin + LENGTH]
        found.append(float(model(inputs, labels=inputs).loss))
    return found


def llama_rows() -> list[Row]:
    made = llama()
    model = HfModel(made, CPU, torch.float32, "benchmark")
    ids = torch.randint(V, (1, 32 * LENGTH + 1), generator=torch.Generator().manual_seed(1))
    tokens = ids[0].numpy()
    strided = guide_windows(len(tokens))
    apart = [Window(s, min(s + LENGTH, len(tokens) - 1), s + 1) for s in range(0, len(tokens) - 1, LENGTH)]
    theirs = guide(made, ids)
    mine = [float(x.mean(dtype=np.float64)) for x in losses(model, tokens, strided)]
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
    summed = [float(x.sum(dtype=np.float64)) for x in losses(model, tokens, apart)]
    np.testing.assert_allclose(summed, rolling(made, ids), rtol=1e-5)
    times = interleaved(
        {
            "strided": partial(losses, model, tokens, strided),
            "guide": partial(guide, made, ids),
            "apart": partial(losses, model, tokens, apart),
            "rolling": partial(rolling, made, ids),
            "yarn": partial(yarn, made, ids),
        },
        4,
    )
    count = sum(p.numel() for p in made.parameters())
    name = f"Llama, {count / 1e6:.1f}M parameters, V = {V}, {len(tokens):,} tokens"
    return [
        Row(
            f"{name}, sliding {LENGTH}/{STRIDE}",
            "the Hugging Face guide's loop",
            times["guide"] / times["strided"],
            at_least=1.5,
            note="losses equal to 1e-5",
        ),
        Row(
            f"{name}, disjoint {LENGTH}",
            "lm-evaluation-harness' rolling loop",
            times["rolling"] / times["apart"],
            at_least=1.0,
            note="losses equal to 1e-5",
        ),
        Row(
            f"{name}, disjoint {LENGTH}", "YaRN's script's loop", times["yarn"] / times["apart"], at_least=1.0
        ),
    ]


# --- The native decoder --------------------------------------------------------------------------


def zoo() -> DecoderModel:
    return DecoderModel(open_model(parse_model("zoo:kerple-log")).decoder(), CPU, torch.float32)


def of_162m() -> DecoderModel:
    config = DecoderConfig(
        vocab_size=V, layers=12, width=768, heads=12, mlp_width=3072, train_length=512, scheme="kerple-log"
    )
    made = Decoder(config)
    made.reset_parameters(0)
    return DecoderModel(made, CPU, torch.float32)


def prefix_row(model: DecoderModel, name: str, bound: float, *, longest: int, repeats: int) -> Row:
    """Six lengths from the same starts: one pass at the longest, against one each (of which it is one)."""
    lengths = [n for n in LENGTHS if n <= longest]
    ids = np.random.default_rng(0).integers(model.decoder.config.vocab_size, size=longest + 1)
    found: dict[int, np.ndarray] = {}

    def at(length: int) -> None:
        (found[length],) = losses(model, ids, [Window(0, length, 1)])

    times = interleaved({str(n): partial(at, n) for n in lengths}, repeats)
    apart = 0.0
    for n in lengths:
        np.testing.assert_allclose(found[longest][:n], found[n], rtol=1e-4, atol=1e-5)
        means = (float(row.mean(dtype=np.float64)) for row in (found[longest][:n], found[n]))
        apart = max(apart, abs(next(means) - next(means)))
    assert apart < 1e-6
    return Row(
        f"prefix, {lengths[0]}..{longest}, {name}",
        "separate passes",
        sum(times.values()) / times[str(longest)],
        at_least=bound,
        note="means equal to 1e-6",
    )


def sliding_row(model: DecoderModel) -> Row:
    """Scored rows only through last layer and head, against whole windows."""
    length, stride = 4096, 256
    ids = np.random.default_rng(0).integers(256, size=length + 6 * stride + 1)
    windows = SlidingWindow(stride=stride).plan(len(ids), length, length)[1:]

    @torch.inference_mode()
    def whole() -> list[np.ndarray]:
        found = []
        for w in windows:
            inputs = torch.from_numpy(ids[w.start : w.stop])[None]
            wanted = torch.from_numpy(ids[w.start + 1 : w.stop + 1])
            logits = model.decoder.head(model.decoder(inputs))[0]
            found.append(F.cross_entropy(logits, wanted, reduction="none")[-stride:].numpy())
        return found

    for a, b in zip(losses(model, ids, windows), whole(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    times = interleaved({"ours": partial(losses, model, ids, windows), "whole": whole}, 3)
    return Row(
        f"sliding {length}/{stride}, zoo's size",
        "whole windows through last layer and head",
        times["whole"] / times["ours"],
        at_least=1.15,
    )


def start_row() -> Row:
    """The whole command on one window of the zoo, reading and writing included, against importing torch."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        command = [
            sys.executable,
            "-m",
            "kerple_eval",
            "run",
            "zoo:kerple-log",
            "--task",
            "sotu",
            "--length",
            "512",
            "--documents",
            "1",
            "--max-tokens",
            "513",
            "--out",
            str(out),
        ]

        def ours() -> None:
            shutil.rmtree(out, ignore_errors=True)
            subprocess.run(command, check=True, capture_output=True)

        def torch_alone() -> None:
            subprocess.run([sys.executable, "-c", "import torch"], check=True)

        times = interleaved({"ours": ours, "torch": torch_alone}, 5)
    return Row(
        "start-up: one window of a zoo model, cell and table written",
        "import torch alone",
        times["ours"] / times["torch"],
        at_most=1.5,
    )


def large_row() -> Row:
    return prefix_row(of_162m(), "162M shape", 1.55, longest=16384, repeats=1)


def native_rows() -> list[Row]:
    model = zoo()
    return [prefix_row(model, "zoo's size", 1.3, longest=16384, repeats=4), sliding_row(model), start_row()]
