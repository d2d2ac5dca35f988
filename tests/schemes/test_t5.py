"""T5: buckets against the published rule in float64, in float32 and in exact integers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.t5 import T5, bucket_index
from kerple_eval.types import Geometry, UserError
from tests.helpers import oracles, tiny
from tests.helpers.cases import each_case

GEOMETRY = Geometry(heads=3, head_dim=4, width=12, layers=2, train_length=8)


def exact_bucket(distance: int, buckets: int, farthest: int) -> int:
    """The rule without rounding: the largest s with (M/m)^s <= (D/m)^(R-m), by whole numbers."""
    m = buckets // 2
    if distance < m:
        return distance
    steps = 0
    while steps < buckets - m and farthest ** (steps + 1) * m ** (buckets - m) <= distance ** (
        buckets - m
    ) * m ** (steps + 1):
        steps += 1
    return min(buckets - 1, m + steps)


def test_buckets_are_the_published_rule_to_20000() -> None:
    got = bucket_index(torch.arange(20001, dtype=torch.float32), 32, 128).tolist()
    assert got == [oracles.t5_bucket(d) for d in range(20001)]


def test_buckets_agree_with_the_rule_run_in_float32() -> None:
    """The published code computes in float32; no distance falls into another bucket for it."""
    d = torch.arange(20001, dtype=torch.float32)
    far = 16 + (torch.log(d / 16) / math.log(128 / 16) * 16).clamp(min=0).to(torch.int64)
    published = torch.where(d < 16, d.to(torch.int64), far.clamp(max=31))
    assert torch.equal(bucket_index(d, 32, 128), published)


def test_pinned_edges() -> None:
    """First distances of buckets 16..31: the least integers >= 16 * 8^(s/16) = 2^(4 + 3s/16)."""
    firsts = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    got = bucket_index(torch.arange(200, dtype=torch.float32), 32, 128).tolist()
    assert got[:16] == list(range(16))
    assert [got.index(bucket) for bucket in range(16, 32)] == firsts
    assert got[113:] == [31] * (200 - 113)


@each_case(
    ("buckets", "farthest"),
    [
        (32, 128),
        (32, 256),
        (8, 16),
        (8, 64),
        (4, 3),
        (16, 128),
        (64, 2048),
        (64, 33),
        (10, 160),
        (36, 32),
        (54, 64),
        (54, 125),
    ],
)
def test_edges_that_are_whole_numbers_are_not_rounded_away(buckets: int, farthest: int) -> None:
    """With 10 buckets and 160, say, 20 is two whole steps of log 2, but float64 says 1.9999999999999998."""
    span = min(4 * farthest, 600)
    got = bucket_index(torch.arange(span, dtype=torch.float32), buckets, farthest).tolist()
    assert got == [exact_bucket(d, buckets, farthest) for d in range(span)]
    assert sorted(got) == got


@pytest.mark.parametrize(
    ("options", "buckets", "farthest"), [({}, 32, 128), ({"buckets": 8, "max_distance": 20}, 8, 20)]
)
def test_formula_at_every_pair(options: dict[str, Any], buckets: int, farthest: int) -> None:
    made = T5(GEOMETRY, **options).double()
    with torch.no_grad():
        made.relative_bias.copy_(torch.randn(buckets, 3, generator=torch.Generator().manual_seed(0)))
    kernel = made.kernel(torch.arange(200, dtype=torch.float64))
    assert kernel.shape == (3, 200)
    for d in range(200):
        bucket = oracles.t5_bucket(d, buckets, farthest)
        assert kernel[:, d].tolist() == made.relative_bias[bucket].tolist()


def test_the_scale_multiplies_after_the_lookup() -> None:
    plain, scaled = T5(GEOMETRY).double(), T5(GEOMETRY, scale=2.0).double()
    with torch.no_grad():
        for made in (plain, scaled):
            made.relative_bias.copy_(torch.randn(32, 3, generator=torch.Generator().manual_seed(0)))
    d = torch.arange(300, dtype=torch.float64)
    assert torch.equal(scaled.kernel(d), 2 * plain.kernel(d))
    assert torch.equal(scaled.relative_bias, plain.relative_bias)


def test_float32_distances_to_16k_and_gradient_counts() -> None:
    """The gradient of the summed kernel in b[r, h] is the number of distances in bucket r."""
    made = T5(GEOMETRY)
    kernel = made.kernel(torch.arange(16384, dtype=torch.float32))
    assert kernel.dtype == torch.float32
    kernel.sum().backward()
    counts = [0] * 32
    for d in range(16384):
        counts[oracles.t5_bucket(d)] += 1
    assert made.relative_bias.grad is not None
    assert made.relative_bias.grad.tolist() == [[float(c)] * 3 for c in counts]


def test_initial_values_are_normal() -> None:
    made = T5(Geometry(heads=1000, head_dim=1, width=1000, layers=1, train_length=8))
    made.reset_parameters(torch.Generator().manual_seed(0))
    values = made.relative_bias.detach()
    assert values.shape == (32, 1000)
    assert float(values.mean()) == pytest.approx(0.0, abs=0.0004)
    assert float(values.std()) == pytest.approx(0.02, rel=0.02)
    within = (values.abs() < 0.02).float().mean()  # one standard deviation holds 68.27 %
    assert float(within) == pytest.approx(0.6827, abs=0.01)


def test_projection_leaves_the_table_alone() -> None:
    made = T5(GEOMETRY)
    with torch.no_grad():
        made.relative_bias.fill_(-50.0)
    assert made.project_() == {}
    assert bool((made.relative_bias == -50.0).all())


@each_case(
    ("options", "message"),
    [
        ({"buckets": 5}, "buckets=5 must be even"),
        ({"buckets": 2}, "at least 4"),
        ({"buckets": -32}, "buckets=-32"),
        ({"scale": 0}, "scale=0.0 must be positive"),
        ({"scale": "nan"}, "must be positive"),
        ({"max_distance": 16}, "max_distance=16 must exceed buckets/2=16"),
        ({"buckets": "many"}, "buckets=many is not an int"),
        ({"buckets": 32.5}, "buckets=32.5 is not an int"),
        ({"max_distanc": 64}, "did you mean 'max_distance'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scheme_of(tiny.config("t5", scheme_options=options))


def test_options_from_a_command_line_are_converted() -> None:
    made = scheme_of(tiny.config("t5", scheme_options={"buckets": "8", "max_distance": "40"}))
    assert isinstance(made, T5)
    assert (made.buckets, made.max_distance) == (8, 40)
    assert made.relative_bias.shape == (8, 3)
