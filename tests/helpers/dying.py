"""A process that dies before its n-th change of the disk, played within the test's own process.

After its death nothing it does reaches the disk: every further change raises too, the clean-up of ``finally``
included, as after SIGKILL. Locks are freed where files are closed, as the kernel frees them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: What pathlib, shutil and tempfile change a disk by. Before fsync a file is there without its content.
CHANGES = ("mkdir", "fsync", "chmod", "replace", "rename", "unlink", "remove", "rmdir")


class Dead(BaseException):
    """The process is no more."""


def dies_at(number: int, command: Callable[[], object]) -> bool:
    """Run ``command`` and die before its change ``number`` (from 1); False where it ended before."""
    count = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count >= number:
                raise Dead
            return real(*args, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            command()
        except Dead:
            return True
    return False


def deaths(command: Callable[[], object], after: Callable[[int], object]) -> Iterator[int]:
    """Every place where ``command`` can die, each followed by ``after``; at the end it has run whole."""
    number = 1
    while dies_at(number, command):
        after(number)
        yield number
        number += 1


def content(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
