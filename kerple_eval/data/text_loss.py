"""How much of a text a tokeniser loses: bytes that cannot be read back from its tokens.

Lost are the bytes under an unknown symbol, those that no token covers (dropped symbols, spaces that a
normaliser removed) and those of a token whose text is another (lower-cased, or replaced by a normaliser).
Where a symbol inside a word is dropped, the library misplaces the rest of the word, which counts as lost too.
A model has then not predicted the text, and bits per byte of it say less than they seem to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def lost_bytes(fast: Any, text: str, encoding: Any) -> int:
    """UTF-8 bytes of ``text`` that ``encoding``, its encoding by the tokeniser ``fast``, does not keep."""
    decoder = _decoder(fast)
    names = {number: fast.id_to_token(number) for number in set(encoding.ids)}
    pieces = [names[number] for number in encoding.ids]  # a Unigram's unknown piece has the text's own name
    if decoder.decode(pieces) == text:
        return 0
    known: dict[tuple[str, ...], str] = {}

    def decoded(tokens: tuple[str, ...]) -> str:
        if tokens not in known:
            known[tokens] = decoder.decode(list(tokens))
        return known[tokens]

    lost = reached = 0
    before: tuple[str, ...] = ()
    for tokens, start, stop in _groups(pieces, encoding.offsets):
        gap, part, kept = text[reached:start], text[max(start, reached) : stop], decoded(tokens)
        if gap and not (gap == " " and decoded(before + tokens) == f"{decoded(before)} {kept}"):
            lost += len(gap.encode("utf-8"))
        if part not in (kept, f" {kept}") and f" {part}" != kept:
            lost += len(part.encode("utf-8"))
        reached, before = max(reached, stop), tokens
    return lost + len(text[reached:].encode("utf-8"))


def _groups(pieces: list[str], offsets: list[tuple[int, int]]) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Tokens of the same characters together, and where those start and stop in the text."""
    group: list[str] = []
    first = last = 0
    for token, (start, stop) in zip(pieces, offsets, strict=True):
        if group and start >= last:
            yield tuple(group), first, last
            group = []
        if not group:
            first, last = start, stop
        group.append(token)
        last = max(last, stop)
    if group:
        yield tuple(group), first, last


def _decoder(fast: Any) -> Any:
    """The tokeniser's own decoder, or the one that belongs to its pre-tokeniser."""
    from tokenizers import decoders  # noqa: PLC0415 - only where a checkpoint has such a tokeniser

    if fast.decoder is not None:
        return fast.decoder
    steps = b"" if fast.pre_tokenizer is None else fast.pre_tokenizer.__getstate__()
    if b"ByteLevel" in steps:
        return decoders.ByteLevel()
    if b"Metaspace" in steps:
        return decoders.Metaspace()
    kind = type(fast.model).__name__
    if kind == "WordLevel":
        return _Words()
    return decoders.WordPiece(cleanup=False) if kind == "WordPiece" else decoders.Fuse()


class _Words:
    """Words with a space between them: what the library makes of tokens without a decoder."""

    def decode(self, tokens: list[str]) -> str:
        return " ".join(tokens)
