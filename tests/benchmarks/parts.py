"""Rows of a benchmark kept as they come, so that a run that is killed goes on where it was.

A part measures some rows of the table, which it states beforehand. Each row is a line of JSON in the file
``NAME.jsonl`` beside the table ``NAME.md``, written and flushed before the next is measured, and the table is
made of that file: a row survives by itself whatever becomes of its part. A part with all its rows is not
measured again; one with some is, as ratios belong to one process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.harness import Row, table

#: What a part yields for each of its rows: the number measured, and a note.
Found = tuple[float, str]


@dataclass(frozen=True)
class Part:
    """``rows`` as they stand before they are measured; ``seconds`` at most, by arithmetic, all included."""

    about: str
    seconds: int
    rows: tuple[Row, ...]
    measure: Callable[[], Iterator[Found]]
    check: bool = False  # whether nothing may be timed where a row is not met


class Kept:
    """The rows of ``parts`` in ``folder/name.jsonl`` and their table; ``head`` stands above it.

    Rows of another machine or torch than ``head`` names are not mixed with these.
    """

    def __init__(self, folder: Path, name: str, head: str, parts: Mapping[str, Part]) -> None:
        self.parts = parts
        self.lines, self.page, self.head = folder / f"{name}.jsonl", folder / f"{name}.md", head
        self.rows: dict[tuple[str, str], Row] = {}
        for line in self.lines.read_text(encoding="utf-8").splitlines() if self.lines.exists() else ():
            try:
                kept = json.loads(line)
            except ValueError:  # the line at which a run was killed
                continue
            if kept.pop("head") != head:
                raise SystemExit(f"{self.lines}: of another machine or torch; move it away to begin anew")
            self._hold(Row(**kept))

    def _hold(self, row: Row) -> None:
        self.rows[row.work, row.against] = row

    def of(self, part: Part) -> list[Row | None]:
        """The part's rows, None for those that are not measured."""
        return [self.rows.get((row.work, row.against)) for row in part.rows]

    def add(self, row: Row) -> None:
        """To the file, then to the page, which is whole or as it was."""
        self.lines.parent.mkdir(parents=True, exist_ok=True)
        begun = self.lines.exists() and not self.lines.read_bytes().endswith(b"\n")
        with self.lines.open("a", encoding="utf-8") as file:
            file.write("\n" * begun + json.dumps({"head": self.head, **asdict(row)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._hold(row)
        pairs = ((self.of(part), part.rows) for part in self.parts.values())
        shown = [found or row for measured, rows in pairs for found, row in zip(measured, rows, strict=True)]
        partial = self.page.with_suffix(".partial")
        partial.write_text(f"{self.head}\n\n{table(shown)}", encoding="utf-8")
        partial.replace(self.page)


def run(kept: Kept, names: Sequence[str], say: Callable[[str], None]) -> bool:
    """Measure what is missing of the parts ``names``, in order; whether all their rows are met.

    A check that is not met ends it: times of wrong numbers are of no use.
    """
    for name in names:
        part = kept.parts[name]
        if None in kept.of(part):
            began = time.monotonic()
            for row, (ratio, note) in zip(part.rows, part.measure(), strict=True):
                measured = row.measured(ratio, note)
                kept.add(measured)
                say(" ".join(measured.cells()))
            say(f"{name}: {time.monotonic() - began:.0f} s (expected: at most {part.seconds})")
        if part.check and not _met(kept.of(part)):
            say(f"{name}: not met, so nothing is timed")
            return False
    return all(_met(kept.of(kept.parts[name])) for name in names)


def _met(rows: Sequence[Row | None]) -> bool:
    return all(row is not None and row.met is not False for row in rows)


def described(kept: Kept, names: Sequence[str]) -> str:
    """What :func:`run` would do."""
    lines = []
    for name in names:
        part, found = kept.parts[name], kept.of(kept.parts[name])
        state = f"{len(found) - found.count(None)} of {len(found)} rows are there"
        lines += [f"{name}: {part.about}; at most {part.seconds} s; {state}"]
        lines += ["    " + " | ".join(row.cells()[:3]) for row in part.rows]
    return "\n".join(lines)
