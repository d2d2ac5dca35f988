"""Random positions and PoSE: what a training step draws, what attention makes of it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.attention import attention, make_table
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.types import UserError
from tests.helpers import oracles, tiny
from tests.helpers.cases import each_case
from tests.schemes.test_modifiers import BASES, DIM, HEADS, logit, made_of

POSITIONS = torch.arange(8)


def drawn(text: str, seed: int) -> list[int]:
    scheme = made_of(text)
    scheme.begin_step(torch.Generator().manual_seed(seed))
    first = scheme.augmented(POSITIONS)
    assert torch.equal(first, scheme.augmented(POSITIONS))  # one draw a step
    return first.tolist()


def test_random_positions_are_a_sorted_sample() -> None:
    seen: set[int] = set()
    for seed in range(200):
        found = drawn("rope,random-positions=20", seed)
        assert found == sorted(set(found))
        seen.update(found)
    assert seen == set(range(20))
    assert drawn("rope,random-positions=8", 0) == list(range(8))  # all there are
    assert max(max(drawn("rope,random-positions", seed)) for seed in range(50)) in range(50, 64)


def test_pose_skips_once() -> None:
    cuts, skips = set(), set()
    for seed in range(300):
        found = drawn("rope,pose=20", seed)
        gaps = [b - a for a, b in pairwise(found)]
        assert found[0] == 0
        assert sum(gap > 1 for gap in gaps) <= 1
        assert max(found) <= 19
        skips.add(max(gaps) - 1)
        if max(gaps) > 1:
            cuts.add(1 + gaps.index(max(gaps)))
    assert cuts == {1, 2, 3, 4}  # r of U{1 .. (N + 1) // 2}
    assert skips == set(range(13))  # u of U{0 .. longest - N}


@each_case("modifier", ["random-positions=30", "pose=30"])
@each_case("base", BASES)
def test_attention_stands_at_the_drawn_positions(base: str, modifier: str) -> None:
    scheme = made_of(f"{base},{modifier}")
    scheme.begin_step(torch.Generator().manual_seed(3))
    places = scheme.augmented(POSITIONS).tolist()
    assert places != list(range(8))
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(HEADS, 8, DIM)) for _ in range(3))
    expected = oracles.attend(
        q, k, v, lambda h, i, j, _: logit(base, (True, places[i] - places[j], 1.0), q[h, i], k[h, j], h)
    )
    tensors = [torch.from_numpy(x)[None] for x in (q, k, v)]
    assert make_table(scheme, 8, torch.float64, torch.device("cpu")) is None
    found = attention(*tensors, scheme, None)
    np.testing.assert_allclose(found[0].detach().numpy(), expected, rtol=0, atol=1e-12)
    plain = made_of(base)
    scheme.eval()
    for each in (scheme, plain):
        table = make_table(each, 8, torch.float64, torch.device("cpu"))
        out = attention(*tensors, each, table)[0].detach()
        torch.testing.assert_close(out, attention(*tensors, plain, table)[0].detach(), rtol=0, atol=0)


def test_absolute_schemes_stand_there_too() -> None:
    scheme = made_of("sinusoidal,random-positions=30")
    made = Decoder(tiny.config("sinusoidal", modifiers={"random-positions": {"longest": 30}}))
    made.reset_parameters(0)
    made.scheme.begin_step(torch.Generator().manual_seed(3))
    places = made.scheme.augmented(POSITIONS)
    x = torch.zeros(1, 8, 12, dtype=torch.float64)
    expected = [oracles.sinusoid(int(p), 12) for p in places]
    np.testing.assert_allclose(scheme.embed(x, places)[0].numpy(), expected, atol=1e-12)
    tokens = torch.from_numpy(tiny.tokens(8))[None]
    with torch.no_grad():
        training = made(tokens)
        evaluated = made.eval()(tokens)
    assert float((training - evaluated).abs().max()) > 1e-3
    assert math.isfinite(float(training.sum()))


@each_case(
    ("text", "message"),
    [
        ("rope,pose=7", "pose: longest=7 is less than the trained length, 8 tokens"),
        ("rope,random-positions=7", "random-positions: longest=7 is less than the trained length, 8"),
        ("rope,pose=9,random-positions=9", "both change positions in training"),
        ("fox,pose=9", "pose needs a scheme that is a function of positions; Fox reads the text"),
        ("rope-dynamic,pose=9", "pose needs a scheme that is a function of positions"),
        ("learned,pose=9", "pose: longest=9 is beyond the 8 positions of Learned"),
    ],
)
def test_what_contradicts_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made_of(text)


def test_a_mix_is_augmented_layer_by_layer() -> None:
    made = scheme_of(tiny.config("layers", scheme_options={"parts": "(rope,pose=30) (nope)"}))
    made.begin_step(torch.Generator().manual_seed(3))
    assert made.at(0).augments
    assert not made.at(1).augments
