"""Finished cells of runs as tables of schemes: one table a (task, protocol), models that are seeds of one
scheme together.

Models are one group where the run's specification tells them apart by training seed and weights alone
(same format, scheme, trained length, parameters, tokeniser and options), their seeds are known and
differ, and so do their labels by no more than a number at the end (``log-s1``, ``log-s2``; ``zoo:log``
and ``zoo:log-s2``): what else set two trainings apart, such as the text, the specification cannot know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run, own_label
from kerple_eval.stats.documents import Scored, scored
from kerple_eval.support.typed_json import to_json
from kerple_eval.types import UserError

_NUMBER = re.compile(r"(?P<stem>.+?)[-_.]?(?:seed|s)?[-_.]?[0-9]+")


@dataclass
class SeedCells:
    """One model of a table: its cells by length."""

    label: str
    seed: int | None
    cells: dict[int, Scored] = field(default_factory=dict)


@dataclass
class Group:
    """Models that differ in the training seed alone, in order of seed; mostly one model."""

    name: str
    members: list[SeedCells]

    @property
    def seeds(self) -> list[int]:
        """Training seeds, where known."""
        return [m.seed for m in self.members if m.seed is not None]

    def at(self, length: int) -> list[Scored]:
        """Finished cells of a length."""
        return [m.cells[length] for m in self.members if length in m.cells]


@dataclass
class SchemeTable:
    """Groups of one (task, protocol)."""

    task: str
    protocol: str
    groups: list[Group]
    failed: list[str]  # "MODEL at LENGTH"
    notes: list[str] = field(default_factory=list)  # what a reader must know of the runs

    @property
    def lengths(self) -> list[int]:
        return sorted({n for g in self.groups for m in g.members for n in m.cells})


def read_tables(
    reader: RunReader, *, task: str | None = None, protocol: str | None = None
) -> list[SchemeTable]:
    """Tables of several runs together, of one task or protocol where given; no losses are kept."""
    members: dict[tuple[str, str], dict[str, tuple[str, SeedCells]]] = {}
    owners: dict[tuple[str, str], dict[str, str]] = {}
    failed: dict[tuple[str, str], list[str]] = {}
    notes = [
        f"{run.folder}: documents were added until it was sure (--precision), so that intervals here "
        "cover less than they say; precision.json there holds those corrected for the looks"
        for run in reader.runs
        if run.specification.precision is not None
    ]
    kinds = {run.folder: identities(run) for run in reader.runs}
    for run, cell in reader.cells(task=task, protocol=protocol):
        name = (cell.key.task, cell.key.protocol)
        label = own_label(cell.key.model, run.folder, owners.setdefault(name, {}))
        if not isinstance(cell, Cell):
            failed.setdefault(name, []).append(f"{label} at {cell.key.length}")
            continue
        entry = (kinds[run.folder][cell.key.model], SeedCells(label, cell.header.seed))
        members.setdefault(name, {}).setdefault(label, entry)[1].cells[cell.key.length] = scored(cell)
    if not members:
        wanted = ", ".join(word for word in (task, protocol) if word)
        raise UserError(f"{reader.names}: no finished cell" + (f" of {wanted}" if wanted else ""))
    return [
        SchemeTable(*name, _groups(list(found.values())), failed.get(name, []), notes)
        for name, found in members.items()
    ]


def identities(run: Run) -> dict[str, str]:
    """Model label -> everything of its specification but label, seed and weights."""
    alike = {
        model.label: replace(model, label="", seed=None, weights_sha256="")
        for model in run.specification.models
    }
    return {label: json.dumps(to_json(model), sort_keys=True) for label, model in alike.items()}


def _groups(found: Sequence[tuple[str, SeedCells]]) -> list[Group]:
    together: dict[tuple[str, str], list[SeedCells]] = {}
    for identity, member in found:
        together.setdefault((identity, stem(member.label)), []).append(member)
    groups = []
    for (_, name), members in together.items():
        seeds = [m.seed for m in members]
        if len(members) > 1 and None not in seeds and len(set(seeds)) == len(seeds):
            groups.append(Group(name, sorted(members, key=lambda m: m.seed or 0)))
        else:
            groups += [Group(m.label, [m]) for m in members]
    names = [group.name for group in groups]
    for group in groups:
        if names.count(group.name) > 1:  # two sets of seeds of one stem, or a stem that is also a label
            group.name = " + ".join(member.label for member in group.members)
    return groups


def stem(label: str) -> str:
    """A label without the number of a seed at its end: ``log-s2`` -> ``log``."""
    match = _NUMBER.fullmatch(label)
    return match["stem"] if match else label
