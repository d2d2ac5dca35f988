"""Speed and memory as ratios, measured in one run: ``python -m tests.benchmarks``.

Equality is checked before anything is timed. Writes the table with the machine's description to
``results/benchmarks/``; rows that need CUDA are filled by ``--cuda`` on a machine that has it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

from tests.benchmarks import cuda_rows
from tests.benchmarks.attention_rows import layer_rows, training_rows
from tests.benchmarks.harness import machine, table
from tests.benchmarks.scoring_rows import llama_rows, native_rows


@click.command()
@click.option("--out", default="results/benchmarks", show_default=True, help="Folder of the table.")
@click.option("--cuda", is_flag=True, help="The rows that need a GPU, in place of the CPU's.")
@click.option("--large", is_flag=True, help="Also the CPU row at 162M parameters: minutes.")
@click.option("--shared", is_flag=True, help="Say in the record that the machine was busy otherwise too.")
def main(out: str, cuda: bool, large: bool, shared: bool) -> None:
    if cuda and not torch.cuda.is_available():
        sys.exit("no CUDA device here")
    if cuda:
        rows = cuda_rows.measured()
    else:
        makers = (layer_rows, training_rows, llama_rows, lambda: native_rows(large=large))
        rows = [row for maker in makers for row in _told(maker())] + cuda_rows.unmeasured()
    busy = " The machine was busy with other work meanwhile." if shared else ""
    text = (
        f"# {'CUDA' if cuda else 'CPU'}\n\n`python -m tests.benchmarks{' --cuda' if cuda else ''}"
        f"{' --large' if large else ''}`: {machine()}. Best of interleaved repeats.{busy}\n\n{table(rows)}"
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("cuda.md" if cuda else "cpu.md")).write_text(text, encoding="utf-8")
    print(text)
    sys.exit(1 if any(row.met is False for row in rows) else 0)


def _told(rows: list) -> list:  # type: ignore[type-arg]
    for row in rows:
        print(" ".join(row.cells()), file=sys.stderr)
    return rows


if __name__ == "__main__":
    main()
