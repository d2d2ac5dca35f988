"""The run's texts: a task, ``--text`` files or ``--tokens`` files, tokenised for each tokeniser.

Which documents a run scores is decided once for all its models: those with enough tokens under every
model's tokeniser (M + 1 unless short ones are kept), then the task's or the command's selection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from kerple_eval.data.documents import (
    Document,
    TokenDocument,
    choose,
    in_test_split,
    no_bos,
    pack,
    text_hash,
    tokenize,
)
from kerple_eval.data.sources.kinds import MegatronSource
from kerple_eval.data.sources.megatron import MegatronDocuments, is_megatron, open_megatron
from kerple_eval.data.sources.read import documents_of, text_files, token_files
from kerple_eval.data.task import Selection, Task, open_task
from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.protocols.neox_split import parse_shares, part_range
from kerple_eval.records.specification import AppliedRule, Marker, SelectionRecord, TaskRecord
from kerple_eval.types import BosRule, Spec, UserError

Texts = TypeVar("Texts")


@dataclass(frozen=True, slots=True)
class DocumentSelection:
    """Which documents of a text a run wants; lengths in tokens.

    ``whole``: every document, uncut, each with its end-of-document token, for protocols that draw.
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

    ``bos`` is the first-token rule as applied (never, document, window, prefix), ``bos_id`` its token.
    """

    documents: Sequence[TokenDocument]
    bos: AppliedRule = "never"
    bos_id: int | None = None
    given: bool = False  # token ids as given, not text

    @property
    def window_bos(self) -> int | None:
        """The token before the inputs of every window, which takes one of its L."""
        return self.bos_id if self.bos == "window" else None

    @property
    def marker(self) -> Marker:
        """The rule and its token, for the record."""
        return Marker(self.bos, self.bos_id)

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

    def prepare(
        self, readers: dict[str, tuple[str, Tokenizer | None, int]], choice: DocumentSelection
    ) -> PreparedText[TokenizedText]:
        """Tokenised, selected documents for every model.

        ``readers``: model label -> (label, its tokeniser, its vocabulary size).

        Raises:
            UserError: no document is long enough; a model has no tokeniser; ids beyond a vocabulary.
        """
        keys: dict[str, tuple[str, str]] = {}
        readings: dict[tuple[str, str], TokenizedText] = {}
        for label, tokenizer, vocabulary in readers.values():
            rule, number = self._bos(label, tokenizer)
            check_marker(number, label, vocabulary)
            keys[label] = key = (self.identity(tokenizer), f"{rule} {number}")
            if key not in readings:
                found = self.tokenised(tokenizer, rule, choice.whole)
                readings[key] = TokenizedText(found, rule, number, self.tokens is not None)
        record = self.record
        if choice.whole:
            self._refuse_selection()
            sizes = {len(reading.documents) for reading in readings.values()}
            selection = SelectionRecord(documents=sizes.pop(), rule="every document")
        else:
            chosen, selection = self._chosen(list(readings.values()), choice)
            for reading in readings.values():
                reading.documents = [reading.documents[i].cut(choice.max_tokens).plain() for i in chosen]
            for label, _, vocabulary in readers.values():
                check_vocabulary(readings[keys[label]].documents, label, vocabulary)
            if self.tokens is not None and record.tokens_sha256 is None:
                record = replace(record, tokens_sha256=tokens_hash(next(iter(readings.values())).documents))
        by_model = {label: readings[key] for label, key in keys.items()}
        markers = {label: reading.marker for label, reading in by_model.items()}
        return PreparedText(by_model, replace(record, selection=selection, first_token=markers))

    def identity(self, tokenizer: Tokenizer | None) -> str:
        """What tells two readings of this text apart, but for the first token."""
        return "given" if self.tokens is not None or tokenizer is None else tokenizer.identity

    def _bos(self, label: str, tokenizer: Tokenizer | None) -> tuple[AppliedRule, int | None]:
        """The rule as applied to this model, and the token it puts."""
        if self.tokens is not None:
            return "never", None
        if tokenizer is None:
            raise UserError(f"model {label} has no tokeniser; give token ids with --tokens")
        by_itself: AppliedRule = "document" if tokenizer.adds_bos else "never"
        rule = by_itself if self.bos == "tokenizer" else self.bos
        if rule != "never" and tokenizer.bos is None:
            raise no_bos(rule, tokenizer)
        return rule, None if rule == "never" else tokenizer.bos

    def tokenised(self, tokenizer: Tokenizer | None, bos: str, whole: bool) -> Sequence[TokenDocument]:
        if self.tokens is not None:
            if not self.packed or whole:
                return self.tokens
            return [TokenDocument(self.name, np.concatenate([d.ids for d in self.tokens]))]
        assert tokenizer is not None
        documents = [tokenize(document, tokenizer, bos=bos == "document") for document in self.documents]
        if whole:
            why = "the protocol ends each document with a token"
            return [pack([document], tokenizer, document.name, why) for document in documents]
        if self.packed:
            documents = [pack(documents, tokenizer, self.name)]
        return documents

    def _refuse_selection(self) -> None:
        """A task's own choice of documents has no meaning where a protocol draws from every one."""
        for key in ("minimum_length", "count"):
            if getattr(self.selection, key) != getattr(Selection(), key):
                raise UserError(
                    f"task {self.name}: documents.{key} is set, but the protocol draws from every document"
                )

    def _chosen(
        self, readings: Sequence[TokenizedText], choice: DocumentSelection
    ) -> tuple[list[int], SelectionRecord]:
        """Positions of the documents to score; the readings hold the same ones in the same order."""
        beyond = 0 if self.bos == "window" else 1  # a whole window and its target, the marker one of them
        least = max(self.selection.minimum_length, 2 if choice.keep_short else choice.longest + beyond)
        sizes = np.minimum.reduce([reading.sizes for reading in readings])
        if choice.max_tokens is not None:
            sizes = np.minimum(sizes, choice.max_tokens)
        eligible = {readings[0].name(i): i for i in np.flatnonzero(sizes >= least).tolist()}
        if not eligible:
            most = int(sizes.max(initial=0))
            cut = "" if choice.max_tokens is None else f" (cut by --max-tokens {choice.max_tokens})"
            raise UserError(
                f"{self.name}: no document has {least} tokens, the longest has {most}{cut}; use "
                f"--length up to {max(most - beyond, 0)}" + ("" if choice.keep_short else " or --keep-short")
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


def check_marker(number: int | None, label: str, vocabulary: int) -> None:
    """Refuse a first-token marker that a model has no embedding for."""
    if number is not None and number >= vocabulary:
        raise UserError(
            f"model {label}: its tokeniser's first-token marker is id {number}, beyond its "
            f"vocabulary (0..{vocabulary - 1})"
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


def task_text(spec: Spec, bos: BosRule | None = None) -> TextSource:
    """The held-out documents of a task, with its own first-token rule unless ``bos`` is another."""
    task, path = open_task(spec)
    if isinstance(task.source, MegatronSource):
        _refuse_bos(bos, f"task {task.name}")
        return _given(task, task.source, path)
    documents, origin = documents_of(task, path)
    held_out = [d for d in documents if in_test_split(d.name, task.split.test)]
    if not held_out:
        raise UserError(f"task {task.name}: split.test={task.split.test:g} holds out no document")
    rule = bos or task.bos
    record = replace(_task_record(task, origin), bos=rule, text_sha256=text_hash(held_out))
    return TextSource(
        name=task.name,
        record=record,
        documents=held_out,
        bos=rule,
        packed=task.packing == "concatenate",
        selection=task.documents,
    )


def _given(task: Task, source: MegatronSource, task_file: Path) -> TextSource:
    """The token ids of a task's memory-mapped data set, or of one part of it."""
    documents = open_megatron(task_file.parent / source.path)
    shares = parse_shares(source.shares, "source.shares")
    part = documents.part(part_range(source.part, shares, len(documents)))
    if not len(part):
        raise UserError(
            f"task {task.name}: source.part: {source.part} holds none of {len(documents)} documents"
        )
    origin = documents.record | {"part": source.part, "shares": source.shares}
    record = replace(_task_record(task, origin), bos="never")
    packed = task.packing == "concatenate"
    return TextSource(task.name, record, [], part, "never", packed, task.documents)


def _task_record(task: Task, origin: dict[str, Any]) -> TaskRecord:
    return TaskRecord(task.name, task.version, origin, task.split.test, task.packing)


def own_text(paths: Sequence[str], bos: BosRule | None = None) -> TextSource:
    """All ``--text`` files as one text named ``text``."""
    documents = text_files(tuple(paths))
    record = TaskRecord("text", packing="document", bos=bos or "tokenizer", text_sha256=text_hash(documents))
    return TextSource("text", record, documents, bos=bos or "tokenizer")


def own_tokens(paths: Sequence[str], bos: BosRule | None = None) -> TextSource:
    """All ``--tokens`` files as one text named ``tokens``; ids are used as given."""
    _refuse_bos(bos, "--tokens")
    sets = [path for path in paths if is_megatron(path)]
    if sets:
        if len(paths) > 1:
            raise UserError(f"--tokens {sets[0]}: a .bin/.idx data set stands alone; give no other --tokens")
        mapped = open_megatron(sets[0])
        if not len(mapped):
            raise UserError(f"--tokens {sets[0]}: holds no document")
        return TextSource("tokens", TaskRecord("tokens", source=mapped.record), [], mapped, "never")
    documents = token_files(tuple(paths))
    digest = tokens_hash(documents)
    return TextSource("tokens", TaskRecord("tokens", tokens_sha256=digest), [], documents, "never")


def _refuse_bos(bos: BosRule | None, what: str) -> None:
    if bos in ("document", "window"):
        raise UserError(f"--bos {bos}: {what} holds token ids, which are used as given; leave --bos out")


def tokens_hash(documents: Iterable[TokenDocument]) -> str:
    """sha256 over names and ids: identifies the tokens a number stands on."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.sha256}\n".encode())
    return digest.hexdigest()
