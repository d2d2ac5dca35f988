"""Key tokens as characters of their text: how they reach a model of another tokeniser, and a file.

Source: github.com/PKU-ML/LongPPL (longppl 0.3.0, ``find_key_token``, ``merge_intervals``, ``cal_overlap``).
A key token is the characters ``[start, stop)`` that it stands for; intervals that touch are joined; a token
of another tokeniser is key where its characters lie within one interval.

The source takes a tokeniser's own offsets, of which some leave out the space before a word; here a space
belongs to the token that stands for it, so that such a word is not lost. A token that is a part of a
character stands for the whole of it, in the source too.

Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from kerple_eval.stats.gain import DocumentTokens
from kerple_eval.support.typed_json import Check, Count, Positive
from kerple_eval.types import UserError

Whole = NDArray[np.int64]


def _in_order(pairs: tuple[tuple[int, ...], ...]) -> bool:
    edges = [edge for pair in pairs for edge in pair]
    return all(len(pair) == 2 for pair in pairs) and sorted(set(edges)) == edges


Intervals = Annotated[tuple[tuple[Count, ...], ...], Check(_in_order, "pairs [start, stop] in order")]


@dataclass(frozen=True)
class KeyDocument:
    """A document by the sha256 of its text (UTF-8), and its key ``characters``, each ``[start, stop]``."""

    name: str
    text_sha256: str
    characters: Intervals


@dataclass(frozen=True)
class KeyText:
    """The key tokens of a text, as a file keeps them: what chose them, and every document that it read.

    ``targets``: how many might have been key tokens; ``key_tokens``: how many are, of the reference's tokens.
    """

    task: str
    protocol: str
    reference: str
    weights_sha256: str | None
    tokenizer: str | None
    short: Positive
    long: Positive
    alpha: float
    beta: float
    targets: Count
    key_tokens: Count
    documents: tuple[KeyDocument, ...]

    @property
    def with_key_tokens(self) -> list[KeyDocument]:
        return [document for document in self.documents if document.characters]


def key_document(name: str, tokens: DocumentTokens, key: Whole) -> KeyDocument:
    """The characters of the tokens ``key`` of a document."""
    joined: list[list[int]] = []
    for start, stop in spans(name, tokens)[key].tolist():
        if start < 0:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(stop, joined[-1][1])
        else:
            joined.append([start, stop])
    return KeyDocument(name, _sha256(tokens), tuple(map(tuple, joined)))


def key_tokens_of(keys: KeyText, documents: Sequence[tuple[str, DocumentTokens]]) -> tuple[list[Whole], int]:
    """Key tokens of each of ``documents`` (name and tokens), and how many with key tokens they do not hold.

    A document that is cut before its last key token is not held.

    Raises:
        UserError: a document that is not among those the key tokens were chosen in.
    """
    known = {document.text_sha256: document for document in keys.documents}
    found = []
    held = set()
    for name, tokens in documents:
        each = spans(name, tokens)
        document = known.get(_sha256(tokens))
        if document is None:
            raise UserError(
                f"key tokens by {keys.reference} were chosen in another text: document {name} is none of the "
                f"{len(keys.documents)} of {keys.task} that they are of, by the sha256 of its text"
            )
        if not document.characters:
            found.append(np.empty(0, dtype=np.int64))
            continue
        starts, stops = np.array(document.characters, dtype=np.int64).T
        at = np.searchsorted(starts, each[:, 0], side="right") - 1
        found.append(np.flatnonzero((at >= 0) & (each[:, 1] <= stops[at])))
        if each[:, 1].max(initial=0) >= stops[-1]:
            held.add(document.text_sha256)
    wanted = {document.text_sha256 for document in keys.with_key_tokens}
    return found, len(wanted - held)


def spans(name: str, tokens: DocumentTokens) -> Whole:
    """The characters ``[start, stop)`` that each token stands for ``[n, 2]``; of a marker -1, -1.

    Raises:
        UserError: the text is unknown.
    """
    if tokens.text is None:
        raise UserError(
            f"document {name}: its text is not known to the character (token ids as given, or a tokeniser "
            "that loses some of it), and key tokens of another tokeniser are mapped by characters"
        )
    begins = (np.frombuffer(tokens.text.content, dtype=np.uint8) & 0xC0) != 0x80  # a character, in UTF-8
    before = np.concatenate([[0], np.cumsum(begins)])  # characters begun before each byte
    first, last = tokens.text.edges[:-1], tokens.text.edges[1:]
    inside = ~np.append(begins, True)[first]  # the token begins within a character
    start = before[first] - inside
    stop = before[last]
    start = np.where(first == last, stop - 1, start)  # the further tokens of one character
    return np.where(tokens.markers[:, None], -1, np.stack([start, stop], axis=1))


def _sha256(tokens: DocumentTokens) -> str:
    content = b"" if tokens.text is None else tokens.text.content
    return hashlib.sha256(content).hexdigest()
