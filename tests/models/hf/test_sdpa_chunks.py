"""transformers' SDPA as a card gets it: no matrix [L, L], no kernel that lacks, the model's own logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kerple_eval.models.feeding import Feeding
from kerple_eval.models.hf import sdpa_chunks
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.model import HfModel
from tests.helpers import hf_folders as folders

transformers = pytest.importorskip("transformers")

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LENGTH = 1500  # more than a chunk's rows, and no number that something else has
WINDOW = 8
LOCAL = {
    "mistral": lambda: transformers.MistralConfig(**folders.sized(sliding_window=WINDOW)),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **folders.sized(
            head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "qwen2": lambda: transformers.Qwen2Config(
        **folders.sized(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **folders.sized(
            head_dim=8, attention_chunk_size=WINDOW, intermediate_size_mlp=48, num_local_experts=1,
            layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 0],
        )
    ),
}  # fmt: skip


class Largest(TorchDispatchMode):
    """Elements of the largest tensor whose last two sizes are both at least ``side``."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.found = side, 0

    def __torch_dispatch__(self, function: Any, types: Any, words: Any = (), named: Any = None) -> Any:
        out = function(*words, **(named or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dim() >= 2 and min(leaf.shape[-2:]) >= self.side:
                self.found = max(self.found, leaf.numel())
        return out


def ready(config: Any, *, card: bool = True) -> HfModel:
    made = HfModel(folders.model(config), CPU, torch.float32, "here")
    if card:
        sdpa_chunks.install(made, None)
    return made


def logits(made: HfModel, length: int, rows: int) -> tuple[Tensor, int]:
    ids = torch.randint(folders.V, (2, length), generator=torch.Generator().manual_seed(length))
    with torch.inference_mode(), Largest(length) as largest:
        found = torch.cat(list(made.logits(ids, rows)), dim=1)
    return found, largest.found


@pytest.mark.parametrize("name", LOCAL)
def test_no_matrix_and_the_models_own_logits(name: str) -> None:
    config = LOCAL[name]()
    plain, here = ready(config, card=False), ready(config)
    assert (plain.attention, here.attention) == ("sdpa", sdpa_chunks.NAME)
    for length in (WINDOW - 1, WINDOW, 3 * WINDOW + 1, LENGTH):
        (expected, matrix), (found, none) = logits(plain, length, 40), logits(here, length, 40)
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5
        if length == LENGTH:  # a control: the measure sees the matrix of the plain form
            assert matrix >= LENGTH**2
            assert none == 0


def test_pieces_of_a_window_as_well() -> None:
    made = ready(LOCAL["gemma3"]())
    expected, _ = logits(made, 300, 300)
    made.feeding = Feeding(64)
    found, _ = logits(made, 300, 300)
    assert made.feeding.refused is None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bool]]]:
    """Heads of keys, and whether torch was asked to share them, of every call of SDPA."""
    seen: list[tuple[int, bool]] = []
    real = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, *words: Any, enable_gqa: bool = False, **named: Any) -> Tensor:
        seen.append((k.shape[1], enable_gqa))
        return real(q, k, v, *words, enable_gqa=enable_gqa, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return seen


def test_grouped_queries_in_float32_get_keys_of_their_own(calls: list[tuple[int, bool]]) -> None:
    """torch's only kernel that shares keys among heads in four bytes forms every score."""
    config = transformers.LlamaConfig(**folders.sized())
    plain, here = ready(config, card=False), ready(config)
    assert here.attention == sdpa_chunks.NAME
    calls.clear()
    expected, _ = logits(plain, 50, 50)
    assert set(calls) == {(2, True)}
    calls.clear()
    found, _ = logits(here, 50, 50)
    assert set(calls) == {(4, False)}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "capability", "shared"),
    [(torch.bfloat16, (9, 0), True), (torch.float16, (7, 5), False), (torch.float32, (9, 0), False)],
)
def test_keys_are_shared_where_flash_attention_serves(
    dtype: torch.dtype, capability: tuple[int, int], *, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    query = torch.empty(1, dtype=dtype, device="meta")
    monkeypatch.setattr(type(query), "device", CUDA, raising=False)
    assert sdpa_chunks._shares_keys(query) is shared


def test_what_needs_neither_stays_as_it_is() -> None:
    """Every head its own keys and no local mask; and a model whose attention is not SDPA's."""
    made = ready(transformers.LlamaConfig(**folders.sized(num_key_value_heads=4)))
    assert made.attention == made.model.config._attn_implementation == "sdpa"
    eager = transformers.MistralConfig(**folders.sized(sliding_window=WINDOW), attn_implementation="eager")
    assert ready(eager).attention == "eager"


def test_a_model_that_answers_otherwise_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LOCAL["mistral"]()
    monkeypatch.setattr(sdpa_chunks, "_by_chunks", lambda *words: words[1].transpose(1, 2))
    made = ready(config)
    assert made.attention == made.model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(sdpa_chunks, "_by_chunks", lambda *_: 1 / 0)
    assert ready(config).attention == "sdpa"


def test_a_checkpoint_takes_it_on_a_card_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.save(tmp_path, folders.model(LOCAL["mistral"]()))
    asked: list[str] = []
    monkeypatch.setattr(sdpa_chunks, "install", lambda made, longest: asked.append(made.device.type))
    monkeypatch.setattr(HfModel, "probe", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    for device in (CPU, CUDA):
        HfCheckpoint.open(str(folder), {}).load(device, torch.float32)
    assert asked == ["cuda"]
