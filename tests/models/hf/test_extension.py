"""``extend=`` on transformers' models: against attention written out in float64, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kerple_eval.types import Window
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import MODELS, sized, transformers
from tests.helpers.literal_attention import Literal, Positions, install, plain
from tests.schemes.test_modifiers import lm_infinite, rerope, self_extend, streaming

N = 44  # tokens, trained at 32
FAR, NEAR = (None, None), (8, 8)
BASE = (10000.0, 10000.0)


def gpt_oss() -> Any:
    rope = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 16,
        "truncate": False,
    }  # fmt: skip
    return transformers.GptOssConfig(
        **sized(
            head_dim=8, sliding_window=8, num_local_experts=4, num_experts_per_tok=2, rope_parameters=rope
        )
    )


def yarn_divisors() -> tuple[float, ...]:
    """Of gpt-oss above: YaRN's ramp (arXiv 2309.00071, section 3.2) without rounding its ends."""

    def pair(rotations: float) -> float:
        return 8 * math.log(16 / (rotations * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = max(pair(32), 0), min(pair(1), 7)
    keep = [1 - min(max((t - low) / (high - low), 0), 1) for t in range(4)]
    return tuple(1 / (share + (1 - share) / 2.0) for share in keep)


#: name -> (configuration, what its attention is)
ARCHITECTURES: dict[str, tuple[Callable[[], Any], Literal]] = {
    "llama": (MODELS["llama"][0], Literal(FAR, BASE)),
    "mistral": (MODELS["mistral"][0], Literal(NEAR, BASE)),
    "qwen2": (MODELS["qwen2"][0], Literal(FAR, BASE)),
    "qwen3": (lambda: transformers.Qwen3Config(**sized(head_dim=8)), Literal(FAR, BASE, norm="head")),
    "phi3": (
        MODELS["phi3"][0],
        Literal(
            FAR, BASE, packed="phi3", divisors=(1.0, 2.0, 4.0, 8.0),
            stretch=math.sqrt(1 + math.log(2) / math.log(16)),
        ),
    ),
    "gemma2": (MODELS["gemma2"][0], Literal((8, None), BASE, scale=256**-0.5, softcap=5.0)),
    "gemma3": (
        MODELS["gemma3"][0],
        Literal((8, None), (10000.0, 1000000.0), norm="head", scale=256**-0.5),
    ),
    "gpt-neox": (MODELS["gpt-neox"][0], Literal(FAR, BASE, fraction=0.5, packed="neox")),
    "olmo2": (lambda: transformers.Olmo2Config(**sized()), Literal(FAR, BASE, norm="all")),
    "smollm3": (
        lambda: transformers.SmolLM3Config(**sized(no_rope_layers=[1, 0])),
        Literal(FAR, (2000000.0, None)),
    ),
    "gpt-oss": (gpt_oss, Literal((8, None), BASE, divisors=yarn_divisors(), stretch=0.1 * math.log(2) + 1)),
}  # fmt: skip

#: options -> the oracle of positions, at the trained length of 32.
METHODS: dict[str, tuple[dict[str, str], Positions]] = {
    "self-extend": (
        {"extend": "self-extend", "window": "12", "group": "3"}, lambda i, j: self_extend(i, j, 12, 3),
    ),
    "leaky-rerope": ({"extend": "rerope", "window": "10", "leak": "4"}, lambda i, j: rerope(i, j, 10, 4.0)),
    "rerope": ({"rerope": "10"}, lambda i, j: rerope(i, j, 10)),
    "streaming-sink": (
        {"extend": "streaming-sink", "recent": "14", "sinks": "2"}, lambda i, j: streaming(i, j, 14, 2),
    ),
    "lm-infinite": (
        {"extend": "lm-infinite", "recent": "12", "start": "3", "limit": "20"},
        lambda i, j: lm_infinite(i, j, 12, 3, 20),
    ),
    "window": ({"window": "11"}, lambda i, j: (i - j < 11, i - j, 1.0)),
    "log-n": ({"log-n": "16"}, lambda i, j: (True, i - j, max(1.0, math.log(i + 1) / math.log(16)))),
}  # fmt: skip
ALWAYS = ("self-extend", "streaming-sink")  # the others in the slow sweep


def options(name: str) -> dict[str, str]:
    return METHODS[name][0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    made: dict[str, tuple[Any, Path]] = {}

    def of(name: str) -> tuple[Any, Path]:
        if name not in made:
            model = folders.model(ARCHITECTURES[name][0]())
            made[name] = model, folders.save(tmp_path_factory.mktemp(name), model)
        return made[name]

    return of


def literal_losses(model: Any, literal: Literal, positions: Positions) -> Any:
    wide = copy.deepcopy(model).double()
    wide.config._attn_implementation = wide.config._experts_implementation = "eager"
    install(wide, literal, positions)
    return folders.expected(wide, folders.documents()[0], Window(0, N, 1))


def found(place: Path, given: dict[str, str]) -> Any:
    return folders.scored(place, [Window(0, N, 1)], **given)[0][0]


def local_log_n(i: int, j: int) -> tuple[bool, float, float]:
    """Mistral's layers see 8 keys at most, and log-n counts those."""
    return True, i - j, max(1.0, math.log(min(i + 1, 8)) / math.log(16))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_literal_attention_is_the_models_own(name: str, saved: Any) -> None:
    """The oracle itself, without a method, against transformers."""
    model, _ = saved(name)
    own = folders.expected(model, folders.documents()[0], Window(0, N, 1))
    np.testing.assert_allclose(literal_losses(model, ARCHITECTURES[name][1], plain), own, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    "method",
    [
        m if m in ("self-extend", "streaming-sink") else pytest.param(m, marks=pytest.mark.slow)
        for m in METHODS
    ],
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_are_the_literal_computations(name: str, method: str, saved: Any) -> None:
    model, place = saved(name)
    positions = METHODS[method][1]
    if method == "log-n" and name == "mistral":
        positions = local_log_n
    expected = literal_losses(model, ARCHITECTURES[name][1], positions)
    np.testing.assert_allclose(found(place, options(method)), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_method_changes_something_and_its_identity_nothing(name: str, saved: Any) -> None:
    _, place = saved(name)
    own = found(place, {})
    identities: list[dict[str, str]] = [
        {"extend": "self-extend", "window": "5", "group": "1"}, {"window": "100"}, {"log-n": "100"},
        {"extend": "rerope", "window": "100"},
    ]  # fmt: skip
    for identity in identities:
        np.testing.assert_allclose(found(place, identity), own, rtol=0, atol=2e-5)
    changed = found(place, {"extend": "rerope", "window": "3"})
    assert np.abs(changed - own).max() > 1e-2
