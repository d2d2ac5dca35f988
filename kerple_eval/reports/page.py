"""One page a reader can keep: tables, figures and where every number came from (Markdown)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.files import write_atomically
from kerple_eval.records import open_run
from kerple_eval.reports import curve, position, table


def write(folders: Sequence[str | Path], out: Path) -> list[Path]:
    """Write ``out`` and, beside it, its figures; returns the files written."""
    figures = {kind: out.with_name(f"{out.stem}-{kind}.png") for kind in ("curve", "position")}
    text = [f"# {out.stem}", ""]
    text += [table.render(folders, "markdown"), "## Figures", ""]
    curve.draw(folders, figures["curve"])
    text += [f"![perplexity against length]({figures['curve'].name})", ""]
    if position.drawable(folders):
        position.draw(folders, figures["position"])
        text += [f"![mean loss against context]({figures['position'].name})", ""]
    else:
        del figures["position"]
        text += ["No figure of loss against context: no finished cell's contexts vary.", ""]
    text += ["## Provenance", ""]
    for folder in folders:
        run = open_run(folder)
        text += [f"### {Path(folder).resolve().name}", ""]
        text += _sessions(run.provenance)
        text += _models(run.specification)
        text += _tasks(run.specification)
    write_atomically(out, ("\n".join(text) + "\n").encode())
    return [out, *figures.values()]


def _sessions(provenance: dict[str, Any]) -> list[str]:
    last = provenance["sessions"][-1]
    command = shlex.join(["kerple-eval", *last["command"][1:]])
    return [
        "```",
        command,
        "```",
        "",
        f"{last['began']}, kerple-eval {last['kerple_eval']}, torch {last['torch']}, "
        f"Python {last['python']}, {last['platform']}, {last['device']}, {last['threads']} threads; "
        f"{len(provenance['sessions'])} session(s).",
        "",
    ]


def _models(specification: dict[str, Any]) -> list[str]:
    lines = [
        "| model | scheme | trained at | seed | parameters | weights sha256 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {m['label']} | {m['scheme']} | {m['train_length'] or '?'} | "
        f"{'?' if m['seed'] is None else m['seed']} | {m['parameters']:,} | `{m['weights_sha256'][:16]}` |"
        for m in specification["models"]
    ]
    return [*lines, ""]


def _tasks(specification: dict[str, Any]) -> list[str]:
    lines = []
    for task in specification["tasks"]:
        facts = [f"{key} {value}" for key, value in task.items() if key != "name"]
        lines += [f"Text `{task['name']}`: {'; '.join(facts)}.", ""]
    return lines
