"""A few damaged inputs of some formats at each run of the tests; of every format as slow tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.harness import Inputs
from tests.fuzz.seeds import FORMATS


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("fuzz"))


def check(inputs: Inputs, name: str, cases: range) -> None:
    wrong = []
    for number in cases:
        what, answer = inputs.case(name, number)
        if answer.wrong:
            wrong.append(f"python -m tests.fuzz --format {name} --case {number}: {what}: {answer.wrong}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["native", "task", "lines", "run-table", "run-intervals"])
def test_damaged_inputs(inputs: Inputs, name: str) -> None:
    check(inputs, name, range(12))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_inputs(inputs: Inputs, name: str) -> None:
    check(inputs, name, range(12, 150))


def test_a_wrong_answer_is_told(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The judge itself: a command that raises, hangs, starts a program or writes two lines."""
    from tests.fuzz import harness  # noqa: PLC0415

    def answers(body: str) -> str:
        code = f"import click\n@click.command()\ndef cli():\n    {body}\n"
        module: dict[str, object] = {}
        exec(compile(code, "fake", "exec"), module)
        monkeypatch.setattr("kerple_eval.cli.main.cli", module["cli"])
        return harness.ask([], tmp_path).wrong

    monkeypatch.setattr(harness, "SECONDS", 2)
    assert "ZeroDivisionError" in answers("1 / 0")
    assert "longer than" in answers("import time; time.sleep(60)")
    assert "os.system" in answers("import os; os.system('true')")
    assert "not one line" in answers("import sys; click.echo('a', err=True); sys.exit(2)")
    assert "a traceback" in answers("click.echo('Traceback (most recent call last)')")
    assert answers("import sys; click.echo('error: one line', err=True); sys.exit(2)") == ""
