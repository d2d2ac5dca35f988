"""Training text: which bytes are trained on, which are held out, and what the record says of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from kerple_eval.data.documents import TokenDocument
from kerple_eval.data.tokenizer import ByteTokenizer
from kerple_eval.models.training.corpus import training_corpus
from kerple_eval.support.specs import parse_spec
from kerple_eval.types import UserError


def spelt(document: TokenDocument) -> str:
    return bytes(document.ids.tolist()).decode()


def hash_by_hand(texts: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name, text in sorted(texts.items()):
        for part in (name.encode(), text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def task_file(folder: Path, test: float) -> tuple[Path, dict[str, str]]:
    (folder / "texts").mkdir()
    texts = {f"{i}.txt": f"text {i} é" * (i + 1) for i in range(40)}
    for name, text in texts.items():
        (folder / "texts" / name).write_text(text, encoding="utf-8")
    task = {
        **{"name": "toy", "version": 4, "description": "a toy", "licence": "CC0"},
        **{"source": {"kind": "files", "path": "texts", "files": "*.txt"}, "split": {"test": test}},
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(task), encoding="utf-8")
    return path, texts


def test_a_task_is_split_by_the_names_of_its_documents(tmp_path: Path) -> None:
    path, texts = task_file(tmp_path, 0.25)
    corpus = training_corpus(parse_spec(str(path)), (), ByteTokenizer())
    held_out = {
        name: text
        for name, text in texts.items()
        if int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16 < 0.25
    }
    train = {name: text for name, text in texts.items() if name not in held_out}
    assert 0 < len(held_out) < len(texts)
    assert {d.name: spelt(d) for d in corpus.held_out} == held_out
    assert {d.name: spelt(d) for d in corpus.train} == train
    assert corpus.end_of_document == 0
    record = dict(corpus.record)
    for name, part in (("train", train), ("held_out", held_out)):
        assert record.pop(name) == {
            "documents": len(part),
            "bytes": sum(len(text.encode()) for text in part.values()),
            "text_sha256": hash_by_hand(part),
        }
    assert record == {
        **{"task": "toy", "version": 4, "licence": "CC0", "tokenizer": "bytes"},
        "source": {"kind": "files", "files": "*.txt"},
        "split": "held out: documents whose sha256(name) falls in the first 0.25 of its range",
    }


def test_files_keep_their_last_twentieth_as_held_out_text(tmp_path: Path) -> None:
    texts = {"a.txt": "x" * 190 + "é" * 10, "b.txt": "y" * 380 + "z" * 20}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    paths = tuple(str(tmp_path / name) for name in texts)
    corpus = training_corpus(None, paths, ByteTokenizer())
    assert [spelt(d) for d in corpus.train] == ["x" * 190, "y" * 380]
    assert [spelt(d) for d in corpus.held_out] == ["é" * 10, "z" * 20]
    assert corpus.record == {
        **{"task": "text", "files": list(paths), "tokenizer": "bytes"},
        "split": "held out: the last 5% of each document",
        "train": {
            **{"documents": 2, "bytes": 570},
            "text_sha256": hash_by_hand({"a.txt": "x" * 190, "b.txt": "y" * 380}),
        },
        "held_out": {
            **{"documents": 2, "bytes": 40},
            "text_sha256": hash_by_hand({"a.txt": "é" * 10, "b.txt": "z" * 20}),
        },
    }


def test_the_same_text_gives_the_same_record_and_a_changed_one_another(tmp_path: Path) -> None:
    path, _ = task_file(tmp_path, 0.25)
    records = [training_corpus(parse_spec(str(path)), (), ByteTokenizer()).record for _ in range(2)]
    assert records[0] == records[1]
    (tmp_path / "texts" / "0.txt").write_text("changed", encoding="utf-8")
    changed = training_corpus(parse_spec(str(path)), (), ByteTokenizer()).record
    parts = ("train", "held_out")
    assert [changed[p]["text_sha256"] == records[0][p]["text_sha256"] for p in parts].count(False) == 1


@pytest.mark.parametrize(("test", "says"), [
    (1.0, "split.test=1 leaves 0 documents to train on and 40 held out"),
    (1e-9, "split.test=1e-09 leaves 40 documents to train on and 0 held out"),
])  # fmt: skip
def test_a_split_that_leaves_a_side_empty_is_refused(tmp_path: Path, test: float, says: str) -> None:
    path, _ = task_file(tmp_path, test)
    with pytest.raises(UserError) as caught:
        training_corpus(parse_spec(str(path)), (), ByteTokenizer())
    assert str(caught.value) == f"task toy: {says}; both need some"


def test_held_out_text_of_single_tokens_is_refused(tmp_path: Path) -> None:
    """The last 5 % of rows of short texts: nothing is left to predict."""
    rows = tmp_path / "short.jsonl"
    rows.write_text("".join(json.dumps({"text": f"line {i} ab"}) + "\n" for i in range(50)))
    with pytest.raises(UserError, match="no document of two tokens is held out"):
        training_corpus(None, (str(rows),), ByteTokenizer())


def test_a_tokeniser_without_an_end_of_document_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    tokenizer = ByteTokenizer()
    tokenizer.end_of_document = None
    with pytest.raises(UserError, match=r"^the tokeniser \(bytes\) has no end-of-document token$"):
        training_corpus(None, (str(tmp_path / "a.txt"),), tokenizer)
