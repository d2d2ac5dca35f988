"""lm-evaluation-harness' layout against its own package: what it prints of ours, what we read of its."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: compat)")

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import make_table

import kerple_eval
from kerple_eval.reports.lm_eval import to_lm_eval
from tests.helpers.lm_eval_folders import save_llama, texts, write_texts


def test_its_table_prints_our_results(models: dict[str, str], text: str, tmp_path: Path) -> None:
    run = kerple_eval.evaluate(models["alibi"], text=text, lengths=[16, 32], out=tmp_path / "run")
    table = make_table(json.loads(json.dumps(to_lm_eval(run, "alibi"))))
    shown = re.findall(r"\|nll *\|↓ *\|([0-9. ]+)\|±", table)
    assert [float(value) for value in shown] == [round(n, 4) for n in run.summary()["nll"]]
    assert "text/full-context/16" in table


def own_evaluation(folder: Path, out: Path) -> dict[str, Any]:
    """lm-eval's own run of a rolling task over texts of ours, saved by its own tracker."""
    data = write_texts(out / "texts.jsonl", texts())
    (out / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\n"
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n  - metric: byte_perplexity\nmetadata:\n  version: 2.0\n"
    )
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    tracker = EvaluationTracker(output_path=str(out / "saved"))
    found: dict[str, Any] = simple_evaluate(
        model="hf", model_args=f"pretrained={folder},max_length=16,dtype=float32", tasks=["mine"],
        device="cpu", batch_size=1, bootstrap_iters=10, evaluation_tracker=tracker, log_samples=False,
        task_manager=TaskManager(include_path=str(out), include_defaults=False),
    )  # fmt: skip
    tracker.save_results_aggregated(results=found, samples=None)
    return found


def test_we_read_what_it_saves(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m", "none")
    found = own_evaluation(folder, tmp_path)
    frame = kerple_eval.read_lm_eval(tmp_path / "saved").set_index("metric")
    for metric in ("bits_per_byte", "byte_perplexity"):
        assert frame.loc[metric, "value"] == found["results"]["mine"][f"{metric},none"]
    assert set(frame["samples"]) == {len(texts())}
    assert set(frame["version"]) == {2.0}
    assert set(frame["model"]) == {str(folder)}
    run = kerple_eval.evaluate(
        f"hf:{folder}", out=tmp_path / "r", text=write_texts(tmp_path / "t.jsonl", texts()),
        protocols="lm-eval-rolling", lengths=[16], keep_short=True,
    )  # fmt: skip
    ours = to_lm_eval(run, "m")
    theirs = set(found) | {"model_source", "model_name", "model_name_sanitized", "task_hashes"}
    assert {"results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"} <= theirs & set(ours)
    (mine,) = ours["results"].values()
    for metric in ("bits_per_byte", "byte_perplexity"):
        assert mine[f"{metric},none"] == pytest.approx(frame.loc[metric, "value"], rel=1e-6)
