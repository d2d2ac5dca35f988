"""The scheme ``kernel``: a formula on the command line trained, saved, loaded, evaluated as the rest."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.schemes.catalogue import SchemeEntry
from kerple_eval.schemes.kernel import FormulaKernel
from kerple_eval.schemes.spelling import parse_scheme
from kerple_eval.support.specs import parse_spec
from kerple_eval.types import Geometry, SchemeSpec, UserError
from tests.helpers import oracles, tiny
from tests.helpers.command import Cli

GEOMETRY = Geometry(heads=4, head_dim=4, width=16, layers=2, train_length=8)
FORMULAS = (
    tiny.FORMULA,
    "-D",
    "-log(1+D)",
    "-r1*log(1+r2*D**r3)",
    "r1*exp(-r2*D**r3)",
    "-(r1*D)**r2",
    "-log(2-exp(-D/r1)) - r2*(D**0.5 + log(1+D)**r3)",
    "-r1*D**r1",
)

# --- The text after the colon --------------------------------------------------------------------

SPECS = {
    "kernel: -r1*log(1+r2*D**r3)": "-r1*log(1+r2*D**r3)",
    "kernel:-D": "-D",
    " kernel : -D , r1=2 ": "-D , r1=2",
    "kernel: a:b": "a:b",
    "kernel:formula=-D": "-D",
    "kernel: formula = -D": "-D",
    "kernel:formula=a=b": "a=b",
    "kernel:a=formula=b": "a=formula=b",
}


@pytest.mark.parametrize("given", SPECS)
def test_the_formula_is_all_the_text_after_the_colon(given: str) -> None:
    spec = parse_scheme(given)
    assert spec == SchemeSpec("kernel", (("formula", SPECS[given]),))
    assert parse_scheme(str(spec)) == spec


@pytest.mark.parametrize("given", ["kerple-log", "t5:buckets=8,max_distance=16", "rope: base = 5", "nope"])
def test_other_schemes_are_read_as_before(given: str) -> None:
    plain = parse_spec(given)
    assert parse_scheme(given) == SchemeSpec(plain.name, plain.options)


def test_a_line_without_a_text_option_has_none() -> None:
    assert SchemeEntry("a", "b:C", 2026, "", "", "0", True).text_option == ""


WRONG = {
    "kernel": "kernel needs formula=..., as in kernel:formula=...",
    "kernel:": "nothing after the colon in 'kernel:'; expected kernel: FORMULA",
    "kernl: -D": "unknown scheme 'kernl': did you mean 'kernel'?",
    "kernel: -D,window=3": "kernel: character ',' at column 3: a formula has",
    "kernel: formul=-D": "kernel: character '=' at column 7: a formula has",
    "kernel: -D**2.1": "kernel: 'D**2.1' (column 2 of '-D**2.1'): -D**p is CPD for 0 < p <= 2 only",
    "kernel: __import__('os')": "kernel: character '_' at column 1",
    "kernel: -D/0": "kernel: '-D/0': division by zero",
    "kernel: -x*D": "kernel: 'x' (column 2 of '-x*D'): unknown name",
    "kernel: " + "(" * 10_000 + "D" + ")" * 10_000: "kernel: a formula has at most 300 characters",
    "kernel: −D": r"kernel: character '\u2212' at column 1",
}


@pytest.mark.parametrize("given", WRONG, ids=lambda given: given[:30])
def test_a_wrong_formula_is_one_line_and_status_2(given: str, invoke: Cli, text: str, tmp_path: Path) -> None:
    done = invoke("train", "--scheme", given, "--text", text, "--length", "8", "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {WRONG[given]}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- The scheme ----------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", FORMULAS)
def test_formula_at_every_distance_in_float64(formula: str) -> None:
    made = FormulaKernel(GEOMETRY, formula=formula)
    made.reset_parameters(torch.Generator().manual_seed(1))
    made.project_()
    made.double()
    rows = {name: p.tolist() for name, p in made.named_parameters()}
    got = made.kernel(torch.arange(64, dtype=torch.float64)).detach()
    assert got.shape == (4, 64)
    expected = [oracles.formula(formula, rows, 4, d) for d in range(64)]
    np.testing.assert_allclose(got.T.numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_logits_are_the_formula(formula: str, training: bool) -> None:
    """Kernels without a parameter too, which answer one row for all heads."""
    made = tiny.decoder(tiny.config("kernel", scheme_options={"formula": formula}))
    tokens = tiny.tokens(23)
    with torch.set_grad_enabled(training):
        got = made.head(made(torch.from_numpy(tokens)[None]))[0]
    expected = oracles.decoder_logits(
        tiny.weights(made), tokens.tolist(), layers=2, heads=3, scheme="kernel", options={"formula": formula}
    )
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("-r1*log(1+r2*D)", "kerple-log"),
        ("-r1*D**r2", "kerple-power"),
        ("-r1*log(1+r2*D**r3)", "kerple-3-para-log"),
        ("r1*exp(-r2*D**2)", "kerple-gauss-2-para-bias"),
        ("r1*exp(-r2*D**r3)", "kerple-gauss-3-para-bias"),
    ],
)
def test_the_papers_kernels_written_out_are_the_schemes_to_the_bit(formula: str, name: str) -> None:
    """Same initial values, intervals, kernel and gradients, so the same training."""
    written = scheme_of(tiny.config("kernel", scheme_options={"formula": formula}))
    named = scheme_of(tiny.config(name))
    assert dict(written.constraints) == dict(named.constraints)
    for made in (written, named):
        made.reset_parameters(torch.Generator().manual_seed(3))
        made.project_()
        distance = torch.arange(16384, dtype=torch.float32)
        made.kernel(distance)[:, :512].sum().backward()  # type: ignore[no-untyped-call, union-attr, index]
    for key, parameter in named.named_parameters():
        other = written.get_parameter(key)
        assert torch.equal(other, parameter)
        assert parameter.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-6, atol=1e-6)
    assert torch.equal(written.kernel(distance), named.kernel(distance))  # type: ignore[arg-type]


def test_initial_values_fill_their_ranges_and_are_projected() -> None:
    made = FormulaKernel(
        Geometry(heads=20000, head_dim=1, width=20000, layers=1, train_length=8), formula=tiny.FORMULA
    )
    made.reset_parameters(torch.Generator().manual_seed(0))
    tops = {"r1": 1.0, "r2": 2.0, "r3": 1.0, "r4": 1.0, "r5": 1.0}
    assert [name for name, _ in made.named_parameters()] == list(tops)
    for name, top in tops.items():
        values = made.get_parameter(name).detach()
        assert 0 <= float(values.min()) < 0.001 * top
        assert 0.999 * top < float(values.max()) <= top
        assert float(values.mean()) == pytest.approx(top / 2, abs=0.01 * top)
    made.project_()
    assert float(made.get_parameter("r5").detach().max()) == float(torch.tensor(0.99))


def test_two_formulas_keep_their_own_constraints() -> None:
    one, two = (FormulaKernel(GEOMETRY, formula=f) for f in ("-D**r1", "-r1*D"))
    assert one.constraints == {"r1": (0.01, 2.0)}
    assert two.constraints == {"r1": (0.01, None)}
    assert FormulaKernel.constraints == {}


def test_gradients_are_finite_where_a_root_meets_zero() -> None:
    made = FormulaKernel(GEOMETRY, formula="-(r1*log(1+r2*D**r3))**r4").double()
    made.reset_parameters(torch.Generator().manual_seed(0))
    made.project_()
    made.kernel(torch.tensor([0.0, 1e-9, 1.0], dtype=torch.float64)).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())


# --- From a text to a table --------------------------------------------------------------------------


@pytest.mark.parametrize("formula", ["-r1*log(1+r2*D**r3)", tiny.FORMULA, "-D"])
def test_train_inspect_run(formula: str, invoke: Cli, text: str, tmp_path: Path) -> None:
    out = str(tmp_path / "mine")
    shape = ["--layers", "1", "--width", "8", "--heads", "2", "--batch", "2", "--steps", "4", "--warmup", "1"]
    train = ["train", "--scheme", f"kernel: {formula}", "--text", text, "--length", "8", "--out", out, *shape]
    done = invoke(*train)
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["model"]["scheme"] == "kernel"
    assert config["model"]["scheme_options"] == {"formula": formula}
    assert f"`kernel:formula={formula}`" in (tmp_path / "mine" / "README.md").read_text()

    shown = invoke("inspect", out).stdout
    assert [line.split(maxsplit=1)[1] for line in shown.splitlines() if "options.formula" in line] == [
        formula
    ]
    checkpoint = NativeCheckpoint(tmp_path / "mine")
    for name in FormulaKernel(GEOMETRY, formula=formula).ranges:
        assert f"scheme.{name} " in shown
        start = Decoder(checkpoint.config)
        start.reset_parameters(1)
        trained = checkpoint.decoder().scheme.get_parameter(name)
        assert not torch.equal(trained, start.scheme.get_parameter(name))  # it learned

    done = invoke("run", out, "--text", text, "--length", "8,64", "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    with (tmp_path / "run" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["scheme"], r["length"], r["status"]) for r in rows] == [
        ("kernel", "8", "ok"),
        ("kernel", "64", "ok"),
    ]


def test_a_formula_in_a_checkpoint_is_checked_too(tmp_path: Path, invoke: Cli, text: str) -> None:
    """A config.json that someone else wrote runs nothing and is refused in one line."""
    out = tmp_path / "mine"
    shape = ["--layers", "1", "--width", "8", "--heads", "2", "--steps", "1", "--warmup", "1"]
    assert invoke(
        "train", "--scheme", "kernel:-D", "--text", text, "--length", "8", "--out", str(out), *shape
    )
    config = json.loads((out / "config.json").read_text())
    for formula, rule in (("D.__class__", "character '_'"), ("-D**3", "0 < p <= 2"), (3, "not a str")):
        config["model"]["scheme_options"] = {"formula": formula}
        (out / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError) as caught:
            NativeCheckpoint(out)
        assert rule in str(caught.value)
        assert "config.json" in str(caught.value)


def test_the_list_shows_how(invoke: Cli) -> None:
    (line,) = [x for x in invoke("list", "schemes").stdout.splitlines() if x.startswith("kernel ")]
    assert "kernel: -r1*D**r2" in line
    assert "K H" in line
