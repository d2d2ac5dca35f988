"""``extend=`` on transformers' models: against attention written out in float64, and what is refused."""

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
from kerple_eval.models.decoder import attention as decoder_attention
from kerple_eval.models.decoder import key_runs
from kerple_eval.models.feeding import Feeding
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.scoring import score
from kerple_eval.types import UserError, Window
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import CPU, MODELS, sized, transformers
from tests.helpers.literal_attention import Literal, Positions, install, plain
from tests.schemes.test_modifiers import dual_chunk, lm_infinite, rerope, self_extend, shifted, streaming

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
    "leaky-rerope": ({"leaky-rerope": "10", "leak": "4"}, lambda i, j: rerope(i, j, 10, 4.0)),
    "rerope": ({"rerope": "10"}, lambda i, j: rerope(i, j, 10)),
    "streaming-sink": (
        {"extend": "streaming-sink", "recent": "14", "sinks": "2"}, lambda i, j: streaming(i, j, 14, 2),
    ),
    "lm-infinite": (
        {"extend": "lm-infinite", "recent": "12", "start": "3", "limit": "20"},
        lambda i, j: lm_infinite(i, j, 12, 3, 20),
    ),
    "dca": ({"extend": "dca", "chunk": "16", "local": "4"}, lambda i, j: dual_chunk(i, j, 16, 4)),
    "string": (
        {"extend": "string", "shift": "12", "local": "5", "attention_factor": "1.25"},
        lambda i, j: shifted(i, j, 12, 5, 1.25),
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


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("llama", "gemma2", "gpt-oss") else pytest.param(n, marks=pytest.mark.slow)
        for n in ARCHITECTURES
    ],
)
def test_a_method_changes_something_and_its_identity_nothing(name: str, saved: Any) -> None:
    _, place = saved(name)
    own = found(place, {})
    identities: list[dict[str, str]] = [
        {"extend": "self-extend", "window": "5", "group": "1"}, {"window": "100"}, {"log-n": "100"},
    ]  # fmt: skip
    for identity in identities:
        np.testing.assert_allclose(found(place, identity), own, rtol=0, atol=2e-5)
    trained = [Window(0, 32, 1)]
    (own_short,) = folders.scored(place, trained)
    for method in ("lm-infinite", "window", "log-n"):  # at their defaults they begin past the trained length
        (short,) = folders.scored(place, trained, extend=method)
        np.testing.assert_allclose(short[0], own_short[0], rtol=0, atol=2e-5)
    changed = found(place, {"extend": "rerope", "window": "3"})
    assert np.abs(changed - own).max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "further"),
    [
        ("linear", {}), ("ntk", {}), ("dynamic", {}), ("dynamic", {"original": "20"}), ("yarn", {}),
        ("yarn", {"original": "16"}), ("llama3", {"original": "16"}),
    ],
)  # fmt: skip
def test_rope_is_another_spelling(kind: str, further: dict[str, str], saved: Any) -> None:
    _, place = saved("llama")
    given = {"factor": "4"} | further
    old, new = (
        HfCheckpoint.open(str(place), {"rope": kind} | given),
        HfCheckpoint.open(str(place), {"extend": kind} | given),
    )
    assert old.description == new.description
    np.testing.assert_array_equal(
        found(place, {"rope": kind} | given), found(place, {"extend": kind} | given)
    )


def test_the_record_names_method_and_options(saved: Any) -> None:
    _, place = saved("gemma3")
    opened = HfCheckpoint.open(
        str(place), {"extend": "self-extend", "window": "12", "group": "3", "log-n": "16"}
    )
    said = opened.description
    assert said.scheme == "rope,window=8 1/2 + rope,self-extend=12,group=3,log-n=16 1/2"
    assert said.details["modifiers"] == {"self-extend": {"window": 12, "group": 3}, "log-n": {"original": 16}}
    assert said.details["attention"] == "chunks"
    assert opened.load(CPU, torch.float32).attention == "chunks"
    both = HfCheckpoint.open(str(place), {"extend": "linear", "factor": "2", "window": "20"}).description
    assert both.scheme == "rope,window=8 1/2 + rope-linear,window=20 1/2"
    assert both.details["extension"] == {"rope": "linear", "factor": 2.0}
    assert said.weights_sha256 == both.weights_sha256


def test_frequencies_and_modifiers_together(saved: Any) -> None:
    """YaRN's frequencies in a window: the literal computation with both."""
    model, place = saved("llama")
    literal = Literal(FAR, BASE, divisors=(2.0,) * 4)
    expected = literal_losses(model, literal, lambda i, j: (i - j < 11, i - j, 1.0))
    got = found(place, {"extend": "linear", "factor": "2", "window": "11"})
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-5)


def test_longrope_has_the_lists_that_are_given(saved: Any) -> None:
    model, place = saved("llama")
    stretch = math.sqrt(1 + math.log(2) / math.log(32))
    literal = Literal(FAR, BASE, divisors=(1.0, 2.0, 4.0, 8.0), stretch=stretch)
    got = found(place, {"extend": "longrope", "factor": "2", "long": "1/2/4/8"})
    np.testing.assert_allclose(got, literal_losses(model, literal, plain), rtol=0, atol=5e-5)


def test_theta_is_another_base(saved: Any) -> None:
    model, place = saved("llama")
    literal = Literal(FAR, (5e5, 5e5))
    got = found(place, {"extend": "theta", "theta": "5e5"})
    np.testing.assert_allclose(got, literal_losses(model, literal, plain), rtol=0, atol=5e-5)


REFUSED: list[tuple[str, dict[str, str], str]] = [
    ("llama", {"rope": "yarn", "extend": "yarn", "factor": "4"}, "another spelling of extend="),
    ("llama", {"rope": "yarn", "factor": "4", "extend": "rerope"}, "another spelling of extend="),
    ("llama", {"extend": "self-extnd"}, "did you mean 'self-extend'"),
    ("llama", {"extend": "self-extend", "grup": "3"}, "did you mean 'group'"),
    ("llama", {"extend": "yarn"}, "needs factor=F"),
    ("llama", {"extend": "yarn", "factor": "0.5"}, "at least 1"),
    ("llama", {"extend": "yarn", "factor": "2", "base": "7"}, "base keeps the value"),
    ("llama", {"extend": "alibi"}, "does not fit"),
    ("llama", {"extend": "longrope", "factor": "2", "long": "1/2"}, "4 frequencies"),
    ("llama", {"extend": "rerope", "self-extend": "4"}, "both move positions"),
    ("llama", {"ssmax": "1"}, "has parameters"),
    (
        "llama",
        {"extend": "self-extend", "window": "33"},
        "window=33 contradicts the trained length, 32 tokens",
    ),
    ("llama", {"leaky-rerope": "33"}, "window=33 contradicts the trained length"),
    ("llama", {"extend": "lm-infinite", "limit": "40"}, "limit=40 contradicts"),
    ("llama", {"extend": "streaming-sink", "recent": "32"}, "recent=32 beside 4 sinks contradicts"),
    ("llama", {"extend": "streaming-sink", "sinks": "32"}, "leave no recent key"),
    ("llama", {"extend": "dca", "chunk": "64"}, "chunk=64 contradicts"),
    ("llama", {"extend": "string", "shift": "33"}, "shift=33 contradicts"),
    ("llama", {"streaming-sink": "28"}, "recent=28 beside 4 sinks contradicts"),
    ("llama", {"streaming-sink": "24", "sinks": "8"}, "recent=24 beside 8 sinks contradicts"),
    ("llama", {"extend": "yarn", "factor": "2", "original": "33"}, "original=33 contradicts the trained"),
    ("llama", {"rope": "dynamic", "factor": "2", "original": "33"}, "original=33 contradicts the trained"),
    ("llama", {"tokeniser": "x"}, "did you mean 'tokenizer'"),
    ("gpt2", {"extend": "self-extend"}, "rotary positions"),
    ("bloom", {"window": "8"}, "rotary positions"),
    ("gptj", {"window": "8"}, "rotary positions that a config's rope_parameters describe"),
    ("falcon-alibi", {"extend": "self-extend"}, "rotary positions"),
    ("mamba", {"extend": "rerope"}, "rotary positions"),
]


@pytest.mark.parametrize(("name", "given", "part"), REFUSED, ids=str)
def test_refused_before_any_weight_is_read(
    name: str, given: dict[str, str], part: str, saved: Any, tmp_path: Path
) -> None:
    place = saved(name)[1] if name in ARCHITECTURES else folders.save(tmp_path, folders.model(name))
    folders.refused(place, part, **given)


def test_another_attention_is_refused_by_name(tmp_path: Path) -> None:
    """HunYuan norms queries after it has rotated them; others in ``test_unseen_architectures.py``."""
    place = folders.save(tmp_path, folders.model(transformers.HunYuanDenseV1Config(**sized(head_dim=8))))
    opened = HfCheckpoint.open(str(place), {"extend": "self-extend"})
    part = "HunYuanDenseV1ForCausalLM cannot be extended by other attention: it rotates its heads in a way"
    with pytest.raises(UserError) as caught:
        opened.load(CPU, torch.float32)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_choice_of_attention_is_refused(saved: Any) -> None:
    opened = HfCheckpoint.open(str(saved("llama")[1]), {"window": "8"})
    with pytest.raises(UserError, match="attention sdpa: window is computed by blocks"):
        opened.set_attention("sdpa", CPU, torch.float32)


def test_half_precision_is_checked_in_float32_and_scored_as_it_is(saved: Any) -> None:
    _, place = saved("gemma2")
    loaded = HfCheckpoint.open(str(place), {"extend": "self-extend", "window": "9"}).load(CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    ids = torch.from_numpy(folders.documents()[0][:N])[None]
    with torch.inference_mode():
        (logits,) = loaded.logits(ids, N)
    wide = HfCheckpoint.open(str(place), {"extend": "self-extend", "window": "9"}).load(CPU, torch.float32)
    with torch.inference_mode():
        (exact,) = wide.logits(ids, N)
    assert logits.dtype == torch.bfloat16
    assert float((logits.float() - exact).abs().max()) < 0.2


IN_MEMORY = [
    ("llama", "self-extend,window=12,group=3"), ("gemma3", "window=11,log-n=16"), ("llama", "yarn,factor=4"),
    ("gemma3", "dynamic,factor=4"), ("gpt-neox", "theta,theta=5e5"), ("llama", "linear,factor=2,window=11"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), IN_MEMORY)
def test_a_model_in_memory_is_extended_while_it_is_scored(name: str, text: str, saved: Any) -> None:
    """Its losses are those of the same weights on disk, and afterwards it is as it was."""
    model, place = saved(name)
    document, window = folders.documents()[0], Window(0, N, 1)
    before = folders.expected(model, document, window)
    settings = model.config.to_dict()
    held = kerple_eval.from_module(model, extend=text)
    given = dict(pair.split("=") for pair in (text if text[:6] == "window" else f"extend={text}").split(","))
    on_disk = HfCheckpoint.open(str(place), given).description
    assert held.description.scheme == on_disk.scheme
    for key in ("modifiers", "extension"):
        assert held.description.details.get(key) == on_disk.details.get(key)
    with held.borrowed():
        for longer in (Window(0, 60, 1), window):
            (_, (losses,)) = next(iter(score(held.scored, [document], [(0, longer)])))
    np.testing.assert_allclose(losses, found(place, given), rtol=0, atol=2e-6)
    assert np.abs(losses - before).max() > 1e-3
    np.testing.assert_array_equal(folders.expected(model, document, window), before)
    assert model.config.to_dict() == settings
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("self-extnd", "did you mean"),
        ("yarn", "needs factor"),
        ("window=x", "window"),
        ("", "expected key"),
        ("yarn,factor=4,rope=linear", "another spelling of extend="),
        ("rope=yarn,factor=4,extend=yarn", "another spelling of extend="),
        ("rope=self-extend,factor=4", "unknown rope extension"),
        ("self-extend,window=33", "contradicts the trained length"),
    ],
)
def test_a_wrong_extension_in_memory_is_refused(text: str, part: str, saved: Any) -> None:
    with pytest.raises(UserError, match=part):
        kerple_eval.from_module(saved("llama")[0], extend=text).description  # noqa: B018
    with pytest.raises(UserError, match="no transformers model"):
        kerple_eval.from_module(torch.nn.Linear(2, 2), extend=text)


@pytest.mark.parametrize(
    ("name", "kind", "further"),
    [("llama", "yarn", ",original=16"), ("gemma3", "linear", "")],
)
def test_a_run_of_models_in_memory_repeats_that_of_the_files(
    name: str, kind: str, further: str, saved: Any
) -> None:
    """By ``evaluate``, in either spelling, beside ``rope=`` and ``extend=`` of the same model on disk."""
    model, place = saved(name)
    given = f"{kind},factor=4{further}"
    models = {
        "m": kerple_eval.from_module(model, extend=given),
        "m-rope": kerple_eval.from_module(model, extend=f"rope={given}"),
        "d": f"hf:{place},extend={given}", "d-rope": f"hf:{place},rope={given}",
        "m-self": kerple_eval.from_module(model, extend="self-extend,window=9"),
        "d-self": f"hf:{place},extend=self-extend,window=9", "plain": model,
    }  # fmt: skip
    tokens = [document[:61].tolist() for document in folders.documents()]
    run = kerple_eval.evaluate(models, tokens=tokens, lengths=[20, 60], protocols="last:k=8")
    assert run.summary()["status"].eq("ok").all()
    found = {label: part["loss"].to_numpy() for label, part in run.losses().groupby("model")}
    for same in (("m", "m-rope", "d", "d-rope"), ("m-self", "d-self")):
        for label in same[1:]:
            np.testing.assert_allclose(found[label], found[same[0]], rtol=0, atol=2e-6, err_msg=label)
        assert np.abs(found[same[0]] - found["plain"]).max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_no_matrix_of_scores_is_formed(saved: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Some query rows at once meet the sinks, the recent keys and their own, and no others.

    Gemma 2 caps its scores, which are in memory then; Llama's are not.
    """
    _, place = saved(name)
    given = {"extend": "streaming-sink", "recent": "8", "sinks": "2"}
    whole = found(place, given)
    met: list[tuple[int, int]] = []
    attend, scored = key_runs.attend_with_sums, decoder_attention._scored

    def attending(q: Any, k: Any, *words: Any, **named: Any) -> Any:
        if len(q) == 3:  # no pass of the check at loading, which is without the method
            met.append((q.shape[2], k.shape[2]))
        return attend(q, k, *words, **named)

    def scoring(block: Any, *words: Any) -> Any:
        if len(block.q) == 3:
            met.append((len(block.positions_q), len(block.positions_k)))
        return scored(block, *words)

    monkeypatch.setattr(decoder_attention, "QUERY_CHUNK", 4)
    monkeypatch.setattr(decoder_attention, "GENERAL_CHUNK_ELEMENTS", 3 * 4 * N * 4)  # four rows of 3 texts
    monkeypatch.setattr(key_runs, "attend_with_sums", attending)
    monkeypatch.setattr(decoder_attention, "_scored", scoring)
    np.testing.assert_allclose(found(place, given), whole, rtol=0, atol=1e-5)
    assert all(keys <= 2 + 8 + rows for rows, keys in met)
    assert sum(rows * keys for rows, keys in met) > N * 8
    assert max(rows for rows, _ in met) < N / 2


@pytest.mark.parametrize("text", ["dynamic,factor=4", "longrope,factor=2,long=1/2/4/8"])
def test_pieces_do_not_serve_what_follows_the_window(text: str, saved: Any) -> None:
    """In memory, where the model's own configuration does not say so; the first piece sees no difference."""
    held = kerple_eval.from_module(saved("llama")[0], extend=text)
    ids = torch.from_numpy(folders.documents()[0][:N])[None]
    found = []
    for feeding in (None, Feeding(8, one_pass=20)):
        held.feeding = feeding
        loaded = held.load(CPU, torch.float32)
        with torch.no_grad():
            found.append(torch.cat(list(loaded.logits(ids, N)), dim=1))
    assert loaded.feeding is not None
    assert loaded.feeding.refused is not None
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)


def test_heads_of_other_sizes_in_other_layers(tmp_path: Path) -> None:
    """Gemma 4, whose configuration refuses to name one size of a head."""
    config = transformers.Gemma4TextConfig(
        **sized(
            head_dim=8, global_head_dim=16, num_global_key_value_heads=2, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], vocab_size_per_layer_input=97,
            hidden_size_per_layer_input=8,
        )
    )  # fmt: skip
    place = folders.save(tmp_path, folders.model(config))
    own = found(place, {})
    np.testing.assert_allclose(found(place, {"window": "100"}), own, rtol=0, atol=2e-5)
    changed = found(place, {"extend": "self-extend", "window": "12", "group": "3"})
    np.testing.assert_allclose(changed[:12], own[:12], rtol=0, atol=2e-5)
    assert np.abs(changed - own).max() > 1e-3
    opened = HfCheckpoint.open(str(place), {"window": "11"})
    assert opened.description.scheme == "rope,window=8 1/2 + rope-proportional,window=11 1/2"
    folders.refused(place, "which are of the type proportional", extend="yarn", factor="4")


def test_each_method_is_checked_for_itself(tmp_path: Path) -> None:
    """Cohere 2's layers without a window have no positions to move, which a window does not ask for."""
    sizes = sized(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    place = folders.save(tmp_path, folders.model(transformers.Cohere2Config(**sizes)))
    HfCheckpoint.open(str(place), {"window": "16"}).check_weights(CPU, torch.float32)
    with pytest.raises(UserError, match="no layer that self-extend applies to has rotary positions"):
        HfCheckpoint.open(str(place), {"extend": "self-extend"}).check_weights(CPU, torch.float32)


def test_attention_beside_a_recurrent_state_is_named(tmp_path: Path) -> None:
    """Falcon-H1's layers have both."""
    config = transformers.FalconH1Config(
        **sized(
            head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=16
        )
    )
    place = folders.save(tmp_path, folders.model(config))
    opened = HfCheckpoint.open(str(place), {"extend": "self-extend", "window": "12", "group": "3"})
    assert opened.description.scheme == "rope,self-extend=12,group=3&recurrent"
