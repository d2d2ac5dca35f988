"""transformers' GPT-NeoX and GPT-2 as native checkpoints: the same logits; anything else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from click.testing import CliRunner  # noqa: E402

from kerple_eval.cli.main import cli  # noqa: E402
from kerple_eval.models.hf import placement  # noqa: E402
from kerple_eval.models.native import NativeCheckpoint  # noqa: E402
from kerple_eval.models.open import open_model, parse_model  # noqa: E402
from tests.helpers.hf_folders import model, save  # noqa: E402

NEOX: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 50, "rotary_pct": 0.5, "max_position_embeddings": 32,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPTNeoXConfig(**NEOX, use_parallel_residual=True),
        transformers.GPTNeoXConfig(**NEOX, use_parallel_residual=False, hidden_act="gelu_new"),
        transformers.GPTNeoXConfig(**NEOX, tie_word_embeddings=True, rope_theta=500.0),
        transformers.GPT2Config(**GPT2),
        transformers.GPT2Config(**GPT2, n_inner=30, tie_word_embeddings=False, activation_function="relu"),
    ],
)
def test_the_converted_checkpoint_computes_the_same(config: Any, tmp_path: Path) -> None:
    made = model(config)
    save(tmp_path / "hf", made)
    done = CliRunner().invoke(cli, ["convert", f"hf:{tmp_path / 'hf'}", str(tmp_path / "native")])
    assert done.exit_code == 0, done.output
    native = NativeCheckpoint(tmp_path / "native")
    assert native.description.train_length == 32
    ids = torch.arange(30)[None] * 7 % 40
    with torch.no_grad():
        decoder = native.decoder()
        torch.testing.assert_close(decoder.head(decoder(ids)), made(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            transformers.LlamaConfig(
                vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8
            ),
            "LlamaForCausalLM has no native form",
        ),
        (transformers.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True), "scaling by layer"),
        (transformers.GPTNeoXConfig(**NEOX, hidden_act="quick_gelu"), "activation 'quick_gelu'"),
    ],
)
def test_what_the_decoder_has_not_is_refused(config: Any, says: str, tmp_path: Path) -> None:
    save(tmp_path / "hf", model(config))
    done = CliRunner().invoke(cli, ["convert", f"hf:{tmp_path / 'hf'}", str(tmp_path / "native")])
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "native").exists()


def test_an_extended_rope_has_no_native_form(tmp_path: Path) -> None:
    save(tmp_path / "hf", model(transformers.GPTNeoXConfig(**NEOX)))
    extended = f"hf:{tmp_path / 'hf'},rope=yarn,factor=4"
    done = CliRunner().invoke(cli, ["convert", extended, str(tmp_path / "native")])
    assert done.exit_code == 2
    assert "rope_type yarn has no native form" in done.stderr


def test_a_modifier_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "hf", model(transformers.GPTNeoXConfig(**NEOX)))
    extended = f"hf:{tmp_path / 'hf'},window=9,log-n=16"
    done = CliRunner().invoke(cli, ["convert", extended, str(tmp_path / "native")])
    assert done.exit_code == 0, done.output
    native, there = NativeCheckpoint(tmp_path / "native"), open_model(parse_model(extended))
    assert native.description.scheme == there.description.scheme == "rope,window=9,log-n=16"
    ids = torch.arange(40)[None] * 7 % 40
    device = torch.device("cpu")
    with torch.no_grad():
        decoder = native.decoder()
        (expected,) = there.load(device, torch.float32).logits(ids, 40)
        torch.testing.assert_close(decoder.head(decoder(ids)), expected, rtol=1e-5, atol=1e-5)


def test_a_model_in_parts_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "hf", model(transformers.GPTNeoXConfig(**NEOX)))
    monkeypatch.setattr(placement, "memory", lambda device: {"cpu": 10_000})  # the rest on disk
    done = CliRunner().invoke(
        cli, ["convert", f"hf:{tmp_path / 'hf'},devices=auto", str(tmp_path / "native")]
    )
    assert done.exit_code == 2
    assert "is converted on the CPU as a whole; leave devices=auto out" in done.stderr
