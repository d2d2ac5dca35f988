"""Extensions of rotary positions: the published formulas in float64, transformers' own models, and state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import kerple_eval
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.scoring import score
from kerple_eval.types import UserError, Window
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import CPU, MODELS, transformers

D, THETA, L = 16, 500.0, 32  # rotated dimensions, base, trained length
LONG = Window(0, 60, 1)
KINDS = ("linear", "dynamic", "yarn", "llama3", "ntk")


def config(**changes: Any) -> Any:
    return transformers.LlamaConfig(
        **folders.sized(head_dim=D, rope_parameters={"rope_theta": THETA, "rope_type": "default"}, **changes)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("llama"), folders.model(config()))


def inverse_frequencies(
    kind: str, factor: float, original: int, n: int, *, truncate: bool = True
) -> tuple[NDArray[np.float64], float]:
    """inv_freq ``[D/2]`` and the scale of cos and sin, from the papers, for a window of n tokens."""
    i = np.arange(0, D, 2, dtype=np.float64)
    plain = THETA ** (-i / D)
    if kind == "linear":  # arXiv 2306.15595, eq. 4
        return plain / factor, 1.0
    if kind == "ntk":  # YaRN, arXiv 2309.00071, section 3.1
        return (THETA * factor ** (D / (D - 2))) ** (-i / D), 1.0
    if kind == "dynamic":  # the same with the scale of the window at hand, as transformers defines it
        grown = factor * max(n, original) / original - (factor - 1)
        return (THETA * grown ** (D / (D - 2))) ** (-i / D), 1.0
    wavelength = 2 * np.pi / plain
    if kind == "yarn":  # section 3.2, with dimensions rounded as in the authors' code; eq. 15 for the scale

        def dimension(rotations: float) -> float:
            return D * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

        low, high = dimension(32), dimension(1)
        low, high = (math.floor(low), math.ceil(high)) if truncate else (low, high)
        low, high = max(low, 0), min(high, D - 1)
        keep = 1 - np.clip((np.arange(D // 2) - low) / (high - low), 0, 1)
        return plain * keep + plain / factor * (1 - keep), 0.1 * math.log(factor) + 1
    smooth = (original / wavelength - 1.0) / (4.0 - 1.0)  # Llama 3.1: low 1, high 4
    mixed = (1 - smooth) * plain / factor + smooth * plain
    chosen = np.where(
        wavelength < original / 4, plain, np.where(wavelength > original, plain / factor, mixed)
    )
    return chosen, 1.0


def options(kind: str, factor: float, original: int | None) -> dict[str, str]:
    return {"rope": kind, "factor": str(factor)} | ({} if original is None else {"original": str(original)})


@pytest.mark.parametrize(
    ("kind", "factor", "original"),
    [
        ("linear", 4, None), ("ntk", 4, None), ("dynamic", 2, None), ("dynamic", 4, 20), ("yarn", 4, None),
        ("yarn", 2.5, 20), ("llama3", 8, None), ("llama3", 3, 20), ("linear", 1, None),
    ],
)  # fmt: skip
def test_frequencies_are_the_papers(kind: str, factor: float, original: int | None, folder: Path) -> None:
    checkpoint = HfCheckpoint.open(str(folder), options(kind, factor, original))
    loaded = checkpoint.load(CPU, torch.float32)
    n = 60
    list(loaded.logits(torch.zeros(1, n, dtype=torch.long), 1))
    rotary = loaded.model.model.rotary_emb
    expected, scale = inverse_frequencies(kind, factor, original or L, n)
    np.testing.assert_allclose(rotary.inv_freq.double().numpy(), expected, rtol=2e-6)
    assert rotary.attention_scaling == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_a_configuration_that_leaves_the_heads_size_to_be_worked_out(kind: str, tmp_path: Path) -> None:
    """Mixtral's head_dim is None there; transformers' yarn and dynamic would multiply it."""
    rope = {"rope_theta": THETA, "rope_type": "default"}
    sizes = folders.sized(hidden_size=4 * D, num_local_experts=2, rope_parameters=rope)
    made = folders.model(transformers.MixtralConfig(**sizes))
    place = folders.save(tmp_path, made)
    n = 60
    expected, _ = inverse_frequencies(kind, 4, L, n)
    for loaded in (
        HfCheckpoint.open(str(place), options(kind, 4, None)).load(CPU, torch.float32),
        kerple_eval.from_module(made, extend=f"{kind},factor=4").load(CPU, torch.float32),
    ):
        list(loaded.logits(torch.zeros(1, n, dtype=torch.long), 1))
        answering = getattr(loaded, "answering", {})
        rotary = answering.get("model.rotary_emb", loaded.model.model.rotary_emb)
        np.testing.assert_allclose(rotary.inv_freq.double().numpy(), expected, rtol=2e-6)
    assert made.config.head_dim is None


@pytest.mark.parametrize("truncate", [True, False])
def test_truncate_where_layers_have_parameters_of_their_own(truncate: bool, tmp_path: Path) -> None:
    """Gemma 3: transformers looks for it beside the layer types."""
    rope = {
        "full_attention": {"rope_theta": THETA, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    sizes = folders.sized(head_dim=D, sliding_window=8, layer_types=list(rope), rope_parameters=rope)
    place = folders.save(tmp_path, folders.model(transformers.Gemma3TextConfig(**sizes)))
    given = {"extend": "yarn", "factor": "4", "truncate": str(truncate).lower()}
    rotary = HfCheckpoint.open(str(place), given).load(CPU, torch.float32).model.model.rotary_emb
    expected, _ = inverse_frequencies("yarn", 4, L, 60, truncate=truncate)
    np.testing.assert_allclose(rotary.full_attention_inv_freq.double().numpy(), expected, rtol=2e-6)
    np.testing.assert_allclose(
        rotary.sliding_attention_inv_freq.double().numpy(), 10000.0 ** (-np.arange(0, D, 2) / D), rtol=2e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_a_model_built_with_these_parameters(kind: str, folder: Path) -> None:
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": THETA, "factor": 4.0}
    if kind == "ntk":
        parameters = {"rope_type": "default", "rope_theta": THETA * 4.0 ** (D / (D - 2))}
    if kind in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = L
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    plain = config()
    plain.rope_parameters = parameters
    built = folders.model(plain)
    found = folders.scored(folder, [LONG, Window(0, 20, 1)], **options(kind, 4, None))
    unextended = folders.scored(folder, [LONG, Window(0, 20, 1)])
    for index, document in enumerate(folders.documents()):
        np.testing.assert_allclose(
            found[0][index], folders.expected(built, document, LONG), rtol=0, atol=1e-5
        )
        assert np.abs(found[0][index] - unextended[0][index]).max() > 1e-2
    if kind == "dynamic":  # nothing changes up to the trained length
        np.testing.assert_array_equal(found[1][0], unextended[1][0])


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_invariance_is_what_is_measured(kind: str, folder: Path) -> None:
    short, long = folders.scored(folder, [Window(0, 40, 1), LONG], **options(kind, 4, None))
    equal = all(np.allclose(a, b[:40], rtol=0, atol=1e-4) for a, b in zip(short, long, strict=True))
    found = HfCheckpoint.open(str(folder), options(kind, 4, None)).description
    assert found.prefix_invariant is equal is (kind != "dynamic")
    assert found.scheme == f"rope-{kind}"
    assert found.train_length == L
    assert found.details["extension"] == {"rope": kind, "factor": 4.0}
    assert found.details["rope_parameters"]["rope_theta"] >= THETA


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_shorter_window_after_a_longer_one(name: str, tmp_path: Path) -> None:
    """transformers keeps the frequencies of the longest window; here each window is a fresh model's."""
    made = folders.model(config() if name == "llama" else MODELS[name][0]())
    place = folders.save(tmp_path, made)
    loaded = HfCheckpoint.open(str(place), {"rope": "dynamic", "factor": "4"}).load(CPU, torch.float32)
    document = folders.documents()[0]

    def losses(window: Window, model: Any) -> Any:
        return next(iter(score(model, [document], [(0, window)])))[1][0]

    for window in (LONG, Window(0, 40, 1), Window(0, 33, 1), Window(0, 32, 1), Window(0, 20, 1), LONG):
        fresh = HfCheckpoint.open(str(place), {"rope": "dynamic", "factor": "4"}).load(CPU, torch.float32)
        np.testing.assert_array_equal(losses(window, loaded), losses(window, fresh))


def test_the_state_would_matter(folder: Path) -> None:
    """What the test above guards against: transformers' own model, window after window."""
    plain = config()
    plain.rope_parameters = {"rope_type": "dynamic", "rope_theta": THETA, "factor": 4.0}
    built, document, window = folders.model(plain), folders.documents()[0], Window(0, 40, 1)
    fresh = folders.expected(built, document, window)
    folders.expected(built, document, LONG)
    assert np.abs(folders.expected(built, document, window) - fresh).max() > 1e-2


def test_layers_with_positions_of_their_own(tmp_path: Path) -> None:
    """Gemma 3: layers that see the whole window are extended, those with a sliding window are not."""
    place = folders.save(tmp_path, folders.model("gemma3"))
    found = HfCheckpoint.open(str(place), {"rope": "linear", "factor": "8"}).description
    parameters = found.details["rope_parameters"]
    assert parameters["full_attention"]["factor"] == 8.0
    assert parameters["sliding_attention"]["rope_type"] == "default"


def test_other_names_of_layers_that_never_see_far(tmp_path: Path) -> None:
    """Zaya's are called hybrid_sliding."""
    types = ["hybrid", "hybrid_sliding"]
    sizes = folders.sized(
        head_dim=8, layer_types=types, sliding_window=8, num_experts=2, num_experts_per_tok=1
    )
    place = folders.save(tmp_path, folders.model(transformers.ZayaConfig(**sizes)))
    plain = HfCheckpoint.open(str(place), {}).description.details["rope_parameters"]
    found = HfCheckpoint.open(str(place), {"rope": "linear", "factor": "8"}).description
    assert found.scheme == "rope-linear 1/2 + rope,window=8 1/2"
    assert found.details["rope_parameters"]["hybrid"]["factor"] == 8.0
    assert found.details["rope_parameters"]["hybrid_sliding"] == plain["hybrid_sliding"]


def test_a_partial_rotation_keeps_its_share(tmp_path: Path) -> None:
    """GPT-NeoX rotates half of a head: ntk's d is 4 of 8."""
    place = folders.save(tmp_path, folders.model("gpt-neox"))
    checkpoint = HfCheckpoint.open(str(place), {"rope": "ntk", "factor": "4"})
    parameters = checkpoint.description.details["rope_parameters"]
    assert parameters["rope_theta"] == pytest.approx(10000 * 4 ** (4 / 2))
    assert parameters["partial_rotary_factor"] == 0.5
    rotary = checkpoint.load(CPU, torch.float32).model.gpt_neox.rotary_emb
    assert rotary.inv_freq.shape == (2,)


def test_an_extension_replaces_the_configs_own_and_says_so(tmp_path: Path) -> None:
    own = {"rope_type": "yarn", "rope_theta": THETA, "factor": 2.0, "original_max_position_embeddings": 16}
    made = transformers.LlamaConfig(**folders.sized(rope_parameters=own))
    place = folders.save(tmp_path, folders.model(made))
    plain = HfCheckpoint.open(str(place), {}).description
    assert (plain.scheme, plain.train_length) == ("rope-yarn", 32)
    assert "yarn" in plain.warnings[0]
    found = HfCheckpoint.open(str(place), {"rope": "yarn", "factor": "4"}).description
    assert found.details["rope_parameters"]["original_max_position_embeddings"] == 16
    assert any("replaces" in warning and "2.0" in warning for warning in found.warnings)


def test_dynamic_goes_by_the_length_before_the_configs_own_scaling(tmp_path: Path) -> None:
    """Llama 3.1's kind: plain up to the original 16 tokens, not up to the 32 of its scaling."""
    own = {
        "rope_type": "llama3", "rope_theta": THETA, "factor": 2.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    made = transformers.LlamaConfig(**folders.sized(head_dim=D, rope_parameters=own))
    place = folders.save(tmp_path, folders.model(made))
    checkpoint = HfCheckpoint.open(str(place), {"rope": "dynamic", "factor": "4"})
    assert checkpoint.description.train_length == 32
    loaded = checkpoint.load(CPU, torch.float32)
    for n in (30, 60, 12):
        list(loaded.logits(torch.zeros(1, n, dtype=torch.long), 1))
        expected, _ = inverse_frequencies("dynamic", 4, 16, n)
        found = loaded.model.model.rotary_emb.inv_freq.double().numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-6)


REFUSED = [
    ({"rope": "yarn"}, "needs factor="),
    ({"factor": "4"}, "goes with rope="),
    ({"original": "4"}, "goes with rope="),
    ({"rope": "yarm", "factor": "4"}, "did you mean 'yarn'"),
    ({"rope": "yarn", "factor": "0.5"}, "at least 1"),
    ({"rope": "yarn", "factor": "nan"}, "at least 1"),
    ({"rope": "yarn", "factor": "inf"}, "at least 1"),
    ({"rope": "yarn", "factor": "four"}, "must be a number"),
    ({"rope": "yarn", "factor": "4", "original": "0"}, "at least 1"),
    ({"rope": "yarn", "factor": "4", "original": "8.5"}, "whole number"),
    ({"rope": "linear", "factor": "4", "original": "8"}, "no use for original="),
    ({"rope": "ntk", "factor": "4", "original": "8"}, "no use for original="),
]  # fmt: skip


@pytest.mark.parametrize(("given", "part"), REFUSED, ids=str)
def test_refused(given: dict[str, str], part: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        HfCheckpoint.open(str(folder), given)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "gptj", "mamba", "falcon-alibi"])
def test_no_rotary_positions_to_extend(name: str, tmp_path: Path) -> None:
    place = folders.save(tmp_path, folders.model(name))
    for kind in ("yarn", "ntk"):
        with pytest.raises(UserError, match="rotary positions"):
            HfCheckpoint.open(str(place), {"rope": kind, "factor": "4"})
