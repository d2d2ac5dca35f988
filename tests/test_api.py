"""What a script or notebook calls, with values in place of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import kerple_eval
from kerple_eval.types import UserError

V = 256
TEXT = "The quick brown fox jumps over the lazy dog, and résumés of seven wizards follow. " * 2


class Bigram(nn.Module):
    """Logits that depend on the last byte alone."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(V, V, generator=torch.Generator().manual_seed(seed)))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids]


def by_hand(model: Bigram, text: str) -> np.ndarray:
    """Losses of every target, in float64."""
    ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(int)
    table = model.table.detach().double().numpy()
    rows = table[ids[:-1]]
    return np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), ids[1:]]


def test_score_gives_one_row_a_target() -> None:
    model = Bigram()
    frame = kerple_eval.score(model, TEXT, length=32, tokenizer="bytes")
    assert list(frame.columns) == ["document", "position", "context", "loss"]
    np.testing.assert_allclose(frame["loss"], by_hand(model, TEXT), rtol=0, atol=1e-6)
    assert frame["position"].tolist() == list(range(1, len(TEXT.encode())))
    assert frame["context"].tolist()[:34] == [*range(1, 33), 1, 2]
    assert set(frame["document"]) == {"text:1"}


def test_score_takes_one_cell() -> None:
    for wrong in ({"length": "8,16"}, {"length": [8, 16]}, {"length": 8, "protocol": ["prefix", "last:k=2"]}):
        with pytest.raises(UserError, match="score takes one length and one protocol"):
            kerple_eval.score(Bigram(), TEXT, tokenizer="bytes", **wrong)


def test_text_and_ids_in_every_form_give_the_same_losses(tmp_path: Path) -> None:
    model = Bigram()
    ids = list(TEXT.encode())
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    datasets = pytest.importorskip("datasets")
    forms: list[Any] = [
        TEXT, [TEXT], path, datasets.Dataset.from_dict({"text": [TEXT]}),
        ids, [ids], np.array(ids), np.array([ids], dtype=np.int32), torch.tensor(ids), [torch.tensor(ids)],
    ]  # fmt: skip
    expected = by_hand(model, TEXT)
    for form in forms:
        frame = kerple_eval.score(
            model, form, length=64, protocol="sliding-window:stride=16", tokenizer="bytes"
        )
        np.testing.assert_allclose(frame["loss"], expected, rtol=0, atol=1e-6, err_msg=repr(type(form)))


def test_evaluate_models_in_memory_beside_a_checkpoint(tmp_path: Path) -> None:
    models = {"mine": Bigram(), "other": Bigram(1), "alibi": "zoo:alibi"}
    options: dict[str, Any] = {"tokenizer": "bytes", "text": TEXT, "lengths": [16, 32], "keep_short": True}
    run = kerple_eval.evaluate(models, out=tmp_path / "run", **options)
    summary = run.summary().set_index(["model", "length"])
    for label in ("mine", "other"):
        for length in (16, 32):
            assert summary.loc[(label, length), "nll"] == pytest.approx(
                by_hand(models[label], TEXT).mean(), abs=1e-6
            )
    assert summary["targets_hash"].nunique() == 1
    assert pd.isna(summary.loc[("mine", 16), "train_length"])
    # The record resumes: another call with the same state computes nothing, another state is refused.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").iterdir()}
    kerple_eval.evaluate({**models, "mine": Bigram()}, out=tmp_path / "run", **options)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").iterdir()}
    with pytest.raises(UserError, match="another specification"):
        kerple_eval.evaluate({**models, "mine": Bigram(7)}, out=tmp_path / "run", **options)


def test_without_out_the_run_lives_as_long_as_its_object() -> None:
    run = kerple_eval.evaluate({"mine": Bigram()}, tokenizer="bytes", text=TEXT, lengths=16)
    folder = run.folder
    assert len(run.losses()) == len(TEXT.encode()) - 1
    assert folder.exists()
    del run
    assert not folder.exists()


def test_a_function_needs_a_name_only_where_the_run_is_kept(tmp_path: Path) -> None:
    function = Bigram().forward
    options: dict[str, Any] = {"tokenizer": "bytes", "text": TEXT, "lengths": 16}
    kerple_eval.evaluate({"f": function}, **options)
    with pytest.raises(UserError, match="identity="):
        kerple_eval.evaluate({"f": function}, out=tmp_path / "run", **options)
    named = kerple_eval.from_module(function, identity="bigram-v1", scheme="none", train_length=8)
    run = kerple_eval.evaluate({"f": named}, out=tmp_path / "run", **options)
    (row,) = run.summary().to_dict("records")
    assert (row["scheme"], row["train_length"]) == ("none", 8)


def test_a_string_that_names_a_file_is_refused_with_both_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT)
    with pytest.raises(UserError, match=r"Path\('book.txt'\) .* 'book.txt\\n'"):
        kerple_eval.score(Bigram(), "book.txt", length=8, tokenizer="bytes")
    frame = kerple_eval.score(Bigram(), "book.txt\n", length=8, tokenizer="bytes")
    assert len(frame) == len("book.txt")


class Text:
    pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": Bigram()}, "with a label for its row"),
        ({"models": [Bigram()]}, "with a label for its row"),
        ({"models": 3}, "with a label for its row, .* got int"),
        ({"models": None}, "got NoneType"),
        ({"models": b"zoo:alibi"}, "got bytes"),
        ({"models": {"x": 3}}, "must be a torch.nn.Module"),
        ({"models": {"": Bigram()}}, "a label is a word"),
        ({"tokenizer": None}, "has no tokeniser"),
        ({"tokenizer": "gpt2"}, "the only tokeniser known by name is 'bytes'"),
        ({"tokenizer": Text()}, "expected one of transformers or tokenizers"),
        ({"text": Text()}, "expected a string, a Path"),
        ({"text": [3]}, "expected a string, a Path or a datasets.Dataset, got int"),
        ({"text": ""}, "document 1 is empty"),
        ({"text": (), "tokens": [0.5]}, "ids must be whole numbers"),
        ({"text": (), "tokens": [-1, 2]}, "id -1 is below 0"),
        ({"text": (), "tokens": [5, 999]}, "beyond the vocabulary of model mine"),
        ({"text": ()}, "run needs text"),
        ({"device": "cuda:7"}, "device"),
        ({"dtype": "float16"}, "is in memory in torch.float32"),
        ({"attention": "eager"}, "computes attention by its own code"),
    ],
)
def test_what_is_wrong_is_one_line(changes: dict[str, Any], message: str) -> None:
    options = {
        "models": {"mine": Bigram()},
        "tokenizer": "bytes",
        "text": TEXT,
        "lengths": [2],
        "keep_short": True,
    }
    with pytest.raises(UserError, match=message) as caught:
        kerple_eval.evaluate(**(options | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[TEXT, TEXT[::-1], "more text"], [7, 9, 11, 13]], ids=["text", "ids"])
def test_a_generator_loses_nothing(values: list[Any]) -> None:
    """It is looked into, text or ids, before it is read."""
    options: dict[str, Any] = {"length": 4, "keep_short": True, "tokenizer": "bytes"}
    whole = kerple_eval.score(Bigram(), values, **options)
    assert kerple_eval.score(Bigram(), (value for value in values), **options).equals(whole)


def test_a_data_set_says_which_columns_it_has() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"body": [TEXT], "label": [3]})
    frame = kerple_eval.score(Bigram(), rows, length=8, tokenizer="bytes", column="body")
    assert len(frame) == len(TEXT.encode()) - 1
    with pytest.raises(UserError, match="no column 'text'; it has body, label"):
        kerple_eval.score(Bigram(), rows, length=8, tokenizer="bytes")
    with pytest.raises(UserError, match="row 0 of column 'label' is int"):
        kerple_eval.score(Bigram(), rows, length=8, tokenizer="bytes", column="label")


def test_dir_lists_the_public_names() -> None:
    assert set(kerple_eval.__all__) <= set(dir(kerple_eval))
    for name in kerple_eval.__all__:
        assert getattr(kerple_eval, name) is not None


def test_a_transformers_model_is_scored_by_its_own_forward() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=64, attention_dropout=0.5,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).train()
    ids = torch.tensor(list(TEXT.encode()))[:40]
    frame = kerple_eval.score(model, ids, length=39)
    assert model.training
    with torch.no_grad():
        logits = model.eval()(input_ids=ids[None]).logits[0, :-1].double()
    expected = nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    np.testing.assert_allclose(frame["loss"], expected.numpy(), rtol=0, atol=1e-5)


def test_a_run_answers_with_its_reports(tmp_path: Path) -> None:
    models = {"mine": Bigram(), "other": Bigram(1)}
    texts = [TEXT[i:] + TEXT[:i] for i in range(6)]
    run = kerple_eval.evaluate(models, tokenizer="bytes", text=texts, lengths=[8, 16], out=tmp_path / "run")
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}): 4 of 4 cells"
    assert "mine" in run.table() and run.table("markdown").count("|") > 10
    assert "<table" in run._repr_html_()
    assert "reference" in run.compare("mine")
    assert "mine" in run.intervals() and "mine" in run.explain() and "mine" in run.longppl("other")
    assert run.plot() == tmp_path / "run" / "curve.png"
    assert run.plot("position", tmp_path / "p.svg").read_text().startswith("<?xml")
    assert run.report() == [tmp_path / "run" / "report.html"]
    assert repr(kerple_eval.open_run(tmp_path / "run")) == repr(run)
    with pytest.raises(UserError, match="unknown kind of figure 'curv'"):
        run.plot("curv")
    one = run.intervals(models=["mine"], lengths=[8])
    for spelled in ({"models": "mine", "lengths": 8}, {"model": "mine", "length": "8"}):
        assert run.intervals(**spelled) == one
    assert run.explain(lengths="8,16") == run.explain(lengths=(8, 16)) == run.explain(length=[16, 8])
    assert run.plot("curve", tmp_path / "m.png", model="mine") == tmp_path / "m.png"
    assert run.plot("position", tmp_path / "l.png", length="8") == tmp_path / "l.png"
    with pytest.raises(UserError, match="unknown option 'level': available: style, task,"):
        run.reach(level=0.9)


def test_losses_of_what_there_is_not_are_refused(tmp_path: Path) -> None:
    run = kerple_eval.evaluate({"mine": Bigram()}, tokenizer="bytes", text=TEXT, lengths=[8, 16])
    assert len(run.losses(model="mine", length=16)) == len(run.losses(length="16")) == len(TEXT.encode()) - 1
    for wrong in ({"model": "mien"}, {"length": 64}, {"protocol": "full"}, {"task": "txt"}):
        with pytest.raises(UserError, match=f"unknown {next(iter(wrong))} "):
            run.losses(**wrong)


def test_a_model_of_few_positions_is_probed_within_them() -> None:
    """A learned table ends before the probe's own length."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=V, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    ids = list(TEXT.encode())[:30]
    assert len(kerple_eval.score(model, ids, length=12)) == 29
    with pytest.raises(UserError, match="end at 12"):
        kerple_eval.score(model, ids, length=13)


def test_inspect_says_what_the_command_says() -> None:
    from kerple_eval.cli.inspect import lines  # noqa: PLC0415

    found = kerple_eval.inspect("zoo:kerple-log")
    assert (found["scheme"], found["train_length"], found["max_length"]) == ("kerple-log", 512, None)
    assert set(found["scheme_parameters"]) == {"r1", "r2"}
    shown = dict(line.split(maxsplit=1) for line in lines("zoo:kerple-log"))
    assert shown["parameters"] == f"{found['parameters']:,}"
    model = Bigram().train()
    held = kerple_eval.inspect(model, tokenizer="bytes")
    assert (held["format"], held["vocab_size"], held["tokenizer"]) == ("memory", V, "bytes")
    assert held["memory"] == {}
    assert model.training
    with pytest.raises(UserError, match="unknown zoo model"):
        kerple_eval.inspect("zoo:alibbi")


def test_convert_and_merge_from_python(tmp_path: Path) -> None:
    written = kerple_eval.convert("zoo:alibi", tmp_path / "alibi", dtype="float32")
    assert (written.scheme, written.train_length, written.stored_dtypes) == ("alibi", 512, ("F32",))
    runs = [
        kerple_eval.evaluate(
            {label: model}, text=TEXT, tokenizer="bytes", lengths=[32], out=tmp_path / label, bos="never"
        )
        for label, model in (("a", "zoo:alibi"), ("b", str(tmp_path / "alibi")))
    ]
    joined = kerple_eval.merge([runs[0], tmp_path / "b"], tmp_path / "joined")
    assert joined.summary()["model"].tolist() == ["a", "b"]
    assert joined.summary()["nll"].nunique() == 1
    for call, message in (
        (lambda: kerple_eval.merge(tmp_path / "a", tmp_path / "x"), "two run directories or more"),
        (lambda: kerple_eval.merge([runs[0], runs[0]], tmp_path / "x"), "is given twice"),
        (lambda: kerple_eval.convert("zoo:alibi", tmp_path / "alibi"), "alibi"),
        (lambda: kerple_eval.convert("zoo:alibi", tmp_path / "y", dtype="int8"), "unknown dtype 'int8'"),
        (lambda: kerple_eval.convert(Bigram(), tmp_path / "y"), "takes a MODEL"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_mpt_in_memory_keeps_its_length() -> None:
    """Windows beyond ``max_seq_len`` are scored by raising it for a while."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MptConfig(vocab_size=V, d_model=32, n_layers=1, n_heads=2, max_seq_len=32)
    model = transformers.MptForCausalLM(config)
    frames = [kerple_eval.score(model, TEXT, length=length, tokenizer="bytes") for length in (128, 16, 128)]
    assert model.config.max_seq_len == 32
    np.testing.assert_array_equal(frames[0]["loss"], frames[2]["loss"])


def test_text_taken_for_a_name_is_refused_in_short(tmp_path: Path) -> None:
    """``train`` takes names of files; a whole text is too long for one."""
    with pytest.raises(UserError, match=r"\.\.\.: cannot be read: File name too long$") as refused:
        kerple_eval.train(tmp_path / "x", scheme="alibi", text=TEXT * 40, length=16, steps=1)
    assert len(str(refused.value)) < 400


def test_train_from_python_is_the_command(tmp_path: Path) -> None:
    from click.testing import CliRunner  # noqa: PLC0415

    from kerple_eval.cli.main import cli  # noqa: PLC0415

    text = tmp_path / "text.txt"
    text.write_text(TEXT * 40)
    steps: list[int] = []
    record = kerple_eval.train(
        tmp_path / "a", scheme="alibi", text=text, length=16, steps=2, layers=1, width=16, heads=2, threads=1,
        on_step=lambda step, loss: steps.append(step),
    )  # fmt: skip
    assert steps == [1, 2]
    assert record["held_out"]["nll"] > 0
    words = ["train", "--scheme", "alibi", "--text", str(text), "--length", "16", "--steps", "2"]
    words += [
        "--layers",
        "1",
        "--width",
        "16",
        "--heads",
        "2",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "b"),
    ]
    assert CliRunner().invoke(cli, words).exit_code == 0
    weights = [kerple_eval.inspect(tmp_path / name)["weights_sha256"] for name in "ab"]
    assert weights[0] == weights[1]
    for changes, message in (
        ({"scheme": "alibbi"}, "did you mean 'alibi'"),
        ({"scheme": None}, "needs either"),
        ({"text": ()}, "needs text"),
        ({"seed": 2**63}, "seed=9223372036854775808 must be at most 9223372036854775807"),
        ({"steps": 0}, "steps=0 must be a whole number, at least 1"),
        ({"threads": -1}, "threads=-1 must be a whole number, at least 1"),
        ({"ngram": 7}, "ngram=7 must be at most 6"),
        ({"lr": float("nan")}, "lr=nan must be a number above 0"),
        ({"store": "int8"}, "unknown store of train"),
        ({"text": tmp_path / "none.txt"}, "none.txt"),
    ):
        given: dict[str, Any] = {"scheme": "alibi", "text": text, "length": 16} | changes
        with pytest.raises(UserError, match=message):
            kerple_eval.train(tmp_path / "c", **given)
    assert not (tmp_path / "c").exists()


def test_a_figure_of_one_run_is_written_into_it(tmp_path: Path) -> None:
    from click.testing import CliRunner  # noqa: PLC0415

    from kerple_eval.cli.main import cli  # noqa: PLC0415

    tokens = [list(TEXT.encode())]
    kerple_eval.evaluate({"m": Bigram()}, tokens=tokens, lengths=[16, 32], out=tmp_path / "run")
    done = CliRunner().invoke(cli, ["plot", str(tmp_path / "run")])
    assert (done.exit_code, done.output.strip()) == (0, str(tmp_path / "run" / "curve.png"))
    assert (tmp_path / "run" / "curve.png").stat().st_size
