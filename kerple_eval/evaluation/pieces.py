"""Whether a run feeds its windows in pieces, and of how many tokens: asked for, or chosen by the forecast.

Where the forecast of :mod:`kerple_eval.models.footprint` for the longest window exceeds ``SHARE`` of the
memory that is available, the piece is the longest power of two whose forecast does not, ``LEAST`` if there is
none.
"""

from __future__ import annotations

import torch

from kerple_eval.models.base import Checkpoint
from kerple_eval.models.devices import available_bytes
from kerple_eval.models.feeding import Feeding
from kerple_eval.models.footprint import window_bytes
from kerple_eval.types import UserError

SHARE = 0.8  # the forecast may be wrong by a factor of 1.3: tests/models/test_footprint.py
LEAST = 256  # tokens of the shortest piece that is chosen


def choose_pieces(
    checkpoint: Checkpoint,
    label: str,
    asked: int | None,
    longest: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Set ``checkpoint.feeding`` for windows of up to ``longest`` tokens; None leaves each in one pass.

    Raises:
        UserError: pieces were asked for, and the model cannot be fed so.
    """
    if not checkpoint.feeds_pieces:
        if asked is not None:
            raise UserError(
                f"model {label}: --piece is for models of transformers, whose cache carries what came "
                f"before; this one ({checkpoint.description.format}) takes a window in one pass: leave it out"
            )
        return
    free = available_bytes(device)
    room = None if free is None else SHARE * free
    about, width, kind = checkpoint.description, checkpoint.compute_dtype(dtype).itemsize, device.type
    held = about.parameters * width if about.format == "memory" else 0  # weights that are loaded already

    def fits(length: int, piece: int | None) -> bool:
        return room is None or window_bytes(about, length, width, kind, piece) - held <= room

    checkpoint.feeding = None
    if asked is None and fits(longest, None):
        return
    piece = asked
    if piece is None:
        piece = 1 << ((longest - 1).bit_length() - 1)
        while piece > LEAST and not fits(longest, piece):
            piece //= 2
    one_pass = longest
    while one_pass > 1 and not fits(one_pass, None):
        one_pass //= 2
    checkpoint.feeding = Feeding(piece, one_pass=None if one_pass == longest else one_pass)
