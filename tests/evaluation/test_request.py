"""A run's settings as one value: every spelling that people use, and one line for what is none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.cli.main import cli
from kerple_eval.evaluation.request import _READERS, LENGTHS, RunRequest, parse_lengths
from kerple_eval.models.devices import DTYPES
from kerple_eval.records.run import open_run
from kerple_eval.types import UserError
from tests.helpers.command import Cli


def asked(**options: Any) -> RunRequest:
    return RunRequest.of(**({"models": "zoo:rope", "out": "out"} | options))


def test_every_spelling_is_one_request() -> None:
    plain = asked(
        models=["zoo:rope"], text=["a.txt"], lengths=[16, 32], documents=2, max_tokens=40, seed=3,
        dtype="bfloat16", device="cpu", keep_short=True,
    )  # fmt: skip
    spelled = asked(
        models=("zoo:rope",), out=Path("out"), text=Path("a.txt"), lengths=np.array([16, 32]),
        documents=np.int64(2), max_tokens=torch.tensor(40), seed=np.uint8(3), dtype=torch.bfloat16,
        device=torch.device("cpu"), keep_short=np.bool_(True), protocols=None, bos=None,
    )  # fmt: skip
    assert spelled == plain
    assert asked(text=[Path("a"), "b"], models=(m for m in ("x", "y"))).text == ("a", "b")
    assert asked(lengths=np.int32(16)).lengths == asked(lengths="16").lengths == (16,)
    assert asked(lengths=["8..32", 1]).lengths == (8, 16, 32, 1)
    assert asked().lengths == LENGTHS
    assert asked(protocols="prefix").protocols == ("prefix",)
    for name, dtype in DTYPES.items():
        assert asked(dtype=dtype).dtype == name


def test_what_it_may_not_hold_is_one_line() -> None:
    cases: list[tuple[str, Any, str]] = [
        ("models", [], "run needs a model"),
        ("models", None, "run needs a model"),
        ("models", 3, "model 3: expected a string, a path or a sequence"),
        ("models", {"mine": object()}, "model {'mine': "),
        ("models", b"zoo:rope", "model b'zoo:rope': expected"),
        ("models", [object()], "expected a string or a path"),
        ("models", torch.nn.Linear(2, 2), "model Linear"),
        ("out", None, "run needs a folder"),
        ("out", "", "out '': expected a string or a path that is not empty"),
        ("out", 3, "out 3"),
        ("text", "a\0b", "text 'a\\x00b'"),
        ("text", "x" * 10**6 + "\0", "..."),
        ("tasks", [""], "task ''"),
        ("out", "o\udcff", r"out 'o\udcff': is not UTF-8"),
        ("models", [Path("m\udcff")], r"model 'm\udcff': is not UTF-8"),
        ("protocols", [], "run needs a protocol"),
        ("lengths", [], "run needs a length"),
        ("lengths", [16.0], "length 16.0 must be a whole number of tokens"),
        ("lengths", 16.5, "length 16.5"),
        ("lengths", [True], "length True"),
        ("lengths", [0], "length 0 must be"),
        ("lengths", [np.int64(16), 16], "length 16 is given twice"),
        ("lengths", object(), "length <object"),
        ("documents", 0, "documents 0 must be at least 1"),
        ("documents", 2.0, "documents 2.0 must be a whole number"),
        ("documents", "2", "documents '2' must be"),
        ("documents", np.bool_(True), "documents "),
        ("max_tokens", 1, "max-tokens 1 must be at least 2"),
        ("seed", -1, "seed -1 must be at least 0"),
        ("keep_short", 1, "keep-short 1: expected True or False"),
        ("keep_short", "no", "keep-short 'no'"),
        ("bos", "always", "unknown bos 'always': available: never, document"),
        ("device", "mps", "unknown device 'mps': available: auto, cpu, cuda"),
        ("device", torch.device("mps"), "unknown device 'mps'"),
        ("device", torch.device("meta"), "unknown device 'meta'"),
        ("device", "cuda:1", "device cuda:1: one card cannot be chosen here; set CUDA_VISIBLE_DEVICES=1"),
        ("device", torch.device("cuda", 1), "set CUDA_VISIBLE_DEVICES=1"),
        ("device", 0, "unknown device '0'"),
        ("dtype", "int8", "unknown dtype 'int8'"),
        ("dtype", torch.int8, "unknown dtype 'int8'"),
        ("dtype", "float31", "did you mean 'float32'?"),
        ("attention", 3, "attention 3"),
        ("against", ["a"], "against ['a']"),
    ]  # fmt: skip
    for name, value, part in cases:
        with pytest.raises(UserError) as caught:
            asked(**{name: value})
        line = str(caught.value)
        assert part in line, (name, line)
        assert len(line) < 300
        assert "\n" not in line
    assert {field.name for field in fields(RunRequest)} == set(_READERS)


def test_lengths_as_they_are_written() -> None:
    assert parse_lengths("512,1024") == [512, 1024]
    assert parse_lengths("1k, 16K") == [1024, 16384]
    assert parse_lengths("512..16k") == [512 * 2**i for i in range(6)]
    assert parse_lengths("8,16..64,100") == [8, 16, 32, 64, 100]
    assert parse_lengths("7..7") == [7]
    for text, part in (
        ("512..1000", "doubling 512 never gives 1000"),
        ("16k..512", "doubling 16384 never gives 512"),
        ("8..16..32", "is not a length"),
        ("..16", "is not a length"),
        ("k", "'k' is not a length"),
        ("0k", "'0k' is not a length"),
        ("1.5k", "is not a length"),
        ("8,,16", "'' is not a length (in '8,,16')"),
        ("9" * 5000, "is not a length"),
        ("٣", "is not a length"),
    ):
        with pytest.raises(UserError, match=part.replace("(", r"\(").replace(")", r"\)")):
            parse_lengths(text)


def test_the_record_says_what_python_asked(
    models: dict[str, str], text: str, tmp_path: Path, invoke: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded command, run by a shell, goes on in the same run: it asks the same."""
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["/usr/lib/ipykernel_launcher.py", "-f", "kernel-1234.json"])
    kerple_eval.evaluate(
        [f"a={models['alibi']}", f"b={models['rope']}"], out=out, text=text, lengths=[16, 32],
        protocols=["prefix", "full-context"], keep_short=True, dtype=torch.bfloat16, max_tokens=100,
    )  # fmt: skip
    (session,) = open_run(out).provenance.sessions
    assert session.from_python is True
    assert "ipykernel" not in str(session)
    assert session.command[:2] == ("kerple-eval", "run")
    before = (out / "summary.csv").read_bytes()
    assert invoke(*session.command[1:]).exit_code == 0
    assert (out / "summary.csv").read_bytes() == before
    assert open_run(out).provenance.sessions[1].from_python is None


def test_the_record_marks_what_was_in_memory() -> None:
    def guess(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(ids, 256).float()

    run = kerple_eval.evaluate({"mine": guess}, tokens=[1, 2, 3] * 9, lengths=8)
    (session,) = run.provenance.sessions
    assert " ".join(session.command[2:]).startswith("mine=<")
    assert session.command[2].endswith("guess in memory>")
    assert session.command[3:7] == ("--tokens", "<in memory>", "--length", "8")
    assert session.from_python is True


def test_a_command_of_every_option_asks_the_same() -> None:
    """What a request says as a command is parsed by the command line to the same request."""
    request = asked(
        models=["zoo:rope", "b=zoo:alibi"], tasks=["sotu", "x"], text="a", tokens=["b", "c"],
        protocols=["prefix", "last:k=4"], lengths=[16, 8], documents=3, keep_short=True, max_tokens=9,
        seed=0, bos="never", device="cpu", dtype="float64", attention="eager", piece=64, precision="1%",
        against="b", divergence_from="b", retry=True,
    )  # fmt: skip
    words = request.command
    assert all(
        getattr(request, field.name) != field.default
        for field in fields(request)
        if field.name not in ("typed", "temporary", "in_memory", "values")  # which no command can name
    )
    command = cli.commands["run"]
    options = command.make_context("run", list(words[2:])).params
    assert not options.pop("dry_run")
    assert RunRequest.of(**options) == request


def test_reading_needs_no_torch_and_names_are_listed() -> None:
    program = (
        "import sys, kerple_eval\n"
        "kerple_eval.open_run, kerple_eval.evaluate, kerple_eval.UserError\n"
        "assert not {'torch', 'pandas', 'pyarrow', 'matplotlib'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert dir(kerple_eval) == sorted(kerple_eval.__all__)
    assert set(kerple_eval.__all__) == set(kerple_eval.api.__all__)
    assert all(hasattr(kerple_eval, name) for name in kerple_eval.__all__)
