"""``python -m tests.fuzz [--seconds N] [--start N] [--format NAME] [--case N]``: every format in turn."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from tests.fuzz.harness import Inputs
from tests.fuzz.seeds import FORMATS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="how long to go on")
    parser.add_argument("--start", type=int, default=0, help="the first case's number")
    parser.add_argument("--format", choices=sorted(FORMATS), action="append", help="these formats only")
    parser.add_argument("--case", type=int, help="this case alone, with what it answered")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.format or list(FORMATS)
    wrong: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        inputs = Inputs(Path(root))
        end = time.monotonic() + options.seconds
        number = options.start if options.case is None else options.case
        while True:
            for name in names:
                what, answer = inputs.case(name, number)
                if options.case is not None:
                    print(f"{name} {number}: {what}\n{answer}")
                elif answer.wrong:
                    wrong[name] += 1
                    print(
                        f"{name} --case {number}: {what}: {answer.wrong.strip().splitlines()[-1][:300]}",
                        flush=True,
                    )
            if options.case is not None or time.monotonic() > end:
                break
            number += 1
    total = (number + 1 - options.start) * len(names)
    print(
        f"{total} cases from {options.start} to {number}, {wrong.total()} wrong {dict(wrong) or ''}".rstrip()
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
