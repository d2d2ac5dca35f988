"""Task files: a named, versioned text source with its tokenisation and selection rules.

A task is a YAML file in ``tasks/``. Every key is checked: an unknown one or one of the wrong type is
refused with the file, the key and what would be right.

    name: sotu                      # must be the file's name
    version: 1                      # raised whenever the numbers could change
    description: ...                # one line
    licence: ...                    # of the text
    source: {kind: package, ...}    # package | stdlib | files | hub, see ``sources/kinds.py``, or megatron
    split: {test: 0.1}              # share of documents held out, by a hash of their names
    bos: tokenizer                  # a first-token marker: never | document | window | tokenizer
    packing: document               # document | concatenate (with end-of-document tokens)
    documents: {minimum_length: 1, count: null, seed: 0}   # tokens; how many; which
    names: python                   # of code: the language whose names ``explain --gain`` tells from words

A hub source names the files it reads at a commit of the repository:

    source:
      kind: hub
      repository: emozilla/pg19
      revision: c021754c8e01...       # a commit, 40 hexadecimal digits: a branch moves, a commit does not
      data_files: data/test-*.parquet # .parquet, or JSON lines: .jsonl, .jsonl.gz, .jsonl.zst
      split: test                     # what those files hold; documents are named SPLIT-ROW
      text_column: text               # a column, or column.field
      where: {meta.pile_set_name: Github}   # optional: only rows that hold this
      join: none                      # none | wikitext-articles | blank-line | ..., see ``hub.py``
      limit: 1000                     # optional: stop reading after this many documents; recorded

``NAME:path=DIR`` reads a local copy of those files in the same layout instead.

A synthetic source generates its documents, see ``synthetic/``; ``NAME:samples=3,digits=7`` changes its
numbers:

    source:
      kind: synthetic
      generator: passkey:digits=5       # or needle, copy, associative-recall; options after the colon
      depths: 11                        # evenly spaced, 0 to 1
      samples: 10                       # documents a length and depth
      seed: 0                           # draws them

A megatron source is a memory-mapped data set of token ids, PREFIX.bin and PREFIX.idx, see
``megatron.py``; ids are used as given, so ``bos`` is never, and ``split: {test: 1.0}``:

    source:
      kind: megatron
      path: data/github_text_document   # PREFIX, relative to the task file
      part: test                        # all | train | valid | test: documents by number ...
      shares: 949/50/1                  # ... in these shares, as GPT-NeoX's "split"

``bos`` is the rule for the first-token marker: ``document`` makes it token 0 of each document, so that
target 1 is the first real token; ``window`` puts it before the inputs of every window, as one of its L;
``tokenizer`` does what the model's tokeniser does by itself, ``document`` or ``never``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kerple_eval.data.sources.kinds import (
    SOURCES,
    HubIdSource,
    HubSource,
    JoinRule,
    MegatronSource,
    Source,
    SyntheticSource,
)
from kerple_eval.protocols.neox_split import parse_shares
from kerple_eval.support.files import is_file
from kerple_eval.support.readers import quoted, read_yaml
from kerple_eval.support.registry import Registry, unknown
from kerple_eval.support.specs import parse_options, parse_spec
from kerple_eval.types import BosRule, Spec, UserError


@dataclass(frozen=True, slots=True)
class Split:
    """Share of documents held out for evaluation, by a hash of the name; 1.0 holds out all."""

    test: float


@dataclass(frozen=True, slots=True)
class Selection:
    """Which documents: at least ``minimum_length`` tokens, ``count`` of them, drawn by ``seed``."""

    minimum_length: int = 1
    count: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    version: int
    description: str
    licence: str
    source: Source
    split: Split
    bos: BosRule = "tokenizer"
    packing: Literal["document", "concatenate"] = "document"
    documents: Selection = field(default_factory=Selection)
    names: Literal["python"] | None = None


def tasks_folder() -> Path:
    """Inside the wheel the task files are package data; in a clone they stand beside the package."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "tasks"
    return inside if inside.is_dir() else package.parent / "tasks"


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A named task: ``target`` is its YAML file."""

    name: str
    target: str


#: Shipped tasks, those of other packages (entry-point group ``kerple_eval.tasks``) and registered ones.
TASKS = Registry(
    "task",
    "kerple_eval.tasks",
    TaskFile,
    (TaskFile(path.stem, str(path)) for path in sorted(tasks_folder().glob("*.yaml"))),
)


_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?)(@(?P<revision>[^@,]+))?", re.ASCII)
_HUB_OPTIONS = ("split", "column", "config", "limit", "join")


def parse_task(text: str) -> Spec:
    """``NAME:key=value``, ``FILE.yaml`` or ``hf:ORG/NAME[@REVISION],key=value`` -> :class:`Spec`."""
    if not text.startswith("hf:"):
        return parse_spec(text)
    name, comma, rest = text.partition(",")
    if not _HUB_ID.fullmatch(name.removeprefix("hf:")):
        raise UserError(
            f"task {quoted(text)}: expected hf:ORG/NAME[@REVISION],split=test,column=text"
            "[,config=NAME,limit=N,join=RULE]"
        )
    return Spec(name, parse_options(rest, text) if comma else ())


def _hub_task(spec: Spec) -> Task:
    """The task of a hub data set by id: all of a split is test text."""
    match = _HUB_ID.fullmatch(spec.name.removeprefix("hf:"))
    assert match is not None
    options: dict[str, Any] = dict(spec.options)
    for key in options:
        if key not in _HUB_OPTIONS:
            raise unknown(f"option of task {spec.name}", key, _HUB_OPTIONS)
    if "limit" in options:
        text = options["limit"]
        if not re.fullmatch(r"0*[1-9][0-9]{0,14}", text):
            raise UserError(f"task {spec}: limit={text[:20]} is not a number of documents from 1 on")
        options["limit"] = int(text)
    if options.get("join", "none") not in get_args(JoinRule):
        raise unknown(f"join rule of task {spec.name}", options["join"], get_args(JoinRule))
    source = HubIdSource(match["id"], match["revision"], **options)
    name = match["id"].rpartition("/")[2] + (f"-{source.config}" if source.config else "")
    return Task(name, 1, f"{spec.name} of the Hugging Face hub", "as the hub states", source, Split(1.0))


def open_task(spec: Spec) -> tuple[Task, Path]:
    """The task of ``NAME``, ``NAME:path=DIR`` (a local copy of a hub set), ``FILE.yaml`` or ``hf:ID``.

    Of a synthetic task, options change the numbers of its source and its generator's options.
    """
    if spec.name.startswith("hf:"):
        return _hub_task(spec), Path()
    if spec.name.endswith((".yaml", ".yml")):
        path = Path(spec.name)
        if not is_file(path):
            raise UserError(f"task file {quoted(spec.name)} does not exist")
    else:
        path = Path(TASKS.entry(spec.name).target)
    task = read_task(path)
    options = dict(spec.options)
    if isinstance(task.source, SyntheticSource):
        return replace(task, source=_with_numbers(task.source, options, f"task {task.name}")), path
    local = options.pop("path", None)
    if options:
        raise unknown(f"option of task {spec.name}", next(iter(options)), ["path"])
    if local is not None:
        if not isinstance(task.source, HubSource):
            raise UserError(f"task {task.name}: path= is for hub sources, not {task.source.kind}")
        task = replace(task, source=replace(task.source, path=local))
    return task, path


def _with_numbers(source: SyntheticSource, options: dict[str, str], what: str) -> SyntheticSource:
    """The source with other numbers, and its generator's options after the task file's own."""
    numbers: dict[str, Any] = {}
    for key in ("depths", "samples", "seed"):
        if key in options:
            text = options.pop(key)
            if not re.fullmatch(r"[0-9]{1,15}", text):
                raise UserError(f"{what}: {key}={quoted(text)[1:-1]} is not a whole number")
            numbers[key] = int(text)
    spec = parse_spec(source.generator)
    generator = Spec(spec.name, tuple((dict(spec.options) | options).items()))
    changed = replace(source, generator=str(generator), **numbers)
    _check_synthetic(changed, f"{what}: ")
    return changed


def read_task(path: Path) -> Task:
    """Read and validate one task file."""
    task: Task = _build(Task, read_yaml(path), str(path), "")
    if task.name != path.stem:
        raise UserError(f"{path}: name: {quoted(task.name)} must be the file's name, {path.stem!r}")
    if not 0 < task.split.test <= 1:
        raise UserError(f"{path}: split.test: must be within (0, 1], got {task.split.test}")
    at_least_one: dict[str, int | None] = {"version": task.version}
    at_least_one |= {f"documents.{key}": getattr(task.documents, key) for key in ("minimum_length", "count")}
    if isinstance(task.source, HubSource):
        at_least_one["source.limit"] = task.source.limit
        _check_hub(task.source, str(path))
    if task.names is not None and isinstance(task.source, MegatronSource | SyntheticSource):
        what = "holds token ids" if isinstance(task.source, MegatronSource) else "is made"
        raise UserError(f"{path}: names: needs text, and the source ({task.source.kind}) {what}")
    if isinstance(task.source, MegatronSource):
        _check_megatron(task, task.source, str(path))
    if isinstance(task.source, SyntheticSource):
        _check_synthetic_task(task, task.source, str(path))
    for key, value in at_least_one.items():
        if value is not None and value < 1:
            raise UserError(f"{path}: {key}: must be at least 1, got {value}")
    return task


def _check_hub(source: HubSource, path: str) -> None:
    forms = {
        "repository": (r"[\w.-]+/[\w.-]+", "owner/name"),
        "revision": (r"[0-9a-f]{40}", "a commit, 40 hexadecimal digits"),
        "data_files": (
            r".+\.(parquet|jsonl|jsonl\.gz|jsonl\.zst)",
            "file names that end in .parquet, .jsonl, .jsonl.gz or .jsonl.zst",
        ),
        "split": (r"\w+", "a name, such as test"),
    }
    for key, (pattern, right) in forms.items():
        value = getattr(source, key)
        if not re.fullmatch(pattern, value, re.ASCII):
            raise UserError(f"{path}: source.{key}: must be {right}, got {quoted(value)}")
    if source.path is not None:
        raise UserError(f"{path}: source.path: not for a task file; a local copy is NAME:path=DIR")


def _check_megatron(task: Task, source: MegatronSource, path: str) -> None:
    parse_shares(source.shares, f"{path}: source.shares")
    if task.split.test != 1:
        raise UserError(f"{path}: split.test: must be 1.0, as source.part says which documents to score")
    if task.bos in ("document", "window"):
        raise UserError(f"{path}: bos: must be never, as token ids are used as given, got {quoted(task.bos)}")


def _check_synthetic_task(task: Task, source: SyntheticSource, path: str) -> None:
    _check_synthetic(source, f"{path}: source.")
    if task.split.test != 1:
        raise UserError(f"{path}: split.test: must be 1.0, as all of a synthetic text is scored")
    if task.packing != "document":
        raise UserError(f"{path}: packing: must be document, as each is a window of its own")
    if task.documents != Selection():
        raise UserError(f"{path}: documents: not for a synthetic source, which has samples and seed")


def _check_synthetic(source: SyntheticSource, where: str) -> None:
    for key, least, most in (("depths", 1, 1001), ("samples", 1, 100_000), ("seed", 0, math.inf)):
        got = getattr(source, key)
        if not least <= got <= most:
            bound = f"at least {least}" if got < least else f"at most {most:,}"
            raise UserError(f"{where}{key}: must be {bound}, got {got}")


def _build(cls: type[Any], data: Any, path: str, prefix: str) -> Any:
    if not isinstance(data, Mapping):
        where = prefix.rstrip(".") or "file"
        raise UserError(f"{path}: {where}: must be keys and values, got {_what(data)}")
    hints = get_type_hints(cls)
    for key in data:
        if key not in hints:
            close = get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {prefix}{close[0]}? " if close else ""
            raise UserError(f"{path}: unknown key {quoted(prefix + key)}: {hint}known: {', '.join(hints)}")
    values = {}
    for item in fields(cls):
        if item.name in data:
            where = f"{prefix}{item.name}"
            values[item.name] = _check(hints[item.name], data[item.name], path, where)
        elif _required(item):
            raise UserError(f"{path}: missing key {prefix}{item.name}: must be {_right(hints[item.name])}")
    return cls(**values)


def _what(value: Any) -> str:
    """Type and value, for messages."""
    return f"{type(value).__name__} {quoted(value)}"


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _right(hint: Any) -> str:
    """What a value of this type looks like, for messages."""
    if hint == Source:
        return f"keys and values, with kind one of {', '.join(SOURCES)}"
    if is_dataclass(hint):
        return f"keys and values: {', '.join(f.name for f in fields(hint))}"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    plain = {float: "a number", int: "an integer", str: "text", list[str]: "a list of texts"}
    return plain.get(hint, "keys and texts")


def _check(hint: Any, value: Any, path: str, where: str) -> Any:
    if hint == Source:
        if not isinstance(value, Mapping):
            raise UserError(f"{path}: {where}: must be {_right(hint)}, got {_what(value)}")
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in SOURCES:
            raise UserError(f"{path}: {where}.kind: must be one of {', '.join(SOURCES)}, got {quoted(kind)}")
        return _build(SOURCES[kind], value, path, f"{where}.")
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, path, f"{where}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, type(int | str)):  # X | None
        return None if value is None else _check(arguments[0], value, path, where)
    if origin is Literal:
        good = value in arguments
    elif hint is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
    elif hint is int:
        good = isinstance(value, int) and not isinstance(value, bool)
    elif hint is str:
        good = isinstance(value, str) and bool(value.strip())
    elif origin is list:
        good = isinstance(value, list) and all(isinstance(v, str) for v in value)
    else:
        good = isinstance(value, Mapping) and all(
            isinstance(k, str) and isinstance(v, str) for k, v in value.items()
        )
    if not good:
        raise UserError(f"{path}: {where}: must be {_right(hint)}, got {_what(value)}")
    return value
