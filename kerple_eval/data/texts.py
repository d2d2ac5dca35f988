"""The run's texts: documents or token ids, tokenised for each tokeniser, of which some are selected.

Which documents a run scores is decided once for all its models: those with enough tokens under every
model's tokeniser (M + 1 unless short ones are kept), then the task's or the command's selection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from kerple_eval.data.documents import (
    NO_MARKERS,
    Document,
    DocumentMarkers,
    TokenDocument,
    choose,
    no_bos,
    pack,
    tokenize,
)
from kerple_eval.data.sources.megatron import MegatronDocuments
from kerple_eval.data.task import Selection
from kerple_eval.data.tokenizer import ModelTokens, Tokenizer
from kerple_eval.records.specification import AppliedRule, LostText, Marker, SelectionRecord, TaskRecord
from kerple_eval.types import BosRule, UserError

Texts = TypeVar("Texts")

#: Bits per byte are given where at most this share of the text's bytes is lost by the tokeniser.
MOST_LOST = 0.001


@dataclass(frozen=True, slots=True)
class DocumentSelection:
    """Which documents of a text a run wants; lengths in tokens.

    ``whole``: every document, uncut, each with its end-of-document token, for protocols that draw
    their own samples.
    """

    longest: int
    documents: int | None = None
    keep_short: bool = False
    max_tokens: int | None = None
    seed: int | None = None
    whole: bool = False


@dataclass(eq=False)
class TokenizedText:
    """A text as the models of one tokeniser read it: what a run scores of it.

    ``lost_bytes`` of the ``read_bytes`` that were tokenised cannot be read back from the tokens.
    """

    documents: Sequence[TokenDocument]
    markers: DocumentMarkers = NO_MARKERS
    given: bool = False  # token ids as given, not text
    lost_bytes: int = 0
    read_bytes: int = 0

    @property
    def bos(self) -> AppliedRule:
        """The first-token rule as applied: never, document, window or prefix."""
        return self.markers.rule

    @property
    def bos_id(self) -> int | None:
        """The first-token marker of that rule."""
        return self.markers.id

    @property
    def window_bos(self) -> int | None:
        """The token before the inputs of every window, which takes one of its L."""
        return self.markers.id if self.markers.rule == "window" else None

    @property
    def marker(self) -> Marker:
        """The rule and its tokens, for the record."""
        return self.markers.record

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        if isinstance(self.documents, MegatronDocuments):
            return self.documents.sizes
        return np.array([len(d) for d in self.documents], dtype=np.int64)

    def name(self, number: int) -> str:
        """A document's name, without reading it."""
        if isinstance(self.documents, MegatronDocuments):
            return self.documents.document_name(number)
        return self.documents[number].name


@dataclass(frozen=True)
class PreparedText(Generic[Texts]):
    """A text as each model reads it (label -> its tokens), and the record of it."""

    by_model: dict[str, Texts]
    record: TaskRecord


@dataclass
class TextSource:
    """One text of a run: untokenised documents, or token ids as given."""

    name: str
    record: TaskRecord  # without what preparing it adds: selection, first tokens, hashes of ids
    documents: list[Document]
    tokens: Sequence[TokenDocument] | None = None
    bos: BosRule = "tokenizer"
    packed: bool = False
    selection: Selection = field(default_factory=Selection)
    names: str | None = None  # the language whose names are told from words, where the text is code

    def prepare(
        self, models: Sequence[ModelTokens], choice: DocumentSelection
    ) -> PreparedText[TokenizedText]:
        """Tokenised, selected documents by model label; models that read the text alike share them.

        Raises:
            UserError: no document is long enough; a model has no tokeniser; ids beyond a vocabulary.
        """
        keys: dict[str, tuple[str, DocumentMarkers]] = {}
        texts: dict[tuple[str, DocumentMarkers], TokenizedText] = {}
        for model in models:
            markers = self.markers(model.label, model.tokenizer)
            check_markers(markers, model)
            keys[model.label] = key = (self.identity(model.tokenizer), markers)
            if key not in texts:
                most = None if choice.whole else choice.max_tokens
                texts[key] = self.tokenised(model.tokenizer, markers, whole=choice.whole, most=most)
        record = self.record
        if choice.whole:
            self._refuse_selection()
            sizes = {len(text.documents) for text in texts.values()}
            selection = SelectionRecord(documents=sizes.pop(), rule="every document")
        else:
            chosen, selection = self._chosen(list(texts.values()), choice)
            for text in texts.values():
                text.documents = [text.documents[i].cut(choice.max_tokens).plain() for i in chosen]
            for model in models:
                check_vocabulary(texts[keys[model.label]].documents, model.label, model.vocabulary)
            if self.tokens is not None and record.tokens_sha256 is None:
                record = replace(record, tokens_sha256=tokens_hash(next(iter(texts.values())).documents))
        by_model = {label: texts[key] for label, key in keys.items()}
        first = {label: text.marker for label, text in by_model.items()}
        lost = {label: LostText(t.lost_bytes, t.read_bytes) for label, t in by_model.items() if t.lost_bytes}
        record = replace(record, selection=selection, first_token=first, lost_bytes=lost or None)
        return PreparedText(by_model, record)

    def identity(self, tokenizer: Tokenizer | None) -> str:
        """What distinguishes two tokenisations of this text, apart from markers."""
        return "given" if self.tokens is not None or tokenizer is None else tokenizer.identity

    def markers(self, label: str, tokenizer: Tokenizer | None) -> DocumentMarkers:
        """The text's first-token rule as applied to this model."""
        if self.tokens is not None:
            return NO_MARKERS
        if tokenizer is None:
            raise UserError(
                f"model {label} has no tokeniser; give one (hf: ,tokenizer=FILE; python: return model, "
                'tokenizer; in Python tokenizer=...; "bytes" is one), or token ids with --tokens'
            )
        return applied(self.bos, tokenizer)

    def tokenised(
        self,
        tokenizer: Tokenizer | None,
        markers: DocumentMarkers,
        *,
        whole: bool = False,
        most: int | None = None,
    ) -> TokenizedText:
        """Every document with its markers; with ``most``, at least that many tokens of each, or all.

        In packed text, and where a protocol draws (``whole``), every document ends with the end-of-document
        token, in place of what the tokeniser itself appends.
        """
        if self.tokens is not None:
            tokens = self.tokens
            if self.packed and not whole:
                tokens = [TokenDocument(self.name, np.concatenate([d.ids for d in tokens]))]
            return TokenizedText(tokens, markers, True)
        assert tokenizer is not None
        inner = replace(markers, after=()) if whole or self.packed else markers
        documents = [tokenize(document, tokenizer, inner, None if self.packed else most)
                     for document in self.documents]  # fmt: skip
        lost = sum(document.lost for document in documents)
        size = sum(document.bytes_read for document in documents)
        if lost > MOST_LOST * size:
            documents = [replace(document, byte_counts=None) for document in documents]
        if whole:
            why = "the protocol ends each document with a token"
            documents = [pack([document], tokenizer, document.name, why) for document in documents]
        elif self.packed:
            documents = [pack(documents, tokenizer, self.name)]
        return TokenizedText(documents, markers, False, lost, size)

    def _refuse_selection(self) -> None:
        """Refuse a task's own choice of documents where a protocol draws from all of them."""
        for key in ("minimum_length", "count"):
            if getattr(self.selection, key) != getattr(Selection(), key):
                raise UserError(
                    f"task {self.name}: documents.{key} is set, but the protocol draws from every document"
                )

    def _chosen(
        self, texts: Sequence[TokenizedText], choice: DocumentSelection
    ) -> tuple[list[int], SelectionRecord]:
        """Positions of the documents to score; ``texts`` hold the same ones in the same order."""
        beyond = 0 if self.bos == "window" else 1  # a whole window and its target, the marker one of them
        least = max(self.selection.minimum_length, 2 if choice.keep_short else choice.longest + beyond)
        sizes = np.minimum.reduce([text.sizes for text in texts])
        if choice.max_tokens is not None:
            sizes = np.minimum(sizes, choice.max_tokens)
        eligible = {texts[0].name(i): i for i in np.flatnonzero(sizes >= least).tolist()}
        if not eligible:
            most = int(sizes.max(initial=0))
            cut = "" if choice.max_tokens is None else f" (cut by --max-tokens {choice.max_tokens})"
            right = f"use --length up to {max(most - beyond, 0)}"
            right += "" if choice.keep_short else " or --keep-short"
            if self.selection.minimum_length > most:
                right = f"the task's documents.minimum_length is {self.selection.minimum_length}"
            raise UserError(
                f"{self.name}: no document has {least} tokens, the longest has {most}{cut}; {right}"
            )
        count = choice.documents or self.selection.count
        seed = self.selection.seed if choice.seed is None else choice.seed
        if choice.documents is not None and choice.documents > len(eligible):
            raise UserError(
                f"{self.name}: --documents {choice.documents}, but only {len(eligible)} of "
                f"{len(sizes)} documents have {least} tokens"
            )
        record = SelectionRecord(
            documents=len(sizes),
            passed_over_as_short=len(sizes) - len(eligible),
            least_tokens=least,
            count=count,
            seed=seed,
        )
        return sorted(eligible[name] for name in choose(eligible, count, seed)), record


def applied(rule: BosRule, tokenizer: Tokenizer) -> DocumentMarkers:
    """A first-token rule as applied to a tokeniser.

    The rule ``tokenizer`` means what the tokeniser itself adds: it is recorded as ``document`` where that is
    one token before a text, as ``never`` where it is nothing.
    """
    if rule == "tokenizer":
        before, after = tokenizer.before, tokenizer.after
        first = before[0] if before else None
        return DocumentMarkers("document" if before or after else "never", first, before, after)
    if rule == "never":
        return NO_MARKERS
    if tokenizer.bos is None:
        raise no_bos(rule, tokenizer)
    return DocumentMarkers(rule, tokenizer.bos, (tokenizer.bos,) if rule == "document" else ())


def check_markers(markers: DocumentMarkers, model: ModelTokens) -> None:
    """Refuse a marker that a model has no embedding for."""
    for number in (markers.id, *markers.before, *markers.after):
        if number is not None and number >= model.vocabulary:
            raise UserError(
                f"model {model.label}: its tokeniser's first-token marker is id {number}, beyond its "
                f"vocabulary (0..{model.vocabulary - 1})"
            )


def check_vocabulary(documents: Sequence[TokenDocument], label: str, vocabulary: int) -> None:
    """Refuse ids that a model has no embedding for."""
    for document in documents:
        if not len(document):
            continue
        for at in (int(document.ids.argmax()), int(document.ids.argmin())):
            if not 0 <= int(document.ids[at]) < vocabulary:
                raise UserError(
                    f"document {document.name}: token {at} is id {int(document.ids[at])}, beyond the "
                    f"vocabulary of model {label} (0..{vocabulary - 1})"
                )


def tokens_hash(documents: Iterable[TokenDocument]) -> str:
    """sha256 over names and ids: identifies the tokens that a result was computed from."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.sha256}\n".encode())
    return digest.hexdigest()
