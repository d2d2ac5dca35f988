"""``yarn``, ``hf-guide``, ``dape``, ``llama-cpp``, ``gptq``: their published arithmetic in float64.

Each oracle follows its source statement by statement on the same transformers model: what it feeds, the
labels it masks, the shift inside the model, and what it averages. Nothing of the package is used.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import kerple_eval
from kerple_eval.types import UserError
from tests.helpers.command import Cli, refusal
from tests.helpers.lm_eval_folders import loaded, save_llama, texts, write_texts


def model_loss(model: Any, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``model(input_ids, labels=labels).loss``: logits at p against label p + 1, -100 left out, averaged."""
    with torch.no_grad():
        logits = model(input_ids).logits.double()
    return torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100)


def yarn(
    model: Any, tokenizer: Any, documents: list[str], max_length: int, sliding: int, *, cut: bool
) -> float:
    """``compute_perplexity`` of jquesnelle/yarn b1d7076, eval/perplexity.py; the mean before exp."""
    add_start_token = tokenizer.bos_token is not None
    max_tokenized_len = max_length - 1 if add_start_token else max_length
    encoded = [tokenizer(t, add_special_tokens=False).input_ids for t in documents]
    if cut:
        encoded = [x[0:max_tokenized_len] for x in encoded]
        sliding = max_tokenized_len
    nlls = []
    for ids in encoded:
        labels = torch.tensor([ids])
        seq_len = labels.size(1)
        prev_end_loc = 0
        for begin_loc in range(0, seq_len, sliding):
            end_loc = min(begin_loc + max_tokenized_len, seq_len)
            trg_len = end_loc - prev_end_loc
            input_ids = labels[:, begin_loc:end_loc]
            if add_start_token:
                input_ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), input_ids], dim=1)
            target_ids = input_ids.clone()
            target_ids[:, :-trg_len] = -100
            nlls.append(model_loss(model, input_ids, target_ids))
            prev_end_loc = end_loc
            if end_loc == seq_len:
                break
    return float(torch.stack(nlls).mean())


def guide(
    model: Any, tokenizer: Any, documents: list[str], max_length: int, stride: int
) -> tuple[float, int]:
    """The loop of docs/source/en/perplexity.md, over one text or several: (avg_nll, n_tokens)."""
    nll_sum, n_tokens = 0.0, 0
    for text in documents:
        encodings = tokenizer(text, return_tensors="pt").input_ids
        seq_len = encodings.size(1)
        prev_end_loc = 0
        for begin_loc in range(0, seq_len, stride):
            end_loc = min(begin_loc + max_length, seq_len)
            trg_len = end_loc - prev_end_loc
            input_ids = encodings[:, begin_loc:end_loc]
            target_ids = input_ids.clone()
            target_ids[:, :-trg_len] = -100
            neg_log_likelihood = float(model_loss(model, input_ids, target_ids))
            num_loss_tokens = int((target_ids != -100).sum()) - target_ids.size(0)
            nll_sum += neg_log_likelihood * num_loss_tokens
            n_tokens += num_loss_tokens
            prev_end_loc = end_loc
            if end_loc == seq_len:
                break
    return nll_sum / n_tokens, n_tokens


def dape(model: Any, tokenizer: Any, documents: list[str], length: int, last: int, *, batch: int) -> float:
    """Batches of whole windows: logits and labels cut to the last min(256, L), a mean a batch, their mean."""
    samples = []
    for text in documents:
        ids = tokenizer(text).input_ids
        samples += [ids[s : s + length + 1] for s in range(0, len(ids) - length, length)]
    losses = []
    for start in range(0, len(samples), batch):
        text = torch.tensor(samples[start : start + batch])
        tokens, labels = text[:, :-1], text[:, 1:]
        with torch.no_grad():
            outputs = model(tokens).logits.double()
        cut = min(last, labels.shape[1])
        losses.append(
            torch.nn.functional.cross_entropy(outputs[:, -cut:].flatten(0, 1), labels[:, -cut:].flatten())
        )
    return float(torch.stack(losses).mean())


def llama_cpp(model: Any, tokenizer: Any, text: str, n_ctx: int, *, add_bos: bool) -> tuple[float, int]:
    """``perplexity()`` of llama.cpp's tools/perplexity/perplexity.cpp, one sequence a batch: (nll, count)."""
    tokens = tokenizer(text).input_ids  # common_tokenize with special tokens added
    n_chunk = len(tokens) // n_ctx
    first = n_ctx // 2
    nll, count = 0.0, 0
    for i in range(n_chunk):
        start = i * n_ctx
        token_org = tokens[start]
        if add_bos:
            tokens[start] = tokenizer.bos_token_id
        with torch.no_grad():
            logits = model(torch.tensor([tokens[start : start + n_ctx]])).logits[0].double()
        tokens[start] = token_org
        for k in range(n_ctx - 1 - first):  # process_logits: row first + k against token first + k + 1
            nll -= float(logits[first + k].log_softmax(0)[tokens[start + first + k + 1]])
        count += n_ctx - first - 1
    return nll / count, count


def gptq(model: Any, tokenizer: Any, text: str, seqlen: int) -> float:
    """``llama_eval`` of IST-DASLab/gptq; the logarithm of its perplexity."""
    testenc = tokenizer(text, return_tensors="pt").input_ids
    nsamples = testenc.numel() // seqlen
    nlls = []
    for i in range(nsamples):
        batch = testenc[:, (i * seqlen) : ((i + 1) * seqlen)]
        with torch.no_grad():
            lm_logits = model(batch).logits.double()
        shift_logits = lm_logits[:, :-1, :]
        shift_labels = testenc[:, (i * seqlen) : ((i + 1) * seqlen)][:, 1:]
        loss = torch.nn.CrossEntropyLoss()(
            shift_logits.reshape(-1, shift_logits.size(-1)), shift_labels.reshape(-1)
        )
        nlls.append(loss * seqlen)
    return float(torch.stack(nlls).sum() / (nsamples * seqlen))


@pytest.fixture(scope="module", params=["adds", "has", "none"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return save_llama(tmp_path_factory.mktemp("llama") / "m", request.param), request.param


def rows(folder: Path, out: Path, protocols: list[str], lengths: list[int], documents: list[str]) -> Any:
    run = kerple_eval.evaluate(
        f"hf:{folder}", out=out, text=write_texts(out.with_suffix(".jsonl"), documents), protocols=protocols,
        lengths=lengths, keep_short=True,
    )  # fmt: skip
    return run.summary().set_index(["protocol", "length"])


def test_yarn(folder: tuple[Path, str], tmp_path: Path) -> None:
    """Strides below, at and beyond the window, and ``--truncate``; documents from 5 to 190 characters."""
    place, markers = folder
    model, tokenizer = loaded(place)
    documents, strides, lengths = texts(), (1, 5, 15, 16, 21), [17, 64]
    if markers == "none":  # without BOS a last window of one token has no target: NaN there, refused here
        strides = (1, 5, 15)
    protocols = [f"yarn:stride={s}" for s in strides] + ["yarn:stride=9,truncate=true"]
    found = rows(place, tmp_path / "r", protocols, lengths, documents)
    for length in lengths:
        for stride in strides:
            wanted = yarn(model, tokenizer, documents, length, stride, cut=False)
            row = found.loc[f"yarn:stride={stride}", length]
            assert row["nll"] == pytest.approx(wanted, rel=1e-6)
            assert row["ppl"] == pytest.approx(math.exp(wanted), rel=1e-6)
        wanted = yarn(model, tokenizer, documents, length, 9, cut=True)
        assert found.loc["yarn:stride=9,truncate=true", length]["nll"] == pytest.approx(wanted, rel=1e-6)
    # The mean over windows is not the mean over targets: the fault shows on this text.
    losses = kerple_eval.open_run(tmp_path / "r").losses(protocol="yarn:stride=5", length=17)["loss"]
    assert abs(losses.mean() - found.loc["yarn:stride=5", 17]["nll"]) > 1e-3
    if markers != "none":
        sizes = sum(len(tokenizer(t, add_special_tokens=False).input_ids) for t in documents)
        assert found.loc["yarn:stride=16", 17]["targets"] == sizes  # every token, the first after BOS
        assert found.loc["yarn:stride=21", 17]["targets"] < sizes  # S > L - 1 drops some


def test_hf_guide(folder: tuple[Path, str], tmp_path: Path) -> None:
    place, _ = folder
    model, tokenizer = loaded(place)
    documents, strides, lengths = texts(), (1, 5, 14, 15), [16, 40]
    found = rows(place, tmp_path / "r", [f"hf-guide:stride={s}" for s in strides], lengths, documents)
    for stride, length in itertools.product(strides, lengths):
        wanted, count = guide(model, tokenizer, documents, length, stride)
        row = found.loc[f"hf-guide:stride={stride}", length]
        assert row["nll"] == pytest.approx(wanted, rel=1e-6)
        assert row["ppl"] == pytest.approx(math.exp(wanted), rel=1e-6)
        if stride < 15:
            assert count < row["targets"]  # the miscount


def test_hf_guide_without_overlap(folder: tuple[Path, str], tmp_path: Path) -> None:
    """Strides of L and beyond, on texts whose last window has two tokens or more."""
    place, _ = folder
    model, tokenizer = loaded(place)
    line = texts()[-1]
    for stride in (16, 19):
        documents = [
            line[:k] for k in range(20, 190, 17)
            if all(len(range(b, len(tokenizer(line[:k]).input_ids))) != 1
                   for b in range(0, len(tokenizer(line[:k]).input_ids), stride))
        ]  # fmt: skip
        assert len(documents) > 3
        found = rows(place, tmp_path / f"r{stride}", [f"hf-guide:stride={stride}"], [16], documents)
        wanted, count = guide(model, tokenizer, documents, 16, stride)
        row = found.loc[f"hf-guide:stride={stride}", 16]
        assert row["nll"] == pytest.approx(wanted, rel=1e-6)
        assert count == row["targets"]  # here each window does lose one


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_dape(batch: int, folder: tuple[Path, str], tmp_path: Path) -> None:
    place, _ = folder
    model, tokenizer = loaded(place)
    documents = texts()
    protocol = f"dape:k=8,batch={batch}"
    found = rows(place, tmp_path / "r", [protocol], [4, 8, 20], documents)
    for length in (4, 8, 20):
        wanted = dape(model, tokenizer, documents, length, 8, batch=batch)
        assert found.loc[protocol, length]["nll"] == pytest.approx(wanted, rel=1e-6)


def test_token_ids_as_given(invoke: Cli, tmp_path: Path) -> None:
    """No marker is guessed: lm-eval-rolling asks for its prefix token, yarn has a BOS only where told."""
    place = save_llama(tmp_path / "m", "has")
    model, tokenizer = loaded(place)
    documents = texts()[3:]
    ids = [tokenizer(t).input_ids for t in documents]
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"tokens": x}) + "\n" for x in ids))
    words = ["run", f"hf:{place}", "--tokens", str(path), "--length", "17", "--keep-short", "--out"]
    line = refusal(invoke(*words, str(tmp_path / "a"), "--protocol", "lm-eval-rolling"))
    assert "needs a prefix token: say which, as in lm-eval-rolling:prefix_token_id=0" in line
    line = refusal(invoke(*words, str(tmp_path / "a"), "--protocol", "yarn:stride=5,bos_token_id=9999"))
    assert "id 9999, beyond its vocabulary" in line
    run = kerple_eval.evaluate(
        f"hf:{place}", out=tmp_path / "r", tokens=path, lengths=[17], keep_short=True,
        protocols=["yarn:stride=5", "yarn:stride=5,bos_token_id=0", "lm-eval-rolling:prefix_token_id=0"],
    ).summary().set_index("protocol")  # fmt: skip
    assert run.index[1] == "yarn:stride=5,bos_token_id=0"
    wanted = yarn(model, tokenizer, documents, 17, 5, cut=False)
    assert run.loc["yarn:stride=5,bos_token_id=0", "nll"] == pytest.approx(wanted, rel=1e-6)
    tokenizer.bos_token = None
    wanted = yarn(model, tokenizer, documents, 17, 5, cut=False)
    assert run.loc["yarn:stride=5", "nll"] == pytest.approx(wanted, rel=1e-6)


def test_max_tokens_cuts_the_same_text_for_every_rule(tmp_path: Path) -> None:
    """31 tokens of each document, BOS or not: the documents of yarn and lm-eval-rolling end alike."""
    for markers in ("adds", "has"):
        place = save_llama(tmp_path / markers, markers)
        run = kerple_eval.evaluate(
            f"hf:{place}", out=tmp_path / f"r-{markers}", lengths=[9], max_tokens=31,
            text=write_texts(tmp_path / "t.jsonl", texts()[-1:]),
            protocols=["full-context", "yarn:stride=3", "lm-eval-rolling", "hf-guide:stride=4"],
        ).summary().set_index("protocol")  # fmt: skip
        own = 30 if markers == "adds" else 31  # tokens of the text
        assert run["targets"].to_dict() == {
            "full-context": 30, "yarn:stride=3": own, "lm-eval-rolling": 31, "hf-guide:stride=4": 30,
        }  # fmt: skip
        assert len(set(run["targets_hash"][["full-context", "hf-guide:stride=4"]])) == 1


def test_llama_cpp_and_gptq(folder: tuple[Path, str], tmp_path: Path) -> None:
    """One joined text; even and odd chunks, and texts that end at a chunk's edge or beside it."""
    place, markers = folder
    model, tokenizer = loaded(place)
    joined = "\n\n".join(texts())
    lengths = [8, 9, 16, 31]
    size = len(tokenizer(joined).input_ids)
    ends = [k for k in (size, size // 16 * 16 - 1, size // 16 * 16, size // 16 * 16 + 1) if k <= size]
    for number, end in enumerate(ends):
        own = 1 if markers == "adds" else 0
        text = tokenizer.decode(tokenizer(joined).input_ids[own:end])
        found = rows(place, tmp_path / f"r{number}", ["llama-cpp", "gptq"], lengths, [text])
        for length in lengths:
            wanted, count = llama_cpp(model, tokenizer, text, length, add_bos=markers == "adds")
            row = found.loc["llama-cpp", length]
            assert row["nll"] == pytest.approx(wanted, rel=1e-6)
            assert row["targets"] == count
            assert found.loc["gptq", length]["nll"] == pytest.approx(
                gptq(model, tokenizer, text, length), rel=1e-6
            )


def test_gptq_on_rows_joined_by_the_text_s_own_rule(tmp_path: Path, invoke: Cli) -> None:
    """``get_wikitext2`` joins every row, blank ones too, by two line breaks; the record says so."""
    place = save_llama(tmp_path / "m", "adds")
    lines = ["", " = One = \n", "", *texts(), " \n", ""]
    file = write_texts(tmp_path / "rows.jsonl", lines)
    words = ["--protocol", "gptq", "--length", "16", "--keep-short", "--out", str(tmp_path / "r")]
    assert invoke("run", f"hf:{place}", "--text", f"{file},join=blank-line", *words).exit_code == 0
    run = kerple_eval.open_run(tmp_path / "r")
    wanted = gptq(*loaded(place), "\n\n".join(lines), 16)
    assert run.summary()["nll"].item() == pytest.approx(wanted, rel=1e-6)
    assert run.specification.tasks[0].source == {"join": {"rows.jsonl": "blank-line"}}
    line = refusal(invoke("run", f"hf:{place}", "--text", f"{file},join=newline", *words))
    assert "join" in line


REFUSED = [
    (["--protocol", "llama-cpp", "--length", "2"], "a chunk of length 2 has no target"),
    (["--protocol", "gptq", "--length", "1"], "a chunk of length 1 has no target"),
    (["--protocol", "llama-cpp", "--length", "100"], "no document gives llama-cpp a window at length 100"),
    (["--protocol", "yarn:stride=0"], "yarn: stride=0 must be at least 1"),
    (["--protocol", "yarn:truncate=yes"], "truncate=yes is not a bool"),
    (["--protocol", "yarn:bos_token_id=-1"], "bos_token_id=-1 must be at least 0"),
    (["--protocol", "lm-eval-rolling:prefix_token_id=-1"], "prefix_token_id=-1 must be at least 0"),
    (["--protocol", "hf-guide:stride=0"], "hf-guide: stride=0 must be at least 1"),
    (["--protocol", "hf-guide", "--length", "1"], "a window of length 1 has no target"),
    (["--protocol", "dape:k=0"], "dape: k=0 must be at least 1"),
    (["--protocol", "dape:batch=0"], "dape: batch=0 must be at least 1"),
    (["--protocol", "yarn", "--bos", "never"], "--bos never has no meaning for protocol yarn"),
    (["--protocol", "yarn", "--length", "1"], "takes one of the L tokens"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_refusals(more: list[str], message: str, invoke: Cli, tmp_path: Path) -> None:
    place = save_llama(tmp_path / "m", "has")
    text = str(write_texts(tmp_path / "t.jsonl", texts()[-1:]))
    words = ["run", f"hf:{place}", "--text", text, "--length", "9", "--out", str(tmp_path / "r"), *more]
    assert message in refusal(invoke(*words))


def test_a_window_without_a_target_is_refused_where_the_tool_has_nan(tmp_path: Path) -> None:
    place = save_llama(tmp_path / "m", "none")
    _, tokenizer = loaded(place)
    line = texts()[-1]
    text = next(line[:k] for k in range(20, 190) if len(tokenizer(line[:k]).input_ids) == 33)
    for protocol in ("yarn:stride=16", "hf-guide:stride=16"):
        with pytest.raises(UserError, match=r"holds one token and no target, where the .* ends in NaN"):
            rows(place, tmp_path / "r", [protocol], [16], [text])


def test_positions_that_depend_on_length_are_refused(tmp_path: Path) -> None:
    """The tools feed one token more than they score, which dynamic scaling would see."""
    place = save_llama(tmp_path / "m", "has")
    for protocol in ("yarn:stride=5", "hf-guide:stride=5"):
        with pytest.raises(UserError, match="feeds one token more than it scores"):
            kerple_eval.evaluate(
                f"hf:{place},rope=dynamic,factor=4", out=tmp_path / "r", lengths=[16], protocols=protocol,
                text=write_texts(tmp_path / "t.jsonl", texts()[-1:]),
            )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "better"),
    [("lm-eval-rolling", "sliding-window"), ("yarn", "sliding-window"), ("hf-guide", "sliding-window"),
     ("dape", "aligned"), ("kerple-release", "aligned")],
)  # fmt: skip
def test_the_list_names_the_better_protocol(name: str, better: str, invoke: Cli) -> None:
    line = next(x for x in invoke("list", "protocols").stdout.splitlines() if x.startswith(name + " "))
    assert line.endswith(f"better: {better}")
