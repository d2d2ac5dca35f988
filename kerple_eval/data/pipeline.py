"""What a tokeniser of the ``tokenizers`` library does to a text, read from its own description.

Its steps are: added tokens are cut out, the rest is normalised, split (pre-tokenised), and each part
becomes tokens by the model (BPE, Unigram, WordPiece, WordLevel).

**Borders.** A border is a space between two ASCII letters. The tokens of the text before a border are the
first tokens of the whole text wherever no step can join or change anything over it:

1. no added token holds a letter with a space after it;
2. the normaliser looks at characters one by one and keeps letters and spaces;
3. the text is split at borders, or no token holds a letter with a space after it and the model joins
   neighbours alone (BPE without dropout, or Unigram), so that no token can reach over a border.

A step that is not known here gives no border, and the text is then read whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from kerple_eval.types import UserError

#: How many times longer a normaliser may make a text (in characters).
GROWTH = 100
_BORDER = re.compile(r"[A-Za-z] [A-Za-z]")
_LETTER_SPACE = re.compile(r"[A-Za-z][ ▁Ġ]")  # as text, in SentencePiece's form, and in byte-level BPE's
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

#: Normalisers that look at single characters, or at one with the accents that follow it.
_BY_CHARACTER = {
    "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "BertNormalizer", "Precompiled",
    "Prepend", "Strip",
}  # fmt: skip
#: Regular expressions of ``Split`` that split at a border: the space begins the next part, with the letters
#: after it. GPT-2; cl100k and Llama 3; Qwen 2; DeepSeek 3.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDINGS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITTING = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _ENDINGS,
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _ENDINGS,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
#: Regular expressions of ``Split`` that match no letter and no space, and so nothing at a border.
_ELSEWHERE = {r"\p{N}{1,3}", r"\p{N}", r"\d", r"[0-9]", r"[一-龥぀-ゟ゠-ヿ]+", r"[\r\n]"}


def check_growth(fast: Any, what: str) -> None:
    """Refuse a normaliser or decoder whose replacements make a text more than ``GROWTH`` times longer."""
    for name in ("normalizer", "decoder"):
        growth = 1.0
        for step in _steps(getattr(fast, name)):
            if step["type"] == "Replace":
                growth *= _growth(step["pattern"], len(step["content"]))
            if growth > GROWTH:
                raise UserError(
                    f"tokeniser {what}: its {name} makes a text more than {GROWTH} times longer "
                    "(Replace steps one after the other); it is not read"
                )


def _growth(pattern: dict[str, str], size: int) -> float:
    """How many times longer a text can become by putting ``size`` characters for each match."""
    if "String" in pattern:
        return max(1.0, size / len(pattern["String"])) if pattern["String"] else size + 1.0
    try:
        matches_nothing = re.match(pattern["Regex"], "") is not None
    except (re.error, KeyError):  # an expression of the library's own dialect
        matches_nothing = True
    return size + 1.0 if matches_nothing else max(1.0, size)


def _steps(component: Any) -> Iterator[dict[str, Any]]:
    """The single steps of a normaliser, pre-tokeniser or decoder, in order."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()))


def _flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if step.get("type") == "Sequence":
        for key in ("normalizers", "pretokenizers", "decoders"):
            for inner in step.get(key, ()):
                yield from _flat(inner)
    else:
        yield step


class Pipeline:
    """The steps of one tokeniser, as far as borders need them."""

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def last_border(self, text: str, most: int) -> int | None:
        """The position of the last border within the first ``most`` characters of ``text``."""
        for start in (*range(most - 1024, 0, -1024), 0):
            borders = [match.start() + 1 for match in _BORDER.finditer(text, start, min(start + 1026, most))]
            if borders:
                return borders[-1]
        return None

    @cached_property
    def has_borders(self) -> bool:
        """Whether the tokens before a border are known not to depend on what follows it."""
        return self._added_tokens_allow() and self._normaliser_allows() and self._split_or_merge_allows()

    def _added_tokens_allow(self) -> bool:
        tokens = self._fast.get_added_tokens_decoder().values()
        return not any(_LETTER_SPACE.search(token.content) for token in tokens)

    def _normaliser_allows(self) -> bool:
        normalizer = self._fast.normalizer
        for step in _steps(normalizer):
            if step["type"] == "Replace":
                pattern = step["pattern"].get("String")
                if pattern is None and step["pattern"] != {"Regex": " {2,}"}:
                    return False
                if pattern not in (None, " ") and re.search("[A-Za-z ]", pattern):
                    return False
            elif step["type"] not in _BY_CHARACTER:
                return False
        if normalizer is None:
            return True
        kept = re.compile("▁?[A-Za-z]{2}[ ▁][A-Za-z]{2}")
        return all(kept.fullmatch(normalizer.normalize_str(f"x{c} {c}x")) for c in _LETTERS)

    @cached_property
    def _spaces_replaced(self) -> bool:
        return any(
            s["type"] == "Replace" and s["pattern"] == {"String": " "} for s in _steps(self._fast.normalizer)
        )

    def _split_or_merge_allows(self) -> bool:
        if getattr(self._fast.model, "dropout", None):
            return False
        for step in _steps(self._fast.pre_tokenizer):
            splits = self._splits_at_borders(step)
            if splits is None or splits:
                return bool(splits)
        return self._tokens_stay_between_borders()

    def _splits_at_borders(self, step: dict[str, Any]) -> bool | None:
        """Whether a pre-tokeniser splits at every border, or at none of them; None where unknown."""
        kind = step["type"]
        if kind in ("Digits", "Punctuation") or (kind == "ByteLevel" and not step.get("use_regex", True)):
            return False
        if kind == "Metaspace":
            return bool(step.get("split", True))
        if self._spaces_replaced:  # the others look for spaces
            return False if kind == "Split" and step["pattern"] == {"String": " "} else None
        if kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "ByteLevel"):
            return True
        return _regex_splits(step) if kind == "Split" else None

    def _tokens_stay_between_borders(self) -> bool:
        model, steps = self._fast.model, list(_steps(self._fast.pre_tokenizer))
        kind = type(model).__name__
        whole_words = kind == "BPE" and (
            model.ignore_merges or model.end_of_word_suffix or model.continuing_subword_prefix
        )
        if kind not in ("BPE", "Unigram") or whole_words:
            return False
        kinds = {step["type"] for step in steps}
        metaspace = self._spaces_replaced or "Metaspace" in kinds
        space = "▁" if metaspace else "Ġ" if "ByteLevel" in kinds else " "
        vocabulary = self._fast.get_vocab(with_added_tokens=False)
        # an unknown space would become one unknown token with unknown neighbours
        return space in vocabulary and not any(map(_LETTER_SPACE.search, vocabulary))


def _regex_splits(step: dict[str, Any]) -> bool | None:
    """The same of a ``Split``."""
    expression, behavior = step["pattern"].get("Regex"), step["behavior"]
    if expression in _SPLITTING and (behavior, step["invert"]) in (("Isolated", False), ("Removed", True)):
        return True
    if expression in _ELSEWHERE and behavior in ("Isolated", "Removed", "Contiguous") and not step["invert"]:
        return False
    return None
