"""Which documents and targets a run scores; models that read the same text with different tokenisers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import kerple_eval
from kerple_eval.records.run import Run
from kerple_eval.reports.tables.table import make
from kerple_eval.types import UserError
from tests.helpers.command import make_model, prose

# The library's document i (line i + 1) has 60 + 20 i bytes, i = 0..6.
SIZES = {f"seven.jsonl:{i + 1}": 60 + 20 * i for i in range(7)}


def scored(run: Run) -> dict[str, set[int]]:
    """Targets by document of a run's cells, which must agree."""
    found = [
        {str(name): set(rows["target"]) for name, rows in run.losses(length=length).groupby("document")}
        for length in sorted({key.length for key in run.keys()})  # noqa: SIM118
    ]
    assert all(f == found[0] for f in found)
    return found[0]


def test_short_documents_are_passed_over_and_counted(
    models: dict[str, str], library: str, tmp_path: Path
) -> None:
    run = kerple_eval.evaluate(models["nope"], text=library, lengths=[16, 99], out=tmp_path / "r")
    assert scored(run) == {name: set(range(1, n)) for name, n in SIZES.items() if n >= 100}
    selection = run.specification.tasks[0].selection
    assert (selection.documents, selection.passed_over_as_short, selection.least_tokens) == (7, 2, 100)


def test_a_task_s_own_minimum_is_named(models: dict[str, str], text: Path, tmp_path: Path) -> None:
    """No option of the command would help."""
    source = f"{{kind: files, path: {Path(text).parent}, files: one.txt}}"
    (tmp_path / "mine.yaml").write_text(
        f"name: mine\nversion: 1\ndescription: d\nlicence: none\nsource: {source}\nsplit: {{test: 1.0}}\n"
        "documents: {minimum_length: 500}\n"
    )
    for keep_short in (False, True):
        with pytest.raises(
            UserError, match="no document has 500 tokens, the longest has 137; the task's documents"
        ):
            kerple_eval.evaluate(
                models["nope"], tasks=[tmp_path / "mine.yaml"], lengths=[16], keep_short=keep_short
            )


def test_keep_short_takes_all(models: dict[str, str], library: str, tmp_path: Path) -> None:
    run = kerple_eval.evaluate(
        models["nope"], text=library, lengths=[16, 99], keep_short=True, out=tmp_path / "r"
    )
    assert scored(run) == {name: set(range(1, n)) for name, n in SIZES.items()}


def test_max_tokens_cuts_each(models: dict[str, str], library: str, tmp_path: Path) -> None:
    run = kerple_eval.evaluate(
        models["nope"], text=library, lengths=[16, 64], max_tokens=90, out=tmp_path / "r"
    )
    assert scored(run) == {name: set(range(1, min(n, 90))) for name, n in SIZES.items() if n >= 65}
    whole = kerple_eval.evaluate(models["nope"], text=library, lengths=[16, 64], out=tmp_path / "whole")
    cut = run.losses(length=16).merge(
        whole.losses(length=16), on=["document", "target", "context"], suffixes=("", "_whole")
    )
    assert len(cut) == len(run.losses(length=16))
    assert (cut["loss"] - cut["loss_whole"]).abs().max() < 1e-5


def test_documents_and_seed(models: dict[str, str], library: str, tmp_path: Path) -> None:
    def chosen(count: int, seed: int | None) -> frozenset[str]:
        run = kerple_eval.evaluate(
            models["nope"], text=library, lengths=[16], documents=count, seed=seed,
            out=tmp_path / f"{count}-{seed}",
        )  # fmt: skip
        assert run.specification.tasks[0].selection.count == count
        return frozenset(scored(run))

    draws = [chosen(3, seed) for seed in range(5)]
    assert all(len(draw) == 3 for draw in draws)
    assert len(set(draws)) > 1
    assert chosen(3, None) == chosen(3, 0)
    assert chosen(2, 1) < chosen(4, 1)  # a smaller draw is part of a larger one
    assert chosen(7, 0) == set(SIZES)


def test_a_cap_limits_a_protocol_to_shorter_lengths(
    models: dict[str, str], library: str, tmp_path: Path
) -> None:
    protocols = ["full-context", "sliding-window:stride=8@32", "last:k=4@20"]
    run = kerple_eval.evaluate(
        models["nope"], text=library, lengths=[64, 16, 32], protocols=protocols, out=tmp_path
    )
    cells = run.summary().groupby("protocol")["length"].apply(list).to_dict()
    assert cells == {"full-context": [16, 32, 64], "sliding-window:stride=8": [16, 32], "last:k=4": [16]}


def test_labels(models: dict[str, str], text: str, tmp_path: Path) -> None:
    wanted = [f"my rope={models['rope']}", models["alibi"]]
    run = kerple_eval.evaluate(wanted, text=text, lengths=[16], out=tmp_path / "r")
    assert run.summary()["model"].tolist() == ["my rope", "alibi"]


def test_a_bare_directory_is_recognised(models: dict[str, str], text: str, tmp_path: Path) -> None:
    folder = models["rope"].removeprefix("native:")
    bare = kerple_eval.evaluate(folder, text=text, lengths=[16], out=tmp_path / "bare").summary()
    named = kerple_eval.evaluate(models["rope"], text=text, lengths=[16], out=tmp_path / "named").summary()
    assert bare.equals(named)


@pytest.fixture(scope="module")
def bpe() -> bytes:
    """A byte-level BPE of 300 ids, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    fast.train_from_iterator([prose(400, 3)], trainer)
    return fast.to_str().encode()


def test_models_with_different_tokenisers(
    bpe: bytes, models: dict[str, str], text: str, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer  # noqa: PLC0415

    folder = make_model(tmp_path / "words", "alibi", 5, tokenizer=bpe, vocabulary=300)
    out = tmp_path / "run"
    run = kerple_eval.evaluate([f"native:{folder}", models["alibi"]], text=text, lengths=[8, 16], out=out)
    content = Path(text).read_text()
    encoding = Tokenizer.from_buffer(bpe).encode(content)
    words = run.summary().query("model == 'words' and length == 16").iloc[0]
    assert words["targets"] == len(encoding.ids) - 1
    # The first token is no target: its bytes are not spelled by the scored ones.
    first = len(content[: encoding.offsets[0][1]].encode())
    spelled = len(content.encode()) - first
    total = math.fsum(run.losses(model="words", length=16)["loss"].astype(float))
    assert words["bits_per_byte"] == pytest.approx(total / (math.log(2) * spelled), rel=1e-12)
    shown = make([out], "text")
    assert "bits per byte against length" in shown
    assert "perplexity against length" not in shown
    assert "different tokenisers" in shown
    apart = kerple_eval.evaluate(models["alibi"], text=text, lengths=[8, 16], out=tmp_path / "apart")
    assert apart.summary()["nll"].tolist() == run.summary().query("model == 'alibi'")["nll"].tolist()
    assert "perplexity against length" in make([tmp_path / "apart"], "text")


def test_documents_must_be_long_enough_for_every_tokeniser(
    bpe: bytes, models: dict[str, str], library: str, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "words", "alibi", 5, tokenizer=bpe, vocabulary=300)
    alone = kerple_eval.evaluate(models["alibi"], text=library, lengths=[60], out=tmp_path / "bytes")
    both = kerple_eval.evaluate(
        [models["alibi"], f"native:{folder}"], text=library, lengths=[60], out=tmp_path / "r"
    )
    documents = both.summary()["documents"].tolist()
    assert documents[0] == documents[1]
    assert documents[0] < alone.summary()["documents"].item()
    with pytest.raises(kerple_eval.UserError, match=r"aligned:k=4 a window at length 100 \(model words\)"):
        kerple_eval.evaluate(
            [models["alibi"], f"native:{folder}"], text=library, lengths=[100], keep_short=True,
            protocols="aligned:k=4", out=tmp_path / "none",
        )  # fmt: skip


def test_a_vocabulary_smaller_than_the_ids(models: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text(json.dumps({"tokens": [299] * 20}))
    with pytest.raises(
        kerple_eval.UserError, match=r"id 299, beyond the vocabulary of model alibi \(0\.\.255\)"
    ):
        kerple_eval.evaluate(models["alibi"], tokens=path, lengths=[8], out=tmp_path / "r")
