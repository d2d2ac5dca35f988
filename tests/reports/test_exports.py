"""``export`` and ``Watch(log_to=...)``: what the other program's own reader finds is the run's numbers.

Trackers work offline, in a folder of the test; one whose package is not installed is skipped.
"""

from __future__ import annotations

import json
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

import kerple_eval
from kerple_eval.records.cell import Cell, write_cell
from kerple_eval.reports.catalogue import EXPORTS
from kerple_eval.support import trackers
from kerple_eval.support.trackers import TRACKERS
from tests.helpers.command import Cli, refusal
from tests.helpers.made_cells import cell, drawn, write_cells
from tests.test_watch import FAST, TEXT, trained

#: Run of a tracker -> step -> name -> value.
Found = dict[str, dict[int, dict[str, float]]]
METRICS = ("nll", "ppl", "bits_per_byte")


def at_step(label: str, step: int | None, length: int) -> Cell:
    made = cell(label, drawn(7 * (step or 1) + length, [9, 9, 9]), length=length)
    return replace(made, header=replace(made.header, step=step))


@pytest.fixture
def run(tmp_path: Path) -> kerple_eval.Run:
    """A model, and two steps of a training whose later one comes first."""
    labels = [("plain", None), ("m@10", 10), ("m@9", 9)]
    cells = [at_step(label, step, length) for label, step in labels for length in (64, 128)]
    return kerple_eval.open_run(write_cells(tmp_path / "run", cells))


def expected(run: kerple_eval.Run) -> Found:
    found: Found = {}
    for row in run.summary().to_dict("records"):
        step = (
            0 if "step" not in row or row["step"] is None or row["step"] != row["step"] else int(row["step"])
        )
        name = f"{row['task']}/{row['protocol']}/{row['length']}"
        values = found.setdefault(row["model"].partition("@")[0], {}).setdefault(step, {})
        values |= {f"{name}/{metric}": row[metric] for metric in METRICS}
    return found


def in_tensorboard(out: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    found: Found = {}
    for folder in {path.parent for path in out.rglob("events.out.tfevents.*")}:
        reader = EventAccumulator(str(folder))
        reader.Reload()
        for tag in reader.Tags()["tensors"]:
            about = reader.SummaryMetadata(tag).summary_description
            assert " targets, hash " in about
            for event in reader.Tensors(tag):
                value = event.tensor_proto.float_val[0]
                found.setdefault(folder.name, {}).setdefault(event.step, {})[tag] = value
    return found


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run; wandb 0.31 has no reader of them in Python, only their message type.

    LevelDB's log (google/leveldb, doc/log_format.md) after seven bytes: blocks of 32 KiB; a fragment is a
    checksum, a length, a type (1 whole, 2 first, 3 middle, 4 last) and its bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415

    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole = data[at + 7 : at + 7 + size] if kind in (1, 2) else whole + data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(whole)


def in_wandb(out: Path) -> Found:
    import wandb  # noqa: PLC0415

    wandb.teardown()  # finish() returns a moment before the file is whole
    found: Found = {}
    for path in out.rglob("run-*.wandb"):
        name, configured = "", ""
        steps: dict[int, dict[str, float]] = {}
        for record in wandb_records(path):
            if record.HasField("run"):
                name = record.run.display_name
                configured += str(record.run.config)
            if record.HasField("history"):
                row = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
                values = {key: json.loads(value) for key, value in row.items() if not key.startswith("_")}
                steps[record.history.step.num] = values
        assert " targets, hash " in configured
        found[name] = steps
    return found


def in_mlflow(out: Path) -> Found:
    from mlflow import MlflowClient  # noqa: PLC0415

    client = MlflowClient()
    experiment = client.get_experiment_by_name("kerple-eval")
    found: Found = {}
    for one in client.search_runs([experiment.experiment_id]):
        assert one.info.status == "FINISHED"
        assert any(" targets, hash " in value for value in one.data.params.values())
        for key in one.data.metrics:
            for metric in client.get_metric_history(one.info.run_id, key):
                found.setdefault(one.info.run_name, {}).setdefault(metric.step, {})[key] = metric.value
    return found


def in_trackio(out: Path) -> Found:
    from trackio.sqlite_storage import SQLiteStorage  # noqa: PLC0415

    found: Found = {}
    for record in SQLiteStorage.get_run_records("kerple-eval"):
        about = SQLiteStorage.get_run_config("kerple-eval", record["name"])
        assert any(" targets, hash " in str(value) for value in about.values())
        for row in SQLiteStorage.get_logs("kerple-eval", record["name"]):
            values = {key: value for key, value in row.items() if key not in ("step", "timestamp")}
            found.setdefault(record["name"], {})[row["step"]] = values
    return found


READERS: dict[str, Callable[[Path], Found]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
}


@pytest.fixture(params=list(TRACKERS))
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracker that is installed, offline, with its files in ``tmp_path / "out"``."""
    out = tmp_path / "out"
    out.mkdir()
    settings = {
        "WANDB_MODE": "offline", "WANDB_DIR": str(out), "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{out}/mlflow.db", "TRACKIO_DIR": str(out),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    kind = str(request.param)
    if find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed (extra {kind})")
    if kind == "wandb":
        import wandb  # noqa: PLC0415

        wandb.teardown()  # it reads its settings once a process; so does trackio, as it is imported
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    return kind


def check(found: Found, run: kerple_eval.Run, kind: str, tmp_path: Path) -> None:
    wanted = expected(run)
    if kind == "mlflow":
        wanted = {
            name: {
                step: {k.replace("=", "_"): v for k, v in values.items()} for step, values in steps.items()
            }
            for name, steps in wanted.items()
        }
    if kind == "tensorboard":
        wanted = {
            name: {s: {k: float(np.float32(v)) for k, v in values.items()} for s, values in steps.items()}
            for name, steps in wanted.items()
        }
    assert found == wanted


def test_each_format_of_the_catalogues_loads() -> None:
    for registry in (EXPORTS, TRACKERS):
        assert all(callable(registry.load(name)) for name in registry)
    assert set(READERS) == set(TRACKERS)


def test_trackers(tracker: str, run: kerple_eval.Run, tmp_path: Path, invoke: Cli) -> None:
    words = ["--out", str(tmp_path / "out")] if tracker == "tensorboard" else []
    done = invoke("export", str(run.folder), "--format", tracker, *words)
    assert done.exit_code == 0, done.output
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == ["plain", "m"]
    check(READERS[tracker](tmp_path / "out"), run, tracker, tmp_path)
    other = ["--out", "x"] if not words else []
    assert "--out" in refusal(invoke("export", str(run.folder), "--format", tracker, *other))


def test_trackio_that_cannot_write_is_no_success(
    run: kerple_eval.Run, monkeypatch: pytest.MonkeyPatch, invoke: Cli
) -> None:
    """It warns and goes on, and so would an export."""
    if find_spec("trackio") is None:
        pytest.skip("trackio is not installed (extra trackio)")
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("TRACKIO_DIR", "/dev/null/nowhere")
    done = invoke("export", str(run.folder), "--format", "trackio")
    assert done.exit_code == 2
    assert "trackio: refuses (" in done.stderr.splitlines()[-1]


def test_watch_logs_and_training_does_not_notice(tracker: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = FAST | {"protocols": "sliding-window:stride=16", "name": "gru"}
    watch = kerple_eval.Watch(TEXT, out=out / "gru", log_to=tracker, **options)
    (plain, states), (watched, again) = trained(None, 4), trained(watch, 4)
    assert states == again
    assert all((watched.state_dict()[name] == tensor).all() for name, tensor in plain.state_dict().items())
    run = watch.run
    del watch  # closes the tracker's run
    found = READERS[tracker](out)
    if tracker == "tensorboard":
        found["gru"] = found.pop("tensorboard")
    assert list(found["gru"]) == [2, 4]
    check(found, run, tracker, tmp_path)


def test_a_tracker_that_fails_costs_no_training(
    run: kerple_eval.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Cli
) -> None:
    """A warning there, one line for an export."""

    def log(values: Any, step: int) -> None:
        if step in (0, 4):
            raise OSError("no route")

    def close() -> None:
        raise OSError("full")

    monkeypatch.setattr(TRACKERS, "load", lambda kind: lambda *args: trackers.Tracker(log, close, "nowhere"))
    monkeypatch.setattr(trackers, "find_spec", lambda name: trackers)
    monkeypatch.setattr(trackers, "origin", "here", raising=False)
    watch = kerple_eval.Watch(TEXT, log_to="wandb", out=tmp_path / "r", **FAST)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trained(watch)
        assert watch.run.summary().step.unique().tolist() == [2, 4, 6]
        del watch
    assert [str(one.message) for one in said if "watch, " in str(one.message)] == [
        "watch, step 4: wandb: refuses (OSError: no route)",
        "watch, at the end: wandb: refuses (OSError: full)",
    ]
    line = refusal(invoke("export", str(run.folder), "--format", "wandb"))
    assert line == "error: wandb: refuses (OSError: no route)"


def test_what_is_missing_or_refuses_is_one_line(
    run: kerple_eval.Run, tmp_path: Path, invoke: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for kind in TRACKERS:
        words = ["--out", str(tmp_path / "x")] if kind == "tensorboard" else []
        line = refusal(invoke("export", str(run.folder), "--format", kind, *words))
        assert line == f"error: {kind}: needs the package {kind}: pip install 'kerple-eval[{kind}]'"
        with pytest.raises(kerple_eval.UserError, match="needs the package"):
            kerple_eval.Watch(TEXT, log_to=kind, out=tmp_path / "w", **FAST)
    with pytest.raises(kerple_eval.UserError, match="unknown experiment tracker 'lm-eval'"):
        kerple_eval.Watch(TEXT, log_to="lm-eval", **FAST)
    monkeypatch.undo()
    with pytest.raises(kerple_eval.UserError, match="writes files into out"):
        kerple_eval.Watch(TEXT, log_to="tensorboard", **FAST)
    if find_spec("tensorboard") is None:
        return
    (tmp_path / "x").write_text("")
    words = ["--format", "tensorboard", "--out", str(tmp_path / "x")]
    assert "tensorboard: refuses (" in refusal(invoke("export", str(run.folder), *words))


HUB = {"kind": "hub", "repository": "Salesforce/wikitext", "revision": "b08601e0", "split": "test"}


def test_hub(tmp_path: Path, invoke: Cli, run: kerple_eval.Run) -> None:
    """Read back by huggingface_hub; of texts that are not of the hub there is no entry."""
    cells = [at_step(label, None, length) for label in ("a", "b") for length in (64, 128)]
    folder = write_cells(tmp_path / "hub", cells, tasks=[{"name": "book", "source": HUB}])
    assert invoke("export", str(folder), "--format", "hub", "--out", str(tmp_path / "o")).exit_code == 0
    text = (tmp_path / "o" / "a" / ".eval_results" / "kerple-eval.yaml").read_text()
    entries = parse_eval_result_entries(yaml.safe_load(text))
    rows = kerple_eval.open_run(folder).summary().query("model == 'a'").to_dict("records")
    assert [(e.task_id, e.value) for e in entries] == [
        (f"book/full-context/{row['length']}", row["ppl"]) for row in rows
    ]
    assert {(e.dataset_id, e.dataset_revision) for e in entries} == {("Salesforce/wikitext", "b08601e0")}
    assert f"hash {rows[0]['targets_hash']}" in str(entries[0].notes)
    assert not text.startswith("#")
    one = invoke("export", str(folder), "--format", "hub", "--model", "b", "--out", str(tmp_path / "b.yaml"))
    assert one.stdout.split() == [str(tmp_path / "b.yaml")]
    write_cell(folder, replace(cells[0], losses=[part + 800 for part in cells[0].losses]))
    assert invoke("export", str(folder), "--format", "hub", "--out", str(tmp_path / "c")).exit_code == 0
    text = (tmp_path / "c" / "a" / ".eval_results" / "kerple-eval.yaml").read_text()
    assert text.startswith("# left out, perplexity beyond a float: book/full-context/64\n")
    line = refusal(invoke("export", str(run.folder), "--format", "hub", "--out", str(tmp_path / "x")))
    assert "of book none is a data set of the hub" in line
