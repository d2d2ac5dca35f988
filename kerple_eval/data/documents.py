"""Documents before and after tokenisation, their hashes, split, selection and packing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kerple_eval.data.tokenizer import Tokenizer, encode_start
from kerple_eval.records.specification import AppliedRule, Marker
from kerple_eval.types import Sample, UserError, Window

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Document:
    """Text with a name that is unique in its task; the name decides split and selection."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class DocumentMarkers:
    """A first-token rule as applied to a model: tokens around each document, or before each window.

    ``rule`` is never, document, window or prefix, ``id`` its marker. ``before`` and ``after`` are the ids
    put around each document; with ``window``, ``id`` stands before the inputs of every window instead.
    """

    rule: AppliedRule = "never"
    id: int | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def record(self) -> Marker:
        usual = {"never": 0, "document": 1, "window": 0, "prefix": 2}[self.rule]  # with the tokeniser's BOS
        more = bool(self.after) or len(self.before) > usual
        return Marker(self.rule, self.id, *((self.before, self.after) if more else ()))


NO_MARKERS = DocumentMarkers()


@dataclass(frozen=True, slots=True)
class TokenDocument:
    """Token ids ``[n]`` of one document and, where known, UTF-8 bytes per token ``[n]``.

    Of a synthetic document the last ``answer`` tokens are the answer, whose source stands at ``depth``
    (0..1). ``cut_off``: whether the document goes on after these tokens. Of the ``bytes_read`` UTF-8 bytes
    that were tokenised, ``lost`` cannot be read back from the tokens.
    """

    name: str
    ids: Ids
    byte_counts: Ids | None = None
    answer: int | None = None
    depth: float | None = None
    cut_off: bool = False
    lost: int = 0
    bytes_read: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, tokens: int | None) -> TokenDocument:
        """The first ``tokens`` tokens; all of them where ``tokens`` is None."""
        if tokens is None or len(self) <= tokens:
            return self
        counts = None if self.byte_counts is None else self.byte_counts[:tokens]
        return TokenDocument(self.name, self.ids[:tokens], counts, cut_off=True)

    def byte_count(self, window: Window) -> int | None:
        """UTF-8 bytes of the window's targets; None where unknown."""
        if self.byte_counts is None:
            return None
        return int(self.byte_counts[window.first_target : window.stop + 1].sum())

    def plain(self) -> TokenDocument:
        """The same with int64 ids in memory, where they are those of a mapped file."""
        return replace(self, ids=np.asarray(self.ids, dtype=np.int64))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.ids, dtype="<i8").tobytes()).hexdigest()


def check_encodable(text: str, where: str) -> str:
    """``text``, refused where UTF-8 cannot encode it (a Python string can hold half a surrogate pair)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half a surrogate pair at character {error.start}, which UTF-8 cannot encode; remove it"
        ) from None
    return text


def text_hash(documents: Iterable[Document]) -> str:
    """sha256 over names and texts in order of name: identifies the text that a result was computed from."""
    digest = hashlib.sha256()
    for document in sorted(documents, key=lambda d: d.name):
        for part in (document.name, document.text):
            raw = part.encode("utf-8")
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
    return digest.hexdigest()


def hashed_share(text: str) -> float:
    """A number in [0, 1) that is a fixed function of ``text`` (sha256)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64


def in_test_split(name: str, test_share: float) -> bool:
    """Split by a hash of the document's name: stable when documents are added or removed."""
    return hashed_share(name) < test_share


def hold_out_tail(documents: Sequence[Document], fraction: float) -> tuple[list[Document], ...]:
    """Every document's last ``fraction`` of characters becomes held-out text: (train, held out)."""
    train, held_out = [], []
    for document in documents:
        edge = len(document.text) - max(1, round(len(document.text) * fraction))
        train.append(Document(document.name, document.text[:edge]))
        held_out.append(Document(document.name, document.text[edge:]))
    return train, held_out


def choose(names: Iterable[str], count: int | None, seed: int) -> list[str]:
    """``count`` of the names, in order of name. Ranked by a hash of (seed, name), so that a smaller
    count is a subset of a larger one and one document more or less changes no other's rank.
    """
    ranked = sorted(names, key=lambda name: (hashed_share(f"{seed}\0{name}"), name))
    return sorted(ranked if count is None else ranked[:count])


def tokenize(
    document: Document, tokenizer: Tokenizer, markers: DocumentMarkers = NO_MARKERS, most: int | None = None
) -> TokenDocument:
    """Token ids of a document between its markers; with ``most``, at least so many of them, or all."""
    text = document.text
    encoding = tokenizer.encode(text) if most is None else encode_start(tokenizer, text, most)
    size = len(text) if text.isascii() else len(text.encode("utf-8"))
    if encoding.read_bytes is not None:
        size = encoding.read_bytes
    read = TokenDocument(
        document.name, encoding.ids, encoding.byte_counts, cut_off=encoding.read_bytes is not None,
        lost=encoding.lost, bytes_read=size,
    )  # fmt: skip
    return surround(read, markers.before, markers.after)


def surround(document: TokenDocument, before: Sequence[int], after: Sequence[int]) -> TokenDocument:
    """The document between markers, which account for no bytes; ``after`` only where it is whole."""
    end = () if document.cut_off else after
    if not before and not end:
        return document
    ids = np.concatenate([np.array(part, dtype=np.int64) for part in (before, document.ids, end)])
    counts = document.byte_counts
    if counts is not None:
        counts = np.concatenate([np.zeros(len(before), np.int64), counts, np.zeros(len(end), np.int64)])
    return replace(document, ids=ids, byte_counts=counts)


def no_bos(rule: str, tokenizer: Tokenizer) -> UserError:
    return UserError(f"bos: {rule}, but the tokeniser ({tokenizer.identity}) has no first-token marker")


def pack(
    documents: Sequence[TokenDocument], tokenizer: Tokenizer, name: str, why: str = "packing: concatenate"
) -> TokenDocument:
    """Documents end to end, each followed by the end-of-document token (which accounts for no bytes)."""
    if tokenizer.end_of_document is None:
        raise UserError(f"{why}, but the tokeniser ({tokenizer.identity}) has no end-of-document token")
    end = np.array([tokenizer.end_of_document], dtype=np.int64)
    zero = np.zeros(1, dtype=np.int64)
    ids = np.concatenate([part for d in documents for part in (d.ids, end)])
    counts = None
    if all(d.byte_counts is not None for d in documents):
        counts = np.concatenate(
            [part for d in documents if d.byte_counts is not None for part in (d.byte_counts, zero)]
        )
    return TokenDocument(name, ids, counts)


def assemble(documents: Sequence[TokenDocument], samples: Sequence[Sample]) -> list[TokenDocument]:
    """The samples that a protocol draws from ``documents``, as documents with int64 ids."""
    assembled = []
    for sample in samples:
        parts = [(documents[span.document], span) for span in sample.spans]
        ids = np.concatenate([d.ids[s.start : s.stop] for d, s in parts]).astype(np.int64)
        counts = [d.byte_counts[s.start : s.stop] for d, s in parts if d.byte_counts is not None]
        known = len(counts) == len(parts)
        assembled.append(TokenDocument(sample.name, ids, np.concatenate(counts) if known else None))
    return assembled
