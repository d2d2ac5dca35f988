"""Text to token ids: bytes (256 symbols), a ``tokenizer.json``, or GPT-2's two files (``tokenizers``).

Every tokeniser also says how many UTF-8 bytes of the text each token accounts for, so that bits per
byte can be given: token k accounts for the bytes between the end of token k-1 and its own end (a
character split over several byte-level tokens is counted at the first of them). Bytes that cannot be read
back from the tokens (unknown symbols, dropped or changed ones) are counted as lost, see ``text_loss.py``.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kerple_eval.data.pipeline import Pipeline, check_growth
from kerple_eval.data.text_loss import lost_bytes
from kerple_eval.support.readers import quoted, read_bytes
from kerple_eval.types import UserError

Ids = NDArray[np.int64]
T = TypeVar("T")

LARGEST = 1 << 28  # bytes of a tokeniser's file


@dataclass(frozen=True, slots=True)
class Encoding:
    """ids ``[n]`` and, where known, the UTF-8 bytes each token accounts for ``[n]``.

    ``lost`` is the number of bytes of the text that cannot be read back from the ids. ``read_bytes`` is
    given where only so many bytes of the text were read (UTF-8).
    """

    ids: Ids
    byte_counts: Ids | None
    lost: int = 0
    read_bytes: int | None = None


class Tokenizer(Protocol):
    """What a checkpoint must offer to read text. ``identity`` tells two tokenisers apart.

    ``before`` and ``after`` are the ids that it puts around a text by itself; ``encode`` leaves them out.
    ``bos`` is the first-token marker that a rule may ask for, ``end_of_document`` what ends a document in
    packed text.
    """

    identity: str
    vocab_size: int
    bos: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    end_of_document: int | None

    def encode(self, text: str) -> Encoding: ...


@dataclass(frozen=True)
class ModelTokens:
    """A model as a reader of text: its label, tokeniser, vocabulary size and the ids before a document."""

    label: str
    tokenizer: Tokenizer | None
    vocabulary: int
    before: tuple[int, ...] = ()


class ByteTokenizer:
    """UTF-8 bytes; id = byte. NUL, which plain text does not contain, ends a document in packed text."""

    def __init__(self) -> None:
        self.identity = "bytes"
        self.vocab_size = 256
        self.bos: int | None = None
        self.before: tuple[int, ...] = ()
        self.after: tuple[int, ...] = ()
        self.end_of_document: int | None = 0

    def encode(self, text: str) -> Encoding:
        ids = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)
        return Encoding(ids, np.ones_like(ids))


BYTE_TOKENIZER = ByteTokenizer()


def encode_start(tokenizer: Tokenizer, text: str, most: int) -> Encoding:
    """The beginning of ``tokenizer.encode(text)``: more than ``most`` tokens of it, or all.

    Only the beginning of the text is read, up to a border that no token reaches over, see
    ``pipeline.py``; the whole where no such border is known.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return _start(tokenizer, text, most + 1)
    if isinstance(tokenizer, FastTokenizer):
        characters = max(4096, 8 * most)
        while tokenizer.pipeline.has_borders and characters < len(text):
            border = tokenizer.pipeline.last_border(text, characters)
            if border is not None:
                encoding = _start(tokenizer, text, border)
                if len(encoding.ids) > most:
                    return encoding
            characters *= 2
    return tokenizer.encode(text)


def _start(tokenizer: Tokenizer, text: str, border: int) -> Encoding:
    encoding = tokenizer.encode(text[:border])
    if border < len(text):
        return replace(encoding, read_bytes=len(text[:border].encode("utf-8")))
    return encoding


class FastTokenizer:
    """What the tokenisers of the ``tokenizers`` library share."""

    def __init__(self, fast: Any, identity: str) -> None:
        self._fast = fast
        self._fast.no_truncation()
        self._fast.no_padding()
        check_growth(fast, identity)
        self.identity = identity
        self.vocab_size = max(self._fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.before, self.after = markers_around(fast, identity)
        named = self._first("<s>", "<|begin_of_text|>", "<bos>", "[BOS]")
        self.bos: int | None = self.before[0] if self.before else named
        self.end_of_document: int | None = self._first("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")

    def to_json(self) -> bytes:
        """The same tokeniser as a ``tokenizer.json``, for a checkpoint written in another format."""
        text: str = self._fast.to_str()
        return text.encode("utf-8")

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline(self._fast)

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The vocabulary, by id."""
        return {number: token for token, number in self._fast.get_vocab(with_added_tokens=True).items()}

    def _first(self, *names: str) -> int | None:
        for name in names:
            number = self._fast.token_to_id(name)
            if number is not None:
                return int(number)
        return None

    def _call(self, function: Callable[[], T]) -> T:
        """What the library answers; its errors, a panic of its Rust code included, become a UserError."""
        return guarded(function, f"the tokeniser ({self.identity}) failed")

    def encode(self, text: str) -> Encoding:
        encoding = self._call(lambda: self._fast.encode(text, add_special_tokens=False))
        ids = np.array(encoding.ids, dtype=np.int64)
        ends = np.array([stop for _, stop in encoding.offsets], dtype=np.int64)
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
        before = np.concatenate([[0], np.cumsum(widths)])
        reached = np.maximum.accumulate(before[ends]) if len(ends) else ends
        counts = np.diff(reached, prepend=0)
        if len(counts):
            counts[-1] += before[-1] - reached[-1]  # text at the end that belongs to no token
        return Encoding(ids, counts, self._call(lambda: lost_bytes(self._fast, text, encoding)))


def same_tokens(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether ids of one are the same tokens to the other: no id stands for two different ones.

    The same vocabulary may come from two files (a ``tokenizer.json`` and a GGUF file).
    """
    if first.identity == second.identity:
        return True
    if not (isinstance(first, FastTokenizer) and isinstance(second, FastTokenizer)):
        return False
    both = first.tokens.keys() & second.tokens.keys()
    return bool(both) and all(first.tokens[number] == second.tokens[number] for number in both)


def markers_around(fast: Any, identity: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor of ``fast`` puts before and after a text."""
    vocabulary = list(itertools.islice(fast.get_vocab(with_added_tokens=False), 8))
    for probe in ("a", "1", ".", "\n", *vocabulary):
        try:
            plain = fast.encode(probe, add_special_tokens=False).ids
            whole = fast.encode(probe, add_special_tokens=True)
        except Exception:  # what tokenizers raises for a probe that its model cannot read
            continue
        if not plain:
            continue
        start = whole.special_tokens_mask.index(0)
        stop = start + len(plain)
        if whole.ids[start:stop] != plain:
            raise UserError(f"the tokeniser ({identity}) puts markers inside a text; none is read so")
        return tuple(map(int, whole.ids[:start])), tuple(map(int, whole.ids[stop:]))
    raise UserError(f"the tokeniser ({identity}) makes no tokens of a text")


def guarded(function: Callable[[], T], problem: str) -> T:
    """``function()`` of the ``tokenizers`` library, which raises bare Exception and, in a panic, more."""
    try:
        return function()
    except UserError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError | GeneratorExit):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{problem}: {quoted(reason, 200)[1:-1]}") from None


class JsonTokenizer(FastTokenizer):
    """A Hugging Face ``tokenizer.json``."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Fast  # noqa: PLC0415 - only where a checkpoint has one

        raw = read_bytes(path, LARGEST)
        fast = guarded(lambda: Fast.from_buffer(raw), f"{path}: not a tokenizer.json")
        super().__init__(fast, "tokenizer.json:" + hashlib.sha256(raw).hexdigest()[:16])
        self._raw = raw

    def to_json(self) -> bytes:
        return self._raw  # to the byte, so that the identity stays


class Gpt2Tokenizer(FastTokenizer):
    """GPT-2's byte-level BPE from its two files; ``<|endoftext|>`` in a text is text.

    Source: Radford et al. 2019, openai/gpt-2 ``encoder.py``: bytes as 256 printable symbols, words
    split by one regular expression, merges by rank.
    """

    def __init__(self, vocabulary: Path, merges: Path) -> None:
        from tokenizers import Tokenizer as Fast  # noqa: PLC0415
        from tokenizers import models, pre_tokenizers  # noqa: PLC0415

        raw = [read_bytes(path, LARGEST) for path in (vocabulary, merges)]
        fast = guarded(
            lambda: Fast(models.BPE.from_file(str(vocabulary), str(merges))),
            f"{vocabulary}: not GPT-2's vocabulary, with {merges.name}",
        )
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in raw)).hexdigest()
        super().__init__(fast, "gpt2-bpe:" + digest[:16])
        self.bos = None

    def encode(self, text: str) -> Encoding:
        encoding = super().encode(text)
        represented = sum(len(self._fast.id_to_token(int(n))) for n in encoding.ids)  # one symbol per byte
        size = len(text.encode("utf-8"))
        if represented != size:
            raise UserError(
                f"the tokeniser ({self.identity}) represents {represented} of the text's {size} bytes: "
                "its vocabulary lacks a byte's symbol"
            )
        return encoding
