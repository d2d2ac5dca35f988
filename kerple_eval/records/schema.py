"""Versions of the on-disk layout: what an older release wrote is brought up to date as it is read.

    2  cells carry checksums; cells of older versions are read, and marked as not verified
    1  the first release
    0  drafts before it: neither run.json nor cells say which first-token rule was applied; there was none

Each step is one function, from one version to the next; a file that is read goes through every
step from its own version on, and is written, where it is written again, as the newest. Columns that a
version adds and that may be absent (``hits``) need no step. What a newer release wrote is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

SCHEMA_VERSION = 2
Step = Callable[[dict[str, Any]], dict[str, Any]]
NO_MARKER = {"rule": "never", "id": None}


def run_says_first_tokens(run: dict[str, Any]) -> dict[str, Any]:
    """0 -> 1: ``bos`` and ``first_token`` of every task of ``run.json``."""
    specification = run["specification"]
    markers = {model["label"]: dict(NO_MARKER) for model in specification["models"]}
    tasks = [{"bos": "never", "first_token": markers} | task for task in specification["tasks"]]
    return {**run, "specification": {**specification, "tasks": tasks}}


def cell_says_first_token(header: dict[str, Any]) -> dict[str, Any]:
    """0 -> 1: ``first_token`` of a cell's header."""
    return {"first_token": dict(NO_MARKER)} | header


def run_of_version_1(run: dict[str, Any]) -> dict[str, Any]:
    """1 -> 2: nothing changed in run.json."""
    return run


def cell_is_not_verified(header: dict[str, Any]) -> dict[str, Any]:
    """1 -> 2: a finished cell without checksums says so; a failed one has no losses to verify."""
    return header | {"verified": False} if "documents" in header else header


#: Version -> the function that converts it to the next one.
RUN_STEPS: Mapping[int, Step] = {0: run_says_first_tokens, 1: run_of_version_1}
CELL_STEPS: Mapping[int, Step] = {0: cell_says_first_token, 1: cell_is_not_verified}


def up_to_date(data: dict[str, Any], steps: Mapping[int, Step], path: Path) -> dict[str, Any]:
    """``data`` of the file ``path`` as this release would have written it.

    Raises:
        UserError: no version that this release reads, or content that is not of its version.
    """
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < min(steps):
        raise UserError(
            f"{path}: schema version {quoted(version)}; this release reads {min(steps)} to {SCHEMA_VERSION}"
        )
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {quoted(version)}, of a newer kerple-eval; this release reads up to "
            f"{SCHEMA_VERSION}: upgrade it"
        )
    for old in range(version, SCHEMA_VERSION):
        try:
            data = steps[old](data) | {"schema_version": old + 1}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged: {type(error).__name__} {error}") from None
    return data
