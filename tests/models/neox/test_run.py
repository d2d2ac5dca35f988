"""neox checkpoints through a whole run, and out again in the native format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.models.neox.checkpoint import NeoxCheckpoint
from kerple_eval.types import UserError
from tests.helpers import neox_writer as writer
from tests.helpers.gpt2_files import gpt2_files
from tests.helpers.neox_writer import draw, variant, write

TOKENS = np.random.default_rng(0).integers(48, size=301)


def test_a_run_over_token_ids(tmp_path: Path) -> None:
    """Exact and with the release's rounding, in one table; the record says which."""
    model = variant(pos_emb="kerple_log")
    folder = write(tmp_path / "ckpt", model, shards=2)
    (tmp_path / "t.jsonl").write_text(json.dumps({"tokens": TOKENS.tolist()}) + "\n")
    models = [f"exact={folder}", f"release=neox:{folder},numerics=release"]
    run = kerple_eval.evaluate(
        models, tokens=tmp_path / "t.jsonl", lengths=[100, 300], out=tmp_path / "out", device="cpu"
    )
    table = run.summary().set_index(["model", "length"])
    assert table["status"].tolist() == ["ok"] * 4
    tensors = draw(model)
    whole = writer.losses(tensors, model, TOKENS)
    parts = [writer.losses(tensors, model, TOKENS[s : s + 101]) for s in (0, 100, 200)]
    for length, expected in ((100, np.concatenate(parts)), (300, whole)):
        assert table.loc[("exact", length), "nll"] == pytest.approx(expected.mean(), rel=1e-6)
        assert table.loc[("release", length), "nll"] == pytest.approx(expected.mean(), rel=0.02)
        assert table.loc[("release", length), "nll"] != table.loc[("exact", length), "nll"]
        assert table.loc[("exact", length), "dtype"] == "float32"
        assert table.loc[("release", length), "dtype"] == "bfloat16"
        assert table.loc[("exact", length), "seed"] == 1235


def test_a_run_over_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "ckpt", variant(pos_emb="rotary", rotary_pct=0.25, vocabulary=264))
    gpt2_files(folder)
    text = "the cat sat on the mat; naïve 数 🙃. " * 12
    (tmp_path / "a.txt").write_text(text)
    run = kerple_eval.evaluate(
        str(folder), text=tmp_path / "a.txt", lengths=[64], out=tmp_path / "out", device="cpu"
    )
    (row,) = run.summary().to_dict("records")
    assert row["status"] == "ok"
    assert row["bits_per_byte"] > 0
    assert row["targets"] < len(text.encode())


def test_windows_past_the_learned_positions(tmp_path: Path) -> None:
    folder = write(tmp_path / "ckpt", variant(pos_emb="learned", positions=100))
    (tmp_path / "t.jsonl").write_text(json.dumps({"tokens": TOKENS.tolist()}) + "\n")
    with pytest.raises(UserError, match=r"positions \(learned\) end at 100, length 128 was asked for"):
        kerple_eval.evaluate(str(folder), tokens=tmp_path / "t.jsonl", lengths=[128], out=tmp_path / "out")


@pytest.mark.parametrize(
    "model",
    [
        *(variant(pos_emb=name, vocabulary=256) for name in writer.KERPLE),
        *(
            variant(pos_emb=name, vocabulary=256)
            for name in ("rpe", "alibi", "learned", "sinusoidal", "none")
        ),
        variant(rotary_pct=0.5, gpt_j_residual=True, gpt_j_tied=True, tied=True, fused=True, vocabulary=256),
        variant(norm="rmsnorm", activation="geglu", vocabulary=256),
    ],
    ids=lambda model: model.pos_emb,
)
def test_the_native_format_keeps_every_number(model: writer.Model, tmp_path: Path) -> None:
    made = NeoxCheckpoint.open(str(write(tmp_path / "neox", model, shards=2)), {})
    assert isinstance(made, NeoxCheckpoint)
    write_checkpoint(tmp_path / "native", made.decoder(), seed=made.description.seed)
    again = NativeCheckpoint(tmp_path / "native")
    ids = torch.from_numpy(TOKENS)[None]
    with torch.no_grad():
        decoders = [checkpoint.decoder() for checkpoint in (made, again)]
        first, second = (decoder.head(decoder(ids)) for decoder in decoders)
    assert torch.equal(first, second)
    assert again.description.parameters == made.description.parameters
    assert again.description.scheme == made.description.scheme
    assert again.description.warnings == ()
