"""Speed and memory as ratios, measured in one run: ``python -m tests.benchmarks``.

Equality is checked before anything is timed. Writes the table with the machine's description to
``results/benchmarks/``; rows that need CUDA are filled by ``--cuda`` on a machine that has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import click
import torch

from tests.benchmarks import cuda_rows
from tests.benchmarks.attention_rows import layer_rows, training_rows
from tests.benchmarks.harness import Row, machine, shared_machine, table
from tests.benchmarks.piece_rows import piece_rows
from tests.benchmarks.pruning_rows import pruning_rows
from tests.benchmarks.scoring_rows import large_row, llama_rows, native_rows
from tests.benchmarks.upkeep_rows import upkeep_rows

PARTS: dict[str, Callable[[], Iterable[Row]]] = {
    "layer": layer_rows,
    "training": training_rows,
    "llama": llama_rows,
    "native": native_rows,
    "pruning": pruning_rows,
    "pieces": piece_rows,
    "upkeep": upkeep_rows,
}


@click.command()
@click.option("--out", default="results/benchmarks", show_default=True, help="Folder of the table.")
@click.option("--cuda", is_flag=True, help="The rows that need a GPU, in place of the CPU's.")
@click.option("--large", is_flag=True, help="The CPU row at 162M parameters alone: minutes.")
@click.option("--part", type=click.Choice(list(PARTS)), help="These rows alone, into cpu-PART.md.")
@click.option("--shared", is_flag=True, help="A machine busy otherwise too: processor time, and it is said.")
def main(out: str, cuda: bool, large: bool, part: str | None, shared: bool) -> None:
    if cuda and not torch.cuda.is_available():
        sys.exit("no CUDA device here")
    if shared:
        shared_machine()
    makers = [maker for name, maker in PARTS.items() if part in (None, name)]
    if cuda:
        measured: Iterable[Row] = cuda_rows.measured()
    elif large:
        measured = [large_row()]
    else:
        measured = chain.from_iterable(maker() for maker in makers)
    busy = " Processor seconds: the machine was busy with other work meanwhile." if shared else ""
    words = [word for word, on in (("--cuda", cuda), ("--large", large), ("--shared", shared)) if on]
    words += [f"--part {part}"] if part else []
    command = " ".join(["python -m tests.benchmarks", *words])
    head = (
        f"# {'CUDA' if cuda else 'CPU'}\n\n`{command}`: {machine()}. Best of interleaved repeats.{busy}\n\n"
    )
    name = "cuda.md" if cuda else "cpu-162m.md" if large else f"cpu-{part}.md" if part else "cpu.md"
    path = Path(out) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for row in measured:  # a row is on disk as soon as it is measured
        rows.append(row)
        path.write_text(head + table(rows), encoding="utf-8")
        print(" ".join(row.cells()), file=sys.stderr)
    if not (cuda or large or part):
        rows += cuda_rows.unmeasured()
        path.write_text(head + table(rows), encoding="utf-8")
    print(head + table(rows))
    sys.exit(1 if any(row.met is False for row in rows) else 0)


if __name__ == "__main__":
    main()
