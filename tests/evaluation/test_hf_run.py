"""``kerple-eval run hf:DIR`` from end to end, and what ``inspect`` says of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from kerple_eval.records.run import open_run
from kerple_eval.types import Window
from tests.helpers import hf_folders as folders
from tests.helpers.command import Cli, refusal, rows


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("llama"), folders.model("llama"))


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    path = tmp_path / "ids.jsonl"
    lines = [json.dumps({"tokens": document.tolist()}) for document in folders.documents()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_run(llama: Path, tokens: str, invoke: Cli, tmp_path: Path) -> None:
    models = [f"plain=hf:{llama}", f"longer=hf:{llama},rope=dynamic,factor=4"]
    words = [
        "--tokens",
        tokens,
        "--length",
        "16,32,60",
        "--protocol",
        "prefix",
        "--out",
        str(tmp_path / "run"),
    ]
    done = invoke("run", *models, *words)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    table = rows(tmp_path / "run")
    made = folders.model("llama")
    for row in table[:3]:
        window = Window(0, int(row["length"]), 1)
        expected = np.concatenate([folders.expected(made, d, window) for d in folders.documents()])
        assert (row["model"], row["scheme"], row["train_length"]) == ("plain", "rope", "32")
        assert float(row["nll"]) == pytest.approx(expected.mean(), abs=1e-6)
        assert float(row["ppl"]) == pytest.approx(math.exp(expected.mean()), rel=1e-5)
    assert [row["nll"] for row in table[3:5]] == [row["nll"] for row in table[:2]]
    assert table[5]["nll"] != table[2]["nll"]
    assert {row["scheme"] for row in table[3:]} == {"rope-dynamic"}
    run = open_run(tmp_path / "run")
    sources = {(c.key.model, c.key.length): c.header.losses_from for c in run.cells() if hasattr(c, "header")}
    assert sources["plain", 16] == "prefix of 60"
    assert sources["longer", 16] == "forward pass"
    assert run.specification.models[1].other["extension"] == {"rope": "dynamic", "factor": 4.0}


def test_inspect(llama: Path, invoke: Cli) -> None:
    done = invoke("inspect", f"hf:{llama},rope=yarn,factor=4")
    assert done.exit_code == 0, done.output
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (facts["format"], facts["scheme"], facts["architecture"]) == (
        "hf",
        "rope-yarn",
        "LlamaForCausalLM",
    )
    assert facts["rope_parameters.factor"] == "4.0"


def test_a_length_beyond_learned_positions(tokens: str, invoke: Cli, tmp_path: Path) -> None:
    place = folders.save(tmp_path / "gpt2", folders.model("gpt2"))
    words = ["--tokens", tokens, "--length", "65", "--out", str(tmp_path / "run")]
    assert "end at 64" in refusal(invoke("run", str(place), *words))
    assert not (tmp_path / "run").exists()


def test_text_without_a_tokeniser(llama: Path, text: str, invoke: Cli, tmp_path: Path) -> None:
    line = refusal(invoke("run", str(llama), "--text", text, "--length", "8", "--out", str(tmp_path / "run")))
    assert "no tokeniser" in line
    assert "--tokens" in line


def test_an_extended_row(llama: Path, tokens: str, invoke: Cli, tmp_path: Path) -> None:
    models = [f"plain=hf:{llama}", f"se=hf:{llama},extend=self-extend,window=8,group=4"]
    words = ["--tokens", tokens, "--length", "8,60", "--out", str(tmp_path / "run")]
    done = invoke("run", *models, *words)
    assert done.exit_code == 0, done.output
    table = {(row["model"], row["length"]): row for row in rows(tmp_path / "run")}
    assert table["se", "60"]["scheme"] == "rope,self-extend=8,group=4"
    assert float(table["se", "8"]["nll"]) == pytest.approx(float(table["plain", "8"]["nll"]), abs=1e-5)
    assert abs(float(table["se", "60"]["nll"]) - float(table["plain", "60"]["nll"])) > 1e-3
    shown = invoke("inspect", f"hf:{llama},extend=self-extend,window=8,group=4").stdout
    assert "rope,self-extend=8,group=4" in shown
    assert any(line.split() == ["modifiers.self-extend.group", "4"] for line in shown.splitlines())


def test_an_attention_that_is_not_known_is_refused_before_the_run(
    tokens: str, invoke: Cli, tmp_path: Path
) -> None:
    config = folders.transformers.HunYuanDenseV1Config(**folders.sized(head_dim=8))
    place = folders.save(tmp_path / "hunyuan", folders.model(config))
    out = tmp_path / "run"
    message = refusal(
        invoke(
            "run", f"hf:{place},extend=self-extend", "--tokens", tokens, "--length", "16", "--out", str(out)
        )
    )
    assert "HunYuanDenseV1ForCausalLM cannot be extended by other attention" in message
    assert not (out / "run.json").exists()
