"""Windows in pieces give the losses of one pass, or are scored in one pass and it is said why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.feeding import Feeding
from kerple_eval.models.hf.model import HfModel
from kerple_eval.models.scoring import score
from kerple_eval.types import Window
from tests.helpers import architectures
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import CPU, MARKS, V, transformers

LENGTH, PIECE = 1024, 128
#: A whole window, and one of which the last rows are scored, from the middle of a piece on.
WINDOWS = [Window(0, LENGTH, 1), Window(300, 300 + LENGTH, 1200)]
DOCUMENT = np.random.default_rng(3).integers(3, V, size=LENGTH + 301)


def longer(**changes: Any) -> dict[str, Any]:
    return folders.sized(max_position_embeddings=1400, num_hidden_layers=4, **changes)


ALTERNATING = ["sliding_attention", "full_attention"] * 2
#: name -> configuration; what each is there for.
FAST: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**longer()),  # full attention
    "mistral": lambda: transformers.MistralConfig(**longer(sliding_window=200)),  # every layer slides
    "gemma3": lambda: transformers.Gemma3TextConfig(  # layers of both kinds
        **longer(head_dim=8, sliding_window=200, layer_types=ALTERNATING)
    ),
    "llama4": lambda: transformers.Llama4TextConfig(  # chunks that no border of a piece meets
        **longer(head_dim=8, attention_chunk_size=200, num_local_experts=2, intermediate_size_mlp=48)
    ),
    "gpt-oss": lambda: transformers.GptOssConfig(  # sinks
        **longer(head_dim=8, sliding_window=200, num_local_experts=4, layer_types=ALTERNATING)
    ),
    "mamba2": lambda: transformers.Mamba2Config(  # recurrent
        vocab_size=V, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8,
        n_groups=1, chunk_size=48, **MARKS,
    ),
    "qwen3-next": lambda: transformers.Qwen3NextConfig(  # gated delta rule and attention
        **longer(
            head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2,
            linear_key_head_dim=8, linear_value_head_dim=8,
        )
    ),
    "gpt2": lambda: transformers.GPT2Config(  # learned positions
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, **MARKS
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=V, hidden_size=32, n_layer=2, n_head=4, **MARKS
    ),  # ALiBi, head not by chunks
    "mpt": lambda: transformers.MptConfig(  # ALiBi, a table of max_seq_len
        vocab_size=V, d_model=32, n_layers=2, n_heads=4, max_seq_len=LENGTH, **MARKS
    ),
}  # fmt: skip


def model(config: Any) -> Any:
    """Weights large enough that attention, norms and position matter, small enough for 1e-5 in float32."""
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def fed(made: Any, piece: int = PIECE, windows: list[Window] = WINDOWS) -> tuple[list[Any], Feeding]:
    """Losses of each window, in pieces where the model can, and what was found out."""
    model = HfModel(made, CPU, torch.float32, "made")
    model.feeding = Feeding(piece)
    found: dict[int, Any] = {}
    for members, rows in score(model, [DOCUMENT], [(0, window) for window in windows]):
        found |= dict(zip(members, rows, strict=True))
    return [found[index] for index in range(len(windows))], model.feeding


def check(made: Any) -> Feeding:
    found, feeding = fed(made)
    for window, row in zip(WINDOWS, found, strict=True):
        np.testing.assert_allclose(row, folders.expected(made, DOCUMENT, window), rtol=0, atol=1e-5)
    return feeding


@pytest.mark.parametrize("name", FAST)
def test_losses_are_those_of_one_pass(name: str) -> None:
    feeding = check(model(FAST[name]()))
    assert (feeding.refused, feeding.compared) == (None, LENGTH)


def test_a_state_that_is_not_carried_is_told_apart() -> None:
    """transformers' Mamba-1 begins each piece from zeros: scored in one pass, and it says so."""
    config = transformers.MambaConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4, **MARKS
    )
    feeding = check(model(config))
    assert feeding.compared == 0
    assert "does not carry all that came before: in pieces of 128" in str(feeding.refused)
    assert "\n" not in str(feeding.refused)


#: What transformers 5.24 cannot do in pieces, of all that is built tiny, and which words say why.
NOT_IN_PIECES = {
    "falcon_mamba": "does not carry", "mamba": "does not carry",  # states begin at zero in each piece
    "moshi": "does not carry",
    "recurrent_gemma": "returns no cache", "openai-gpt": "takes no cache", "xlnet": "takes no cache",
    "dory": "cannot go on", "xlstm": "cannot go on",
    "bamba": "does not carry", "jamba": "does not carry", "zamba": "does not carry",
    "cpmant": "does not give logits",
}  # fmt: skip
SHORTER = (256, 32, 50)  # tokens of a window, a piece and a sliding window or chunk


def longer_tiny(name: str) -> Any:
    """The model of that type with positions for such windows; None where these sizes make none."""
    length, _, local = SHORTER
    try:
        config = architectures.config(name)
        text = config.get_text_config(decoder=True)
        for key in ("max_position_embeddings", "n_positions", "n_ctx"):
            if getattr(text, key, None) == 64:
                setattr(text, key, length + 8)
        for key in ("sliding_window", "attention_chunk_size"):
            if getattr(text, key, None) == architectures.WINDOW:
                setattr(text, key, local)
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
        return model(config) if sum(p.numel() for p in empty.parameters()) < 3_000_000 else None
    except Exception:  # constructors raise what such sizes lead them to
        return None


@pytest.mark.slow
def test_every_architecture_that_is_built_tiny() -> None:
    """Equal losses to 1e-5 whatever it is; in pieces but for those named, and for encoders without cache."""
    length, piece, _ = SHORTER
    windows = [Window(0, length, 1), Window(85, 85 + length, 306)]
    served, wrong = [], {}
    for name in architectures.NAMES:
        made = longer_tiny(name)
        if made is None:
            continue
        try:
            wanted = [folders.expected(made, DOCUMENT, window) for window in windows]
        except Exception:  # learned tables that a configuration of these sizes makes too short
            continue
        found, feeding = fed(made.float(), piece, windows)
        apart = max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True))
        why = str(feeding.refused)
        expected = NOT_IN_PIECES.get(name, "returns no cache" if feeding.refused else "None")
        if not apart <= 1e-5 or expected not in why:
            wrong[name] = (apart, why)
        elif feeding.refused is None:
            served.append(name)
    assert not wrong
    assert len(served) > 100
