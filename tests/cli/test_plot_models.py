"""``kerple-eval plot`` of models: every kind and format through the command, wrong mixtures in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kerple_eval.cli.main import cli
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.models.scheme_view import _of_layer, view
from kerple_eval.schemes.alibi import Alibi
from kerple_eval.schemes.composite import Stacked
from kerple_eval.types import UserError
from tests.helpers import hf_folders
from tests.helpers.command import Cli, imported, make_model, refusal
from tests.helpers.neox_writer import draw, variant, write

KINDS = ("kernels", "kernel-reach", "matrix")
MAGIC = {"png": b"\x89PNG\r\n", "pdf": b"%PDF-", "svg": b"<?xml"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", MAGIC)
def test_figures_are_written(kind: str, suffix: str, invoke: Cli, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"figure.{suffix}"
    done = invoke("plot", "zoo:kerple-log", "b=zoo:alibi,window=64", "--kind", kind, "--out", str(out),
                  "--length", "48")  # fmt: skip
    assert (done.exit_code, done.stdout) == (0, f"{out}\n"), done.stderr
    first = out.read_bytes()
    assert first.startswith(MAGIC[suffix])
    if suffix == "svg":
        assert "kerple-log" in first.decode()
        assert "b (alibi, window=64)" in first.decode()
    if suffix == "png":
        again = invoke("plot", "zoo:kerple-log", "b=zoo:alibi,window=64", "--kind", kind, "--out", str(out),
                       "--length", "48")  # fmt: skip
        assert again.exit_code == 0
        assert out.read_bytes() == first  # the same command, the same picture


@pytest.fixture(scope="module")
def run(models: dict[str, str], text: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("run") / "r")
    words = ["run", models["alibi"], "--text", str(text), "--length", "16", "--out", out]
    assert CliRunner().invoke(cli, words).exit_code == 0
    return out


BAD: list[tuple[list[str], list[str]]] = [
    (["zoo:rope", "--kind", "kernels"], ["rope has no kernel or weight", "kerple-log", "alibi", "t5"]),
    (["zoo:kerple-log", "zoo:nope", "--kind", "matrix"], ["nope has no kernel or bias", "kerple-log"]),
    (["x=zoo:rope,window=64", "--kind", "matrix"], ["x (rope,window=64) has no kernel or bias"]),
    (["{wht}", "--kind", "kernel-reach"], ["wht (kerple-gauss-1-para-wht) has no kernel to draw"]),
    (["zoo:kerple-log", "--kind", "curve"], ["zoo:kerple-log is a model", "run directories", "kernels"]),
    (["x=zoo:kerple-log", "--kind", "position"], ["x=zoo:kerple-log is a model"]),
    (["zoo:kerple-log"], ["--kind curve takes run directories"]),
    (["{wht}", "--kind", "curve"], ["is a model", "kernel-reach"]),
    (["{run}", "--kind", "kernels"], ["is a run directory", "zoo:NAME", "curve, position"]),
    (["zoo:alibi", "{run}", "--kind", "matrix"], ["is a run directory"]),
    (["{run}", "zoo:alibi", "--kind", "curve"], ["zoo:alibi is a model"]),
    (["{run}", "--head", "0"], ["--kind curve has no --head"]),
    (["{run}", "--length", "64"], ["--kind curve has no --length"]),
    (["zoo:alibi", "--kind", "kernel-reach", "--head", "0"], ["kernel-reach has no --head"]),
    (["zoo:alibi", "--kind", "kernels", "--head", "4"], ["--head 4: alibi has heads 0 to 3"]),
    (["zoo:alibi", "--kind", "kernels", "--layer", "0"], ["shared by all layers", "leave --layer 0 out"]),
    (["zoo:alibi", "--kind", "kernels", "--length", "2"], ["--length 2", "at least 3"]),
    (["zoo:alibi", "--kind", "kernel-reach", "--length", "-1"], ["'-1' is not a number of tokens"]),
    (["zoo:alibi,self-extend=64", "--kind", "kernels"], ["alibi,self-extend=64", "--kind matrix"]),
    (["zoo:alibi", "--kind", "effective-length"], ["called kernel-reach now", "kerple-eval reach DIR"]),
    (["zoo:alibi", "--kind", "kernel"], ["unknown kind of figure 'kernel'", "did you mean 'kernels'"]),
    (["zoo:alibbi", "--kind", "kernels"], ["unknown zoo model 'alibbi'"]),
    (["no/such", "--kind", "kernels"], ["no model 'no/such'"]),
    (["zoo:alibi", "zoo:alibi", "--kind", "kernels"], ["LABEL="]),
    (["zoo:alibi", "--kind", "kernels", "--out", "x.gif"], [".png, .pdf or .svg"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_refusals(
    words: list[str], parts: list[str], run: str, invoke: Cli, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    wht = make_model(tmp_path / "wht", "kerple-gauss-1-para-wht")
    before = set(tmp_path.iterdir())
    filled = [word.format(run=run, wht=wht) for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / "x.png")]
    line = refusal(invoke("plot", *filled, *out))
    for part in parts:
        assert part in line
    assert set(tmp_path.iterdir()) == before


def test_a_layer_is_asked_for_where_layers_differ(tmp_path: Path) -> None:
    shape = DecoderConfig(vocab_size=4, layers=2, width=4, heads=1, mlp_width=4, train_length=4, scheme="x")
    parts = [Alibi(shape.geometry) for _ in range(2)]
    stacked = Stacked(parts)
    assert _of_layer(stacked, 1, "m", "x") is parts[1]
    with pytest.raises(UserError, match="choose one, --layer 0 to 1"):
        _of_layer(stacked, None, "m", "x")
    with pytest.raises(UserError, match="--layer 2: m has layers 0 to 1"):
        _of_layer(stacked, 2, "m", "x")


def test_kinds_of_runs_import_no_torch(run: str, tmp_path: Path) -> None:
    assert not imported("plot", run, "--out", str(tmp_path / "c.png")) & {"torch", "pandas", "transformers"}


def test_a_release_checkpoint(tmp_path: Path) -> None:
    """neox: the release's tensors, with its clamp at 0.01, against the formula."""
    model = variant(pos_emb="kerple_log")
    tensors = draw(model)
    (a,), (p,) = (
        [x.reshape(-1).clip(0.01) for name, x in tensors.items() if name.endswith(f"rpe.{which}")][:1]
        for which in ("bias_a", "bias_p")
    )
    folder = write(tmp_path / "ckpt", model, shards=2)
    found = view(open_model(parse_model(f"neox:{folder}")), "r", ("kernel",))
    d = np.array([0, 1, 2, 700, 20000])
    np.testing.assert_allclose(found.kernel(d), -p[:, None] * np.log(1 + a[:, None] * d), rtol=1e-6)
    done = CliRunner().invoke(
        cli, ["plot", f"neox:{folder}", "--kind", "kernels", "--out", f"{tmp_path}/k.svg"]
    )
    assert done.exit_code == 0
    assert "ckpt (kerple-log)" in (tmp_path / "k.svg").read_text()


@pytest.mark.parametrize(
    ("name", "part"),
    [("bloom", "BloomForCausalLM has no native form"),
     ("gpt-neox", "m (rope) has no kernel to draw")],
)  # fmt: skip
def test_what_is_no_native_decoder(name: str, part: str, tmp_path: Path, invoke: Cli) -> None:
    folder = hf_folders.save(tmp_path / "m", hf_folders.model(name))
    line = refusal(invoke("plot", f"m=hf:{folder}", "--kind", "kernel-reach", "--out", "x.png"))
    assert part in line
