"""One catalogue of named things: a family's own entries, other packages' and those registered at run time.

Each family (schemes, protocols, checkpoint formats, generators, reports) keeps its entries in
``catalogue.py`` of its own folder. An entry says where its implementation lives and what a listing needs,
so that ``kerple-eval list`` imports none of the implementations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypeVar

from kerple_eval.types import UserError


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a catalogue: its name, where it lives (``module:attribute``) and a line for a listing."""

    name: str
    target: str
    summary: str


class Named(Protocol):
    """What every entry has."""

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str: ...


E = TypeVar("E", bound=Named)


class Registry(Mapping[str, E]):
    """The entries of one family by name.

    ``what`` names one member of the family in messages (``scheme``). Another package adds entries through
    the entry-point group ``group``: the entry point's value is an entry of the type ``entry_type``. A name
    that two of them give is refused.
    """

    def __init__(self, what: str, group: str, entry_type: type[E], entries: Iterable[E]) -> None:
        self.what = what
        self.group = group
        self.entry_type = entry_type
        self._entries: dict[str, E] = {}
        self._objects: dict[str, Any] = {}  # registered implementations that no target can name
        self._read_entry_points = False
        for entry in entries:
            self._add(entry, "kerple_eval")

    def __getitem__(self, name: str) -> E:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        """Names: the family's own first, in their own order, then those of other packages."""
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, E]:
        if not self._read_entry_points:
            before = dict(self._entries)
            try:
                for point in entry_points(group=self.group):
                    self._add(self._loaded(point), f"entry point {point.name!r} ({point.value})")
            except UserError:
                self._entries = before  # so that the next call meets the same error
                raise
            self._read_entry_points = True
        return self._entries

    def _loaded(self, point: EntryPoint) -> E:
        what = f"entry point {point.name!r} ({point.value}) of group {self.group}"
        try:
            entry = point.load()
        except Exception as error:  # whatever its import raises
            raise UserError(f"{what} cannot be loaded: {error}; repair or uninstall its package") from error
        if not isinstance(entry, self.entry_type):
            kind = f"{self.entry_type.__module__}.{self.entry_type.__name__}"
            raise UserError(f"{what} must be a {kind}, got {type(entry).__name__}")
        return entry

    def entry(self, name: str) -> E:
        """Raises `UserError` with the closest name where there is no such entry."""
        if name not in self:
            raise unknown(self.what, name, self)
        return self[name]

    def load(self, name: str) -> Any:
        """The implementation of an entry, imported at its first use."""
        target = self.entry(name).target
        return self._objects[name] if name in self._objects else load(target)

    def register(self, entry: E, implementation: Any = None) -> None:
        """Add an entry for this process; ``implementation`` stands in for its target where it is given."""
        self._all()
        self._add(entry, "register()")
        if implementation is not None:
            self._objects[entry.name] = implementation

    def unregister(self, name: str) -> None:
        """Remove an entry, for this process."""
        self.entry(name)
        del self._entries[name]
        self._objects.pop(name, None)

    def _add(self, entry: E, source: str) -> None:
        if entry.name in self._entries:
            raise UserError(
                f"{source}: {self.what} {entry.name!r} exists already "
                f"({self._entries[entry.name].target}); give it another name"
            )
        self._entries[entry.name] = entry


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """``unknown scheme 'alibbi': did you mean 'alibi'? Available: ...``"""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f" did you mean '{close[0]}'?" if close else ""
    return UserError(f"unknown {what} {name[:80]!r}:{hint} available: {', '.join(names) or 'none'}")


def load(target: str) -> Any:
    """Import ``module:attribute``."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
