"""Opening a run's texts: a task, the user's text files, or token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kerple_eval.data.documents import in_test_split, text_hash
from kerple_eval.data.sources.kinds import MegatronSource
from kerple_eval.data.sources.megatron import is_megatron, open_megatron
from kerple_eval.data.sources.own import text_files, token_files
from kerple_eval.data.sources.read import documents_of
from kerple_eval.data.task import Task, open_task
from kerple_eval.data.texts import TextSource, tokens_hash
from kerple_eval.protocols.neox_split import parse_shares, part_range
from kerple_eval.records.specification import TaskRecord
from kerple_eval.types import BosRule, Spec, UserError


def task_text(spec: Spec, bos: BosRule | None = None) -> TextSource:
    """The held-out documents of a task, with its own first-token rule unless ``bos`` is another."""
    task, path = open_task(spec)
    if isinstance(task.source, MegatronSource):
        _refuse_bos(bos, f"task {task.name}")
        return _given(task, task.source, path)
    documents, origin = documents_of(task, path)
    held_out = [d for d in documents if in_test_split(d.name, task.split.test)]
    if not held_out:
        raise UserError(f"task {task.name}: split.test={task.split.test:g} holds out no document")
    rule = bos or task.bos
    record = replace(_task_record(task, origin), bos=rule, text_sha256=text_hash(held_out))
    return TextSource(
        name=task.name,
        record=record,
        documents=held_out,
        bos=rule,
        packed=task.packing == "concatenate",
        selection=task.documents,
        names=task.names,
    )


def _given(task: Task, source: MegatronSource, task_file: Path) -> TextSource:
    """The token ids of a task's memory-mapped data set, or of one part of it."""
    documents = open_megatron(task_file.parent / source.path)
    shares = parse_shares(source.shares, "source.shares")
    part = documents.part(part_range(source.part, shares, len(documents)))
    if not len(part):
        raise UserError(
            f"task {task.name}: source.part: {source.part} holds none of {len(documents)} documents"
        )
    origin = documents.record | {"part": source.part, "shares": source.shares}
    record = replace(_task_record(task, origin), bos="never")
    packed = task.packing == "concatenate"
    return TextSource(task.name, record, [], part, "never", packed, task.documents)


def _task_record(task: Task, origin: dict[str, Any]) -> TaskRecord:
    return TaskRecord(task.name, task.version, origin, task.split.test, task.packing)


def own_text(paths: Sequence[str], bos: BosRule | None = None) -> TextSource:
    """All ``--text`` files as one text named ``text``."""
    found = text_files(paths)
    record = TaskRecord(
        "text", source=found.record, packing="document", bos=bos or "tokenizer",
        text_sha256=text_hash(found.documents),
    )  # fmt: skip
    return TextSource("text", record, found.documents, bos=bos or "tokenizer")


def own_tokens(paths: Sequence[str], bos: BosRule | None = None) -> TextSource:
    """All ``--tokens`` files as one text named ``tokens``; ids are used as given."""
    _refuse_bos(bos, "--tokens")
    sets = [path for path in paths if is_megatron(path)]
    if sets:
        if len(paths) > 1:
            raise UserError(f"--tokens {sets[0]}: a .bin/.idx data set stands alone; give no other --tokens")
        mapped = open_megatron(sets[0])
        if not len(mapped):
            raise UserError(f"--tokens {sets[0]}: holds no document")
        return TextSource("tokens", TaskRecord("tokens", source=mapped.record), [], mapped, "never")
    documents = token_files(paths)
    digest = tokens_hash(documents)
    return TextSource("tokens", TaskRecord("tokens", tokens_sha256=digest), [], documents, "never")


def _refuse_bos(bos: BosRule | None, what: str) -> None:
    if bos in ("document", "window"):
        raise UserError(f"--bos {bos}: {what} holds token ids, which are used as given; leave --bos out")
