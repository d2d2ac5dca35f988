"""``lm-eval-rolling`` against lm-evaluation-harness' own package: log-likelihoods, bits per byte."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: compat)")

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
from lm_eval.models.huggingface import HFLM

import kerple_eval
from tests.helpers.lm_eval_folders import loaded, save_llama, texts, write_texts

MARKERS = ("adds", "has", "none", "ends", "around", "two")


def rolled(folder: Path, length: int, documents: list[str], **options: Any) -> list[float]:
    """lm-eval's log-likelihood (nats) of each document, one window at a time.

    In batches of 3 lm-eval 0.4.13 itself gave one of these documents another number at L = 17, by 2.3
    nats, than alone; alone it agrees with its own windows summed in float64.
    """
    lm = HFLM(
        pretrained=str(folder), device="cpu", dtype="float32", batch_size=1, max_length=length, **options
    )
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(documents)]
    return lm.loglikelihood_rolling(requests, disable_tqdm=True)


def sums(run: kerple_eval.Run, length: int, protocol: str = "lm-eval-rolling") -> list[float]:
    losses = run.losses(length=length, protocol=protocol)
    return losses.groupby("document", sort=False)["loss"].sum().tolist()


@pytest.mark.parametrize("markers", MARKERS)
def test_each_document_and_bits_per_byte(markers: str, tmp_path: Path) -> None:
    """Documents shorter than L, of L - 1, L, L + 1 tokens, of multiples and one beyond, at four lengths."""
    folder = save_llama(tmp_path / "m", markers)
    _, tokenizer = loaded(folder)
    documents = texts()
    lengths = [1, 16, 17, 400]
    sizes = [len(tokenizer(t).input_ids) for t in documents]
    around = len(tokenizer("").input_ids)
    line = "".join(t for t in documents)
    for n in (15, 16, 17, 32, 33, 34):  # real tokens, so that every edge of 16 and 17 is met
        cut = next(
            line[i : i + k] for i in range(40) for k in range(n, 3 * n)
            if len(tokenizer(line[i : i + k]).input_ids) == n + around
        )  # fmt: skip
        documents.append(cut)
        sizes.append(n + around)
    run = kerple_eval.evaluate(
        f"hf:{folder}", out=tmp_path / "r", text=write_texts(tmp_path / "t.jsonl", documents),
        protocols="lm-eval-rolling", lengths=lengths, keep_short=True,
    )  # fmt: skip
    summary = run.summary().set_index("length")
    for length in lengths:
        wanted = rolled(folder, length, documents)
        assert [-x for x in sums(run, length)] == pytest.approx(wanted, rel=1e-6)
        pairs = [(ll, len(text.encode())) for ll, text in zip(wanted, documents, strict=True)]
        assert summary.loc[length, "bits_per_byte"] == pytest.approx(bits_per_byte(pairs), rel=1e-6)
        assert 2 ** summary.loc[length, "bits_per_byte"] == pytest.approx(
            weighted_perplexity(pairs), rel=1e-6
        )
        assert summary.loc[length, "targets"] == sum(sizes)
        assert summary.loc[length, "nll"] == pytest.approx(-sum(wanted) / sum(sizes), rel=1e-6)
        assert math.exp(summary.loc[length, "nll"]) == pytest.approx(summary.loc[length, "ppl"])
    (record,) = run.specification.protocols
    marker = record.first_token["text"]["m"]
    assert (marker.rule, marker.id) == ("prefix", 0)
    assert (marker.after is not None) == (markers in ("ends", "around", "two"))


def test_a_prefix_token_of_ones_own(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m", "has")
    documents = texts()
    protocol = "lm-eval-rolling:prefix_token_id=40"
    run = kerple_eval.evaluate(
        f"hf:{folder}", out=tmp_path / "r", text=write_texts(tmp_path / "t.jsonl", documents),
        protocols=protocol, lengths=[16], keep_short=True,
    )  # fmt: skip
    wanted = rolled(folder, 16, documents, prefix_token_id=40)
    assert [-x for x in sums(run, 16, protocol)] == pytest.approx(wanted, rel=1e-6)
    assert wanted != pytest.approx(rolled(folder, 16, documents), rel=1e-4)


@pytest.mark.parametrize("markers", ["adds", "ends", "around", "two"])
def test_a_text_that_begins_with_the_marker(markers: str, tmp_path: Path) -> None:
    """lm-eval then lets the tokeniser put none."""
    folder = save_llama(tmp_path / "m", markers)
    documents = ["<s>the owl throws", "the owl<s> throws"]
    run = kerple_eval.evaluate(
        f"hf:{folder}", out=tmp_path / "r", text=write_texts(tmp_path / "t.jsonl", documents),
        protocols="lm-eval-rolling", lengths=[8], keep_short=True,
    )  # fmt: skip
    assert [-x for x in sums(run, 8)] == pytest.approx(rolled(folder, 8, documents), rel=1e-6)
