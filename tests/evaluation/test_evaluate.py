"""``kerple_eval.evaluate``: numbers against a float64 decoder fed ``tokens[start:k]``, a target at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import kerple_eval
from kerple_eval.models.open import open_model, parse_model
from tests.helpers.command import make_model
from tests.helpers.every_target import naive, starts

COLUMNS = [
    "model", "scheme", "seed", "train_length", "task", "protocol", "length", "documents", "windows",
    "targets", "targets_hash", "nll", "ppl", "bits_per_byte", "dtype", "device", "status", "error",
]  # fmt: skip


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_text("A naïve loop, fed one target at a time.")
    return path


PROTOCOLS = ("full-context", "sliding-window:stride=4", "last:k=3", "aligned:k=3", "prefix")


@pytest.mark.parametrize("scheme", ["alibi", "rope", "kerple-log"])
def test_every_loss_is_the_naive_one(
    scheme: str, models: dict[str, str], short: Path, tmp_path: Path
) -> None:
    run = kerple_eval.evaluate(
        models[scheme], text=short, lengths=[5, 16], protocols=PROTOCOLS, out=tmp_path / "run"
    )
    tokens = Path(short).read_bytes()
    summary = run.summary()
    assert summary["protocol"].tolist() == [p for p in PROTOCOLS for _ in range(2)]
    for _, row in summary.iterrows():
        losses = run.losses(protocol=row["protocol"], length=row["length"])
        wanted = starts(row["protocol"], row["length"], len(tokens), 16)
        assert losses["target"].tolist() == sorted(wanted)
        assert (losses["target"] - losses["context"]).tolist() == [wanted[k] for k in sorted(wanted)]
        oracle = [naive(models[scheme], scheme, tokens, wanted[k], k) for k in sorted(wanted)]
        assert np.abs(losses["loss"].to_numpy() - oracle).max() < 1e-5
        nll = math.fsum(oracle) / len(oracle)
        assert row["nll"] == pytest.approx(nll, abs=1e-6)
        assert row["ppl"] == pytest.approx(math.exp(nll), rel=1e-6)
        # One byte a token, so bits per byte are bits per target.
        assert row["bits_per_byte"] == pytest.approx(nll / math.log(2), abs=2e-6)
        assert (row["targets"], row["documents"]) == (len(wanted), 1)


def test_frames(models: dict[str, str], library: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = kerple_eval.evaluate(
        [f"a={models['alibi']}", models["rope"]], text=[library], lengths=(16, 64), documents=3, out=out
    )
    assert isinstance(run, kerple_eval.Run)
    summary = run.summary()
    assert summary.columns.tolist() == COLUMNS
    for column in ("seed", "train_length", "length", "documents", "windows", "targets"):
        assert summary[column].dtype == pd.Int64Dtype()
    for column in ("nll", "ppl", "bits_per_byte"):
        assert summary[column].dtype == np.float64
    again = kerple_eval.open_run(out)
    pd.testing.assert_frame_equal(again.summary(), summary)
    written = pd.read_csv(out / "summary.csv")
    for column in ("model", "length", "targets", "targets_hash", "nll", "ppl", "bits_per_byte"):
        assert written[column].tolist() == summary[column].tolist()
    losses = again.losses(model="a", length=64)
    assert losses.columns.tolist() == [
        "model", "task", "protocol", "length", "document", "target", "context", "loss",
    ]  # fmt: skip
    assert losses["loss"].dtype == np.float32
    assert losses["document"].nunique() == 3
    assert len(losses) == summary.query("model == 'a' and length == 64")["targets"].item()
    assert len(again.losses()) == summary["targets"].sum()
    assert losses["context"].max() == 64


def test_hashes_say_which_numbers_share_targets(
    models: dict[str, str], text: str, library: str, tmp_path: Path
) -> None:
    protocols = ["full-context", "sliding-window:stride=4", "aligned:k=4", "last:k=4", "prefix"]

    def hashes(name: str, **options: object) -> dict[str, set[str]]:
        run = kerple_eval.evaluate(
            [models["alibi"], models["rope"]], lengths=[8, 16, 32], protocols=protocols, out=tmp_path / name,
            **options,  # type: ignore[arg-type]
        )  # fmt: skip
        return {str(p): set(rows["targets_hash"]) for p, rows in run.summary().groupby("protocol")}

    one = hashes("one", text=text)
    assert len(one["full-context"] | one["sliding-window:stride=4"]) == 1
    assert len(one["aligned:k=4"]) == 1
    assert len(one["last:k=4"]) == 3
    assert len(one["prefix"]) == 3
    assert not one["full-context"] & one["aligned:k=4"]
    other = hashes("other", text=library)
    for protocol in protocols:
        assert not one[protocol] & other[protocol]
    copy = tmp_path / "renamed.txt"
    copy.write_bytes(Path(text).read_bytes())
    assert hashes("renamed", text=copy) == one


def test_prefix_cells_of_one_pass_equal_separate_ones(
    models: dict[str, str], text: str, tmp_path: Path
) -> None:
    one = kerple_eval.evaluate(
        models["alibi"], text=text, lengths=[8, 16, 64], protocols="prefix", out=tmp_path / "a"
    )
    sources = {cell.key.length: cell.header.losses_from for cell in one.cells()}
    assert sources == {8: "prefix of 64", 16: "prefix of 64", 64: "forward pass"}
    model = open_model(parse_model(models["alibi"])).load(torch.device("cpu"), torch.float64)
    tokens = Path(text).read_bytes()
    for length in (8, 16, 64):
        got = one.losses(length=length)["loss"].to_numpy()
        apart = []
        for s in (0, 64):
            logits = torch.cat(list(model.logits(torch.tensor([list(tokens[s : s + length])]), length)), 1)[0]
            wanted = torch.tensor(list(tokens[s + 1 : s + length + 1]))
            apart.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
        assert np.abs(got - torch.cat(apart).detach().numpy()).max() < 1e-5
        separate = kerple_eval.evaluate(
            models["alibi"], text=text, lengths=[length], protocols="prefix", out=tmp_path / f"apart{length}",
            documents=1,
        ).losses()  # fmt: skip
        both = separate.merge(one.losses(length=length), on=["document", "target", "context"])
        assert len(both) >= length
        assert np.abs(both["loss_x"] - both["loss_y"]).max() < 1e-6 * both["loss_x"].max() + 1e-6


def test_longest_is_part_of_the_key_where_it_decides(
    models: dict[str, str], text: str, tmp_path: Path
) -> None:
    protocols = ["aligned:k=4@32", "prefix", "full-context"]
    run = kerple_eval.evaluate(
        models["nope"], text=text, lengths=[16, 32, 64], protocols=protocols, out=tmp_path
    )
    keys = [(k.protocol, k.length, k.longest) for k in run.keys()]  # noqa: SIM118
    assert keys == [
        ("aligned:k=4", 16, 32), ("aligned:k=4", 32, 32),
        ("prefix", 16, 64), ("prefix", 32, 64), ("prefix", 64, 64),
        ("full-context", 16, None), ("full-context", 32, None), ("full-context", 64, None),
    ]  # fmt: skip
    summary = run.summary()
    assert summary.query("protocol == 'aligned:k=4'")["targets"].tolist() == [16, 16]  # e = 32, 64, 96, 128


def test_bits_per_byte_where_characters_have_several(models: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "euro.txt"
    path.write_text("€" * 11, encoding="utf-8")
    row = kerple_eval.evaluate(models["rope"], text=path, lengths=[16], out=tmp_path / "r").summary().iloc[0]
    assert row["targets"] == 32
    assert row["bits_per_byte"] == pytest.approx(row["nll"] * 32 / (math.log(2) * 32), rel=1e-12)


def test_token_files(models: dict[str, str], tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    ids = [draw.integers(256, size=n).tolist() for n in (40, 12, 33)]
    path = tmp_path / "ids.jsonl"
    names = [None, "short", "third"]
    path.write_text(
        "\n".join(
            json.dumps({"tokens": x} | ({"name": n} if n else {})) for x, n in zip(ids, names, strict=True)
        )
    )
    run = kerple_eval.evaluate(models["alibi"], tokens=path, lengths=[16], out=tmp_path / "run")
    row = run.summary().iloc[0]
    assert (row["task"], row["documents"], row["targets"]) == ("tokens", 2, 39 + 32)
    assert math.isnan(row["bits_per_byte"])
    assert ",,float32" in (tmp_path / "run/summary.csv").read_text()
    losses = run.losses()
    assert set(losses["document"]) == {"ids.jsonl:1", "third"}
    third = losses.query("document == 'third' and target == 20")["loss"].item()
    assert third == pytest.approx(naive(models["alibi"], "alibi", tuple(ids[2]), 16, 20), abs=1e-5)


def test_text_and_tokens_are_two_tasks_of_one_run(models: dict[str, str], text: str, tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text(json.dumps({"tokens": list(Path(text).read_bytes())}))
    run = kerple_eval.evaluate(models["alibi"], text=text, tokens=path, lengths=[16], out=tmp_path / "r")
    as_text, as_tokens = (row for _, row in run.summary().iterrows())
    assert (as_text["task"], as_tokens["task"]) == ("text", "tokens")
    assert as_text["nll"] == as_tokens["nll"]
    assert as_text["targets_hash"] == as_tokens["targets_hash"]


def test_float64_and_half_precision(models: dict[str, str], short: Path, tmp_path: Path) -> None:
    tokens = Path(short).read_bytes()
    oracle = np.array(
        [naive(models["rope"], "rope", tokens, (k - 1) // 16 * 16, k) for k in range(1, len(tokens))]
    )
    errors = {}
    for dtype in ("float64", "float32", "bfloat16"):
        run = kerple_eval.evaluate(
            models["rope"], text=short, lengths=[16], dtype=dtype, out=tmp_path / dtype
        )
        assert run.summary()["dtype"].item() == dtype
        errors[dtype] = np.abs(run.losses()["loss"].to_numpy() - oracle).max()
    assert errors["float64"] < 1e-6
    assert errors["float32"] < 1e-5
    assert 1e-4 < errors["bfloat16"] < 0.5


def test_the_seed_of_training_may_be_unknown(tmp_path: Path, text: str) -> None:
    folder = make_model(tmp_path / "m", "nope")
    config = json.loads((folder / "config.json").read_text())
    config["seed"] = None
    (folder / "config.json").write_text(json.dumps(config))
    run = kerple_eval.evaluate(str(folder), text=text, lengths=[16], out=tmp_path / "run")
    assert run.summary()["seed"].isna().all()
    assert "\nm,nope,,16,text," in (tmp_path / "run/summary.csv").read_text()
