"""``explain``: the two parts against a brute-force pass over every target, and what it says and refuses."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

import kerple_eval
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.records.reader import RunReader
from kerple_eval.reports.tables import gain
from kerple_eval.reports.tables.explain import COLUMNS, make
from kerple_eval.stats.context_gain import LossChange, explain
from kerple_eval.types import UserError
from tests.helpers.command import Cli, refusal

LENGTHS = [8, 16, 40]


@pytest.fixture(scope="module")
def single(models: dict[str, str], library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, two protocols and sliding windows of stride 1: l(c*) is then measured exactly."""
    out = tmp_path_factory.mktemp("single")
    kerple_eval.evaluate(
        [models["alibi"], models["nope"]], text=library, lengths=LENGTHS, dtype="float64", out=out,
        protocols=["full-context", "last:k=4", "aligned:k=3,every=5", "sliding-window:stride=1@16"],
    )  # fmt: skip
    return out


def documents(library: Path) -> list[bytes]:
    return [json.loads(line)["text"].encode() for line in library.read_text().splitlines()]


class Brute:
    """Losses of any target with any context, in float64, from one pass a start."""

    def __init__(self, model: str) -> None:
        self.model = open_model(parse_model(model)).load(torch.device("cpu"), torch.float64)
        self.rows: dict[tuple[bytes, int], torch.Tensor] = {}

    def loss(self, document: bytes, target: int, context: int) -> float:
        start = target - context
        if (document, start) not in self.rows:
            inputs = torch.tensor([list(document[start : start + 41])])
            with torch.inference_mode():
                logits = torch.cat(list(self.model.logits(inputs, inputs.shape[1])), dim=1)[0]
            self.rows[document, start] = logits.log_softmax(-1)
        return -float(self.rows[document, start][context - 1, document[target]])


def start_of(protocol: str, target: int, length: int, n: int) -> int | None:
    """Where the window of a target begins; None where it is not scored."""
    begin = (target - 1) // length * length
    if protocol == "full-context":
        return begin
    if protocol == "last:k=4":
        return begin if begin + length <= n - 1 and target > begin + length - 4 else None
    ends = [e for e in range(40, n, 5) if e - 2 <= target <= e]
    return ends[0] - length if ends else None


@pytest.mark.parametrize("protocol", ["full-context", "last:k=4", "aligned:k=3,every=5"])
@pytest.mark.parametrize("name", ["alibi", "nope"])
def test_both_parts_by_brute_force(
    name: str, protocol: str, single: Path, models: dict[str, str], library: Path
) -> None:
    brute = Brute(models[name])
    splits = [s for s in explain(RunReader([single])) if (s.key.model, s.key.protocol) == (name, protocol)]
    assert [(s.key.length, s.longer) for s in splits] == [(8, 16), (16, 40)]
    for split in splits:
        short, long = split.key.length, split.longer
        found: dict[bytes, list[tuple[float, float, float]]] = {}
        for document in documents(library):
            for k in range(1, len(document)):
                starts = [start_of(protocol, k, n, len(document)) for n in (short, long)]
                if starts[0] is None or starts[1] is None:
                    continue
                c1, c2 = k - starts[0], k - starts[1]
                contexts = (c1, min(c2, short), c2)
                found.setdefault(document, []).append(tuple(brute.loss(document, k, c) for c in contexts))
        every = np.concatenate([np.array(rows) for rows in found.values()])
        assert split.targets == len(every)
        assert split.documents == len(found)
        assert split.dilution is not None
        assert split.context_gain is not None
        assert split.dilution.value == pytest.approx((every[:, 1] - every[:, 0]).mean(), abs=2e-6)
        assert split.context_gain.value == pytest.approx((every[:, 2] - every[:, 1]).mean(), abs=2e-6)
        assert split.change.value == pytest.approx((every[:, 2] - every[:, 0]).mean(), abs=2e-6)
        assert abs(split.dilution.value + split.context_gain.value - split.change.value) < 1e-12
        assert split.short_of == 0
        assert split.stride == 1
        sums = np.array([sum(b - a for a, b, _ in rows) for rows in found.values()])
        counts = np.array([len(rows) for rows in found.values()])
        assert split.dilution.interval == pytest.approx(by_hand(sums, counts), abs=1e-5)


def by_hand(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The package's interval of a ratio (leave-one-out residuals, Kish's documents), with SciPy's t."""
    m, total, r = len(sums), counts.sum(), sums.sum() / counts.sum()
    left_out = [x - n * (sums.sum() - x) / (total - n) for x, n in zip(sums, counts, strict=True)]
    error = math.sqrt((m - 1) / m * sum(e**2 for e in left_out)) / total
    freedom = total**2 / (counts**2).sum() - 1
    return scipy_stats.t.interval(0.95, freedom, loc=r, scale=error)


def test_changes_are_those_of_the_table(single: Path) -> None:
    """The change and what other targets add make the difference of the summary's means."""
    nll = kerple_eval.open_run(single).summary().set_index(["model", "protocol", "length"])["nll"]
    for split in explain(RunReader([single])):
        key = (split.key.model, split.key.protocol)
        whole = nll[*key, split.longer] - nll[*key, split.key.length]
        assert split.change.value + split.other_targets == pytest.approx(whole, abs=1e-12)
        assert split.same_targets is not split.key.protocol.startswith("last")
        assert (split.other_targets == 0) is split.same_targets


def test_different_targets_warn(single: Path, invoke: Cli) -> None:
    shown = {command: invoke(command, str(single)).stdout for command in ("explain", "table")}
    full, last, aligned = (shown["table"].split(f"text, {p}", 1)[1] for p in ("full", "last", "aligned"))
    assert "warning" not in full.partition("text, last")[0]
    assert "warning: targets differ between lengths (8: " in last.partition("text, aligned")[0]
    assert "warning" not in aligned
    last, aligned = (shown["explain"].split(f"text, {p}")[1] for p in ("last", "aligned"))
    assert "warning: alibi, 8 -> 16: the two lengths were computed on different targets" in last
    assert "; the split is over those of both, the others add " in last.partition("text, ")[0]
    assert "warning" not in aligned


def test_a_pair_of_ones_own(single: Path, invoke: Cli) -> None:
    done = invoke("explain", str(single), "--length", "40,8", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert tuple(rows[0]) == COLUMNS
    assert {(r["length_from"], r["length_to"]) for r in rows} == {("8", "40")}
    for row in rows:
        parts = [float(row[c]) for c in ("dilution", "context_gain")]
        assert sum(parts) == pytest.approx(float(row["change"]), abs=1e-12)
        assert float(row["dilution_low"]) <= parts[0] <= float(row["dilution_high"])


def test_a_missing_cell_is_named_with_its_command(
    models: dict[str, str], library: Path, tmp_path: Path, invoke: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, run as it stands, gives the cell; the second command then splits everything."""
    words = ["run", models["alibi"], f"other={models['rope']}", "--text", str(library), "--length", "8,16,40",
             "--protocol", "full-context", "--documents", "6", "--bos", "never",
             "--out", str(tmp_path / "my run")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["kerple-eval", *words])
    assert invoke(*words).exit_code == 0
    done = invoke("explain", str(tmp_path / "my run"))
    assert done.exit_code == 0
    assert "no sliding-window at 8" in done.stdout
    first, second = [line.strip() for line in done.stdout.splitlines() if line.startswith("  kerple-eval ")]
    assert "--protocol sliding-window:stride=1@16" in first
    assert "--bos never" in first  # other markers would be other losses
    assert invoke(*shlex.split(first)[1:]).exit_code == 0
    done = invoke(*shlex.split(second)[1:])
    assert done.exit_code == 0, done.output
    assert "missing" not in done.stdout
    for split in explain(RunReader(shlex.split(second)[2:])):
        assert split.dilution is not None


def test_a_run_from_python_gets_its_command_too(
    models: dict[str, str], library: Path, tmp_path: Path, invoke: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["notebook"])
    kerple_eval.evaluate(
        models["alibi"], text=library, lengths=[8, 100], documents=2, seed=3, bos="never", out=tmp_path / "r"
    )
    done = invoke("explain", str(tmp_path / "r"), "--format", "markdown")
    first, second = [line.strip() for line in done.stdout.splitlines() if line.startswith("  kerple-eval")]
    assert "--bos never" in first
    assert "sliding-window:stride=1 " in first  # no cap: documents too short for 100 must stay out
    assert invoke(*shlex.split(first)[1:]).exit_code == 0
    assert invoke(*shlex.split(second)[1:]).exit_code == 0
    assert all(s.dilution for s in explain(RunReader(shlex.split(second)[2:])))
    assert "not enough documents for an interval (2; 5 needed)" in make([tmp_path / "r"])


def test_the_approximation_is_stated(models: dict[str, str], library: Path, tmp_path: Path) -> None:
    kerple_eval.evaluate(
        models["alibi"], text=library, lengths=[8, 16], out=tmp_path,
        protocols=["full-context", "sliding-window:stride=6@8", "sliding-window:stride=4@8"],
    )  # fmt: skip
    (split,) = [s for s in explain(RunReader([tmp_path])) if s.key.protocol == "full-context"]
    assert split.stride == 4  # the finer of the two
    assert split.dilution is not None
    assert split.context_gain is not None
    assert abs(split.dilution.value + split.context_gain.value - split.change.value) < 1e-12
    run = kerple_eval.open_run(tmp_path)
    both = run.losses(protocol="full-context", length=16).merge(
        run.losses(protocol="sliding-window:stride=4", length=8), on=["document", "target"]
    )
    far = both[both["context_x"] > 8]
    assert split.short_of == pytest.approx((8 - far["context_y"]).mean())
    gain = (far["loss_x"].astype("float64") - far["loss_y"].astype("float64")).sum() / len(both)
    assert split.context_gain.value == pytest.approx(gain, abs=1e-12)
    shown = make([tmp_path])
    assert f"sliding-window at 8, stride 4: its contexts fall short of 8 by {split.short_of:.1f}" in shown


def test_sliding_window_explains_itself(models: dict[str, str], library: Path, tmp_path: Path) -> None:
    """Contexts near L at both lengths: no dilution, all of it context."""
    kerple_eval.evaluate(
        models["alibi"], text=library, lengths=[8, 16], protocols="sliding-window:stride=4", out=tmp_path
    )
    (split,) = explain(RunReader([tmp_path]))
    assert split.dilution is not None
    assert split.dilution.value == pytest.approx(0, abs=1e-7)  # the same losses but for rounding
    assert split.context_gain is not None
    assert split.context_gain.value == pytest.approx(split.change.value, abs=1e-7)


def unsplit(splits: list[LossChange]) -> Iterator[str]:
    return (s.needs for s in splits if s.dilution is None)


def test_what_another_model_or_text_measured_is_not_used(
    single: Path, models: dict[str, str], library: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"lengths": [8, 16], "dtype": "float64"}
    kerple_eval.evaluate(models["kerple-log"], text=library, out=tmp_path / "model", **options)
    assert set(unsplit(explain(RunReader([tmp_path / "model", single]))))
    kerple_eval.evaluate(models["alibi"], text=library, out=tmp_path / "same", **options)
    both = explain(RunReader([tmp_path / "same", single]))
    assert not set(unsplit([s for s in both if "same" in str(s.run.folder)]))
    kerple_eval.evaluate(models["alibi"], text=library, lengths=[8, 16], out=tmp_path / "dtype")
    mine = [s for s in explain(RunReader([tmp_path / "dtype", single])) if "dtype" in str(s.run.folder)]
    assert set(unsplit(mine)) == {"no sliding-window at 8"}


def test_a_finer_stride_over_other_text_is_passed_by(
    models: dict[str, str], library: Path, text: Path, tmp_path: Path
) -> None:
    kerple_eval.evaluate(
        models["alibi"], text=library, lengths=[8, 16], out=tmp_path / "own",
        protocols=["full-context", "sliding-window:stride=4@8"],
    )  # fmt: skip
    kerple_eval.evaluate(
        models["alibi"], text=text, lengths=[8], protocols="sliding-window:stride=1", out=tmp_path / "other"
    )
    splits = explain(RunReader([tmp_path / "own", tmp_path / "other"]))
    (split,) = [s for s in splits if s.key.protocol == "full-context"]
    assert split.stride == 4


def test_documents_alike_count_each(models: dict[str, str], library: Path, tmp_path: Path) -> None:
    first, second = documents(library)[:2]
    lines = [json.dumps({"text": raw.decode()}) for raw in (first, first, second)]
    (tmp_path / "alike.jsonl").write_text("\n".join(lines))
    kerple_eval.evaluate(models["alibi"], text=tmp_path / "alike.jsonl", lengths=[8, 16], out=tmp_path / "r")
    (split,) = explain(RunReader([tmp_path / "r"]))
    assert split.documents == 3
    assert split.targets == 2 * (len(first) - 1) + len(second) - 1


def test_no_common_target(models: dict[str, str], tmp_path: Path) -> None:
    ids = tmp_path / "ids.jsonl"
    ids.write_text(json.dumps({"tokens": list(range(97, 117)) * 20}))
    kerple_eval.evaluate(
        models["alibi"], tokens=ids, lengths=[8, 16], out=tmp_path / "r",
        protocols="kerple-release:split=all,samples=5",
    )  # fmt: skip
    shown = make([tmp_path / "r"])
    assert "not split: no target is scored at both lengths" in shown
    assert "warning: alibi, 8 -> 16: the two lengths were computed on different targets" in shown


def test_the_tools_protocols(
    models: dict[str, str], library: Path, tmp_path: Path, invoke: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their windows are split like others; lm-eval's documents have a token that no others have."""
    words = ["run", models["alibi"], "--text", str(library), "--length", "8,16", "--out", str(tmp_path / "r"),
             "--protocol", "yarn:stride=8", "--protocol", "lm-eval-rolling"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["kerple-eval", *words])
    assert invoke(*words).exit_code == 0
    shown = invoke("explain", str(tmp_path / "r")).stdout
    assert "no sliding-window at 8 has it; full-context can be split" in shown
    assert "the protocol's nll is: mean over windows of their means, unweighted" in shown
    (first,) = [line.strip() for line in shown.splitlines() if line.startswith("  kerple-eval run")]
    assert "--protocol sliding-window:stride=1@8 --bos tokenizer" in first
    assert invoke(*shlex.split(first)[1:]).exit_code == 0
    (yarn,) = [
        s
        for s in explain(RunReader([tmp_path / "r", tmp_path / "r-sliding-bos-tokenizer"]))
        if s.key.protocol == "yarn:stride=8"
    ]
    assert yarn.dilution is not None
    assert yarn.context_gain is not None
    assert abs(yarn.dilution.value + yarn.context_gain.value - yarn.change.value) < 1e-12


def test_refusals(single: Path, models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli) -> None:
    place = str(single)
    assert "expected two different lengths" in refusal(invoke("explain", place, "--length", "8"))
    assert "expected two different lengths" in refusal(invoke("explain", place, "--length", "8,8"))
    line = refusal(invoke("explain", place, "--length", "8,512"))
    assert "no model has two finished cells of one protocol at two lengths 8 and 512" in line
    assert "did you mean 'markdown'" in refusal(invoke("explain", place, "--format", "markdwn"))
    assert "not a run directory" in refusal(invoke("explain", str(tmp_path)))
    kerple_eval.evaluate(models["alibi"], text=text, lengths=[16], out=tmp_path / "one")
    with pytest.raises(UserError, match="at two lengths; run with --length 512,1024"):
        explain(RunReader([tmp_path / "one"]))


def test_models_of_several_runs_are_told_apart(single: Path, tmp_path: Path) -> None:
    again = shutil.copytree(single, tmp_path / "again")
    labels = {split.label for split in explain(RunReader([single, again]))}
    alone = {split.label for split in explain(RunReader([single]))}
    assert labels == alone | {f"{label} (again)" for label in alone}
    rows = list(csv.DictReader(io.StringIO(make([single, again], "csv"))))
    assert {row["model"] for row in rows} == labels
    assert "(again), 8 -> 16" in make([single, again])  # in notes too
    found = [pair[0] for pair in gain.pairs(RunReader([single, again]), model="alibi")]
    assert set(found) == {"alibi", "alibi (again)"}
