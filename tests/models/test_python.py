"""``python:FILE.py:FUNCTION``: what a user's function returns is scored, and its code recorded."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from kerple_eval.records.run import open_run
from tests.helpers.command import Cli, refusal

CODE = """
import torch
from torch import nn

from helper_beside import VOCABULARY


class Bigram(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))

    def forward(self, ids):
        return self.drop(self.table[ids])


def build(seed: int = 0, scale: float = 1.0):
    model = Bigram(seed)
    model.table.data *= scale
    return model, "bytes"


def no_tokenizer():
    return Bigram(0)


def other_each_time():
    return Bigram(torch.seed() % 2**31), "bytes"


def fails():
    return {}["missing"]


def none():
    return None


number = 3
"""
TEXT = "The quick brown fox jumps over the lazy dog, and seven wizards follow. "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_models.py").write_text(CODE)
    (tmp_path / "helper_beside.py").write_text("VOCABULARY = 256\n")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def command(folder: Path, model: str, out: str = "run") -> list[str]:
    return ["run", model, "--text", str(folder / "text.txt"), "--length", "16", "--out", str(folder / out)]


def test_a_function_is_scored_with_its_options(folder: Path, invoke: Cli) -> None:
    file = folder / "own_models.py"
    done = invoke(*command(folder, f"mine=python:{file}:build,seed=3,scale=0.5"))
    assert done.exit_code == 0, done.output
    run = open_run(folder / "run")
    # by hand, from the same draw
    import torch  # noqa: PLC0415

    table = torch.randn(256, 256, generator=torch.Generator().manual_seed(3)).double().numpy() * 0.5
    ids = np.frombuffer(TEXT.encode(), dtype=np.uint8).astype(int)
    rows = table[ids[:-1]]
    losses = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), ids[1:]]
    np.testing.assert_allclose(run.losses()["loss"], losses, rtol=0, atol=1e-6)
    (model,) = run.specification.models
    assert model.format == "python"
    assert model.other["code_sha256"] == hashlib.sha256(CODE.encode()).hexdigest()
    assert invoke(*command(folder, f"mine=python:{file}:build,seed=3,scale=0.5")).exit_code == 0
    assert "another specification" in refusal(invoke(*command(folder, f"mine=python:{file}:build,seed=4")))


def test_inspect_says_what_it_is(folder: Path, invoke: Cli) -> None:
    shown = invoke("inspect", f"python:{folder / 'own_models.py'}:build").output
    assert "python" in shown and "Bigram" in shown


def test_an_edit_of_the_code_is_another_run(folder: Path, invoke: Cli) -> None:
    assert invoke(*command(folder, f"python:{folder / 'own_models.py'}:build")).exit_code == 0
    (folder / "own_models.py").write_text(CODE + "\n# a comment\n")
    assert "another specification" in refusal(
        invoke(*command(folder, f"python:{folder / 'own_models.py'}:build"))
    )


def test_what_cannot_be_run_is_one_line(folder: Path, invoke: Cli) -> None:
    (folder / "broken.py").write_text("def build(:\n")
    (folder / "raises.py").write_text("raise ValueError('on import')\n")
    (folder / "leaves.py").write_text("raise SystemExit(0)\n")
    file = folder / "own_models.py"
    for model, message in (
        (f"python:{file}", "expected python:FILE.py:FUNCTION"),
        (f"python:{folder / 'absent.py'}:build", "no such file"),
        (f"python:{file}:biuld", "did you mean 'build'"),
        (f"python:{file}:number", "unknown function"),
        (f"python:{file}:build,sede=3", "did you mean 'seed'"),
        (f"python:{file}:build,seed=x", "is not an int"),
        (f"python:{file}:fails", "raised KeyError"),
        (f"python:{file}:none", "got NoneType"),
        (f"python:{file}:no_tokenizer", "has no tokeniser"),
        (f"python:{folder / 'broken.py'}:build", "cannot be imported .SyntaxError"),
        (f"python:{folder / 'raises.py'}:build", "on import"),
        (f"python:{folder / 'leaves.py'}:build", "SystemExit"),
        ("python:kerple_eval_absent:build", "cannot be imported .ModuleNotFoundError"),
    ):
        line = refusal(invoke(*command(folder, f"m={model}")))
        assert re.search(message, line), line


def test_weights_that_are_drawn_anew_are_told(folder: Path, invoke: Cli) -> None:
    done = invoke(*command(folder, f"m=python:{folder / 'own_models.py'}:other_each_time"))
    assert done.exit_code == 1
    assert "other weights each time" in (folder / "run" / "summary.csv").read_text()


def test_an_error_of_the_file_names_the_file(folder: Path, invoke: Cli) -> None:
    (folder / "fails.py").write_text(
        "import torch\n\n\nclass Model(torch.nn.Module):\n    def forward(self, ids):\n"
        "        if ids.shape[1] > 64:\n            raise ValueError('too long for me')\n"
        "        return torch.zeros(*ids.shape, 256)\n\n\n"
        "def build():\n    return Model()\n"
    )
    (folder / "ids.jsonl").write_text('{"tokens": ' + str(list(range(150))) + "}\n")
    out = folder / "fails"
    words = ["run", f"python:{folder / 'fails.py'}:build", "--tokens", str(folder / "ids.jsonl")]
    done = invoke(*words, "--length", "64,128", "--out", str(out))
    assert done.exit_code == 1
    assert "ValueError: too long for me (at fails.py:7)" in (out / "summary.csv").read_text()
