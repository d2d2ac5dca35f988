"""The tokens and text that a finished cell was scored on, read again: cells keep losses, not text.

The text and the tokeniser are opened by what the run's record says, as the run itself did, and every document
is compared with the sha256 of its tokens in the cell. No weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerple_eval.data.documents import TokenDocument
from kerple_eval.data.first_tokens import tokenize_by_rules
from kerple_eval.data.opening import own_text, own_tokens, task_text
from kerple_eval.data.synthetic.texts import is_synthetic
from kerple_eval.data.task import Selection, open_task, parse_task
from kerple_eval.data.texts import DocumentSelection, TextSource
from kerple_eval.data.tokenizer import ModelTokens, Tokenizer
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.protocols.catalogue import make_protocol
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import Run
from kerple_eval.stats.gain import DocumentTokens, Text
from kerple_eval.types import BosRule, UserError

IN_MEMORY = " in memory>"


def scored_text(run: Run, cell: Cell) -> dict[str, DocumentTokens]:
    """The cell's documents by the sha256 of their tokens.

    Raises:
        UserError: the text or the tokeniser is not to be found, or is not what the cell was computed from.
    """
    key = cell.key
    protocol, _ = make_protocol(key.protocol)
    if protocol.draws_samples:
        raise UserError(f"{key}: the protocol draws documents of its own at each length")
    source = _source(run, key.task)
    tokenizer = None if source.tokens is not None else _tokenizer(run, key.model)
    names = {document.name for document in cell.header.documents}
    if not source.packed:
        source.documents = [document for document in source.documents if document.name in names]
    source.selection = Selection()
    choice = DocumentSelection(1, keep_short=True, max_tokens=run.specification.max_tokens)
    rule = protocol.first_token
    model = ModelTokens(key.model, tokenizer, 2**31)
    reading = tokenize_by_rules(source, [model], choice, [rule] if rule else [])
    documents = {d.name: d for d in reading.by_model[key.model].of(rule).documents if d.name in names}
    texts = {document.name: document.text for document in source.documents}
    if source.packed:
        texts = {source.name: "".join(texts.values())}
    found = {}
    for record in cell.header.documents:
        document = documents.get(record.name)
        if document is None or document.sha256 != record.sha256:
            raise UserError(
                f"{key.task}: document {record.name} is not the one that {run.folder} was computed from: "
                "its text, or the model's tokeniser, has changed since"
            )
        found[record.sha256] = _tokens(document, texts.get(record.name), tokenizer, cell, source.names)
    return found


def _tokens(
    document: TokenDocument, text: str | None, tokenizer: Tokenizer | None, cell: Cell, names: str | None
) -> DocumentTokens:
    ids, counts = document.ids, document.byte_counts
    rule = cell.header.first_token
    special = {rule.id, *(rule.before or ()), *(rule.after or ())}
    if tokenizer is not None:
        special |= {tokenizer.bos, tokenizer.end_of_document, *tokenizer.before, *tokenizer.after}
    if counts is None or text is None:
        return DocumentTokens(ids, np.zeros(len(ids), dtype=bool), None)
    markers = (counts == 0) & np.isin(ids, [number for number in special if number is not None])
    edges = np.concatenate([[0], np.cumsum(counts)])
    return DocumentTokens(ids, markers, Text(text.encode("utf-8"), edges, names))


def _tokenizer(run: Run, label: str) -> Tokenizer:
    spec = run.provenance.models.get(label, "")
    if not spec or spec.endswith(IN_MEMORY):
        raise UserError(f"model {label} cannot be opened again for its tokeniser: it was given in memory")
    model = parse_model(spec)
    if model.format == "python" or {"import", "trust-remote-code"} & dict(model.options).keys():
        raise UserError(f"model {label} is opened by code ({spec}), which a report does not run")
    tokenizer = open_model(model).tokenizer
    if tokenizer is None:
        raise UserError(f"model {label} has no tokeniser")
    return tokenizer


def _source(run: Run, name: str) -> TextSource:
    """The text of that name, opened as the run did."""
    provenance = run.provenance
    (record,) = (task for task in run.specification.tasks if task.name == name)
    bos: BosRule | None = record.bos  # type: ignore[assignment]
    if name == "text" and provenance.text_files:
        return own_text(provenance.text_files, bos)
    if name == "tokens" and provenance.tokens_files:
        return own_tokens(provenance.tokens_files)
    for word in _task_words(run):
        spec = parse_task(word)
        if word == name or open_task(spec)[0].name == name:
            if is_synthetic(spec):
                raise UserError(f"task {name}: its documents are made for each length, none is scored at two")
            return task_text(spec, bos)
    raise UserError(f"text {name} cannot be read again: it was given in memory, or no command here names it")


def _task_words(run: Run) -> Iterator[str]:
    """What stood after --task in the run's commands."""
    for session in run.provenance.sessions:
        for before, word in zip(("", *session.command), session.command, strict=False):
            if before == "--task":
                yield word
            elif word.startswith("--task="):
                yield word.removeprefix("--task=")
