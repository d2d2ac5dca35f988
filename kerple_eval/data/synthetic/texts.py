"""A synthetic task as a text of a run: documents for every length and each tokeniser or vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kerple_eval.data.documents import NO_MARKERS, DocumentMarkers, TokenDocument
from kerple_eval.data.sources.kinds import SyntheticSource
from kerple_eval.data.synthetic.base import Generator, depth_grid, draw
from kerple_eval.data.synthetic.catalogue import make_generator
from kerple_eval.data.task import open_task
from kerple_eval.data.texts import (
    DocumentSelection,
    PreparedText,
    TextSource,
    TokenizedText,
    check_markers,
    check_vocabulary,
    tokens_hash,
)
from kerple_eval.data.tokenizer import ModelTokens
from kerple_eval.records.specification import SelectionRecord, TaskRecord
from kerple_eval.types import BosRule, Spec, UserError


def is_synthetic(spec: Spec) -> bool:
    """Whether a task's documents are synthetic."""
    return isinstance(open_task(spec)[0].source, SyntheticSource)


def synthetic_text(
    spec: Spec, bos: BosRule | None, lengths: Sequence[int], seed: int | None
) -> SyntheticText:
    """The text of a synthetic task; ``bos`` and ``seed`` in place of its own."""
    task, _ = open_task(spec)
    source = task.source
    assert isinstance(source, SyntheticSource)
    rule = bos or task.bos
    if rule == "window":
        raise UserError(
            f"task {task.name}: bos: window and document are the same here, as a window is a whole document; "
            "use document"
        )
    generator, name = make_generator(source.generator)
    drawn = source.seed if seed is None else seed
    record = TaskRecord(
        task.name,
        task.version,
        source={
            "kind": "synthetic",
            "generator": name,
            "depths": source.depths,
            "samples": source.samples,
        },
        packing=task.packing,
        bos=rule,
    )
    if generator.of_ids and rule == "tokenizer":
        rule = "never"  # a tokeniser puts no marker before random ids
    return SyntheticText(task.name, record, [], bos=rule, generator=generator, source=source,
                    lengths=tuple(sorted(lengths)), drawn=drawn)  # fmt: skip


@dataclass(kw_only=True)
class SyntheticText(TextSource):
    """Documents of L + 1 tokens for each of ``lengths``; a cell scores those of its own length."""

    generator: Generator
    source: SyntheticSource
    lengths: tuple[int, ...]
    drawn: int  # the seed

    def prepare(
        self, models: Sequence[ModelTokens], choice: DocumentSelection
    ) -> PreparedText[TokenizedText]:
        """Documents for every tokeniser (or vocabulary, where they are ids) and marker, by model label."""
        keys: dict[str, tuple[str, DocumentMarkers]] = {}
        texts: dict[tuple[str, DocumentMarkers], TokenizedText] = {}
        for model in models:
            markers = self._markers(model)
            check_markers(markers, model)
            keys[model.label] = key = (self._identity(model), markers)
            if key not in texts:
                documents = self._documents(replace(model, before=markers.before))
                texts[key] = TokenizedText(documents, markers, self.generator.of_ids)
            check_vocabulary(texts[key].documents, model.label, model.vocabulary)
        selection = SelectionRecord(
            documents=self.source.depths * self.source.samples,  # at each length
            passed_over_as_short=0,
            seed=self.drawn,
        )
        hashes = {
            f"{identity} {markers.rule} {markers.id}": {
                str(length): tokens_hash(d for d in text.documents if len(d) == length + 1)
                for length in self.lengths
            }
            for (identity, markers), text in texts.items()
        }
        by_model = {label: texts[key] for label, key in keys.items()}
        first = {label: text.marker for label, text in by_model.items()}
        return PreparedText(
            by_model, replace(self.record, selection=selection, tokens_sha256=hashes, first_token=first)
        )

    def _markers(self, model: ModelTokens) -> DocumentMarkers:
        if self.generator.of_ids and self.bos == "never":
            return NO_MARKERS  # no tokeniser is needed
        if model.tokenizer is None:
            raise UserError(
                f"model {model.label} has no tokeniser, which {self.name} needs; copy and "
                "associative-recall do not"
            )
        return replace(self.markers(model.label, model.tokenizer), after=())  # the answer ends the document

    def _identity(self, model: ModelTokens) -> str:
        if self.generator.of_ids or model.tokenizer is None:
            return f"ids 0..{model.vocabulary - 1}"
        return model.tokenizer.identity

    def _documents(self, model: ModelTokens) -> list[TokenDocument]:
        documents = []
        for length in self.lengths:
            for number, depth in enumerate(depth_grid(self.source.depths)):
                for sample in range(self.source.samples):
                    rng = draw(self.source.generator.partition(":")[0], self.drawn, length, number, sample)
                    made = self.generator.make(model, length, depth, rng)
                    assert len(made.ids) == length + 1
                    name = f"{length}-depth{number:03d}-{sample:03d}"
                    documents.append(
                        TokenDocument(name, made.ids, made.byte_counts, answer=made.answer, depth=depth)
                    )
        return documents
