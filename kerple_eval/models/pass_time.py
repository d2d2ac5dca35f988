"""Arithmetic and measured time of one forward pass.

Work counts the multiplications and additions of matrix products. Of a pass over B windows of N input tokens
of which the last R are scored, through l layers:

    linear     2 B (p (N (l - 1) + R) + kv N)      p: a layer's weights applied to every row; kv: the key and
                                                   value weights, applied to all N rows in the last layer too
    attention  2 B h (N^2 (l - 1) + 2 N R - R^2)    h = heads x head dim; causal, so half of N x N
    head       2 B W V R                            W: hidden size, V: vocabulary

Where nothing is known of a model's layers it is 2 B (parameters) N.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch

from kerple_eval.models.base import Description, LanguageModel
from kerple_eval.models.scoring import Budget, score
from kerple_eval.types import Window


class PassShape(NamedTuple):
    """The shape of a forward pass: windows, and input tokens and scored rows of each."""

    batch: int
    inputs: int
    rows: int


def pass_work(shape: PassShape, description: Description) -> tuple[float, float]:
    """(linear and head, attention) work of a pass, in FLOPs."""
    s, v = description.shape, description.vocab_size
    batch, n, rows = shape
    if not s.layers:
        return 2.0 * batch * max(1, description.parameters) * n, 0.0
    hidden = s.heads * s.head_dim
    keys = 2 * s.width * s.kv_heads * s.head_dim
    plain = 2 * s.width * hidden + keys + 2 * s.width * s.mlp_width
    body = description.parameters - s.width * v
    if body - s.width * v >= 0.95 * s.layers * plain:  # the head is a matrix of its own, not the embedding
        body -= s.width * v
    rest = max(plain, body / s.layers) - keys  # more where the MLP is gated
    linear = 2.0 * batch * ((rest + keys) * n * (s.layers - 1) + rest * rows + keys * n)
    head = 2.0 * batch * s.width * v * rows
    attention = 2.0 * batch * hidden * (n**2 * (s.layers - 1) + 2 * n * rows - rows**2)
    return linear + head, attention


def pass_seconds(model: LanguageModel, shape: PassShape, budget: Budget | None = None) -> float:
    """Measured seconds of one pass over token id 0, losses copied back to the CPU.

    ``budget`` as in :func:`kerple_eval.models.scoring.score`, which may divide a pass that does not fit.
    """
    ids = np.zeros(shape.inputs + 1, dtype=np.int64)
    window = Window(0, shape.inputs, shape.inputs - shape.rows + 1)
    began = time.monotonic()
    for _ in score(model, [ids], [(0, window)] * shape.batch, budget=budget):
        pass
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - began
