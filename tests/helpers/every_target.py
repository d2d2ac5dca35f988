"""Losses with no windows at all, one target at a time in float64, and where each target's window starts."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from kerple_eval.models.open import open_model, parse_model
from tests.helpers import oracles


def naive(model: str, scheme: str, tokens: bytes | tuple[int, ...], start: int, target: int) -> float:
    """Loss (nats) of one target given ``tokens[start:target]``, in float64, with no windows at all."""
    place = model.split(":", 1)[1]
    return _naive(place, scheme, tuple(tokens[start:target]), tokens[target])


@cache
def _naive(place: str, scheme: str, seen: tuple[int, ...], target: int) -> float:
    logits = oracles.decoder_logits(_weights(place), seen, layers=2, heads=2, scheme=scheme)
    return oracles.negative_log_softmax(logits[-1], target)


@cache
def _weights(place: str) -> dict[str, np.ndarray]:
    made = open_model(parse_model(f"native:{place}")).load(torch.device("cpu"), torch.float32)
    return {name: x.double().numpy() for name, x in made.decoder.state_dict().items()}  # type: ignore[attr-defined]


def starts(protocol: str, length: int, n: int, longest: int) -> dict[int, int]:
    """Target -> first input, from the protocol's words in the design, target by target."""
    if protocol == "full-context":
        return {k: (k - 1) // length * length for k in range(1, n)}
    if protocol == "sliding-window:stride=4":
        # The window ends at L, L+4, L+8, ... or at n-1; it starts L before its end.
        ends = {k: min(n - 1, length + max(0, math.ceil((k - length) / 4)) * 4) for k in range(1, n)}
        return {k: max(0, e - length) for k, e in ends.items()}
    if protocol == "last:k=3":
        return {k: e - length for e in range(length, n, length) for k in range(e - 2, e + 1)}
    if protocol == "aligned:k=3":
        return {k: e - length for e in range(longest, n, longest) for k in range(e - 2, e + 1)}
    assert protocol == "prefix"
    return {k: s for s in range(0, n - longest, longest) for k in range(s + 1, s + length + 1)}
