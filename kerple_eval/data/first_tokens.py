"""A run's texts by the first-token rules that protocols bring with them.

The documents are those that the run selected by its own rule; with ``--max-tokens`` they end at the same
token of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kerple_eval.data.documents import NO_MARKERS, DocumentMarkers, TokenDocument, surround
from kerple_eval.data.texts import (
    DocumentSelection,
    PreparedText,
    TextSource,
    TokenizedText,
    applied,
    check_markers,
    check_vocabulary,
)
from kerple_eval.data.tokenizer import ModelTokens, Tokenizer
from kerple_eval.types import FirstToken, UserError


@dataclass
class TokenizedTexts:
    """A text as one model reads it: by the run's first-token rule, and by those of protocols."""

    base: TokenizedText
    own: dict[FirstToken, TokenizedText]

    def of(self, rule: FirstToken | None) -> TokenizedText:
        return self.base if rule is None else self.own[rule]


def tokenize_by_rules(
    text: TextSource, models: Sequence[ModelTokens], choice: DocumentSelection, rules: Sequence[FirstToken]
) -> PreparedText[TokenizedTexts]:
    """``text.prepare`` and the same documents by ``rules``, by model label; equal ones are one object."""
    prepared = text.prepare(models, choice)
    base = prepared.by_model
    known: dict[tuple[Any, ...], TokenizedText] = {
        (text.identity(model.tokenizer), base[model.label].markers): base[model.label] for model in models
    }
    texts = {model.label: TokenizedTexts(base[model.label], {}) for model in models}
    for model in models:
        for rule in rules:
            markers = _applied(text, rule, model)
            check_markers(markers, model)
            key = (text.identity(model.tokenizer), markers)
            if key not in known:
                most = choice.max_tokens
                known[key] = _with_markers(text, base[model.label], model.tokenizer, markers, most)
                check_vocabulary(known[key].documents, model.label, model.vocabulary)
            texts[model.label].own[rule] = known[key]
    return PreparedText(texts, prepared.record)


def _applied(text: TextSource, rule: FirstToken, model: ModelTokens) -> DocumentMarkers:
    """The rule as applied to this model."""
    tokenizer = model.tokenizer
    if text.tokens is not None or tokenizer is None:
        if rule.rule == "prefix" and rule.id is None:
            raise UserError(
                f"{text.name}: token ids are used as given, and lm-eval-rolling needs a prefix token: say "
                "which, as in lm-eval-rolling:prefix_token_id=0"
            )
        if rule.id is None or rule.rule == "tokenizer":
            return NO_MARKERS
        return DocumentMarkers(rule.rule, rule.id, (rule.id,) if rule.rule == "prefix" else ())
    if rule.rule == "tokenizer":
        return applied("tokenizer", tokenizer)
    number = tokenizer.bos if rule.id is None else rule.id
    if rule.where_added and number not in tokenizer.before:
        return NO_MARKERS
    if rule.rule == "window":
        return NO_MARKERS if number is None else DocumentMarkers("window", number)
    if number is None:
        number = tokenizer.end_of_document
    if number is None:
        raise UserError(
            f"model {model.label}: its tokeniser ({tokenizer.identity}) has neither a first-token marker nor "
            "an end-of-document token to begin with; say which, as in lm-eval-rolling:prefix_token_id=0"
        )
    return DocumentMarkers("prefix", number, (number, *tokenizer.before), tokenizer.after)


def _with_markers(
    text: TextSource,
    base: TokenizedText,
    tokenizer: Tokenizer | None,
    markers: DocumentMarkers,
    most: int | None,
) -> TokenizedText:
    """The documents of ``base`` with other markers, cut after ``most`` tokens of the base's."""
    given = text.tokens is not None
    if text.packed and not given:  # the tokeniser's own markers stand inside, a prefix before all of it
        prefix = markers.before[:1] if markers.rule == "prefix" else ()
        inner = replace(markers, before=markers.before[len(prefix) :])
        assert tokenizer is not None
        documents = [
            surround(document, prefix, ()) for document in text.tokenised(tokenizer, inner).documents
        ]
        if most is not None:
            added = len(prefix) + len(inner.before) - len(base.markers.before)
            documents = [document.cut(most + added) for document in documents]
    else:
        documents = [_surrounded(_without(document, base.markers), markers) for document in base.documents]
    documents = [document.plain() for document in documents]
    return TokenizedText(documents, markers, given, base.lost_bytes, base.read_bytes)


def _without(document: TokenDocument, markers: DocumentMarkers) -> TokenDocument:
    """The document without the markers around it."""
    start = len(markers.before)
    stop = len(document) - (0 if document.cut_off else len(markers.after))
    counts = None if document.byte_counts is None else document.byte_counts[start:stop]
    return replace(document, ids=document.ids[start:stop], byte_counts=counts)


def _surrounded(document: TokenDocument, markers: DocumentMarkers) -> TokenDocument:
    """The document between its markers.

    Where the text itself begins with the prefix token, that token alone stands before it, and nothing after
    it: lm-eval then tells the tokeniser to add no marker (``has_bos_prefix``).
    """
    ids = document.ids
    if markers.rule == "prefix" and len(ids) and ids[0] == markers.id:
        return surround(document, markers.before[:1], ())
    return surround(document, markers.before, markers.after)
