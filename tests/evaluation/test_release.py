"""``--protocol kerple-release`` from the command line: the number of a loop over the release's samples."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.records.specification import SelectionRecord
from tests.helpers.command import Cli, contents, make_model, prose, refusal
from tests.helpers.megatron_writer import write
from tests.helpers.release_samples import drawn, split_bounds


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """1000 documents, so that the shares 949/50/1 leave one of them for test.

    Whole epochs of that one give 321 samples or more at each length; the loader has one fewer.
    """
    return [prose(4 + i % 11, i % 9 + 1) for i in range(1000)]


@pytest.fixture(scope="module")
def corpus(texts: list[str]) -> list[list[int]]:
    """Bytes, each document followed by NUL, the byte tokeniser's end of document."""
    return [[*text.encode(), 0] for text in texts]


@pytest.fixture(scope="module")
def prefix(corpus: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("data") / "github_text_document", corpus, "uint8"))


def looped(model: str, samples: list[list[int]]) -> float:
    """exp of the mean over samples of each sample's mean loss, one sample at a time, in float64."""
    made = open_model(parse_model(model)).load(torch.device("cpu"), torch.float64)
    means = []
    for sample in samples:
        inputs = torch.tensor([sample[:-1]])
        with torch.inference_mode():
            logits = torch.cat(list(made.logits(inputs, len(sample) - 1)), dim=1)[0].double()
        chosen = logits.log_softmax(-1)[range(len(sample) - 1), sample[1:]]
        means.append(-float(chosen.mean()))
    return math.exp(sum(means) / len(means))


@pytest.mark.parametrize("split", ["test", "valid"])
def test_the_authors_own_evaluation_is_one_command(
    split: str, prefix: str, corpus: list[list[int]], invoke: Cli, tmp_path: Path
) -> None:
    """A zoo model, as many samples at two lengths; test is the split where none is named."""
    protocol = "kerple-release" + ("" if split == "test" else ":split=valid,seed=1235,samples=40")
    wanted = 320 if split == "test" else 40
    done = invoke(
        "run", "zoo:kerple-log", "--tokens", f"{prefix}.idx", "--protocol", protocol,
        "--length", "8,24", "--dtype", "float64", "--out", str(tmp_path / "r"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = kerple_eval.open_run(tmp_path / "r")
    edges = split_bounds([949, 50, 1], 1000)
    numbers = list(range(edges[2], edges[3]) if split == "test" else range(edges[1], edges[2]))
    assert len(numbers) == {"test": 1, "valid": 50}[split]
    for _, row in run.summary().iterrows():
        samples, _ = drawn(corpus, numbers, row["length"], 1234 if split == "test" else 1235, wanted)
        assert row["ppl"] == pytest.approx(looped("zoo:kerple-log", samples[:wanted]), rel=1e-6)
        assert (row["documents"], row["windows"], row["targets"]) == (wanted, wanted, wanted * row["length"])
        assert row["protocol"] == protocol
    assert len(set(run.summary()["targets_hash"])) == 2
    task = run.specification.tasks[0]
    assert task.selection == SelectionRecord(documents=1000, rule="every document")
    assert sorted(task.drawn_sha256[protocol]) == ["24", "8"]
    assert task.source["tokens"] == sum(map(len, corpus))


def run_of(model: str, out: Path, protocol: str, **options: object) -> kerple_eval.Run:
    return kerple_eval.evaluate(model, out=out, protocols=protocol, lengths=[8, 20], **options)  # type: ignore[arg-type]


def test_text_is_tokenised_with_ends_of_documents(
    models: dict[str, str], texts: list[str], prefix: str, tmp_path: Path
) -> None:
    """The same samples whether the documents come as text or as a data set made of it."""
    lines = tmp_path / "texts.jsonl"
    lines.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    protocol = "kerple-release:split=valid,samples=30"
    as_text = run_of(models["alibi"], tmp_path / "a", protocol, text=lines).summary()
    as_ids = run_of(models["alibi"], tmp_path / "b", protocol, tokens=Path(prefix)).summary()
    for column in ("nll", "targets_hash", "targets", "documents"):
        assert as_text[column].tolist() == as_ids[column].tolist()
    assert as_ids["bits_per_byte"].isna().all()
    assert as_text["bits_per_byte"].notna().all()


def test_bytes_leave_out_the_ends_of_documents(models: dict[str, str], tmp_path: Path) -> None:
    """Two-byte characters and NULs: the bytes of the scored targets, counted from the samples."""
    lines = tmp_path / "texts.jsonl"
    lines.write_text("\n".join(json.dumps({"text": t}) for t in ("né", "où", "çà et là")))
    row = kerple_eval.evaluate(
        models["alibi"], out=tmp_path / "r", protocols="kerple-release:split=all,samples=6", lengths=[5],
        text=lines,
    ).summary().iloc[0]  # fmt: skip
    corpus = [[*text.encode(), 0] for text in ("né", "où", "çà et là")]
    samples, _ = drawn(corpus, [0, 1, 2], 5, 1234, 6)
    spelt = sum(token != 0 for sample in samples[:6] for token in sample[1:])
    assert 0 < spelt < 30
    assert row["bits_per_byte"] == pytest.approx(row["nll"] * 30 / (math.log(2) * spelt), rel=1e-12)


def test_hashes_follow_the_samples(models: dict[str, str], prefix: str, tmp_path: Path) -> None:
    """Another seed, split or length is another target set; another model is not."""
    protocols = [f"kerple-release:{o}samples=9" for o in ("", "split=valid,", "split=valid,seed=5,")]
    run = kerple_eval.evaluate(
        [models["alibi"], models["rope"]], out=tmp_path / "r", protocols=protocols, lengths=[8, 20],
        tokens=Path(prefix),
    )  # fmt: skip
    summary = run.summary()
    by_model = [rows["targets_hash"].tolist() for _, rows in summary.groupby("model")]
    assert by_model[0] == by_model[1]
    assert len(set(by_model[0])) == 6


def test_a_sample_drawn_twice_counts_twice(models: dict[str, str], tmp_path: Path) -> None:
    """One document of 9 equal tokens: every sample is the same, and each has its targets."""
    write(tmp_path / "d", [[7] * 9], "uint8")
    hashes = []
    for samples in (3, 5):  # of the 3 and 5 that the loader has in whole epochs
        run = kerple_eval.evaluate(
            models["alibi"], out=tmp_path / f"r{samples}", lengths=[4], tokens=tmp_path / "d.bin",
            protocols=f"kerple-release:split=all,samples={samples}",
        )  # fmt: skip
        row = run.summary().iloc[0]
        assert row["targets"] == 4 * samples
        hashes.append(row["targets_hash"])
    assert hashes[0] != hashes[1]


def test_a_finished_run_is_kept_and_changed_data_refused(
    models: dict[str, str], corpus: list[list[int]], tmp_path: Path
) -> None:
    protocol = "kerple-release:split=valid,samples=9"
    place = write(tmp_path / "d", corpus, "int32")
    run_of(models["alibi"], tmp_path / "r", protocol, tokens=place)
    before = contents(tmp_path / "r/cells")
    run_of(models["alibi"], tmp_path / "r", protocol, tokens=place)
    assert contents(tmp_path / "r/cells") == before
    draw = np.random.default_rng(0)
    write(tmp_path / "d", [[int(i) for i in draw.integers(256, size=len(d))] for d in corpus], "int32")
    with pytest.raises(
        kerple_eval.UserError, match=r"holds a run with another specification: .*drawn_sha256"
    ):
        run_of(models["alibi"], tmp_path / "r", protocol, tokens=place)


REFUSED = [
    (["--protocol", "kerple-release", "--protocol", "full-context"], "cannot share a run with full-context"),
    (
        ["--protocol", "kerple-release", "--documents", "5"],
        "--documents has no meaning for protocol kerple-rel",
    ),
    (["--protocol", "kerple-release", "--keep-short"], "--keep-short has no meaning"),
    (["--protocol", "kerple-release", "--max-tokens", "99"], "--max-tokens has no meaning"),
    (["--protocol", "kerple-release", "--seed", "0"], "--seed has no meaning"),
    (["--protocol", "kerple-release:split=dev"], "split=dev: must be one of train, valid, test, all"),
    (["--protocol", "kerple-release:start=100000,split=valid,samples=1100"], "the release stops there too"),
    (["--protocol", "kerple-release:sampels=9"], "did you mean 'samples'"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_refusals(
    words: list[str], says: str, models: dict[str, str], prefix: str, invoke: Cli, *, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = refusal(
        invoke("run", models["alibi"], "--tokens", prefix, "--length", "8", "--out", str(out), *words)
    )
    assert says in line
    assert not out.exists()


def test_what_a_text_must_offer(models: dict[str, str], text: str, invoke: Cli, tmp_path: Path) -> None:
    """One document has no test split; ids beyond the vocabulary are found where they are drawn."""
    command = ["run", models["alibi"], "--length", "8", "--out", str(tmp_path / "out"), "--protocol"]
    line = refusal(invoke(*command, "kerple-release", "--text", text))
    assert "split=test has none of the 1 documents (not empty: train); split=all" in line
    write(tmp_path / "d", [[1, 2, 3, 0]] * 9 + [[4, 300, 0]], "uint16")
    line = refusal(invoke(*command, "kerple-release:split=all", "--tokens", str(tmp_path / "d.idx")))
    assert "is id 300, beyond the vocabulary of model alibi (0..255)" in line


def test_a_tokeniser_without_an_end_of_document(tmp_path: Path, text: str) -> None:
    raw = '{"model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}}'
    model = make_model(tmp_path / "m", "rope", tokenizer=raw.encode())
    with pytest.raises(
        kerple_eval.UserError, match=r"ends each document .* \(tokenizer.json:\w+\) has no end-of-"
    ):
        run_of(str(model), tmp_path / "r", "kerple-release:split=all", text=text)


def test_a_tasks_own_choice_is_refused(models: dict[str, str], prefix: str, tmp_path: Path) -> None:
    """A task file over the data set: the samples of --tokens, and no choice of documents beside a draw."""
    task = tmp_path / "neox.yaml"
    lines = [
        "name: neox", "version: 1", "description: d", "licence: l", "split: {test: 1.0}",
        f"source: {{kind: megatron, path: {prefix}}}",
    ]  # fmt: skip
    task.write_text("\n".join(lines))
    protocol = "kerple-release:split=valid,samples=9"
    by_task = run_of(models["alibi"], tmp_path / "a", protocol, tasks=str(task)).summary()
    by_tokens = run_of(models["alibi"], tmp_path / "b", protocol, tokens=Path(prefix)).summary()
    assert by_task["targets_hash"].tolist() == by_tokens["targets_hash"].tolist()
    assert by_task["nll"].tolist() == by_tokens["nll"].tolist()
    task.write_text("\n".join([*lines, "documents: {count: 3}"]))
    with pytest.raises(
        kerple_eval.UserError, match=r"task neox: documents.count is set, but the protocol draws"
    ):
        run_of(models["alibi"], tmp_path / "c", protocol, tasks=str(task))


def test_other_protocols_read_data_sets_too(
    models: dict[str, str], corpus: list[list[int]], prefix: str, tmp_path: Path
) -> None:
    run = kerple_eval.evaluate(
        models["alibi"], out=tmp_path / "r", lengths=[16, 64], tokens=Path(f"{prefix}.bin"), documents=3
    )
    documents = {d.name: d.tokens for cell in run.cells() for d in cell.header.documents}
    assert len(documents) == 3
    for name, tokens in documents.items():
        stem, _, number = name.partition(":")
        assert stem == "github_text_document"
        assert tokens == len(corpus[int(number)]) >= 65
