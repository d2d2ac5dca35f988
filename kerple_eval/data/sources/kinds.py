"""Where a task's documents come from: the kinds of ``source`` in a task file, see ``task.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kerple_eval.protocols.neox_split import SHARES

#: Rules by which texts become one document, and what stands between them. Blank texts are kept: they are part
#: of what a tool joins. The rule belongs to the text and is recorded with it (``source.join``).
SEPARATORS = {"blank-line": "\n\n", "newline": "\n", "space": " ", "nothing": ""}
JoinRule = Literal["none", "wikitext-articles", "blank-line", "newline", "space", "nothing"]


@dataclass(frozen=True, slots=True)
class PackageSource:
    """Files inside an installed Python package, found without importing it."""

    package: str
    version: str
    files: str
    distribution: str | None = None
    kind: Literal["package"] = "package"


@dataclass(frozen=True, slots=True)
class StdlibSource:
    """Source files of the running Python's standard library; what varies is recorded."""

    files: str
    exclude: list[str] = field(default_factory=list)
    kind: Literal["stdlib"] = "stdlib"


@dataclass(frozen=True, slots=True)
class FilesSource:
    """Local files; ``path`` is relative to the task file."""

    path: str
    files: str
    kind: Literal["files"] = "files"


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of a hub data set at a pinned commit; ``path`` (never in a task file) reads a local copy."""

    repository: str
    revision: str
    data_files: str
    split: str
    text_column: str
    where: dict[str, str] = field(default_factory=dict)
    join: JoinRule = "none"
    limit: int | None = None
    path: str | None = None
    kind: Literal["hub"] = "hub"


@dataclass(frozen=True, slots=True)
class HubIdSource:
    """A split of a hub data set by its id, from the command line: ``hf:ORG/NAME[@REVISION],split=S,...``.

    ``revision`` (a branch, tag or commit; None: main) becomes a commit when it is read, ``config`` and
    ``split`` become files, as ``datasets`` resolves them.
    """

    repository: str
    revision: str | None = None
    split: str | None = None
    column: str = "text"
    config: str | None = None
    limit: int | None = None
    join: JoinRule = "none"
    kind: Literal["hub-id"] = "hub-id"


@dataclass(frozen=True, slots=True)
class MegatronSource:
    """A memory-mapped data set of token ids; ``path`` (PREFIX) is relative to the task file."""

    path: str
    part: Literal["all", "train", "valid", "test"] = "all"
    shares: str = SHARES
    kind: Literal["megatron"] = "megatron"


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """Documents made for each length: ``samples`` at each of ``depths`` depths, drawn by ``seed``."""

    generator: str
    depths: int = 11
    samples: int = 10
    seed: int = 0
    kind: Literal["synthetic"] = "synthetic"


#: What a task file may name; a hub data set by id comes from the command line alone.
FileSource = PackageSource | StdlibSource | FilesSource | HubSource | MegatronSource | SyntheticSource
Source = FileSource | HubIdSource
SOURCES: dict[str, type[FileSource]] = {
    "package": PackageSource,
    "stdlib": StdlibSource,
    "files": FilesSource,
    "hub": HubSource,
    "megatron": MegatronSource,
    "synthetic": SyntheticSource,
}
