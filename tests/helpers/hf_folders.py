"""Tiny folders written by transformers' own classes, and losses of ``model(input_ids).logits``."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

transformers = pytest.importorskip("transformers")

from kerple_eval.models.hf.checkpoint import HfCheckpoint  # noqa: E402
from kerple_eval.models.scoring import score  # noqa: E402
from kerple_eval.types import UserError, Window  # noqa: E402

CPU = torch.device("cpu")
V, TRAINED = 97, 32
MARKS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def sized(**changes: Any) -> dict[str, Any]:
    """Two layers, four heads of 8, two of keys, trained at 32 tokens."""
    sizes: dict[str, Any] = {
        "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": TRAINED,
    }  # fmt: skip
    return sizes | MARKS | changes


def without_kv(**changes: Any) -> dict[str, Any]:
    sizes = sized(**changes)
    del sizes["num_key_value_heads"]
    return sizes


def longrope() -> dict[str, Any]:
    """Phi-3's: other factors beyond 16 tokens, and a scale for all."""
    return {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0],
    }  # fmt: skip


#: name -> (configuration, scheme, trained length, longest window, prefix-invariant)
MODELS: dict[str, tuple[Callable[[], Any], str, int | None, int | None, bool]] = {
    "llama": (lambda: transformers.LlamaConfig(**sized()), "rope", 32, None, True),
    "gpt-neox": (lambda: transformers.GPTNeoXConfig(**without_kv(rotary_pct=0.5)), "rope", 32, None, True),
    "gpt2": (
        lambda: transformers.GPT2Config(
            vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, **MARKS
        ),
        "learned", 64, 64, True,
    ),
    "opt": (
        lambda: transformers.OPTConfig(
            vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
            max_position_embeddings=64, word_embed_proj_dim=32, **MARKS,
        ),
        "learned", 64, 64, True,
    ),
    "gptj": (
        lambda: transformers.GPTJConfig(
            vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4, **MARKS
        ),
        "rope", 64, 64, True,
    ),
    "bloom": (
        lambda: transformers.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4, **MARKS),
        "alibi", None, None, True,
    ),
    "mpt": (
        lambda: transformers.MptConfig(
            vocab_size=V, d_model=32, n_layers=2, n_heads=4, max_seq_len=32, **MARKS
        ),
        "alibi", 32, None, True,
    ),
    "gemma2": (
        lambda: transformers.Gemma2Config(
            **sized(head_dim=8, sliding_window=8, final_logit_softcapping=2.0, attn_logit_softcapping=5.0)
        ),
        "rope,window=8 1/2 + rope 1/2", 32, None, True,
    ),
    "gemma3": (
        lambda: transformers.Gemma3TextConfig(
            **sized(head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        ),
        "rope,window=8 1/2 + rope 1/2", 32, None, True,
    ),
    "qwen2": (lambda: transformers.Qwen2Config(**sized()), "rope", 32, None, True),
    "mistral": (
        lambda: transformers.MistralConfig(**sized(sliding_window=8)), "rope,window=8", 32, None, True,
    ),
    "mixtral": (lambda: transformers.MixtralConfig(**sized(num_local_experts=4)), "rope", 32, None, True),
    "phi3": (
        lambda: transformers.Phi3Config(
            **sized(original_max_position_embeddings=16, rope_parameters=longrope())
        ),
        "rope-longrope", 32, None, False,
    ),
    "cohere": (lambda: transformers.CohereConfig(**sized(logit_scale=0.3)), "rope", 32, None, True),
    "granite": (
        lambda: transformers.GraniteConfig(**sized(logits_scaling=5.0, embedding_multiplier=2.0)),
        "rope", 32, None, True,
    ),
    "falcon-alibi": (
        lambda: transformers.FalconConfig(
            vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, **MARKS
        ),
        "alibi", 2048, None, True,
    ),
    "mamba": (
        lambda: transformers.MambaConfig(
            vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4, **MARKS
        ),
        "recurrent", None, None, True,
    ),
}  # fmt: skip


def model(name_or_config: Any, seed: int = 0) -> Any:
    """Weights large enough that attention, norms and position all matter."""
    config = MODELS[name_or_config][0]() if isinstance(name_or_config, str) else name_or_config
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def save(folder: Path, made: Any, **options: Any) -> Path:
    transformers.utils.logging.disable_progress_bar()
    made.save_pretrained(folder, **options)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json; a value of None removes the key."""
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def documents(count: int = 3, length: int = 61) -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(3)
    return [generator.integers(V, size=length) for _ in range(count)]


def expected(made: Any, document: NDArray[np.int64], window: Window) -> NDArray[np.float64]:
    """Losses of one window by one plain call, in float64 from the logits on."""
    inputs = torch.from_numpy(document[window.start : window.stop])[None]
    with torch.no_grad():
        logits = made(input_ids=inputs, use_cache=False).logits[0].double()
    log_p = torch.log_softmax(logits, -1).numpy()
    targets = np.arange(window.first_target, window.stop + 1)
    return np.array([-log_p[k - 1 - window.start, document[k]] for k in targets])


def scored(folder: Path, windows: Sequence[Window], **options: str) -> list[list[NDArray[np.float32]]]:
    """Losses by window, then by document, through the checkpoint and ``score``: documents share passes."""
    loaded = HfCheckpoint.open(str(folder), options).load(CPU, torch.float32)
    found = documents()
    pairs = [(index, window) for window in windows for index in range(len(found))]
    losses: dict[int, NDArray[np.float32]] = {}
    for members, rows in score(loaded, found, pairs):
        losses |= dict(zip(members, rows, strict=True))
    each = [losses[index] for index in range(len(pairs))]
    return [each[i : i + len(found)] for i in range(0, len(each), len(found))]


def refused(place: Path | str, *parts: str, **options: str) -> None:
    with pytest.raises(UserError) as caught:
        HfCheckpoint.open(str(place), options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
