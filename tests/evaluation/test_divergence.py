"""``--divergence-from`` through whole runs: what is stored, what is computed again, what is refused."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import kerple_eval
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.records.cell import Cell
from tests.helpers.command import Cli

PROTOCOLS = ("full-context", "sliding-window:stride=8", "prefix")


def run(models: dict[str, str], library: Path, out: Path, *labels: str, **options: Any) -> kerple_eval.Run:
    options = {"protocols": PROTOCOLS, "lengths": (16, 32), "keep_short": False} | options
    return kerple_eval.evaluate([models[label] for label in labels], text=library, out=out, **options)


def cells(made: kerple_eval.Run) -> list[Cell]:
    found = list(made.cells())
    assert all(isinstance(cell, Cell) for cell in found), found
    return [cell for cell in found if isinstance(cell, Cell)]


def same(left: Cell, right: Cell) -> None:
    assert left.key == right.key
    np.testing.assert_array_equal(np.concatenate(left.losses), np.concatenate(right.losses))
    assert left.divergence is not None and right.divergence is not None
    assert left.divergence.sha256 == right.divergence.sha256


def test_added_to_a_finished_run_it_is_what_it_is_from_the_start(
    models: dict[str, str], library: Path, tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    """Losses and summary as without it to the byte; asked again, nothing is computed."""
    plain = run(models, library, tmp_path / "later", "alibi", "nope")
    before = (plain.folder / "summary.csv").read_bytes()
    lossy = [np.concatenate(cell.losses) for cell in cells(plain)]
    assert all(cell.divergence is None and cell.header.divergence is None for cell in cells(plain))
    later = run(models, library, plain.folder, "alibi", "nope", divergence_from=models["rope"])
    start = run(models, library, tmp_path / "start", "alibi", "nope", divergence_from=models["rope"])
    for one, other, loss in zip(cells(later), cells(start), lossy, strict=True):
        same(one, other)
        np.testing.assert_array_equal(np.concatenate(one.losses), loss)
        assert one.header.divergence == other.header.divergence
        assert one.header.losses_from == other.header.losses_from
    for made in (later, start):
        assert (made.folder / "summary.csv").read_bytes() == before
    record = cells(start)[0].header.divergence
    assert record is not None and record.reference.label == "rope" and record.reference.dtype == "float32"
    rope = open_model(parse_model(models["rope"])).description
    assert record.reference.weights_sha256 == rope.weights_sha256
    passes.clear()
    for options in ({"divergence_from": models["rope"]}, {}):
        again = run(models, library, later.folder, "alibi", "nope", **options)
        assert not passes and len(cells(again)) == 12


def test_every_target_is_the_two_models_own(models: dict[str, str], library: Path, tmp_path: Path) -> None:
    """Against logits computed apart, one window and model at a time, in float64."""
    made = run(models, library, tmp_path / "out", "kerple-log", divergence_from=models["alibi"])
    q, p = (
        open_model(parse_model(models[name])).load(torch.device("cpu"), torch.float32)
        for name in ("kerple-log", "alibi")
    )
    texts = [line.encode() for line in pd.read_json(library, lines=True)["text"]]
    named = {bytes(t): np.frombuffer(t, dtype=np.uint8).astype(np.int64) for t in texts}
    by_size = {len(ids): ids for ids in named.values()}
    for cell in cells(made):
        assert cell.divergence is not None
        for number, window in enumerate(cell.windows):
            ids = by_size[cell.header.documents[cell.document[number]].tokens]
            inputs = torch.from_numpy(ids[window.start : window.stop])[None]
            with torch.inference_mode():
                rows = [torch.cat(list(m.logits(inputs, window.targets)), 1)[0].double() for m in (p, q)]
            ln_p, ln_q = (x - x.logsumexp(-1, keepdim=True) for x in rows)
            expected = (ln_p.exp() * (ln_p - ln_q)).sum(-1).numpy()
            found = {name: values[number] for name, values in cell.divergence.columns.items()}
            np.testing.assert_allclose(found["divergence"], expected, rtol=3e-4, atol=1e-6)
            np.testing.assert_allclose(found["entropy"], -(ln_q.exp() * ln_q).sum(-1).numpy(), rtol=1e-4)
            assert (found["agreement"] == (ln_p.argmax(-1) == ln_q.argmax(-1)).numpy()).all()
            wanted = ids[window.first_target : window.stop + 1]
            own = ln_q.numpy()[np.arange(len(wanted)), wanted]
            assert np.abs(found["rank"] - 1 - (ln_q.numpy() > own[:, None]).sum(-1)).max() <= 1
    frame = made.divergences(protocol="prefix", length=32)
    assert frame["reference"].unique().tolist() == ["alibi"] and frame["reference_length"].isna().all()
    assert len(frame) == len(made.losses(protocol="prefix", length=32))


def test_the_table(models: dict[str, str], library: Path, tmp_path: Path, invoke: Cli) -> None:
    out = tmp_path / "out"
    words = ["run", models["alibi"], "--text", library, "--length", "16,32", "--out", out]
    result = invoke(*words, "--divergence-from", models["rope"])
    assert result.exit_code == 0, result.output
    values = kerple_eval.open_run(out).divergences(length=32)["divergence"].to_numpy().astype(float)
    table = invoke("table", out, "--divergence", "--format", "csv")
    frame = pd.read_csv(StringIO(table.stdout)).set_index("length")
    assert frame.loc[32, "divergence"] == pytest.approx(values.mean(), rel=1e-12)
    assert frame.loc[32, "p99.9"] == pytest.approx(np.percentile(values, 99.9), rel=1e-12)
    assert frame.loc[32, "low"] < values.mean() < frame.loc[32, "high"]
    contexts = invoke("table", out, "--divergence", "--down", "contexts", "--format", "csv")
    by = pd.read_csv(StringIO(contexts.stdout)).query("length == 32")
    assert (by["divergence"] * by["targets"]).sum() == pytest.approx(values.sum(), rel=1e-9)
    assert by["targets"].sum() == len(values) and by["context_to"].max() == 32
    assert "divergence from rope, nats per target" in invoke("table", out, "--divergence").stdout
