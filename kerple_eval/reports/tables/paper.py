"""The KERPLE paper's own rows, to be set beside measured ones.

``paper_tables.csv`` holds Tables 3, 5, 6, 9 and 10 of Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS
2022, arXiv 2205.09921): token-level perplexity of GPT-2's tokeniser, mean and standard
deviation over five seeds, and whether the paper marks the logarithmic kernel as significantly better (its
dagger). Schemes bear this project's names, numbers are kept as printed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from kerple_eval.support.registry import unknown
from kerple_eval.support.specs import parse_spec
from kerple_eval.types import UserError

SOURCE = Path(__file__).with_name("paper_tables.csv")
#: The name of a task here -> the paper's data set of the same kind of text.
DATASETS = {"openwebtext2": "OpenWebText2", "github": "GitHub", "arxiv": "ArXiv"}
DEFAULT_TABLE = "3"
#: The paper's protocol and the release's own draw of it; other protocols' numbers are not set beside.
PAPER_PROTOCOLS = ("full-context", "kerple-release")


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One scheme of one data set: length -> (``23.9 ± 0.6`` as printed, dagger)."""

    dataset: str
    scheme: str
    model: str
    train_length: int
    values: dict[int, tuple[str, bool]]

    @property
    def group(self) -> str:
        return f"KERPLE paper, {self.dataset}, {self.model}, trained at {self.train_length}"


def rows(text: str, task: str) -> list[PaperRow]:
    """The rows that ``paper[:table=T,dataset=NAME]`` asks for beside ``task``.

    Without ``dataset`` the one of the task's name, or all where none has it.
    """
    spec = parse_spec(text)
    if spec.name != "paper":
        raise unknown("table to compare with", spec.name, ("paper",))
    options = dict(spec.options)
    for key in options.keys() - {"table", "dataset"}:
        raise unknown("option of paper", key, ("table", "dataset"))
    table = options.get("table", DEFAULT_TABLE)
    dataset = options.get("dataset", DATASETS.get(task))
    with SOURCE.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    tables = dict.fromkeys(line["table"] for line in lines)
    if table not in tables:
        raise UserError(f"the paper's table {table!r} is not included; these are: {', '.join(tables)}")
    lines = [line for line in lines if line["table"] == table]
    datasets = dict.fromkeys(line["dataset"] for line in lines)
    if dataset is not None and dataset not in datasets:
        if "dataset" not in options:
            dataset = None
        else:
            raise unknown(f"data set of the paper's table {table}", dataset, datasets)
    found: dict[tuple[str, str, str, str], PaperRow] = {}
    for line in lines:
        if dataset not in (None, line["dataset"]):
            continue
        row_key = (line["dataset"], line["model"], line["train_length"], line["scheme"])
        row = found.setdefault(
            row_key, PaperRow(line["dataset"], line["scheme"], line["model"], int(line["train_length"]), {})
        )
        shown = line["ppl"] + (f" ± {line['std']}" if line["std"] else "")
        row.values[int(line["length"])] = shown, line["log_significantly_better"] == "1"
    return list(found.values())
