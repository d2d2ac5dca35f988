"""The command that computes the sliding-window cells an explanation lacks. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kerple_eval.records.run import Run
from kerple_eval.stats.context_gain import Lack, LossChange

#: The stride suggested is the shortest length by this: contexts of 7/8 L1 and more.
STRIDES_A_LENGTH = 8


def commands(splits: Sequence[LossChange]) -> list[list[str]]:
    """Words of one command per run whose splits lack a sliding-window cell; none where none would help.

    The last is the directory it writes.
    """
    wanted: dict[tuple[str, str], list[LossChange]] = {}  # by directory and first-token rule
    for split in splits:
        if split.lacks is Lack.SLIDING_WINDOW:
            wanted.setdefault((str(split.run.folder), _bos(split)), []).append(split)
    return [_command(group, bos) for (_, bos), group in wanted.items()]


def _bos(split: LossChange) -> str:
    """What --bos the new cells need, where the protocol brings its own first-token rule; else empty."""
    for plan in split.run.specification.protocols:
        if plan.protocol == split.key.protocol and plan.first_token is not None:
            rule = plan.first_token[split.key.task][split.key.model].rule
            return "window" if rule == "window" else "tokenizer"
    return ""


def _command(splits: Sequence[LossChange], bos: str) -> list[str]:
    run = splits[0].run
    lengths = sorted({split.key.length for split in splits})
    stride = max(1, lengths[0] // STRIDES_A_LENGTH)
    cap = f"@{lengths[-1]}" if _same_documents(run) else ""
    replaced = ("--protocol", "--out", *(["--bos"] if bos else []))
    folder = Path(run.folder)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return [
        *_asked(run, replaced), "--protocol",
        f"sliding-window:stride={stride}{cap}", *(["--bos", bos] if bos else []),
        "--out", str(folder.with_name(folder.name + "-sliding" + (f"-bos-{bos}" if bos else ""))),
    ]  # fmt: skip


def _same_documents(run: Run) -> bool:
    """Whether a run of shorter windows alone would score the same documents, and perhaps more."""
    if run.specification.keep_short:
        return True
    chosen = [task.selection for task in run.specification.tasks]
    return all(s is not None and (s.count is None or s.passed_over_as_short == 0) for s in chosen)


def _asked(run: Run, replaced: Sequence[str]) -> list[str]:
    """The run's command without the options that are replaced."""
    command = run.provenance.sessions[-1].command if run.provenance.sessions else ()
    if command[1:2] != ("run",) or run.provenance.merged is not None:  # a part's command is not the whole's
        return _from_record(run, "--bos" not in replaced)
    kept, skip = [], False
    for word in command:
        if skip:
            skip = False
        elif word in replaced:
            skip = True
        elif not word.startswith(tuple(f"{option}=" for option in replaced)):
            kept.append(word)
    return kept


def _from_record(run: Run, with_bos: bool) -> list[str]:
    """A run that Python started, as a command; ``with_bos`` where its own first-token rule is wanted."""
    specification, provenance = run.specification, run.provenance
    words = ["kerple-eval", "run"]
    for label, source in provenance.models.items():
        words.append(source if source.startswith(f"{label}=") else f"{label}={source}")
    for task in specification.tasks:
        if task.name not in ("text", "tokens"):
            words += ["--task", task.name]
    for option, paths in (("text", provenance.text_files), ("tokens", provenance.tokens_files)):
        for path in paths:
            words += [f"--{option}", path]
    lengths = sorted({n for plan in specification.protocols for n in plan.lengths})
    words += ["--length", ",".join(map(str, lengths))]
    selection = specification.tasks[0].selection
    if selection is not None and selection.count is not None:
        words += ["--documents", str(selection.count), "--seed", str(selection.seed)]
    rules = {task.bos for task in specification.tasks}
    if with_bos and len(rules) == 1 and (rule := rules.pop()) is not None:
        words += ["--bos", rule]  # of rules that differ each is its task's own
    if specification.keep_short:
        words.append("--keep-short")
    if specification.max_tokens is not None:
        words += ["--max-tokens", str(specification.max_tokens)]
    own = any(model.dtype for model in specification.models)
    return [*words, "--device", specification.device, "--dtype", "auto" if own else specification.dtype]
