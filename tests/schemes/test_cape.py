"""CAPE: plain sinusoids in evaluation, augmented positions in training, drawn from its own generator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.cape import Cape
from tests.helpers import oracles, tiny


def cape(**options: float | bool) -> Cape:
    made = scheme_of(tiny.config("cape", scheme_options=options))
    assert isinstance(made, Cape)
    return made


def test_evaluation_adds_the_sinusoid_of_the_position() -> None:
    x = torch.randn(2, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = cape()
    made.begin_step(torch.Generator().manual_seed(1))
    out = made.eval().embed(x, torch.arange(9)) - x
    for i in range(9):
        np.testing.assert_allclose(out[1, i].numpy(), oracles.sinusoid(i, 12), rtol=0, atol=1e-12)


def test_normalised_positions_are_centred() -> None:
    made = cape(normalize=True).eval()
    assert made.prefix_invariant is False
    x = torch.zeros(1, 5, 12, dtype=torch.float64)
    out = made.embed(x, torch.arange(5))
    for i in range(5):
        angles = [(i - 2) * 10000 ** (-2 * t / 12) for t in range(6)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        np.testing.assert_allclose(out[0, i].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_normalised_logits_follow_the_window_and_plain_ones_do_not(normalize: bool) -> None:
    decoder = tiny.decoder(tiny.config("cape", scheme_options={"normalize": normalize})).eval()
    tokens = torch.from_numpy(tiny.tokens(24))[None]
    with torch.no_grad():
        moved = (decoder(tokens)[:, :9] - decoder(tokens[:, :9])).abs().max()
    assert float(moved) > 1e-3 if normalize else float(moved) < 1e-11
    assert decoder.scheme.prefix_invariant is not normalize


def test_training_shifts_jitters_and_scales() -> None:
    """Over many sequences: bounds are kept and reached; the jitter is a token's, the rest a sequence's."""
    made = cape(shift=20.0, jitter=0.4, scaling=1.5).train()
    made.begin_step(torch.Generator().manual_seed(4))
    places = made.continuous_positions(torch.arange(50), 2000)
    steps = places.diff(dim=1)
    scale = (places[:, -1] - places[:, 0]) / 49
    assert 1 / 1.5 - 0.02 < float(scale.min()) < 0.72
    assert 1.45 < float(scale.max()) < 1.5 + 0.03
    assert float(scale.log().mean()) == pytest.approx(0, abs=0.02)
    jitter = steps / scale[:, None] - 1
    assert 0.7 < float(jitter.abs().max()) < 0.85  # two tokens' jitter, and the scale's own error
    start = places[:, 0] / scale
    assert 19 < float(start.abs().max()) < 21.5
    made.begin_step(torch.Generator().manual_seed(4))
    assert torch.equal(made.continuous_positions(torch.arange(50), 2000), places)
    made.begin_step(torch.Generator().manual_seed(5))
    assert not torch.equal(made.continuous_positions(torch.arange(50), 2000), places)


def test_unaugmented_training_is_plain() -> None:
    made = cape(shift=0.0, jitter=0.0, scaling=1.0).train()
    made.begin_step(torch.Generator().manual_seed(4))
    assert torch.equal(made.continuous_positions(torch.arange(7), 3), torch.arange(7).double().expand(3, 7))
