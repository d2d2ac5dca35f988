"""One layer of a content scheme with every parameter redrawn, and vectors for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.base import Scheme
from tests.helpers import oracles, tiny

HEADS, DIM, KEYS = 3, 4, 21
Array = oracles.Array


def made(name: str, **options: Any) -> Scheme:
    """One layer's scheme with every parameter redrawn."""
    config = tiny.config(name, heads=HEADS, width=HEADS * DIM, scheme_options=options)
    whole = scheme_of(config)
    whole.reset_parameters(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    whole.project_()
    return whole.double().at(1)


def weights(scheme: Scheme) -> dict[str, Array]:
    return {name: p.detach().numpy() for name, p in scheme.named_parameters()}


def drawn(queries: int, seed: int = 0) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(HEADS, n, DIM)) for n in (queries, KEYS, KEYS))
    return q, k, v, rng.normal(size=(KEYS, HEADS * DIM))
