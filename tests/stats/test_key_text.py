"""LongPPL across tokenisers against the source's own functions, transcribed; key tokens as a file."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import kerple_eval
from kerple_eval.data.tokenizer import JsonTokenizer
from kerple_eval.reports.tables.longppl import make
from kerple_eval.stats.gain import DocumentTokens, Text
from kerple_eval.stats.key_text import spans
from tests.helpers.command import WORDS, Cli, make_model, prose, refusal

Offsets = list[tuple[int, int]]
ALPHA, BETA = 0.01, -8.0  # models without training: small gains, losses of some six nats
TEXTS = [f"{prose(40, i)} naïve 数字 {i}." for i in (2, 3, 5)]


def merge_intervals(intervals: Any) -> Any:
    """longppl 0.3.0, in numpy."""
    if len(intervals) == 0:
        return intervals
    start, end = intervals[:, 0], intervals[:, 1]
    adjacent = (start[1:] - end[:-1]) == 0
    return np.stack([start[np.append([True], ~adjacent)], end[np.append(~adjacent, [True])]], axis=1)


def cal_overlap(offset_mapping: Any, key_text_slices: Any) -> list[int]:
    """longppl 0.3.0: indices into the losses, which begin with that of token 1."""
    key_tokens = []
    i, j = 0, 0
    while i < len(offset_mapping) and j < len(key_text_slices):
        a_start, a_end = offset_mapping[i]
        b_start, b_end = key_text_slices[j]
        if a_start >= b_start and a_end <= b_end:
            key_tokens.append(i - 1)
            i += 1
        elif a_start < b_start:
            i += 1
        else:
            j += 1
    return key_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file, a byte-level BPE trained on it, and a model of either tokeniser."""
    root = tmp_path_factory.mktemp("keys")
    (root / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (root / "other.jsonl").write_text(json.dumps({"text": prose(90, 7)}) + "\n")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=285, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([" ".join(WORDS)], trainer)
    bpe.save(str(root / "bpe.json"))
    make_model(root / "bytes", "alibi", 1)
    raw = (root / "bpe.json").read_bytes()
    make_model(root / "bpe", "kerple-log", 2, tokenizer=raw, vocabulary=bpe.get_vocab_size())
    return root


def scored(folder: Path, out: str, *names: str, text: str = "text.jsonl", **options: Any) -> kerple_eval.Run:
    return kerple_eval.evaluate(
        [f"native:{folder / name}" for name in names], text=folder / text, lengths=[8, 32],
        protocols="sliding-window:stride=4", keep_short=True, out=folder / out, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(folder: Path) -> kerple_eval.Run:
    return scored(folder, "run", "bytes", "bpe")


def offsets(folder: Path, model: str, text: str) -> Offsets:
    if model == "bytes":
        return [(i, i + 1) for i, letter in enumerate(text) for _ in letter.encode()]
    found: Offsets = Tokenizer.from_file(str(folder / "bpe.json")).encode(text).offsets
    return found


def of_source(folder: Path, frame: pd.DataFrame, evaluator: str, model: str) -> tuple[float, int]:
    """LongPPL of ``model`` at 32, key tokens by ``evaluator`` between 8 and 32; all documents together."""
    total, count = 0.0, 0
    names = list(dict.fromkeys(frame.document))
    for name in names:
        part = frame[frame.document == name].set_index(["model", "length", "target"])["loss"]
        part = part.astype(float).sort_index()
        index = names.index(name)
        short, full = part[evaluator, 8], part[evaluator, 32]
        keys = [t for t in full.index if short[t] - full[t] > ALPHA and full[t] < -BETA]
        mapping = np.array(offsets(folder, evaluator, TEXTS[index]))
        losses = part[model, 32]
        assert losses.index.tolist() == list(range(1, len(losses) + 1))
        own = cal_overlap(offsets(folder, model, TEXTS[index]), merge_intervals(mapping[keys]))
        total += losses.to_numpy()[own].sum()
        count += len(own)
    return math.exp(total / count), count


@pytest.mark.parametrize(("evaluator", "model"), [("bytes", "bpe"), ("bpe", "bytes"), ("bpe", "bpe")])
def test_another_tokeniser(
    folder: Path, run: kerple_eval.Run, evaluator: str, model: str, tmp_path: Path
) -> None:
    """At once, and by way of a file: that is by characters for the reference's own tokeniser too."""
    wanted, count = of_source(folder, run.losses(), evaluator, model)
    assert 10 < count < 500
    file = tmp_path / "keys.json"
    at_once = make([run.folder], evaluator, "csv", alpha=ALPHA, beta=BETA, write_key_tokens=file)
    for text in (make([run.folder], style="csv", key_tokens=file), at_once)[: 1 + (evaluator != model)]:
        rows = {(row["model"], row["length"]): row for row in csv.DictReader(io.StringIO(text))}
        assert float(rows[model, "32"]["longppl"]) == pytest.approx(wanted, rel=1e-12)
        assert int(rows[model, "32"]["key_tokens"]) == count


@pytest.mark.parametrize("kind", ["byte-level", "metaspace", "metaspace, bytes for what is unknown"])
def test_characters_are_the_offsets_of_the_library(kind: str, tmp_path: Path) -> None:
    """As far as those give a word its space: parts of characters and unknown symbols included."""
    made = Tokenizer(models.BPE(byte_fallback="bytes" in kind, unk_token="<unk>", fuse_unk=False))
    made.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "byte-level"
        else pre_tokenizers.Metaspace()
    )
    special = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    if kind == "byte-level":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(WORDS, trainer)
    made.save(str(tmp_path / "t.json"))
    for text in (*TEXTS, "数字 two  spaces\n\tnaïve", " begins"):
        encoding = JsonTokenizer(tmp_path / "t.json").encode(text)
        assert encoding.byte_counts is not None
        edges = np.concatenate([[0], np.cumsum(encoding.byte_counts)])
        tokens = DocumentTokens(encoding.ids, encoding.ids < 0, Text(text.encode(), edges))
        assert spans("d", tokens).tolist() == [list(pair) for pair in made.encode(text).offsets]


def test_a_file_of_key_tokens(folder: Path, run: kerple_eval.Run, invoke: Cli, tmp_path: Path) -> None:
    """Used on runs of other models, it gives what the reference would have given."""
    file = tmp_path / "keys.json"
    made = invoke(
        "longppl", str(run.folder), "--reference", "bytes", "--alpha", str(ALPHA), "--beta", str(BETA),
        "--write-key-tokens", str(file), "--format", "csv",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    alone = scored(folder, "alone", "bpe")
    again = invoke("longppl", str(alone.folder), "--key-tokens", str(file), "--format", "csv")
    assert again.exit_code == 0, again.output
    both = [list(csv.DictReader(io.StringIO(done.stdout))) for done in (made, again)]
    assert [row for row in both[0] if row["model"] == "bpe"] == both[1]
    assert "key tokens by bytes" in alone.longppl(key_tokens=file)
    cut = scored(folder, "cut", "bpe", max_tokens=40)
    assert "lacks text of 3 of 3 documents with key tokens" in cut.longppl(key_tokens=file)
    data = json.loads(file.read_text())
    assert [document["name"] for document in data["documents"]] == [d.name for d in first_documents(run)]
    assert data["alpha"] == ALPHA


def first_documents(run: kerple_eval.Run) -> Any:
    return next(iter(run.cells())).header.documents


def test_files_that_do_not_fit(folder: Path, run: kerple_eval.Run, invoke: Cli, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    make([run.folder], "bytes", alpha=ALPHA, beta=BETA, write_key_tokens=file)
    data = json.loads(file.read_text())
    other = scored(folder, "other", "bpe", text="other.jsonl")
    line = refusal(invoke("longppl", str(other.folder), "--key-tokens", str(file)))
    assert "were chosen in another text" in line

    def said(**changes: Any) -> str:
        broken = tmp_path / "broken.json"
        broken.write_text(json.dumps(data | changes))
        return refusal(invoke("longppl", str(run.folder), "--key-tokens", str(broken)))

    assert "as longppl --write-key-tokens writes them" in said(kerple_eval_key_tokens=2)
    wrong = [data["documents"][0] | {"characters": [[5, 3]]}]
    assert "pairs [start, stop] in order" in said(documents=wrong)
    assert "documents" in said(documents=3)
    (tmp_path / "half.json").write_text(file.read_text()[:100])
    assert "half.json" in refusal(
        invoke("longppl", str(run.folder), "--key-tokens", str(tmp_path / "half.json"))
    )
    for words in ([], ["--reference", "bytes", "--key-tokens", str(file)]):
        assert "by --reference MODEL, or come from --key-tokens FILE" in refusal(
            invoke("longppl", str(run.folder), *words)
        )
    words = ["--key-tokens", str(file), "--alpha", "1"]
    assert "--alpha goes with --reference" in refusal(invoke("longppl", str(run.folder), *words))
