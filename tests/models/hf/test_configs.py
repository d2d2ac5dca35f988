"""What a configuration may hold: transformers' own reading of it, sizes, identity, and what it names."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from kerple_eval.models.footprint import window_bytes
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.config_facts import attends_eagerly
from kerple_eval.types import Window
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import CPU, refused, transformers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("whole"), folders.model("llama"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def mamba2() -> Any:
    return transformers.Mamba2Config(
        vocab_size=folders.V, hidden_size=16, num_hidden_layers=2, num_heads=4, head_dim=8, state_size=4,
        n_groups=1, chunk_size=8, **folders.MARKS,
    )  # fmt: skip


def test_numbers_that_json_has_no_word_for(tmp_path: Path) -> None:
    """``{"__float__": "Infinity"}``, as transformers 5 writes Mamba-2's time_step_limit."""
    made = folders.model(mamba2())
    place = folders.save(tmp_path, made)
    assert json.loads((place / "config.json").read_text())["time_step_limit"][1] == {"__float__": "Infinity"}
    window = Window(0, 40, 1)
    for document, row in zip(folders.documents(), folders.scored(place, [window])[0], strict=True):
        np.testing.assert_allclose(row, folders.expected(made, document, window), rtol=0, atol=1e-4)


def test_older_spellings_are_read(folder: Path) -> None:
    """``rope_scaling`` with ``type``, ``rope_theta`` and ``torch_dtype``, as transformers 4 wrote them."""
    old = {"rope_parameters": None, "rope_theta": 77.0, "torch_dtype": "float32", "dtype": None}
    folders.edit_config(folder, **old, rope_scaling={"type": "linear", "factor": 2.0})
    found = HfCheckpoint.open(str(folder), {}).description
    assert found.scheme == "rope-linear"
    assert (found.details["rope_parameters"]["rope_theta"], found.details["rope_parameters"]["factor"]) == (
        77.0,
        2.0,
    )


def test_text_configs_of_any_kind(folder: Path) -> None:
    for value in ("x", [], 7, {"vocab_size": "x"}):
        folders.edit_config(folder, model_type="gemma3", text_config=value)
        refused(folder, "config.json")
    folders.edit_config(folder, model_type="llama", text_config={"vocab_size": 5})
    refused(folder, str(folder))


@pytest.mark.parametrize("size", [1 << 20, 1 << 31, 1 << 40, 1 << 70])
def test_sizes_are_those_of_the_weights(size: int, folder: Path) -> None:
    """Nothing of a size that the files cannot hold is built."""
    raw = json.loads((folder / "config.json").read_text())
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
                "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings"):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(raw | {key: size}))
        started = time.perf_counter()
        if key != "max_position_embeddings" or size > 1 << 40:
            refused(folder, str(folder))
        assert time.perf_counter() - started < 10, key
    for fraction in (2.0, size, -1):
        parameters = raw["rope_parameters"] | {"partial_rotary_factor": fraction}
        (folder / "config.json").write_text(json.dumps(raw | {"rope_parameters": parameters}))
        refused(folder, "partial_rotary_factor", "between 0 and 1")


def test_a_table_of_positions_is_bounded(tmp_path: Path) -> None:
    """GPT-J computes its table of angles for every position it is said to have."""
    place = folders.save(tmp_path, folders.model("gptj"))
    folders.edit_config(place, n_positions=1 << 33)
    refused(place, "n_positions is 8589934592", "at most 16,777,216")


def test_unknown_rope_types_name_the_file_and_the_known(folder: Path) -> None:
    for kind in ("yarrn", ["yarn"], "x" * 1000):
        folders.edit_config(folder, rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 2.0})
        refused(folder, "config.json", "rope_type", "default, dynamic, linear, llama3", "yarn")


def test_the_whole_configuration_is_the_models_identity(folder: Path) -> None:
    """Edits that change losses and no weight: each is another model to a run that goes on."""
    seen = {HfCheckpoint.open(str(folder), {}).description.details["config_sha256"]}
    for change in ({"rms_norm_eps": 0.5}, {"hidden_act": "relu"}, {"attention_bias": False, "x": 1}):
        folders.edit_config(folder, **change)
        seen.add(HfCheckpoint.open(str(folder), {}).description.details["config_sha256"])
    assert len(seen) == 4
    folders.edit_config(folder, _name_or_path="elsewhere", attn_implementation="sdpa")  # name places alone
    assert HfCheckpoint.open(str(folder), {}).description.details["config_sha256"] in seen


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_with_a_wrappers_prefix(prefix: str, folder: Path) -> None:
    """As torch.compile and data parallel leave them in a state dict."""
    windows = [Window(0, 20, 1)]
    before = folders.scored(folder, windows)
    state = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(before, folders.scored(folder, windows))
    inner = {name.replace("model.layers", "model._orig_mod.layers"): t for name, t in state.items()}
    save_file(inner, folder / "model.safetensors", metadata={"format": "pt"})  # a compiled part
    np.testing.assert_array_equal(before, folders.scored(folder, windows))
    del state[prefix + "model.norm.weight"]
    state["other.weight"] = torch.ones(32)  # not all of them: another model's names
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "missing tensor")


def test_what_a_class_leaves_out_is_listed(folder: Path) -> None:
    """Buffers of older releases, and the tensors that the class itself names as ignored."""
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    warnings = HfCheckpoint.open(str(folder), {}).description.warnings
    assert any(
        "LlamaForCausalLM leaves out: model.layers.0.self_attn.rotary_emb.inv_freq" in w for w in warnings
    )


def test_neither_gguf_nor_accelerate_is_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kerple_eval.models.hf import opened as module  # noqa: PLC0415

    placing = transformers.integrations.accelerate
    monkeypatch.setattr(placing, "is_accelerate_available", lambda *_: False)
    found = module.find_spec
    absent = ("gguf", "accelerate")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in absent else found(name))
    HfCheckpoint.open(str(folder), {}).load(CPU, torch.float32)
    assert not placing.is_accelerate_available()
    (folder / "x.gguf").write_bytes(b"GGUF")
    refused(folder, "needs gguf", gguf="x.gguf")


def test_memory_of_eager_attention_grows_with_the_square(tmp_path: Path) -> None:
    place = folders.save(tmp_path, folders.model("bloom"))
    found = HfCheckpoint.open(str(place), {}).description
    plain = HfCheckpoint.open(str(folders.save(tmp_path / "llama", folders.model("llama"))), {}).description
    assert (found.eager, plain.eager) == (True, False)
    grown = window_bytes(found, 16384, 4) - window_bytes(found, 8192, 4)
    assert grown > 3 * 4 * 4 * (16384**2 - 8192**2)  # scores of four heads in float32, three of them
    assert any("rounds ALiBi's bias" in warning for warning in found.warnings)
    place = folders.save(tmp_path / "falcon", folders.model("falcon-alibi"))
    warnings = HfCheckpoint.open(str(place), {}).description.warnings
    assert any("ALiBi's bias in bfloat16" in warning for warning in warnings)


def test_attributes_that_each_layer_has_of_its_own(tmp_path: Path) -> None:
    """Gemma 4: asking its configuration for one head size of all layers is an error of its own class."""
    sizes = folders.sized(head_dim=8, num_kv_shared_layers=0)
    place = folders.save(tmp_path, folders.model(transformers.Gemma4UnifiedTextConfig(**sizes)))
    found = HfCheckpoint.open(str(place), {}).description
    assert (found.shape.layers, found.shape.heads) == (2, 4)
    assert found.shape.head_dim >= 8


class _Matrices(TorchDispatchMode):
    """Counts how many matrices [n, n] of floats the largest tensor of a forward pass holds."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.most = n, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, torch.Tensor) and item.shape[-2:] == (self.n, self.n):
                self.most = max(self.most, item.numel() // self.n**2 if item.is_floating_point() else 0)
        return out


@pytest.mark.parametrize("name", [*folders.MODELS, "rwkv", "xglm", "gpt-neo"])
def test_who_forms_whole_matrices_is_what_is_seen(name: str) -> None:
    sizes = {"vocab_size": folders.V, "hidden_size": 32}
    others = {
        "rwkv": lambda: transformers.RwkvConfig(num_hidden_layers=2, attention_hidden_size=32, **sizes),
        "xglm": lambda: transformers.XGLMConfig(
            vocab_size=folders.V, d_model=32, num_layers=2, attention_heads=4, ffn_dim=48
        ),
        "gpt-neo": lambda: transformers.GPTNeoConfig(
            num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], **sizes
        ),
    }
    made = folders.model(others[name]() if name in others else name)
    with torch.no_grad(), _Matrices(29) as seen:
        made(input_ids=torch.arange(29)[None], use_cache=False)
    assert attends_eagerly(made) == (seen.most >= 4), seen.most


@pytest.mark.parametrize("name", ["Pegasus", "RoFormer"])
def test_computed_positions_end_where_their_table_does(name: str, tmp_path: Path) -> None:
    """Neither learned, but looked up: a longer window is an error of the index (on CUDA, of the card)."""
    sizes: dict[str, Any] = {"vocab_size": folders.V, "max_position_embeddings": 40, "is_decoder": True}
    if name == "Pegasus":
        sizes |= {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "decoder_attention_heads": 4,
                  "encoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48}  # fmt: skip
    else:
        sizes |= {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        }
    made = folders.model(getattr(transformers, f"{name}Config")(**sizes))
    ids = torch.zeros(1, 41, dtype=torch.long)
    made(input_ids=ids[:, :40], use_cache=False)
    with pytest.raises((IndexError, RuntimeError)):
        made(input_ids=ids, use_cache=False)
    place = folders.save(tmp_path, made)
    assert HfCheckpoint.open(str(place), {}).description.max_length == 40
