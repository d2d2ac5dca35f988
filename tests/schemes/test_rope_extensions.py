"""RoPE's extensions, xPos, against the papers' formulas in float64 and against transformers' own code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import UserError
from tests.helpers import tiny
from tests.helpers.cases import each_case

DIM, TRAINED = 16, 512


def made(name: str, dim: int = DIM, trained: int = TRAINED, **options: Any) -> Rotary:
    config = tiny.config(name, heads=2, width=2 * dim, train_length=trained, scheme_options=options)
    scheme = scheme_of(config)
    assert isinstance(scheme, Rotary)
    return scheme


def theta(t: int, dim: int = DIM, base: float = 10000.0) -> float:
    return base ** (-2 * t / dim)


def check(scheme: Rotary, length: int, expected: list[float], factor: float = 1.0) -> None:
    """Frequencies, and what rotation does with them: 2x2 turns by position, times the factor."""
    found = scheme.frequencies(length, torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    x = torch.randn(1, 2, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length)
    turned, keys = scheme.rotate(x, x, positions, positions)
    assert torch.equal(turned, keys)
    for n in (0, 1, length - 1):
        for t, frequency in enumerate(expected):
            a, b = float(x[0, 1, n, t]), float(x[0, 1, n, t + DIM // 2])
            c, s = math.cos(n * frequency), math.sin(n * frequency)
            assert float(turned[0, 1, n, t]) == pytest.approx(factor * (a * c - b * s), abs=1e-11)
            assert float(turned[0, 1, n, t + DIM // 2]) == pytest.approx(factor * (a * s + b * c), abs=1e-11)


def test_linear_is_position_interpolation() -> None:
    check(made("rope-linear", factor=4.0), 60, [theta(t) / 4 for t in range(8)])


def test_theta_is_another_base() -> None:
    check(made("theta"), 60, [theta(t, base=500000.0) for t in range(8)])
    check(made("theta", theta=1e6), 60, [theta(t, base=1e6) for t in range(8)])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.75, 1.0])
def test_p_rope_stills_the_slowest_pairs(p: float) -> None:
    kept = int(p * DIM // 2)
    check(made("p-rope", p=p), 60, [theta(t) if t < kept else 0.0 for t in range(8)])
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    config = pytest.importorskip("transformers").LlamaConfig(
        head_dim=DIM,
        rope_parameters={"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": p},
    )
    theirs, factor = utils.ROPE_INIT_FUNCTIONS["proportional"](config, "cpu")
    found = made("p-rope", p=p).frequencies(60, torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), theirs.numpy(), rtol=1e-6)
    assert factor == 1.0


def test_p_rope_refuses_a_share_above_one() -> None:
    with pytest.raises(UserError, match=r"p-rope: p=1\.5 must be at least 0 and at most 1"):
        made("p-rope", p=1.5)


def test_ntk_moves_the_base() -> None:
    base = 10000 * 4 ** (DIM / (DIM - 2))
    expected = [theta(t, base=base) for t in range(8)]
    check(made("rope-ntk", factor=4.0), 60, expected)
    assert expected[0] == 1.0
    assert expected[-1] == pytest.approx(theta(7) / 4)  # the lowest frequency is interpolated whole


@each_case("length", [10, 512, 513, 1024, 4096])
@each_case("factor", [1.0, 2.0])
def test_dynamic_follows_the_window(length: int, factor: float) -> None:
    growth = factor * max(length, TRAINED) / TRAINED - (factor - 1)
    base = 10000 * growth ** (DIM / (DIM - 2))
    expected = [theta(t, base=base) for t in range(8)]
    found = made("rope-dynamic", factor=factor).frequencies(length, torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    if length <= TRAINED:
        assert expected == [theta(t) for t in range(8)]


def yarn(t: int, factor: float, original: float, dim: int = DIM, base: float = 10000.0) -> float:
    """YaRN's code, one pair at a time (jquesnelle/yarn, LlamaYaRNScaledRotaryEmbedding.py)."""

    def pair(rotations: float) -> float:
        return (dim * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(base))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), dim - 1)
    ramp = min(max((t - low) / (high - low), 0), 1)
    mask = 1 - ramp
    return theta(t, dim, base) / factor * (1 - mask) + theta(t, dim, base) * mask


@pytest.mark.parametrize(("factor", "original"), [(4.0, 512), (16.0, 4096)])
def test_yarn(factor: float, original: int) -> None:
    expected = [yarn(t, factor, original) for t in range(8)]
    sharpening = 0.1 * math.log(factor) + 1
    check(made("rope-yarn", factor=factor, original=original), 60, expected, sharpening)
    assert len({round(e / theta(t), 6) for t, e in enumerate(expected)}) > 2  # kept, ramped, interpolated
    check(made("rope-yarn", factor=factor, original=original, attention_factor=1.5), 60, expected, 1.5)


@pytest.mark.parametrize("original", [512, 8192])
def test_llama3(original: int) -> None:
    expected = []
    for t in range(8):
        wavelength = 2 * math.pi / theta(t)
        if wavelength < original / 4:
            expected.append(theta(t))
        elif wavelength > original / 1:
            expected.append(theta(t) / 8)
        else:
            smooth = (original / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * theta(t) / 8 + smooth * theta(t))
    check(made("rope-llama3", factor=8.0, original=original), 60, expected)


def test_longrope() -> None:
    long = [1.0, 1.1, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0]
    short = [1.0, 1.0, 1.0, 1.05, 1.1, 1.1, 1.2, 1.2]
    options = {
        "factor": 8.0,
        "original": 40,
        "long": "/".join(map(str, long)),
        "short": "/".join(map(str, short)),
    }
    sharpening = math.sqrt(1 + math.log(8) / math.log(40))
    scheme = made("rope-longrope", **options)
    check(scheme, 40, [theta(t) / short[t] for t in range(8)], sharpening)
    check(scheme, 41, [theta(t) / long[t] for t in range(8)], sharpening)
    plain = made("rope-longrope", factor=8.0)
    check(plain, 60, [theta(t) for t in range(8)], math.sqrt(1 + math.log(8) / math.log(512)))
    found = plain.frequencies(513, torch.device("cpu"))
    np.testing.assert_allclose(
        found.numpy(), [theta(t) / 8 ** (2 * t / (DIM - 2)) for t in range(8)], rtol=1e-12
    )


TRANSFORMERS = {
    "linear": ("rope-linear", {}),
    "dynamic": ("rope-dynamic", {}),
    "yarn": ("rope-yarn", {"original_max_position_embeddings": 256}),
    "llama3": (
        "rope-llama3",
        {"original_max_position_embeddings": 256, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "longrope": (
        "rope-longrope",
        {
            "original_max_position_embeddings": 256,
            "short_factor": [1.0 + 0.01 * t for t in range(32)],
            "long_factor": [1.0 + 0.2 * t for t in range(32)],
        },
    ),
}


@each_case("length", [200, 256, 257, 1000])
@each_case("kind", TRANSFORMERS)
def test_frequencies_are_transformers(kind: str, length: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

    name, extra = TRANSFORMERS[kind]
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **extra}
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=256, rope_parameters=parameters
    )
    theirs, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
    options: dict[str, Any] = {"factor": 4.0}
    if kind != "linear":
        options["original"] = 256
    for key in ("short", "long"):
        if f"{key}_factor" in extra:
            options[key] = "/".join(map(str, extra[f"{key}_factor"]))  # type: ignore[arg-type]
    ours = made(name, dim=64, **options)
    np.testing.assert_allclose(
        ours.frequencies(length, torch.device("cpu")).numpy(), theirs.numpy(), rtol=2e-6
    )
    assert ours.attention_factor == pytest.approx(factor, rel=1e-12)


@each_case("factor", [1.0, 4.0, 40.0])
@each_case(
    "options",
    [
        {"mscale": 1.0, "mscale_all_dim": 0.707},
        {"mscale": 0.5, "mscale_all_dim": 1.5},
        {"truncate": False},
        {"truncate": False, "beta_fast": 20.0, "beta_slow": 2.0},
        {"attention_factor": 1.3},
    ],
)
def test_yarn_s_options_are_transformers(options: dict[str, Any], factor: float) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

    parameters = {"rope_type": "yarn", "rope_theta": 500.0, "factor": factor, **options}
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=512,
        rope_parameters={**parameters, "original_max_position_embeddings": 512},
    )  # fmt: skip
    theirs, sharpening = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    ours = made("rope-yarn", dim=64, base=500.0, factor=factor, **options)
    found = ours.frequencies(9, torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), theirs.numpy(), rtol=2e-6)
    assert ours.attention_factor == pytest.approx(sharpening, rel=1e-12)


def test_yarn_s_ramp_without_rounding() -> None:
    """The paper's own ramp over pairs, ends not rounded; rounding moves the frequencies between."""
    low, high = (DIM * math.log(TRAINED / (2 * math.pi * r)) / (2 * math.log(10000)) for r in (32, 1))
    kept = [1 - min(max((t - low) / (high - low), 0), 1) for t in range(8)]
    expected = [(1 - g) * theta(t) / 4 + g * theta(t) for t, g in enumerate(kept)]
    check(made("rope-yarn", factor=4.0, truncate=False), 60, expected, 0.1 * math.log(4) + 1)
    rounded = made("rope-yarn", factor=4.0).frequencies(9, torch.device("cpu"))
    assert float(np.abs(rounded.numpy() / expected - 1).max()) > 0.05


@pytest.mark.parametrize("name", ["rope", *(entry for entry, _ in TRANSFORMERS.values()), "rope-ntk", "xpos"])
def test_positions_may_be_anywhere_and_between_whole_ones(name: str) -> None:
    """As modifiers that move positions hand them over: not in order, repeated, with fractions."""
    scheme = made(name)
    turns = scheme.frequencies(5, torch.device("cpu"))
    x = torch.randn(1, 2, 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([7.0, 0.0, 2.5, 2.5, 1.25], dtype=torch.float64)
    queries, keys = scheme.rotate(x, x, places, places)
    zeta = [(2 * t + 0.4 * DIM) / (1.4 * DIM) for t in range(8)]
    for n, place in enumerate(places.tolist()):
        for t in range(8):
            a, b = float(x[0, 1, n, t]), float(x[0, 1, n, t + 8])
            c, s = math.cos(place * float(turns[t])), math.sin(place * float(turns[t]))
            scale = zeta[t] ** (place / 512) if name == "xpos" else 1.0
            for turned, decay in ((queries, scale), (keys, 1 / scale)):
                by = decay * scheme.attention_factor
                assert float(turned[0, 1, n, t]) == pytest.approx(by * (a * c - b * s), abs=1e-12)
                assert float(turned[0, 1, n, t + 8]) == pytest.approx(by * (a * s + b * c), abs=1e-12)


def test_a_fraction_of_the_components_is_extended_by_itself() -> None:
    """d is the number of components that turn, here 8 of 16."""
    part = made("rope-yarn", factor=4.0, fraction=0.5)
    expected = [yarn(t, 4.0, 512, dim=8) for t in range(4)]
    np.testing.assert_allclose(part.frequencies(9, torch.device("cpu")).numpy(), expected, rtol=1e-12)
    x = torch.randn(1, 2, 9, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned, _ = part.rotate(x, x, torch.arange(9), torch.arange(9))
    assert torch.equal(turned[..., 8:], x[..., 8:])


# --- xPos ----------------------------------------------------------------------------------------


def test_xpos_decays_by_pair() -> None:
    """Scores by the paper's formula, one pair of components at a time."""
    scheme = made("xpos", scale_base=64.0)
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, DIM))
    for i, j in ((0, 0), (5, 2), (300, 1), (900, 899), (2000, 0)):
        expected = 0.0
        for t in range(8):
            zeta = (2 * t + 0.4 * DIM) / (1.4 * DIM)
            angle = (i - j) * theta(t)
            a, b, c, d = q[t], q[t + 8], k[t], k[t + 8]
            turned = a * c + b * d, a * d - b * c
            expected += zeta ** ((i - j) / 64) * (turned[0] * math.cos(angle) + turned[1] * math.sin(angle))
        tq, tk = scheme.rotate(
            torch.from_numpy(q)[None, None, None], torch.from_numpy(k)[None, None, None],
            torch.tensor([i]), torch.tensor([j]),
        )  # fmt: skip
        assert float((tq * tk).sum()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_xpos_is_torchscale_s_up_to_layout_and_centre() -> None:
    """microsoft/torchscale, xpos_relative_position.py, transcribed: interleaved pairs, centred exponents."""
    length, scale_base = 24, 512
    scale = (torch.arange(0, DIM, 2).double() + 0.4 * DIM) / (1.4 * DIM)
    powers = torch.arange(-(length // 2), length - length // 2).double()[:, None] / scale_base
    scales = scale**powers
    inverse = 1.0 / (10000 ** (torch.arange(0, DIM // 2).double() / (DIM // 2)))
    angles = torch.arange(length).double()[:, None] * inverse

    def their(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        cos, sin = ((f(angles) * s).repeat_interleave(2, dim=1) for f in (torch.cos, torch.sin))
        rotated = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * cos + rotated * sin

    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(length, DIM, dtype=torch.float64, generator=generator) for _ in range(2))
    theirs = their(q, scales) @ their(k, 1 / scales).T
    ours_q, ours_k = (torch.cat([x[:, ::2], x[:, 1::2]], dim=1)[None, None] for x in (q, k))
    positions = torch.arange(length)
    tq, tk = made("xpos").rotate(ours_q, ours_k, positions, positions)
    lower = torch.ones(length, length).tril().bool()
    scores = (tq @ tk.transpose(-1, -2))[0, 0]
    np.testing.assert_allclose(scores[lower].numpy(), theirs[lower].numpy(), rtol=1e-10, atol=1e-12)


def test_xpos_says_how_far_it_reaches() -> None:
    scheme = made("xpos")
    assert scheme.max_positions == 32695
    x = torch.ones(1, 1, 1, DIM)
    last = torch.tensor([scheme.max_positions - 1])
    turned = scheme.rotate(x, x, last, last)
    assert all(bool(torch.isfinite(z).all()) and float(z.abs().min()) > 1e-37 for z in turned)


def test_xpos_in_float16_is_refused_before_its_scales_leave_it() -> None:
    scheme = made("xpos")
    x = torch.ones(1, 1, 3269, DIM, dtype=torch.float16)
    positions = torch.arange(3269)
    for turned, sign in zip(scheme.rotate(x, x, positions, positions), (1, -1), strict=True):
        zeta = 0.4 / 1.4  # the steepest pair: its length is what the scale says, to float16's rounding
        found = turned[0, 0, -1, [0, 8]].double().norm() / math.sqrt(2)
        assert float(found) == pytest.approx(zeta ** (sign * 3268 / 512), rel=2e-3)
    more = torch.ones(1, 1, 3270, DIM, dtype=torch.float16)
    with pytest.raises(UserError, match="leave float16 beyond 3269 tokens, and the window has 3270"):
        scheme.rotate(more, more, torch.arange(3270), torch.arange(3270))
    scheme.rotate(more.bfloat16(), more.bfloat16(), torch.arange(3270), torch.arange(3270))


def test_xpos_must_reach_the_length_it_is_trained_at() -> None:
    assert made("xpos", trained=63, scale_base=1).max_positions == 63
    with pytest.raises(UserError, match=r"scale_base=1\.0 reaches 63 tokens, fewer than the trained 64"):
        made("xpos", trained=64, scale_base=1)


@each_case(
    ("name", "options", "message"),
    [
        ("rope", {"base": "inf"}, "rope: base=inf must be greater than 1 and finite"),
        ("rope-dynamic", {"factor": 1e10}, "must be at least 1 and at most 1,000,000,000"),
        (
            "rope-yarn",
            {"original": 10**400},
            "of about 401 digits is too large: at most",
        ),
        ("rope-yarn", {"original": 10**10}, "and at most 1,000,000,000"),
        ("rope-ntk", {"factor": 1e9, "base": 1e300}, "base=1e.300 times a power of .* is no finite number"),
        ("rope-ntk", {"factor": 1e9, "base": 1e300, "fraction": 0.25}, "is no finite number"),
        ("rope-yarn", {"beta_fast": "inf"}, "beta_fast=inf must be finite"),
        ("rope-yarn", {"beta_fast": 400, "beta_slow": 300}, "no pair turns between beta_slow=300.0 and"),
        ("rope-yarn", {"base": 1.5}, "no pair turns between .* within original=512 tokens at base=1.5"),
        ("rope-yarn", {"original": 1, "truncate": False}, "no pair turns between"),
        ("rope-yarn", {"mscale": 1}, "give attention_factor, or both mscale and mscale_all_dim"),
        ("rope-yarn", {"mscale_all_dim": 1}, "give attention_factor, or both mscale and mscale_all_dim"),
        ("rope-yarn", {"attention_factor": 1, "mscale": 1, "mscale_all_dim": 1}, "or neither"),
        ("rope-yarn", {"mscale": "inf", "mscale_all_dim": 1}, "mscale=inf must be positive and finite"),
        ("rope-llama3", {"high": "inf"}, "high=inf must be finite and above low=1.0"),
        ("sandwich", {"dims": 4098}, "dims=4098 must be even, at least 2 and at most 4096"),
        ("rope-linear", {"factor": 0.5}, "rope-linear: factor=0.5 must be at least 1"),
        ("rope-ntk", {"factor": "nan"}, "must be at least 1"),
        ("rope-ntk", {"fraction": 0.125}, "2 turned components; d/.d-2. needs 4 or more"),
        ("rope-dynamic", {"original": -1}, "original=-1 must be at least 1 token"),
        ("rope-yarn", {"beta_fast": 1}, "beta_fast=1.0 must be finite and exceed beta_slow=1.0"),
        ("rope-yarn", {"attention_factor": -1}, "must be positive"),
        ("rope-yarn", {"facto": 2}, "did you mean 'factor'"),
        ("rope-llama3", {"high": 1}, "high=1.0 must be finite and above low=1.0"),
        ("rope-longrope", {"long": "1/2"}, "long has 2 numbers, the model 8 frequencies"),
        ("rope-longrope", {"long": "1/2/a/4/5/6/7/8"}, "expected numbers with slashes between"),
        ("rope-longrope", {"short": "1/2/3/4/5/6/7/0"}, "every number must be positive"),
        ("xpos", {"scale_base": 0}, "scale_base=0.0 must be positive"),
        ("sandwich", {"dims": 3}, "dims=3 must be even"),
        ("cape", {"shift": -3}, "shift=-3.0 must be 0 or more"),
        ("cape", {"scaling": 0.5}, "scaling=0.5 at least 1"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(name, **options)


# --- rotary-embedding-torch ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("rope", {}, {}),
        ("rope-linear", {"factor": 4.0}, {"interpolate_factor": 4.0}),
        ("rope-ntk", {"factor": 4.0}, {"theta_rescale_factor": 4.0}),
        ("xpos", {}, {"use_xpos": True}),
    ],
)
def test_scores_are_rotary_embedding_torch_s(
    name: str, options: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """Its interleaved pairs are a permutation of ours, so scores agree."""
    library = pytest.importorskip("rotary_embedding_torch")
    length = 40
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 1, length, DIM, generator=generator) for _ in range(2))
    embedding = library.RotaryEmbedding(dim=DIM, **theirs)
    if theirs.get("use_xpos"):
        a, b = embedding.rotate_queries_and_keys(q, k)
    else:
        a, b = (embedding.rotate_queries_or_keys(x) for x in (q, k))
    halves = [torch.cat([x[..., ::2], x[..., 1::2]], dim=-1).double() for x in (q, k)]
    positions = torch.arange(length)
    c, d = made(name, **options).rotate(halves[0], halves[1], positions, positions)
    lower = torch.ones(length, length).tril().bool()
    found, expected = ((x @ y.transpose(-1, -2))[0, 0][lower] for x, y in ((c, d), (a, b)))
    np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=0, atol=3e-5)
