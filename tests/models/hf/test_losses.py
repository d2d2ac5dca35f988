"""Losses through ``hf:`` are those of ``model(input_ids).logits``, for every kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models import base
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.model import HfModel
from kerple_eval.models.scoring import NotFiniteError, score
from kerple_eval.types import Window
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import CPU, MODELS, V, transformers

#: Whole windows, last rows only, one row; 60 tokens are past every trained length but the learned ones'.
WINDOWS = [Window(0, 20, 1), Window(2, 60, 3), Window(7, 43, 30), Window(5, 45, 45)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    made = {}
    for name in MODELS:
        one = folders.model(name)
        made[name] = (folders.save(tmp_path_factory.mktemp(name), one), one)
    return made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows_at_once", [7, 10_000])
def test_losses(
    name: str, rows_at_once: int, saved: dict[str, tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-5, with a batch of three, the head by chunks of two or three rows and at once."""
    monkeypatch.setitem(base.HEAD_CHUNK_ELEMENTS, "cpu", rows_at_once * V)
    folder, made = saved[name]
    if name == "mpt":  # transformers' own refuses windows past max_seq_len
        made.config.max_seq_len = 64
    found = folders.documents()
    for window, losses in zip(WINDOWS, folders.scored(folder, WINDOWS), strict=True):
        for document, row in zip(found, losses, strict=True):
            np.testing.assert_allclose(row, folders.expected(made, document, window), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_description(name: str, saved: dict[str, tuple[Path, Any]]) -> None:
    folder, made = saved[name]
    _, scheme, train_length, max_length, invariant = MODELS[name]
    checkpoint = HfCheckpoint.open(str(folder), {})
    found = checkpoint.description
    assert (found.scheme, found.train_length, found.max_length) == (scheme, train_length, max_length)
    assert found.prefix_invariant is invariant
    assert found.parameters == sum(p.numel() for p in made.parameters())
    assert (found.format, found.seed, found.vocab_size) == ("hf", None, V)
    assert found.architecture == type(made).__name__
    assert found.stored_dtypes == ("F32",)
    assert (found.shape.layers, found.shape.width) == (2, 32)
    assert checkpoint.tokenizer is None
    assert str(folder) not in str(found.details)


@pytest.mark.parametrize("name", MODELS)
def test_prefix_invariance_is_what_is_measured(name: str, saved: dict[str, tuple[Path, Any]]) -> None:
    """Windows of 12 and 60 tokens from one start: LongRoPE switches its frequencies between them."""
    folder, _ = saved[name]
    short, long = folders.scored(folder, [Window(0, 12, 1), Window(0, 60, 1)])
    equal = all(np.allclose(a, b[:12], rtol=0, atol=1e-4) for a, b in zip(short, long, strict=True))
    assert equal is HfCheckpoint.open(str(folder), {}).description.prefix_invariant


def test_a_softcap_and_a_scale_of_the_logits_matter(saved: dict[str, tuple[Path, Any]]) -> None:
    """So that their tests above could fail: without them the losses are others."""
    for name, change in (("gemma2", {"final_logit_softcapping": None}), ("granite", {"logits_scaling": 1.0})):
        _, made = saved[name]
        document, window = folders.documents()[0], WINDOWS[0]
        with_it = folders.expected(made, document, window)
        before = {key: getattr(made.config, key) for key in change}
        for key, value in change.items():
            setattr(made, key, value)
            setattr(made.config, key, value)
        without = folders.expected(made, document, window)
        for key, value in before.items():
            setattr(made, key, value)
            setattr(made.config, key, value)
        assert np.abs(with_it - without).max() > 1e-2


def test_a_sliding_window_matters(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    _, made = saved["mistral"]
    folder = folders.save(tmp_path, made)
    folders.edit_config(folder, sliding_window=None)
    near, far = folders.scored(folder, [Window(0, 7, 1), Window(0, 60, 1)])
    document = folders.documents()[0]
    np.testing.assert_allclose(near[0], folders.expected(made, document, Window(0, 7, 1)), atol=1e-5)
    assert np.abs(far[0] - folders.expected(made, document, Window(0, 60, 1))).max() > 1e-2


def test_only_scored_rows_reach_the_head(
    saved: dict[str, tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vocabulary matrix sees 5 rows of 40; the trunk runs once however many chunks there are."""
    folder, _ = saved["llama"]
    loaded = HfCheckpoint.open(str(folder), {}).load(CPU, torch.float32)
    seen: list[int] = []
    trunk: list[int] = []
    loaded.model.lm_head.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    loaded.model.model.layers[0].register_forward_hook(lambda module, given, out: trunk.append(1))
    inputs = torch.zeros(1, 40, dtype=torch.long)
    with torch.inference_mode():
        assert [c.shape for c in loaded.logits(inputs, 5)] == [(1, 5, V)]
        assert (seen, trunk) == ([5], [1])
        monkeypatch.setitem(base.HEAD_CHUNK_ELEMENTS, "cpu", 2 * V)
        assert [c.shape[1] for c in loaded.logits(inputs, 5)] == [2, 2, 1]
    assert (seen, trunk) == ([5, 2, 2, 1], [1, 1])
    assert "forward" not in vars(loaded.model.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """Loaded in the run's dtype, whatever it is stored in; both are said."""
    _, made = saved["llama"]
    folder = folders.save(tmp_path, folders.model("llama").to(dtype))
    checkpoint = HfCheckpoint.open(str(folder), {})
    assert checkpoint.description.stored_dtypes == (("BF16",) if dtype == torch.bfloat16 else ("F16",))
    assert next(checkpoint.load(CPU, torch.float32).model.parameters()).dtype == torch.float32
    low = checkpoint.load(CPU, dtype)
    assert {p.dtype for p in low.model.parameters()} == {dtype}
    document, window = folders.documents()[0], WINDOWS[0]
    ((_, (row,)),) = score(low, [document], [(0, window)])
    np.testing.assert_allclose(row, folders.expected(made, document, window), rtol=0, atol=0.3)


def test_shards_and_tied_embeddings(tmp_path: Path) -> None:
    made = folders.model(transformers.LlamaConfig(**folders.sized(tie_word_embeddings=True)))
    folder = folders.save(tmp_path, made, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    checkpoint = HfCheckpoint.open(str(folder), {})
    assert checkpoint.description.parameters == sum(p.numel() for p in made.parameters())
    ((row, *_),) = folders.scored(folder, [WINDOWS[1]])
    np.testing.assert_allclose(row, folders.expected(made, folders.documents()[0], WINDOWS[1]), atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_pickled_weights(name: str, saved: dict[str, tuple[Path, Any]]) -> None:
    """pytorch_model.bin, whole and in shards, with the buffers that older releases stored."""
    import json  # noqa: PLC0415

    folder, made = saved[name]
    for shards in (1, 2):
        other = folder.parent / f"{name}-{shards}-pickled"
        other.mkdir(exist_ok=True)
        (other / "config.json").write_bytes((folder / "config.json").read_bytes())
        state = {key: value.clone() for key, value in made.state_dict().items()}
        if name == "gpt2":
            state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
            state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        else:
            state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        if shards == 1:
            torch.save(state, other / "pytorch_model.bin")
        else:
            names = sorted(state)
            where = {n: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, n in enumerate(names)}
            for file in set(where.values()):
                torch.save({n: state[n] for n in names if where[n] == file}, other / file)
            index = {"metadata": {}, "weight_map": where}
            (other / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        assert HfCheckpoint.open(str(other), {}).description.details["weights"] == "pickle"
        ((row, *_),) = folders.scored(other, [WINDOWS[1]])
        np.testing.assert_allclose(row, folders.expected(made, folders.documents()[0], WINDOWS[1]), atol=1e-5)


def test_weights_that_are_not_finite_fail_at_scoring(tmp_path: Path) -> None:
    made = folders.model("llama")
    with torch.no_grad():
        made.model.norm.weight[3] = torch.nan
    folder = folders.save(tmp_path, made)
    with pytest.raises(NotFiniteError, match="nan"):
        folders.scored(folder, WINDOWS[:1])


def test_sha256_is_of_the_files_in_order(tmp_path: Path) -> None:
    import hashlib  # noqa: PLC0415

    folder = folders.save(tmp_path, folders.model("llama"), max_shard_size="20KB")
    raw = b"".join(path.read_bytes() for path in sorted(folder.glob("model-*.safetensors")))
    assert HfCheckpoint.open(str(folder), {}).description.weights_sha256 == hashlib.sha256(raw).hexdigest()


def test_global_settings_are_left_as_they_were(saved: dict[str, tuple[Path, Any]]) -> None:
    folder, _ = saved["llama"]
    log = transformers.utils.logging
    before = (log.get_verbosity(), log.is_progress_bar_enabled(), torch.get_default_dtype())
    HfCheckpoint.open(str(folder), {}).load(CPU, torch.bfloat16)
    assert (log.get_verbosity(), log.is_progress_bar_enabled(), torch.get_default_dtype()) == before


def test_a_forward_of_the_trunks_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's patch of the trunk, as accelerate's hooks are: windows are scored with it, and it stays."""
    monkeypatch.setitem(base.HEAD_CHUNK_ELEMENTS, "cpu", 7 * V)
    made = folders.model("llama")
    own = made.model.forward

    def patched(*words: Any, **named: Any) -> Any:
        output = own(*words, **named)
        output.last_hidden_state = 0.5 * output.last_hidden_state
        return output

    plain = folders.expected(made, folders.documents()[0], WINDOWS[0])
    made.model.forward = patched
    found = folders.documents()
    loaded = HfModel(made, CPU, torch.float32, "made")
    for document in found:
        (_, (losses,)) = next(iter(score(loaded, [document], [(0, WINDOWS[0])])))
        assert vars(made.model)["forward"] is patched
        np.testing.assert_allclose(losses, folders.expected(made, document, WINDOWS[0]), rtol=0, atol=1e-5)
    assert np.abs(plain - folders.expected(made, found[0], WINDOWS[0])).max() > 1e-2
