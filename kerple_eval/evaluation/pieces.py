"""Whether a run feeds its windows in pieces, and of how many tokens: asked for, or chosen by the forecast.

Where the forecast of :mod:`kerple_eval.models.footprint` for the longest window exceeds ``SHARE`` of the
memory that is available, the piece is the longest power of two whose forecast does not, ``LEAST`` if there is
none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kerple_eval.evaluation.plan import PlannedModel, Reference
from kerple_eval.models.devices import available_bytes
from kerple_eval.models.feeding import Feeding
from kerple_eval.models.footprint import window_bytes
from kerple_eval.types import UserError

SHARE = 0.8  # the forecast may be wrong by a factor of 1.3: tests/models/test_footprint.py
LEAST = 256  # tokens of the shortest piece that is chosen


def plan_pieces(
    models: Sequence[PlannedModel],
    reference: Reference | None,
    asked: int | None,
    longest: int,
    device: torch.device,
) -> None:
    """:func:`choose_pieces` for every model, beside the reference where there is one, and for the reference.

    The reference is fed in the shortest pieces that it needs beside any of the models.
    """
    chosen: dict[int, Feeding | None] = {}  # by checkpoint
    for model in models:
        other = None if reference is None else reference.of(model)
        pairs = [(model, other)] if other is None or other is model else [(model, other), (other, model)]
        for mine, beside in pairs:
            choose_pieces(mine, beside, asked, longest, device)
            found, before = mine.checkpoint.feeding, chosen.get(id(mine.checkpoint))
            if before is not None and (found is None or before.piece < found.piece):
                mine.checkpoint.feeding = before
            chosen[id(mine.checkpoint)] = mine.checkpoint.feeding


def choose_pieces(
    model: PlannedModel,
    beside: PlannedModel | None,
    asked: int | None,
    longest: int,
    device: torch.device,
) -> None:
    """Set the checkpoint's ``feeding`` for windows of up to ``longest`` tokens; None leaves each in one pass.

    ``beside``: a model that is in memory at the same time and scores the same windows.

    Raises:
        UserError: pieces were asked for, and the model cannot be fed so.
    """
    checkpoint = model.checkpoint
    if not checkpoint.feeds_pieces:
        if asked is not None:
            raise UserError(
                f"model {model.label}: --piece is for models of transformers, whose cache carries what came "
                f"before; this one ({checkpoint.description.format}) takes a window in one pass: leave it out"
            )
        return
    free = available_bytes(device)
    room = None if free is None else SHARE * free

    def fits(length: int, piece: int | None) -> bool:
        if room is None:
            return True
        needed = _needed(model, length, piece, device)
        if beside is not None:
            needed += _needed(beside, length, piece, device, loaded=beside.checkpoint is checkpoint)
        return needed <= room

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


def _needed(
    model: PlannedModel, length: int, piece: int | None, device: torch.device, *, loaded: bool = False
) -> int:
    """Memory that a window of the model takes, without weights that are ``loaded`` already."""
    about, width = model.description, model.checkpoint.compute_dtype(model.dtype).itemsize
    held = about.parameters * width if loaded or about.format == "memory" else 0
    fed = piece if model.checkpoint.feeds_pieces else None
    return window_bytes(about, length, width, device.type, fed) - held
