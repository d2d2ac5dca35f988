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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run, own_label
from kerple_eval.stats.documents import Scored, scored
from kerple_eval.support.readers import quoted
from kerple_eval.support.registry import unknown
from kerple_eval.support.typed_json import to_json
from kerple_eval.types import UserError

_NUMBER = re.compile(r"(?P<stem>.+?)(?:[-_.]s|[-_.]?seed)?[-_.]?(?<![@0-9])[0-9]+")


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

    def is_called(self, names: Sequence[str]) -> bool:
        """Whether its name, or the label of one of its members, is among ``names``."""
        return any(name in names for name in (self.name, *(m.label for m in self.members)))

    def at(self, length: int) -> list[Scored]:
        """Finished cells of a length."""
        return [m.cells[length] for m in self.members if length in m.cells]


@dataclass
class SchemeTable:
    """Groups of one (task, protocol)."""

    task: str
    protocol: str
    groups: list[Group]
    failed: list[tuple[str, int]]  # label, length
    notes: list[str] = field(default_factory=list)  # what a reader must know of the runs

    @property
    def lengths(self) -> list[int]:
        return sorted({n for g in self.groups for m in g.members for n in m.cells})

    @property
    def remarks(self) -> list[str]:
        """What a reader must know: notes, and which cells failed."""
        return [*self.notes, *(f"{label} at {length} failed" for label, length in self.failed)]

    def restricted(self, models: Sequence[str], lengths: Sequence[int]) -> SchemeTable:
        """The groups of these names and lengths alone; all of them where none is given."""
        groups = [
            Group(
                group.name,
                [
                    replace(m, cells={n: cell for n, cell in m.cells.items() if not lengths or n in lengths})
                    for m in group.members
                ],
            )
            for group in self.groups
            if not models or group.is_called(models)
        ]
        called = {*models, *(n for g in groups for n in (g.name, *(m.label for m in g.members)))}
        failed = [
            (label, length)
            for label, length in self.failed
            if (not models or called & {label, stem(label)}) and (not lengths or length in lengths)
        ]
        return replace(self, groups=groups, failed=failed)


def find_group(tables: Sequence[SchemeTable], name: str) -> tuple[list[SchemeTable], Group]:
    """The tables that have a group of that name, or a model of that label, and the first such group.

    Raises:
        UserError: none has, or its cells failed.
    """
    found = [(table, group) for table in tables for group in table.groups if group.is_called([name])]
    if not found:
        failed = {length for t in tables for label, length in t.failed if name in (label, stem(label))}
        if failed:
            lengths = ", ".join(map(str, sorted(failed)))
            raise UserError(f"{quoted(name)} has no finished cell: it failed at {lengths}")
        labels = [n for t in tables for g in t.groups for n in (g.name, *(m.label for m in g.members))]
        raise unknown("model", name, list(dict.fromkeys(labels)))
    return [table for table, _ in found], found[0][1]


def read_tables(
    reader: RunReader, *, task: str | None = None, protocol: str | None = None,
    models: Sequence[str] = (), lengths: Sequence[int] = (),
) -> list[SchemeTable]:  # fmt: skip
    """Tables of several runs together; no losses are kept.

    Of one ``task``, ``protocol``, of ``models`` (labels, or names of groups) and ``lengths``, where given.

    Raises:
        UserError: no finished cell; a model or a length that there is not.
    """
    every = _all_tables(reader, task, protocol)
    for name in models:
        find_group(every, name)
    known = sorted({length for table in every for length in table.lengths})
    for length in lengths:
        if length not in known:
            raise unknown("length", str(length), map(str, known))
    found = [table for part in every if (table := part.restricted(models, lengths)).lengths]
    if not found:
        what = f"{', '.join(models)} at {', '.join(map(str, lengths))}"
        raise UserError(f"{reader.names}: no finished cell of {what}")
    return found


def _all_tables(reader: RunReader, task: str | None, protocol: str | None) -> list[SchemeTable]:
    members: dict[tuple[str, str], dict[str, tuple[str, SeedCells]]] = {}
    owners: dict[tuple[str, str], dict[str, str]] = {}
    failed: dict[tuple[str, str], list[tuple[str, int]]] = {}
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
            failed.setdefault(name, []).append((label, cell.key.length))
            continue
        entry = (kinds[run.folder][cell.key.model], SeedCells(label, cell.header.seed))
        members.setdefault(name, {}).setdefault(label, entry)[1].cells[cell.key.length] = scored(cell)
    if not members:
        wanted = ", ".join(word for word in (task, protocol) if word)
        raise UserError(f"{reader.names}: no finished cell" + (f" of {wanted}" if wanted else ""))
    return [
        SchemeTable(*name, _groups(found), failed.get(name, []), notes) for name, found in members.items()
    ]


def identities(run: Run) -> dict[str, str]:
    """Model label -> everything of its specification but label, seed and weights."""
    alike = {
        model.label: replace(model, label="", seed=None, weights_sha256="")
        for model in run.specification.models
    }
    return {label: json.dumps(to_json(model), sort_keys=True) for label, model in alike.items()}


@dataclass(frozen=True, slots=True)
class SeedGrouping:
    """``groups``: name -> labels, seeds of one scheme in order of seed, or one model by its own label.

    ``apart`` says of models that look like seeds of one scheme why they are not taken as such.
    """

    groups: dict[str, list[str]]
    apart: list[str]


def group_seeds(models: Sequence[tuple[str, str, int | None]]) -> SeedGrouping:
    """Which models are seeds of one scheme, of (label, identity, training seed) each; labels differ.

    ``identity`` is what the specification says of a model beside label, seed and weights.
    """
    alike: dict[tuple[str, str], list[tuple[str, int | None]]] = {}
    for label, identity, seed in models:
        alike.setdefault((identity, stem(label)), []).append((label, seed))
    groups: list[tuple[str, list[str]]] = []
    apart = []
    for (_, name), members in alike.items():
        labels = [label for label, _ in members]
        known = [seed for _, seed in members if seed is not None]
        if len(members) > 1 and len(set(known)) == len(members):
            groups.append((name, [label for _, label in sorted(zip(known, labels, strict=True))]))
            continue
        groups += [(label, [label]) for label in labels]
        if len(members) > 1:
            why = "a training seed is not recorded" if len(known) < len(members) else "two have one seed"
            apart.append(f"{', '.join(labels)} are not taken as seeds of one scheme: {why}")
    names = [name for name, _ in groups]
    # Two sets of seeds of one stem, or a stem that is also a label, are named by all their members.
    return SeedGrouping(
        {name if names.count(name) == 1 else " + ".join(labels): labels for name, labels in groups}, apart
    )


def _groups(members: Mapping[str, tuple[str, SeedCells]]) -> list[Group]:
    models = [(label, identity, member.seed) for label, (identity, member) in members.items()]
    grouped = group_seeds(models).groups
    return [Group(name, [members[label][1] for label in labels]) for name, labels in grouped.items()]


def stem(label: str) -> str:
    """A label without the number of a seed at its end: ``log-s2`` -> ``log``."""
    match = _NUMBER.fullmatch(label)
    return match["stem"] if match else label
