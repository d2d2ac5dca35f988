"""What a generator is: L, depth and a random generator in, a document of exactly L + 1 tokens out.

The document's last ``answer`` tokens are the answer, so that one window of L inputs scores it by the
model's losses and by whether each token was the argmax: nothing is generated. Depth is where in the
document the answer's source stands, 0 at its beginning and 1 at its end: with D depths asked for,
0, 1/(D-1), ..., 1, and 0.5 where D = 1 (Chen et al. 2023, arXiv 2306.15595, space theirs evenly too).
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerple_eval.data.tokenizer import ModelTokens
from kerple_eval.types import UserError

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SyntheticDocument:
    """Token ids ``[L + 1]``, the last ``answer`` of them the answer; UTF-8 bytes per token where known."""

    ids: Ids
    answer: int
    byte_counts: Ids | None = None


class Generator(ABC):
    """Base of every generator; options are keyword-only parameters of ``__init__``."""

    #: Whether documents are token ids, which need no tokeniser.
    of_ids = False

    @abstractmethod
    def make(
        self, model: ModelTokens, length: int, depth: float, rng: np.random.Generator
    ) -> SyntheticDocument:
        """A document for windows of ``length`` inputs, its source at ``depth`` (0..1).

        Raises:
            UserError: the length is too short for it, or the tokeniser or vocabulary does not fit.
        """


def depth_grid(depths: int) -> list[float]:
    """``depths`` numbers from 0 to 1, evenly spaced; 0.5 for one."""
    return [0.5] if depths == 1 else [i / (depths - 1) for i in range(depths)]


def draw(task: str, seed: int, length: int, depth: int, sample: int) -> np.random.Generator:
    """The random numbers of one document: they depend on these arguments alone."""
    digest = hashlib.sha256(f"{task}\0{length}\0{depth}\0{sample}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def too_short(what: str, length: int, least: int) -> UserError:
    return UserError(f"{what}: length {length} is too short; use lengths of at least {least}")


def parse_ids(text: str, vocabulary: int, what: str) -> tuple[int, int]:
    """``all`` or ``FIRST-LAST`` -> the first of the ids in use, and their number.

    Raises:
        UserError: not a range, or beyond the vocabulary.
    """
    if text == "all":
        return 0, vocabulary
    first, _, last = text.partition("-")
    if not re.fullmatch(r"[0-9]{1,15}-[0-9]{1,15}", text) or int(first) >= int(last):
        raise UserError(f"{what}: ids={text[:40]} must be all, or two ids as in ids=97-122")
    if int(last) >= vocabulary:
        raise UserError(f"{what}: ids={text} exceed the vocabulary (0..{vocabulary - 1})")
    return int(first), int(last) - int(first) + 1
