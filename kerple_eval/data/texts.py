"""The run's texts: a task, ``--text`` files or ``--tokens`` files, tokenised for each tokeniser.

Which documents a run scores is decided once for all its models: those with enough tokens under every
model's tokeniser (M + 1 unless short ones are kept), then the task's or the command's selection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kerple_eval.data.documents import (
    Document,
    TokenDocument,
    choose,
    in_test_split,
    pack,
    text_hash,
    tokenize,
)
from kerple_eval.data.sources import documents_of, text_files, token_files
from kerple_eval.data.task import Selection, Task, open_task
from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.types import Spec, UserError


@dataclass(frozen=True, slots=True)
class Choice:
    """Which documents of a text a run wants; lengths in tokens."""

    longest: int
    documents: int | None = None
    keep_short: bool = False
    max_tokens: int | None = None
    seed: int | None = None


@dataclass
class Text:
    """One text of a run: untokenised documents, or token ids as given."""

    name: str
    record: dict[str, Any]
    documents: list[Document]
    tokens: list[TokenDocument] | None = None
    bos: bool = False
    packed: bool = False
    selection: Selection = field(default_factory=Selection)

    def prepare(
        self, readers: dict[str, tuple[str, Tokenizer | None, int]], choice: Choice
    ) -> dict[str, list[TokenDocument]]:
        """Tokenised, selected documents for every model.

        ``readers``: model label -> (label, its tokeniser, its vocabulary size).

        Raises:
            UserError: no document is long enough; a model has no tokeniser; ids beyond a vocabulary.
        """
        by_identity: dict[str, list[TokenDocument]] = {}
        for label, tokenizer, vocabulary in readers.values():
            identity = self._identity(label, tokenizer)
            if identity not in by_identity:
                by_identity[identity] = self._tokenised(tokenizer)
            self._check_vocabulary(by_identity[identity], label, vocabulary)
        chosen = self._chosen(by_identity, choice)
        cut = {
            identity: [d.cut(choice.max_tokens) for d in documents if d.name in chosen]
            for identity, documents in by_identity.items()
        }
        return {label: cut[self._identity(label, tokenizer)] for label, tokenizer, _ in readers.values()}

    def _identity(self, label: str, tokenizer: Tokenizer | None) -> str:
        if self.tokens is not None:
            return "given"
        if tokenizer is None:
            raise UserError(f"model {label} has no tokeniser; give token ids with --tokens")
        return tokenizer.identity

    def _tokenised(self, tokenizer: Tokenizer | None) -> list[TokenDocument]:
        if self.tokens is not None:
            return self.tokens
        assert tokenizer is not None
        documents = [tokenize(document, tokenizer, bos=self.bos) for document in self.documents]
        if self.packed:
            documents = [pack(documents, tokenizer, self.name)]
        return documents

    def _check_vocabulary(self, documents: Sequence[TokenDocument], label: str, vocabulary: int) -> None:
        for document in documents:
            if len(document) and int(document.ids.max()) >= vocabulary:
                at = int(document.ids.argmax())
                raise UserError(
                    f"document {document.name}: token {at} is id {int(document.ids[at])}, beyond the "
                    f"vocabulary of model {label} (0..{vocabulary - 1})"
                )

    def _chosen(self, texts: dict[str, list[TokenDocument]], choice: Choice) -> set[str]:
        least = max(self.selection.minimum_length, 2 if choice.keep_short else choice.longest + 1)
        sizes: dict[str, int] = {}
        for documents in texts.values():
            for document in documents:
                size = len(document.cut(choice.max_tokens))
                sizes[document.name] = min(size, sizes.get(document.name, size))
        eligible = [name for name, size in sizes.items() if size >= least]
        if not eligible:
            most = max(sizes.values(), default=0)
            cut = "" if choice.max_tokens is None else f" (cut by --max-tokens {choice.max_tokens})"
            raise UserError(
                f"{self.name}: no document has {least} tokens, the longest has {most}{cut}; use "
                f"--length up to {max(most - 1, 0)}" + ("" if choice.keep_short else " or --keep-short")
            )
        count = choice.documents or self.selection.count
        seed = self.selection.seed if choice.seed is None else choice.seed
        if choice.documents is not None and choice.documents > len(eligible):
            raise UserError(
                f"{self.name}: --documents {choice.documents}, but only {len(eligible)} of "
                f"{len(sizes)} documents have {least} tokens"
            )
        self.record["selection"] = {
            "documents": len(sizes),
            "passed_over_as_short": len(sizes) - len(eligible),
            "least_tokens": least,
            "count": count,
            "seed": seed,
        }
        return set(choose(eligible, count, seed))


def task_text(spec: Spec) -> Text:
    """The held-out documents of a task."""
    task, path = open_task(spec)
    documents, origin = documents_of(task, path)
    held_out = [d for d in documents if in_test_split(d.name, task.split.test)]
    if not held_out:
        raise UserError(f"task {task.name}: split.test={task.split.test:g} holds out no document")
    return Text(
        name=task.name,
        record=_task_record(task, origin, held_out),
        documents=held_out,
        bos=task.bos == "document",
        packed=task.packing == "concatenate",
        selection=task.documents,
    )


def _task_record(task: Task, origin: dict[str, Any], documents: list[Document]) -> dict[str, Any]:
    return {
        "name": task.name,
        "version": task.version,
        "source": origin,
        "test_share": task.split.test,
        "bos": task.bos,
        "packing": task.packing,
        "text_sha256": text_hash(documents),
    }


def own_text(paths: Sequence[str]) -> Text:
    """All ``--text`` files as one text named ``text``."""
    documents = text_files(tuple(paths))
    record = {
        "name": "text",
        "bos": "never",
        "packing": "document",
        "text_sha256": text_hash(documents),
    }
    return Text("text", record, documents)


def own_tokens(paths: Sequence[str]) -> Text:
    """All ``--tokens`` files as one text named ``tokens``; ids are used as given."""
    documents = token_files(tuple(paths))
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.sha256}\n".encode())
    return Text("tokens", {"name": "tokens", "tokens_sha256": digest.hexdigest()}, [], documents)
