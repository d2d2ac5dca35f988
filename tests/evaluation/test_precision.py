"""``--precision``: documents are added until it is sure, and an interrupted run ends as one that was not."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import kerple_eval
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.stats.intervals import ratio_interval
from kerple_eval.stats.looks import half_width, look_level, parse_percent, schedule
from kerple_eval.types import UserError
from tests.helpers.command import WORDS, Cli, contents, refusal, stamps
from tests.helpers.victim import killed_at

COUNT = 44  # looks at 10, 20 and 44
PROTOCOLS = ("full-context", "prefix", "last:k=4")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> str:
    """44 documents of 70 to 130 bytes: mostly the same words, a few of other ones."""
    lines = []
    for i in range(COUNT):
        words = [WORDS[(i * 7 + j * (j + i)) % len(WORDS)] for j in range(40)]
        raw = " ".join(words).encode()[: 70 + (37 * i) % 61].decode(errors="ignore")
        lines.append(json.dumps({"text": raw.ljust(70 + (37 * i) % 61, ".")}))
    path = tmp_path_factory.mktemp("shelf") / "shelf.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def arguments(models: dict[str, str], shelf: str) -> dict[str, Any]:
    two = [models["alibi"], models["rope"]]
    return {"models": two, "text": Path(shelf), "protocols": PROTOCOLS, "lengths": (16, 32)}


def said(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "precision.json").read_text())["tasks"]["text"]
    return record


def width_percent(out: Path, n: int) -> float:
    """Of the widest look at ``n`` documents."""
    return float(next(seen["widest_percent"] for seen in said(out)["seen"] if seen["documents"] == n))


@pytest.fixture(scope="module")
def looked(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that uses every document, and so has seen every look."""
    out = tmp_path_factory.mktemp("looked")
    kerple_eval.evaluate(**arguments, out=out, precision="0.0001%")
    return out


@pytest.fixture(scope="module")
def middle(looked: Path) -> str:
    """A precision that is reached at the second look and not at the first."""
    first, second = width_percent(looked, 10), width_percent(looked, 20)
    assert second < first
    return f"{(first + second) / 2:.6f}%"


def test_looks_double_up_to_the_budget() -> None:
    assert schedule(10) == (10,)
    assert schedule(12) == (10, 12)
    assert schedule(29) == (10, 29)
    assert schedule(30) == (10, 20, 30)
    assert schedule(160) == (10, 20, 40, 80, 160)
    for budget in range(10, 2000):
        looks = schedule(budget)
        assert looks[-1] == budget
        assert all(a < b for a, b in pairwise(looks))
        assert all(2 * a == b for a, b in pairwise(looks[:-1]))
    with pytest.raises(UserError, match="needs 10 documents"):
        schedule(9)
    assert look_level(5) == pytest.approx(0.99)


@pytest.mark.parametrize("text", ["0.5", "0%", "-1%", "100%", "half", "1e-3%", "", "%"])
def test_a_precision_is_a_share_in_percent(text: str) -> None:
    with pytest.raises(UserError, match="expected a share of perplexity in percent"):
        parse_percent(text, "--precision")


def test_percent() -> None:
    assert parse_percent("0.5%", "--precision") == 0.005
    assert parse_percent(" 2 % ", "--precision") == 0.02


def test_every_document_used(looked: Path, arguments: dict[str, Any], tmp_path: Path) -> None:
    """The same cells as without --precision, but for how losses were batched."""
    record = said(looked)
    assert record["stopped_because"] == "every document used"
    assert [seen["documents"] for seen in record["seen"]] == record["looks"] == [10, 20, COUNT]
    assert record["targets"] == record["targets_of_every_document"]
    whole = kerple_eval.evaluate(**arguments, out=tmp_path).summary()
    grown = kerple_eval.open_run(looked).summary()
    same = [
        "model",
        "task",
        "protocol",
        "length",
        "documents",
        "windows",
        "targets",
        "targets_hash",
        "status",
    ]
    assert grown[same].equals(whole[same])
    assert grown["nll"].to_numpy() == pytest.approx(whole["nll"].to_numpy(), rel=1e-6)


def test_it_stops_when_it_is_sure(
    arguments: dict[str, Any], middle: str, looked: Path, tmp_path: Path
) -> None:
    run = kerple_eval.evaluate(**arguments, out=tmp_path, precision=middle)
    record = said(tmp_path)
    assert record["stopped_because"] == "sure"
    assert record["documents"] == 20
    assert set(run.summary()["documents"]) == {20}
    assert record["seen"] == said(looked)["seen"][:2]
    level = look_level(3)
    assert record["level_of_each_look"] == level
    widest = 0.0
    for entry in record["intervals"]:
        losses = run.losses(model=entry["model"], protocol=entry["protocol"], length=entry["length"])
        by = losses.astype({"loss": "float64"}).groupby("document")["loss"]
        interval = ratio_interval(by.sum().to_numpy(), by.count().to_numpy(), level=level)
        assert (entry["low"], entry["high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
        widest = max(widest, interval.half_width)
    assert len(record["intervals"]) == len(run.keys())
    assert widest <= half_width(parse_percent(middle, "--precision"))
    targets = run.summary()["targets"].sum()
    assert record["targets"] == targets
    assert record["targets_of_every_document"] == kerple_eval.open_run(looked).summary()["targets"].sum()


def test_twenty_documents_are_the_twenty_of_documents_20(
    arguments: dict[str, Any], middle: str, tmp_path: Path
) -> None:
    grown = kerple_eval.evaluate(**arguments, out=tmp_path / "a", precision=middle).summary()
    fixed = kerple_eval.evaluate(**arguments, out=tmp_path / "b", documents=20).summary()
    assert grown["targets_hash"].tolist() == fixed["targets_hash"].tolist()


def test_against_a_model_the_difference_decides(arguments: dict[str, Any], tmp_path: Path) -> None:
    kerple_eval.evaluate(**arguments, out=tmp_path / "a", precision="0.0001%", against="alibi")
    record = said(tmp_path / "a")
    assert {entry["model"] for entry in record["intervals"]} == {"rope"}
    run = kerple_eval.open_run(tmp_path / "a")
    entry = record["intervals"][0]
    where = {"protocol": entry["protocol"], "length": entry["length"]}
    rope, alibi = (
        run.losses(model=m, **where).astype({"loss": "float64"}).groupby("document")["loss"]
        for m in ("rope", "alibi")
    )
    d = (rope.sum() - alibi.sum()).to_numpy()
    interval = ratio_interval(d, rope.count().to_numpy(), level=look_level(3))
    assert (entry["nll"], entry["low"]) == pytest.approx((interval.estimate, interval.low), rel=1e-9)


@pytest.mark.parametrize("at", [2, 5, 20, 27, 30, 40, 50, 51])
def test_killed_at_any_write_it_ends_the_same(
    at: int, arguments: dict[str, Any], middle: str, tmp_path: Path
) -> None:
    """12 cells grow twice: run.json, summary.csv, 24 times a cell and summary.csv, precision.json."""
    kerple_eval.evaluate(**arguments, out=tmp_path / "whole", precision=middle)
    out = tmp_path / "killed"
    assert killed_at(arguments | {"out": out, "precision": middle}, at, "after") == (at <= 51)
    kerple_eval.evaluate(**arguments, out=out, precision=middle)
    for name in ("summary.csv", "precision.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(stamps(out)) == sorted(stamps(tmp_path / "whole"))


def test_killed_again_and_again(arguments: dict[str, Any], middle: str, tmp_path: Path) -> None:
    kerple_eval.evaluate(**arguments, out=tmp_path / "whole", precision=middle)
    out, kills = tmp_path / "killed", 0
    while killed_at(arguments | {"out": out, "precision": middle}, 9, "before" if kills % 2 else "after"):
        kills += 1
        assert kills < 30
    assert kills >= 5
    for name in ("summary.csv", "precision.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_computes_nothing_and_a_lost_cell_is_grown_anew(
    arguments: dict[str, Any], middle: str, tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    kerple_eval.evaluate(**arguments, out=tmp_path, precision=middle)
    before, text = contents(tmp_path), (tmp_path / "summary.csv").read_bytes()
    passes.clear()
    kerple_eval.evaluate(**arguments, out=tmp_path, precision=middle)
    assert passes == []
    assert {k: v for k, v in contents(tmp_path).items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }
    next((tmp_path / "cells").glob("rope--text--full-context--32--*.parquet")).unlink()
    kerple_eval.evaluate(**arguments, out=tmp_path, precision=middle)
    assert passes
    assert (tmp_path / "summary.csv").read_bytes() == text
    assert (tmp_path / "precision.json").read_bytes() == before["precision.json"]


def test_a_cell_that_fails_while_growing(
    arguments: dict[str, Any], middle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a failed row, not a number over fewer documents; the others go on; the next call mends it."""
    kerple_eval.evaluate(**arguments, out=tmp_path / "whole", precision=middle)
    real, calls = DecoderModel.logits, 0

    def logits(self: DecoderModel, inputs: Any, rows: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MemoryError("no room")
        return real(self, inputs, rows)

    out = tmp_path / "out"
    kerple_eval.evaluate(**arguments, out=out, precision=middle, on_progress=lambda p: None)
    gone = next((out / "cells").glob("rope--text--full-context--32--*.parquet"))
    gone.unlink()
    monkeypatch.setattr(DecoderModel, "logits", logits)
    run = kerple_eval.evaluate(**arguments, out=out, precision=middle)
    failed = [r for _, r in run.summary().iterrows() if r["status"] == "failed"]
    assert [(r["model"], r["protocol"], r["length"]) for r in failed] == [("rope", "full-context", 32)]
    assert set(run.summary()["documents"].dropna()) == {20}
    assert len(said(out)["intervals"]) == len(run.keys()) - 1
    kerple_eval.evaluate(**arguments, out=out, precision=middle)
    for name in ("summary.csv", "precision.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_cell_that_fails_at_its_second_look(
    models: dict[str, str], shelf: str, looked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    passes: list[tuple[int, ...]],
) -> None:  # fmt: skip
    """Its ten documents are no finished cell, and not lost: the next call goes on from them."""
    one: dict[str, Any] = {"models": models["alibi"], "text": Path(shelf), "lengths": [16]}
    kerple_eval.evaluate(**one, out=tmp_path / "first", precision="90%")
    assert said(tmp_path / "first")["documents"] == 10
    first = len(passes)
    whole = kerple_eval.evaluate(**one, out=tmp_path / "whole", precision="0.0001%")
    assert (total := len(passes) - first) > first
    real = DecoderModel.logits
    passes.clear()

    def logits(self: DecoderModel, inputs: Any, rows: int) -> Any:
        if len(passes) > first:
            raise MemoryError("no room")
        return real(self, inputs, rows)

    with monkeypatch.context() as patched:
        patched.setattr(DecoderModel, "logits", logits)
        run = kerple_eval.evaluate(**one, out=tmp_path / "out", precision="0.0001%")
    assert run.summary()["status"].tolist() == ["failed"]
    assert {p.suffix for p in (tmp_path / "out" / "cells").iterdir()} == {".json", ".set-aside"}
    passes.clear()
    again = kerple_eval.evaluate(**one, out=tmp_path / "out", precision="0.0001%")
    assert again.summary().equals(whole.summary())
    assert {p.suffix for p in (tmp_path / "out" / "cells").iterdir()} == {".parquet"}
    assert len(passes) == total - first
    (cell,) = again.cells()
    assert cell.header.precision.documents == cell.header.precision.of == COUNT


def test_where_the_reference_fails_that_is_said(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DecoderModel.logits

    def logits(self: DecoderModel, inputs: Any, rows: int) -> Any:
        if self.decoder.config.scheme_name == "rope":
            raise MemoryError("no room")
        return real(self, inputs, rows)

    monkeypatch.setattr(DecoderModel, "logits", logits)
    kerple_eval.evaluate(**arguments, out=tmp_path, precision="1%", against="rope")
    assert said(tmp_path)["stopped_because"] == "every cell of rope failed"


def test_two_texts_stop_each_at_its_own_look(models: dict[str, str], shelf: str, tmp_path: Path) -> None:
    lines = [json.loads(line)["text"] for line in Path(shelf).read_text().splitlines()]
    tokens = tmp_path / "alike.jsonl"
    row = list(lines[0].encode())[:80]
    tokens.write_text("".join(json.dumps({"tokens": row[i % 3 :]}) + "\n" for i in range(25)))
    run = kerple_eval.evaluate(
        models["alibi"], text=Path(shelf), tokens=tokens, lengths=[16], out=tmp_path / "o", precision="2%"
    )
    records = json.loads((tmp_path / "o" / "precision.json").read_text())["tasks"]
    assert records["tokens"]["stopped_because"] == "sure"
    assert records["tokens"]["documents"] == 10
    assert records["text"]["stopped_because"] == "every document used"
    assert dict(zip(run.summary()["task"], run.summary()["documents"], strict=True)) == {
        "text": COUNT, "tokens": 10,
    }  # fmt: skip


def test_where_every_cell_fails_no_more_documents_are_asked_for(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Cli
) -> None:
    def logits(self: DecoderModel, inputs: Any, rows: int) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(DecoderModel, "logits", logits)
        run = kerple_eval.evaluate(**arguments, out=tmp_path, precision="1%")
    assert set(run.summary()["status"]) == {"failed"}
    assert said(tmp_path)["stopped_because"] == "every cell failed"
    assert len(said(tmp_path)["seen"]) == 1
    with pytest.raises(UserError, match="expected a share"):
        kerple_eval.evaluate(**arguments, out=tmp_path, precision=0.01)  # type: ignore[arg-type]


def test_the_command_says_what_was_saved(
    models: dict[str, str], shelf: str, middle: str, invoke: Cli, tmp_path: Path
) -> None:
    words = ["run", models["alibi"], "--text", shelf, "--length", "16", "--out", str(tmp_path / "a")]
    result = invoke(*words, "--precision", "60%")
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("precision:"))
    assert "10 of 44 documents, every perplexity within 60 %" in line
    assert "% saved" in line
    other = refusal(invoke(*words, "--precision", "50%"))
    assert "--precision was 0.6 there and is 0.5 now" in other
    assert "precision was" in refusal(invoke(*words))


def test_bad_input(models: dict[str, str], shelf: str, library: str, invoke: Cli, tmp_path: Path) -> None:
    def refused(*more: str, text: str = shelf, model: str = models["alibi"]) -> str:
        line = refusal(
            invoke("run", model, "--text", text, "--length", "16", "--out", str(tmp_path / "o"), *more)
        )
        assert not (tmp_path / "o").exists()
        return line

    assert "expected a share" in refused("--precision", "0.5")
    assert "needs 10 documents for a first look, and there are 7" in refused(
        "--precision", "1%", text=library
    )
    assert "needs 10 documents" in refused("--precision", "1%", "--documents", "9")
    assert "kerple-eval compare" in refused("--against", "alibi")
    assert "unknown model 'alib': did you mean 'alibi'" in refused("--precision", "1%", "--against", "alib")
    assert "no other model" in refused("--precision", "1%", "--against", "alibi")
    drawn = "kerple-release:seed=1"
    assert "--precision has no meaning" in refused("--precision", "1%", "--protocol", drawn)
