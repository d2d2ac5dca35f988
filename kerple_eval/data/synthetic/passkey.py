"""passkey[:digits=5]: a number given once in repeated prose, and a question for it at the end.

After Mohtashami and Jaggi 2023 (landmark attention, arXiv 2305.16300), who hide a number in
the same few sentences over and over; Chen et al. 2023 (PI, arXiv 2306.15595) and YaRN use it, with five
digits, ten draws a depth, and generate the number. Here it is scored as targets, and the wording is our
own, so numbers are not those papers'. The number has ``digits`` digits, uniform, the first not 0.
"""

from __future__ import annotations

import numpy as np

from kerple_eval.data.synthetic.base import Generator, SyntheticDocument
from kerple_eval.data.synthetic.haystack import Haystack, build
from kerple_eval.data.tokenizer import ModelTokens
from kerple_eval.types import UserError

INTRO = "One number is told somewhere in the lines below. Keep it in mind, for it will be asked at the end."
FILLER = (
    "The river runs past the mill.",
    "Leaves fall and the wind carries them.",
    "A cart goes up the hill and comes down again.",
    "Bread is baked before the sun is up.",
)
TELLS = "The secret number is"


class Passkey(Generator):
    def __init__(self, *, digits: int = 5) -> None:
        if not 1 <= digits <= 18:
            raise UserError(f"passkey: digits={digits} must be within 1..18")
        self.digits = digits

    def make(
        self, model: ModelTokens, length: int, depth: float, rng: np.random.Generator
    ) -> SyntheticDocument:
        number = str(rng.integers(10 ** (self.digits - 1), 10**self.digits))
        hay = Haystack(
            "passkey", INTRO, f"{TELLS} {number}. Keep {number} in mind.", TELLS, number, FILLER, False
        )
        return build(hay, model, length, depth, rng)
