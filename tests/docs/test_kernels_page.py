"""docs/kernels.md: its numbers, rules and refusals are computed again, and its commands are run."""

from __future__ import annotations

import csv
import doctest
import math
import re
import shlex
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from kerple_eval.cli.main import cli
from kerple_eval.schemes.kernel_view import kernel_reaches
from kerple_eval.schemes.kernels import PD, ClosureError, is_cpd, is_pd, kernel_matrix, parse_kernel
from kerple_eval.schemes.kernels.parameters import draw
from tests.helpers.zoo_kernels import FORMULAS, zoo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kernels.md").read_text()
RESULTS = ROOT / "results" / "zoo-kernels"


def table(first: str) -> list[list[str]]:
    """Rows of the table whose header begins with ``first``; cells without backquotes."""
    lines = iter(PAGE.splitlines())
    assert any(line.startswith(f"| {first} |") for line in lines)  # leaves the iterator after the header
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert rows
    return rows


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_smallest_offsets() -> None:
    """``-1 / (1^T K^-1 1)``, solved here."""
    rows = table("kernel | N = 4 | N = 16 | N = 64 | N = 256")
    assert len(rows) == 5
    for formula, *numbers in rows:
        kernel = parse_kernel(formula).bind({})
        for n, number in zip((4, 16, 64, 256), numbers, strict=True):
            k = kernel_matrix(kernel, torch.arange(n))
            ones = torch.ones(n, dtype=torch.float64)
            smallest = -1 / float(ones @ torch.linalg.solve(k, ones))
            assert float(number) == pytest.approx(smallest, rel=3e-4), (formula, n)
    assert [float(x) for x in rows[1][1:]] == [(n - 1) / 2 for n in (4, 16, 64, 256)]


def test_the_counterexample_in_whole_numbers() -> None:
    for c in (Fraction(1, 1000), Fraction(1), Fraction(10**9)):
        v = (1 + c, -2 * c, c)
        total = sum(v[i] * v[j] * (c - (i - j) ** 2) for i in range(3) for j in range(3))
        assert total == -3 * c
    assert "= -3c < 0" in PAGE


def test_the_closure_rules_build_what_the_table_says() -> None:
    rows = table("rule")
    assert len(rows) == 9
    generator = torch.Generator().manual_seed(0)
    for _, _, formula, kind in rows:
        kernel = parse_kernel(formula)
        assert isinstance(kernel, PD) == (kind == "PD"), formula
        for _ in range(5):
            bound = kernel.bind(draw(kernel.parameters, generator))
            assert is_cpd(bound, 48), formula
            assert is_pd(bound, 48) or kind != "PD", formula


def test_what_it_says_is_refused_is_refused() -> None:
    rows = table("refused")
    assert len(rows) == 6
    for formula, reason in rows:
        with pytest.raises(ClosureError, match=re.escape(reason)):
            parse_kernel(formula)
    assert is_pd(parse_kernel("exp(-log(1+D))").bind({}))
    distance = torch.arange(9.0, dtype=torch.float64)
    torch.testing.assert_close(parse_kernel("exp(-log(1+D))").bind({})(distance), 1 / (1 + distance))


def test_where_a_parameter_stands() -> None:
    for _, kept, starts, formula in table("stands as"):
        (found,) = parse_kernel(formula).parameters.values()
        lowest, highest = kept.strip("[])").split(", ")
        assert (found.lowest, found.highest if found.highest is not None else math.inf) == (
            float(lowest), float(highest),
        )  # fmt: skip
        assert starts == f"U({found.start:g}, {found.stop:g})"


@pytest.mark.parametrize("block", blocks("python"), ids=["checks", "algebra"])
def test_python_blocks(block: str) -> None:
    test = doctest.DocTestParser().get_doctest(block, {}, "docs/kernels.md", None, 0)
    assert test.examples
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.slow
@pytest.mark.slow
def test_a_kernel_of_ones_own_in_five_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own commands, in an empty folder with two small texts."""
    (block,) = blocks("sh")
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [words[:2] for words in commands] == [
        ["kerple-eval", verb] for verb in ("train", "inspect", "run", "table", "plot")
    ]
    monkeypatch.chdir(tmp_path)
    page = PAGE.encode().decode("ascii", "ignore")
    (tmp_path / "corpus.txt").write_text(page * 4)
    (tmp_path / "book.txt").write_text(page[:3000])
    said = {}
    for words in commands:
        done = CliRunner().invoke(cli, words[1:])
        assert done.exit_code == 0, done.output
        said[words[1]] = done.stdout
    scheme = dict(line.split(None, 1) for line in said["inspect"].splitlines() if line.startswith("scheme"))
    assert set(scheme) == {"scheme", "scheme.r1", "scheme.r2", "scheme.r3", "scheme.r4"}
    with (tmp_path / "runs/mine/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["scheme"], r["length"], r["status"]) for r in rows] == [
        ("kernel", n, "ok") for n in ("64", "256", "1024")
    ]
    assert all(1 < float(r["ppl"]) < 200 for r in rows)  # 256 at the start: it learned something
    assert "mine" in said["table"]
    assert (tmp_path / "mine.pdf").read_bytes().startswith(b"%PDF-")


def test_links_and_figures_are_there() -> None:
    for page in (ROOT / "docs" / "kernels.md", RESULTS / "README.md"):
        targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
        assert targets
        for target in targets:
            assert target.startswith("https://") or (page.parent / target).is_file(), target


def test_the_zoos_numbers() -> None:
    text = (RESULTS / "README.md").read_text()
    for name, formula in FORMULAS.items():
        made = formula()
        first = [next(d for d in range(2000) if made(h, d) - made(h, 0) < -2) for h in range(4)]
        assert f"| {name} | {', '.join(map(str, sorted(first)))} |" in text
    flattest = {name: max(made()(h, 16384) for h in range(4)) for name, made in FORMULAS.items()}
    assert f"logarithmic head stands at {flattest['kerple-log']:.1f}" in text
    assert f"power head at {flattest['kerple-power']:.0f} and ALiBi's at {flattest['alibi']:.0f}" in text
    t5 = FORMULAS["t5"]()
    assert t5(0, 112) != t5(0, 113) == t5(0, 16384)
    assert "one bucket from distance 113 on" in text
    assert kernel_reaches(zoo("alibi").kernel(torch.arange(600).numpy())) == [9, 33, 129, 513]  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_script_makes_the_figures(tmp_path: Path) -> None:
    """Its commands, writing elsewhere; the committed pictures are of the same size."""
    script = (RESULTS / "run.sh").read_text().replace("\\\n", " ")
    commands = [
        shlex.split(line) for line in script.splitlines() if line.startswith("$PYTHON -m kerple_eval")
    ]
    assert {p.name for p in RESULTS.glob("*.png")} == {Path(words[-1]).name for words in commands}
    for words in commands:
        out = tmp_path / Path(words[-1]).name
        done = CliRunner().invoke(cli, [*words[3:-1], str(out)])
        assert done.exit_code == 0, done.output
        assert out.read_bytes()[:24] == (RESULTS / out.name).read_bytes()[:24]  # signature, width, height
