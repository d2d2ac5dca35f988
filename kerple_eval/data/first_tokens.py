"""A run's documents read once more by the first-token rules that protocols bring with them.

The documents are those the run chose by its own rule; with ``--max-tokens`` they end at the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kerple_eval.data.documents import TokenDocument
from kerple_eval.data.texts import (
    DocumentSelection,
    PreparedText,
    TextSource,
    TokenizedText,
    check_marker,
    check_vocabulary,
)
from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.records.specification import AppliedRule
from kerple_eval.types import FirstToken, UserError


@dataclass
class TokenizedTexts:
    """A text as one model reads it: by the run's first-token rule, and by those of protocols."""

    base: TokenizedText
    own: dict[FirstToken, TokenizedText]

    def of(self, rule: FirstToken | None) -> TokenizedText:
        return self.base if rule is None else self.own[rule]


def tokenize_by_rules(
    text: TextSource,
    readers: dict[str, tuple[str, Tokenizer | None, int]],
    choice: DocumentSelection,
    rules: Sequence[FirstToken],
) -> PreparedText[TokenizedTexts]:
    """``text.prepare``, and the same documents by ``rules``; readings that are alike are one object."""
    prepared = text.prepare(readers, choice)
    base = prepared.by_model
    made: dict[tuple[Any, ...], TokenizedText] = {
        (text.identity(readers[label][1]), r.bos, r.bos_id): r for label, r in base.items()
    }
    found = {label: TokenizedTexts(reading, {}) for label, reading in base.items()}
    for label, tokenizer, vocabulary in readers.values():
        for rule in rules:
            applied, number = _applied(text, rule, label, tokenizer)
            check_marker(number, label, vocabulary)
            key = (text.identity(tokenizer), applied, number)
            if key not in made:
                made[key] = _read_alike(text, base[label], tokenizer, applied, number, most=choice.max_tokens)
                check_vocabulary(made[key].documents, label, vocabulary)
            found[label].own[rule] = made[key]
    return PreparedText(found, prepared.record)


def _applied(
    text: TextSource, rule: FirstToken, label: str, tokenizer: Tokenizer | None
) -> tuple[AppliedRule, int | None]:
    """The rule as applied to this model, and the token it puts."""
    if text.tokens is not None or tokenizer is None:
        if rule.rule == "prefix" and rule.id is None:
            raise UserError(
                f"{text.name}: token ids are used as given, and lm-eval-rolling needs a prefix token: say "
                "which, as in lm-eval-rolling:prefix_token_id=0"
            )
        if rule.id is None or rule.rule == "tokenizer":
            return "never", None
        return rule.rule, rule.id
    if rule.rule == "tokenizer":
        return ("document", tokenizer.bos) if tokenizer.adds_bos else ("never", None)
    number = tokenizer.bos if rule.id is None else rule.id
    if rule.rule == "prefix" and number is None:
        number = tokenizer.end_of_document
        if number is None:
            raise UserError(
                f"model {label}: its tokeniser ({tokenizer.identity}) has neither a first-token marker nor "
                "an end-of-document token to begin with; say which, as in lm-eval-rolling:prefix_token_id=0"
            )
    return ("never", None) if number is None else (rule.rule, number)


def _read_alike(
    text: TextSource,
    base: TokenizedText,
    tokenizer: Tokenizer | None,
    bos: AppliedRule,
    number: int | None,
    *,
    most: int | None,
) -> TokenizedText:
    """The documents of ``base`` with another first-token rule, cut after ``most`` tokens of the base's."""
    given = text.tokens is not None
    adds = tokenizer is not None and not given and tokenizer.adds_bos
    marked = bos == "document" or (bos == "prefix" and adds)
    own = int(base.bos == "document")
    if text.packed and not given:  # markers stand inside
        within = "document" if marked else "never"
        documents = list(text.tokenised(tokenizer, within, False))
    else:
        documents = [_without_first(d, own) for d in base.documents]
        if marked:
            assert tokenizer is not None
            documents = [_led_by(tokenizer.bos, d) for d in documents]
    if bos == "prefix":
        documents = [_prefixed(d, number, adds) for d in documents]
    if most is not None:
        documents = [d.cut(most + int(marked) + int(bos == "prefix") - own) for d in documents]
    return TokenizedText([d.plain() for d in documents], bos, number, given)


def _without_first(document: TokenDocument, count: int) -> TokenDocument:
    counts = None if document.byte_counts is None else document.byte_counts[count:]
    return TokenDocument(document.name, document.ids[count:], counts)


def _led_by(number: int | None, document: TokenDocument) -> TokenDocument:
    """A marker, which spells no bytes, before the document."""
    counts = None if document.byte_counts is None else np.concatenate([[0], document.byte_counts])
    return TokenDocument(document.name, np.concatenate([[number], document.ids]), counts)


def _prefixed(document: TokenDocument, number: int | None, adds: bool) -> TokenDocument:
    """``number`` before the document; its tokeniser's own BOS goes where the text spells one itself."""
    twice = adds and len(document) > 1 and document.ids[1] == number
    return _led_by(number, _without_first(document, int(twice)))
