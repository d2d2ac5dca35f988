"""GGUF files with quantised blocks, of many families: logits of the model with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.types import UserError
from tests.helpers import gguf_writer
from tests.helpers import hf_folders as folders
from tests.helpers.gguf_writer import FAMILIES, V, gguf
from tests.helpers.hf_folders import CPU, transformers

INPUTS = torch.from_numpy(np.random.default_rng(3).integers(V, size=(2, 40)))
KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=INPUTS, use_cache=False).logits


def made(family: str, kind: Any) -> Any:
    model = folders.model(FAMILIES[family]())
    gguf_writer.put_on_grid(family, model, kind)
    return model


@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_logits_of_quantised_blocks(number: int, tmp_path: Path) -> None:
    """Those of the model whose weights are the blocks' values: each family with one kind of block."""
    family, kind = list(FAMILIES)[number], gguf.GGMLQuantizationType[KINDS[number % len(KINDS)]]
    model = made(family, kind)
    checkpoint = HfCheckpoint.open(str(gguf_writer.write(tmp_path / "m.gguf", family, model, kind)), {})
    assert kind.name in checkpoint.description.stored_dtypes
    found = logits(checkpoint.load(CPU, torch.float32).model)
    np.testing.assert_allclose(found, logits(model), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_as_transformers_itself_loads_them(kind: str, tmp_path: Path) -> None:
    """To the bit, and off the grid: weights that blocks only come near to."""
    model = folders.model(FAMILIES["llama"]())
    path = gguf_writer.write(tmp_path / "m.gguf", "llama", model, gguf.GGMLQuantizationType[kind])
    found = HfCheckpoint.open(str(path), {}).load(CPU, torch.float32).model
    own = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="m.gguf", dtype=torch.float32
    )
    assert torch.equal(logits(found), logits(own.eval()))
    assert (logits(found) - logits(model)).abs().max() > 1e-3


UNREAD = [  # family, key, value; None: it must change nothing
    ("qwen3", "expert_weights_scale", 2.5, "does not have"),
    ("mamba", "ssm.dt_b_c_rms", True, "does not have"),
    ("qwen3moe", "expert_gating_func", 2, "does not have"),
    ("gemma3", "attention.temperature_length", 7, "does not have"),
    ("llama", "attention.sliding_window_pattern", 2, "does not have"),
    ("llama", "rope.scaling.attn_factor", 1.2, "states rope.scaling.attn_factor = 1.2"),
    ("llama", "rope.scaling.attn_factor", 1.0, None),
    ("llama", "rope.scaling.finetuned", True, None),
    ("llama", "nextn_predict_layers", 0, None),
    ("qwen3", "attention.value_length", "abc", "no value of that key"),
    ("gemma2", "rope.dimension_count", [7], "no value of that key"),
    ("stablelm", "rope.freq_base", "abc", "no value of that key"),
    ("qwen3", "rope.freq_base", -5.0, "no value of that key"),
    ("gemma2", "attn_logit_softcapping", [1.0, 2.0, 3.0], "does not have"),
]


@pytest.mark.parametrize(("family", "key", "value", "refusal"), UNREAD, ids=str)
def test_keys_that_decide_losses(
    family: str, key: str, value: Any, refusal: str | None, tmp_path: Path
) -> None:
    model = folders.model(FAMILIES[family]())
    adds = {
        bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array",
    }  # fmt: skip
    more = [(adds[type(value)], f"{family}.{key}", value)]
    path = gguf_writer.write(tmp_path / "m.gguf", family, model, None, more)
    if refusal is None:
        HfCheckpoint.open(str(path), {})
        return
    with pytest.raises(UserError) as caught:
        HfCheckpoint.open(str(path), {})
    assert key in str(caught.value)
    assert refusal in str(caught.value)


@pytest.mark.parametrize("pattern", [3, [1, 1, 0, 1, 1, 0], 0])
def test_which_layers_slide(pattern: Any, tmp_path: Path) -> None:
    """Every third sees all, or none does, where Gemma 3's own are every sixth."""
    config = FAMILIES["gemma3"]()
    config.layer_types = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    if pattern == 0:
        config.layer_types = ["sliding_attention"] * 6
    model = folders.model(config)
    add = (
        "add_uint32" if isinstance(pattern, int) else "add_array",
        "gemma3.attention.sliding_window_pattern",
    )
    path = gguf_writer.write(tmp_path / "m.gguf", "gemma3", model, None, [(*add, pattern)])
    found = logits(HfCheckpoint.open(str(path), {}).load(CPU, torch.float32).model)
    np.testing.assert_allclose(found, logits(model), rtol=0, atol=1e-5)
