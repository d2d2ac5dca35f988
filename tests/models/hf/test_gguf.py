"""GGUF files: written by the ``gguf`` package from a model of transformers, read back through ``hf:``."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.hf import gguf_claims as reading
from kerple_eval.models.hf import kept
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.gguf_reader import quick_reader
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.types import UserError, Window
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import V, transformers

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS = 4, 2
ROPE = {"rope_theta": 500.0, "rope_type": "default"}
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


def write(
    path: Path,
    made: Any,
    *,
    leave_out: str = "",
    more: Any = None,
    theta: float = 500.0,
    only: Sequence[str] | None = None,
) -> Path:
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
        if only is not None and name not in only:
            continue
        stem, kind = name.rsplit(".", 1)
        weight = tensor.float().numpy()
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            if part.endswith(("q_proj", "k_proj")):
                weight = weight if kind == "weight" else weight[:, None]
                weight = permuted(weight, HEADS if part.endswith("q_proj") else KV_HEADS)
            weight = weight if kind == "weight" else weight.reshape(-1)
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
    return folders.model(transformers.LlamaConfig(**folders.sized(rope_parameters=ROPE)))


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


def test_frequencies_in_the_file_are_compared_with_what_is_given(tmp_path: Path) -> None:
    """As llama.cpp writes Llama 3's (convert_hf_to_gguf.py, ``generate_extra_tensors``): literally."""
    factor, low, high, original, d = 8.0, 1.0, 4.0, 16, 8
    divided = []
    for frequency in 1.0 / 500.0 ** (np.arange(0, d, 2) / d):
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            divided.append(1.0)
        elif wavelength > original / low:
            divided.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divided.append(1 / ((1 - smooth) / factor + smooth))
    rope = ROPE | {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    made = folders.model(transformers.LlamaConfig(**folders.sized(rope_parameters=rope)))
    table = np.array(divided, "f4")
    path = write(tmp_path / "a.gguf", made, more=lambda w: w.add_tensor("rope_freqs.weight", table))
    refused(path, "rope=llama3,factor=8,original=N")
    given = {"rope": "llama3", "factor": "8", "original": "16", "gguf": path.name}
    window = Window(0, 40, 1)
    for document, row in zip(
        folders.documents(), folders.scored(tmp_path, [window], **given)[0], strict=True
    ):
        np.testing.assert_allclose(row, folders.expected(made, document, window), rtol=0, atol=1e-5)
    for changes in ({"factor": "4"}, {"original": "32"}):
        with pytest.raises(UserError, match=r"is not the scaling that its rope_freqs\.weight holds"):
            HfCheckpoint.open(str(tmp_path), given | changes)
    other = HfCheckpoint.open(str(path), {"rope": "linear", "factor": "2"}).description.warnings
    assert "linear replaces the frequencies that the file holds" in other


def test_the_advice_for_scaling_is_whole_and_possible(made: Any, tmp_path: Path) -> None:
    def scaled(kind: Any, original: int | None) -> Any:
        def more(writer: Any) -> None:
            writer.add_rope_scaling_type(kind)
            writer.add_rope_scaling_factor(4.0)
            if original is not None:
                writer.add_rope_scaling_orig_ctx_len(original)

        return more

    path = write(tmp_path / "a.gguf", made, more=scaled(gguf.RopeScalingType.YARN, 16))
    refused(path, "give rope=yarn,factor=4.0,original=16")
    HfCheckpoint.open(str(path), {"rope": "yarn", "factor": "4.0", "original": "16"})
    for kind in ("yarn", "dynamic", "llama3"):  # the length of the configuration is 32
        with pytest.raises(
            UserError, match=f"original_context_length = 16, and {kind} would go by 32 tokens"
        ):
            HfCheckpoint.open(str(path), {"rope": kind, "factor": "4.0"})
    other = HfCheckpoint.open(str(path), {"rope": "yarn", "factor": "4.0", "original": "8"}).description
    assert other.details["rope_parameters"]["original_max_position_embeddings"] == 8
    assert "yarn of 8 tokens replaces the file's own (16 tokens)" in other.warnings
    HfCheckpoint.open(str(path), {"rope": "linear", "factor": "4.0"})
    path = write(tmp_path / "b.gguf", made, more=scaled(gguf.RopeScalingType.LONGROPE, 16))
    refused(path, "longrope", "no rope= option can state", "safetensors")


STATED = [  # key and value, and what a Llama of transformers makes of it
    ("llama.rope.freq_base", 321.0, "rope_theta"),
    ("llama.attention.sliding_window", 8, None),
    ("llama.attn_logit_softcapping", 30.0, None),
    ("llama.attention.scale", 0.25, None),
    ("llama.attention.max_alibi_bias", 8.0, None),
    ("llama.attention.causal", False, None),
    ("llama.attention.clamp_kqv", 3.0, None),
    ("llama.rope.dimension_sections", 5, None),
    ("llama.attention.of_tomorrow", 1, None),
    ("llama.attention.causal", True, "-"),
    ("llama.attention.max_alibi_bias", 0.0, "-"),
    ("llama.attention.key_length", 8, "-"),
]


@pytest.mark.parametrize(("key", "value", "result"), STATED, ids=str)
def test_what_a_file_states_of_positions_and_attention(
    key: str, value: Any, result: str | None, made: Any, tmp_path: Path
) -> None:
    """Claimed by the configuration, or refused by name."""
    add = {bool: "add_bool", int: "add_uint32", float: "add_float32"}[type(value)]
    known = {"llama.rope.freq_base", "llama.rope.dimension_count"}

    def more(writer: Any) -> None:
        if key in known:
            del writer.kv_data[0][key]
        getattr(writer, add)(key, value)

    path = write(tmp_path / "a.gguf", made, more=more)
    if result is None:
        refused(path, key, "does not have")
        return
    parameters = HfCheckpoint.open(str(path), {}).description.details["rope_parameters"]
    assert parameters["rope_theta"] == (321.0 if result == "rope_theta" else 500.0)


FAMILIES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # architecture -> configuration class, keys that its file states, what the model must have
    "starcoder2": (
        transformers.Starcoder2Config, {"rope.freq_base": 999999.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 999999.0}},
    ),
    "phi3": (
        transformers.Phi3Config,
        {"rope.freq_base": 123.0, "attention.sliding_window": 9, "rope.dimension_count": 4},
        {"sliding_window": 9, "partial_rotary_factor": 0.5},
    ),
    "gemma2": (
        transformers.Gemma2Config,
        {"attn_logit_softcapping": 7.0, "final_logit_softcapping": 3.0, "attention.key_length": 8,
         "attention.value_length": 8, "attention.sliding_window": 9},
        {"attn_logit_softcapping": 7.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8,
         "sliding_window": 9, "head_dim": 8},
    ),
    "stablelm": (transformers.StableLmConfig, {"rope.dimension_count": 4}, {"partial_rotary_factor": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_other_families_state(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration before and after, from a file's keys alone."""
    config_class, stated, expected = FAMILIES[family]
    raw = json.loads(config_class(**folders.sized()).to_json_string(use_diff=False))
    keys = {"general.architecture": family} | {f"{family}.{key}": value for key, value in stated.items()}
    monkeypatch.setattr(reading, "metadata", lambda path: keys)
    claimed = reading.claim(raw, Path("x.gguf"), {})
    for name, value in expected.items():
        if name == "partial_rotary_factor":
            assert claimed["rope_parameters"][name] == value
        elif isinstance(value, dict):
            assert value.items() <= claimed[name].items()
        else:
            assert claimed[name] == value, name
    assert raw != claimed


def test_biases_of_a_llama(tmp_path: Path) -> None:
    """Tensors that a Llama has only where its configuration says so."""
    config = transformers.LlamaConfig(**folders.sized(attention_bias=True, rope_parameters=ROPE))
    made = folders.model(config)
    path = write(tmp_path / "a.gguf", made)
    window = Window(0, 20, 1)
    found = folders.scored(path.parent, [window], gguf=path.name)[0]
    for document, row in zip(folders.documents(), found, strict=True):
        np.testing.assert_allclose(row, folders.expected(made, document, window), rtol=0, atol=1e-5)


def test_tensors_that_no_one_claims(made: Any, tmp_path: Path) -> None:
    def fewer(writer: Any) -> None:
        del writer.kv_data[0]["llama.block_count"]
        writer.add_block_count(1)

    path = write(tmp_path / "a.gguf", made, more=fewer)
    refused(path, "not claimed by the model: blk.1.attn_k.weight")
    path = write(
        tmp_path / "b.gguf", made, more=lambda w: w.add_tensor("blk.0.more.weight", np.ones(4, "f4"))
    )
    refused(path, "not claimed by the model: blk.0.more.weight")


@pytest.mark.parametrize("size", [1 << 20, 1 << 31])
def test_sizes_are_those_of_the_tensors(size: int, made: Any, tmp_path: Path) -> None:
    for key in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count",
                "attention.head_count_kv", "rope.dimension_count", "vocab_size"):  # fmt: skip

        def huge(writer: Any, key: str = f"llama.{key}") -> None:
            del writer.kv_data[0][key]
            writer.add_uint32(key, size)

        path = write(tmp_path / f"{key}.gguf", made, more=huge)
        started = time.perf_counter()
        refused(path, str(path))
        assert time.perf_counter() - started < 10, key


def test_a_file_in_parts(made: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As llama-gguf-split leaves them: the keys in the first, each with its own tensors."""
    folder = tmp_path / "parts"
    folder.mkdir()
    names = list(made.state_dict())
    third = -(-len(names) // 3)
    for number in range(3):
        wanted = names[number * third : (number + 1) * third]
        write(folder / f"m-{number + 1:05d}-of-00003.gguf", made, only=wanted)
    windows = [Window(0, 20, 1)]
    whole = folders.scored(path.parent, windows, gguf=path.name)
    scratch = tmp_path / "scratch"
    (left := scratch / "kerple-eval-gguf-killed0").mkdir(parents=True)
    (left / ".lock").touch()  # whose process was killed
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for name in ("m-00001-of-00003.gguf", "m-00002-of-00003.gguf"):
        np.testing.assert_array_equal(folders.scored(folder, windows, gguf=name), whole)
    assert open_model(parse_model(str(folder))).description.parameters > 0
    assert not left.exists()
    assert len(list(scratch.iterdir())) == 1  # both names are of the same parts
    (folder / "m-00002-of-00003.gguf").unlink()
    refused(folder / "m-00001-of-00003.gguf", "m-00002-of-00003.gguf: no such file", "3 parts")


def test_a_large_vocabulary_is_read_once(
    made: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kept by the header's hash: another path has it too, another header has not."""
    monkeypatch.setattr(kept, "PIECES", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = HfCheckpoint.open(str(path), {}).tokenizer
    assert capsys.readouterr().err.count(f"({V} pieces)") == 2  # configuration and tokeniser
    copy = Path(shutil.copy(path, tmp_path / "copy.gguf"))
    again = HfCheckpoint.open(str(copy), {}).tokenizer
    assert capsys.readouterr().err == ""
    assert first is not None
    assert again is not None
    assert (first.identity, first.bos, first.before) == (again.identity, again.bos, again.before)
    other = write(tmp_path / "other.gguf", made, theta=7.0)
    assert HfCheckpoint.open(str(other), {}).description.details["rope_parameters"]["rope_theta"] == 7.0
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 4


def test_the_quick_reader_reads_what_the_packages_own_does(made: Any, tmp_path: Path) -> None:
    """Numbers, lengths and tensors; texts in arrays alone are left empty."""

    def more(writer: Any) -> None:
        writer.add_token_scores([-float(n) / 3 for n in range(V)])
        writer.add_array("llama.flags", [True, False, True])
        writer.add_array("llama.counts", [1 << 20, -5])
        writer.add_array("llama.empty_list_of_one", [7])

    path = write(tmp_path / "a.gguf", made, more=more)
    own = gguf.GGUFReader(path)
    with quick_reader():
        quick = gguf.GGUFReader(path)
    assert type(quick) is not type(own)
    assert type(gguf.GGUFReader(path)) is type(own)
    assert list(quick.fields) == list(own.fields)
    for name, field in own.fields.items():
        values, found = ([f.parts[n].tolist() for n in f.data] for f in (field, quick.fields[name]))
        texts = field.types[0] == gguf.GGUFValueType.ARRAY and field.types[1] == gguf.GGUFValueType.STRING
        assert found == ([[]] * len(values) if texts else values), name
        assert quick.fields[name].types == field.types
    for one, other in zip(own.tensors, quick.tensors, strict=True):
        assert (one.name, one.data_offset) == (other.name, other.data_offset)
        np.testing.assert_array_equal(one.data, other.data)


def test_a_table_of_tensor_names_is_made_once_a_loading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes it for every module of the model."""
    made, own = [], gguf.get_tensor_name_map

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return own(*arguments)

    monkeypatch.setattr(gguf, "get_tensor_name_map", counted)
    HfCheckpoint.open(str(path), {}).load(torch.device("cpu"), torch.float32)
    assert len(made) == 2  # what it claims, what it loads
    assert gguf.get_tensor_name_map is counted


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
    for key in ("llama.block_count", "llama.embedding_length"):
        write(path, made, more=lambda writer, key=key: writer.kv_data[0].pop(key))
        refused(path, f"states no {key}")
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
