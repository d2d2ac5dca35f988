"""The first-token rule: exact inputs of every window on a fake model, and numbers of real runs.

Whatever the rule: a window never feeds more than L tokens, a target is scored once, and its loss is that
of the inputs the rule says. ``full-context`` and ``sliding-window`` score every target.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import kerple_eval
from kerple_eval.data.documents import Document, TokenDocument
from kerple_eval.data.texts import DocumentSelection, TextSource, TokenizedText
from kerple_eval.data.tokenizer import ByteTokenizer, Encoding, JsonTokenizer, ModelTokens
from kerple_eval.evaluation.planning import parse_protocol
from kerple_eval.models.base import LanguageModel
from kerple_eval.models.scoring import batches, score
from kerple_eval.records.specification import TaskRecord
from kerple_eval.support.typed_json import to_json
from kerple_eval.types import UserError, Window
from tests.helpers.command import WORDS, Cli, make_model, refusal
from tests.helpers.every_target import naive, starts

BOS, V = 1, 29


class Letters:
    """a..z are ids 3..28; 1 begins a text, 2 ends a document."""

    def __init__(self, adds: bool, bos: int | None = BOS) -> None:
        self.identity, self.vocab_size = "letters", V
        self.bos, self.end_of_document = bos, 2
        self.before: tuple[int, ...] = (bos,) if adds and bos is not None else ()
        self.after: tuple[int, ...] = ()

    def encode(self, text: str) -> Encoding:
        ids = np.array([ord(c) - 94 for c in text], dtype=np.int64)
        return Encoding(ids, np.ones_like(ids))


class Remembering(LanguageModel):
    """Logits that depend on every input so far; keeps what it was fed."""

    def __init__(self) -> None:
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.fed: list[tuple[int, ...]] = []

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        self.fed += [tuple(row) for row in inputs.tolist()]
        ends = range(inputs.shape[1] - rows + 1, inputs.shape[1] + 1)
        yield torch.stack([torch.stack([self.at(row[:end]) for end in ends]) for row in inputs])

    @staticmethod
    def at(seen: Tensor) -> Tensor:
        place = torch.arange(1, len(seen) + 1, dtype=torch.float64)
        return torch.sin(torch.arange(V, dtype=torch.float64) * (seen * place.sqrt()).sum())

    @classmethod
    def loss(cls, seen: list[int], target: int) -> float:
        return -float(cls.at(torch.tensor(seen)).log_softmax(0)[target])


def reading(text: TextSource, tokenizer: Letters, longest: int = 1) -> TokenizedText:
    return text.prepare(
        [ModelTokens("m", tokenizer, V)], DocumentSelection(longest, keep_short=True)
    ).by_model["m"]


def letters(rule: str, words: list[str]) -> TextSource:
    documents = [Document(f"d{i}", word) for i, word in enumerate(words)]
    return TextSource("text", TaskRecord("text"), documents, bos=rule)  # type: ignore[arg-type]


PROTOCOLS = (
    "full-context",
    "sliding-window:stride=2",
    "last:k=2",
    "aligned:k=2",
    "aligned:k=1,every=3",
    "prefix",
)
RULES = [
    ("never", "never"), ("document", "document"), ("window", "window"),
    ("tokenizer", "never"), ("tokenizer", "document"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "applied"), RULES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_inputs_and_losses_of_every_window(rule: str, applied: str, protocol: str) -> None:
    scored = 0
    for n, lengths in itertools.product((2, 5, 14), ((3, 4, 6), (3, 20))):
        word = "".join(chr(97 + 5 * i % 26) for i in range(n))
        read = reading(letters(rule, [word]), Letters(adds=applied == "document"))
        assert read.bos == applied
        assert read.bos_id == (None if applied == "never" else BOS)
        (document,) = read.documents
        plain = Letters(adds=False).encode(word).ids.tolist()
        assert document.ids.tolist() == ([BOS] if applied == "document" else []) + plain
        plan = parse_protocol(protocol, lengths)
        by_length = []
        for length in lengths:
            cell = plan.cell(read, length)
            model, found = Remembering(), {}
            for members, losses in score(model, [document.ids], cell.windows, bos=read.window_bos):
                found |= dict(zip(members, losses, strict=True))
            assert sorted(found) == list(range(len(cell.windows)))
            lead = [BOS] if applied == "window" else []
            tokens = document.ids.tolist()
            expected = [tuple(lead + tokens[w.start : w.stop]) for _, w in cell.windows]
            assert sorted(model.fed) == sorted(expected)
            assert all(len(row) <= length for row in model.fed)
            targets = []
            for index, (_, w) in enumerate(cell.windows):
                for at, k in enumerate(range(w.first_target, w.stop + 1)):
                    wanted = Remembering.loss(lead + tokens[w.start : k], tokens[k])
                    assert found[index][at] == pytest.approx(wanted, rel=1e-6, abs=1e-6)
                    targets.append(k)
            assert targets == sorted(set(targets))
            if protocol.startswith(("full", "sliding")):
                assert targets == list(range(1, len(tokens)))
            by_length.append(targets)
            scored += len(targets)
        if protocol.startswith("aligned"):
            assert all(targets == by_length[0] for targets in by_length)
    assert scored > 5


def test_windows_of_the_rules_by_hand() -> None:
    """abcdefg at L = 4: full-context windows of four inputs, of which the marker is one."""
    found = {}
    for rule in ("never", "document", "window"):
        read = reading(letters(rule, ["abcdefg"]), Letters(adds=False))
        cell = parse_protocol("full-context", [4]).cell(read, 4)
        found[rule] = [(w.start, w.stop, w.first_target) for _, w in cell.windows]
    assert found == {
        "never": [(0, 4, 1), (4, 6, 5)],
        "document": [(0, 4, 1), (4, 7, 5)],
        "window": [(0, 3, 1), (3, 6, 4)],
    }


def test_passes_count_the_marker() -> None:
    windows = [(0, Window(i, i + 3, i + 1)) for i in range(6)]
    assert [len(p) for p in batches(windows, 12, prefix=0)] == [4, 2]
    assert [len(p) for p in batches(windows, 12, prefix=1)] == [3, 3]


def test_models_share_documents_only_where_the_rule_gives_the_same() -> None:
    models = [
        ModelTokens(name, Letters(adds, bos), V)
        for name, adds, bos in (
            ("plain", False, BOS), ("adds", True, BOS), ("same", True, BOS), ("other", True, 0),
        )
    ]  # fmt: skip
    text = letters("tokenizer", ["abc"])
    prepared = text.prepare(models, DocumentSelection(1))
    read = prepared.by_model
    assert [read[m.label].documents[0].ids.tolist() for m in models] == [
        [3, 4, 5], [1, 3, 4, 5], [1, 3, 4, 5], [0, 3, 4, 5],
    ]  # fmt: skip
    assert read["adds"] is read["same"]
    assert len({id(r) for r in read.values()}) == 3
    assert to_json(prepared.record.first_token) == {
        "plain": {"rule": "never", "id": None},
        "adds": {"rule": "document", "id": 1},
        "same": {"rule": "document", "id": 1},
        "other": {"rule": "document", "id": 0},
    }


@pytest.mark.parametrize("rule", ["document", "window"])
def test_a_tokeniser_without_a_marker(rule: str) -> None:
    for tokenizer in (Letters(adds=False, bos=None), ByteTokenizer()):
        with pytest.raises(UserError, match=rf"^bos: {rule}, but the tokeniser \(\w+\) has no first"):
            letters(rule, ["abc"]).prepare([ModelTokens("m", tokenizer, 256)], DocumentSelection(1))


def test_a_marker_beyond_the_vocabulary() -> None:
    for rule in ("document", "window"):
        with pytest.raises(
            UserError, match=r"model m: its .* marker is id 30, beyond its vocabulary \(0..28\)"
        ):
            letters(rule, ["abc"]).prepare(
                [ModelTokens("m", Letters(adds=False, bos=30), V)], DocumentSelection(1)
            )


def test_least_tokens_count_the_marker() -> None:
    """At M = 4 a document needs M + 1 tokens, the marker among them."""
    for rule, least in (("never", 5), ("document", 4), ("window", 4)):
        text = letters(rule, ["ab", "abc", "abcd", "abcde", "abcdef"])
        read = text.prepare([ModelTokens("m", Letters(adds=False), V)], DocumentSelection(4)).by_model["m"]
        assert len(read.documents) == 5 - least + 2
        for plan in (parse_protocol(p, [2, 4]) for p in ("full-context", "aligned:k=1", "prefix")):
            for index in range(len(read.documents)):
                assert any(i == index for i, _ in plan.cell(read, 4).windows)


def template(folder: Path, pattern: str | None) -> bytes:
    """A tokenizer.json of words with ``<s>`` and ``</s>``, put around a text by ``pattern``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: PLC0415

    words = ["<s>", "</s>", "[UNK]", *WORDS]
    fast = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if pattern:
        special = [("<s>", 0), ("</s>", 1)]
        fast.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=special)
    path = folder / "t.json"
    fast.save(str(path))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("pattern", "adds", "bos"),
    [
        (None, False, 0),
        ("<s> $A", True, 0),
        ("<s> $A </s>", True, 0),
        ("$A </s>", False, 0),
        ("</s> $A", True, 1),
    ],
)
def test_what_a_tokeniser_does_by_itself(tmp_path: Path, pattern: str | None, adds: bool, bos: int) -> None:
    template(tmp_path, pattern)
    tokenizer = JsonTokenizer(tmp_path / "t.json")
    assert (bool(tokenizer.before), tokenizer.bos) == (adds, bos)
    assert tokenizer.encode("the fox").ids.tolist() == [3, 6]


@pytest.fixture
def words(tmp_path: Path) -> tuple[dict[str, str], str]:
    """Two models of one vocabulary, one whose tokeniser adds <s>; a text of 41 words."""
    made = {}
    for name, pattern in (("plain", None), ("adds", "<s> $A")):
        raw = template(tmp_path, pattern)
        made[name] = f"native:{make_model(tmp_path / name, 'rope', 3, tokenizer=raw, vocabulary=14)}"
    path = tmp_path / "words.txt"
    path.write_text(" ".join(WORDS[i * i % 7 + i % 4] for i in range(41)))
    return made, path


@pytest.mark.parametrize("rule", [None, "never", "document", "window", "tokenizer"])
def test_numbers_and_records_of_a_run(
    rule: str | None, words: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    """Every loss against a float64 decoder fed the rule's inputs; run.json and cells say the rule."""
    models, text = words
    protocols = ["full-context", "aligned:k=3", "prefix"]
    run = kerple_eval.evaluate(
        list(models.values()), text=text, protocols=protocols, lengths=[5, 12], out=tmp_path / "r",
        bos=rule,  # type: ignore[arg-type]
    )  # fmt: skip
    plain = JsonTokenizer(tmp_path / "plain/tokenizer.json").encode(Path(text).read_text()).ids.tolist()
    applied = {
        m: ("document" if m == "adds" else "never") if rule in (None, "tokenizer") else rule for m in models
    }
    record = json.loads((tmp_path / "r/run.json").read_text())["specification"]["tasks"][0]
    wanted = {m: {"rule": a, "id": None if a == "never" else 0} for m, a in applied.items()}
    assert record["bos"] == (rule or "tokenizer")
    assert record["first_token"] == wanted
    for cell in run.cells():
        assert to_json(cell.header.first_token) == wanted[cell.key.model]
    for model, protocol, length in itertools.product(models, protocols, (5, 12)):
        losses = run.losses(model=model, protocol=protocol, length=length)
        tokens = tuple(([0] if applied[model] == "document" else []) + plain)
        taken = 1 if applied[model] == "window" else 0
        begin = starts(protocol, length - taken, len(tokens), 12 - taken)
        assert losses["target"].tolist() == sorted(begin)
        assert (losses["target"] - losses["context"]).tolist() == [begin[k] for k in sorted(begin)]
        for k, loss in zip(losses["target"], losses["loss"], strict=True):
            seen = ((0,) if taken else ()) + tokens[begin[k] : k]
            assert loss == pytest.approx(
                naive(models[model], "rope", (*seen, tokens[k]), 0, len(seen)), abs=1e-5
            )
    short = [c for c in run.cells() if (c.key.protocol, c.key.length) == ("prefix", 5)]
    assert {c.header.losses_from for c in short} == {"prefix of 12"}


def test_a_marker_spells_no_bytes(words: tuple[dict[str, str], str], tmp_path: Path) -> None:
    models, text = words
    found = {}
    for rule in ("never", "document", "window"):
        run = kerple_eval.evaluate(
            models["plain"], text=text, lengths=[12], out=tmp_path / rule, bos=rule, keep_short=True,  # type: ignore[arg-type]
        )  # fmt: skip
        row = run.summary().iloc[0]
        found[rule] = row["nll"] * row["targets"] / (math.log(2) * row["bits_per_byte"])
    size = len(Path(text).read_bytes())
    first = len(Path(text).read_text().split()[0])
    assert found == pytest.approx({"never": size - first, "document": size, "window": size - first})


def test_a_task_files_rule_and_the_commands(words: tuple[dict[str, str], str], tmp_path: Path) -> None:
    models, text = words
    task = tmp_path / "mine.yaml"
    source = f"{{kind: files, path: {Path(text).parent}, files: words.txt}}"
    task.write_text(
        "name: mine\nversion: 1\ndescription: d\nlicence: l\nsplit: {test: 1.0}\nbos: window\n"
        f"source: {source}\n"
    )
    for given, rule in ((None, "window"), ("never", "never"), ("tokenizer", "document")):
        run = kerple_eval.evaluate(
            models["adds"], tasks=str(task), lengths=[8], out=tmp_path / str(given), bos=given,  # type: ignore[arg-type]
        )  # fmt: skip
        assert run.specification.tasks[0].first_token["adds"].rule == rule
        assert run.specification.tasks[0].bos == (given or "window")


@pytest.mark.parametrize(("more", "says"), [
    (["--bos", "windw"], "'windw' is not one of 'never', 'document', 'window', 'tokenizer'"),
    (["--bos", "window", "--length", "1,8"], "one of the L tokens of each window, which leaves"),
    (["--bos", "window", "--protocol", "last:k=8"], "of each window: last: k=8 exceeds length 7; use k <= 7"),
    (["--bos", "window", "--protocol", "sliding-window:stride=8"], "stride=8 exceeds length 7"),
    (["--bos", "window", "--protocol", "kerple-release:split=all"], "draws windows of L tokens of text"),
])  # fmt: skip
def test_refusals(
    more: list[str], says: str, words: tuple[dict[str, str], str], invoke: Cli, tmp_path: Path
) -> None:
    models, text = words
    length = [] if "--length" in more else ["--length", "8"]
    out = tmp_path / "out"
    line = refusal(invoke("run", models["plain"], "--text", text, *length, "--out", str(out), *more))
    assert says in line
    assert not out.exists()


def test_refusals_of_given_ids_and_of_bytes(
    models: dict[str, str], text: str, invoke: Cli, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.jsonl"
    ids.write_text(json.dumps({"tokens": list(range(30))}))
    command = ["run", models["alibi"], "--length", "8", "--out", str(tmp_path / "out")]
    line = refusal(invoke(*command, "--tokens", str(ids), "--bos", "window"))
    assert "--bos window: --tokens holds token ids, which are used as given; leave --bos out" in line
    line = refusal(invoke(*command, "--text", text, "--bos", "window"))
    assert "bos: window, but the tokeniser (bytes) has no first-token marker" in line
    with pytest.raises(UserError, match="unknown bos 'always': available: never, document"):
        kerple_eval.evaluate(models["alibi"], text=text, out=tmp_path / "out", bos="always")  # type: ignore[arg-type]
    assert invoke(*command, "--tokens", str(ids), "--bos", "never").exit_code == 0


def test_given_ids_take_no_marker() -> None:
    text = TextSource("tokens", TaskRecord("tokens"), [], [TokenDocument("d", np.arange(9))], "never")
    read = text.prepare(
        [ModelTokens("m", Letters(adds=True), V), ModelTokens("n", None, V)], DocumentSelection(4)
    ).by_model
    assert read["m"] is read["n"]
    assert read["m"].bos == "never"
