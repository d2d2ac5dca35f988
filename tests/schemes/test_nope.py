"""NoPE: nothing knows of position but the causal mask."""

from __future__ import annotations

import pytest
import torch

from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.nope import Nope
from kerple_eval.types import Geometry, UserError
from tests.helpers import tiny


def test_every_hook_is_idle() -> None:
    made = Nope(Geometry(heads=2, head_dim=4, width=8, layers=2, train_length=8))
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    q = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(5)
    assert made.embed(x, positions) is x
    assert made.rotate(q, q, positions, positions) == (q, q)
    assert made.kernel(positions.float()) is None
    assert made.weight(positions.float()) is None
    assert made.bias(positions, positions) is None
    assert list(made.parameters()) == []


def test_the_last_row_does_not_see_the_order_of_a_one_layer_model() -> None:
    """Attention over a set: with one layer the last position sees its past as a bag of tokens."""
    tokens = torch.from_numpy(tiny.tokens(10))
    shuffled = torch.cat([tokens[:-1].flip(0), tokens[-1:]])
    last = {}
    for scheme in ("nope", "alibi"):
        made = tiny.decoder(tiny.config(scheme, layers=1))
        with torch.no_grad():
            last[scheme] = [made.head(made(t[None], 1)) for t in (tokens, shuffled)]
    torch.testing.assert_close(*last["nope"], rtol=0, atol=1e-12)
    assert float((last["alibi"][0] - last["alibi"][1]).abs().max()) > 1e-3


def test_options_are_refused() -> None:
    with pytest.raises(UserError, match="unknown option of nope 'x'"):
        scheme_of(tiny.config("nope", scheme_options={"x": 1}))
