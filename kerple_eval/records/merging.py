"""Runs of several machines as one run directory: ``kerple-eval merge DIR... --out DIR``.

Runs join where their specifications are disjoint or equal: models by label, tasks by name, protocols by
their canonical string (their lengths are put together), each the same wherever it stands in two of them;
everything else (device, dtype, choice of documents) the same in all. What a record holds by model, by
tokeniser or by length is put together too. A conflict is named and nothing is written.

A cell that several runs have finished must hold the same windows, over the same documents, with losses no
further apart than ``within`` (nats; 0: to the bit), and is taken from the first, or from the first with
divergences, which must be from one reference. Finished goes before failed.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kerple_eval.records.cell import Cell, FailedCell, write_cell, write_failure
from kerple_eval.records.divergence import other_reference
from kerple_eval.records.run import Run, open_run, write_summary
from kerple_eval.records.specification import Provenance, RunSpecification
from kerple_eval.support.differences import differences
from kerple_eval.support.files import new_folder
from kerple_eval.support.typed_json import from_json, to_json
from kerple_eval.types import CellKey, UserError

#: Parts of a specification -> one of them, and the key that names it.
NAMED_PARTS = {"models": ("model", "label"), "tasks": ("task", "name"), "protocols": ("protocol", "protocol")}
#: Keys of a task or protocol whose values are by model, tokeniser or length.
BY_PART = ("first_token", "tokens_sha256", "drawn_sha256", "lost_bytes")


def merge(folders: Sequence[str | Path], out: Path, *, within: float = 0.0) -> str:
    """Write the joined run to ``out``, a new folder; returns a line that says what it holds.

    Raises:
        UserError: runs that do not join, cells that do not agree, or an ``out`` that is not empty.
    """
    runs = [open_run(folder) for folder in folders]
    if len(runs) < 2:
        raise UserError("merge needs two run directories or more")
    folders_given = [run.folder.resolve() for run in runs]
    for folder in folders_given:
        if folders_given.count(folder) > 1:
            raise UserError(f"{folder.name} is given twice")
    specification = to_json(runs[0].specification)
    for run in runs:
        if run.specification.precision is not None:
            raise UserError(
                f"{run.folder}: its cells hold as many documents as --precision needed for that run alone; "
                "such runs cannot be joined"
            )
        specification = _join(specification, to_json(run.specification), runs[0].folder, run.folder)
    joined = from_json(RunSpecification, specification, str(out))
    provenance = _provenance(runs)
    keys = Run(out, joined, provenance).keys()
    # Cells are compared before anything is written, one at a time, so that few are in memory.
    held = [(run, set(run.keys())) for run in runs]
    owners = {key: owner for key in keys if (owner := _owner(key, held, within)) is not None}
    with new_folder(out) as folder:
        rows = []
        for key, owner in owners.items():
            cell = owner.cell(key)
            assert cell is not None
            if isinstance(cell, Cell):
                write_cell(folder, cell)
            else:
                write_failure(folder, cell)
            rows.append(cell.summary())
        Run(folder, joined, provenance).write_specification()
        write_summary(folder, rows)
    failed = sum(row["status"] == "failed" for row in rows)
    missing = len(keys) - len(rows)
    return (
        f"{len(rows)} cells of {len(runs)} runs in {out}/summary.csv"
        + (f", {failed} failed" if failed else "")
        + (f"; {missing} more of the joined specification are in none of them" if missing else "")
    )


def joined_specification(run: Run, other: Run) -> RunSpecification:
    """What both runs together state.

    Raises:
        UserError: they do not join.
    """
    joined = _join(to_json(run.specification), to_json(other.specification), run.folder, other.folder)
    return from_json(RunSpecification, joined, str(run.folder))


def _join(left: dict[str, Any], right: dict[str, Any], first: Path, second: Path) -> dict[str, Any]:
    """One specification of two, in the order of the first."""
    rest = [{k: v for k, v in s.items() if k not in NAMED_PARTS} for s in (left, right)]
    _same(rest[0], rest[1], "", first, second)
    joined = dict(left)
    for part, (singular, name) in NAMED_PARTS.items():
        mine = {entry[name]: entry for entry in left[part]}
        for entry in right[part]:
            label = entry[name]
            where = f"{singular} {label}"
            known = mine.get(label)
            mine[label] = entry if known is None else _entry(known, entry, where, first, second)
        joined[part] = list(mine.values())
    return joined


def _entry(
    left: dict[str, Any], right: dict[str, Any], where: str, first: Path, second: Path
) -> dict[str, Any]:
    """A model, task or protocol that two runs hold."""
    united = {
        key: (left.get(key) or {}, right.get(key) or {})  # absent: nothing to say of any of its models
        for key in BY_PART
        if any(isinstance(entry.get(key), dict) for entry in (left, right))
    }
    apart = (*united, "lengths")
    rest = [{k: v for k, v in entry.items() if k not in apart} for entry in (left, right)]
    _same(rest[0], rest[1], where, first, second)
    joined = dict(left)
    for key, (a, b) in united.items():
        joined[key] = _union(a, b, f"{where}: {key}", first, second)
    if "lengths" in left:
        joined["lengths"] = sorted({*left["lengths"], *right["lengths"]})
    return joined


def _union(left: Any, right: Any, where: str, first: Path, second: Path) -> Any:
    """Mappings put together at every depth but the last (a marker is whole); what both say is the same."""
    maps = isinstance(left, dict) and isinstance(right, dict) and not {"rule", "id"} <= {*left, *right}
    if not maps:
        _same(left, right, where, first, second)
        return left
    return left | {
        key: _union(left[key], value, f"{where}: {key}", first, second) if key in left else value
        for key, value in right.items()
    }


def _same(left: Any, right: Any, where: str, first: Path, second: Path) -> None:
    different = differences(left, right)
    if different:
        what = different[0].describe(f"in {first}", f"in {second}")
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise UserError(f"{second} cannot join {first}: {where}{': ' if where else ''}{what}{more}")


def _owner(key: CellKey, held: Sequence[tuple[Run, set[CellKey]]], within: float) -> Run | None:
    """The run whose cell the joined run keeps; None where no run has computed it."""
    found: tuple[Run, Cell] | None = None
    failed: Run | None = None
    for run, keys in held:
        cell = run.cell(key) if key in keys else None
        if isinstance(cell, FailedCell):
            failed = failed or run
        elif cell is not None and found is None:
            found = (run, cell)
        elif cell is not None and found is not None:
            if why := _disagreement(found[1], cell, within):
                raise UserError(f"{run.folder} cannot join {found[0].folder}: {key}: {why}")
            if found[1].divergence is None and cell.divergence is not None:
                found = (run, cell)
    return found[0] if found is not None else failed


def _disagreement(left: Cell, right: Cell, within: float) -> str:
    """How two finished cells of one key differ; nothing where they agree."""
    documents = [[d.sha256 for d in cell.header.documents] for cell in (left, right)]
    if documents[0] != documents[1]:
        return "they scored other documents"
    if list(left.windows) != list(right.windows) or left.document.tolist() != right.document.tolist():
        return "they scored other windows"
    if left.header.dtype != right.header.dtype:
        return f"dtype is {left.header.dtype} in one and {right.header.dtype} in the other"
    apart = max(float(np.abs(a - b).max()) for a, b in zip(left.losses, right.losses, strict=True))
    if apart > within:
        return f"their losses differ by up to {apart:.3g} nats; --within NATS allows as much"
    if within == 0 and not _alike(left.hits, right.hits):
        return "other targets were the argmax"
    return _diverging(left, right, within)


def _diverging(left: Cell, right: Cell, within: float) -> str:
    """How the divergences of two cells differ; nothing where one has none."""
    one, other = left.header.divergence, right.header.divergence
    if left.divergence is None or right.divergence is None or one is None or other is None:
        return ""
    if different := other_reference(one, other):
        what = different[0].describe("in one", "in the other")
        return f"their divergences are from different references: {what}"
    apart = np.abs(left.divergence.flat("divergence") - right.divergence.flat("divergence")).max()
    if apart > within:
        return f"their divergences differ by up to {apart:.3g} nats; --within NATS allows as much"
    return ""


def _alike(left: Sequence[Any] | None, right: Sequence[Any] | None) -> bool:
    if left is None or right is None:
        return left is right
    return all((a == b).all() for a, b in zip(left, right, strict=True))


def _provenance(runs: Sequence[Run]) -> Provenance:
    """Where each part came from; sessions of all runs, in their order, each with its run's name."""
    models: dict[str, str] = {}
    for run in runs:
        models = {**run.provenance.models, **models}
    one_pass = {label: why for run in runs for label, why in (run.provenance.one_pass or {}).items()}
    return Provenance(
        models=models,
        one_pass=one_pass or None,
        text_files=tuple(dict.fromkeys(path for run in runs for path in run.provenance.text_files)),
        tokens_files=tuple(dict.fromkeys(path for run in runs for path in run.provenance.tokens_files)),
        merged=tuple(run.folder.resolve().name for run in runs),
        sessions=tuple(
            replace(session, run=session.run or run.folder.resolve().name)
            for run in runs
            for session in run.provenance.sessions
        ),
    )
