"""Code that a checkpoint brings: what its constructor computes, its part in the identity, its errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.loaded import take_over
from kerple_eval.types import UserError
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import CPU, V, transformers

TRUST = {"trust-remote-code": "true"}
CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

class OwnConfig(PretrainedConfig):
    model_type = "own-tables"
    def __init__(self, vocab_size=97, width=8, **rest):
        super().__init__(**rest)
        self.vocab_size, self.width = vocab_size, width

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, 1 + config.width).float(), persistent=False)
        self.register_buffer("inv_freq", torch.ones(config.width), persistent=True)
        self.register_buffer("order", torch.arange(config.width), persistent=True)
        self.table = torch.linspace(0, 1, 64)
        self.post_init()
    def forward(self, input_ids, **rest):
        n = input_ids.shape[1]
        weight = (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0).float()
        x = self.embed(input_ids)[..., self.order]
        past = torch.tril(torch.ones(n, n)) / (1 + weight)
        x = past @ (x * self.inv_freq * self.slopes) + self.table[:n, None]
        return CausalLMOutput(logits=self.head(x))
"""


def folder(root: Path, code: str = CODE) -> Path:
    """A folder of this model, its weights drawn; two of its buffers are in the file."""
    root.mkdir(exist_ok=True)
    (root / "own_tables.py").write_text(code)
    generator = torch.Generator().manual_seed(0)
    state = {
        "embed.weight": torch.randn(V, 8, generator=generator),
        "head.weight": torch.randn(V, 8, generator=generator),
        "inv_freq": torch.rand(8, generator=generator),
        "order": torch.arange(8).flip(0).contiguous(),
    }
    save_file(state, root / "model.safetensors", metadata={"format": "pt"})
    (root / "config.json").write_text(
        '{"model_type": "own-tables", "vocab_size": 97, "width": 8, "auto_map": '
        '{"AutoConfig": "own_tables.OwnConfig", "AutoModelForCausalLM": "own_tables.OwnModel"}}'
    )
    return root


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache of modules of its own, and finds no package of an earlier test's."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # transformers appends the cache
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


def logits(place: Path, dtype: torch.dtype = torch.float32) -> Any:
    loaded = HfCheckpoint.open(str(place), TRUST).load(CPU, dtype)
    inputs = torch.arange(2, 14)[None]
    with torch.no_grad():
        return next(iter(loaded.logits(inputs, 12)))[0].double().numpy()


def test_tables_made_in_the_constructor(tmp_path: Path) -> None:
    """Non-persistent buffers and plain tensors, which are in no file, by the formula in the code above."""
    place = folder(tmp_path / "model")
    state = {name: t.double().numpy() for name, t in load_file(place / "model.safetensors").items()}
    n = 12
    distance = np.maximum(np.arange(n)[:, None] - np.arange(n), 0)
    x = state["embed.weight"][2:14][:, state["order"].astype(int)]
    x = np.tril(1 / (1 + distance)) @ (x * state["inv_freq"] * 2.0 ** -np.arange(1, 9))
    expected = (x + np.linspace(0, 1, 64)[:n, None]) @ state["head.weight"].T
    np.testing.assert_allclose(logits(place), expected, rtol=0, atol=1e-4)


def test_the_code_belongs_to_the_identity(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    first = HfCheckpoint.open(str(place), TRUST).description.details["code_sha256"]
    again = HfCheckpoint.open(str(place), TRUST).description.details["code_sha256"]
    changed = folder(tmp_path / "model", CODE.replace("2.0 ** -", "3.0 ** -"))
    second = HfCheckpoint.open(str(changed), TRUST).description.details["code_sha256"]
    assert first == again != second
    lazy = CODE.replace("        n = input_ids", "        from .later import slope\n        n = input_ids")
    helper = place / "later.py"  # imported by the forward pass alone
    helper.write_text("slope = 1\n")
    folder(place, lazy)
    third = HfCheckpoint.open(str(place), TRUST).description.details["code_sha256"]
    helper.write_text("slope = 2\n")
    assert third != HfCheckpoint.open(str(place), TRUST).description.details["code_sha256"]


@pytest.mark.parametrize(
    "error",
    [
        "TypeError('x')",
        "AttributeError('x')",
        "AssertionError()",
        "KeyError(3)",
        "SystemExit(0)",
        "OverflowError()",
    ],
)
@pytest.mark.parametrize("code", ["self.post_init()", "super().__init__(**rest)", "n = input_ids.shape[1]"])
def test_whatever_it_raises_is_this_models_refusal(error: str, code: str, tmp_path: Path) -> None:
    """In the constructor, the configuration or the forward pass."""
    line = f"        {code}\n"
    place = folder(tmp_path / "model", CODE.replace(line, f"{line}        raise {error}\n"))
    with pytest.raises(UserError) as caught:
        HfCheckpoint.open(str(place), TRUST).load(CPU, torch.float32)
    assert "\n" not in str(caught.value)
    assert str(place) in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("given", ["None", "(self.head(x),)", "self.head(x)[0]", "self.head(x)[..., :-1]"])
def test_logits_of_another_shape(given: str, tmp_path: Path) -> None:
    """A narrower row would be normalised over fewer tokens than the vocabulary has."""
    place = folder(tmp_path / "model", CODE.replace("logits=self.head(x)", f"logits={given}"))
    with pytest.raises(UserError, match=r"gives logits .*, expected a tensor \[3, tokens, 97\]"):
        HfCheckpoint.open(str(place), TRUST).load(CPU, torch.float32)


def test_a_row_that_a_class_zeroes_is_the_files_again() -> None:
    """Some of transformers' classes write into an embedding after it was loaded."""
    made = folders.model("llama")
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with torch.no_grad():
        made.model.embed_tokens.weight[0] = 0.0
    take_over(made, state, "x")
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    half = made.to(torch.bfloat16)
    take_over(half, state, "x")
    assert torch.equal(half.state_dict()["lm_head.weight"], state["lm_head.weight"].to(torch.bfloat16))


def test_a_zeroed_row_of_a_file_that_is_mapped_into_memory(tmp_path: Path) -> None:
    """Youtu's class zeroes the row of padding in place, which the loader's own tensors would show too."""
    config = transformers.YoutuConfig(
        **folders.sized(
            num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
            v_head_dim=8, tie_word_embeddings=False,
        )
    )  # fmt: skip
    made = folders.model(config)
    stored = made.model.embed_tokens.weight[0].clone()
    assert stored.abs().max() > 0
    place = folders.save(tmp_path / "mapped", made)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((place / "config.json").read_bytes())
    torch.save(made.state_dict(), pickled / "pytorch_model.bin")
    for folder_ in (place, pickled):
        loaded = HfCheckpoint.open(str(folder_), {}).load(CPU, torch.float32)
        assert torch.equal(loaded.model.model.embed_tokens.weight[0], stored)


def test_whole_numbers_that_a_model_claims_under_another_name(tmp_path: Path) -> None:
    """DeepSeek V4 looks experts up in a table of integers, which its files call otherwise."""
    config = transformers.DeepseekV4Config(
        **folders.sized(
            head_dim=8, num_key_value_heads=1, q_lora_rank=16, o_lora_rank=8, moe_intermediate_size=24,
            n_routed_experts=4, num_experts_per_tok=2, index_head_dim=8, index_n_heads=2,
        )
    )  # fmt: skip
    made = folders.model(config)
    tables = {name: buffer for name, buffer in made.named_buffers() if name.endswith("tid2eid")}
    for table in tables.values():
        table.copy_(torch.randint(4, table.shape, generator=torch.Generator().manual_seed(0)))
    place = folders.save(tmp_path, made)
    stored = load_file(place / "model.safetensors")
    assert tables
    assert not tables.keys() & stored.keys()
    opened = HfCheckpoint.open(str(place), {})
    assert not opened.description.prefix_invariant
    own = opened.load(CPU, torch.float32).model.state_dict()
    for name, table in tables.items():
        assert torch.equal(own[name], table)
    name = next(name for name, tensor in stored.items() if tensor.is_floating_point())
    save_file(stored | {name: stored[name].long()}, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"tensor {name} is I64, expected floating point"):
        HfCheckpoint.open(str(place), {})


def test_probes_measure(tmp_path: Path) -> None:
    """XLM attends both ways unless it is told not to; on ids that it takes for padding that stayed unseen."""
    sizes = {"vocab_size": V, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
    place = folders.save(tmp_path / "xlm", folders.model(transformers.XLMConfig(**sizes)))
    with pytest.raises(UserError, match="sees tokens after"):
        HfCheckpoint.open(str(place), {}).load(CPU, torch.float32)
    place = folders.save(tmp_path / "causal", folders.model(transformers.XLMConfig(**sizes, causal=True)))
    HfCheckpoint.open(str(place), {}).load(CPU, torch.float32)
    code = CODE.replace("past @ (", "past @ (n * ")  # every loss changes with the window's length
    place = folder(tmp_path / "model", code)
    opened = HfCheckpoint.open(str(place), TRUST)
    assert not opened.description.prefix_invariant
    loaded = opened.load(CPU, torch.float32)
    loaded.probe("x", set(), None, invariant=False)
    with pytest.raises(UserError, match="change with the length of the window"):
        loaded.probe("x", set(), None, invariant=True)
