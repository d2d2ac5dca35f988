"""``extend=`` on every causal model of transformers with rotary positions, tiny, against an oracle.

The oracle (``tests/helpers/distance_oracle.py``) knows nothing of an architecture: it lets the model's own
code rotate queries and keys at any distance, in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.models.scoring import score
from kerple_eval.types import UserError, Window
from tests.helpers import architectures, distance_oracle
from tests.helpers import hf_folders as folders
from tests.helpers.architectures import NAMES, NO_TINY
from tests.helpers.literal_attention import Positions, plain
from tests.schemes.test_modifiers import rerope, self_extend, streaming

N = 29
TOKENS = folders.documents()[0][:N]

METHODS: dict[str, Positions] = {
    "self-extend,window=6,group=3": lambda i, j: self_extend(i, j, 6, 3),
    "streaming-sink,recent=6,sinks=2": lambda i, j: streaming(i, j, 6, 2),
    "leaky-rerope,window=5,leak=3": lambda i, j: rerope(i, j, 5, 3.0),
    "window=7": lambda i, j: (i - j < 7, i - j, 1.0),
}
MOVING = tuple(METHODS)[:3]
IDENTITIES = (
    "self-extend,window=5,group=1", "streaming-sink,recent=60,sinks=3", "rerope,window=60", "window=100",
)  # fmt: skip

MATRIX = "its code computes with the matrix of its mask"
AFTER = "it rotates its heads in a way that is not known here"  # norms or scales after the rotation
NONE = "no module of it answers with rotary positions"
#: What cannot be extended by other attention, and what is said.
REFUSED = {
    **dict.fromkeys(
        (
            "axk2", "deepseek_v32", "doge", "falcon", "glm_moe_dsa", "gpt_neox_japanese", "hy_v4",
            "qwen4_exp", "qwen4_exp_text",
        ),
        MATRIX,
    ),
    **dict.fromkeys(("dory", "hunyuan_v1_dense", "hunyuan_v1_moe"), AFTER),
    **dict.fromkeys(("granitemoehybrid", "zamba2"), NONE),
    "deepseek_v4": "its positions do not count from 0",
    "recurrent_gemma": "names no trained length",
}  # fmt: skip
#: Layers without a window that have no rotary positions: nothing to move there.
RESTING = (
    "afmoe", "beam", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint", "lara_mini", "llama4",
    "llama4_text",
)  # fmt: skip

#: Settings that make each architecture's own scalings act at these lengths.
CHANGES: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.7},
    "granite": {"attention_multiplier": 0.6, "logits_scaling": 3.0, "residual_multiplier": 0.7},
    "llama4_text": {"floor_scale": 4, "attn_scale": 0.5},
    "ministral3": {
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "llama_4_scaling_beta": 0.5,
            "original_max_position_embeddings": 8,
        },
    },
    "deepseek_v4": {"head_dim": 64},
}  # fmt: skip


def _ministral(position: float) -> float:
    return 1 + 0.5 * math.log(1 + position // 8)


TEMPERATURES: dict[str, Callable[[float], float]] = {
    "ministral3": _ministral, "beam": lambda position: (1 + (position + 1) / 2048) ** 0.1,
}  # fmt: skip

FAST = ("gemma4_text", "llama4_text", "deepseek_v2", "ministral3", "granite", "cohere")
#: Rotary modules that want parameters which no other model has, for whatever frequencies are not the default.
OWN_PARAMETERS = ("phimoe",)
FAST_REFUSED = ("falcon", "dory")


def made(name: str) -> Any:
    return architectures.model(architectures.config(name, **CHANGES.get(name, {})), noise=0.1)


def losses(model: Any, extend: str | None) -> Any:
    held = kerple_eval.from_module(model, extend=extend)
    with held.borrowed():
        ((_, (found,)),) = score(held.scored, [TOKENS], [(0, Window(0, N - 1, 1))])
    return found


def refused(model: Any, extend: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        losses(model, extend)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert type(model).__name__ in str(caught.value)


def check(name: str, methods: tuple[str, ...]) -> None:
    model = made(name)
    own = losses(model, None)
    temperature = TEMPERATURES.get(name, lambda _: 1.0)
    oracle = distance_oracle.losses(model, TOKENS, plain, temperature)
    scale = max(1.0, np.abs(own).max() / 10)
    np.testing.assert_allclose(own, oracle, rtol=0, atol=3e-5 * scale, err_msg="the oracle itself")
    changed = 0.0
    for method in methods:
        if name in RESTING and method in MOVING:
            refused(model, method, "applies to has rotary positions")
            continue
        found = losses(model, method)
        expected = distance_oracle.losses(model, TOKENS, METHODS[method], temperature)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5 * scale, err_msg=method)
        changed = max(changed, np.abs(found - own).max())
    assert changed > 1e-3
    parameters = model.config.get_text_config().rope_parameters
    if methods == tuple(METHODS) and name in OWN_PARAMETERS:
        refused(model, "linear,factor=2", "its own code fails: KeyError")
    elif methods == tuple(METHODS) and parameters.get("rope_type") == "default":
        np.testing.assert_array_equal(losses(model, "yarn,factor=1"), own)
        halved = distance_oracle.losses(
            model, TOKENS, lambda i, j: (True, (i - j) / 2, 1.0), temperature, everywhere=True
        )
        found = losses(model, "linear,factor=2")
        np.testing.assert_allclose(found, halved, rtol=0, atol=5e-5 * scale, err_msg="linear")
    for identity in IDENTITIES[:: 1 if len(methods) == len(METHODS) else 3]:
        if name not in RESTING or "window=100" in identity:
            np.testing.assert_allclose(
                losses(model, identity), own, rtol=0, atol=2e-5 * scale, err_msg=identity
            )


@pytest.mark.parametrize("name", FAST)
def test_losses_are_the_oracles(name: str) -> None:
    check(name, ("self-extend,window=6,group=3", "window=7"))


@pytest.mark.parametrize("name", FAST_REFUSED)
def test_refused_by_name(name: str) -> None:
    refused(made(name), "window=7", REFUSED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_TINY])
def test_every_architecture(name: str) -> None:
    try:
        model = made(name)
        scheme = kerple_eval.from_module(model).description.scheme
    except UserError as error:
        pytest.skip(str(error))
    if name in REFUSED:
        refused(model, "window=7", REFUSED[name])
    elif not getattr(model.config.get_text_config(), "rope_parameters", None):
        refused(model, "window=7", "rotary positions that a config's rope_parameters describe")
    else:
        assert "rope" in scheme or scheme == "unknown"
        check(name, tuple(METHODS))


def test_a_component_that_is_zero_anyway_is_rotated_too() -> None:
    """Gemma 3 270M has a norm of queries with a weight of 0 at a few components."""
    model = made("qwen3")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_norm.weight[3] = 0.0
        model.model.layers[1].self_attn.q_norm.weight[[0, 7]] = 0.0
        model.model.layers[2].self_attn.k_norm.weight[0] = 0.0
    expected = distance_oracle.losses(model, TOKENS, METHODS["self-extend,window=6,group=3"])
    np.testing.assert_allclose(losses(model, "self-extend,window=6,group=3"), expected, rtol=0, atol=5e-5)


def test_frequencies_of_type_proportional_are_refused() -> None:
    refused(made("gemma4_text"), "yarn,factor=2", "yarn cannot extend its rotary positions")


def test_other_frequencies_keep_the_temperature(tmp_path: Path) -> None:
    """Ministral 3 reads its temperature from the parameters that are replaced; on disk as in memory."""
    model = made("ministral3")
    place = folders.save(tmp_path, model)
    plainly = copy.deepcopy(model)
    plainly.config.rope_parameters |= {"rope_type": "default"}
    plainly.model.rotary_emb = type(model.model.rotary_emb)(plainly.config)
    expected = distance_oracle.losses(plainly, TOKENS, lambda i, j: (True, (i - j) / 2, 1.0), _ministral)
    np.testing.assert_allclose(losses(model, "linear,factor=2"), expected, rtol=0, atol=5e-5)
    for spelling in ("extend", "rope"):
        found = folders.scored(place, [Window(0, N - 1, 1)], **{spelling: "linear", "factor": "2"})
        np.testing.assert_allclose(found[0][0], expected, rtol=0, atol=5e-5)


def test_a_scale_that_goes_with_the_frequencies_is_refused_in_memory() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    model = architectures.model(architectures.config("deepseek_v3", rope_parameters=yarn))
    refused(model, "yarn,factor=8", "mscale_all_dim")
