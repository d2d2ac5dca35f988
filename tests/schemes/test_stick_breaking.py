"""Stick-breaking attention against its product, one pair at a time, and fla's naive form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.attention import attention
from kerple_eval.types import UserError
from tests.helpers.one_layer import DIM, HEADS, KEYS, drawn, made
from tests.schemes.test_content_references import fla_naive
from tests.schemes.test_modifiers import made_of


def test_each_key_takes_its_share_of_what_the_nearer_ones_left() -> None:
    scheme = made("stick-breaking")
    for queries in (KEYS, 5, 1):
        q, k, v, _ = drawn(queries)
        expected = np.zeros((HEADS, queries, DIM))
        for h in range(HEADS):
            for row in range(queries):
                i, left = KEYS - queries + row, 1.0
                for j in range(i - 1, -1, -1):
                    share = 1 / (1 + math.exp(-float(q[h, row] @ k[h, j]) / math.sqrt(DIM)))
                    expected[h, row] += left * share * v[h, j]
                    left *= 1 - share
        found = attention(*(torch.from_numpy(x)[None] for x in (q, k, v)), scheme, None)
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-12)


def test_it_is_fla_s_naive_form() -> None:
    naive = fla_naive("stickbreaking_attn")
    q, k, v = (
        3 * torch.randn(2, 300, HEADS, DIM, generator=torch.Generator().manual_seed(s)) for s in range(3)
    )
    theirs, _ = naive(*(x.double() for x in (q, k, v)))
    found = attention(*(x.transpose(1, 2) for x in (q, k, v)), made("stick-breaking").float(), None)
    torch.testing.assert_close(found.transpose(1, 2).double(), theirs, rtol=0, atol=2e-5)


def test_two_softmaxes_are_refused() -> None:
    with pytest.raises(UserError, match="StickBreaking and sink both change the softmax"):
        made_of("stick-breaking,sink")
