"""What every row of the benchmark shares: ratios of interleaved timings, and the table they end in."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured against what, the bound, and what came out.

    ``ratio`` is times faster where ``at_least`` is the bound, times the other's cost where ``at_most``
    is; None where it was not measured.
    """

    work: str
    against: str
    ratio: float | None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    def measured(self, ratio: float, note: str) -> Row:
        return replace(self, ratio=ratio, note=note)

    @property
    def met(self) -> bool | None:
        if self.ratio is None:
            return None
        if self.at_least is not None:
            return self.ratio >= self.at_least
        return self.at_most is None or self.ratio <= self.at_most

    def cells(self) -> list[str]:
        at_most = "-" if self.at_most is None else f"<= {self.at_most:g}"
        bound = at_most if self.at_least is None else f">= {self.at_least:g}"
        shown = "unmeasured" if self.ratio is None else f"{self.ratio:.{2 if self.ratio >= 0.1 else 5}f}"
        verdict = "-" if bound == "-" else {None: "-", True: "yes", False: "NO"}[self.met]
        return [self.work, self.against, bound, shown, verdict, self.note]


HEAD = ["work", "against", "bound", "measured", "met", "note"]


def processor_seconds() -> float:
    """Of this process and those it has waited for: what a way takes on a machine that others use too."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def shared_machine() -> None:
    """Measure processor time from here on."""
    _clock.append(processor_seconds)


_clock: list[Callable[[], float]] = [time.perf_counter]


def clock() -> float:
    """Seconds, of the processor where the machine is shared."""
    return _clock[-1]()


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Best seconds of each way, run in turn so that a busy moment falls on all of them alike."""
    clock = _clock[-1]
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            began = clock()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = min(best[name], clock() - began)
    return best


def machine() -> str:
    """One line: processor, threads, accelerator, versions."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a real file
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{model}, {torch.get_num_threads()} threads{card}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *(r.cells() for r in rows))
    ]
    return "\n".join(lines) + "\n"
