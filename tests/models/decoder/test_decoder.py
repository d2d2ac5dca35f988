"""The native decoder against a float64 numpy re-implementation of its whole forward pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder import attention as module
from kerple_eval.models.decoder import pointwise
from kerple_eval.models.decoder.config import ACTIVATIONS, NORMS, DecoderConfig
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.types import UserError
from tests.helpers import oracles, tiny
from tests.helpers.cases import each_case

every_scheme = pytest.mark.parametrize("scheme", [*tiny.SCHEMES, *tiny.FURTHER])


def by_hand(made: Decoder, tokens: np.ndarray) -> np.ndarray:
    c = made.config
    return oracles.decoder_logits(
        tiny.weights(made), tokens.tolist(), layers=c.layers, heads=c.heads, scheme=c.scheme,
        options=c.scheme_options, epsilon=c.norm_epsilon, activation=c.activation, norm=c.norm,
        parallel_residual=c.parallel_residual,
    )  # fmt: skip


@every_scheme
@each_case("training", [False, True])
@each_case("length", [1, 2, 23])
def test_logits_are_the_formula(
    scheme: str, length: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUERY_CHUNK", 8)
    made = tiny.decoder(tiny.config(scheme))
    tokens = tiny.tokens(length)
    with torch.set_grad_enabled(training):
        got = made.head(made(torch.from_numpy(tokens)[None]))[0]
    np.testing.assert_allclose(got.detach().numpy(), by_hand(made, tokens), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "t5", "scheme_options": {"buckets": 8, "max_distance": 12}},
        {"scheme": "rope", "scheme_options": {"base": 50.0}},
        {"scheme": "kerple-log", "norm_epsilon": 0.1},
        {"scheme": "alibi", "tie_embeddings": True},
        {"scheme": "kerple-power", "layers": 1, "heads": 1},
        {"scheme": "sinusoidal", "layers": 3, "heads": 6, "mlp_width": 7},
        {"scheme": "rope", "scheme_options": {"fraction": 0.5}},
        {"scheme": "rope", "scheme_options": {"fraction": 0.8, "base": 50.0}, "width": 24},
        {"scheme": "t5", "scheme_options": {"scale": 2.5}},
        {"scheme": "learned", "scheme_options": {"positions": 17}},
        {"scheme": "kerple-gauss-2-para-wht", "parallel_residual": True},
        {"scheme": "kerple-bias-wht", "activation": "gelu-tanh"},
        {"norm": "rmsnorm", "norm_epsilon": 0.05},
        *({"activation": name} for name in ACTIVATIONS),
    ],
    ids=str,
)
def test_every_setting_of_the_configuration_counts(changes: dict[str, Any]) -> None:
    made = tiny.decoder(tiny.config(**changes))
    tokens = tiny.tokens(17)
    with torch.no_grad():
        got = made.head(made(torch.from_numpy(tokens)[None]))[0]
    np.testing.assert_allclose(got.numpy(), by_hand(made, tokens), rtol=0, atol=1e-11)


def test_the_names_are_those_that_are_defined() -> None:
    assert tuple(pointwise.ACTIVATION_FUNCTIONS) == ACTIVATIONS
    assert tuple(pointwise.NORM_LAYERS) == NORMS


def test_learned_positions_end() -> None:
    made = tiny.decoder(tiny.config("learned", scheme_options={}))
    assert made.scheme.max_positions == 8  # the trained length
    made(torch.from_numpy(tiny.tokens(8))[None])
    with pytest.raises(UserError, match="9 positions asked for, the model has 8"):
        made(torch.from_numpy(tiny.tokens(9))[None])


@every_scheme
def test_rows_are_the_last_rows_of_the_whole(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_CHUNK", 4)
    made = tiny.decoder(tiny.config(scheme))
    tokens = torch.from_numpy(np.stack([tiny.tokens(13, seed=s) for s in range(3)]))
    with torch.no_grad():
        whole = made(tokens)
        for rows in range(1, 14):
            part = made(tokens, rows)
            assert part.shape == (3, rows, 12)
            torch.testing.assert_close(part, whole[:, 13 - rows :], rtol=0, atol=1e-12)


@every_scheme
def test_initial_weights_are_equal_across_schemes(scheme: str) -> None:
    """Only position differs between schemes trained from one seed."""
    made, reference = (Decoder(tiny.config(name)) for name in (scheme, "nope"))
    for each in (made, reference):
        each.reset_parameters(11)
    ours = made.state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    assert {n for n in ours if not n.startswith("scheme.")} == set(reference.state_dict())
    reference.reset_parameters(12)
    assert not torch.equal(ours["embedding.weight"], reference.state_dict()["embedding.weight"])


@pytest.mark.parametrize("layers", [1, 4])
def test_initial_spread(layers: int) -> None:
    """N(0, s^2), s = sqrt(2 / (5 W)); N(0, s^2 / (2 layers)) into the residual stream; biases 0."""
    made = Decoder(tiny.config(layers=layers, width=128, heads=4, mlp_width=512, vocab_size=256))
    made.reset_parameters(0)
    seen = 0
    for name, parameter in made.named_parameters():
        if parameter.ndim == 2:
            into_residual = name.endswith(("attention.out.weight", "mlp_out.weight"))
            small = math.sqrt(2 / (5 * 128))
            std = small / math.sqrt(2 * layers) if into_residual else small
            seen += into_residual
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name
        elif "norm.weight" in name:
            assert bool((parameter == 1).all()), name
        else:
            assert bool((parameter == 0).all()), name
    assert seen == 2 * layers


def test_initial_scheme_parameters_are_projected() -> None:
    """Among 4096 draws of U(0, 1) some fall below 0.01; the decoder starts inside the constraints."""
    made = Decoder(tiny.config("kerple-log", heads=4096, width=4096, layers=1, mlp_width=1))
    made.reset_parameters(0)
    edge = torch.tensor(0.01)
    for name in ("r1", "r2"):
        values = made.scheme.get_parameter(name).detach()
        assert float(values.min()) == float(edge)
        assert 1 <= int((values == edge).sum()) < 100


def test_tied_embeddings_are_one_parameter() -> None:
    made = Decoder(tiny.config(tie_embeddings=True))
    assert made.head.weight is made.embedding.weight
    untied = Decoder(tiny.config())
    count = [sum(p.numel() for p in m.parameters()) for m in (made, untied)]
    assert count[1] - count[0] == 11 * 12


def test_parameter_count_of_the_paper() -> None:
    """KERPLE's small model: 12 layers, 12 heads, width 768, V = 50304, untied: 162.3M, log adds 24."""
    counts = {}
    with torch.device("meta"):
        for scheme in ("nope", "kerple-log"):
            made = Decoder(
                tiny.config(scheme, layers=12, heads=12, width=768, mlp_width=3072, vocab_size=50304)
            )
            counts[scheme] = sum(p.numel() for p in made.parameters())
    assert counts["nope"] == 12 * (12 * 768**2 + 13 * 768) + 2 * 50304 * 768 + 2 * 768
    assert round(counts["nope"] / 1e6, 1) == 162.3
    assert counts["kerple-log"] - counts["nope"] == 24


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_cast_keeps_the_scheme_in_float32_at_least(dtype: torch.dtype) -> None:
    made = tiny.decoder(tiny.config("kerple-log"), dtype=torch.float32)
    before = made.scheme.get_parameter("r1").detach().clone()
    made.cast(dtype)
    assert made.embedding.weight.dtype == dtype
    assert made.scheme.get_parameter("r1").dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    assert torch.equal(made.scheme.get_parameter("r1").float(), before)
    with torch.no_grad():
        out = made(torch.from_numpy(tiny.tokens(9))[None])
    assert out.dtype == dtype
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("scheme", tiny.SCHEMES)  # a further one's small gradients drown in its noise
def test_bfloat16_autocast_gradients_point_the_same_way(scheme: str) -> None:
    """Training in bfloat16 autocast: each tensor's gradient against the one of a float64 pass."""
    tokens = torch.from_numpy(np.stack([tiny.tokens(40, seed=s) for s in range(4)]))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        made = tiny.decoder(tiny.config(scheme), dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            logits = made.head(made(tokens[:, :-1]))
        wide = logits.to(dtype).flatten(0, 1)
        torch.nn.functional.cross_entropy(wide, tokens[:, 1:].flatten()).backward()
        found = {}
        for name, parameter in made.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.dtype == dtype
            found[name] = parameter.grad.double().flatten()
        gradients.append(found)
    for name, exact in gradients[1].items():
        cosine = torch.nn.functional.cosine_similarity(gradients[0][name], exact, dim=0)
        assert cosine.item() > 0.995, name


@pytest.mark.parametrize("key", ["vocab_size", "layers", "width", "heads", "mlp_width", "train_length"])
def test_sizes_below_one_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"{key} must be at least 1, got 0"):
        tiny.config(**{key: 0})


def test_a_width_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="width 12 is not a multiple of heads 5"):
        tiny.config(heads=5)


def test_configuration_round_trip() -> None:
    made = tiny.config("t5", scheme_options={"buckets": 8, "max_distance": 12}, tie_embeddings=True)
    assert DecoderConfig.from_json(made.to_json(), "here") == made
