"""``kerple-eval export``: the results of a run in the formats of other programs, one model at a time.

A format of files is written to ``OUT/MODEL/FILE``, or of one model to OUT itself where that has the file's
suffix. The others are experiment trackers, see :mod:`kerple_eval.support.trackers`: a model is a run there.
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from kerple_eval.records.cell import Cell
from kerple_eval.records.run import Run, open_run
from kerple_eval.records.scalars import facts, scalars
from kerple_eval.reports.catalogue import EXPORTS
from kerple_eval.reports.lm_eval import sanitized
from kerple_eval.support.files import write_output
from kerple_eval.support.labels import check_label
from kerple_eval.support.registry import unknown
from kerple_eval.support.trackers import TRACKERS, require, start
from kerple_eval.types import UserError


def export(
    folder: str | PathLike[str], out: Path | None = None, *, style: str = "lm-eval", model: str | None = None
) -> list[str]:
    """Write results of a run; returns where they are, a line a model.

    Raises:
        UserError: several models and one file; no such model or format; nothing finished; a package that is
            missing or refuses.
    """
    if style not in EXPORTS and style not in TRACKERS:
        raise unknown("format of an export", style, [*EXPORTS, *TRACKERS])
    run = open_run(fspath(folder))
    labels = [model_.label for model_ in run.specification.models]
    if model is not None and model not in labels:
        raise unknown("model", model, labels)
    wanted = labels if model is None else [model]
    if out is not None and style in TRACKERS and style != "tensorboard":
        raise UserError(f"export --format {style}: {style}'s own settings say where, so no --out")
    if out is None and (style in EXPORTS or style == "tensorboard"):
        raise UserError(f"export --format {style} writes files: say where with --out")
    if style in TRACKERS:
        return _to_tracker(run, wanted, style, out)
    assert out is not None
    entry = EXPORTS.entry(style)
    one_file = out.suffix == Path(entry.file).suffix
    if one_file and len(wanted) > 1:
        raise UserError(
            f"{folder}: holds {len(labels)} models ({', '.join(labels)}), and a file of {style} holds one: "
            "say which with --model, or give a folder as --out"
        )
    content = EXPORTS.load(style)
    contents = {
        out if one_file else out / name / entry.file: content(run, label)
        for label, name in _file_names(run, wanted).items()
    }
    written = {path: found for path, found in contents.items() if found is not None}
    if not written:
        raise _nothing(run)
    for path, found in written.items():
        write_output(path, found)
    return [str(path) for path in written]


def _nothing(run: Run) -> UserError:
    return UserError(f"{run.folder}: no finished cell to export")


def _to_tracker(run: Run, wanted: list[str], style: str, out: Path | None) -> list[str]:
    """Each model as a run of the tracker; the steps NAME@STEP of a training as the steps of one, NAME."""
    require(style)
    values: dict[str, dict[int, dict[str, float]]] = {}
    configs: dict[str, dict[str, object]] = {}
    for cell in run.cells():
        label, step = cell.key.model, cell.header.step
        if not isinstance(cell, Cell) or label not in wanted:
            continue
        name = label if step is None else label.rpartition("@")[0]
        configs.setdefault(name, {}).update(facts(run.specification.model(label), cell))
        values.setdefault(name, {}).setdefault(step or 0, {}).update(scalars(cell))
    if not values:
        raise _nothing(run)
    where = []
    for name, file in _file_names(run, list(values)).items():
        tracker = start(style, name, configs[name], out and out / file)
        for step, found in sorted(values[name].items()):
            tracker.log(found, step)
        tracker.close()
        where.append(f"{tracker.where}: {name}")
    return where


def _file_names(run: Run, names: list[str]) -> dict[str, str]:
    """Name of a model -> that of its folder."""
    found: dict[str, str] = {}
    for name in names:
        check_label(name, f"{run.folder}: model label", "a run begun today would refuse it")
        file = sanitized(name)
        other = next((known for known in found if found[known] == file), name)
        if other != name:
            raise UserError(
                f"{run.folder}: {other} and {name} would both be written to {file}; export one at a time, "
                "with --model and a file as --out"
            )
        found[name] = file
    return found
