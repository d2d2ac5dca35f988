"""One set of weights as GPT-NeoX wrote it and as transformers does: the same losses by either format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kerple_eval

CONFIG = """{
  # as GPT-NeoX's own files are: comments, trailing commas, True
  "num-layers": 3, "hidden-size": 32, "num-attention-heads": 4, "seq-length": 64,
  "max-position-embeddings": 64, "pos-emb": "rotary", "rotary_pct": 0.25, "no-weight-tying": True,
  "gpt_j_residual": %s,
}
"""


@pytest.mark.parametrize("parallel", [True, False])
def test_pythias_shape(parallel: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        rotary_pct=0.25, max_position_embeddings=64, use_parallel_residual=parallel, hidden_act="gelu",
    )  # fmt: skip
    model = transformers.GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "hf")
    as_neox(model.state_dict(), tmp_path / "neox", CONFIG % parallel)
    ids = torch.randint(0, 64, (201,)).tolist()
    (tmp_path / "t.jsonl").write_text(json.dumps({"tokens": ids}) + "\n")
    places = [str(tmp_path / name) for name in ("hf", "neox")]
    run = kerple_eval.evaluate(
        places, tokens=tmp_path / "t.jsonl", lengths=[64, 200], out=tmp_path / "run", device="cpu"
    )
    for length in (64, 200):
        first, second = (run.losses(model=name, length=length)["loss"] for name in ("hf", "neox"))
        assert len(first) == 200
        assert first.to_numpy() == pytest.approx(second.to_numpy(), rel=1e-5, abs=1e-5)
        assert first.mean() == pytest.approx(second.mean(), rel=1e-6)


def as_neox(state: dict[str, Tensor], root: Path, config: str) -> None:
    step = root / "global_step10"
    (step / "configs").mkdir(parents=True)
    (step / "configs" / "model.yml").write_text(config)
    (root / "latest").write_text("global_step10")
    head = next(name for name in ("embed_out.weight", "lm_head.weight") if name in state)
    layers: dict[int, dict[str, str]] = {
        0: {"word_embeddings.weight": "gpt_neox.embed_in.weight"},
        6: {f"norm.{x}": f"gpt_neox.final_layer_norm.{x}" for x in ("weight", "bias")},
        7: {"final_linear.weight": head},
    }
    for n in range(3):
        prefix = f"gpt_neox.layers.{n}."
        layers[n + 2] = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
    for number, names in layers.items():
        tensors = {new: state[old].clone() for new, old in names.items()}
        torch.save(tensors, step / f"layer_{number:02d}-model_00-model_states.pt")
