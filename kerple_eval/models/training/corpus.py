"""Training text: a task's or the user's own files, split, tokenised and described for the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kerple_eval.data.documents import (
    Document,
    TokenDocument,
    hold_out_tail,
    in_test_split,
    text_hash,
    tokenize,
)
from kerple_eval.data.sources.own import text_files
from kerple_eval.data.sources.read import documents_of
from kerple_eval.data.task import open_task
from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.types import Spec, UserError

HELD_OUT_TAIL = 0.05


@dataclass(frozen=True)
class Corpus:
    """Tokenised text and what the record says of it."""

    train: Sequence[TokenDocument]
    held_out: Sequence[TokenDocument]
    end_of_document: int
    record: dict[str, Any]


def training_corpus(task: Spec | None, text: Sequence[str], tokenizer: Tokenizer) -> Corpus:
    """A task splits by a hash of the document's name; files keep their last 5 % as held-out text."""
    if tokenizer.end_of_document is None:
        raise UserError(f"the tokeniser ({tokenizer.identity}) has no end-of-document token")
    record: dict[str, Any]
    if task is not None:
        described, path = open_task(task)
        documents, origin = documents_of(described, path)
        share = described.split.test
        held_out = [d for d in documents if in_test_split(d.name, share)]
        train = [d for d in documents if not in_test_split(d.name, share)]
        rule = f"held out: documents whose sha256(name) falls in the first {share:g} of its range"
        record = {"task": described.name, "version": described.version, "source": origin}
        record["licence"] = described.licence
        if not train or not held_out:
            raise UserError(
                f"task {described.name}: split.test={share:g} leaves {len(train)} documents "
                f"to train on and {len(held_out)} held out; both need some"
            )
    else:
        documents = text_files(text).documents
        train, held_out = hold_out_tail(documents, HELD_OUT_TAIL)
        rule = f"held out: the last {HELD_OUT_TAIL:.0%} of each document"
        record = {"task": "text", "files": list(text)}
    record |= {"split": rule, "tokenizer": tokenizer.identity}
    for name, part in (("train", train), ("held_out", held_out)):
        record[name] = {
            "documents": len(part),
            "bytes": sum(len(d.text.encode("utf-8")) for d in part),
            "text_sha256": text_hash(part),
        }
    scored = [d for d in _tokens(held_out, tokenizer) if len(d) > 1]
    if not scored:
        raise UserError(f"no document of two tokens is held out ({rule}); give longer documents")
    return Corpus(_tokens(train, tokenizer), scored, tokenizer.end_of_document, record)


def _tokens(documents: Sequence[Document], tokenizer: Tokenizer) -> list[TokenDocument]:
    return [tokenize(document, tokenizer) for document in documents]
