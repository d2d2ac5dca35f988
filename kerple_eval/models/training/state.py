"""The state from which a stopped training continues, ``training-state.pt``, and the checks of its content.

    identity   {"recipe": {...}, "data": {...}}: which training this is
    step       optimiser steps done
    seconds    of computing so far
    losses     of the steps since the last line of the curve, in nats per token
    reports    the lines of the loss curve so far
    decoder    weights by name
    optimizer  AdamW's step, exp_avg and exp_avg_sq, by the number of the parameter
    sha256     of all the above

The file is read as any foreign checkpoint is (:mod:`kerple_eval.models.pickles`): no code, no class but
tensors and plain containers, every entry's CRC verified.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kerple_eval.models.pickles import load_tensors
from kerple_eval.support.differences import differences
from kerple_eval.support.files import write_atomically
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

KEYS: dict[str, type] = {
    "identity": dict, "step": int, "seconds": float, "losses": list, "reports": list, "decoder": dict,
    "optimizer": dict, "sha256": str,
}  # fmt: skip
MOMENTS = ("step", "exp_avg", "exp_avg_sq")

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One line of the loss curve; losses in nats per token."""

    step: int
    train_loss: float
    held_out_loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainingState:
    """See the module; ``optimizer`` holds parameter number -> name of a moment -> tensor."""

    step: int
    seconds: float
    losses: list[float]
    reports: list[TrainingStep]
    decoder: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]


def write_state(path: Path, identity: dict[str, Any], state: TrainingState) -> None:
    """Replace ``path`` by ``state``, whole; tensors are copied to the CPU.

    Raises:
        UserError: it cannot be written.
    """
    content: dict[str, Any] = {
        "identity": identity,
        "step": state.step,
        "seconds": state.seconds,
        "losses": state.losses,
        "reports": [asdict(report) for report in state.reports],
        "decoder": {name: tensor.detach().cpu() for name, tensor in state.decoder.items()},
        "optimizer": {
            number: {name: tensor.detach().cpu() for name, tensor in moments.items()}
            for number, moments in state.optimizer.items()
        },
    }
    buffer = io.BytesIO()
    torch.save({**content, "sha256": _sha256(content)}, buffer)
    write_atomically(path, buffer.getvalue())


def read_state(
    path: Path,
    identity: dict[str, Any],
    steps: int,
    decoder: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
) -> TrainingState:
    """The state in ``path`` of the training ``identity``, which takes ``steps`` steps.

    ``decoder`` and ``parameters`` (the optimiser's, in its order) say which tensors there must be, with
    their shapes and dtypes.

    Raises:
        UserError: damaged, no training state, or another training's; one line.
    """
    try:
        content = load_tensors(path)
    except UserError as error:
        raise UserError(f"{error}; delete it to train from the beginning") from None
    try:
        _check_fields(content, steps)
        different = differences(content["identity"], identity)
        if different:
            raise UserError(f"{path.parent}: holds another training: {different[0].describe()}")
        tensors = _checked_tensors(content, decoder, parameters)
    except _WrongStateError as error:
        raise UserError(f"{path}: {error}; delete it to train from the beginning") from None
    return TrainingState(
        content["step"],
        content["seconds"],
        content["losses"],
        [TrainingStep(**report) for report in content["reports"]],
        {name: tensors["decoder", name] for name in decoder},
        {n: {name: tensors["optimizer", n, name] for name in MOMENTS} for n in range(len(parameters))},
    )


class _WrongStateError(Exception):
    """What is wrong with a state."""


def _check_fields(content: Any, steps: int) -> None:
    """Keys, types, ranges and the checksum."""
    if not isinstance(content, dict) or set(content) != set(KEYS):
        raise _WrongStateError("no training state of this release")
    for key, kind in KEYS.items():
        if type(content[key]) is not kind:
            raise _WrongStateError(f"{key} is {type(content[key]).__name__}, not {kind.__name__}")
    if not 1 <= content["step"] <= steps:
        raise _WrongStateError(f"step {content['step']} of {steps}")
    if not all(map(_finite, [content["seconds"], *content["losses"]])):
        raise _WrongStateError("a loss or a time that is no finite number")
    for report in content["reports"]:
        lines = isinstance(report, dict) and list(report) == [field.name for field in fields(TrainingStep)]
        if not (lines and all(map(_finite, report.values()))):
            raise _WrongStateError(f"no line of a loss curve: {quoted(report)}")
    try:
        sha256 = _sha256(content)
    except (TypeError, ValueError, RecursionError):  # the identity is no plain data
        raise _WrongStateError("no training state of this release") from None
    if content["sha256"] != sha256:
        raise _WrongStateError("damaged: its content has another sha256 than it says")


def _checked_tensors(
    content: Mapping[str, Any], decoder: Mapping[str, Tensor], parameters: Sequence[Tensor]
) -> dict[Key, Tensor]:
    """Copies of the tensors (the file is memory-mapped), which are those expected and no others."""
    expected: dict[Key, Tensor] = {("decoder", name): tensor for name, tensor in decoder.items()}
    for number, parameter in enumerate(parameters):
        for name in MOMENTS:
            like = parameter if name != "step" else torch.empty((), dtype=torch.float32, device="meta")
            expected["optimizer", number, name] = like
    found = dict(_tensors(content))
    if found.keys() != expected.keys():
        name = min(map(_name, found.keys() ^ expected.keys()))
        raise _WrongStateError(f"tensor {name} is missing or unexpected")
    for key, tensor in found.items():
        like = expected[key]
        if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise _WrongStateError(
                f"tensor {_name(key)} is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {like.dtype} {list(like.shape)}"
            )
    return {key: tensor.clone() for key, tensor in found.items()}


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _tensors(content: Mapping[str, Any]) -> Iterator[tuple[Key, Tensor]]:
    """Every tensor under its path of keys, in one order."""
    todo: list[tuple[Key, Any]] = [((key,), content[key]) for key in ("optimizer", "decoder")]
    while todo:
        key, value = todo.pop()
        if isinstance(value, Tensor):
            yield key, value
        elif isinstance(value, dict):
            todo += [((*key, inner), value[inner]) for inner in sorted(value, key=str, reverse=True)]


def _name(key: Sequence[object]) -> str:
    return ".".join(map(str, key))


def _sha256(content: Mapping[str, Any]) -> str:
    """Of everything in a state but this, by value: keys, numbers and the bytes of tensors."""
    plain = {key: content[key] for key in KEYS if key not in ("decoder", "optimizer", "sha256")}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for key, tensor in _tensors(content):
        digest.update(f"{_name(key)} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
