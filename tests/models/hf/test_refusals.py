"""Folders that are broken, hostile or not for us: one line each, before any weight is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kerple_eval.models.hf import opened as hf_module
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.opened import Opened
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.types import UserError
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import CPU, refused, transformers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("whole"), folders.model("llama"))


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("shards"), folders.model("llama"), max_shard_size="20KB")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def shards(in_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(in_shards, tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_good_folders_open(whole: Path, in_shards: Path) -> None:
    HfCheckpoint.open(str(whole), {})
    HfCheckpoint.open(str(in_shards), {})


# --- Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1], ids=str)
def test_truncated(keep: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep) if isinstance(keep, float) else int(keep)])
    refused(folder, str(path), "truncated or damaged")


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(name: str, folder: Path) -> None:
    rewrite(folder, lambda state: state.pop(name))
    refused(folder, "model.safetensors", "missing tensor", name)


def test_an_unclaimed_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}))
    refused(folder, "not claimed", "model.layers.0.self_attn.q_proj.bias")


def test_a_wrong_shape_is_named(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({"model.norm.weight": torch.zeros(31)}))
    refused(folder, "model.norm.weight", "[31]", "[32]")


def test_integers_are_refused(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({"model.norm.weight": torch.zeros(32, dtype=torch.int32)}))
    refused(folder, "model.norm.weight", "I32", "floating point")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "no weights", "model.safetensors", "gguf=FILE")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("../model.safetensors", "leads out"), ("/etc/model.safetensors", "leads out"),
        ("a/../../b.safetensors", "leads out"), ("..\\b.safetensors", "leads out"),
        ("C:\\b.safetensors", "leads out"), ("", "leads out"), ("config.json", "expected a .safetensors"),
        ("model-9.safetensors", "a shard is missing"), (7, "must be a file name"),
    ],
    ids=str,
)  # fmt: skip
def test_names_in_an_index(name: Any, part: str, shards: Path) -> None:
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    refused(shards, "model", part)


def test_an_index_and_its_shards_agree(shards: Path) -> None:
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.more.weight"] = index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    refused(shards, "missing tensor model.more.weight", "index")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\xff"])
def test_a_broken_index(content: str, shards: Path) -> None:
    (shards / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    refused(shards, "model.safetensors.index.json")


def test_a_missing_shard(shards: Path) -> None:
    path = sorted(shards.glob("model-*.safetensors"))[1]
    path.unlink()
    refused(shards, str(path), "a shard is missing")


# --- Code ----------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_hostile_pickle_leaves_no_trace(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Hostile(f"touch {mark}")}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin", "system")
    assert not mark.exists()


def remote(folder: Path, mark: Path) -> None:
    """A folder whose model class is its own, in a file that leaves a mark when it is run."""
    (folder / "own_tiny.py").write_text(
        f"open({str(mark)!r}, 'a').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own-tiny'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own_tiny.OwnConfig", "AutoModelForCausalLM": "own_tiny.OwnModel"}
    folders.edit_config(folder, auto_map=auto_map, model_type="own-tiny")


def test_remote_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    remote(folder, mark)
    refused(folder, "config.json", "auto_map", "Python code", "trust-remote-code=true")
    refused(folder, "auto_map", **{"trust-remote-code": "false"})
    folders.edit_config(folder, model_type="llama")  # transformers' own class, as without remote code there
    checkpoint = HfCheckpoint.open(str(folder), {})
    assert checkpoint.description.architecture == "LlamaForCausalLM"
    assert any("auto_map names code" in warning for warning in checkpoint.description.warnings)
    assert not mark.exists()


def test_remote_code_where_it_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "mark"
    remote(folder, mark)
    checkpoint = HfCheckpoint.open(str(folder), {"trust-remote-code": "true"})
    assert mark.exists()
    assert checkpoint.description.architecture == "OwnModel"
    assert any("code of the checkpoint was run" in warning for warning in checkpoint.description.warnings)
    checkpoint.load(CPU, torch.float32)


def test_kernels_named_as_attention_are_left_out(folder: Path) -> None:
    named = {"attn_implementation": "org/kernel", "_attn_implementation": "org/kernel"}
    folders.edit_config(folder, **named, transformers_weights="../other.safetensors", use_kernels=True)
    assert HfCheckpoint.open(str(folder), {}).description.details["attention"] == "sdpa"


# --- Configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "lama"}, ["model_type 'lama'", "did you mean 'llama'"]),
        ({"model_type": None}, ["model_type None"]),
        ({"model_type": ["llama"]}, ["model_type"]),
        ({"model_type": "vit"}, ["no causal language model of type vit"]),
        ({"hidden_size": "wide"}, ["not a valid llama configuration", "hidden_size"]),
        ({"hidden_size": 33}, ["config.json"]),
        ({"num_hidden_layers": 3}, ["missing tensor model.layers.2"]),
        ({"vocab_size": 96}, ["shape [97, 32], expected [96, 32]"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised (gptq)"]),
        ({"rope_parameters": {"rope_type": "yarrn", "rope_theta": 1e4, "factor": 2.0}}, ["yarrn"]),
    ],
    ids=str,
)  # fmt: skip
def test_configurations(changes: dict[str, Any], parts: list[str], folder: Path) -> None:
    folders.edit_config(folder, **changes)
    refused(folder, *parts)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 9000], ids=len)
def test_a_config_that_is_no_object(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json")


def test_an_encoder(tmp_path: Path) -> None:
    """Its losses would be those of a model that sees the answer; as a decoder it is one of ours."""
    sizes = folders.without_kv(max_position_embeddings=64)
    made = transformers.BertLMHeadModel(transformers.BertConfig(**sizes, is_decoder=True))
    place = folders.save(tmp_path, made)
    assert HfCheckpoint.open(str(place), {}).description.scheme == "learned"
    folders.edit_config(place, is_decoder=False)
    refused(place, "is_decoder is false", "later tokens")


def test_a_model_that_sees_later_tokens_is_found_out(folder: Path) -> None:
    """Where no setting says so, the loaded model is asked."""
    opened = Opened(str(folder), {})
    plain = opened.model_class.forward

    def leaky(self: Any, input_ids: Any, **options: Any) -> Any:
        return plain(self, input_ids.flip(1), **options)

    opened.model_class = type("Leaky", (opened.model_class,), {"forward": leaky})
    with pytest.raises(UserError, match="sees tokens after"):
        HfCheckpoint(opened).load(CPU, torch.float32)


@pytest.mark.parametrize(
    "change", [{"alibi": False}, {"qk_ln": True}, {"alibi_bias_max": 16}, {"prefix_lm": True}], ids=str
)
def test_mpt_settings_that_transformers_leaves_out(change: dict[str, Any], tmp_path: Path) -> None:
    place = folders.save(tmp_path, folders.model("mpt"))
    data = json.loads((place / "config.json").read_text())
    folders.edit_config(place, attn_config=data["attn_config"] | change)
    refused(place, next(iter(change)), "transformers")


def test_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    refused(folder, "holds an adapter", "beside a model")


def test_unknown_options(folder: Path) -> None:
    refused(folder, "unknown option of a Hugging Face checkpoint 'gguff'", "did you mean 'gguf'", gguff="x")
    refused(folder, "trust-remote-code=yes", **{"trust-remote-code": "yes"})


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_module, "find_spec", lambda name: None)
    refused(folder, "transformers", "pip install 'kerple-eval[hf]'")


# --- Recognition ---------------------------------------------------------------------------------


def test_recognised_by_its_contents(folder: Path, tmp_path: Path) -> None:
    assert HfCheckpoint.recognises(folder)
    assert not NativeCheckpoint.recognises(folder)
    assert isinstance(open_model(parse_model(str(folder))), HfCheckpoint)
    for content in ("{}", "[]", "not json", '{"format": "kerple-eval", "model_type": "llama"}'):
        (tmp_path / "config.json").write_text(content)
        assert not HfCheckpoint.recognises(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    assert HfCheckpoint.recognises(tmp_path)
    (tmp_path / "two.gguf").write_bytes(b"GGUF")
    assert not HfCheckpoint.recognises(tmp_path)


# --- Mutations -----------------------------------------------------------------------------------


def test_mutated_folders_never_end_in_a_traceback(whole: Path, in_shards: Path, tmp_path: Path) -> None:
    """200 folders with bytes of their headers and JSON files changed: they open, or one line says why not."""
    generator = np.random.default_rng(0)
    refusals = 0
    for number in range(200):
        source = whole if number % 2 else in_shards
        place = Path(shutil.copytree(source, tmp_path / str(number)))
        files = sorted(p for p in place.iterdir() if p.name != "generation_config.json")
        path = files[int(generator.integers(len(files)))]
        raw = bytearray(path.read_bytes())
        head = min(len(raw), 1500)
        for _ in range(int(generator.integers(1, 4))):
            at = int(generator.integers(head))
            kind = int(generator.integers(3))
            if kind == 0:
                raw[at] = int(generator.integers(256))
            elif kind == 1:
                del raw[at : at + int(generator.integers(1, 9))]
            else:
                raw[at:at] = generator.bytes(int(generator.integers(1, 5)))
        path.write_bytes(raw)
        try:
            HfCheckpoint.open(str(place), {})
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error)
        shutil.rmtree(place)
    assert refusals > 100


def test_a_base_of_frequencies_is_no_size(folder: Path) -> None:
    """5,000,000 written as a whole number, in a model with fewer weights."""
    rope = {"rope_type": "default", "rope_theta": 5_000_000}
    folders.edit_config(folder, rope_parameters=rope, rope_theta=5_000_000, rotary_emb_base=5_000_000)
    HfCheckpoint.open(str(folder), {})
    folders.edit_config(folder, rope_parameters=rope | {"rope_theta": 10**400})
    refused(folder, "config.json")
    folders.edit_config(folder, rope_parameters=rope, intermediate_size=5_000_000)
    refused(folder, "intermediate_size is 5000000; but the weight files hold")
