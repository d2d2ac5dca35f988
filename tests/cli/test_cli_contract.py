"""The command line as the design's contract states it: commands, columns, exit statuses, light imports."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kerple_eval.cli.main import cli
from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.protocols.catalogue import PROTOCOLS
from kerple_eval.reports.catalogue import REPORTS
from kerple_eval.schemes.catalogue import SCHEMES
from tests.helpers.command import Cli, imported, make_model, refusal, rows

# shared design, "The contract", word for word.
COLUMNS = (
    "model,scheme,seed,train_length,task,protocol,length,documents,windows,targets,targets_hash,"
    "nll,ppl,bits_per_byte,dtype,device,status,error"
)
COMMANDS = {
    "run", "table", "answers", "longppl", "merge", "export", "compare", "intervals", "plot", "explain",
    "reach", "report", "train", "inspect", "convert", "list", "demo",
}  # fmt: skip
LISTS = ("models", "tasks", "schemes", "protocols", "formats", "reports")
CONSOLE = str(Path(sys.executable).parent / "kerple-eval")


@pytest.fixture(scope="module")
def finished(models: dict[str, str], text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made through the installed console command: two models, three protocols, two lengths."""
    out = tmp_path_factory.mktemp("contract") / "run"
    words = [
        "run",
        models["alibi"],
        f"mine={models['rope']}",
        "--text",
        text,
        "--length",
        "32,16",
        "--out",
        str(out),
    ]
    for protocol in ("full-context", "sliding-window: stride = 08", "aligned:every=48,k=4"):
        words += ["--protocol", protocol]
    done = subprocess.run([CONSOLE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "alibi" in done.stdout
    assert "12 cells in" in done.stdout
    return out


def test_every_command_of_the_contract(invoke: Cli) -> None:
    assert set(cli.commands) == COMMANDS
    for command in COMMANDS:
        done = invoke(command, "--help")
        assert done.exit_code == 0
        assert done.stdout.startswith("Usage: ")
    options = {option for parameter in cli.commands["run"].params for option in parameter.opts}
    assert options >= {
        "--task", "--protocol", "--length", "--out", "--text", "--tokens", "--documents", "--keep-short",
        "--max-tokens", "--seed", "--device", "--dtype",
    }  # fmt: skip
    defaults = {parameter.name: parameter.default for parameter in cli.commands["run"].params}
    assert defaults["protocols"] == ("full-context",)
    assert defaults["lengths"] == ("512,1024,2048,4096,8192,16384",)


def test_summary_csv(finished: Path) -> None:
    raw = (finished / "summary.csv").read_text()
    assert raw.splitlines()[0] == COLUMNS
    assert "\r" not in raw
    table = rows(finished)
    canonical = ["full-context", "sliding-window:stride=8", "aligned:k=4,every=48"]
    assert [(r["model"], r["protocol"], r["length"]) for r in table] == [
        (model, protocol, length)
        for model in ("alibi", "mine")
        for protocol in canonical
        for length in ("16", "32")
    ]
    for row in table:
        assert row["scheme"] == {"alibi": "alibi", "mine": "rope"}[row["model"]]
        assert row["seed"] == {"alibi": "0", "mine": "1"}[row["model"]]
        assert (row["train_length"], row["task"], row["documents"]) == ("16", "text", "1")
        assert (row["dtype"], row["device"], row["status"], row["error"]) == ("float32", "cpu", "ok", "")
        assert float(row["nll"]) > 0
        assert repr(float(row["nll"])) == row["nll"]
    # 137 bytes: targets 1..136; aligned ends at e = 32, 80, 128.
    assert {r["targets"] for r in table if r["protocol"] != canonical[2]} == {"136"}
    assert {(r["windows"], r["targets"]) for r in table if r["protocol"] == canonical[2]} == {("3", "12")}
    assert [r["windows"] for r in table[:2]] == ["9", "5"]


def test_run_directory(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()} - {".lock"}
    assert names == {"run.json", "cells", "summary.csv"}
    cells = list((finished / "cells").iterdir())
    assert len(cells) == 12
    assert {p.suffix for p in cells} == {".parquet"}
    record = json.loads((finished / "run.json").read_text())
    session = record["provenance"]["sessions"][0]
    assert session["command"][1] == "run"
    assert {"torch", "python", "platform", "threads"} <= set(session)


def test_reading_commands(finished: Path, invoke: Cli, tmp_path: Path) -> None:
    for style in ("text", "markdown", "latex", "csv"):
        done = invoke("table", str(finished), "--format", style)
        assert done.exit_code == 0
        assert "mine" in done.stdout
    for kind in ("curve", "position"):
        out = tmp_path / f"{kind}.png"
        assert invoke("plot", str(finished), "--kind", kind, "--out", str(out)).exit_code == 0
        assert out.read_bytes().startswith(b"\x89PNG")
    for kind in ("ratio", "scatter"):
        out = tmp_path / f"{kind}.pdf"
        words = ["plot", str(finished), "--kind", kind, "--against", "mine", "--out", str(out)]
        assert invoke(*words).exit_code == 0
        assert out.read_bytes().startswith(b"%PDF-")
    page = tmp_path / "page.md"
    assert invoke("report", str(finished), "--out", str(page)).exit_code == 0
    for word in ("mine", "page-curve.png", "page-position.png", "kerple-eval run", "sha256"):
        assert word in page.read_text()
    page = tmp_path / "page.html"
    done = invoke("report", str(finished), "--out", str(page), "--against", "mine")
    assert (done.exit_code, done.stdout) == (0, f"{page}\n")
    models = json.loads((finished / "run.json").read_text())["specification"]["models"]
    digests = [model["weights_sha256"] for model in models]
    for word in ("Against mine", "kerple-eval run", *digests):
        assert word in page.read_text()


def test_report_where_no_contexts_vary(
    models: dict[str, str], text: str, invoke: Cli, tmp_path: Path
) -> None:
    words = ["run", models["nope"], "--text", text, "--length", "16,32", "--protocol", "aligned:k=4"]
    assert invoke(*words, "--out", str(tmp_path / "run")).exit_code == 0
    assert invoke("report", str(tmp_path / "run")).exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "perplexity against length" in page
    assert "No finished cell&#x27;s contexts vary." in page


def test_inspect(models: dict[str, str], invoke: Cli) -> None:
    done = invoke("inspect", models["kerple-log"])
    assert done.exit_code == 0
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert facts["scheme"] == "kerple-log"
    assert facts["tokeniser"] == "bytes"
    assert "scheme.r1" in facts


@pytest.mark.parametrize("what", LISTS)
def test_list_has_the_name_first(what: str, invoke: Cli) -> None:
    done = invoke("list", what)
    assert done.exit_code == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    expected = {
        "schemes": set(SCHEMES),
        "protocols": set(PROTOCOLS),
        "formats": set(CHECKPOINT_FORMATS),
        "reports": set(REPORTS),
        "tasks": {path.stem for path in (Path(__file__).parents[2] / "tasks").glob("*.yaml")},
    }  # fmt: skip
    assert {"sotu", "python-stdlib", "pg19", "proof-pile", "wikitext-103"} <= expected["tasks"]
    if what == "models":
        assert all(name.startswith("zoo:") for name in names)
    else:
        assert set(names) == expected[what]
    assert len(names) == len(set(names))


def test_exit_status_1_where_a_cell_failed(
    models: dict[str, str], text: str, invoke: Cli, tmp_path: Path
) -> None:
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    from tests.helpers.tiny import rewrite  # noqa: PLC0415

    broken = make_model(tmp_path / "broken", "alibi")
    state = load_file(broken / "model.safetensors")
    state["norm.weight"][3] = torch.nan
    rewrite(broken, state)
    out = tmp_path / "run"
    done = invoke(
        "run", f"native:{broken}", models["rope"], "--text", text, "--length", "16", "--out", str(out)
    )
    assert done.exit_code == 1
    assert "failed" in done.stdout
    bad, good = rows(out)
    assert (bad["status"], good["status"]) == ("failed", "ok")
    assert "nan" in bad["error"]
    empty = ("documents", "windows", "targets", "targets_hash", "nll", "ppl", "bits_per_byte")
    assert [bad[column] for column in empty] == [""] * 7
    assert float(good["nll"]) > 0


def test_status_2_through_the_module(models: dict[str, str]) -> None:
    words = [
        sys.executable,
        "-m",
        "kerple_eval",
        "run",
        models["alibi"],
        "--text",
        "nowhere.txt",
        "--out",
        "never",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere.txt" in done.stderr


def test_listing_imports_neither_torch_nor_pandas() -> None:
    found = imported("list", "schemes")
    assert "kerple_eval" in found
    assert not found & {"torch", "pandas", "pyarrow", "matplotlib", "numpy"}


def test_table_imports_neither_torch_nor_pandas(finished: Path) -> None:
    found = imported("table", str(finished))
    assert "kerple_eval" in found
    assert not found & {"torch", "pandas", "pyarrow", "matplotlib"}


def test_a_run_imports_no_pandas(models: dict[str, str], text: str, tmp_path: Path) -> None:
    """pyarrow's own conversions do: a fifth of the time until the first window is scored."""
    found = imported("run", models["rope"], "--text", text, "--length", "8", "--out", str(tmp_path / "run"))
    assert {"torch", "pyarrow"} <= found
    assert not found & {"pandas", "scipy", "matplotlib", "datasets", "transformers"}


def test_version_and_help(invoke: Cli) -> None:
    assert invoke("--version").stdout.startswith("kerple-eval")
    alone = invoke()
    assert alone.exit_code == 2
    assert "Score models:" in alone.output


def test_help_is_whole(invoke: Cli) -> None:
    """Every command stands in one section and uncut; each has an example that its own parser takes."""
    lines = invoke("--help").stdout.splitlines()
    for name, command in cli.commands.items():
        assert sum(line.split()[:1] == [name] for line in lines) == 1, name
        assert any(line.endswith(f" {command.short_help}") for line in lines), name
        help_text = invoke(name, "--help").stdout
        (example,) = (line for line in help_text.splitlines() if line.startswith(f"    kerple-eval {name}"))
        command.make_context(name, shlex.split(example)[2:])
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (name, option.name)
    shown = [line for line in lines if line.startswith("    kerple-eval")]
    assert len(shown) == 3
    for example in shown:
        words = shlex.split(example)[1:]
        cli.commands[words[0]].make_context(words[0], words[1:])


def test_list_says_what_can_be_listed(invoke: Cli) -> None:
    assert [line.split()[0] for line in invoke("list").stdout.splitlines()] == list(LISTS)


def test_lengths_of_other_commands(invoke: Cli) -> None:
    assert (
        cli.commands["train"]
        .make_context("train", ["--scheme", "alibi", "--length", "2k", "--out", "o"])
        .params["length"]
        == 2048
    )
    line = refusal(invoke("train", "--scheme", "alibi", "--text", "x", "--out", "o", "--length", "long"))
    assert "'long' is not a number of tokens, as 512 or 16k" in line
    assert "1 is not in the range" in refusal(
        invoke("train", "--scheme", "alibi", "--text", "x", "--out", "o", "--length", "1")
    )


def test_train_inspect_run_table(text: str, invoke: Cli, tmp_path: Path) -> None:
    """From a text to a table by commands alone."""
    shape = ["--layers", "1", "--width", "8", "--heads", "2", "--batch", "2", "--steps", "2", "--warmup", "1"]
    for scheme in ("alibi", "t5:buckets=8,max_distance=16"):
        out = str(tmp_path / scheme[:2])
        words = [
            "train",
            "--scheme",
            scheme,
            "--text",
            text,
            "--length",
            "8",
            "--seed",
            "4",
            "--out",
            out,
            *shape,
        ]
        done = invoke(*words)
        assert done.exit_code == 0, done.output
        assert "bits per byte at 8" in done.stdout
        assert "4" in invoke("inspect", out).stdout
    models = [str(tmp_path / "al"), str(tmp_path / "t5")]
    out = str(tmp_path / "run")
    done = invoke("run", *models, "--text", text, "--length", "8,16", "--out", out)
    assert done.exit_code == 0
    assert [(r["scheme"], r["seed"], r["train_length"]) for r in rows(tmp_path / "run")] == [
        *[("alibi", "4", "8")] * 2,
        *[("t5", "4", "8")] * 2,
    ]
    assert invoke("table", out).stdout in done.stdout


def test_ctrl_c_while_torch_is_imported() -> None:
    program = (
        "import os, signal, time\n"
        "from kerple_eval.support.interrupts import exit_on_interrupt\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "with exit_on_interrupt():\n    pass\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "with exit_on_interrupt():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.split("\n") == ["", "stopped; the same command continues", ""]
