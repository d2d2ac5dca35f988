"""neox: what is recognised, described and refused, each refusal one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.cli import inspect
from kerple_eval.data.tokenizer import Gpt2Tokenizer, JsonTokenizer
from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.models.neox.checkpoint import NeoxCheckpoint
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.types import UserError
from tests.helpers.gpt2_files import byte_symbols, gpt2_files
from tests.helpers.neox_writer import Model, draw, variant, write


def opened(folder: Path, **options: str) -> NeoxCheckpoint:
    made = NeoxCheckpoint.open(str(folder), {key.replace("_", "-"): v for key, v in options.items()})
    assert isinstance(made, NeoxCheckpoint)
    return made


def refused(folder: Path, *parts: str, **options: str) -> None:
    """Opening it fails with one line that names each part."""
    with pytest.raises(UserError) as caught:
        opened(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def step(folder: Path) -> Path:
    return folder / "global_step1000"


def layer(folder: Path, place: int, shard: int = 0) -> Path:
    return step(folder) / f"layer_{place:02d}-model_{shard:02d}-model_states.pt"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Other tensors in a layer file, saved anew."""
    state = {name: tensor.clone() for name, tensor in torch.load(path).items()}
    change(state)
    torch.save(state, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A KERPLE model in two shards."""
    return write(tmp_path / "ckpt", variant(pos_emb="kerple_log"), shards=2)


# --- What it is ----------------------------------------------------------------------------------


def test_description(folder: Path) -> None:
    description = opened(folder).description
    model = variant(pos_emb="kerple_log")
    tensors = draw(model)
    rpe = 2 * model.heads
    counted = sum(x.size for name, x in tensors.items() if ".rpe." not in name) + rpe
    assert (description.format, description.architecture) == ("neox", "gpt-neox")
    assert (description.scheme, description.details["pos_emb"]) == ("kerple-log", "kerple_log")
    assert description.parameters == counted
    assert (description.vocab_size, description.train_length, description.seed) == (48, 128, 1235)
    assert (description.prefix_invariant, description.max_length) == (True, None)
    assert description.stored_dtypes == ("F32",)
    assert (description.shape.layers, description.shape.head_dim, description.shape.mlp_width) == (2, 8, 128)
    digest = hashlib.sha256()
    for path in sorted(step(folder).glob("layer_*")):
        digest.update(path.read_bytes())
    assert description.weights_sha256 == digest.hexdigest()
    assert str(folder) not in json.dumps(description.details)
    assert any("48 logits stay in the softmax" in line for line in description.warnings)


def test_scheme_parameters_are_per_head(folder: Path) -> None:
    tensors = draw(variant(pos_emb="kerple_log"))
    found = opened(folder).scheme_parameters()
    assert found["r1"] == pytest.approx(tensors["2.attention.rpe.bias_p"].ravel().tolist())
    assert found["r2"] == pytest.approx(tensors["2.attention.rpe.bias_a"].ravel().tolist())
    assert opened(write(folder / "other", variant(pos_emb="rpe"))).scheme_parameters() == {}


def test_learned_positions_end_where_the_table_does(tmp_path: Path) -> None:
    description = opened(write(tmp_path, variant(pos_emb="learned", positions=300))).description
    assert (description.scheme, description.max_length) == ("learned", 300)


def test_the_decoder_is_native(folder: Path) -> None:
    decoder = opened(folder).decoder()
    assert decoder.config.scheme == "kerple-log"
    assert not [name for name, tensor in decoder.state_dict().items() if tensor.is_meta]
    tied = opened(write(folder / "tied", variant(tied=True))).decoder()
    assert tied.head.weight is tied.embedding.weight


def test_recognised_by_its_contents(folder: Path, tmp_path: Path) -> None:
    assert NeoxCheckpoint.recognises(folder)
    assert NeoxCheckpoint.recognises(step(folder))
    assert not NeoxCheckpoint.recognises(tmp_path / "nowhere")
    assert not NeoxCheckpoint.recognises(step(folder) / "configs")
    assert isinstance(open_model(parse_model(str(folder))), NeoxCheckpoint)
    assert CHECKPOINT_FORMATS.load("neox") is NeoxCheckpoint


def test_the_steps_folder_itself(folder: Path) -> None:
    assert opened(step(folder)).description.weights_sha256 == opened(folder).description.weights_sha256
    shutil.move(step(folder) / "configs", folder / "configs")  # as other versions lay them
    for place in (folder, step(folder)):
        assert opened(place).description.scheme == "kerple-log"


def test_without_latest_the_only_step_is_taken(folder: Path) -> None:
    (folder / "latest").unlink()
    opened(folder)
    shutil.copytree(step(folder), folder / "global_step2000")
    refused(folder, "no file `latest`", "global_step1000, global_step2000")
    opened(folder / "global_step2000")


def test_options_are_checked(folder: Path) -> None:
    refused(folder, "unknown option of a neox checkpoint 'pos'", "did you mean 'pos-emb'", pos="x")
    refused(folder, "unknown pos-emb 'kerple-log'", "did you mean 'kerple_log'", pos_emb="kerple-log")
    refused(folder, "unknown numerics 'released'", "did you mean 'release'", numerics="released")


def test_a_window_or_an_extension_is_laid_on(folder: Path, tmp_path: Path) -> None:
    """As on a native checkpoint of the same weights; the release's own numerics know neither."""
    windowed = opened(folder, window="16")
    assert windowed.description.scheme == "kerple-log,window=16"
    assert windowed.scheme_parameters() == opened(folder).scheme_parameters()
    tokens = torch.arange(40)[None] % 48
    plain, near = opened(folder).decoder(), windowed.decoder()
    with torch.no_grad():
        assert torch.equal(near(tokens)[:, :16], plain(tokens)[:, :16])
        assert not torch.allclose(near(tokens)[:, 20:], plain(tokens)[:, 20:])
        by_hand = opened(folder).decoder()
        by_hand.set_scheme(replace(by_hand.config, modifiers={"window": {"width": 16}}))
        assert torch.equal(near(tokens), by_hand(tokens))
    refused(
        folder, "numerics=release computes the release's own schemes alone", window="4", numerics="release"
    )
    refused(folder, "ssmax has parameters", ssmax="1")


# --- pos-emb -------------------------------------------------------------------------------------


def test_two_kernels_with_the_same_tensors(tmp_path: Path) -> None:
    folder = write(tmp_path, variant(pos_emb="kerple_log"), pos_emb=None)
    refused(folder, "no pos-emb", "kerple_log or kerple_power_ap_", ",pos-emb=")
    for name, scheme in (("kerple_log", "kerple-log"), ("kerple_power_ap_", "kerple-power")):
        assert opened(folder, pos_emb=name).description.scheme == scheme


@pytest.mark.parametrize(
    "pos_emb",
    ["kerple_power__ap", "kerple_power_ap_ap", "kerple_power_original", "rpe", "learned", "rotary", "alibi",
     "sinusoidal"],
)  # fmt: skip
def test_tensors_that_fit_one_scheme_alone_decide(pos_emb: str, tmp_path: Path) -> None:
    found = opened(write(tmp_path, variant(pos_emb=pos_emb), pos_emb=None)).description
    assert found.details["pos_emb"] == pos_emb
    assert any(f"the tensors are {pos_emb}'s" in line for line in found.warnings)


def test_no_pos_emb_and_no_trace_of_one(tmp_path: Path) -> None:
    folder = write(tmp_path, variant(pos_emb="none"), pos_emb=None)
    refused(folder, "no pos-emb", "none or rotary or alibi or sinusoidal")
    assert opened(folder, pos_emb="none").description.scheme == "nope"


def test_an_unknown_pos_emb(tmp_path: Path) -> None:
    refused(write(tmp_path / "a", variant(), pos_emb="kerple_pow_ap_"), "unknown pos-emb 'kerple_pow_ap_'",
            "did you mean 'kerple_power_ap_'", "yml")  # fmt: skip
    refused(write(tmp_path / "b", variant(), pos_emb=7), "pos-emb: 7")


def test_the_option_decides_and_says_so(folder: Path) -> None:
    found = opened(folder, pos_emb="kerple_power_ap_").description
    assert found.scheme == "kerple-power"
    assert any("the configuration says kerple_log" in line for line in found.warnings)
    refused(folder, "missing tensor", "attention.rpe.weight", pos_emb="rpe")
    refused(folder, "not claimed", "attention.rpe.bias_a", pos_emb="none")


def test_buffers_of_another_model(tmp_path: Path) -> None:
    refused(write(tmp_path / "a", variant(), rotary_emb_base=500), "inv_freq is not what the configuration")
    refused(write(tmp_path / "b", variant(), pos_emb="none"), "inv_freq", "pos-emb none does not have")


def test_layer_scaling(tmp_path: Path) -> None:
    opened(write(tmp_path / "a", variant(), apply_query_key_layer_scaling=True))
    folder = write(tmp_path / "b", variant(pos_emb="alibi"), apply_query_key_layer_scaling=True)
    refused(folder, "apply-query-key-layer-scaling with pos-emb alibi")


# --- Broken folders ------------------------------------------------------------------------------


def test_a_missing_shard_is_named(folder: Path) -> None:
    layer(folder, 3, 1).unlink()
    refused(folder, "shard 1 is missing", "layer_03-model_01-model_states.pt")


def test_a_shard_missing_everywhere_is_named(folder: Path) -> None:
    for path in step(folder).glob("*model_01*"):
        path.unlink()
    refused(folder, "shard 1 is missing", "layer_00-model_01-model_states.pt")


@pytest.mark.parametrize("place", [0, 2, 3, 5, 6])
def test_a_missing_layer_is_named(folder: Path, place: int) -> None:
    for path in step(folder).glob(f"layer_{place:02d}-*"):
        path.unlink()
    refused(folder, "is missing", f"layer_{place:02d}-model_00-model_states.pt")


def test_more_layers_than_the_configuration_has(tmp_path: Path) -> None:
    folder = write(tmp_path, variant(layers=3), num_layers=2)
    refused(folder, "layer_0")


def test_heads_that_do_not_divide(folder: Path) -> None:
    shutil.copy(layer(folder, 0, 1), layer(folder, 0, 2))
    refused(folder, "4 heads do not divide into 3 shards")


def test_inspect_names_the_options_that_give_a_tokeniser(folder: Path) -> None:
    text = "\n".join(inspect.lines(f"neox:{folder}"))
    assert "only token ids can be scored; give one by ,tokenizer=FILE" in text
    assert ",vocab=FILE,merges=FILE" in text


def test_an_archive_and_a_folder_too_high(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "release.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="a zip archive, as the release ships them; unpack it"):
        NeoxCheckpoint.open(str(tmp_path / "release.zip"), {})
    for name, problem in (
        ("a.ZIP", "a zip archive"),
        ("a.tar.gz", "a packed archive"),
        ("a.yml", "is a file"),
    ):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=problem):
            NeoxCheckpoint.open(str(tmp_path / name), {})
    with pytest.raises(UserError) as caught:
        NeoxCheckpoint.open(str(folder.parent), {})
    assert f"give neox:{folder}" in str(caught.value)


def test_no_configuration(folder: Path) -> None:
    shutil.rmtree(step(folder) / "configs")
    refused(folder, "no configuration", "configs/*.yml", "num-layers", "pos-emb")


@pytest.mark.parametrize(
    ("latest", "part"),
    [
        ("../outside", "'../outside'"),
        ("/tmp/global_step1", "'/tmp/global_step1'"),
        ("global_step1000/../../x", "expected the name of a folder here"),
        ("", "''"),
        ("iter_1000", "global_stepN"),
        ("global_step7", "which is not a folder"),
        ("global_step1000\nglobal_step7", "expected the name"),
        ("\x00\xff" * 500, "expected the name"),
    ],
)
def test_latest_that_leads_elsewhere(folder: Path, latest: str, part: str) -> None:
    (folder / "latest").write_text(latest)
    refused(folder, str(folder / "latest"), part)


def test_links_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(step(folder), outside)
    step(folder).symlink_to(outside)
    refused(folder, "link that leads out")
    step(folder).unlink()
    shutil.move(outside, step(folder))
    for target in (layer(folder, 2), step(folder) / "configs" / "model.yml", folder / "latest"):
        shutil.move(target, outside)
        target.symlink_to(outside)
        refused(folder, target.name, "link that leads out")
        target.unlink()
        shutil.move(outside, target)
    opened(folder)
    shutil.move(layer(folder, 2), folder / "moved.pt")  # a link inside is fine
    layer(folder, 2).symlink_to(folder / "moved.pt")
    opened(folder)


def test_a_pipe_in_place_of_a_file(folder: Path) -> None:
    for target in (layer(folder, 2), step(folder) / "configs" / "model.yml", folder / "latest"):
        content = target.read_bytes()
        target.unlink()
        os.mkfifo(target)
        refused(folder, "not a regular file")
        target.unlink()
        target.write_bytes(content)


def test_other_folders(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder", "latest")
    refused(step(folder) / "configs", "no file `latest`")
    for path in step(folder).glob("layer_*"):
        path.unlink()
    refused(folder, "no layer_XX-model_YY-model_states.pt")
    (step(folder) / "mp_rank_00_model_states.pt").write_bytes(b"")
    refused(folder, "pipe-parallel-size 0")


# --- Broken tensors ------------------------------------------------------------------------------


def test_a_truncated_layer(folder: Path) -> None:
    raw = layer(folder, 3).read_bytes()
    layer(folder, 3).write_bytes(raw[: len(raw) // 2])
    refused(folder, layer(folder, 3).name, "truncated or damaged")


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_a_hostile_layer(folder: Path, tmp_path: Path) -> None:
    state = torch.load(layer(folder, 3))
    torch.save({**state, "x": Hostile(tmp_path / "trace")}, layer(folder, 3))
    refused(folder, layer(folder, 3).name, "posix.system")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (0, "word_embeddings.weight"), (2, "attention.query_key_value.weight"), (3, "attention.dense.bias"),
        (2, "mlp.dense_4h_to_h.weight"), (3, "input_layernorm.bias"), (5, "norm.weight"),
        (6, "final_linear.weight"), (3, "attention.rpe.bias_p"),
    ],
)  # fmt: skip
def test_a_missing_tensor_and_a_wrong_shape(folder: Path, place: int, name: str) -> None:
    good = layer(folder, place, 1).read_bytes()
    edit(layer(folder, place, 1), lambda state: state.pop(name))
    refused(folder, layer(folder, place, 1).name, "missing tensor", name)
    layer(folder, place, 1).write_bytes(good)
    edit(layer(folder, place, 1), lambda state: state.update({name: torch.cat([state[name]] * 2)}))
    refused(folder, layer(folder, place, 1).name, name, "has shape", "expected")


def test_other_things_in_a_layer_file(folder: Path) -> None:
    path = layer(folder, 3)
    good = path.read_bytes()
    edit(path, lambda state: state.update(stray=torch.ones(2)))
    refused(folder, path.name, "not claimed", "stray")
    path.write_bytes(good)
    edit(path, lambda state: state.update({"attention.dense.bias": torch.ones(32, dtype=torch.int32)}))
    refused(folder, path.name, "attention.dense.bias", "floating point")
    torch.save([torch.ones(2)], path)
    refused(folder, path.name, "not a layer's tensors by name")
    torch.save({"module": {"x": torch.ones(2)}}, path)
    refused(folder, path.name, "'module' is no tensor")


def test_a_transposed_matrix(folder: Path) -> None:
    name = "mlp.dense_h_to_4h.weight"
    edit(layer(folder, 2), lambda state: state.update({name: state[name].T.contiguous()}))
    refused(folder, name, "[32, 64]", "[64, 32]")


def test_copies_that_differ(folder: Path) -> None:
    name = "mlp.dense_4h_to_h.bias"
    edit(layer(folder, 2, 1), lambda state: state[name].add_(1))
    refused(folder, layer(folder, 2, 1).name, name, "must agree")


def test_norms_that_differ_are_averaged(folder: Path) -> None:
    plain = opened(folder).decoder().state_dict()["layers.0.mlp_norm.bias"]
    edit(layer(folder, 2, 1), lambda state: state["post_attention_layernorm.bias"].add_(1))
    found = opened(folder)
    assert any("norms that differ" in line for line in found.description.warnings)
    torch.testing.assert_close(found.decoder().state_dict()["layers.0.mlp_norm.bias"], plain + 0.5)


def test_layers_with_other_kernels(folder: Path) -> None:
    edit(layer(folder, 3, 1), lambda state: state["attention.rpe.bias_a"].add_(1))
    refused(folder, layer(folder, 3).name, "attention.rpe.bias_a", "all layers share one")


@pytest.mark.parametrize(("tied", "said"), [(True, True), (False, False)])
def test_a_head_that_contradicts_the_configuration(tied: bool, said: bool, tmp_path: Path) -> None:
    folder = write(tmp_path, variant(tied=tied), no_weight_tying=said)
    refused(folder, "layer_06", "is missing" if tied else "no-weight-tying is false")


def test_a_head_the_configuration_is_silent_about(tmp_path: Path) -> None:
    untied = opened(write(tmp_path / "a", variant(), no_weight_tying=None))
    assert any("untied head" in line for line in untied.description.warnings)
    tied = opened(write(tmp_path / "b", variant(tied=True), no_weight_tying=None))
    assert tied.config.tie_embeddings


# --- Configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_layers": None}, ["no num-layers in model.yml, rest.yml"]),
        ({"num_layers": "two"}, ["num-layers: 'two' must be an integer"]),
        ({"num_layers": True}, ["num-layers: True"]),
        ({"hidden_size": 33}, ["not a multiple of num-attention-heads 4"]),
        ({"hidden_size": 0}, ["hidden-size: 0"]),
        ({"seq_length": None, "max_position_embeddings": None}, ["no seq-length"]),
        ({"norm": "scalenorm"}, ["norm: 'scalenorm' is not supported"]),
        ({"activation": "gelu_new"}, ["activation: 'gelu_new' is not supported"]),
        ({"layernorm_epsilon": -1}, ["layernorm-epsilon: -1 must be a number above 0"]),
        ({"no_weight_tying": "yes"}, ["no-weight-tying: 'yes' must be true or false"]),
        ({"use_mup": True}, ["use-mup: True is not supported"]),
        ({"onnx_safe": True}, ["onnx-safe"]),
        ({"num_kv_heads": 2}, ["num-kv-heads: 2 is not supported, except as many as num-attention-heads 4"]),
        ({"attention_config": [[["sparse_fixed"], "all"]]}, ["attention-config"]),
        ({"attention_config": [[["sparse_fixed"], 2]]}, ["attention-config"]),
        ({"rotary_pct": 0.4}, ["fraction=0.4 of head dim 8 is 3"]),
        ({"rotary_pct": 1.5}, ["rotary-pct: 1.5 must be a number above 0 and at most 1"]),
        ({"num_unique_layers": 1}, ["num-unique-layers"]),
        ({"seed": "x"}, ["seed: 'x'"]),
        ({"seed": 10**17}, ["seed: 100000000000000000 is beyond 281,474,976,710,656, the most that is read"]),
        ({"model_parallel_size": 4}, ["shard 1 is missing"]),
    ],
    ids=str,
)
def test_wrong_values_name_the_file_and_the_key(
    changes: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    refused(write(tmp_path, variant(), **changes), *parts)


def test_plain_attention_in_other_words(tmp_path: Path) -> None:
    """GPT-NeoX (``megatron/utils.py``, ``model/transformer.py``): "all" is the number of layers, and as many
    key heads as heads is plain attention."""
    changes = {"attention_config": [[["global"], "all"]], "num_kv_heads": 4}
    opened(write(tmp_path, variant(), **changes))


@pytest.mark.parametrize(
    "text",
    [
        b"{ 'num-layers': 2", b"[1, 2]", b"\xff\xfe\x00", b"just text", b"{a: !!python/object:os.system {}}",
        b"!!python/object/apply:os.system ['touch trace']", b"[" * 5000, b"a: b: c", b"3",
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_read(text: bytes, folder: Path) -> None:
    (step(folder) / "configs" / "bad.yml").write_bytes(text)
    refused(folder, "bad.yml: not ")
    assert not Path("trace").exists()


def test_a_configuration_of_aliases_is_refused_at_once(folder: Path) -> None:
    """Nine lists of nine aliases are 9^9 items: 1 kB that would take hours to walk or to write out."""
    bomb = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    bomb += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (step(folder) / "configs" / "x.yml").write_text("\n".join(bomb))
    refused(folder, "x.yml", "alias", "line 2")
    (step(folder) / "configs" / "x.yml").write_text("norm: " + "x" * 1000)
    with pytest.raises(UserError) as caught:
        opened(folder)
    assert len(str(caught.value)) < len(str(folder)) + 300


@pytest.mark.parametrize("size", [1 << 20, 1 << 31, 1 << 47, 1 << 70])
@pytest.mark.parametrize("pos_emb", ["kerple_log", "rpe", "learned", "rotary"])
def test_sizes_are_those_of_the_weights(size: int, pos_emb: str, tmp_path: Path) -> None:
    """Each is compared with the stored tensors before anything of that size is built."""
    keys = ["num_layers", "hidden_size", "num_attention_heads", "intermediate_size", "model_parallel_size"]
    keys += {"rpe": ["rpe_num_buckets"], "learned": ["max_position_embeddings"]}.get(pos_emb, [])
    for key in keys:
        folder = write(tmp_path / key, variant(pos_emb=pos_emb), **{key: size})
        started = time.perf_counter()
        refused(folder, str(tmp_path))
        assert time.perf_counter() - started < 5, key


def test_a_configuration_too_large(folder: Path) -> None:
    (step(folder) / "configs" / "bad.yml").write_bytes(b"#" * (1 << 21))
    refused(folder, "bad.yml", "larger than")


def test_configurations_that_disagree(folder: Path) -> None:
    (step(folder) / "configs" / "zz.yml").write_text("{'eval-iters': 320, 'num_layers': 2,}")
    (step(folder) / "configs" / "zy.yml").write_text("{'eval-iters': 10}")  # of no matter here
    opened(folder)
    (step(folder) / "configs" / "zz.yml").write_text("{'num_layers': 3}")
    refused(folder, "zz.yml", "num-layers has another value in", "must agree")


def test_ways_to_write_a_configuration(tmp_path: Path) -> None:
    """Tabs, 1e-5 (text to YAML), None, global attention, empty files, JSON."""
    folder = write(
        tmp_path, variant(epsilon=1e-3), attention_config=[[["global"], 2]], layernorm_epsilon="1e-3"
    )
    (step(folder) / "configs" / "empty.yml").write_text("# nothing\n")
    (step(folder) / "configs" / "tabs.yml").write_text('{\t"zero_optimization":\t{"stage": 0,},\t}\n')
    (step(folder) / "configs" / "length.json").write_text('{\n    "seq-length-val": 4096\n}')
    assert opened(folder).config.norm_epsilon == 1e-3


# --- Tokenisers ----------------------------------------------------------------------------------


LARGE = Model(pos_emb="kerple_log", vocabulary=264)
TEXT = "the cat, naïve 数 on the mat 🙃"


@pytest.mark.parametrize(
    "names",
    [("vocab.json", "merges.txt"), ("gpt2-vocab.json", "gpt2-merges.txt"), ("encoder.json", "vocab.bpe")],
)
@pytest.mark.parametrize("within", ["global_step1000", "."])
def test_gpt2s_two_files(names: tuple[str, str], within: str, tmp_path: Path) -> None:
    folder = write(tmp_path, LARGE, shards=2)
    size = gpt2_files(folder / within, names=names)
    for place in (folder, step(folder)):
        found = opened(place)
        tokenizer = found.tokenizer
        assert isinstance(tokenizer, Gpt2Tokenizer)
        assert (tokenizer.vocab_size, tokenizer.end_of_document, tokenizer.bos) == (size, size - 1, None)
        encoding = tokenizer.encode(TEXT)
        assert encoding.ids.tolist()[:2] == [257, byte_symbols().index("Ġ")]
        assert encoding.byte_counts is not None
        assert int(encoding.byte_counts.sum()) == len(TEXT.encode())
        assert encoding.byte_counts[0] == 3
        assert any(f"{size} is padded to 264" in line for line in found.description.warnings)
        assert found.description.details["tokenizer"].startswith("gpt2-bpe:")


def test_every_byte_survives(tmp_path: Path) -> None:
    gpt2_files(tmp_path)
    tokenizer = Gpt2Tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    text = "".join(map(chr, [*range(1, 0x300), 0x2028, 0x1F643, 0x10FFFF])) + "<|endoftext|>"
    ids = tokenizer.encode(text).ids
    symbols = [*byte_symbols(), "th", "the"]
    spelt = "".join(symbols[n] for n in ids)
    assert bytes(byte_symbols().index(s) for s in spelt) == text.encode()


def test_the_two_files_as_a_tokenizer_json(tmp_path: Path) -> None:
    gpt2_files(tmp_path)
    made = Gpt2Tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    (tmp_path / "tokenizer.json").write_bytes(made.to_json())
    again = JsonTokenizer(tmp_path / "tokenizer.json")
    assert again.encode(TEXT).ids.tolist() == made.encode(TEXT).ids.tolist()
    assert (again.vocab_size, again.end_of_document) == (made.vocab_size, made.end_of_document)


def test_files_by_option(tmp_path: Path) -> None:
    folder = write(tmp_path / "ckpt", LARGE)
    size = gpt2_files(tmp_path)
    found = opened(folder, vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    assert found.tokenizer is not None
    assert found.tokenizer.vocab_size == size
    refused(folder, "give tokenizer=FILE, or vocab=FILE and merges=FILE", vocab=str(tmp_path / "vocab.json"))
    refused(folder, "nowhere.json", "cannot be read", tokenizer=str(tmp_path / "nowhere.json"))
    refused(folder, "nowhere", "cannot be read", vocab=str(tmp_path / "nowhere"), merges=str(tmp_path / "x"))


def test_the_file_the_configuration_names_by_its_last_part(tmp_path: Path) -> None:
    folder = write(tmp_path, LARGE, vocab_file="data/v.json", merge_file="data/m.txt")
    assert opened(folder).tokenizer is None
    gpt2_files(folder, names=("v.json", "m.txt"))
    assert isinstance(opened(folder).tokenizer, Gpt2Tokenizer)
    other = write(tmp_path / "other", LARGE, vocab_file="/mnt/20B_tok.json")
    from tokenizers import Tokenizer, models  # noqa: PLC0415

    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(other / "20B_tok.json"))
    assert isinstance(opened(other).tokenizer, JsonTokenizer)


def test_a_tokeniser_larger_than_the_embedding(tmp_path: Path) -> None:
    folder = write(tmp_path, LARGE)
    assert gpt2_files(folder, extra=5) == 264
    opened(folder)
    assert gpt2_files(folder, extra=6) == 265
    warnings = opened(folder).description.warnings
    assert any("the tokeniser has 265 ids, the embedding 264 rows" in warning for warning in warnings)


def test_tokenisers_that_are_broken_or_several(tmp_path: Path) -> None:
    folder = write(tmp_path, LARGE)
    gpt2_files(folder)
    (folder / "merges.txt").write_text("#version: 0.2\nno such\n")
    refused(folder, "vocab.json", "not GPT-2's vocabulary")
    (folder / "vocab.json").write_text("{")
    refused(folder, "vocab.json", "not GPT-2's vocabulary")
    (folder / "merges.txt").unlink()
    refused(folder, "has vocab.json but no merges.txt")
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, "several tokenisers", "vocab.json, tokenizer.json")
    (folder / "vocab.json").unlink()
    refused(folder, "not a tokenizer.json")


def test_a_vocabulary_that_lacks_a_byte(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Gpt2Tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert tokenizer.encode("abba").ids.tolist() == [0, 1, 1, 0]
    with pytest.raises(UserError, match="represents 2 of the text's 3 bytes"):
        tokenizer.encode("abc")


# --- Fuzz ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_mutated_checkpoints_end_in_one_line(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for _ in range(25):
        path = files[int(rng.integers(len(files)))]
        raw = path.read_bytes()
        content = bytearray(raw)
        for at in rng.integers(len(raw), size=int(rng.integers(1, 6))):
            content[at] = int(rng.integers(256))
        if rng.random() < 0.2:
            del content[int(rng.integers(len(content))) :]
        path.write_bytes(content)
        try:
            opened(folder)
        except UserError as error:
            assert "\n" not in str(error)
        path.write_bytes(raw)
