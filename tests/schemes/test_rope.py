"""RoPE against explicit 2x2 rotations in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.rope import Rope
from kerple_eval.types import Geometry, UserError
from tests.helpers import oracles, tiny


def rope(dim: int, **options: Any) -> Rope:
    return Rope(Geometry(heads=2, head_dim=dim, width=2 * dim, layers=2, train_length=8), **options)


@pytest.mark.parametrize("base", [10000.0, 500.0])
@pytest.mark.parametrize("dim", [2, 6, 16])
def test_every_vector_is_turned_pair_by_pair(dim: int, base: float) -> None:
    generator = torch.Generator().manual_seed(dim)
    q = torch.randn(2, 2, 5, dim, dtype=torch.float64, generator=generator)
    k = torch.randn(2, 2, 9, dim, dtype=torch.float64, generator=generator)
    positions = torch.arange(9)
    turned_q, turned_k = rope(dim, base=base).rotate(q, k, positions[4:], positions)
    for turned, plain, first in ((turned_q, q, 4), (turned_k, k, 0)):
        for b in range(2):
            for h in range(2):
                for n in range(plain.shape[2]):
                    expected = oracles.rotate(plain[b, h, n].numpy(), first + n, base)
                    np.testing.assert_allclose(turned[b, h, n].numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("fraction", "turned"), [(0.25, 4), (0.3, 4), (0.5, 8), (0.9, 14)])
def test_a_fraction_of_the_components_turns(fraction: float, turned: int) -> None:
    """GPT-NeoX's rotary_pct: int(d * fraction) components, frequencies by that number."""
    x = torch.randn(1, 2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if int(16 * fraction) % 2:
        with pytest.raises(UserError, match="even number"):
            rope(16, fraction=fraction)
        return
    positions = torch.arange(7)
    out, _ = rope(16, fraction=fraction).rotate(x, x, positions, positions)
    assert torch.equal(out[..., turned:], x[..., turned:])
    for h in range(2):
        for n in range(7):
            expected = oracles.rotate(x[0, h, n, :turned].numpy(), n)
            np.testing.assert_allclose(out[0, h, n, :turned].numpy(), expected, rtol=0, atol=1e-13)


def test_scores_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    made = rope(8)
    q, k = (torch.randn(1, 1, 1, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    for distance in (0, 1, 7, 300):
        scores = []
        for start in (0, 5, 4000):
            turned_q, turned_k = made.rotate(q, k, torch.tensor([start + distance]), torch.tensor([start]))
            scores.append(float((turned_q * turned_k).sum()))
        assert scores == pytest.approx([scores[0]] * 3, abs=1e-10)
    assert float((made.rotate(q, k, torch.tensor([3]), torch.tensor([0]))[0] - q).abs().max()) > 0.1


def test_float32_angles_hold_at_16k() -> None:
    """An angle formed in float32 is off by up to 1e-3 there; the result must be good to 1e-6."""
    x = torch.randn(1, 1, 64, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16320, 16384)
    turned, _ = rope(16).rotate(x, x, positions, positions)
    assert turned.dtype == torch.float32
    for n in range(64):
        expected = oracles.rotate(x[0, 0, n].double().numpy(), 16320 + n)
        np.testing.assert_allclose(turned[0, 0, n].numpy(), expected, rtol=0, atol=1.5e-6)


def test_half_precision_vectors_keep_their_dtype() -> None:
    x = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    positions = torch.tensor([0, 1, 5000, 16383])
    turned, _ = rope(8).rotate(x, x, positions, positions)
    assert turned.dtype == torch.bfloat16
    for n, position in enumerate(positions.tolist()):
        expected = oracles.rotate(x[0, 0, n].double().numpy(), position)
        np.testing.assert_allclose(turned[0, 0, n].double().numpy(), expected, rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme_options": {"base": 1}}, "base=1.0 must be greater than 1"),
        ({"scheme_options": {"base": -5}}, "must be greater than 1"),
        ({"scheme_options": {"base": "nan"}}, "must be greater than 1"),
        ({"scheme_options": {"base": "ten"}}, "base=ten is not a float"),
        ({"scheme_options": {"bass": 10}}, "did you mean 'base'"),
        ({"width": 9, "heads": 3}, "head dim 3 is odd"),
        ({"scheme_options": {"fraction": 0.25}}, "fraction=0.25 of head dim 4 is 1"),
        ({"scheme_options": {"fraction": 0.1}}, "is 0; pairs need an even number above 0"),
        ({"scheme_options": {"fraction": 0}}, "above 0 and at most 1"),
        ({"scheme_options": {"fraction": 1.5}}, "above 0 and at most 1"),
        ({"scheme_options": {"fraction": "nan"}}, "above 0 and at most 1"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scheme_of(tiny.config("rope", **changes))
