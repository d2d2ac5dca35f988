"""How much memory a window takes, estimated before anything is loaded. Units: bytes.

One forward pass holds the weights and, for the T tokens that share it (``scoring.TOKENS_PER_PASS``),
the widest moment of a layer: the residual stream and its norm, and either queries, keys, values and the
attention's output, or the MLP's inner activations before and after the non-linearity; the kernel of
distance ([H, L], and on CUDA a strip [H, chunk, L] of it); and a chunk of logits in float32. The
process itself (interpreter, libraries) comes on top.
"""

from __future__ import annotations

from kerple_eval.checkpoints.base import Description
from kerple_eval.model.attention import QUERY_CHUNK
from kerple_eval.scoring import TOKENS_PER_PASS

LOGIT_CHUNK = 2 * (1 << 22) * 4  # a chunk of logits and its log-softmax, float32


def window_bytes(description: Description, length: int, width: int, device: str = "cpu") -> int:
    """Peak of one forward pass at ``length`` tokens a window, ``width`` bytes a number."""
    shape = description.shape
    tokens = max(length, TOKENS_PER_PASS[device] // length * length)
    heads = shape.heads * shape.head_dim
    attention = 2 * shape.width + 2 * heads + 2 * shape.kv_heads * shape.head_dim
    mlp = 2 * shape.width + 2 * shape.mlp_width
    layer = tokens * max(attention, mlp) * width
    rows = QUERY_CHUNK if device == "cuda" else 1
    kernel = shape.heads * (length + QUERY_CHUNK) * 4 * rows
    return description.parameters * width + layer + kernel + LOGIT_CHUNK
