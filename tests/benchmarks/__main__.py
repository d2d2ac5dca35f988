"""Speed and memory as ratios, measured in one run: ``python -m tests.benchmarks``.

Equality is checked before anything is timed. Writes the table with the machine's description to
``results/benchmarks/``, row by row as they are measured. ``--cuda`` measures the rows that need a GPU, in
parts below ten minutes each: a row is kept once it is measured, and the same command goes on after a kill.
``--cuda --dry-run`` says which, also where there is no GPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import click
import torch

from tests.benchmarks import cuda_rows, parts
from tests.benchmarks.attention_rows import layer_rows, training_rows
from tests.benchmarks.harness import Row, machine, shared_machine, table
from tests.benchmarks.method_rows import method_rows
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
    "methods": method_rows,
    "pieces": piece_rows,
    "upkeep": upkeep_rows,
}


@click.command()
@click.option("--out", default="results/benchmarks", show_default=True, help="Folder of the table.")
@click.option("--cuda", is_flag=True, help="The rows that need a GPU, into CARD.md; goes on where it was.")
@click.option("--dry-run", is_flag=True, help="What --cuda would do, also without a GPU.")
@click.option("--large", is_flag=True, help="The CPU row at 162M parameters alone: minutes.")
@click.option("--part", type=click.Choice([*PARTS, *cuda_rows.PARTS]), help="These rows alone.")
@click.option("--shared", is_flag=True, help="A machine busy otherwise too: processor time, and it is said.")
def main(out: str, cuda: bool, dry_run: bool, large: bool, part: str | None, shared: bool) -> None:
    if part and part not in (cuda_rows.PARTS if cuda else PARTS):
        raise click.UsageError(f"--part {part} goes {'without' if cuda else 'with'} --cuda")
    if cuda:
        sys.exit(_on_a_card(Path(out), part, dry_run=dry_run))
    if dry_run:
        raise click.UsageError("--dry-run goes with --cuda")
    if shared:
        shared_machine()
    busy = " Processor seconds: the machine was busy with other work meanwhile." if shared else ""
    words = [word for word, on in (("--large", large), ("--shared", shared)) if on]
    words += [f"--part {part}"] if part else []
    command = " ".join(["python -m tests.benchmarks", *words])
    head = f"# CPU\n\n`{command}`: {machine()}. Best of interleaved repeats.{busy}"
    name = "cpu-162m.md" if large else f"cpu-{part}.md" if part else "cpu.md"
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    makers = [lambda: [large_row()]] if large else [PARTS[part]] if part else list(PARTS.values())
    rows: list[Row] = []
    more = [] if part or large else cuda_rows.unmeasured()
    for row in chain.from_iterable(maker() for maker in makers):  # written, whatever becomes of the next
        rows.append(row)
        print(" ".join(row.cells()), file=sys.stderr)
        (folder / name).write_text(f"{head}\n\n{table([*rows, *more])}", encoding="utf-8")
    sys.exit(1 if any(row.met is False for row in rows) else 0)


def _on_a_card(folder: Path, part: str | None, *, dry_run: bool) -> int:
    """The exit status: 0 every row is met."""
    there = torch.cuda.is_available()
    if not there and not dry_run:
        sys.exit("no CUDA device here; --dry-run says what would be done")
    card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) if there else "cuda"
    head = f"# CUDA\n\n`python -m tests.benchmarks --cuda`: {machine()}. Best of interleaved repeats."
    kept = parts.Kept(folder, card, head, cuda_rows.PARTS)
    names = [name for name, each in cuda_rows.PARTS.items() if each.check or part in (None, name)]
    if dry_run:
        print(parts.described(kept, names))
        return 0
    return 0 if parts.run(kept, names, lambda line: print(line, file=sys.stderr, flush=True)) else 1


if __name__ == "__main__":
    main()
