"""Bad words on the command line and bad texts: each is one line on stderr, exit status 2, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pytest
import torch

from kerple_eval.cli.main import cli
from tests.helpers.command import Cli, command, refusal


def test_the_good_command_runs(invoke: Cli, good: dict[str, list[str]]) -> None:
    assert invoke(*command(good)).exit_code == 0


BAD: list[tuple[dict[str, list[str]], list[str]]] = [
    ({"model": ["zoo:kerple-lgo"]}, ["unknown zoo model 'kerple-lgo'"]),
    ({"model": ["zooo:kerple-log"]}, ["unknown checkpoint format 'zooo'", "did you mean 'zoo'"]),
    ({"model": ["no/such/folder"]}, ["no model 'no/such/folder'", "native:"]),
    ({"model": ["native:no/such/folder"]}, ["no/such/folder", "no such folder"]),
    ({"model": []}, ["needs a model", "zoo:kerple-log"]),
    ({"text": ["--task", "stou"]}, ["unknown task 'stou'", "did you mean 'sotu'"]),
    ({"text": []}, ["needs text", "--text", "--tokens"]),
    ({"more": ["--protocol", "ful-context"]}, ["unknown protocol", "did you mean 'full-context'"]),
    ({"more": ["--protocol", "last:kk=4"]}, ["unknown option of last 'kk'", "did you mean 'k'"]),
    ({"more": ["--protocol", "last"]}, ["last needs k="]),
    ({"more": ["--protocol", "last:k=four"]}, ["last: k=four", "int"]),
    ({"more": ["--protocol", "last:k=0"]}, ["last: k=0"]),
    ({"more": ["--protocol", "last:k=17"]}, ["k=17 exceeds length 16"]),
    ({"more": ["--protocol", "sliding-window:stride=17"]}, ["stride=17 exceeds length 16", "stride <= 16"]),
    ({"more": ["--protocol", "sliding-window:stride=0"]}, ["stride=0"]),
    ({"more": ["--protocol", "aligned:k=17"]}, ["k=17 exceeds the shortest length 16"]),
    ({"more": ["--protocol", "aligned:k=8,every=4"]}, ["every=4 is below k=8"]),
    ({"more": ["--protocol", "full-context@8"]}, ["no length up to 8"]),
    ({"more": ["--protocol", "prefix", "--protocol", "prefix"]}, ["protocol prefix is given twice"]),
    (
        {"more": ["--protocol", "aligned:k=4,every=8", "--protocol", "aligned:every=8,k=04"]},
        ["protocol aligned:k=4,every=8 is given twice"],
    ),
    ({"more": ["--lenght", "16"]}, ["--lenght", "Did you mean", "--length"]),
    ({"more": ["--device", "gpu"]}, ["--device", "'gpu'", "cuda"]),
    ({"more": ["--dtype", "float8"]}, ["--dtype", "'float8'", "bfloat16"]),
    ({"more": ["--documents", "0"]}, ["--documents", "0"]),
    ({"more": ["--documents", "2"]}, ["--documents 2", "only 1 of 1"]),
    ({"more": ["--max-tokens", "20"]}, ["33 tokens", "has 20", "--max-tokens 20", "--length up to 19"]),
    ({"out": ["--out", ""]}, ["--out", "is empty"]),
    ({"length": ["--length", "0"]}, ["'0' is not a length"]),
    ({"length": ["--length", "16,-5"]}, ["'-5' is not a length"]),
    ({"length": ["--length", "abc"]}, ["'abc' is not a length", "512,1024"]),
    ({"length": ["--length", "1.5"]}, ["'1.5' is not a length"]),
    ({"length": ["--length", ""]}, ["'' is not a length"]),
    ({"length": ["--length", "16,32,16"]}, ["16 is given twice"]),
    ({"length": ["--length", "16", "--length", "8..32"]}, ["16 is given twice"]),
    ({"length": ["--length", "16,999"]}, ["no document has 1000 tokens", "--length up to 136"]),
    ({"text": ["--text", "no-such.txt"]}, ["no-such.txt", "No such file"]),
    ({"text": ["--tokens", "no-such.jsonl"]}, ["no-such.jsonl", "No such file"]),
    ({"out": []}, ["--out"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    BAD,
    ids=[" ".join(word for words in b[0].values() for word in words) or "nothing" for b in BAD],
)
def test_refused_in_one_line(
    changes: dict[str, list[str]], expected: list[str], invoke: Cli,
    good: dict[str, list[str]], tmp_path: Path,
) -> None:  # fmt: skip
    line = refusal(invoke(*command(good, **changes)))
    for part in expected:
        assert part in line
    assert not (tmp_path / "out").exists()


def test_an_option_given_twice_is_refused_by_every_command(invoke: Cli) -> None:
    """Every option of every command, and of the group, but for those that collect their values."""
    collecting = {("train", "--text"), ("explain", "--between")}
    collecting |= {(name, "--model") for name in ("table", "plot", "compare", "intervals", "reach")}
    collecting |= {("run", option) for option in ("--task", "--text", "--tokens", "--protocol", "--length")}
    seen = set()
    commands: list[tuple[list[str], click.Command]] = [([], cli)]
    commands += [([name], part) for name, part in cli.commands.items()]
    for words, part in commands:
        for option in part.params:
            if not isinstance(option, click.Option) or option.is_eager:
                continue
            for name in option.opts:
                if option.multiple:
                    seen.add((*words, name))
                    continue
                twice = [name, name] if option.is_flag else [name, "1", f"{name}=1"]
                line = refusal(invoke(*words, *twice, *([] if words else ["demo"])))
                assert f"{option.opts[0]} is given 2 times; give it once" in line, (words, name)
    assert seen == collecting
    assert len(cli.commands["run"].params) > 15


def test_words_that_no_record_can_hold(invoke: Cli) -> None:
    """Bytes of a file's name that are no UTF-8 reach Python as surrogates."""
    for name in cli.commands:
        assert r"'o\udcff' is not UTF-8; rename the file or folder" in refusal(
            invoke(name, "--out", "o\udcff")
        )


def test_labels_that_are_no_plain_text(
    invoke: Cli, good: dict[str, list[str]], models: dict[str, str], tmp_path: Path
) -> None:
    """LABEL=, names that come from folders, and task names: one rule, before anything is written."""
    rope = models["rope"]
    folder = tmp_path / "new\nline"
    shutil.copytree(rope.removeprefix("native:"), folder)
    for model, part in (
        (f"..={rope}", "'..' is the name of a folder"),
        (f".={rope}", "'.' is the name of a folder"),
        (f" ={rope}", "'' is empty"),
        (f"a\nb={rope}", r"'a\nb' holds a character that cannot be printed (U+000A)"),
        (f"a\x1b[31mb={rope}", "cannot be printed (U+001B)"),
        (f"a\u202eb={rope}", "cannot be printed (U+202E)"),
        (f"{'x' * 400}={rope}", "has 400 characters, more than 100"),
        (str(folder), r"'new\nline' holds a character that cannot be printed (U+000A)"),
    ):
        line = refusal(invoke(*command(good, model=[model])))
        assert part in line
        assert line.endswith("; write another LABEL= before the model")
    task = tmp_path / "a\x07b.yaml"
    task.write_text("name: nothing\n")
    assert r"a\x07b.yaml" in refusal(invoke(*command(good, text=["--task", str(task)])))
    shipped = Path(__file__).parents[2] / "tasks" / "python-stdlib.yaml"
    task.write_text(shipped.read_text().replace("name: python-stdlib", 'name: "a\\x07b"'))
    line = refusal(invoke(*command(good, text=["--task", str(task)])))
    assert r"task name 'a\x07b' holds a character that cannot be printed (U+0007)" in line
    assert not (tmp_path / "out").exists()
    assert invoke(*command(good, model=[f"ok [bold]é 模型={folder}"])).exit_code == 0


FILES = [
    ("empty.txt", b"", "--text", ["empty.txt", "empty"]),
    ("blank.txt", b" \n\t\n", "--text", ["blank.txt", "empty"]),
    ("latin.txt", b"caf\xe9 " * 40, "--text", ["latin.txt", "not UTF-8 at byte 3"]),
    ("empty.jsonl", b"\n", "--text", ["empty.jsonl", "empty"]),
    ("wrong.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "--text", ["wrong.jsonl:2", "no column 'text'"]),
    ("broken.jsonl", b'{"tokens": [1, 2\n', "--tokens", ["broken.jsonl:1", "not JSON"]),
    ("ids.jsonl", b'{"tokens": [1, "2"]}\n', "--tokens", ["ids.jsonl:1", "tokens"]),
    ("negative.jsonl", b'{"tokens": [1, -2]}\n', "--tokens", ["negative.jsonl:1", "tokens"]),
    ("none.jsonl", b"", "--tokens", ["none.jsonl", "empty"]),
    ("huge.jsonl", json.dumps({"tokens": [7] * 20 + [256] + [7] * 20}).encode(), "--tokens",
     ["huge.jsonl", "token 20 is id 256", "vocabulary", "0..255"]),
]  # fmt: skip


@pytest.mark.parametrize("case", FILES, ids=[f[0] for f in FILES])
def test_bad_text_files(
    case: tuple[str, bytes, str, list[str]], invoke: Cli, good: dict[str, list[str]], tmp_path: Path
) -> None:
    name, raw, option, expected = case
    path = tmp_path / name
    path.write_bytes(raw)
    line = refusal(invoke(*command(good, text=[option, str(path)])))
    for part in expected:
        assert part in line
    assert not (tmp_path / "out").exists()


def test_what_a_folder_holds_beside_text_is_said(
    invoke: Cli, good: dict[str, list[str]], text: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(Path(text).read_bytes())
    (tmp_path / "texts" / "b.html").write_text("<p>b</p>")
    done = invoke(*command(good, text=["--text", str(tmp_path / "texts")]))
    assert done.exit_code == 0
    assert "\ntext: passed over: HTML, RTF, PDF and office documents 1\n" in done.stdout


def test_two_models_of_one_label(invoke: Cli, good: dict[str, list[str]], models: dict[str, str]) -> None:
    line = refusal(invoke(*command(good, model=[f"a={models['alibi']}", f"a={models['rope']}"])))
    assert "two models are labelled 'a'" in line
    line = refusal(invoke(*command(good, model=[models["alibi"], models["alibi"]])))
    assert "two models are labelled" in line
    assert "LABEL=" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none(invoke: Cli, good: dict[str, list[str]]) -> None:
    assert "no CUDA device" in refusal(invoke(*command(good, more=["--device", "cuda"])))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rum"], ["'rum'", "id you mean 'run'"]),
        (["list", "scheme"], ["unknown list 'scheme'", "did you mean 'schemes'"]),
        (["table", "no/such/run"], ["no/such/run", "not a run directory"]),
        (["plot", "no/such/run", "--out", "x.png"], ["not a run directory"]),
        (
            ["plot", "x", "--kind", "curv", "--out", "x.png"],
            ["unknown kind of figure", "did you mean 'curve'"],
        ),
        (["plot", "zoo:alibi", "--kind", "kernels"], ["a figure of models needs --out", "kernels.png"]),
        (["plot", "x", "y"], ["a figure of 2 runs needs --out FILE"]),
        (["inspect", "org/name"], ["no model 'org/name'", "as a model of the hub it is hf:org/name"]),
        (["inspect", "org/name@v1"], ["as a model of the hub it is hf:org/name@v1"]),
        (["report", "no/such/run"], ["not a run directory"]),
        (["table", "x", "--format", "latx"], ["unknown table format", "did you mean 'latex'"]),
        (["inspect", "zoo:none-such"], ["unknown zoo model"]),
        (
            ["train", "--scheme", "alibbi", "--text", "x", "--length", "8", "--out", "o"],
            ["did you mean 'alibi'"],
        ),
        (["train", "--scheme", "alibi", "--length", "8", "--out", "o"], ["needs text"]),
        *(
            (
                ["train", "--scheme", "alibi", "--text", "x", "--length", "8", "--out", "o", option, "nan"],
                [f"'{option}': nan is not a finite number"],
            )
            for option in ("--lr", "--weight-decay", "--clip")
        ),
        (["merge", "x", "y", "--out", "o", "--within", "nan"], ["'--within': nan is not a finite number"]),
        (["intervals", "x", "--level", "nan"], ["'--level': nan is not a finite number"]),
        (["table"], ["DIR"]),
    ],
)
def test_other_commands_refuse_in_one_line(words: list[str], expected: list[str], invoke: Cli) -> None:
    line = refusal(invoke(*words))
    for part in expected:
        assert part in line
