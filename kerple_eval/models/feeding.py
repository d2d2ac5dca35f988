"""How windows longer than a piece are fed to a model: in pieces with its own cache, or in one pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Feeding:
    """What was asked for, and, once a window has been fed, what was found out. Units: tokens.

    Args:
        piece: longer windows are fed in pieces of so many.
        one_pass: the longest window that one pass can hold, for comparing pieces with it; None: any.
        compared: the longest beginning of a window whose pieces gave the logits of one pass.
        refused: why longer windows are scored in one pass all the same.
    """

    piece: int
    one_pass: int | None = None
    compared: int = 0
    refused: str | None = None
