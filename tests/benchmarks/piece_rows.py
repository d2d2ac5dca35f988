"""Memory of one window of 32,768 tokens through a transformers model: in one pass, and in pieces.

A tiny Llama with a wide vocabulary. Each way is a process of its own; what it takes above the same process at
a window of one piece is the window's.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch

from kerple_eval.models.feeding import Feeding
from kerple_eval.models.hf.model import HfModel
from kerple_eval.models.scoring import score
from kerple_eval.types import Window
from tests.benchmarks.attention_rows import resident_peak
from tests.benchmarks.harness import Row

VOCABULARY, LENGTH, PIECE = 128256, 32768, 1024
LAYERS, WIDTH, MLP = 2, 64, 2048


def llama() -> HfModel:
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return HfModel(transformers.LlamaForCausalLM(config).eval(), torch.device("cpu"), torch.float32, "llama")


def piece_rows() -> list[Row]:
    peaks, means = {}, {}
    for way in ("short", "whole", "pieces"):
        peaks[way], means[way] = measured(way)
    assert abs(means["whole"] - means["pieces"]) < 1e-5, means
    whole, pieces = peaks["whole"] - peaks["short"], peaks["pieces"] - peaks["short"]
    name = f"Llama, {LAYERS} x {WIDTH}, V = {VOCABULARY}, one window of {LENGTH}"
    logits = LENGTH * VOCABULARY * 4 / 1e9
    return [
        Row(
            f"{name}: GB above a window of {PIECE}, in pieces of {PIECE}",
            f"in one pass: {whole:.2f} GB",
            pieces,
            at_most=whole / 2,
            note=f"mean losses equal to 1e-5; all logits at once would be {logits:.1f} GB",
        )
    ]


def measured(way: str) -> tuple[float, float]:
    """Peak resident gigabytes of a process of its own, and the mean loss (nats) of its window."""
    command = [sys.executable, "-m", "tests.benchmarks.piece_rows", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, mean = map(float, done.stdout.split())
    return peak, mean


def main(way: str) -> None:
    """``short``, ``whole`` or ``pieces``; of the latter two without the comparison, which is one pass."""
    model = llama()
    length = PIECE if way == "short" else LENGTH
    if way == "pieces":
        model.feeding = Feeding(PIECE, compared=LENGTH)
    ids = np.random.default_rng(0).integers(VOCABULARY, size=length + 1)
    ((_, (losses,)),) = score(model, [ids], [(0, Window(0, length, 1))])
    print(resident_peak(), losses.mean(dtype=np.float64))


if __name__ == "__main__":
    main(sys.argv[1])
