"""Runs of made tasks: hits against greedy decoding, what is recorded, tables, figures, refusals."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

import kerple_eval
from kerple_eval.data.synthetic import needle
from kerple_eval.data.synthetic.base import depth_grid, draw
from kerple_eval.data.synthetic.catalogue import GENERATORS, make_generator
from kerple_eval.data.tokenizer import BYTE_TOKENIZER, ModelTokens
from kerple_eval.models.base import LanguageModel
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.models.scoring import score
from kerple_eval.records.answers import answers
from kerple_eval.records.cell import COLUMNS, Cell, FailedCell, file_name, read_cell, write_failure
from kerple_eval.records.run import open_run
from kerple_eval.records.schema import SCHEMA_VERSION
from kerple_eval.records.specification import Marker
from kerple_eval.reports.figures import depth as depth_report
from kerple_eval.reports.tables.answers import make
from kerple_eval.stats.answers import by_depth, share
from kerple_eval.types import UserError, Window
from tests.helpers.command import Cli, command, contents, make_model, refusal
from tests.helpers.ranks import as_ranks

CPU = torch.device("cpu")
SMALL = "associative-recall:pairs=2,ids=0-5,samples=20,depths=3"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> kerple_eval.Run:
    """Two models with a vocabulary of six, which are right by chance now and then."""
    folder = tmp_path_factory.mktemp("answers")
    made = [small_model(folder, scheme, seed) for seed, scheme in enumerate(("alibi", "rope"))]
    tasks = [SMALL, "copy:cue=3,answer=2,samples=20,depths=2"]
    return kerple_eval.evaluate(made, tasks=tasks, lengths=[16, 24], out=folder / "run")


def small_model(folder: Path, scheme: str, seed: int) -> str:
    """A model of six ids, without a tokeniser."""
    make_model(folder / scheme, scheme, seed, vocabulary=6)
    path = folder / scheme / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer": None}))
    return f"native:{folder / scheme}"


def cells(run: kerple_eval.Run) -> list[Cell]:
    found = list(run.cells())
    assert all(isinstance(cell, Cell) for cell in found)
    return found  # type: ignore[return-value]


def test_an_exact_match_is_what_greedy_decoding_produces(tiny_run: kerple_eval.Run) -> None:
    """Each answer generated token by token by the decoder in float64, from the documents made anew."""
    exact = 0
    for cell in cells(tiny_run):
        name = "copy:cue=3,answer=2" if cell.key.task == "copy" else "associative-recall:pairs=2,ids=0-5"
        depths = depth_grid(2 if cell.key.task == "copy" else 3)
        folder = tiny_run.folder.parent / cell.key.model
        decoder = NativeCheckpoint.open(str(folder), {}).decoder().double()
        found = answers(cell)
        assert len(found) == 20 * len(depths)
        for answer in found:
            _, number, sample = answer.document.split("-")
            place = int(number.removeprefix("depth"))
            assert answer.depth == depths[place]
            rng = draw(cell.key.task, 0, cell.key.length, place, int(sample))
            made = make_generator(name)[0].make(ModelTokens("x", None, 6), cell.key.length, answer.depth, rng)
            tokens, wanted = made.ids[: -made.answer].tolist(), made.ids[-made.answer :].tolist()
            said: list[int] = []
            with torch.inference_mode():
                for _ in wanted:
                    features = decoder(torch.tensor([tokens + said]), 1)
                    said.append(int(decoder.head(features)[0, -1].numpy().argmax()))
            assert answer.exact == (said == wanted)
            assert answer.targets == len(wanted)
            exact += answer.exact
    assert 0 < exact < sum(len(answers(cell)) for cell in cells(tiny_run))


def test_losses_are_those_of_scoring(tiny_run: kerple_eval.Run) -> None:
    """The answer's targets have all before them as context, and the summary is their mean."""
    rows = tiny_run.summary().set_index(["model", "task", "length"])
    for cell in cells(tiny_run):
        length, k = cell.key.length, 2 if cell.key.task == "copy" else 1
        assert set(cell.windows) == {Window(0, length, length - k + 1)}
        row = rows.loc[(cell.key.model, cell.key.task, length)]
        assert row["nll"] == pytest.approx(np.concatenate(cell.losses).astype(float).mean(), rel=1e-12)
        assert (row["targets"], row["documents"]) == (k * len(cell.windows), len(cell.windows))
    frame = tiny_run.answers()
    assert list(frame)[:5] == ["model", "task", "length", "depth", "document"]
    assert len(frame) == 2 * 2 * (60 + 40)
    grouped = frame.groupby(["model", "task", "length"])["loss"].mean()
    assert all(grouped[index] == pytest.approx(row["nll"]) for index, row in rows.iterrows())


class Fixed(LanguageModel):
    """Logits written down: ``[B, rows, V]`` for any input."""

    device, dtype = CPU, torch.float32

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = torch.tensor([rows])

    def logits(self, inputs: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        for part in self.rows[:, -rows:].split(2, dim=1):
            yield part.expand(inputs.shape[0], -1, -1)


class Lookup(LanguageModel):
    """Says what followed the longest earlier match of what it has just read: an induction head."""

    device, dtype = CPU, torch.float32

    def logits(self, inputs: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        made = torch.zeros(len(inputs), rows, 256)
        for b, ids in enumerate(inputs.tolist()):
            for r in range(rows):
                read = ids[: len(ids) - rows + r + 1]
                best = max(range(1, len(read)), key=lambda at: (self.match(read, at), at))
                made[b, r, read[best]] = 1.0
        yield made

    @staticmethod
    def match(read: list[int], at: int) -> int:
        """How many tokens before ``at`` are those at the end."""
        n = 0
        while n < at and read[at - 1 - n] == read[-1 - n]:
            n += 1
        return n


@pytest.mark.parametrize("name", list(GENERATORS))
def test_copying_from_the_context_solves_every_task(name: str) -> None:
    """And from the last 40 tokens alone, which hold the question, none is solved."""
    generator = make_generator(name)[0]
    reader = ModelTokens("bytes", BYTE_TOKENIZER, 256)
    made = [
        generator.make(reader, 400, depth, np.random.default_rng(n))
        for n, depth in enumerate(depth_grid(5)[:4])
    ]
    for start, wanted in ((0, True), (400 - 40 + 1, False)):
        pairs = [(i, Window(start, 400, 400 - m.answer + 1)) for i, m in enumerate(made)]
        found = [
            row[1] > 0 for _, rows in score(Lookup(), [m.ids for m in made], pairs, hits=True) for row in rows
        ]
        assert [bool(hits.all()) for hits in found] == [wanted] * len(made)


def test_of_equal_logits_the_lowest_id_is_the_argmax() -> None:
    logits = [[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [5.0, 5.0, 5.0], [0.0, 1.0, 3.0]]
    tokens = np.array([0, 1, 1, 0, 2])
    wanted = np.argmax(np.array(logits), axis=-1) == tokens[1:]
    assert wanted.tolist() == [False, True, True, True]
    ((_, (row,)),) = score(Fixed(logits), [tokens], [(0, Window(0, 4, 1))], hits=True)
    assert row.shape == (2, 4)
    assert (row[1] > 0).tolist() == wanted.tolist()
    ((_, (losses,)),) = score(Fixed(logits), [tokens], [(0, Window(0, 4, 1))])
    assert (row[0] == losses).all()


def test_columns_on_disk(
    tiny_run: kerple_eval.Run, models: dict[str, str], text: str, tmp_path: Path
) -> None:
    """``hits`` beside the old columns, and only where answers are scored; summary.csv as ever."""
    path = next((tiny_run.folder / "cells").glob("*copy*.parquet"))
    old = ["document", "start", "stop", "first_target", "losses", "bytes"]
    assert pq.read_schema(path).names == [*old, "hits"]
    plain = kerple_eval.evaluate(models["alibi"], text=text, lengths=[16], out=tmp_path / "plain")
    assert pq.read_schema(next((plain.folder / "cells").glob("*.parquet"))).names == old
    assert (tiny_run.folder / "summary.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert plain.answers().empty
    assert tiny_run.specification.tasks[0].source == {
        "kind": "synthetic", "generator": "associative-recall:pairs=2,ids=0-5", "depths": 3, "samples": 20,
    }  # fmt: skip


def test_prose_by_default_protocol_seed_and_resume(
    models: dict[str, str], invoke: Cli, tmp_path: Path
) -> None:
    words = ["run", models["kerple-log"], "--task", "passkey:samples=2,depths=3", "--length", "300,350"]
    done = invoke(*words, "--out", str(tmp_path / "a"))
    assert done.exit_code == 0
    assert "exact matches in % by depth" in done.stdout
    assert "--kind depth" in done.stdout
    run = open_run(tmp_path / "a")
    assert [cell.key.protocol for cell in run.cells()] == ["answer", "answer"]
    assert set(run.answers()["targets"]) == {5}
    assert run.summary()["bits_per_byte"].notna().all()
    before = contents(tmp_path / "a" / "cells")
    (tmp_path / "a" / "cells" / sorted(before)[0]).unlink()
    assert invoke(*words, "--out", str(tmp_path / "a")).exit_code == 0
    again = run.answers()
    assert contents(tmp_path / "a" / "cells").keys() == before.keys()
    other = invoke(*words, "--seed", "5", "--out", str(tmp_path / "a"))
    assert "another specification" in refusal(other)
    assert invoke(*words, "--seed", "5", "--out", str(tmp_path / "b")).exit_code == 0
    assert not np.allclose(open_run(tmp_path / "b").answers()["loss"], again["loss"])


def test_ranks_share_hits(invoke: Cli, tmp_path: Path) -> None:
    small_model(tmp_path, "rope", 0)
    words = ["run", str(tmp_path / "rope"), "--task", SMALL, "--length", "16", "--device", "cpu", "--out"]
    assert invoke(*words, str(tmp_path / "one")).exit_code == 0
    for done in as_ranks(tmp_path / "ranks", 2, [*words, str(tmp_path / "two")]):
        assert done.returncode == 0, done.stderr
    one, two = (cells(open_run(tmp_path / out))[0] for out in ("one", "two"))
    assert one.hits is not None and two.hits is not None
    assert [h.tolist() for h in one.hits] == [h.tolist() for h in two.hits]


def test_table(tiny_run: kerple_eval.Run) -> None:
    rows = list(csv.DictReader(io.StringIO(make([tiny_run.folder], "csv"))))
    for cell in cells(tiny_run):
        mine = [r for r in rows if (r["model"], r["task"], r["length"]) == (
            cell.key.model, cell.key.task, str(cell.key.length))]  # fmt: skip
        found = answers(cell)
        assert [r["depth"] for r in mine] == [*map(str, by_depth(found)), ""]
        every = mine[-1]
        exact = sum(a.exact for a in found)
        assert (int(every["exact"]), int(every["documents"])) == (exact, len(found))
        n, p, z = len(found), exact / len(found), 1.959963984540054
        middle, half = (p + z**2 / 2 / n), z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
        assert float(every["low"]) == pytest.approx((middle - half) / (1 + z**2 / n), abs=1e-12)
        assert float(every["high"]) == pytest.approx((middle + half) / (1 + z**2 / n), abs=1e-12)
        assert float(every["nll"]) == pytest.approx(cell.summary()["nll"], rel=1e-12)
        parts = [float(r["nll"]) * int(r["targets"]) for r in mine[:-1]]
        assert sum(parts) / int(every["targets"]) == pytest.approx(float(every["nll"]), rel=1e-12)
    text = make([tiny_run.folder])
    assert "copy: exact matches in % by depth" in text
    assert "20 documents a length and depth" in text
    assert "| model |" in make([tiny_run.folder], "markdown")


def test_figure(tiny_run: kerple_eval.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiles are the shares and losses of the records; a cell that failed has none."""
    copied = tmp_path / "run"
    for name, content in contents(tiny_run.folder).items():
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes(content)
    lost = next(c for c in cells(tiny_run) if (c.key.task, c.key.length) == ("copy", 24))
    (copied / "cells" / f"{file_name(lost.key)}.parquet").unlink()
    write_failure(copied, FailedCell(lost.key, lost.header, "MemoryError: no room"))
    seen = []
    real = depth_report.save
    monkeypatch.setattr(depth_report, "save", lambda figure, out: (seen.append(figure), real(figure, out)))
    depth_report.make([copied], tmp_path / "x.png")
    panels = [a for a in seen[0].axes if a.images and a.get_ylabel() == "depth"]
    assert len(panels) == 2 * 2 * 2
    assert all("exact" in p.get_title(loc="left") for p in panels[::2])
    for number, panel in enumerate(panels):
        title = panels[number - number % 2].get_title(loc="left")
        task, model = title.replace("\n", " ").split(", ")[:2]
        (image,) = panel.images
        for column, length in enumerate((16, 24)):
            cell = next(c for c in cells(tiny_run) if (c.key.task, c.key.model, c.key.length) == (
                task, model, length))  # fmt: skip
            for row, part in enumerate(by_depth(answers(cell)).values()):
                value = image.get_array()[row, column]
                if cell.key == lost.key:
                    assert value is np.ma.masked
                else:
                    assert value == pytest.approx(part.loss if number % 2 else 100 * part.exact_match)
    assert "alibi at 24 failed: MemoryError: no room" in make([copied])
    assert isinstance(read_cell(copied, lost.key), FailedCell)
    assert share(answers(cells(tiny_run)[0])).documents == 60


TASK = ["--task", "passkey"]
REFUSED = [
    (["--protocol", "full-context"], ["passkey is scored by protocol answer alone", "not full-context"]),
    (["--task", "sotu"], ["passkey cannot share a run with sotu"]),
    (["--text", "TEXT"], ["passkey cannot share a run with text of your own"]),
    (["--documents", "3"], ["--documents has no meaning", "use passkey:samples=N"]),
    (["--keep-short"], ["--keep-short has no meaning"]),
    (["--max-tokens", "99"], ["--max-tokens has no meaning"]),
    (["--precision", "1%"], ["--precision has no meaning"]),
    (["--bos", "window"], ["window and document are the same here", "use document"]),
    (["--bos", "document"], ["no first-token marker"]),
    (["--length", "16"], ["passkey: length 16 is too short; use lengths of at least"]),
]


@pytest.mark.parametrize(("more", "words"), REFUSED, ids=lambda value: " ".join(value)[:30])
def test_refusals(more: list[str], words: list[str], good: dict[str, list[str]], invoke: Cli) -> None:
    words_of = [good["text"][1] if word == "TEXT" else word for word in more]
    line = refusal(invoke(*command(good, text=TASK, length=["--length", "512"], more=words_of)))
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("passkey:digit=5", "unknown option of passkey 'digit': did you mean 'digits'"),
        ("passkey:digits=x", "digits=x is not an int"),
        ("passkey:samples=0", "task passkey: samples: must be at least 1"),
        ("passkey:depths=two", "task passkey: depths=two is not a whole number"),
        ("pass-key", "unknown task 'pass-key': did you mean 'passkey'"),
        ("associative-recall:ids=0-999", "exceed the vocabulary"),
    ],
)
def test_refused_options(task: str, message: str, models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        kerple_eval.evaluate(models["rope"], tasks=task, lengths=[512], out=tmp_path)


def test_answers_where_there_are_none(models: dict[str, str], text: str, invoke: Cli, tmp_path: Path) -> None:
    own = ["run", models["rope"], "--text", text, "--length", "16", "--out", str(tmp_path / "x")]
    assert "text of your own has no answer" in refusal(invoke(*own, "--protocol", "answer"))
    assert invoke(*own).exit_code == 0
    for words in (["answers"], ["plot", "--kind", "depth", "--out", str(tmp_path / "f.png")]):
        assert "no finished cell of a task with answers" in refusal(
            invoke(words[0], str(tmp_path / "x"), *words[1:])
        )
    with pytest.raises(UserError, match="generated for each length"):
        from kerple_eval.models.training.corpus import training_corpus  # noqa: PLC0415
        from kerple_eval.types import Spec  # noqa: PLC0415

        training_corpus(Spec("passkey"), [], BYTE_TOKENIZER)
    assert json.loads((tmp_path / "x" / "run.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_page(tiny_run: kerple_eval.Run, invoke: Cli, tmp_path: Path) -> None:
    """Tables and heat maps have a section of their own, the maps with what they show in words."""
    out = tmp_path / "page.html"
    assert invoke("report", str(tiny_run.folder), "--out", str(out)).exit_code == 0
    shown = out.read_text()
    assert 'id="answers"' in shown
    found = answers(next(c for c in cells(tiny_run) if (c.key.model, c.key.task, c.key.length) == (
        "rope", "copy", 24)))  # fmt: skip
    exact = sum(a.exact for a in found)
    assert "Heat map of copy by length and depth for rope." in shown
    assert f"{exact} of 40 at 24 (mean loss {share(found).loss:.3g} nats per target)" in shown


def test_a_tokeniser_that_puts_a_marker(tmp_path: Path) -> None:
    """It is token 0 of the L + 1, spells nothing, and is left out where the command says never."""
    fast = Tokenizer(BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"])
    fast.train_from_iterator([*needle.FILLER, "0123456789"] * 5, trainer)
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    model = make_model(tmp_path / "m", "rope", tokenizer=fast.to_str().encode(), vocabulary=300)
    seen = {}
    for bos in (None, "never"):
        run = kerple_eval.evaluate(
            str(model), tasks="needle:samples=1,depths=2", lengths=[200], bos=bos, out=tmp_path / str(bos)
        )  # fmt: skip
        (task,) = run.specification.tasks
        (cell,) = cells(run)
        assert [document.tokens for document in cell.header.documents] == [201, 201]
        assert cell.byte_counts is not None
        things = [len(" " + thing) for thing in needle.THINGS]
        assert all(count in {*things, *(n - 1 for n in things)} for count in cell.byte_counts)
        seen[bos] = (task.first_token["m"], run.answers()["loss"].tolist())
    assert seen[None][0] == Marker("document", 0)
    assert seen["never"][0] == Marker("never", None)
    assert seen[None][1] != seen["never"][1]
