"""Results as the evaluation results of a model's repository on the Hugging Face hub.

The hub documents them as YAML in the folder ``.eval_results/`` of the model's repository
(https://huggingface.co/docs/hub/eval-results); the older ``model-index`` in a model card is what
``huggingface_hub`` calls legacy. An entry is of a data set of the hub, with the perplexity per token as its
value and ``TASK/PROTOCOL/LENGTH`` as its ``task_id``. The hub shows an entry on a leaderboard where the
data set is a registered benchmark whose ``eval.yaml`` has that id.
"""

from __future__ import annotations

import yaml

from kerple_eval.records.cell import Cell
from kerple_eval.records.run import Run
from kerple_eval.types import UserError


def content(run: Run, label: str) -> bytes | None:
    """The file for one model, None where nothing is to be said; cells left out stand in its first lines.

    Raises:
        UserError: no task of the run is a data set of the hub.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml  # noqa: PLC0415

    sources = {task.name: task.source or {} for task in run.specification.tasks}
    if not any(source.get("kind") == "hub" for source in sources.values()):
        raise UserError(
            f"{run.folder}: of {', '.join(sources)} none is a data set of the hub, and the hub's evaluation "
            "results are of such data sets alone"
        )
    session = run.provenance.sessions[-1] if run.provenance.sessions else None
    entries: list[EvalResultEntry] = []
    left_out: dict[str, list[str]] = {}
    for cell in run.cells():
        if not isinstance(cell, Cell) or cell.key.model != label:
            continue
        row, source = cell.summary(), sources[cell.key.task]
        name = f"{cell.key.task}/{cell.key.protocol}/{cell.key.length}"
        if source.get("kind") != "hub" or row["ppl"] is None:
            why = (
                "not of a data set of the hub" if source.get("kind") != "hub" else "perplexity beyond a float"
            )
            left_out.setdefault(why, []).append(name)
            continue
        notes = f"kerple-eval: perplexity per token of {row['targets']} targets, hash {row['targets_hash']}"
        entries.append(
            EvalResultEntry(
                dataset_id=source["repository"], task_id=name, value=row["ppl"],
                dataset_revision=source.get("revision"), date=session and session.began, notes=notes,
            )
        )  # fmt: skip
    if not entries:
        return None
    head = "".join(f"# left out, {why}: {', '.join(names)}\n" for why, names in left_out.items())
    text: str = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return (head + text).encode()
