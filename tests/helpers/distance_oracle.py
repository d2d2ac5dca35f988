"""Attention at any distances of any transformers model, by its own rotation: nothing of it is known here.

A batch repeats the text, each row with *all* its tokens at one position: row r at the r-th of the distances
that occur. Of a relative rotation the pair (i, j) at distance D then has the logit of query i in the row at
D with key j in the row at 0. The weighted values go to every row alike, so that all rows stay equal. Float64,
with the model's own projections, norms, rotation, mask, scale, soft cap and sinks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

transformers = pytest.importorskip("transformers")

from transformers.masking_utils import eager_mask  # noqa: E402

from tests.helpers.literal_attention import Positions, plain  # noqa: E402

NAME = "distance-oracle"


class _Oracle:
    def __init__(
        self, positions: Positions, n: int, temperature: Callable[[float], float], everywhere: bool
    ) -> None:
        self.tables = {}
        for key, rule in (("far", positions), ("local", plain)):
            pairs = [[rule(i, j) if j <= i else (False, 0, 1.0) for j in range(n)] for i in range(n)]
            self.tables[key] = [
                torch.tensor([[pair[of] for pair in row] for row in pairs]) for of in range(3)
            ]
        seen = [torch.where(table[0], table[1], 0).flatten().double() for table in self.tables.values()]
        self.distances = torch.cat([torch.zeros(1, dtype=torch.float64), *seen]).unique()
        self.local: dict[Any, bool] = {}
        self.temperature = temperature
        self.everywhere = everywhere

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
        scaling: float | None = None, softcap: float | None = None, s_aux: Tensor | None = None, **_: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """q ``[D, H, N, d]``, a row for each distance."""
        n, share = query.shape[2], query.shape[1] // key.shape[1]
        zero = int((self.distances == 0).nonzero()[0, 0])
        k, v = (x[zero].repeat_interleave(share, dim=0) for x in (key, value))
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        visible = causal if attention_mask is None else causal & (attention_mask[0, 0] == 0)
        known = self.local.setdefault(module, bool((causal & ~visible).any()))
        beside_far = known and not all(self.local.values())
        plainly = beside_far and not self.everywhere
        seen, distance, stretch = self.tables["local" if plainly else "far"]
        row = torch.searchsorted(self.distances, torch.where(seen, distance, 0).double())
        logits = query @ k.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        logits = logits[row, :, torch.arange(n)[:, None], torch.arange(n)] * stretch[..., None]  # [N, N, H]
        own = torch.tensor([self.temperature(i) for i in range(n)], dtype=torch.float64)
        given = torch.tensor([self.temperature(float(d)) for d in self.distances], dtype=torch.float64)
        if not beside_far:
            logits = logits * (own[:, None] / given[row])[..., None]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.masked_fill(~(visible & seen)[..., None], -torch.inf)
        if s_aux is not None:
            logits = torch.cat([logits, s_aux.expand(n, 1, -1)], dim=1)
        weights = logits.softmax(dim=1)[:, :n]
        out = torch.einsum("ijh,hjd->ihd", weights, v)
        return out.expand(len(query), -1, -1, -1).contiguous(), None


def losses(
    model: Any, tokens: NDArray[np.int64], positions: Positions,
    temperature: Callable[[float], float] = lambda _: 1.0, *, everywhere: bool = False,
) -> NDArray[np.float64]:  # fmt: skip
    """Losses of all but the first of ``tokens``, in nats.

    ``temperature`` is what the model's own code scales queries by that stand at a position, in layers without
    a window where there are some; ``positions``
    are those of layers without a window, or of all layers (``everywhere``).
    """
    wide = copy.deepcopy(model).double()
    oracle = _Oracle(positions, len(tokens) - 1, temperature, everywhere)
    transformers.AttentionInterface.register(NAME, oracle.attend)
    transformers.AttentionMaskInterface.register(NAME, eager_mask)
    wide.config._attn_implementation = NAME
    wide.config._experts_implementation = "eager"
    ids = torch.from_numpy(tokens[:-1])[None].expand(len(oracle.distances), -1)
    rows = oracle.distances[:, None].expand(ids.shape)
    with torch.no_grad():
        for _ in range(2):  # once to learn which layers are local
            logits = wide(
                input_ids=ids, position_ids=rows, attention_mask=torch.ones_like(ids), use_cache=False
            ).logits
    chosen = logits[0].double().log_softmax(-1).gather(-1, torch.from_numpy(tokens[1:])[:, None])
    return -chosen[:, 0].numpy()
