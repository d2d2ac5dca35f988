"""The native format: what is written is read back, and everything broken is named and refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from kerple_eval.data.tokenizer import JsonTokenizer
from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.types import UserError
from tests.helpers import oracles, tiny

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint: kerple-log, bytes, float32."""
    write_checkpoint(tmp_path / "ckpt", made(), seed=7, training={"note": "kept"})
    return tmp_path / "ckpt"


def made(**changes: Any) -> Any:
    scheme = changes.pop("scheme", "kerple-log")
    return tiny.decoder(tiny.config(scheme, vocab_size=256, **changes), dtype=torch.float32)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refused(folder: Path, *parts: str) -> None:
    """Opening it fails with one line that names each part."""
    with pytest.raises(UserError) as caught:
        NativeCheckpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_round_trip_to_the_bit(folder: Path) -> None:
    checkpoint = NativeCheckpoint(folder)
    assert checkpoint.config == tiny.config("kerple-log", vocab_size=256)
    again, written = checkpoint.decoder().state_dict(), made().state_dict()
    assert set(again) == set(written)
    for name, tensor in written.items():
        assert again[name].dtype == torch.float32
        assert torch.equal(again[name], tensor), name
    assert checkpoint.data["training"] == {"note": "kept"}
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.identity == "bytes"


def test_the_loaded_model_computes_the_formula(folder: Path) -> None:
    tokens = tiny.tokens(15, 256)
    model = NativeCheckpoint(folder).load(CPU, torch.float64)
    with torch.no_grad():
        (logits,) = model.logits(torch.from_numpy(tokens)[None], 15)
    expected = oracles.decoder_logits(
        load_file(folder / "model.safetensors"), tokens.tolist(), layers=2, heads=3, scheme="kerple-log"
    )
    np.testing.assert_allclose(logits[0].numpy(), expected, rtol=0, atol=1e-11)


def test_description(folder: Path) -> None:
    description = NativeCheckpoint(folder).description
    written = (folder / "model.safetensors").read_bytes()
    assert description.weights_sha256 == hashlib.sha256(written).hexdigest()
    assert description.parameters == sum(p.numel() for p in made().parameters())
    assert (description.format, description.scheme, description.vocab_size) == ("native", "kerple-log", 256)
    assert (description.train_length, description.seed, description.max_length) == (8, 7, None)
    assert description.stored_dtypes == ("F32",)


def test_readable_with_plain_safetensors(folder: Path) -> None:
    """By the library, and by hand: 8 bytes of header length, JSON, then the raw numbers."""
    expected = {name: x.numpy() for name, x in made().state_dict().items()}
    raw = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert set(header) == set(load_file(folder / "model.safetensors")) == set(expected)
    for name, part in header.items():
        first, last = (8 + size + offset for offset in part["data_offsets"])
        assert part["dtype"] == "F32"
        found = np.frombuffer(raw[first:last], dtype="<f4").reshape(part["shape"])
        np.testing.assert_array_equal(found, expected[name])
        np.testing.assert_array_equal(load_file(folder / "model.safetensors")[name], expected[name])


def test_stored_in_float16(tmp_path: Path) -> None:
    """Weights are rounded to half; the scheme's parameters are not."""
    write_checkpoint(tmp_path, made(), seed=0, dtype=torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    checkpoint = NativeCheckpoint(tmp_path)
    again = checkpoint.decoder().state_dict()
    for name, tensor in made().state_dict().items():
        wide = tensor.numpy()
        kept = wide if name.startswith("scheme.") else wide.astype(np.float16)
        assert stored[name].dtype == kept.dtype, name
        np.testing.assert_array_equal(stored[name], kept)
        np.testing.assert_array_equal(again[name].numpy(), kept.astype(np.float32))
    assert checkpoint.description.stored_dtypes == ("F16", "F32")


def test_a_float64_checkpoint_is_not_narrowed(folder: Path) -> None:
    wide = {name: x.astype(np.float64) + 1e-12 for name, x in load_file(folder / "model.safetensors").items()}
    tiny.rewrite(folder, {name: torch.from_numpy(x) for name, x in wide.items()})
    again = NativeCheckpoint(folder).decoder().state_dict()
    np.testing.assert_array_equal(again["layers.1.mlp_in.weight"].numpy(), wide["layers.1.mlp_in.weight"])


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, made(tie_embeddings=True), seed=None)
    stored = load_file(tmp_path / "model.safetensors")
    assert "head.weight" not in stored
    checkpoint = NativeCheckpoint(tmp_path)
    again = checkpoint.decoder()
    assert again.head.weight is again.embedding.weight
    np.testing.assert_array_equal(again.head.weight.detach().numpy(), stored["embedding.weight"])
    assert checkpoint.description.parameters == sum(x.size for x in stored.values())
    assert checkpoint.description.seed is None


def test_parameters_outside_their_intervals_are_projected_and_counted(folder: Path) -> None:
    tensors = {name: torch.from_numpy(x) for name, x in load_file(folder / "model.safetensors").items()}
    tensors["scheme.r1"] = torch.tensor([0.001, 0.5, -1.0])
    tiny.rewrite(folder, tensors)
    checkpoint = NativeCheckpoint(folder)
    again = checkpoint.decoder()
    (warning,) = checkpoint.description.warnings
    assert warning.startswith("2 values of scheme.r1")
    assert checkpoint.scheme_parameters()["r1"] == again.scheme.r1.tolist()
    assert again.scheme.r1.tolist() == pytest.approx([0.01, 0.5, 0.01])


def test_recognised_by_its_contents(folder: Path, tmp_path: Path) -> None:
    assert NativeCheckpoint.recognises(folder)
    assert not NativeCheckpoint.recognises(tmp_path / "nowhere")
    for content in ("{}", "[]", "not json", '{"format": "other"}'):
        (tmp_path / "config.json").write_text(content)
        assert not NativeCheckpoint.recognises(tmp_path)


def test_open_by_the_catalogue(folder: Path, tmp_path: Path) -> None:
    cls = CHECKPOINT_FORMATS.load("native")
    assert cls.open(str(folder), {}).config.scheme == "kerple-log"
    with pytest.raises(UserError, match="no such folder"):
        cls.open(str(tmp_path / "nowhere"), {})
    with pytest.raises(UserError, match="unknown option of a native checkpoint 'bits'"):
        cls.open(str(folder), {"bits": "8"})


# --- Broken weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1], ids=str)
def test_truncated_weights(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep) if isinstance(keep, float) else keep])
    refused(folder, str(path), "truncated or damaged")


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04\x95pickle" * 20)
    refused(folder, "model.safetensors", "truncated or damaged")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    refused(folder, str(folder / name), "leads out of")


def test_a_pipe_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(folder, str(folder / "config.json"), "not a regular file")


def test_no_weights_and_no_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "no model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, str(folder), "no config.json")


@pytest.mark.parametrize(
    "name", ["embedding.weight", "layers.1.attention.qkv.bias", "scheme.r2", "head.weight"]
)
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    refused(folder, str(folder / "model.safetensors"), "missing tensor", name)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.2.mlp_in.weight"] = tensors["layers.1.mlp_in.weight"]
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "model.safetensors", "not claimed", "layers.2.mlp_in.weight")


@pytest.mark.parametrize("name", ["layers.0.mlp_out.weight", "scheme.r1", "norm.bias"])
def test_a_wrong_shape_is_named(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    right = list(tensors[name].shape)
    tensors[name] = np.ascontiguousarray(np.concatenate([tensors[name], tensors[name]]))
    save_file(tensors, folder / "model.safetensors")
    refused(
        folder, "model.safetensors", name, f"[{', '.join(map(str, [2 * right[0], *right[1:]]))}]", str(right)
    )


def test_a_transposed_matrix_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.mlp_in.weight"] = np.ascontiguousarray(tensors["layers.0.mlp_in.weight"].T)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "layers.0.mlp_in.weight", "[12, 20]", "[20, 12]")


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_integer_tensors_are_refused(folder: Path, dtype: type[np.generic]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = tensors["norm.weight"].astype(dtype)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "model.safetensors", "norm.weight", "floating point")


def test_damaged_weight_bytes_are_refused(folder: Path) -> None:
    """One flipped bit in a number: the header is whole, so only the checksum sees it."""
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    refused(folder, str(path), hashlib.sha256(raw).hexdigest(), "damaged")


def test_another_models_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", made(scheme="kerple-power"), seed=7)
    (tmp_path / "other" / "model.safetensors").rename(folder / "model.safetensors")
    refused(folder, "model.safetensors", "another model's")


# --- Broken configuration ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", "256"), ("vocab_size", 256.0), ("vocab_size", True), ("vocab_size", None),
        ("layers", [2]), ("layers", 0), ("layers", -1), ("width", 12.5), ("heads", "3"), ("heads", 5),
        ("mlp_width", {}), ("train_length", None), ("train_length", 0), ("scheme", 3), ("scheme", ["alibi"]),
        ("scheme", "kerple-logg"), ("scheme_options", []), ("scheme_options", "base=3"),
        ("scheme_options", {"base": 3}), ("norm_epsilon", "1e-5"), ("norm_epsilon", False),
        ("norm_epsilon", -1e-5), ("norm_epsilon", float("nan")), ("norm_epsilon", float("inf")),
        ("tie_embeddings", 0), ("tie_embeddings", "no"), ("activation", "gelu_tanh"), ("activation", 1),
        ("norm", "layer"), ("norm", None), ("parallel_residual", "yes"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_file_and_key(folder: Path, key: str, value: Any) -> None:
    edit(folder, lambda data: data["model"].update({key: value}))
    named = {"scheme_options": "base" if isinstance(value, dict) else "scheme_options"}.get(key, key)
    refused(folder, str(folder / "config.json"), named)


REQUIRED = ("vocab_size", "layers", "width", "heads", "mlp_width", "train_length", "scheme")


@pytest.mark.parametrize("key", [k for k in tiny.config().to_json() if k not in REQUIRED])
def test_a_key_with_a_default_may_be_absent(folder: Path, key: str) -> None:
    edit(folder, lambda data: data["model"].pop(key))
    assert NativeCheckpoint(folder).config == tiny.config("kerple-log", vocab_size=256)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    edit(folder, lambda data: data["model"].pop(key))
    refused(folder, str(folder / "config.json"), f"model.{key} is missing")


def test_an_unknown_key_is_named_with_the_one_meant(folder: Path) -> None:
    edit(folder, lambda data: data["model"].update({"layer": 2}))
    refused(folder, str(folder / "config.json"), "'layer'", "did you mean 'layers'")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"format": "other"}, ['"format" must be']),
        ({"version": 2}, ["version 2"]),
        ({"version": None}, ["version None"]),
        ({"tokenizer": "words"}, ["tokenizer", "words"]),
        ({"tokenizer": 7}, ["tokenizer", "7"]),
        ({"seed": "seven"}, ["seed", "seven"]),
        ({"seed": True}, ["seed"]),
        ({"seed": 2**63}, ["seed", "64 bits"]),
        ({"weights_sha256": None}, ["weights_sha256"]),
        ({"weights_sha256": 7}, ["weights_sha256", "7"]),
        ({"model": None}, ["model"]),
        ({"model": [1]}, ["model", "list"]),
    ],
    ids=str,
)
def test_wrong_outer_keys(folder: Path, change: dict[str, Any], parts: list[str]) -> None:
    edit(folder, lambda data: data.update(change))
    refused(folder, str(folder / "config.json"), *parts)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'"format"'], ids=str)
def test_a_config_that_is_no_object(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, str(folder / "config.json"))


# --- Tokenisers ----------------------------------------------------------------------------------


SIZES = (2**20, 2**30 + 2, 2**53, 2**63, 2**64, 2**70, 10**39)


def test_sizes_are_bounded_by_the_weights(tmp_path: Path) -> None:
    """Refused in one line, at once and in little memory, whatever number a configuration names."""
    schemes = {
        "kerple-log": {},
        "t5": {"buckets": 32, "max_distance": 128},
        "learned": {"positions": 256},
        "cope": {"positions": 8},
        "fire": {"units": 32},
        "dape": {"units": 32},
        "dape-v2": {"units": 32, "columns": 3},
        "path": {"units": 32, "columns": 3},
        "sandwich": {"dims": 128},
    }
    began = time.monotonic()
    for scheme, options in schemes.items():
        folder = tmp_path / scheme
        write_checkpoint(folder, made(scheme=scheme, scheme_options=options), seed=1)
        original = (folder / "config.json").read_text()
        keys = ["vocab_size", "layers", "width", "heads", "mlp_width"] if scheme == "kerple-log" else []
        for size in SIZES:
            for key in keys:
                edit(folder, lambda data, key=key, size=size: data["model"].update({key: size}))
                refused(folder)
                (folder / "config.json").write_text(original)
            for option in options.keys() - {"max_distance"}:
                for value in (size, str(size), size + 1):
                    changed = {
                        **options,
                        option: value,
                        **({"max_distance": 2**53} if scheme == "t5" else {}),
                    }
                    edit(folder, lambda data, changed=changed: data["model"].update(scheme_options=changed))
                    refused(folder)
                    (folder / "config.json").write_text(original)
        NativeCheckpoint(folder)
        if scheme != "learned":
            edit(folder, lambda data: data["model"].update(train_length=2**70))
            refused(
                folder, "config.json: train_length must be at most 1,000,000,000, got 1180591620717411303424"
            )
    assert time.monotonic() - began < 30


def test_a_long_value_is_cut_in_the_message(folder: Path) -> None:
    for options in ({"scheme": "t5", "scheme_options": {"buckets": "a" * 5000}}, {"layers": "a" * 5000}):
        edit(folder, lambda data, options=options: data["model"].update(options))
        with pytest.raises(UserError) as caught:
            NativeCheckpoint(folder)
        assert "aaa..." in str(caught.value)
        assert len(str(caught.value)) < 400


def test_more_layers_than_the_weights_have(folder: Path) -> None:
    edit(folder, lambda data: data["model"].update(layers=2**20))
    refused(folder, "config.json: model.layers is 1048576, the weights have 2")


def test_a_tokeniser_bigger_than_the_vocabulary(tmp_path: Path) -> None:
    small = tiny.decoder(tiny.config(vocab_size=255), dtype=torch.float32)
    write_checkpoint(tmp_path, small, seed=None)
    refused(tmp_path, str(tmp_path / "config.json"), "256", "255")


def words(folder: Path, count: int) -> JsonTokenizer:
    vocabulary = {f"w{n}": n for n in range(count)}
    path = folder / f"{count}-words.json"
    path.write_text(Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).to_str())
    return JsonTokenizer(path)


def test_a_checkpoint_with_its_own_tokeniser(tmp_path: Path) -> None:
    small = tiny.decoder(tiny.config(vocab_size=11), dtype=torch.float32)
    write_checkpoint(tmp_path / "fits", small, seed=None, tokenizer=words(tmp_path, 11))
    tokenizer = NativeCheckpoint(tmp_path / "fits").tokenizer
    assert isinstance(tokenizer, JsonTokenizer)
    assert tokenizer.vocab_size == 11
    write_checkpoint(tmp_path / "not", small, seed=None, tokenizer=words(tmp_path, 12))
    refused(tmp_path / "not", "config.json", "12", "11")


def test_a_checkpoint_without_a_tokeniser(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny.decoder(tiny.config(), dtype=torch.float32), seed=None, tokenizer=None)
    assert NativeCheckpoint(tmp_path).tokenizer is None
    edit(tmp_path, lambda data: data.pop("tokenizer"))
    refused(tmp_path, str(tmp_path / "config.json"), "tokenizer")


def test_a_missing_or_broken_tokeniser_is_named(tmp_path: Path) -> None:
    small = tiny.decoder(tiny.config(vocab_size=11), dtype=torch.float32)
    write_checkpoint(tmp_path, small, seed=None, tokenizer=words(tmp_path, 11))
    (tmp_path / "tokenizer.json").write_text("{")
    refused(tmp_path, str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.json").unlink()
    refused(tmp_path, str(tmp_path / "tokenizer.json"))
