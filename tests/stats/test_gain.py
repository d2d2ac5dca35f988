"""``explain --gain``: where targets were seen by loops, kinds by hand, spans by brute force."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kerple_eval
from kerple_eval.evaluation.scored_text import scored_text
from kerple_eval.records.reader import RunReader
from kerple_eval.reports.tables.gain import COLUMNS, make, read
from kerple_eval.stats.gain import (
    KINDS,
    ORIGINS,
    DocumentChange,
    DocumentTokens,
    Text,
    gain_sources,
    kinds,
    origins,
)
from kerple_eval.types import UserError
from tests.helpers.command import Cli, refusal
from tests.helpers.lm_eval_folders import save_llama, texts, write_texts


def origin(ids: list[int], k: int, shorter: int, longer: int, n: int) -> str:
    """By the definition: is there an earlier n-gram all of which lies in the context?"""
    gram = ids[k - n : k + 1]
    for context, name in ((shorter, ORIGINS[0]), (longer, ORIGINS[1])):
        for first in range(max(0, k - context), k - n):
            if k >= n and ids[first : first + n + 1] == gram:
                return name
    return ORIGINS[2]


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("symbols", [2, 4, 50])
def test_where_a_target_was_seen_before(n: int, symbols: int) -> None:
    rng = np.random.default_rng(10 * n + symbols)
    seen = set()
    for size in (2, 3, 5, 90):
        ids = rng.integers(symbols, size=size)
        where = np.arange(1, size)
        longer = np.array([rng.integers(1, k + 1) for k in where])
        shorter = np.array([rng.integers(1, c + 1) for c in longer])
        found = origins(ids, where, np.stack([shorter, longer]), n)
        wanted = [
            origin(ids.tolist(), k, a, b, n) for k, a, b in zip(where.tolist(), shorter, longer, strict=True)
        ]
        assert [ORIGINS[i] for i in found] == wanted
        seen |= set(wanted)
    if symbols == 4 and n < 2:
        assert seen == set(ORIGINS)


def test_kinds_of_tokens() -> None:
    pieces = [
        ("", "marker"), ("The", "begins a word"), (" cat", "begins a word"), ("s", "continues a word"),
        ("'", "punctuation"), (" 12", "number"), ("3rd", "number"), ("nd", "continues a word"),
        ("  \n", "whitespace"), ("\n\tZo", "begins a word"), ("ë", "continues a word"),
        ("-", "punctuation"), ("½", "number"), (" …", "punctuation"), ("日", "begins a word"),
    ]  # fmt: skip
    content = "".join(piece for piece, _ in pieces).encode()
    edges = np.cumsum([0, *(len(piece.encode()) for piece, _ in pieces)])
    markers = np.array([piece == "" for piece, _ in pieces])
    assert [KINDS[i] for i in kinds(Text(content, edges), markers)] == [kind for _, kind in pieces]


def test_kinds_of_bytes_and_of_split_characters() -> None:
    """A byte inside a character is what the character is; a token without bytes ends the one before it."""
    content = "aé 1€".encode()
    words = "begins a word", "continues a word", "continues a word", "whitespace", "number"
    wanted = [*words, *["punctuation"] * 3]
    every = np.arange(len(content) + 1)
    assert [KINDS[i] for i in kinds(Text(content, every), np.zeros(8, dtype=bool))] == wanted
    edges = np.array(
        [0, 1, 3, 3, 4, 5, 8, 8, 8]
    )  # as tokenisers count: all of a character at its first token
    wanted = [*words, "punctuation", "punctuation", "punctuation"]
    wanted[2:5] = ["continues a word", "whitespace", "number"]
    assert [KINDS[i] for i in kinds(Text(content, edges), np.zeros(8, dtype=bool))] == wanted


def test_names_of_code() -> None:
    pieces = [
        ("def", "begins a word"), (" my", "begins a name"), ("_f", "continues a name"),
        ("2", "continues a name"), ("(", "punctuation"), ("_x", "begins a name"), ("):", "punctuation"),
        (" return", "begins a word"),        (" 7", "number"),
    ]  # fmt: skip
    content = "".join(piece for piece, _ in pieces).encode()
    edges = np.cumsum([0, *(len(piece) for piece, _ in pieces)])
    found = kinds(Text(content, edges, "python"), np.zeros(len(pieces), dtype=bool))
    assert [KINDS[i] for i in found] == [kind for _, kind in pieces]


def test_spans_by_brute_force() -> None:
    """Greedy from the largest down, without overlap, over neighbours alone."""
    rng = np.random.default_rng(3)
    documents = []
    for number, size in enumerate((70, 20, 40)):
        where = np.delete(np.arange(1, size + 1), size // 2)  # a gap
        losses = rng.normal(size=(2, len(where)))
        tokens = DocumentTokens(np.arange(size + 1), np.zeros(size + 1, dtype=bool), None)
        documents.append(DocumentChange(str(number), tokens, where, losses, np.stack([where, where])))
    found = gain_sources(documents, 1)
    for spans, sign in ((found.gained, -1), (found.lost, 1)):
        every = []
        for d in documents:
            change = dict(zip(d.where.tolist(), (d.losses[1] - d.losses[0]).tolist(), strict=True))
            for first in change:
                run = range(first, first + 16)
                if all(k in change for k in run):
                    every.append((sign * math.fsum(change[k] for k in run), d.name, first))
        wanted: list[tuple[float, str, int]] = []
        for value, name, first in sorted(every, reverse=True):
            if (
                value > 0
                and len(wanted) < 8
                and not any(n == name and abs(f - first) < 16 for _, n, f in wanted)
            ):
                wanted.append((value, name, first))
        assert [(s.document, s.first) for s in spans] == [(name, first) for _, name, first in wanted]
        assert [sign * s.change for s in spans] == pytest.approx([value for value, _, _ in wanted], abs=1e-12)
        assert spans[0].text == " ".join(str(k) for k in range(spans[0].first, spans[0].last + 1))
    assert not found.kinds


def adds_up(run: Any) -> int:
    """Parts are the difference of the numbers, and classes share out every target; how many changes."""
    found = read(RunReader([run.folder]))
    nll = run.summary().set_index(["model", "task", "protocol", "length"])["nll"]
    for one, two, sources in found:
        whole = (
            nll[two.model, two.task, two.protocol, two.length]
            - nll[one.model, one.task, one.protocol, one.length]
        )
        assert sources.change == pytest.approx(whole, abs=1e-12)
        for shares in (sources.origins, sources.kinds):
            if shares:
                assert math.fsum(s.part for s in shares) == pytest.approx(whole, abs=1e-12)
                assert sum(s.targets for s in shares) == sources.targets
                again = sum(s.targets * (s.losses[1] - s.losses[0]) for s in shares) / sources.targets
                assert again == pytest.approx(whole, abs=1e-9)
    return len(found)


PROTOCOLS = [
    "full-context",
    "aligned:k=3,every=5",
    "lm-eval-rolling",
    "hf-guide:stride=16",
    "sliding-window:stride=4",
]


@pytest.mark.parametrize("markers", ["around", "none"])
def test_shares_of_a_run_add_up_and_the_text_is_the_scored_one(markers: str, tmp_path: Path) -> None:
    place = save_llama(tmp_path / "m", markers)
    lines = [line for line in texts() if len(line) > 45][:3]
    file = write_texts(tmp_path / "t.jsonl", lines)
    kerple_eval.evaluate(
        f"hf:{place}", text=file, lengths=[8, 16], out=tmp_path / "r", keep_short=True, max_tokens=60,
        protocols=[p for p in PROTOCOLS if not p.startswith("hf-guide")],
    )  # fmt: skip
    run = kerple_eval.open_run(tmp_path / "r")
    assert adds_up(run) == 4
    for cell in run.cells():
        for record, line in zip(cell.header.documents, lines, strict=True):
            tokens = scored_text(run, cell)[record.sha256]
            assert len(tokens.ids) == record.tokens
            text = tokens.text
            assert text is not None
            assert text.content.decode() == line
            assert line.encode().startswith(text.content[: text.edges[-1]])
    kind = {s.name for s in read(RunReader([run.folder]), protocol="lm-eval-rolling")[0][2].kinds}
    assert ("marker" in kind) == (markers == "around")  # the tokeniser's BOS is a target after the prefix


def test_code_packed_text_and_ids(
    models: dict[str, str], tmp_path: Path, invoke: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    for i in range(3):
        (tmp_path / "src" / f"{i}.py").write_text(f"def name_{i}(value):\n    return value + {i}\n" * 3)
    task = {
        "name": "code", "version": 1, "description": "x", "licence": "CC0", "split": {"test": 1.0},
        "source": {"kind": "files", "path": "src", "files": "*.py"}, "names": "python",
        "packing": "concatenate",
    }  # fmt: skip
    (tmp_path / "code.yaml").write_text(json.dumps(task))
    words = ["run", models["alibi"], "--task", str(tmp_path / "code.yaml"), "--length", "8,32"]
    words += ["--out", str(tmp_path / "r")]
    monkeypatch.setattr("sys.argv", ["kerple-eval", *words])
    assert invoke(*words).exit_code == 0
    assert adds_up(kerple_eval.open_run(tmp_path / "r")) == 1
    ((_, _, sources),) = read(RunReader([tmp_path / "r"]))
    assert [s.name for s in sources.kinds] == list(KINDS)
    ids = tmp_path / "ids.jsonl"
    ids.write_text(json.dumps({"tokens": [i * i % 11 for i in range(60)]}))
    kerple_eval.evaluate(models["alibi"], tokens=ids, lengths=[8, 32], out=tmp_path / "i")
    assert adds_up(kerple_eval.open_run(tmp_path / "i")) == 1
    shown = make([tmp_path / "i"])
    assert "by kind of token" not in shown
    assert "no kinds of token: token ids were given" in shown
    assert "spans that changed most" in shown


def test_what_is_shown(models: dict[str, str], library: Path, tmp_path: Path, invoke: Cli) -> None:
    out = tmp_path / "r"
    kerple_eval.evaluate(
        [models["alibi"], models["nope"]], text=library, lengths=[8, 16, 32], out=out,
        protocols=["full-context", "aligned:k=4"],
    )  # fmt: skip
    done = invoke(
        "explain", str(out), "--gain", "--model", "nope", "--protocol", "full-context", "--format", "csv"
    )
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert tuple(rows[0]) == COLUMNS
    assert {(r["model"], r["length_from"], r["length_to"]) for r in rows} == {("nope", "8", "32")}
    for by in ("seen before", "kind of token"):
        assert math.fsum(float(r["share"]) for r in rows if r["by"] == by) == pytest.approx(1, abs=1e-9)
    words = ("--length", "8,16", "--ngram", "1")
    assert "alibi, 8 -> 16" in invoke("explain", str(out), "--gain", *words).stdout
    assert kerple_eval.open_run(out).explain(gain=True, ngram=1, lengths=(8, 16)) == invoke(
        "explain", str(out), "--gain", *words
    ).stdout  # fmt: skip


def test_the_page_shows_it_with_text(models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli) -> None:
    """A cell that cannot be asked is named there, and leaves the others in place."""
    runs = [str(tmp_path / name) for name in ("r", "drawn")]
    for out, protocol in zip(runs, ("full-context", "kerple-release:split=all,samples=3"), strict=True):
        kerple_eval.evaluate(models["alibi"], text=text, lengths=[8, 16], out=out, protocols=protocol)
    assert "draws documents of its own at each length" in refusal(invoke("explain", *runs, "--gain"))
    assert invoke("report", *runs, "--gain").exit_code == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert "Where the gain comes from" in page
    assert "draws documents of its own at each length" in page
    assert "spans that changed most" in page


def test_refusals(models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(text.read_bytes())
    out = tmp_path / "r"
    kerple_eval.evaluate(models["alibi"], text=mine, lengths=[8, 16], out=out)

    def says(*words: str) -> str:
        return refusal(invoke("explain", *words))

    assert "ask one at a time" in says(str(out), "--gain", "--between", "gptq")
    assert "--ngram has no meaning here" in says(str(out), "--ngram", "2")
    assert "did you mean 'alibi'" in says(str(out), "--gain", "--model", "alib")
    assert "at two lengths 8 and 99" in says(str(out), "--gain", "--length", "8,99")
    mine.write_bytes(text.read_bytes()[:-1] + b"!")
    assert "document mine.txt is not the one that" in says(str(out), "--gain")
    mine.unlink()
    assert "mine.txt" in says(str(out), "--gain")
    kerple_eval.evaluate(models["alibi"], text="word " * 20, lengths=[8, 16], out=tmp_path / "m")
    assert "text text cannot be read again: it was given in memory" in says(str(tmp_path / "m"), "--gain")
    kerple_eval.evaluate(
        models["alibi"], tasks="copy:samples=1,depths=2", lengths=[64, 128], out=tmp_path / "c"
    )
    assert "made for each length" in says(str(tmp_path / "c"), "--gain")
    with pytest.raises(UserError, match="no run directory given"):
        make([])


def test_code_that_a_record_names_is_not_run(models: dict[str, str], text: Path, tmp_path: Path) -> None:
    """A run directory may come from anyone: what its run.json calls a model is opened, never executed."""
    kerple_eval.evaluate(models["alibi"], text=text, lengths=[8, 16], out=tmp_path / "r")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(): ...\n")
    run = kerple_eval.open_run(tmp_path / "r")
    for spec in (
        f"alibi=python:{tmp_path / 'evil.py'}:f",
        "alibi=hf:x,import=evil",
        "hf:x,trust-remote-code=true",
    ):
        run.update_provenance(models={"alibi": spec})
        with pytest.raises(UserError, match=r"is opened by code .* which a report does not run"):
            make([tmp_path / "r"])
    assert not (tmp_path / "ran").exists()
