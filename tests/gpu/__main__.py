"""What the CUDA programs ask of an H100, without one: ``python -m tests.gpu DIR [--out FILE]``.

DIR is what ``tests/gpu/prepare.sh DIR`` made (several GB, some minutes). Inductor writes the real Triton code
from fake CUDA tensors, and Triton's own ptxas compiles it for sm_90. Whether a program fits and what it costs
in instructions can be had this way; times cannot. About a minute of one core a case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMES = ("nope", "alibi", "kerple-log", "kerple-power", "t5", "kerple-bias-wht")
CASES = [
    *(f"attention {name} bfloat16 64" for name in SCHEMES),
    *(f"attention kerple-bias-wht bfloat16 {dim}" for dim in (80, 128)),
    "attention kerple-log float32 64",
    "attention kerple-power bfloat16 64 pruned",
    *(
        f"attention {name} bfloat16 {dim} train"
        for name, dim in (("kerple-log", 64), ("kerple-bias-wht", 128))
    ),
    # What two kinds of card with less shared memory get: an A100's, and one of compute capability 8.6 or 8.9.
    *(f"attention kerple-bias-wht bfloat16 128 train limit={limit}" for limit in (166_912, 101_376)),
    "attention kerple-log float32 64 blocks=128x64",  # why float32 has smaller ones
    *(f"loss bfloat16 {vocabulary}" for vocabulary in (50304, 128256)),
]
LIMIT = 232_448
HEADER = """# CUDA programs compiled for an H100 (sm_90), without one

torch 2.11.0, Triton 3.6.0; made by `python -m tests.gpu DIR`. Nothing ran: these are the compiler's figures.
Twelve heads, 2,048 queries and keys; an H100 allows 232,448 bytes of shared memory a block of threads
(`limit`: blocks chosen for a card that allows less; `blocks`: others than those chosen).

Loop: instructions a score of the loop over whole blocks. Loads: of memory, in the program's source.

| case | program | registers | spilled, bytes | shared memory, bytes | fits | warps, stages | loop | loads |
|---|---|---:|---:|---:|---|---|---:|---:|"""


def programs(folder: Path, case: str) -> Iterator[dict[str, Any]]:
    """What each program of a case asks for."""
    python = folder / "venv" / "bin" / "python"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    card = {"LD_LIBRARY_PATH": str(folder / "stub"), "LD_PRELOAD": str(folder / "devices.so")}
    with tempfile.TemporaryDirectory() as made:
        words = [python, "-m", "tests.gpu.programs", folder / "devices.so", case, f"{made}/program"]
        subprocess.run(words, check=True, env=environment | card)
        for path in sorted(Path(made).glob("program.*.py")):
            words = [python, "-m", "tests.gpu.machine_code", path]
            done = subprocess.run(words, check=True, env=environment, capture_output=True, text=True)
            yield from map(json.loads, done.stdout.splitlines())


def row(case: str, p: dict[str, Any]) -> str:
    name = p["name"].removeprefix("triton_").removesuffix("_0")
    allowed = dict(word.split("=") for word in case.split() if "=" in word)
    fits = "yes" if p["shared"] <= int(allowed.get("limit", LIMIT)) else "**no**"
    loop = "" if p["loop"] is None else f"{p['loop']:.1f}"
    cells = [case, f"`{name}`", p["registers"], p["spilled"], f"{p['shared']:,}", fits]
    return "| " + " | ".join(map(str, [*cells, f"{p['warps']}, {p['stages']}", loop, p["loads"]])) + " |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, metavar="DIR")
    options.add_argument("--out", type=Path, default=Path("results/benchmarks/sm90.md"))
    options.add_argument("--only", default="", help="cases that hold this text")
    given = options.parse_args()
    lines = [HEADER]
    for case in (case for case in CASES if given.only in case):
        for program in programs(given.folder.resolve(), case):
            lines.append(row(case, program))
            print(lines[-1], flush=True)
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
