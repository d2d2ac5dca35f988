"""A made task as a text of a run: documents for every length, by each model's tokeniser or vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kerple_eval.data.documents import TokenDocument
from kerple_eval.data.sources.kinds import SyntheticSource
from kerple_eval.data.synthetic.base import Generator, ModelTokens, depth_grid, document, draw
from kerple_eval.data.synthetic.catalogue import make_generator
from kerple_eval.data.task import open_task
from kerple_eval.data.texts import (
    DocumentSelection,
    PreparedText,
    TextSource,
    TokenizedText,
    check_marker,
    check_vocabulary,
    tokens_hash,
)
from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.records.specification import AppliedRule, SelectionRecord, TaskRecord
from kerple_eval.types import BosRule, Spec, UserError


def is_made(spec: Spec) -> bool:
    """Whether a task's documents are made, not read."""
    return isinstance(open_task(spec)[0].source, SyntheticSource)


def made_text(spec: Spec, bos: BosRule | None, lengths: Sequence[int], seed: int | None) -> MadeText:
    """The text of a made task; ``bos`` and ``seed`` in place of its own."""
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
        rule = "never"  # random ids are no text that a tokeniser would begin
    return MadeText(task.name, record, [], bos=rule, generator=generator, source=source,
                    lengths=tuple(sorted(lengths)), drawn=drawn)  # fmt: skip


@dataclass(kw_only=True)
class MadeText(TextSource):
    """Documents of L + 1 tokens for each of ``lengths``; a cell scores those of its own length."""

    generator: Generator
    source: SyntheticSource
    lengths: tuple[int, ...]
    drawn: int  # the seed

    def prepare(
        self, readers: dict[str, tuple[str, Tokenizer | None, int]], choice: DocumentSelection
    ) -> PreparedText[TokenizedText]:
        """Made anew for every tokeniser (or vocabulary, where documents are ids) and marker."""
        keys: dict[str, tuple[str, str]] = {}
        readings: dict[tuple[str, str], TokenizedText] = {}
        for label, tokenizer, vocabulary in readers.values():
            rule, number = self._rule(label, tokenizer)
            check_marker(number, label, vocabulary)
            keys[label] = key = (self._identity(tokenizer, vocabulary), f"{rule} {number}")
            if key not in readings:
                made = self._documents(ModelTokens(label, tokenizer, vocabulary, number))
                readings[key] = TokenizedText(made, rule, number, self.generator.of_ids)
            check_vocabulary(readings[key].documents, label, vocabulary)
        selection = SelectionRecord(
            documents=self.source.depths * self.source.samples,  # at each length
            passed_over_as_short=0,
            seed=self.drawn,
        )
        hashes = {
            " ".join(key): {
                str(length): tokens_hash(d for d in reading.documents if len(d) == length + 1)
                for length in self.lengths
            }
            for key, reading in readings.items()
        }
        by_model = {label: readings[key] for label, key in keys.items()}
        markers = {label: reading.marker for label, reading in by_model.items()}
        return PreparedText(
            by_model, replace(self.record, selection=selection, tokens_sha256=hashes, first_token=markers)
        )

    def _rule(self, label: str, tokenizer: Tokenizer | None) -> tuple[AppliedRule, int | None]:
        if self.generator.of_ids and self.bos == "never":
            return "never", None  # no tokeniser is needed
        if tokenizer is None:
            raise UserError(
                f"model {label} has no tokeniser, which {self.name} needs; copy and associative-recall do not"
            )
        return self._bos(label, tokenizer)

    def _identity(self, tokenizer: Tokenizer | None, vocabulary: int) -> str:
        if self.generator.of_ids or tokenizer is None:
            return f"ids 0..{vocabulary - 1}"
        return tokenizer.identity

    def _documents(self, reader: ModelTokens) -> list[TokenDocument]:
        found = []
        for length in self.lengths:
            for number, depth in enumerate(depth_grid(self.source.depths)):
                for sample in range(self.source.samples):
                    rng = draw(self.source.generator.partition(":")[0], self.drawn, length, number, sample)
                    made = self.generator.make(reader, length, depth, rng)
                    name = f"{length}-depth{number:03d}-{sample:03d}"
                    found.append(document(name, made, depth, length))
        return found
