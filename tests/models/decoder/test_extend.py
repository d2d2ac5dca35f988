"""What MODEL lays on a trained checkpoint: the same as a decoder built so, weights untouched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kerple_eval.cli.main import cli
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.records.run import open_run
from kerple_eval.types import UserError
from tests.helpers import tiny

TOKENS = torch.from_numpy(tiny.tokens(40, 256))[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints trained (in name) at 8 tokens."""
    place = tmp_path_factory.mktemp("trained")
    for scheme, changes in (
        ("rope", {"scheme_options": {"base": 500.0}}),
        ("kerple-log", {}),
        ("sinusoidal", {}),
    ):
        made = tiny.decoder(tiny.config(scheme, vocab_size=256, **changes), dtype=torch.float32)
        write_checkpoint(place / scheme, made, seed=1)
    made = tiny.decoder(
        tiny.config("rope", vocab_size=256, modifiers={"ssmax": {"start": 1.0}}), dtype=torch.float32
    )
    write_checkpoint(place / "rope-ssmax", made, seed=1)
    return place


def opened(folder: Path, text: str) -> NativeCheckpoint:
    made = open_model(parse_model(f"native:{folder}/{text}"))
    assert isinstance(made, NativeCheckpoint)
    return made


#: MODEL after the folder, and the configuration it comes to.
def replaced(scheme: str, **options: Any) -> dict[str, Any]:
    return {"scheme": scheme, "scheme_options": {"base": 500.0, **options}}


def changed_on(**modifiers: dict[str, Any]) -> dict[str, Any]:
    return {"modifiers": {name.replace("_", "-"): options for name, options in modifiers.items()}}


EXTENDED: list[tuple[str, dict[str, Any], str]] = [
    ("rope,extend=linear,factor=4", replaced("rope-linear", factor=4.0), "rope-linear"),
    ("rope,extend=rope-ntk,factor=4", replaced("rope-ntk", factor=4.0), "rope-ntk"),
    ("rope,extend=dynamic", replaced("rope-dynamic"), "rope-dynamic"),
    (
        "rope,extend=yarn,factor=8,beta_fast=16",
        replaced("rope-yarn", factor=8.0, beta_fast=16.0),
        "rope-yarn",
    ),
    (
        "rope,extend=yarn,factor=8,original=8,truncate=false,mscale=1,mscale_all_dim=0.5",
        replaced("rope-yarn", factor=8.0, original=8, truncate=False, mscale=1.0, mscale_all_dim=0.5),
        "rope-yarn",
    ),
    (
        "rope,extend=yarn,factor=8,self-extend=4,group=2",
        replaced("rope-yarn", factor=8.0) | changed_on(self_extend={"window": 4, "group": 2}),
        "rope-yarn,self-extend=4,group=2",
    ),
    ("rope,extend=llama3,factor=8", replaced("rope-llama3", factor=8.0), "rope-llama3"),
    (
        "rope,extend=longrope,factor=4,long=1/4",
        replaced("rope-longrope", factor=4.0, long="1/4"),
        "rope-longrope",
    ),
    (
        "rope,extend=yarn,factor=8,window=16",
        replaced("rope-yarn", factor=8.0) | changed_on(window={"width": 16}),
        "rope-yarn,window=16",
    ),
    ("rope,extend=theta", {"scheme": "theta", "scheme_options": {}}, "theta"),
    ("rope,extend=theta,theta=9e4", {"scheme": "theta", "scheme_options": {"theta": 9e4}}, "theta"),
    ("rope,extend=dca,chunk=6", changed_on(dca={"chunk": 6}), "rope,dca=6"),
    ("rope,string=7,local=3", changed_on(string={"shift": 7, "local": 3}), "rope,string=7,local=3"),
    ("rope,window=5", changed_on(window={"width": 5}), "rope,window=5"),
    ("rope,window=", changed_on(window={}), "rope,window"),
    (
        "rope,extend=self-extend,window=4,group=2",
        changed_on(self_extend={"window": 4, "group": 2}),
        "rope,self-extend=4,group=2",
    ),
    (
        "rope,extend=rerope,window=4,log-n=8",
        changed_on(rerope={"window": 4}, log_n={"original": 8}),
        "rope,rerope=4,log-n=8",
    ),
    (
        "rope,extend=streaming-sink,sinks=2",
        changed_on(streaming_sink={"sinks": 2}),
        "rope,streaming-sink,sinks=2",
    ),
    ("rope,extend=lm-infinite", changed_on(lm_infinite={}), "rope,lm-infinite"),
    ("kerple-log,window=5", changed_on(window={"width": 5}), "kerple-log,window=5"),
    ("kerple-log,rerope=4", changed_on(rerope={"window": 4}), "kerple-log,rerope=4"),
    ("sinusoidal,window=5", changed_on(window={"width": 5}), "sinusoidal,window=5"),
    (
        "rope-ssmax,window=5",
        changed_on(ssmax={"start": 1.0}, window={"width": 5}),
        "rope,ssmax=1.0,window=5",
    ),
]


@pytest.mark.parametrize(("text", "changes", "name"), EXTENDED, ids=[case[0] for case in EXTENDED])
def test_it_is_the_decoder_built_so(folder: Path, text: str, changes: dict[str, Any], name: str) -> None:
    plain = opened(folder, text.split(",", maxsplit=1)[0])
    changed = opened(folder, text)
    assert changed.description.scheme == name
    assert changed.description.weights_sha256 == plain.description.weights_sha256
    assert changed.description.parameters == plain.description.parameters
    assert changed.scheme_parameters() == plain.scheme_parameters()
    decoder, trained = changed.decoder(), plain.decoder()
    assert decoder.config == changed.config
    built = Decoder(replace(trained.config, **changes))
    own = dict(built.named_parameters())
    with torch.no_grad():
        for key, parameter in trained.named_parameters():
            place = key
            if key.startswith("scheme.") and key not in own:
                place = key.replace("scheme.", "scheme.base.")
            own[place].copy_(parameter)
        expected = built.head(built(TOKENS))
        assert torch.equal(decoder.head(decoder(TOKENS)), expected)
        moved = (trained.head(trained(TOKENS)) - expected).abs()
    assert float(moved.max()) > 1e-3


def test_dynamic_is_known_to_follow_the_window(folder: Path) -> None:
    assert opened(folder, "rope,extend=dynamic").description.prefix_invariant is False
    assert opened(folder, "rope,extend=longrope,factor=2").description.prefix_invariant is False
    assert opened(folder, "rope,extend=yarn,factor=2").description.prefix_invariant is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rope,extend=yarn", "extend=yarn needs factor=F, as in extend=yarn,factor=8"),
        ("rope,extend=yarn,factor=x", "rope-yarn: factor=x is not a float"),
        ("rope,extend=yarn,factor=0.5", "factor=0.5 must be at least 1"),
        ("rope,extend=yrn,factor=8", "unknown extension of rope 'yrn': did you mean 'yarn'"),
        ("rope,extend=yarn,factor=8,base=7", "base keeps the value the model was trained with; leave it out"),
        ("rope,extend=theta,base=7", "unknown option of theta 'base'"),
        ("rope,extend=theta,theta=1", "theta: theta=1.0 must be greater than 1"),
        ("rope,extend=yarn,factor=8,fator=7", "unknown modifier 'fator'|unknown option of"),
        ("rope,extend=alibi", "extend=alibi does not fit a model trained with rope; these do: linear"),
        ("kerple-log,extend=yarn,factor=8", "unknown extension of kerple-log 'yarn'"),
        ("kerple-log,extend=rope-yarn,factor=8", "does not fit a model trained with kerple-log; these do"),
        ("rope,extend=dynamic,rerope=4", "cannot be combined with a scheme that depends on the window"),
        ("sinusoidal,extend=rerope", "needs a scheme of relative position"),
        ("rope,ssmax=1", "ssmax has parameters: it is trained"),
        ("rope-ssmax,ssmax=50", "ssmax has parameters that were trained with its options"),
        ("rope,factor=8", "unknown option of a native checkpoint 'factor'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(folder, text)
    assert "\n" not in str(caught.value)


def test_an_extended_checkpoint_is_converted_and_read_back(folder: Path, tmp_path: Path) -> None:
    for text in ("rope,extend=yarn,factor=8", "kerple-log,window=5"):
        out = tmp_path / text.split(",", maxsplit=1)[0]
        done = CliRunner().invoke(cli, ["convert", f"native:{folder}/{text}", str(out)])
        assert done.exit_code == 0, done.output
        first, again = opened(folder, text).decoder(), open_model(parse_model(str(out))).decoder()
        with torch.no_grad():
            assert torch.equal(first.head(first(TOKENS)), again.head(again(TOKENS)))


def test_the_shipped_model_is_extended_by_the_command(tmp_path: Path) -> None:
    """``zoo:rope`` past its 512 tokens: YaRN keeps the perplexity that plain RoPE loses; and a copy of it."""
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog lay down by the door. " * 60)
    changed = "zoo:rope,extend=yarn,factor=8"
    done = CliRunner().invoke(cli, ["convert", changed, str(tmp_path / "copy")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(cli, ["inspect", changed], catch_exceptions=False)
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (facts["scheme"], facts["prefix-invariant"]) == ("rope-yarn", "yes")
    words = [
        "run", "plain=zoo:rope", f"yarn={changed}", f"copy={tmp_path / 'copy'}", "--text",
        str(tmp_path / "text.txt"), "--length", "2048", "--max-tokens", "2049", "--device", "cpu",
        "--dtype", "float32", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    nll = open_run(tmp_path / "run").summary().set_index("model")["nll"]
    assert nll["yarn"] < 0.7 * nll["plain"]
    assert nll["copy"] == nll["yarn"]
    done = CliRunner().invoke(cli, ["inspect", "zoo:rope,extend=yarn"])
    assert done.exit_code == 2
    assert done.stderr == "error: extend=yarn needs factor=F, as in extend=yarn,factor=8\n"


def test_runs_at_eight_times_its_length(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A line of text, and another one. " * 20)
    texts = ["rope", *(text for text, _, _ in EXTENDED[:7])]
    models = [f"m{n}=native:{folder}/{text}" for n, text in enumerate(texts)]  # the paths are long as labels
    words = [
        "run", *models, "--text", str(tmp_path / "text.txt"), "--length", "8,64", "--protocol", "prefix",
        "--max-tokens", "200", "--device", "cpu", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    summary = open_run(tmp_path / "run").summary()
    assert set(summary["status"]) == {"ok"}
    assert summary[summary["length"] == 64]["nll"].nunique() == len(models)
    again = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert again.exit_code == 0
    words[words.index(models[4])] = models[4].replace("factor=8", "factor=4")
    other = CliRunner().invoke(cli, words)
    assert other.exit_code == 2  # another specification
