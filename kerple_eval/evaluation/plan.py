"""What a run will do: models, texts, windows and cells, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from kerple_eval.data.documents import TokenDocument, assemble
from kerple_eval.data.first_tokens import TokenizedTexts
from kerple_eval.data.texts import TokenizedText
from kerple_eval.evaluation.stopping_plan import StoppingPlan
from kerple_eval.models.base import Checkpoint, Description
from kerple_eval.protocols.base import Protocol
from kerple_eval.records.header import DivergenceRecord
from kerple_eval.records.specification import ModelRecord, Provenance, RunSpecification
from kerple_eval.types import CellKey, Window


@dataclass(frozen=True)
class ProtocolPlan:
    """One protocol with the lengths it runs at; ``name`` is its canonical string."""

    name: str
    protocol: Protocol
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        """M."""
        return max(self.lengths)

    def key(self, model: str, task: str, length: int) -> CellKey:
        longest = self.longest if self.protocol.depends_on_longest else None
        return CellKey(model, task, self.name, length, longest)

    def cell(self, reading: TokenizedText, length: int) -> CellPlan:
        """What a cell scores: its documents, drawn where the protocol draws, and windows over them."""
        documents = reading.documents
        if self.protocol.draws_samples:
            documents = assemble(documents, self.protocol.samples(reading.sizes, length))
        if self.protocol.scores_answers:
            answers = [
                (index, window)
                for index, document in enumerate(documents)
                for window in self.protocol.plan_answer(len(document), document.answer or 0, length)
            ]
            return CellPlan(documents, answers, reading)
        marked = reading.window_bos is not None
        markers = 1 if marked else 0  # tokens of each window's L that stand before it
        plan = self.protocol.plan_after_marker if marked else self.protocol.plan
        windows = [
            (index, window)
            for index, document in enumerate(documents)
            for window in plan(len(document), length - markers, self.longest - markers)
        ]
        return CellPlan(documents, windows, reading)


@dataclass(frozen=True, eq=False)
class CellPlan:
    """Documents and (document index, window) pairs of a cell, in plan order."""

    documents: Sequence[TokenDocument]
    windows: Sequence[tuple[int, Window]]
    reading: TokenizedText

    @cached_property
    def hashes(self) -> list[str]:
        """sha256 of each document's ids."""
        return [document.sha256 for document in self.documents]


@dataclass
class PlannedModel:
    label: str
    checkpoint: Checkpoint
    description: Description
    texts: dict[str, TokenizedTexts]  # by text name
    cells: dict[tuple[str, str, int], CellPlan]  # by text name, protocol and length
    dtype: torch.dtype  # that it is scored in
    dtype_record: str | None = None  # its name, where it is not the run's

    @property
    def record(self) -> ModelRecord:
        """What ``run.json`` says of it."""
        about = self.description
        return ModelRecord(
            self.label, about.format, about.scheme, about.seed, about.train_length, about.parameters,
            about.weights_sha256, about.details, dtype=self.dtype_record,
        )  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Whose predictions the models' are compared with, and the words that name it.

    ``model``: None where it is each model itself, at the shorter ``length``.
    """

    model: PlannedModel | None
    argument: str
    length: int | None

    def of(self, model: PlannedModel) -> PlannedModel:
        return self.model or model

    def serves(self, model: PlannedModel) -> bool:
        """Whether a window that takes its losses from another cell's takes its divergences from there too."""
        other = self.model
        return other is not None and (
            other.description.prefix_invariant or not model.description.prefix_invariant
        )

    def record(self, model: PlannedModel) -> DivergenceRecord:
        """What the header of a cell of ``model`` says of it."""
        used = self.of(model)
        dtype = str(used.checkpoint.compute_dtype(used.dtype)).removeprefix("torch.")
        return DivergenceRecord(replace(used.record, dtype=dtype), self.length)


@dataclass
class RunPlan:
    models: list[PlannedModel]
    protocols: list[ProtocolPlan]
    device: torch.device
    specification: RunSpecification
    provenance: Provenance
    precision: StoppingPlan | None = None
    reference: Reference | None = None

    @property
    def loaded(self) -> list[PlannedModel]:
        """The models, and the reference where it is another one."""
        other = None if self.reference is None else self.reference.model
        own = other is None or any(model is other for model in self.models)
        return self.models if own or other is None else [*self.models, other]

    @property
    def longest(self) -> int:
        """Tokens of the longest window that any cell asks for."""
        return max(plan.longest for plan in self.protocols)
