"""``explain --between``: every effect against loops over targets and the tokens that each was shown."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import kerple_eval
from kerple_eval.records.cell import FailedCell, write_failure
from kerple_eval.records.header import CellHeader, FailedHeader
from kerple_eval.records.reader import RunReader
from kerple_eval.reports.tables.between import COLUMNS, make, sentence
from kerple_eval.stats.between_protocols import ProtocolDifference, between
from kerple_eval.types import UserError
from tests.helpers.command import Cli, refusal
from tests.helpers.lm_eval_folders import loaded, save_llama, texts, write_texts

PROTOCOLS = (
    "full-context", "sliding-window:stride=5", "last:k=4", "aligned:k=3,every=7", "yarn:stride=7",
    "hf-guide:stride=5", "lm-eval-rolling", "lm-eval-rolling:prefix_token_id=7", "dape:k=5,batch=3",
    "llama-cpp", "gptq",
)  # fmt: skip
LENGTHS = [9, 16]
#: Tokens around a text by the tokeniser, see ``save_llama``: names of those before and after it.
AROUND = {"adds": (1, 0), "around": (1, 1), "two": (2, 0), "has": (0, 0), "none": (0, 0)}


def documents_of(protocol: str, tokenizer: Any, lines: list[str]) -> tuple[list[list[int]], int, int | None]:
    """Literally: tokens of each document, how many stand before its text, and the marker of every window."""
    plain = [tokenizer(line, add_special_tokens=False).input_ids for line in lines]
    whole = [tokenizer(line).input_ids for line in lines]
    before = next(k for k in range(4) if whole[0][k : k + 3] == plain[0][:3])
    bos = tokenizer.bos_token_id
    if protocol.startswith("yarn"):
        return plain, 0, bos
    if protocol == "llama-cpp":
        return plain, 0, bos if bos in whole[0][:before] else None
    if protocol.startswith("lm-eval"):
        prefix = 7 if "prefix" in protocol else tokenizer.eos_token_id if bos is None else bos
        return [[prefix, *ids] for ids in whole], before + 1, None
    return whole, before, None


Row = tuple[float, int, tuple[int, ...]]  # loss, tokens of text before the target, all tokens before it


def rows(run: kerple_eval.Run, key: Any, tokenizer: Any, lines: list[str]) -> dict[tuple[str, int], Row]:
    documents, before, marker = documents_of(key.protocol, tokenizer, lines)
    cell = run.cell(key)
    found: dict[tuple[str, int], Row] = {}
    for number, window, losses in zip(cell.document.tolist(), cell.windows, cell.losses, strict=True):
        entry = cell.header.documents[number]
        tokens = documents[int(entry.name.partition(":")[2]) - 1]
        assert len(tokens) == entry.tokens
        for k, loss in zip(range(window.first_target, window.stop + 1), losses.tolist(), strict=True):
            inputs = ([] if marker is None else [marker]) + tokens[window.start : k]
            context = sum(position >= before for position in range(window.start, k))
            assert (entry.name, k - before) not in found
            found[entry.name, k - before] = (loss, context, tuple(inputs))
    return found


def by_loops(
    one: dict[tuple[str, int], Row], two: dict[tuple[str, int], Row]
) -> dict[str, tuple[int, float]]:
    """Kind of effect -> targets and nats, but for the averaging."""

    def mean(losses: Iterable[float]) -> float:
        every = list(losses)
        return math.fsum(every) / len(every)

    common = [name for name in one if name in two]
    found = {}
    m1, m2 = (mean(row[0] for row in side.values()) for side in (one, two))
    if not common:
        return {
            "targets of the first alone": (len(one), m2 - m1),
            "targets of the second alone": (len(two), 0),
        }
    c1, c2 = (mean(side[name][0] for name in common) for side in (one, two))
    if len(one) > len(common):
        found["targets of the first alone"] = (len(one) - len(common), c1 - m1)
    for name in common:
        (before, context, inputs), (after, longer, others) = one[name], two[name]
        if context != longer:
            kind = "more context" if longer > context else "less context"
        else:
            kind = "the same inputs" if inputs == others else "other first tokens"
        count, nats = found.get(kind, (0, 0.0))
        found[kind] = (count + 1, nats + (after - before) / len(common))
    if len(two) > len(common):
        found["targets of the second alone"] = (len(two) - len(common), m2 - c2)
    return found


def adds_up(one: ProtocolDifference) -> bool:
    total = math.fsum(effect.nats for effect in one.effects)
    return abs(total - (one.nlls[1] - one.nlls[0])) < 1e-12


FAST = ("adds", "two")


@pytest.fixture(
    scope="module",
    params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in AROUND],
)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, list[str]]:
    """A run of every protocol, its tokeniser and documents."""
    root = tmp_path_factory.mktemp(request.param)
    place = save_llama(root / "m", request.param)
    lines = [line for line in texts() if len(line) > 45][:3]
    file = write_texts(root / "t.jsonl", lines)
    out = root / "r"
    wanted = [p for p in PROTOCOLS if not (p.startswith("yarn") and request.param == "none")]
    kerple_eval.evaluate(
        f"hf:{place}", text=file, protocols=wanted, lengths=LENGTHS, keep_short=True, out=out
    )
    return kerple_eval.open_run(out), loaded(place)[1], lines


def test_every_pair_of_protocols_by_loops(made: tuple[Any, Any, list[str]]) -> None:
    run, tokenizer, lines = made
    reader = RunReader([run.folder], keep=True)
    sides = {(k.protocol, k.length): rows(run, k, tokenizer, lines) for k in run.keys()}  # noqa: SIM118
    nll = run.summary().set_index(["protocol", "length"])["nll"]
    kinds = set()
    protocols = list(dict.fromkeys(protocol for protocol, _ in sides))
    for pair in itertools.combinations(protocols, 2):
        for one in between(reader, pair, lengths=LENGTHS) + between(reader, pair[::-1]):
            keys = [(key.protocol, key.length) for key in one.keys]
            assert one.nlls == tuple(nll[key] for key in keys)
            assert adds_up(one)
            wanted = by_loops(sides[keys[0]], sides[keys[1]])
            found = {e.kind: (e.targets, e.nats) for e in one.effects if not e.kind.startswith("averaging")}
            assert found.keys() == wanted.keys()
            for kind, (count, nats) in wanted.items():
                assert found[kind][0] == count, (keys, kind)
                assert found[kind][1] == pytest.approx(nats, abs=1e-12), (keys, kind)
            if "the same inputs" in found:  # the documents are laid over each other as they should be
                assert abs(found["the same inputs"][1]) < 1e-6
            kinds |= {effect.kind for effect in one.effects}
            weighed = [key[0].startswith(("yarn", "hf-guide", "dape")) for key in keys]
            assert [
                f"averaging of the {side}" in {e.kind for e in one.effects} for side in ("first", "second")
            ] == weighed
    assert kinds >= {
        "averaging of the first",
        "targets of the first alone",
        "more context",
        "the same inputs",
    }


def test_what_is_shown_adds_up_and_ends_in_a_sentence(made: tuple[Any, Any, list[str]], invoke: Cli) -> None:
    run, _, _ = made
    words = [
        "explain",
        str(run.folder),
        "--between",
        "gptq",
        "--between",
        "hf-guide:stride=5",
        "--length",
        "16",
    ]
    done = invoke(*words, "--format", "csv")
    records = list(csv.DictReader(io.StringIO(done.stdout)))
    assert tuple(records[0]) == COLUMNS
    first, second = (float(records[0][c]) for c in ("nll_from", "nll_to"))
    assert abs(math.fsum(float(r["nats"]) for r in records) - (second - first)) < 1e-12
    shown = invoke(*words, "--model", run.specification.models[0].label).stdout
    assert f"{math.exp(first):.4g}"[:3] in shown
    assert " are the same model because of " in shown
    assert shown == run.explain(between=("gptq", "hf-guide:stride=5"), length="16")
    (same,) = between(RunReader([run.folder]), ("hf-guide:stride=5", "hf-guide:stride=5"), lengths=(9, 16))
    assert "hf-guide:stride=5 at 16" in sentence(same)


def test_refusals(models: dict[str, str], library: Path, text: Path, tmp_path: Path, invoke: Cli) -> None:
    out, other = tmp_path / "r", tmp_path / "other"
    kerple_eval.evaluate(
        [models["alibi"], models["nope"]], text=library, lengths=[8, 16, 32], out=out,
        protocols=["full-context@16", "gptq", "last:k=2@8"],
    )  # fmt: skip
    kerple_eval.evaluate(models["alibi"], text=text, lengths=[8], protocols="yarn:stride=4", out=other)
    two = ["--between", "full-context", "--between", "gptq"]

    def says(*words: str) -> str:
        return refusal(invoke("explain", *words))

    assert "did you mean 'gptq'? available: full-context, gptq" in says(str(out), *two[:3], "gptk")
    assert "takes two protocols" in says(str(out), *two[:2])
    assert "takes two protocols" in says(str(out), *two, *two[:2])
    assert "it goes with --gain" in says(str(out), "--model", "alibi")
    assert "did you mean 'alibi'?" in says(str(out), *two, "--model", "alibbi")
    assert "full-context twice: name two protocols" in says(str(out), *two[:2], *two[:2])
    assert "expected one length or two" in says(str(out), *two, "--length", "8,16,32")
    assert "expected one length or two" in says(str(out), *two, "--length", "8,x")
    assert "full-context at 32 has no losses (not run)" in says(str(out), *two, "--length", "32")
    line = says(str(out), str(other), "--between", "gptq", "--between", "yarn:stride=4")
    assert "were not computed on one model and text: alibi, text, gptq at 8" in line
    assert "text.text_sha256" in line
    far = ["--between", "yarn:stride=4", "--between", "gptq", "--length", "8,32"]
    assert "were not computed on one model and text" in says(str(out), str(other), *far)
    kerple_eval.evaluate(
        models["alibi"], text=library, lengths=[4, 40], protocols="yarn:stride=4", out=tmp_path / "y"
    )
    line = says(str(out), str(tmp_path / "y"), "--between", "yarn:stride=4", "--between", "gptq")
    assert "yarn:stride=4 has lengths 4, 40, gptq 8, 16, 32: choose one of each" in line


def test_models_are_told_apart_by_what_they_are(
    models: dict[str, str], library: Path, tmp_path: Path
) -> None:
    """Across runs by their weights, whatever their labels; within a run by their labels."""
    one, two = tmp_path / "one", tmp_path / "two"
    options: dict[str, Any] = {"text": library, "lengths": [8]}
    first = [f"x={models['alibi']}", f"same={models['alibi']}"]
    kerple_eval.evaluate(first, protocols=["full-context", "gptq"], out=one, **options)
    second = [f"x={models['nope']}", f"y={models['alibi']}"]
    kerple_eval.evaluate(second, protocols=["full-context", "yarn:stride=4"], out=two, **options)
    reader = RunReader([one, two])
    both = [tuple(key.model for key in d.keys) for d in between(reader, ("full-context", "gptq"))]
    assert both == [("x", "x"), ("same", "same"), ("y", "x")]
    both = [tuple(key.model for key in d.keys) for d in between(reader, ("full-context", "yarn:stride=4"))]
    assert both == [("x", "y"), ("same", "y"), ("x", "x"), ("y", "y")]


def test_a_failed_cell_has_no_losses(models: dict[str, str], library: Path, tmp_path: Path) -> None:
    kerple_eval.evaluate(
        models["alibi"], text=library, lengths=[8], protocols=["full-context", "gptq"], out=tmp_path
    )
    run = kerple_eval.open_run(tmp_path)
    (cell,) = (c for c in run.cells() if c.key.protocol == "gptq")
    header = {f.name: getattr(cell.header, f.name) for f in fields(CellHeader)}
    write_failure(run.folder, FailedCell(cell.key, FailedHeader(**header), "out of memory"))
    with pytest.raises(UserError, match=r"gptq has no losses \(failed: out of memory\)"):
        make([tmp_path], between=("full-context", "gptq"))


def test_no_target_in_common_and_documents_drawn(models: dict[str, str], tmp_path: Path) -> None:
    """Two draws name their samples alike; they are other documents all the same."""
    ids = tmp_path / "ids.jsonl"
    ids.write_text("".join(json.dumps({"tokens": [(i * j) % 250 for i in range(90)]}) + "\n" for j in (3, 7)))
    names = [f"kerple-release:split=all,seed={seed},samples=3" for seed in (1, 2)]
    kerple_eval.evaluate(models["alibi"], tokens=ids, lengths=[8], protocols=names, out=tmp_path / "r")
    (one,) = between(RunReader([tmp_path / "r"]), (names[0], names[1]))
    first, second = (
        {d.name: d.sha256 for d in cell.header.documents}
        for cell in kerple_eval.open_run(tmp_path / "r").cells()
    )
    assert first.keys() & second.keys() and not first.items() & second.items()
    assert one.common == 0 and adds_up(one)
    kinds = [effect.kind for effect in one.effects]
    assert kinds == ["targets of the first alone", "targets of the second alone"]
    assert "none in common" in sentence(one)
