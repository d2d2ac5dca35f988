"""GGUF files: written by the ``gguf`` package from a model of transformers, read back through ``hf:``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.types import UserError, Window
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import V, transformers

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def permuted(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rotated pairs side by side, as llama.cpp has them (convert_hf_to_gguf.py, LlamaModel.permute)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(path: Path, made: Any, *, leave_out: str = "", more: Any = None, theta: float = 500.0) -> Path:
    """``made`` (Llama) as llama.cpp's converter writes it; matrices as Q8_0 would not be exact, so F32."""
    config = made.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<|endoftext|>", "<s>", *(chr(33 + n) for n in range(V - 3)), '!"']
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (V - 2))
    writer.add_token_merges(['! "'])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(True)
    if more is not None:
        more(writer)
    for name, tensor in made.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        weight = tensor.float().numpy()
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            if part.endswith(("q_proj", "k_proj")):
                weight = permuted(weight, HEADS if part.endswith("q_proj") else KV_HEADS)
            new = f"blk.{layer}.{NAMES[part]}.{kind}"
        else:
            new = f"{NAMES[stem]}.{kind}"
        if new != leave_out:
            writer.add_tensor(new, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def made() -> Any:
    rope = {"rope_theta": 500.0, "rope_type": "default"}
    return folders.model(transformers.LlamaConfig(**folders.sized(rope_parameters=rope)))


@pytest.fixture
def path(made: Any, tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", made)


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        HfCheckpoint.open(str(path), {})
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), caught.value


def test_losses(path: Path, made: Any) -> None:
    windows = [Window(0, 20, 1), Window(2, 60, 3)]
    for window, losses in zip(windows, folders.scored(path.parent, windows, gguf=path.name), strict=True):
        for document, row in zip(folders.documents(), losses, strict=True):
            np.testing.assert_allclose(row, folders.expected(made, document, window), rtol=0, atol=1e-5)


def test_description_and_the_ways_to_name_it(path: Path, made: Any) -> None:
    for text in (f"hf:{path.parent},gguf=tiny.gguf", f"hf:{path}", f"hf:{path.parent}", str(path.parent)):
        checkpoint = open_model(parse_model(text))
        found = checkpoint.description
        assert (found.scheme, found.train_length, found.stored_dtypes) == ("rope", 32, ("F32",))
        assert found.details["weights"] == "gguf"
        assert found.details["rope_parameters"]["rope_theta"] == 500.0
        assert found.parameters == sum(p.numel() for p in made.parameters())
        tokenizer = checkpoint.tokenizer
        assert tokenizer is not None
        assert (tokenizer.bos, tokenizer.end_of_document, bool(tokenizer.before)) == (1, 0, True)
        encoding = tokenizer.encode('AB!"')
        assert encoding.ids.tolist() == [34, 35, V - 1]
        assert encoding.byte_counts is not None
        assert encoding.byte_counts.tolist() == [1, 1, 2]


def test_an_extension(path: Path, made: Any) -> None:
    checkpoint = HfCheckpoint.open(str(path), {"rope": "yarn", "factor": "4"})
    assert checkpoint.description.scheme == "rope-yarn"
    parameters = checkpoint.description.details["rope_parameters"]
    assert (parameters["rope_theta"], parameters["original_max_position_embeddings"]) == (500.0, 32)


def test_scaling_that_transformers_leaves_out(made: Any, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.gguf", made, more=lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, "f4"))
    )
    refused(path, "scaled rotary frequencies", "rope=llama3")

    def linear(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    path = write(tmp_path / "b.gguf", made, more=linear)
    refused(path, "scaled (linear, factor 4.0)", "rope=linear,factor=4.0")
    HfCheckpoint.open(str(path), {"rope": "linear", "factor": "4.0"})


def test_broken_files(path: Path, made: Any) -> None:
    raw = path.read_bytes()
    for keep in (0, 3, 20, 400, len(raw) // 2, len(raw) - 40):
        path.write_bytes(raw[:keep])
        refused(path, str(path), "truncated")
    for at in (8, 16):  # counts of tensors and of metadata
        path.write_bytes(raw[:at] + b"\xff" * 7 + raw[at + 7 :])
        refused(path, str(path))
    path.write_bytes(b"MUGG" + raw[4:])
    refused(path, str(path))
    write(path, made, leave_out="blk.1.ffn_up.weight")
    refused(path, str(path), "missing tensor blk.1.ffn_up.weight")


def test_no_such_file(path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; \.gguf files there: tiny\.gguf"):
        HfCheckpoint.open(str(path.parent), {"gguf": "tinny.gguf"})
    with pytest.raises(UserError, match="leads out"):
        HfCheckpoint.open(str(path.parent), {"gguf": "../x.gguf"})


def test_mutated_files_never_end_in_a_traceback(path: Path, tmp_path: Path) -> None:
    raw, generator = path.read_bytes(), np.random.default_rng(1)
    place = tmp_path / "mutated.gguf"
    refusals = 0
    for _ in range(60):
        changed = bytearray(raw)
        for _ in range(3):
            changed[int(generator.integers(6000))] = int(generator.integers(256))
        place.write_bytes(changed)
        try:
            HfCheckpoint.open(str(place), {}).load(torch.device("cpu"), torch.float32)
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 20
