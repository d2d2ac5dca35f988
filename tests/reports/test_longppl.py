"""LongPPL against its definition, target by target, from a run's frame of losses."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kerple_eval.records.cell import Cell, file_name, write_cell
from kerple_eval.records.run import open_run, write_summary
from kerple_eval.reports.tables.longppl import make
from kerple_eval.stats.intervals import ratio_interval
from kerple_eval.types import CellKey, UserError, Window
from tests.helpers.command import Cli, refusal
from tests.helpers.handmade import write_run
from tests.helpers.records import header
from tests.helpers.records import model as model_record

PROTOCOL = "aligned:k=8"


def made(
    folder: Path, *, models: tuple[str, ...] = ("ref", "other"), documents: int = 7,
    tokenizers: dict[str, str] | None = None, protocol: str = PROTOCOL,
) -> Path:  # fmt: skip
    """Losses drawn at 16, 32 and 64, so that some targets gain much; documents of 129 to 135 tokens."""
    rng = np.random.default_rng(3)
    write_run(folder, [], tokenizers)
    path = folder / "run.json"
    data = json.loads(path.read_text())
    readers = dict.fromkeys(models, "bytes") | (tokenizers or {})
    data["specification"]["models"] = [
        model_record(m, scheme=m, train_length=16, tokenizer=readers[m]) for m in models
    ]
    data["specification"]["protocols"] = [{"protocol": protocol, "lengths": [16, 32, 64], "longest": 64}]
    path.write_text(json.dumps(data))
    rows = []
    for model in models:
        for length in (16, 32, 64):
            windows = [Window(e - length, e, e - 7) for _ in range(documents) for e in (64, 128)]
            facts = header(
                [(f"d{i}", 129 + i, f"{readers[model]}{i}") for i in range(documents)], scheme=model
            )
            losses = [(rng.gamma(1.5, 2.0, 8) * 16 / length).astype(np.float32) for _ in windows]
            key = CellKey(model, "sotu", protocol, length, 64)
            cell = Cell(key, facts, np.repeat(np.arange(documents), 2), windows, losses, None)
            write_cell(folder, cell)
            rows.append(cell.summary())
    write_summary(folder, rows)
    return folder


def definition(frame: pd.DataFrame, short: int, alpha: float, beta: float) -> dict[tuple[str, int], float]:
    """exp(mean loss over targets with l_short - l_long > alpha and l_long < -beta), of every cell."""
    of = {
        (model, length): {(r.document, r.target): float(r.loss) for r in part.itertuples()}
        for (model, length), part in frame.groupby(["model", "length"])
    }
    before, after = of["ref", short], of["ref", 64]
    keys = [t for t in after if before[t] - after[t] > alpha and after[t] < -beta]
    assert 10 < len(keys) < len(after)
    return {cell: math.exp(math.fsum(losses[t] for t in keys) / len(keys)) for cell, losses in of.items()}


@pytest.mark.parametrize(("short", "alpha", "beta"), [(None, 2.0, -2.0), (32, 1.0, -0.5), (16, 0.5, -1.0)])
def test_definition(tmp_path: Path, short: int | None, alpha: float, beta: float) -> None:
    folder = made(tmp_path / "run")
    wanted = definition(open_run(folder).losses(), short or 16, alpha, beta)
    text = make([folder], "ref", "csv", alpha=alpha, beta=beta, short=short)
    rows = {(r["model"], int(r["length"])): r for r in csv.DictReader(io.StringIO(text))}
    assert rows.keys() == wanted.keys()
    for cell, value in wanted.items():
        assert float(rows[cell]["longppl"]) == pytest.approx(value, rel=1e-12)
        assert rows[cell]["targets_in_common"] == str(7 * 16)
    nll = {(r["model"], r["length"]): r["nll"] for _, r in open_run(folder).summary().iterrows()}
    assert all(float(rows[cell]["nll_of_all"]) == pytest.approx(nll[cell]) for cell in rows)


def test_interval_is_over_documents_with_key_tokens(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    frame = (
        open_run(folder).losses().set_index(["model", "length", "document", "target"])["loss"].sort_index()
    )
    before, after = frame["ref", 16], frame["ref", 64]
    mine = frame["other", 32][(before - after > 2) & (after < 2)].astype(float)
    parts = mine.groupby("document").agg(["sum", "count"])
    found = ratio_interval(parts["sum"].to_numpy(), parts["count"].to_numpy())
    row = next(
        r for r in csv.DictReader(io.StringIO(make([folder], "ref", "csv")))
        if (r["model"], r["length"]) == ("other", "32")
    )  # fmt: skip
    assert float(row["low"]) == pytest.approx(math.exp(found.low), rel=1e-6)
    assert float(row["high"]) == pytest.approx(math.exp(found.high), rel=1e-6)
    assert int(row["documents"]) == len(parts)


def test_more_context_is_needed(tmp_path: Path) -> None:
    """A protocol whose longer length shows a target no more has no key token at it, whatever its losses."""
    folder = made(tmp_path / "run", protocol="prefix")
    for cell in list(open_run(folder).cells()):
        assert isinstance(cell, Cell)
        windows = [Window(0, 16, 9)] * len(cell.windows)
        write_cell(folder, Cell(cell.key, cell.header, cell.document, windows, cell.losses, None))
    text = make([folder], "ref")
    assert "0 key tokens (0.00% of 0 targets) in 0 documents" in text
    assert "no key tokens" in text
    row = next(csv.DictReader(io.StringIO(make([folder], "ref", "csv"))))
    assert (row["longppl"], row["nll"], row["low"], row["note"]) == ("", "", "", "no key tokens")


def test_a_cell_that_lacks_key_tokens_has_no_number(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    cell = next(c for c in open_run(folder).cells() if (c.key.model, c.key.length) == ("other", 32))
    assert isinstance(cell, Cell)
    short = Cell(cell.key, cell.header, cell.document[:4], cell.windows[:4], cell.losses[:4], None)
    write_cell(folder, short)
    rows = list(csv.DictReader(io.StringIO(make([folder], "ref", "csv"))))
    (row,) = (r for r in rows if (r["model"], r["length"]) == ("other", "32"))
    assert row["longppl"] == ""
    key_tokens = next(int(r["key_tokens"]) for r in rows if r["model"] == "ref")
    assert row["note"] == f"scores {row['key_tokens']} of {key_tokens} key tokens"
    assert all(r["longppl"] for r in rows if r is not row)


def test_models_of_several_runs_and_no_interval_of_few(tmp_path: Path) -> None:
    first, second = (made(tmp_path / n, models=(m,), documents=3) for n, m in (("a", "ref"), ("b", "new")))
    text = make([first, second], "ref")
    assert "new" in text and "not enough documents" in text
    assert "too low" in text
    assert "| model |" in make([first, second], "ref", "markdown")


def test_refusals(tmp_path: Path, invoke: Cli) -> None:
    folder = str(made(tmp_path / "run"))
    cases = [
        (
            ["--reference", "reff"],
            "unknown reference model 'reff': did you mean 'ref'? available: ref, other",
        ),
        (["--reference", "ref", "--short", "64"], "at length 64 and a longer one (it has 16, 32, 64)"),
        (["--reference", "ref", "--short", "17"], "at length 17 and a longer one"),
        (["--reference", "ref", "--format", "pdf"], "unknown table format 'pdf'"),
        (["--reference", "ref", "--alpha", "nan"], "'--alpha': nan is not a finite number"),
    ]
    for words, message in cases:
        assert message in refusal(invoke("longppl", folder, *words))
    mixed = str(made(tmp_path / "mixed", tokenizers={"other": "bpe"}))
    line = refusal(invoke("longppl", mixed, "--reference", "ref"))  # its text is nowhere
    assert "sotu" in line
    gone = made(tmp_path / "gone")
    for length in (32, 64):
        (gone / "cells" / f"{file_name(CellKey('ref', 'sotu', PROTOCOL, length, 64))}.parquet").unlink()
    with pytest.raises(UserError, match=r"no finished cells of one protocol at two lengths \(it has 16\)"):
        make([gone], "ref")
