"""Text to token ids: bytes (256 symbols), a ``tokenizer.json``, or GPT-2's two files (``tokenizers``).

Every tokeniser also says how many UTF-8 bytes of the text each token accounts for, so that bits per
byte can be given: token k accounts for the bytes between the end of token k-1 and its own end (a
character split over several byte-level tokens is counted at the first of them).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kerple_eval.types import UserError

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoding:
    """ids ``[n]`` and, where known, the UTF-8 bytes each token accounts for ``[n]``."""

    ids: Ids
    byte_counts: Ids | None


class Tokenizer(Protocol):
    """What a checkpoint must offer to read text. ``identity`` tells two tokenisers apart.

    ``adds_bos``: whether it puts ``bos`` before a text by itself; ``encode`` never does.
    """

    identity: str
    vocab_size: int
    bos: int | None
    adds_bos: bool  # whether it puts ``bos`` before a text unless told otherwise
    end_of_document: int | None

    def encode(self, text: str) -> Encoding: ...


class ByteTokenizer:
    """UTF-8 bytes; id = byte. NUL, which text does not contain, ends a document in packed text."""

    def __init__(self) -> None:
        self.identity = "bytes"
        self.vocab_size = 256
        self.bos: int | None = None
        self.adds_bos = False
        self.end_of_document: int | None = 0

    def encode(self, text: str) -> Encoding:
        ids = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)
        return Encoding(ids, np.ones_like(ids))


BYTE_TOKENIZER = ByteTokenizer()


@dataclass(frozen=True)
class ModelTokens:
    """A model as a reader of text: its label, tokeniser, vocabulary size and first-token marker."""

    label: str
    tokenizer: Tokenizer | None
    vocabulary: int
    bos: int | None = None


class FastTokenizer:
    """What the tokenisers of the ``tokenizers`` library share; no template tokens."""

    def __init__(self, fast: Any, identity: str) -> None:
        self._fast = fast
        self._fast.no_truncation()
        self._fast.no_padding()
        self.identity = identity
        self.vocab_size = max(self._fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        lead = self._template_lead()
        named = self._first("<s>", "<|begin_of_text|>", "<bos>", "[BOS]")
        self.bos: int | None = named if lead is None else lead
        self.adds_bos = lead is not None
        self.end_of_document: int | None = self._first("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")

    def to_json(self) -> bytes:
        """The same tokeniser as a ``tokenizer.json``, for a checkpoint written in another format."""
        text: str = self._fast.to_str()
        return text.encode("utf-8")

    def _first(self, *names: str) -> int | None:
        for name in names:
            number = self._fast.token_to_id(name)
            if number is not None:
                return int(number)
        return None

    def _template_lead(self) -> int | None:
        """The token that the file's own template puts before a text, where it does."""
        plain = self._fast.encode("a", add_special_tokens=False).ids
        whole = self._fast.encode("a", add_special_tokens=True).ids
        return int(whole[0]) if len(whole) > len(plain) and whole[: len(plain)] != plain else None

    def encode(self, text: str) -> Encoding:
        encoding = self._fast.encode(text, add_special_tokens=False)
        ends = np.array([stop for _, stop in encoding.offsets], dtype=np.int64)
        widths = np.array([len(character.encode("utf-8")) for character in text], dtype=np.int64)
        before = np.concatenate([[0], np.cumsum(widths)])
        reached = np.maximum.accumulate(before[ends]) if len(ends) else ends
        counts = np.diff(reached, prepend=0)
        if len(counts):
            counts[-1] += before[-1] - reached[-1]  # trailing text that no token spells out
        return Encoding(np.array(encoding.ids, dtype=np.int64), counts)


class JsonTokenizer(FastTokenizer):
    """A Hugging Face ``tokenizer.json``."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Fast  # noqa: PLC0415 - only where a checkpoint has one

        try:
            raw = path.read_bytes()
            fast = Fast.from_buffer(raw)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except Exception as error:  # the library raises bare Exception on a malformed file
            raise UserError(f"{path}: not a tokenizer.json: {error}") from None
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

        try:
            raw = [path.read_bytes() for path in (vocabulary, merges)]
            fast = Fast(models.BPE.from_file(str(vocabulary), str(merges)))
        except OSError as error:
            name = error.filename or vocabulary
            raise UserError(f"{name}: cannot be read: {error.strerror}") from None
        except Exception as error:  # the library raises bare Exception on a malformed file
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{vocabulary}: not GPT-2's vocabulary, with {merges.name}: {first}") from None
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in raw)).hexdigest()
        super().__init__(fast, "gpt2-bpe:" + digest[:16])
        self.bos = None

    def encode(self, text: str) -> Encoding:
        encoding = super().encode(text)
        spelt = sum(len(self._fast.id_to_token(int(n))) for n in encoding.ids)  # one symbol a byte
        there = len(text.encode("utf-8"))
        if spelt != there:
            raise UserError(
                f"the tokeniser ({self.identity}) spells {spelt} of the text's {there} bytes: "
                "its vocabulary lacks a byte's symbol"
            )
        return encoding
