"""Whether a cell on disk was computed from what ``run.json`` beside it states.

A cell's file name says its key alone, so that a cell of another checkpoint, text or device can lie under the
right name. Its header says the facts it was computed from, and a sha256 of everything in the specification
that decides its losses. Both are compared with ``run.json`` wherever a cell is read. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kerple_eval.records.header import CellHeader
from kerple_eval.records.specification import (
    Marker,
    ModelRecord,
    ProtocolRecord,
    RunSpecification,
    TaskRecord,
)
from kerple_eval.support.differences import differences
from kerple_eval.support.typed_json import to_json
from kerple_eval.types import CellKey, UserError


def specification_sha256(specification: RunSpecification, key: CellKey) -> str:
    """Of all that decides the losses of a cell: the same however many other models, texts, protocols and
    lengths the run has, and whatever the model's label is.
    """
    model, task, protocol = _parts(specification, key)
    label = key.model
    # The tokens of a made text follow from its source, seed and length, and the model's tokeniser.
    tokens = task.tokens_sha256 if isinstance(task.tokens_sha256, str) else None
    drawn = (task.drawn_sha256 or {}).get(key.protocol, {}).get(str(key.length))
    lost = (task.lost_bytes or {}).get(label)
    whole = replace(task, tokens_sha256=None, drawn_sha256=None, first_token=None, lost_bytes=None)
    content = {
        "run": to_json(replace(specification, models=(), tasks=(), protocols=())),
        "model": to_json(replace(model, label="")),
        "task": to_json(whole),
        "tokens": tokens,
        "drawn": drawn,
        "lost": to_json(lost),
        "protocol": to_json(replace(protocol, lengths=(), first_token=None)),
        "first_token": to_json(_marker(task, protocol, label)),
        "length": key.length,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_origin(header: CellHeader, key: CellKey, specification: RunSpecification, path: Path) -> None:
    """Refuse the cell of the file ``path`` where it was computed from anything else than is stated.

    Raises:
        UserError: the first fact that differs, and what to do.
    """
    model, task, protocol = _parts(specification, key)
    facts = ["scheme", "seed", "train_length"]
    stated: dict[str, Any] = {name: getattr(model, name) for name in facts}
    if header.weights_sha256 is not None:
        stated["weights_sha256"] = model.weights_sha256
    stated["device"] = specification.device
    marker = _marker(task, protocol, key.model)
    if marker is not None:
        stated["first_token"] = marker
    stated["reduction"] = protocol.reduction
    different = differences(
        {name: to_json(getattr(header, name)) for name in stated},
        {name: to_json(value) for name, value in stated.items()},
    )
    if different:
        what = different[0].describe("in it", "in run.json")
    elif header.specification_sha256 in (None, specification_sha256(specification, key)):
        return
    elif header.dtype != specification.dtype_of(key.model):
        stated = {"dtype": specification.dtype_of(key.model)}
        what = differences({"dtype": header.dtype}, stated)[0].describe("in it", "in run.json")
    else:
        what = "another text, choice of documents or option of the model"
    raise UserError(
        f"{path}: computed from something else than run.json states: {what}; delete it to have it "
        "computed again"
    )


def _parts(specification: RunSpecification, key: CellKey) -> tuple[ModelRecord, TaskRecord, ProtocolRecord]:
    model = specification.model(key.model)
    task = next(task for task in specification.tasks if task.name == key.task)
    protocol = next(plan for plan in specification.protocols if plan.protocol == key.protocol)
    return model, task, protocol


def _marker(task: TaskRecord, protocol: ProtocolRecord, label: str) -> Marker | None:
    """The first-token rule as applied; None where ``run.json`` does not say it."""
    markers = task.first_token
    if protocol.first_token is not None:
        markers = protocol.first_token.get(task.name)
    return (markers or {}).get(label)
