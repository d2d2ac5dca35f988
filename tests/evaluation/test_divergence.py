"""``--divergence-from`` through whole runs: what is stored, what is computed again, what is refused."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import kerple_eval
from kerple_eval.evaluation.forecast import forecast
from kerple_eval.evaluation.planning import make_plan
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.models import base
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.protocols.catalogue import make_protocol
from kerple_eval.records.cell import Cell
from kerple_eval.records.header import FeedingRecord
from kerple_eval.records.reader import RunReader
from kerple_eval.reports.figures import divergence
from kerple_eval.reports.figures.style import compose
from kerple_eval.stats.divergence import read_divergences
from kerple_eval.types import Window
from tests.helpers import gguf_writer, tiny
from tests.helpers import hf_folders as folders
from tests.helpers.command import Cli
from tests.helpers.figures import curves
from tests.helpers.ranks import as_ranks

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


def test_references_of_one_label_and_other_weights_are_told_apart(
    models: dict[str, str], library: Path, tmp_path: Path
) -> None:
    for out, reference in (("a", "rope"), ("b", "nope"), ("c", "rope")):
        kerple_eval.evaluate(
            models["alibi"], text=library, lengths=[16], documents=1, out=tmp_path / out,
            divergence_from=f"ref={models[reference]}",
        )  # fmt: skip
    found = list(read_divergences(RunReader([tmp_path / out for out in "abc"])))
    other = kerple_eval.inspect(models["nope"])["weights_sha256"][:8]
    assert [(one.label, one.reference) for one in found] == [
        ("alibi", "ref"), ("alibi (b)", f"ref (weights {other})"), ("alibi (c)", "ref"),
    ]  # fmt: skip


def logits(model: Any, ids: np.ndarray, window: Window) -> np.ndarray:
    with torch.inference_mode():
        inputs = torch.from_numpy(ids[window.start : window.stop])[None]
        chunks = list(model.logits(inputs, window.targets))
    return torch.cat(chunks, 1)[0].double().log_softmax(-1).numpy()


@pytest.mark.parametrize("protocol", ["full-context", "sliding-window:stride=6", "aligned:k=3"])
def test_a_model_against_itself_at_a_shorter_length(protocol: str) -> None:
    """Each target from the window that the same protocol plans for it at the shorter length."""
    model = tiny.decoder(tiny.config("rope"), 2)
    made = DecoderModel(model, torch.device("cpu"), torch.float32)
    ids = tiny.tokens(50, seed=1)
    run = kerple_eval.evaluate(
        {"m": made}, tokens=ids, lengths=[8, 12, 24], protocols=[protocol], divergence_from="self@8"
    )
    longest = 24 if protocol.startswith("aligned") else 8
    plan, _ = make_protocol(protocol)
    shorter = {}
    for window in plan.plan(50, 8, longest):
        shorter |= dict(
            zip(range(window.first_target, window.stop + 1), logits(made, ids, window), strict=True)
        )
    for cell in cells(run):
        record = cell.header.divergence
        assert record is not None and record.length == 8 and record.reference.label == "m"
        assert cell.divergence is not None
        for window, found in zip(cell.windows, cell.divergence.columns["divergence"], strict=True):
            q = logits(made, ids, window)
            for n, k in enumerate(range(window.first_target, window.stop + 1)):
                p = shorter[k]
                assert found[n] == pytest.approx(float((np.exp(p) * (p - q[n])).sum()), rel=1e-3, abs=1e-6)
        if cell.key.length == 8:
            assert not cell.divergence.flat("divergence").any() and cell.divergence.flat("agreement").all()


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba"])
def test_models_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By chunks of the head that are formed in turns, also of one model against itself, and in pieces."""
    monkeypatch.setitem(base.HEAD_CHUNK_ELEMENTS, "cpu", 5 * folders.V)
    ids = np.random.default_rng(0).integers(3, folders.V, size=60)
    one, other = folders.model(name), folders.model(name, 1)
    for reference, options in ((other, {}), ("self@8", {}), (other, {"piece": 4})):
        if "piece" in options and name == "mamba":
            continue
        run = kerple_eval.evaluate(
            {"m": one}, tokens=ids, lengths=[16], divergence_from=reference, dtype="float32", **options
        )
        (cell,) = cells(run)
        assert cell.divergence is not None and cell.header.divergence is not None
        fed = FeedingRecord(4, 16) if options else None
        assert (cell.header.feeding, cell.header.divergence.feeding) == (fed, fed)
        start = 0
        for window, found in zip(cell.windows, cell.divergence.columns["divergence"], strict=True):
            with torch.inference_mode():
                whole = torch.from_numpy(ids[window.start : window.stop])[None]
                q = one(whole).logits[0].double().log_softmax(-1).numpy()
                if reference is other:
                    p = other(whole).logits[0].double().log_softmax(-1).numpy()
                else:
                    parts = [one(part).logits[0].double().log_softmax(-1) for part in whole.split(8, dim=1)]
                    p = torch.cat(parts).numpy()
            expected = (np.exp(p) * (p - q)).sum(-1)
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-6)
            start += window.targets
        assert start == 59


def test_a_quantised_file_against_its_original(tmp_path: Path) -> None:
    """Q8_0 in a GGUF file, each model from its own loader; ids as given."""
    gguf = pytest.importorskip("gguf")
    made = folders.model(gguf_writer.FAMILIES["llama"]())
    original = folders.save(tmp_path / "original", made)
    kind = gguf.GGMLQuantizationType.Q8_0
    names = [f"hf:{gguf_writer.write(tmp_path / 'q8.gguf', 'llama', made, kind)}", f"hf:{original}"]
    ids = np.random.default_rng(0).integers(3, gguf_writer.V, size=40)
    run = kerple_eval.evaluate(
        names[0], tokens=ids, lengths=[16], device="cpu", divergence_from=names[1], out=tmp_path / "out"
    )
    (cell,) = cells(run)
    assert cell.divergence is not None
    q, p = (open_model(parse_model(name)).load(torch.device("cpu"), torch.float32) for name in names)
    for window, found in zip(cell.windows, cell.divergence.columns["divergence"], strict=True):
        ln_q, ln_p = (logits(model, ids, window) for model in (q, p))
        np.testing.assert_allclose(found, (np.exp(ln_p) * (ln_p - ln_q)).sum(-1), rtol=2e-3, atol=2e-6)
    values = run.divergences()["divergence"]
    assert 0 < values.mean() < 0.1


@pytest.mark.parametrize("reference", ["rope", "self@8"])
def test_ranks_give_the_same_bytes(models: dict[str, str], tmp_path: Path, reference: str) -> None:
    """``rope`` is both a model of the run and the reference: it is loaded once on every rank."""
    (tmp_path / "text.txt").write_text("A line of text, and a longer one after it. " * 12)
    words = [
        "run",
        models["alibi"],
        models["rope"],
        "--text",
        str(tmp_path / "text.txt"),
        "--length",
        "16,48",
    ]
    words += ["--device", "cpu", "--divergence-from", reference, "--out"]
    for count, out in ((1, "one"), (2, "two")):
        done = as_ranks(tmp_path / f"{out}-said", count, [*words, str(tmp_path / out)])
        assert [rank.returncode for rank in done] == [0] * count, done[0].stderr
    one, two = (kerple_eval.open_run(tmp_path / out) for out in ("one", "two"))
    for alone, shared in zip(cells(one), cells(two), strict=True):
        same(alone, shared)
    if reference == "rope":
        assert not one.divergences(model="rope")["divergence"].any()


def test_the_figure(models: dict[str, str], library: Path, tmp_path: Path, invoke: Cli) -> None:
    made = run(
        models, library, tmp_path / "out", "alibi", "nope", divergence_from=models["rope"],
        protocols=["full-context", "aligned:k=4"],
    )  # fmt: skip
    pictures = divergence.pictures(RunReader([made.folder]))
    titles = ["full-context: from rope", "full-context: from rope, L = 32", "aligned:k=4: from rope"]
    assert [picture.title for picture in pictures] == [f"text, {title}" for title in titles]
    frame = made.divergences(protocol="full-context")
    mean = frame.groupby(["model", "length"])["divergence"].mean()
    drawn = curves(compose(pictures[:1]).axes[0])
    for label in ("alibi", "nope"):
        assert list(drawn[label][0]) == [16, 32]
        np.testing.assert_allclose(drawn[label][1], mean[label], rtol=1e-6)
    at_one = frame[(frame["length"] == 32) & (frame["context"] == 1) & (frame["model"] == "nope")]
    assert curves(compose(pictures[1:2]).axes[0])["nope"][1][0] == pytest.approx(
        at_one["divergence"].mean(), rel=1e-6
    )
    result = invoke("plot", made.folder, "--kind", "divergence", "--out", tmp_path / "x.svg")
    assert result.exit_code == 0 and (tmp_path / "x.svg").stat().st_size > 1000


def test_the_page(models: dict[str, str], library: Path, tmp_path: Path, invoke: Cli) -> None:
    """A section of it, each mean linked to its cell; none where a run has losses alone."""
    made = run(models, library, tmp_path / "a", "alibi", "nope", divergence_from=models["rope"])
    without = run(models, library, tmp_path / "b", "alibi")
    page, plain = (
        invoke("report", one.folder, "--out", tmp_path / f"{n}.html") for n, one in enumerate((made, without))
    )
    assert page.exit_code == plain.exit_code == 0
    text, other = ((tmp_path / f"{n}.html").read_text() for n in range(2))
    assert "Divergence from a reference" not in other
    section = text[text.index("Divergence from a reference</h2>") :]
    section = section[: section.index("<h2")]
    mean = made.divergences(model="nope", protocol="full-context", length=32)["divergence"].mean()
    link = re.search(rf'href="#(cell-\d+)"[^>]*>{mean:.3g}<', section)
    assert link is not None, section[:2000]
    row = text[text.index(f'id="{link.group(1)}"') :][:200]
    assert "nope" in row
    assert section.count("<svg") >= 2


def test_the_forecast_counts_both_models(models: dict[str, str], library: Path, tmp_path: Path) -> None:
    """Passes of the reference beside the model's, and of windows whose losses are reused."""
    asked = {"text": (str(library),), "lengths": (16, 32)}

    def entries(
        reference: str | None, *labels: str, protocols: tuple[str, ...] = ("full-context", "prefix")
    ) -> dict[str, int]:
        request = RunRequest.of(
            models=[models[label] for label in labels],
            out=tmp_path / "out",
            divergence_from=reference,
            protocols=protocols,
            **asked,
        )
        return {
            e.model: sum(shape.batch * n for shape, n in e.passes.items())
            for e in forecast(make_plan(request))
        }

    alone = entries(None, "alibi")["alibi"]
    both = entries(models["rope"], "alibi")
    every = both["alibi"]
    assert both == {"alibi": every, "rope (reference)": every} and every == alone  # prefix serves both
    assert entries("rope", "alibi", "rope") == {"alibi": every, "rope": 3 * every}
    plain = entries(None, "alibi", protocols=("full-context",))["alibi"]
    assert entries("self@16", "alibi", protocols=("full-context",))["alibi"] > 2 * plain
