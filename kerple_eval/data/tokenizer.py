"""Text to token ids. Two kinds: bytes (256 symbols), and a ``tokenizer.json`` (``tokenizers``).

Every tokeniser also says how many UTF-8 bytes of the text each token accounts for, so that bits per
byte can be given: token k accounts for the bytes between the end of token k-1 and its own end (a
character split over several byte-level tokens is counted at the first of them).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
    """What a checkpoint must offer to read text. ``identity`` tells two tokenisers apart."""

    identity: str
    vocab_size: int
    bos: int | None
    end_of_document: int | None
    adds_bos: bool  # whether it puts ``bos`` before a text unless told otherwise

    def encode(self, text: str) -> Encoding: ...


class ByteTokenizer:
    """UTF-8 bytes; id = byte. NUL, which text does not contain, ends a document in packed text."""

    def __init__(self) -> None:
        self.identity = "bytes"
        self.vocab_size = 256
        self.bos: int | None = None
        self.end_of_document: int | None = 0
        self.adds_bos = False

    def encode(self, text: str) -> Encoding:
        ids = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)
        return Encoding(ids, np.ones_like(ids))


class JsonTokenizer:
    """A Hugging Face ``tokenizer.json``, read by the ``tokenizers`` library; no template tokens."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Fast  # noqa: PLC0415 - only where a checkpoint has one

        try:
            raw = path.read_bytes()
            self._fast = Fast.from_buffer(raw)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except Exception as error:  # the library raises bare Exception on a malformed file
            raise UserError(f"{path}: not a tokenizer.json: {error}") from None
        self._fast.no_truncation()
        self._fast.no_padding()
        self.identity = "tokenizer.json:" + hashlib.sha256(raw).hexdigest()[:16]
        self.vocab_size = max(self._fast.get_vocab(with_added_tokens=True).values()) + 1
        self.bos: int | None = self._first("<s>", "<|begin_of_text|>", "<bos>", "[BOS]")
        self.end_of_document: int | None = self._first("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
        self.adds_bos = self.bos is not None and self.bos in self._fast.encode("a").ids[:1]

    def _first(self, *names: str) -> int | None:
        for name in names:
            number = self._fast.token_to_id(name)
            if number is not None:
                return int(number)
        return None

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
