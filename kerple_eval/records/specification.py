"""What ``run.json`` holds, as values: what was asked of a run, and where its numbers came from.

``RunSpecification`` decides the numbers: two runs with equal ones hold the same cells. ``Provenance`` says
how a run was started and continued. Each class is one object of the file; its fields are the keys, in the
file's order (see :mod:`kerple_eval.support.typed_json`). Keys that this release does not know are kept in
``other``, compared like the rest and written back: a newer release may add one without a new layout version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from kerple_eval.support.typed_json import Check, Count, Positive


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


Time = Annotated[str, Check(_is_time, "a date and time as 2026-11-25T07:18:16+00:00")]
Lengths = Annotated[tuple[Positive, ...], Check(bool, "at least one length")]


AppliedRule = Literal["never", "document", "window", "prefix"]


@dataclass(frozen=True, slots=True)
class Marker:
    """A first-token rule as one model's tokeniser applied it, and the token's id (None: no token).

    never: none. document: token 0 of each document. window: before the inputs of each window, one of its L.
    prefix: before each document as its tokeniser makes it. ``before`` and ``after`` are all the ids around a
    document, given where its tokeniser puts more than a BOS.
    """

    rule: AppliedRule
    id: int | None
    before: tuple[int, ...] | None = None
    after: tuple[int, ...] | None = None


#: Model label -> marker.
Markers = Mapping[str, Marker]


@dataclass(frozen=True)
class ModelRecord:
    """A checkpoint. ``seed`` and ``train_length`` (tokens) are None where unknown.

    ``dtype`` is given where ``--dtype auto`` took another one for it than the run's. ``other`` holds what
    else decides the losses: the format's own facts (``Description.details``).
    """

    label: str
    format: str
    scheme: str
    seed: int | None
    train_length: Positive | None
    parameters: Count
    weights_sha256: str
    dtype: str | None = field(default=None, kw_only=True)
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> str | None:
        """What identifies its tokeniser; None where it has none."""
        name = self.other.get("tokenizer")
        return None if name is None else str(name)


@dataclass(frozen=True)
class ProtocolRecord:
    """A protocol by its canonical string, and the window lengths (tokens) it runs at.

    ``longest`` (M) is given where the windows of a cell depend on it. ``reduction`` says in words how losses
    become the cell's number where that is not the mean over targets. ``first_token`` is given where the
    protocol brings its own rule: text -> model label -> marker.
    """

    protocol: str
    lengths: Lengths
    longest: Positive | None
    reduction: str | None = None
    first_token: Mapping[str, Markers] | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SelectionRecord:
    """Which documents of a text are scored: how many there are, and how those scored were chosen.

    ``least_tokens``: shorter documents are passed over. ``count``: how many are scored at most (None: all
    eligible ones), ranked by ``seed``. ``rule`` is given where a protocol draws from every document.
    """

    documents: Count
    passed_over_as_short: Count | None = None
    least_tokens: Count | None = None
    count: Positive | None = None
    seed: int | None = None
    rule: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LostText:
    """UTF-8 bytes of a text that cannot be read back from its tokens, out of those that were tokenised."""

    lost: Positive
    read: Positive


@dataclass(frozen=True)
class TaskRecord:
    """A text of the run: a task, ``text`` (--text files) or ``tokens`` (--tokens files).

    ``source``, ``version``, ``test_share`` and ``packing`` as in the task file; ``bos`` the first-token rule
    asked for; ``text_sha256`` identifies the documents, ``tokens_sha256`` token ids (of a made task: by
    tokeniser, then length), ``drawn_sha256`` what protocols draw of token ids (protocol -> length -> hash).
    ``first_token`` is the rule as applied to each model, ``lost_bytes`` what the tokenisers of models lose
    of the text (models whose tokeniser loses nothing are left out).
    """

    name: str
    version: int | str | None = None
    source: Mapping[str, Any] | None = None
    test_share: float | None = None
    packing: str | None = None
    bos: str | None = None
    text_sha256: str | None = None
    selection: SelectionRecord | None = None
    tokens_sha256: str | Mapping[str, Mapping[str, str]] | None = None
    first_token: Markers | None = None
    drawn_sha256: Mapping[str, Mapping[str, str]] | None = None
    lost_bytes: Mapping[str, LostText] | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PrecisionRecord:
    """``--precision``: documents are added until every number is known within ``share`` (0.005: 0.5 %).

    ``against``: the label of the model that the others are compared with; None: each perplexity by itself.
    ``level``: of the intervals. ``looks``: text -> numbers of documents after which it is decided.
    """

    share: float
    against: str | None
    level: float
    looks: Mapping[str, tuple[Positive, ...]]
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpecification:
    """Everything that decides a run's numbers. ``max_tokens``: documents are cut after so many.

    ``dtype`` is float32 where ``--dtype auto`` was asked; a model for which it took another has its own.

    What was asked comes first, so that a difference is named by it before what follows from it.
    """

    keep_short: bool
    max_tokens: Positive | None
    device: str
    dtype: str
    attention: str | None = None  # None: auto
    precision: PrecisionRecord | None = None
    protocols: tuple[ProtocolRecord, ...] = ()
    models: tuple[ModelRecord, ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    other: Mapping[str, Any] = field(default_factory=dict)

    def model(self, label: str) -> ModelRecord:
        """The model of that label (KeyError where there is none)."""
        return {model.label: model for model in self.models}[label]

    def dtype_of(self, label: str) -> str:
        """What the model of that label was scored in, as it was asked for or as ``--dtype auto`` took it."""
        return self.model(label).dtype or self.dtype


@dataclass(frozen=True)
class Session:
    """One command that computed cells of the run, and what it ran on.

    ``command``: its words, or those of the equivalent command where Python asked (``from_python``).
    ``ranks``: processes, where there were several. ``run``: the run it belongs to, where runs were merged.
    """

    run: str | None = None
    began: Time = field(kw_only=True)
    command: tuple[str, ...] = field(kw_only=True)
    from_python: bool | None = None
    kerple_eval: str = field(kw_only=True)
    torch: str = field(kw_only=True)
    python: str = field(kw_only=True)
    platform: str = field(kw_only=True)
    threads: Positive = field(kw_only=True)
    ranks: Positive | None = None
    transformers: str | None = None
    device: str = field(kw_only=True)
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """How the run was started: ``models`` are label -> MODEL as it was given.

    ``merged``: names of the runs that were joined. ``tokens_per_pass``: the batch size in tokens that was
    measured for a CUDA device, or what is left of it after memory ran out.
    ``one_pass``: of models whose windows were to be fed in pieces and were not, label -> why.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    text_files: tuple[str, ...] = ()
    tokens_files: tuple[str, ...] = ()
    merged: tuple[str, ...] | None = None
    sessions: tuple[Session, ...] = field(kw_only=True)
    tokens_per_pass: Positive | None = None
    one_pass: Mapping[str, str] | None = None
    other: Mapping[str, Any] = field(default_factory=dict)
