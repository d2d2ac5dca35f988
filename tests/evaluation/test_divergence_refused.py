"""``--divergence-from``: what is refused in one line, what fails, and what a kill leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import kerple_eval
from kerple_eval.evaluation.in_progress import FILE
from kerple_eval.models import scoring
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.records.cell import Cell, FailedCell
from kerple_eval.records.merging import merge
from kerple_eval.types import UserError
from tests.helpers import tiny
from tests.helpers.command import Cli, make_model, refusal
from tests.helpers.victim import killed_at


def words(models: dict[str, str], text: Path, out: Path, *more: str) -> list[str]:
    return ["run", models["alibi"], "--text", str(text), "--length", "16,32", "--out", str(out), *more]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--divergence-from", "self@17"], "self@17: is longer than length 16; expected at most"),
        (["--divergence-from", "self@x"], "expected a length in tokens after self@, as in self@512"),
        (["--divergence-from", "self@0"], "expected a length in tokens after self@"),
        (["--divergence-from", "self@8", "--protocol", "last:k=4", "--length", "20"], "other targets at 8"),
        (["--divergence-from", "self@8", "--protocol", "aligned:k=9"], "self@8: "),
        (["--divergence-from", "zoo:nope", "--precision", "1%"], "has no meaning with --precision"),
        (["--divergence-from", "zoo:nop"], "--divergence-from zoo:nop: unknown zoo model"),
        (["--divergence-from", ""], "is empty"),
    ],
)  # fmt: skip
def test_refused_in_one_line(
    models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli, more: list[str], line: str
) -> None:
    assert line in refusal(invoke(*words(models, text, tmp_path / "out", *more)))
    assert not (tmp_path / "out" / "cells").exists()


def test_another_tokeniser_or_vocabulary_is_refused(tmp_path: Path, text: Path) -> None:
    vocabulary = {"<unk>": 0} | {chr(97 + i): i + 1 for i in range(26)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    other = {"type": "WordLevel", "vocab": vocabulary | {"b": 1, "a": 2}, "unk_token": "<unk>"}
    more = {"type": "WordLevel", "vocab": vocabulary | {"aa": 27}, "unk_token": "<unk>"}
    made = {
        name: make_model(
            tmp_path / name, "nope", vocabulary=32,
            tokenizer=json.dumps(
                {"version": "1.0", "model": kind, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": []}
            ).encode(),
        )
        for name, kind in (("one", model), ("swapped", other), ("more", more))
    }  # fmt: skip
    plain = make_model(tmp_path / "bytes", "nope")

    def run(reference: Path) -> kerple_eval.Run:
        return kerple_eval.evaluate(
            str(made["one"]), text="a b c " * 30, lengths=[8], divergence_from=str(reference)
        )

    with pytest.raises(UserError, match=r"its tokeniser \(tokenizer.json:\w+\) is not that of model one"):
        run(made["swapped"])
    with pytest.raises(UserError, match=r"its tokeniser \(bytes\) is not that of model one"):
        run(plain)
    assert run(made["more"]).divergences()["divergence"].notna().all()  # no id is two tokens
    ids = np.arange(20) % 9
    with pytest.raises(UserError, match="it predicts 11 tokens, model m 12; a divergence is between"):
        kerple_eval.evaluate(
            {"m": lambda ids: torch.zeros(*ids.shape, 12)}, tokens=ids, lengths=[8],
            divergence_from=lambda ids: torch.zeros(*ids.shape, 11),
        )  # fmt: skip


def test_cells_of_losses_alone_say_which_command(
    models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli
) -> None:
    out = tmp_path / "out"
    assert invoke(*words(models, text, out)).exit_code == 0
    for command in (["table", out, "--divergence"], ["plot", out, "--kind", "divergence"]):
        line = refusal(invoke(*command))
        assert "its cells hold losses alone; compute what is missing by: " in line
        assert line.endswith("--divergence-from MODEL")
    assert "--reach has no meaning with --divergence" in refusal(
        invoke("table", out, "--divergence", "--reach")
    )
    assert "did you mean 'contexts'" in refusal(invoke("table", out, "--divergence", "--down", "context"))


def test_an_edited_reference_is_another_one(text: Path, tmp_path: Path, invoke: Cli) -> None:
    """Cells keep the weights' hash, so that no run holds divergences from two states of one reference."""
    model, reference = (str(make_model(tmp_path / name, "nope", n)) for n, name in enumerate("ab"))
    out = tmp_path / "out"
    command = ["run", model, "--text", str(text), "--length", "16", "--out", str(out)]
    assert invoke(*command, "--divergence-from", reference).exit_code == 0
    shutil.rmtree(reference)
    edited = tiny.decoder(
        tiny.config("nope", vocab_size=256, width=16, heads=2, mlp_width=24, train_length=16), 9
    )
    write_checkpoint(Path(reference), edited.float(), seed=1)
    line = refusal(invoke(*command, "--divergence-from", reference))
    assert "its divergences are from another reference" in line and "weights_sha256" in line
    assert "choose another --out" in line


def test_a_reference_that_does_not_fit_fails_cells_but_takes_no_losses(
    models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Any, device: Any, dtype: Any) -> Any:
        if self.description.scheme == "rope":
            raise torch.OutOfMemoryError("not enough memory for the reference")
        return real(self, device, dtype)

    real = NativeCheckpoint.load
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    assert invoke(*words(models, text, out)).exit_code == 0
    losses = kerple_eval.open_run(out).losses()
    more = ["--divergence-from", models["rope"]]
    with monkeypatch.context() as patch:
        patch.setattr(NativeCheckpoint, "load", load)
        result = invoke(*words(models, text, fresh, *more))
        assert result.exit_code == 1 and "2 failed" in result.stdout
        failed = list(kerple_eval.open_run(fresh).cells())
        assert all(isinstance(c, FailedCell) and "not enough memory for the ref" in c.error for c in failed)
        result = invoke(*words(models, text, out, *more))
    assert result.exit_code == 1
    assert (
        "without divergences: 2 cells: OutOfMemoryError: not enough memory for the reference" in result.output
    )
    run = kerple_eval.open_run(out)
    assert run.losses().equals(losses) and set(run.summary()["status"]) == {"ok"}
    for cell in run.cells():
        assert isinstance(cell, Cell) and cell.header.divergence is not None
        assert str(cell.header.divergence.error).startswith("OutOfMemoryError")
    for folder in (out, fresh):  # the same command computes what is missing
        assert invoke(*words(models, text, folder, *more)).exit_code == 0
    tables = [kerple_eval.open_run(folder).divergences() for folder in (out, fresh)]
    assert tables[0].equals(tables[1]) and len(tables[0]) == len(losses)


def test_memory_that_runs_out_in_a_pass_halves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models' passes count: where the second does not fit, the windows of the pass are split."""
    made = [
        DecoderModel(tiny.decoder(tiny.config("nope"), n), torch.device("cpu"), torch.float32) for n in (0, 1)
    ]
    ids = tiny.tokens(41, seed=1)
    windows = [(0, scoring.Window(s, s + 8, s + 1)) for s in range(0, 32, 8)]
    whole = {
        i: row
        for members, rows in scoring.score(made[0], [ids], windows, reference=made[1])
        for i, row in zip(members, rows, strict=True)
    }
    real = DecoderModel.logits

    def logits(self: DecoderModel, inputs: torch.Tensor, rows: int) -> Any:
        if self is made[1] and len(inputs) > 2:
            raise torch.OutOfMemoryError
        return real(self, inputs, rows)

    monkeypatch.setattr(DecoderModel, "logits", logits)
    budget = scoring.Budget(32)
    parts = list(scoring.score(made[0], [ids], windows, reference=made[1], budget=budget))
    assert budget.tokens == 16 and [len(members) for members, _ in parts] == [2, 2]
    for members, rows in parts:
        for i, row in zip(members, rows, strict=True):
            np.testing.assert_allclose(row, whole[i], rtol=1e-4, atol=1e-6)


def test_killed_between_cells_it_ends_in_the_same_bytes(
    models: dict[str, str], text: Path, tmp_path: Path
) -> None:
    def arguments(out: Path) -> dict[str, Any]:
        more = {"protocols": ["full-context"], "lengths": [16, 32], "divergence_from": models["rope"]}
        return {"models": models["alibi"], "text": text, "out": out, **more}

    plain = {k: v for k, v in arguments(tmp_path / "whole").items() if k != "divergence_from"}
    kerple_eval.evaluate(**plain)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    whole = kerple_eval.evaluate(**arguments(tmp_path / "whole"))
    for at in (3, 4, 6):  # around the first cell's file
        out = tmp_path / f"killed-{at}"
        shutil.copytree(tmp_path / "again", out)
        assert killed_at(arguments(out), at, "before")
        held = list(kerple_eval.open_run(out).cells())
        assert all(isinstance(cell, Cell) for cell in held)  # whole with divergences, or as they were
        ended = kerple_eval.evaluate(**arguments(out))
        assert ended.divergences().equals(whole.divergences())
        assert (out / "summary.csv").read_bytes() == (whole.folder / "summary.csv").read_bytes()


def test_a_cell_that_kills_twice_keeps_its_losses(
    models: dict[str, str], text: Path, tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    options = {"text": text, "lengths": [16], "out": tmp_path / "out"}
    run = kerple_eval.evaluate(models["alibi"], **options)
    key = {"model": "alibi", "task": "text", "protocol": "full-context", "length": 16, "longest": None}
    (run.folder / FILE).write_text(json.dumps({"cell": key, "deaths": 1}))
    passes.clear()
    run = kerple_eval.evaluate(models["alibi"], **options, divergence_from=models["rope"])
    (cell,) = run.cells()
    assert isinstance(cell, Cell) and cell.divergence is None and cell.header.divergence is not None
    assert cell.header.divergence.killed and "two processes in a row" in str(cell.header.divergence.error)
    kerple_eval.evaluate(models["alibi"], **options, divergence_from=models["rope"])
    assert not passes
    run = kerple_eval.evaluate(models["alibi"], **options, divergence_from=models["rope"], retry=True)
    assert len(run.divergences()) == len(run.losses())


def test_a_value_changed_on_disk_is_found(models: dict[str, str], text: Path, tmp_path: Path) -> None:
    run = kerple_eval.evaluate(
        models["alibi"], text=text, lengths=[16], out=tmp_path / "out", divergence_from=models["rope"]
    )
    (file,) = (run.folder / "cells").glob("*.parquet")
    table = pq.read_table(file)
    whole = file.read_bytes()
    for column, value, line in (
        ("rank", 7, "divergences do not have the sha256"), ("entropy", -1.0, "negative or not finite"),
        ("rank", 0, "below 1"),
    ):  # fmt: skip
        rows = table.column(column).to_pylist()
        rows[0][0] = value
        place, field = table.schema.get_field_index(column), table.field(column)
        changed = table.set_column(place, field, pa.array(rows, field.type))
        pq.write_table(changed, file, write_page_checksum=True)
        with pytest.raises(UserError, match=line):
            list(run.cells())
    pq.write_table(table.drop_columns(["rank"]), file)
    with pytest.raises(UserError, match="disagree on whether it holds divergences"):
        list(run.cells())
    file.write_bytes(whole)
    assert len(run.divergences())


def test_merged_runs_keep_the_divergences(models: dict[str, str], text: Path, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Path:
        return kerple_eval.evaluate(
            models["alibi"], text=text, lengths=[16], out=tmp_path / name, **options
        ).folder

    plain = run("plain")
    one, other = (run(name, divergence_from=models[name]) for name in ("rope", "nope"))
    merge([plain, one], tmp_path / "both")
    assert (
        kerple_eval.open_run(tmp_path / "both").divergences().equals(kerple_eval.open_run(one).divergences())
    )
    with pytest.raises(UserError, match="their divergences are from different references"):
        merge([one, other], tmp_path / "none")
