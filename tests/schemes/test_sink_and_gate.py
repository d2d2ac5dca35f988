"""gpt-oss's sink and the gated output, against the sums written out and transformers' own attention."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.attention import attention, make_table
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import UserError
from tests.helpers import tiny
from tests.helpers.cases import each_case
from tests.schemes.test_modifiers import BASES, DIM, HEADS, logit, made_of

SINKS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


def with_sinks(text: str) -> Scheme:
    scheme = made_of(text).at(1)
    with torch.no_grad():
        scheme.get_parameter("modifiers.sink.logit").copy_(SINKS)
    return scheme


@each_case("base", BASES)
def test_a_sink_takes_weight_and_gives_no_value(base: str) -> None:
    scheme = with_sinks(f"{base},sink,window=6")
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(HEADS, 20, DIM)) for _ in range(3))
    expected = np.zeros((HEADS, 20, DIM))
    for h in range(HEADS):
        for i in range(20):
            near = range(max(0, i - 5), i + 1)
            parts = [math.exp(logit(base, (True, i - j, 1.0), q[h, i], k[h, j], h)) for j in near]
            total = sum(parts) + math.exp(float(SINKS[h]))
            expected[h, i] = sum(w / total * v[h, j] for w, j in zip(parts, near, strict=True))
    with torch.no_grad():
        found = attention(*(torch.from_numpy(x)[None] for x in (q, k, v)), scheme, None)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-12)


def test_a_sink_is_gpt_oss_s() -> None:
    gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    q, k, v = (torch.randn(2, HEADS, 20, DIM, dtype=torch.float64) for _ in range(3))
    module = SimpleNamespace(num_key_value_groups=1, sinks=SINKS, training=False)
    mask = torch.full((20, 20), -torch.inf, dtype=torch.float64).triu(1)
    theirs, _ = gpt_oss.eager_attention_forward(module, q, k, v, mask, DIM**-0.5)
    found = attention(q, k, v, with_sinks("nope,sink"), None)
    torch.testing.assert_close(found.transpose(1, 2), theirs, rtol=0, atol=1e-12)


@each_case("by", ["element", "head"])
@each_case("base", ["rope", "kerple-log"])
def test_the_output_is_gated_before_its_projection(base: str, by: str) -> None:
    """A layer's attention by hand: y [H, d] times sigmoid(x W), a gate a component or a head."""
    made = tiny.decoder(tiny.config(base, modifiers={"gate": {"by": by}}))
    scheme, layer = made.scheme.at(1), made.layers[1].attention
    x = torch.randn(1, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        q, k, v = layer._split(layer.qkv(x), 3)
        plain = made_of(base)
        if base == "kerple-log":
            plain.load_state_dict(made.scheme.base.state_dict())
        y = attention(q, k, v, plain, make_table(plain, 9, torch.float64, torch.device("cpu")))[0]
        w = scheme.get_parameter("modifiers.gate.linear.weight").numpy()
        gates = 1 / (1 + np.exp(-x[0].numpy() @ w.T))  # [N, H d] or [N, H]
        wide = gates if by == "element" else np.repeat(gates, DIM, axis=1)
        expected = layer.out(y.transpose(0, 1).reshape(9, 12) * torch.from_numpy(wide))
        table = make_table(scheme, 9, torch.float64, torch.device("cpu"))
        for rows in (9, 4, 1):
            found = layer(x, scheme, table, rows)[0]
            torch.testing.assert_close(found, expected[-rows:], rtol=0, atol=1e-12)


def test_each_layer_has_its_own() -> None:
    scheme = scheme_of(tiny.config("rope", layers=3, modifiers={"gate": {"by": "head"}, "sink": {}}))
    assert sum(p.numel() for p in scheme.parameters()) == 3 * (12 * 3 + 3)
    assert scheme.at(0) is not scheme.at(1)
    assert scheme.at(1) is scheme.at(1)


@each_case(
    ("text", "message"),
    [
        ("rope,gate=channel", "gate: by=channel: expected element or head"),
        ("rope,sink=nan", "sink: start=nan"),
        ("rope,temperature=-1", "temperature: floor=-1 must be at least 1 token"),
        ("rope,temperature,scale=0", "and scale=0.0 positive"),
    ],
)
def test_wrong_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made_of(text)


def test_temperature_is_llama_4_s() -> None:
    """transformers' own lines, from ``Llama4TextAttention.forward``."""
    positions = torch.arange(40)
    theirs = torch.log1p(torch.floor((positions.float() + 1.0) / 8)) * 0.1 + 1.0
    found = made_of("nope,temperature").row_scale(positions, positions + 1)
    assert found is not None
    torch.testing.assert_close(found[0].float(), theirs, rtol=0, atol=1e-6)
