"""Training on from a checkpoint: extended, longer, killed and resumed; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kerple_eval.cli.main import cli
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.models.training import train as training
from kerple_eval.models.training.start import Start, start_from
from kerple_eval.models.training.train import train
from kerple_eval.types import UserError
from tests.helpers import tiny
from tests.helpers.cases import each_case
from tests.helpers.trainings import RECORD, Killed, corpus, kill_at, recipe

TOKENS = torch.from_numpy(tiny.tokens(24, 256))[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    schemes = ("rope", "kerple-log", "learned")
    for scheme in schemes:
        options = {"scheme_options": {"positions": 8}} if scheme == "learned" else {}
        made = tiny.decoder(tiny.config(scheme, vocab_size=256, **options), dtype=torch.float32)
        write_checkpoint(place / scheme, made, seed=4)
    made = tiny.decoder(tiny.config("rope", vocab_size=300), dtype=torch.float32)
    write_checkpoint(place / "bare", made, seed=4, tokenizer=None)
    return place


def begun(folder: Path, name: str, extend: str | None, length: int = 16) -> Start:
    return start_from(f"native:{folder / name}", extend, length, 1, None)


def logits(decoder: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = decoder.eval().head(decoder(TOKENS))
    return out


@each_case(
    ("name", "extend", "model"),
    [
        ("rope", "yarn,factor=4", "rope,extend=yarn,factor=4"),
        ("rope", "linear,factor=2,window=6", "rope,extend=linear,factor=2,window=6"),
        ("rope", "self-extend", "rope,extend=self-extend"),
        ("kerple-log", "window=5", "kerple-log,window=5"),
        ("kerple-log", None, "kerple-log"),
    ],
)
def test_it_begins_as_the_extended_model(folder: Path, name: str, extend: str | None, model: str) -> None:
    """The same function as MODEL with those options: a longer trained length changes no option's default."""
    from kerple_eval.models.open import open_model, parse_model  # noqa: PLC0415

    start = begun(folder, name, extend)
    expected = open_model(parse_model(f"native:{folder}/{model}")).decoder()
    assert torch.equal(logits(start.decoder), logits(expected))
    assert start.decoder.config.train_length == 16
    kept = {"yarn,factor=4": 8, "self-extend": 8}.get(extend or "", 0)
    assert start.decoder.config.original_length == kept
    assert start.decoder.config.geometry.train_length == (kept or 16)


def test_what_is_added_gets_initial_values(folder: Path) -> None:
    start = begun(folder, "rope", "sink,gate=head,pose=32", 8)
    again = begun(folder, "rope", "sink,gate=head,pose=32", 8)
    assert start.decoder.config.scheme_name == "rope,sink,gate=head,pose=32"
    for first, second in zip(start.decoder.parameters(), again.decoder.parameters(), strict=True):
        assert torch.equal(first, second)
    assert len(list(start.decoder.scheme.parameters())) == 4  # a sink and a gate in each of two layers


def test_rope_is_dropped(folder: Path) -> None:
    assert begun(folder, "rope", "nope").decoder.config.scheme == "nope"


@pytest.mark.parametrize("extend", ["yarn,factor=2", "linear,factor=2,pose=16", "nope,sink"])
def test_a_killed_run_ends_with_the_same_weights(
    extend: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed during a step after a save, started again: to the bit, as a new model's training is."""

    def go(out: Path, **options: Any) -> dict[str, Any]:
        start = begun(folder, "rope", extend, 8)
        made = replace(recipe("rope"), model=start.decoder.config, start=start.record["weights_sha256"])
        record = {**RECORD, "from": start.record}
        return train(made, corpus(), out, start=start.decoder, record=record, reports=4, **options)

    whole = go(tmp_path / "whole")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    for stop in (2, 5):
        with pytest.raises(Killed):
            go(tmp_path / "killed", on_step=kill_at(stop))
    resumed = go(tmp_path / "killed")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert resumed["held_out"] == whole["held_out"]
    assert weights[0] != (folder / "rope" / "model.safetensors").read_bytes()
    card = (tmp_path / "killed" / "README.md").read_text()
    assert f"extended by `{extend}`" in card
    assert "The order of the text is drawn anew from seed 1; AdamW begins without moments" in card
    with pytest.raises(Killed):
        go(tmp_path / "other", on_step=kill_at(2))
    start = begun(folder, "rope", extend, 8)
    made = replace(recipe("rope"), model=start.decoder.config, start="another")
    with pytest.raises(UserError, match=r"holds another training: recipe\.start"):
        train(made, corpus(), tmp_path / "other", start=start.decoder)


def test_a_step_begins_from_the_trained_weights(folder: Path, tmp_path: Path) -> None:
    """Its first loss is the trained model's, not a new one's."""
    losses: list[float] = []
    start = begun(folder, "rope", None, 8)
    batch = training.PackedBatches(corpus(), 8, 2, 1)(0)
    expected = NativeCheckpoint(folder / "rope").decoder()
    with torch.no_grad():
        tokens = torch.from_numpy(batch)
        out = expected.head(expected(tokens[:, :-1]))
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten())
    made = replace(recipe("rope"), model=start.decoder.config, steps=1)
    train(made, corpus(), tmp_path / "one", start=start.decoder, on_step=lambda _, x: losses.append(x))
    assert losses == [pytest.approx(float(loss), abs=1e-6)]


def command(tmp_path: Path, *words: str, status: int = 2) -> str:
    text = tmp_path / "text.txt"
    text.write_text("abcabdabe" * 60)
    base = ["train", "--text", str(text), "--length", "16", "--steps", "2", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*base, *words])
    assert done.exit_code == status, done.output
    return done.output


def test_the_command(folder: Path, tmp_path: Path) -> None:
    command(tmp_path, "--from", str(folder / "rope"), "--extend", "yarn,factor=2", status=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model"]["original_length"] == 8
    assert config["training"]["from"]["extend"] == "yarn,factor=2"
    assert config["training"]["from"]["train_length"] == 8
    made = NativeCheckpoint(tmp_path / "out")
    assert (made.description.scheme, made.description.train_length) == ("rope-yarn", 16)
    made.decoder()


@each_case(
    ("words", "message"),
    [
        ((), "train needs either --scheme SCHEME, for a new model, or --from MODEL"),
        (("--scheme", "rope", "--from", "DIR/rope"), "train needs either --scheme SCHEME"),
        (("--scheme", "rope", "--extend", "yarn,factor=2"), "it goes with --from MODEL"),
        (("--from", "DIR/rope", "--width", "64"), "--width is a size of a new model; --from "),
        (("--from", "DIR/rope", "--tie-embeddings"), "--tie-embeddings is a size of a new model"),
        (("--from", "DIR/rope", "--extend", "yarn"), "extend=yarn needs factor=F"),
        (("--from", "DIR/rope", "--extend", ""), "expected key=value"),
        (("--from", "DIR/rope", "--extend", "yrn,factor=2"), "unknown extension of rope 'yrn'"),
        (("--from", "DIR/rope", "--extend", "pose=7"), "longest=7 is less than the trained length, 8"),
        (("--from", "DIR/rope", "--extend", "pose=9"), "pose: longest=9 is less than the trained length, 16"),
        (("--from", "DIR/kerple-log", "--extend", "nope"), "extend=nope does not fit a model trained with"),
        (("--from", "DIR/learned"), "learned has 8 positions: too few for 16 tokens"),
        (("--from", "DIR/bare"), "has no tokeniser; give its own by --tokenizer FILE"),
        (("--from", "DIR/bare", "--tokenizer", "JSON"), "ids, the vocabulary of DIR/bare 300"),
        (("--from", "DIR/rope", "--tokenizer", "JSON"), "its vocabulary is another; leave --tokenizer out"),
        (("--from", "DIR/none"), "DIR/none"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: tuple[str, ...], message: str, folder: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models  # noqa: PLC0415

    own = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<|endoftext|>"))
    own.save(str(tmp_path / "tokenizer.json"))
    made = [
        word.replace("DIR", str(folder)).replace("JSON", str(tmp_path / "tokenizer.json")) for word in words
    ]
    out = command(tmp_path, *made)
    assert message.replace("DIR", str(folder)) in out
    assert out.count("\n") == 1
    assert not (tmp_path / "out").exists()
