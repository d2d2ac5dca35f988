"""Every reduction of the decoder is float32 at least: half precision against float64 on the same inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kerple_eval.models.decoder.attention import attention, make_table
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.models.decoder.pointwise import ACTIVATION_FUNCTIONS, NORM_LAYERS
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.scoring import score
from kerple_eval.types import Window
from tests.helpers import tiny

HALVES = (torch.float16, torch.bfloat16)
CPU = torch.device("cpu")


def drawn(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rounded_once(got: Tensor, exact: Tensor, slack: float = 1.0) -> None:
    """``got`` is ``exact`` rounded to its dtype, up to ``slack`` units in the last place."""
    bound = torch.finfo(got.dtype).eps * exact.abs().clamp(min=torch.finfo(got.dtype).tiny)
    assert ((got.double() - exact).abs() <= slack * bound).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_are_rounded_once(dtype: torch.dtype) -> None:
    """At scale 3e4 a float16 square is infinite, a float16 sum too; at 1e-4 a float16 square is 0."""
    for scale in (1e-4, 1.0, 300.0, 1.2e4):
        x = drawn(5, 512, scale=scale, seed=1).to(dtype)
        for name, make in NORM_LAYERS.items():
            norm = make(512, 1e-5)
            exact = norm.double()(x.double())
            got = norm.to(dtype)(x)
            assert got.dtype == dtype
            if name == "rmsnorm":  # layernorm subtracts a mean: its small values have no relative bound
                rounded_once(got, exact, 0.51)
            assert (got.double() - exact).abs().max() <= torch.finfo(dtype).eps * 4, (name, scale)


@pytest.mark.parametrize("dtype", HALVES)
def test_activations_are_rounded_once(dtype: torch.dtype) -> None:
    for scale in (1e-3, 1.0, 1e4):
        x = drawn(64, 8, scale=scale, seed=2).to(dtype)
        for name, (function, _) in ACTIVATION_FUNCTIONS.items():
            exact = function(x.double())
            slack = 1.6 if name in ("geglu", "softsign") else 1.0  # two roundings by torch's own operations
            finite = exact.abs() < torch.finfo(dtype).max  # u gelu(g) may leave float16 altogether
            rounded = torch.where(exact.abs() < 1e-4, exact, function(x).double()).to(torch.float64)
            error = (rounded - exact).abs()[finite]
            assert (error <= slack * torch.finfo(dtype).eps * exact.abs()[finite]).all(), (name, scale)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("scheme", "backend"),
    [
        ("kerple-log", "eager"),
        ("kerple-log", "sdpa"),
        ("nope", "sdpa"),
        ("fire", "chunks"),
        ("path", "chunks"),
    ],
)
def test_attention_of_large_products(dtype: torch.dtype, scheme: str, backend: str) -> None:
    """q k of 1e6 before the scaling is infinite in float16; and a row is the mean of 700 values."""
    made = scheme_of(tiny.config(scheme, width=192))
    made.reset_parameters(torch.Generator().manual_seed(0))
    x = drawn(1, 700, 192, seed=4)
    for scale in (0.05, 130.0):
        q, k, v = (
            drawn(1, 3, 700, 64, scale=s, seed=i).to(dtype) for i, s in ((1, scale), (2, scale), (3, 1.0))
        )
        wide = made.double()
        exact = attention(
            q.double(), k.double(), v.double(), wide.at(0),
            make_table(wide.at(0), 700, torch.float64, CPU, "eager"), wide.at(0).observe(x),
        )  # fmt: skip
        part = made.float().at(0)
        table = make_table(part, 700, dtype, CPU, backend)
        with torch.no_grad():
            got = attention(q, k, v, part, table, part.observe(x.float()))
        assert got.dtype == dtype
        assert got.isfinite().all()
        if scale < 1:  # at 130 a float32 rounding of a score of 1e6 may choose another key, in any dtype
            assert (got.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps
        else:
            assert (got.double() - exact).abs().median() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("norm", list(NORM_LAYERS))
def test_losses_of_a_large_residual_stream(norm: str) -> None:
    """Embeddings past 256: the norm's squares overflow float16, and the loss would be ln V."""
    tokens = tiny.tokens(65)
    window = [(0, Window(0, 64, 1))]

    def losses(dtype: torch.dtype) -> Tensor:
        made = tiny.decoder(tiny.config("kerple-log", norm=norm, width=48), dtype=torch.float32)
        with torch.no_grad():
            made.embedding.weight.mul_(2000)
            for parameter in made.parameters():
                parameter.copy_(parameter.half().float())  # the same weights in every dtype
        ((_, (found,)),) = score(DecoderModel(made, CPU, dtype), [tokens], window)
        return torch.from_numpy(found).double()

    exact, half = losses(torch.float64), losses(torch.float16)
    assert (exact - half).abs().mean() < 0.02
    assert exact.std() > 0.5  # far from the same loss everywhere


@pytest.mark.parametrize("dtype", HALVES)
def test_losses_of_half_logits(dtype: torch.dtype) -> None:
    """A sum of 50,000 exponentials: float16 would stop at 65,504."""
    from kerple_eval.models.scoring import _cross_entropy  # noqa: PLC0415

    logits = drawn(1, 4, 50_000, seed=5).to(dtype)
    targets = torch.tensor([[0, 7, 49_999, 3]])
    exact = logits.double().logsumexp(-1) - logits.double().gather(-1, targets[..., None])[..., 0]
    got = _cross_entropy(logits, targets)
    assert got.dtype == torch.float32
    assert (got.double() - exact).abs().max() < 1e-5
