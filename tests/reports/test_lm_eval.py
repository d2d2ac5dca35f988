"""lm-eval's layout, written and read: the summary's numbers to the bit, and what is missing stays missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import kerple_eval
from kerple_eval.records.cell import FailedCell, file_name, write_failure
from kerple_eval.records.run import open_run
from kerple_eval.reports.exports import export
from kerple_eval.stats.documents import document_sums
from kerple_eval.stats.intervals import ratio_interval
from tests.helpers import made_cells
from tests.helpers.command import Cli, refusal

PROTOCOLS = ["full-context", "yarn:stride=8"]
SECTIONS = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


@pytest.fixture(scope="module")
def run(models: dict[str, str], library: Path, tmp_path_factory: pytest.TempPathFactory) -> kerple_eval.Run:
    return kerple_eval.evaluate(
        [models["alibi"], f"mine={models['rope']}"], text=library, lengths=[16, 32], protocols=PROTOCOLS,
        keep_short=True, out=tmp_path_factory.mktemp("exchange") / "run",
    )  # fmt: skip


def test_round_trip(run: kerple_eval.Run, invoke: Cli, tmp_path: Path) -> None:
    done = invoke("export", str(run.folder), "--out", str(tmp_path / "out"))
    files = [tmp_path / "out" / name / "results.json" for name in ("alibi", "mine")]
    assert done.stdout.split() == [str(path) for path in files]
    frame = kerple_eval.read_lm_eval(tmp_path / "out")
    assert set(frame["file"]) == {str(path) for path in files}
    wide = frame.pivot(index=["model", "protocol", "length"], columns="metric", values="value")
    summary = run.summary()
    assert len(wide) == len(summary) == 8
    for _, row in summary.iterrows():
        found = wide.loc[(row["model"], row["protocol"], row["length"])]
        assert found["nll"] == row["nll"]
        assert found["token_perplexity"] == row["ppl"]
        assert found["bits_per_byte"] == row["bits_per_byte"]
        assert found["byte_perplexity"] == 2 ** row["bits_per_byte"]
    assert set(frame["samples"]) == {7}
    assert set(frame["filter"]) == {"none"}
    assert set(frame["n_shot"]) == {0}
    assert not frame["higher_is_better"].any()
    assert set(frame["version"]) == {"N/A"}  # a text of one's own has none


def test_standard_errors(run: kerple_eval.Run, tmp_path: Path, invoke: Cli) -> None:
    assert invoke("export", str(run.folder), "--out", str(tmp_path)).exit_code == 0
    frame = kerple_eval.read_lm_eval(tmp_path).set_index(["model", "name", "metric"])["stderr"]
    for cell in run.cells():
        sums = document_sums(cell)  # type: ignore[arg-type]
        name = f"text/{cell.key.protocol}/{cell.key.length}"
        error = ratio_interval(sums.sums, sums.counts).error
        assert frame[cell.key.model, name, "nll"] == error
        ppl = cell.summary()["ppl"]
        assert frame[cell.key.model, name, "token_perplexity"] == pytest.approx(ppl * error)
        if cell.key.protocol == "full-context":
            assert sums.bytes is not None
            bits = ratio_interval(sums.sums, sums.bytes).error / math.log(2)
            assert frame[cell.key.model, name, "bits_per_byte"] == pytest.approx(bits)
        else:  # its nll weighs windows, and has no interval by bytes
            assert math.isnan(frame[cell.key.model, name, "bits_per_byte"])


def test_layout(run: kerple_eval.Run, tmp_path: Path, invoke: Cli) -> None:
    """Every section of lm-eval's has every task; configs say which cell it is."""
    out = tmp_path / "one.json"
    assert invoke("export", str(run.folder), "--model", "alibi", "--out", str(out)).exit_code == 0
    data = json.loads(out.read_text())
    names = [f"text/{protocol}/{length}" for protocol in PROTOCOLS for length in (16, 32)]
    for section in SECTIONS:
        assert list(data[section]) == names
    summary = run.summary().query("model == 'alibi'").reset_index()
    for name, (_, row) in zip(names, summary.iterrows(), strict=True):
        found = data["configs"][name]["metadata"]
        assert [found[k] for k in ("task", "protocol", "length", "targets", "targets_hash")] == [
            row[k] for k in ("task", "protocol", "length", "targets", "targets_hash")
        ]
        assert data["n-samples"][name] == {"original": 7, "effective": 7}
    assert data["config"]["model"] == "native"
    assert data["config"]["model_sha"] == run.specification.models[0].weights_sha256
    assert data["model_name"] == "alibi"
    assert data["date"] > 1.7e9


def test_answers(models: dict[str, str], tmp_path: Path, invoke: Cli) -> None:
    made = kerple_eval.evaluate(
        models["rope"], tasks="associative-recall:pairs=2,ids=0-3,samples=30,depths=2", lengths=[16],
        out=tmp_path / "run",
    )  # fmt: skip
    assert invoke("export", str(made.folder), "--out", str(tmp_path / "x.json")).exit_code == 0
    frame = kerple_eval.read_lm_eval(tmp_path / "x.json").set_index("metric")
    exact = made.answers()["exact"].astype(float)
    row = frame.loc["exact_match"]
    assert (row["value"], row["samples"]) == (exact.mean(), 60)
    assert row["higher_is_better"]
    assert row["stderr"] == pytest.approx(exact.std(ddof=1) / math.sqrt(60))
    assert row["version"] == 1
    assert "bits_per_byte" not in frame.index  # ids spell no bytes


def test_failed_and_few(models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli) -> None:
    """A failed cell has no number; one document has no standard error."""
    own = kerple_eval.evaluate(models["rope"], text=text, lengths=[16, 32], out=tmp_path / "run")
    cell = next(iter(own.cells()))
    (own.folder / "cells" / f"{file_name(cell.key)}.parquet").unlink()
    write_failure(own.folder, FailedCell(cell.key, cell.header, "MemoryError: no room"))
    out = tmp_path / "x.json"
    assert invoke("export", str(own.folder), "--out", str(out)).exit_code == 0
    data = json.loads(out.read_text())
    assert list(data["results"]) == ["text/full-context/32"]
    assert data["kerple_eval"]["failed"] == {"text/full-context/16": "MemoryError: no room"}
    assert data["results"]["text/full-context/32"]["nll_stderr,none"] == "N/A"
    assert kerple_eval.read_lm_eval(out)["stderr"].isna().all()
    (own.folder / "cells" / f"{file_name(list(open_run(own.folder).cells())[1].key)}.parquet").unlink()
    assert "no finished cell to export" in refusal(invoke("export", str(own.folder), "--out", str(out)))


@pytest.mark.parametrize(("there", "original"), [(None, 3), (2, 3), (3, 3), (40, 40)])
def test_samples(there: int | None, original: int, tmp_path: Path) -> None:
    """Three documents scored: the text's count where that is more, and never fewer than were scored."""
    task = {"name": "book"} if there is None else {"name": "book", "selection": {"documents": there}}
    made = made_cells.cell("rope", made_cells.drawn(1, [9, 9, 9]))
    folder = made_cells.write_cells(tmp_path / "run", [made], tasks=[task])
    (path,) = map(Path, export(folder, tmp_path / "x.json"))
    samples = json.loads(path.read_text())["n-samples"]
    assert samples == {"book/full-context/64": {"original": original, "effective": 3}}


def test_files_of_lm_eval_itself(tmp_path: Path) -> None:
    """As published with a model on the hub, and the older layout without filters."""
    folder = tmp_path / "org__model"
    folder.mkdir()
    new = {
        "results": {"gsm8k": {
            "alias": "gsm8k", "sample_len": 1319, "exact_match,strict-match": 0.844,
            "exact_match_stderr,strict-match": 0.01, "exact_match,flexible-extract": 0.892,
            "exact_match_stderr,flexible-extract": "N/A",
        }},
        "group_subtasks": {"gsm8k": []}, "configs": {"gsm8k": {"metadata": {"version": 3.0}}},
        "versions": {"gsm8k": 3.0}, "n-shot": {"gsm8k": 5},
        "higher_is_better": {"gsm8k": {"exact_match": True}},
        "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}}, "model_name": "org/model",
    }  # fmt: skip
    (folder / "results_2026-04-15T13-55-33.588896.json").write_text(json.dumps(new))
    frame = kerple_eval.read_lm_eval(tmp_path)
    assert frame["filter"].tolist() == ["strict-match", "flexible-extract"]
    assert frame["value"].tolist() == [0.844, 0.892]
    assert frame["stderr"].fillna(-1).tolist() == [0.01, -1]
    assert set(frame["model"]) == {"org/model"}
    assert set(frame["task"]) == {"gsm8k"}
    assert frame["length"].isna().all()
    assert set(frame["samples"]) == {1319}
    old = {"results": {"wiki": {"acc": 0.5, "acc_stderr": 0.1}}, "config": {"model": "gpt2"}}
    (tmp_path / "old.json").write_text(json.dumps(old))
    (row,) = kerple_eval.read_lm_eval(tmp_path / "old.json").to_dict("records")
    assert (row["metric"], row["filter"], row["value"], row["stderr"], row["model"]) == (
        "acc", None, 0.5, 0.1, "gpt2",
    )  # fmt: skip


def test_refusals(run: kerple_eval.Run, tmp_path: Path, invoke: Cli) -> None:
    out = str(tmp_path / "x.json")
    cases = [
        ([], "holds 2 models (alibi, mine), and a file of lm-eval holds one"),
        (["--model", "alibbi"], "unknown model 'alibbi': did you mean 'alibi'"),
        (["--format", "csv"], "unknown format of an export 'csv'"),
    ]
    for words, message in cases:
        assert message in refusal(invoke("export", str(run.folder), "--out", out, *words))
    assert not Path(out).exists()
    clash = open_run(run.folder)
    pairs = zip(clash.specification.models, ("a:b", "a/b"), strict=True)
    models = tuple(replace(entry, label=label) for entry, label in pairs)
    clash.specification = replace(clash.specification, models=models)
    clash.folder = tmp_path / "clash"
    clash.write_specification()
    assert "a:b and a/b would both be written to a__b" in refusal(
        invoke("export", str(tmp_path / "clash"), "--out", str(tmp_path / "folder"))
    )
    (tmp_path / "results.json").write_text('{"results": [1]}')
    odd = {"results": {"a": {"x": 1.0}}, "configs": {"a": {"metadata": [1]}}}
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    assert kerple_eval.read_lm_eval(tmp_path / "odd.json")["task"].tolist() == ["a"]
    odd |= {"configs": {"a": {"metadata": {"length": "long"}}}}
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    for place, message in (
        (tmp_path / "odd.json", "not in the layout of lm-evaluation-harness"),
        (tmp_path / "results.json", 'no "results" of tasks'),
        (tmp_path / "none", "cannot be read"),
        (run.folder / "cells", "holds no results"),
    ):
        with pytest.raises(kerple_eval.UserError, match=message):
            kerple_eval.read_lm_eval(place)
