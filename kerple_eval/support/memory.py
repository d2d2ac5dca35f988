"""How much of the machine's memory a process may still take. Units: bytes."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def available_bytes() -> int | None:
    """The least of what the kernel calls available and control groups (v2) allow; None where unknown."""
    found = [bytes_ for bytes_ in (_available(), *_left_in_groups()) if bytes_ is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def _left_in_groups() -> list[int]:
    """Limit less use of this process's group and of those around it; file pages can be taken back."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
        own = Path(next(line.removeprefix("0::/") for line in lines if line.startswith("0::/")))
    except (OSError, StopIteration):
        return []
    left = []
    for group in (own, *own.parents):
        folder = CGROUPS / group
        try:
            limit = (folder / "memory.max").read_text(encoding="ascii").strip()
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if limit != "max":
                left.append(max(0, int(limit) - used + int(stat.get("inactive_file", 0))))
        except (OSError, ValueError):
            continue
    return left
