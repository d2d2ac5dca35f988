"""How much memory a window takes, estimated before anything is loaded. Units: bytes.

One forward pass holds the weights and, for the T tokens that share it (``scoring.TOKENS_PER_PASS``),
the widest moment of a layer: the residual stream before and after attention and what attention added,
and then either queries, keys, values and their output twice, or the MLP's inner activations before
and after the non-linearity, with WORKSPACE for what libraries and the allocator take beside them; the
kernel of distance ([H, L], and on CUDA a strip [H, chunk, L] of it); where attention is eager, its scores
[B, H, L, L] masked, scaled and after the softmax; and a chunk of logits in float32.
In pieces the T tokens are those of a piece, beside the cache: keys and values of the whole window in every
layer, once more while a layer's are put together, and the mask of a piece's queries.
The process itself (interpreter, libraries: about 0.4 GB) comes on top.
"""

from __future__ import annotations

from kerple_eval.models.base import HEAD_CHUNK_ELEMENTS, Description
from kerple_eval.models.decoder.attention import QUERY_CHUNK
from kerple_eval.models.scoring import TOKENS_PER_PASS

WORKSPACE = 1.4  # measured on the CPU: tests/models/test_footprint.py
MASK = 5  # bytes a query and key: a truth value, and the number that attention makes of it


def window_bytes(
    description: Description, length: int, width: int, device: str = "cpu", piece: int | None = None
) -> int:
    """Peak of a forward pass at ``length`` tokens per window, ``width`` bytes per number.

    ``piece``: longer windows are fed in pieces of so many tokens.
    """
    shape = description.shape
    tokens = max(length, TOKENS_PER_PASS[device] // length * length)
    fed = length if piece is None else min(piece, length)
    cache = 0
    if fed < length:
        cache = 2 * shape.kv_heads * shape.head_dim * tokens * width * (shape.layers + 2)
        cache += MASK * fed * length
        tokens = tokens // length * fed
    heads = shape.heads * shape.head_dim
    attention = 3 * heads + 2 * shape.kv_heads * shape.head_dim
    layer = tokens * (3 * shape.width + max(attention, 2 * shape.mlp_width)) * width
    rows = QUERY_CHUNK if device == "cuda" else 1
    kernel = shape.heads * (length + QUERY_CHUNK) * 4 * rows
    scores = 3 * tokens * shape.heads * length * width if description.eager else 0
    logits = 2 * 4 * min(HEAD_CHUNK_ELEMENTS[device], tokens * description.vocab_size)  # and log-softmax
    return description.parameters * width + int(WORKSPACE * layer) + cache + kernel + scores + logits
