"""``--divergence-from``: whose predictions a run's models are compared with, checked before its first cell.

MODEL, or the label of a model of the run, is another model: it predicts each target from the same window.
``self@N`` is each model itself at length N: it predicts each target from the window that the cell's protocol
plans for it at that length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from kerple_eval.data.tokenizer import same_tokens
from kerple_eval.evaluation.opening import open_checkpoint, parsed
from kerple_eval.evaluation.plan import CellPlan, PlannedModel, ProtocolPlan, Reference
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.evaluation.worklist import Work
from kerple_eval.models.divergence import Parts
from kerple_eval.models.open import label_models
from kerple_eval.records.cell import Cell
from kerple_eval.records.divergence import other_reference
from kerple_eval.records.header import DivergenceRecord
from kerple_eval.support.specs import whole_number
from kerple_eval.types import UserError, Window

_SELF = re.compile(r"self@(?P<length>.*)", re.DOTALL)


def plan_reference(
    request: RunRequest, models: Sequence[PlannedModel], plans: Sequence[ProtocolPlan], device: torch.device
) -> Reference | None:
    """What a request names; None where it names none.

    Raises:
        UserError: no model, one that reads other tokens, or a length that does not serve.
    """
    asked = request.divergence_from
    if asked is None:
        return None
    option = f"--divergence-from {asked}"
    if match := _SELF.fullmatch(asked):
        length = whole_number(match["length"])
        if length is None or length < 1:
            raise UserError(f"{option}: expected a length in tokens after self@, as in self@512")
        reference = Reference(None, asked, length)
        for model in models:
            for name, cell in model.cells.items():
                _check_shorter(option, length, cell, next(p for p in plans if p.name == name[1]), name[2])
        return reference
    for model in models:
        if model.label == asked:
            found = Reference(model, asked, None)
            break
    else:
        try:
            spec = parsed(asked, request)
            (label,) = label_models([spec])
            checkpoint, dtype = open_checkpoint(asked, spec, label, request, device)
        except UserError as error:
            raise UserError(f"{option}: {error}") from error
        about = checkpoint.description
        found = Reference(PlannedModel(label, checkpoint, about, {}, {}, dtype), spec.text, None)
    _check_reference(option, found, models, max(plan.longest for plan in plans))
    return found


def _check_reference(option: str, reference: Reference, models: Sequence[PlannedModel], longest: int) -> None:
    assert reference.model is not None
    mine, about = reference.model.checkpoint.tokenizer, reference.model.description
    if about.max_length is not None and about.max_length < longest:
        raise UserError(
            f"{option}: its positions ({about.scheme}) end at {about.max_length}, length {longest} was asked "
            "for"
        )
    for model in models:
        theirs, size = model.checkpoint.tokenizer, model.description.vocab_size
        if mine is not None and theirs is not None and not same_tokens(mine, theirs):
            raise UserError(
                f"{option}: its tokeniser ({mine.identity}) is not that of model {model.label} "
                f"({theirs.identity}); a divergence is between predictions of the same tokens"
            )
        if about.vocab_size != size:
            raise UserError(
                f"{option}: it predicts {about.vocab_size:,} tokens, model {model.label} {size:,}; a "
                "divergence is between predictions of the same tokens"
            )


def _check_shorter(option: str, length: int, cell: CellPlan, plan: ProtocolPlan, longer: int) -> None:
    if length > longer:
        raise UserError(
            f"{option}: is longer than length {longer}; expected at most the shortest length asked for"
        )
    if plan.protocol.draws_samples or plan.protocol.scores_answers:
        raise UserError(
            f"{option}: protocol {plan.name} makes other documents at another length; use another "
            "protocol, or a reference model"
        )
    markers = 0 if cell.reading.window_bos is None else 1
    try:
        plan.protocol.check([length - markers])
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
    if _parts(cell, plan.cell(cell.reading, length)) is None:
        raise UserError(
            f"{option}: {plan.name} scores other targets at {length} than at {longer}; use aligned, "
            "full-context or sliding-window"
        )


def reference_parts(reference: Reference, task: Work) -> list[Parts] | None:
    """The reference's windows for each of the task's windows; None where they are the same."""
    if reference.length is None:
        return None
    return _parts(task.cell, task.plan.cell(task.reading, reference.length))


def _parts(cell: CellPlan, shorter: CellPlan) -> list[Parts] | None:
    """For each window of ``cell`` the windows of ``shorter`` that score its targets; None where some are not.

    A target that ``shorter`` scores twice is the later window's.
    """
    owners = [np.full(len(document) + 1, -1) for document in cell.documents]
    for number, (document, window) in enumerate(shorter.windows):
        owners[document][window.first_target : window.stop + 1] = number
    found = []
    for document, window in cell.windows:
        mine = owners[document][window.first_target : window.stop + 1]
        if (mine < 0).any():
            return None
        borders = [0, *(np.flatnonzero(np.diff(mine)) + 1).tolist(), len(mine)]
        parts: Parts = []
        for start, stop in pairwise(borders):
            own = shorter.windows[mine[start]][1]
            first = window.first_target + start
            parts.append((Window(own.start, own.stop, first, own.after_marker), stop - start))
        found.append(parts)
    return found


def check_divergence(cell: Cell, expected: DivergenceRecord, path: str) -> None:
    """Refuse a reference that is not the one of the cell's divergences; its label alone may differ."""
    held = cell.header.divergence
    different = [] if held is None or cell.divergence is None else other_reference(held, expected)
    if different:
        raise UserError(
            f"{path}: its divergences are from another reference than --divergence-from names: "
            f"{different[0].describe('in it', 'in the run asked for')}; choose another --out"
        )
