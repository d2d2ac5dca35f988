"""examples/: every script and the notebook run, on what the package ships."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import blocks

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "score_your_model.ipynb"

#: Script -> its arguments here, and what it must print and write.
SCRIPTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "score_your_model.py": ([], ["mine", "kerple-log", "position"], []),
    "new_scheme.py": (["20"], ["root", "rope", "against rope"], ["curve.png", "ckpt/root/config.json"]),
    "training_loop.py": (["40", "20"], ["step 20:", "step 40:", "at 1024"], []),
    "sweep.py": (["1"], ["KERPLE-log", "RoPE + YaRN"], ["table.tex", "curve.pdf", "page.html"]),
}


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_every_example_is_listed_and_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)
    page = (EXAMPLES / "README.md").read_text()
    assert all(f"]({path.name})" in page for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


def test_packages_are_those_of_the_pages() -> None:
    """The pages' tests install and run them; here, that examples/ holds the same files and no others."""
    shown = {
        EXAMPLES / block.marks["file"]: block.body
        for page in sorted((EXAMPLES.parent / "docs" / "extending").glob("*.md"))
        for block in blocks(page)
        if block.marks.get("file", "").startswith("kerple-")
    }
    held = {path for path in EXAMPLES.glob("kerple-*/**/*") if path.suffix in (".py", ".toml", ".yaml")}
    assert held == set(shown)
    assert all(path.read_text() == body for path, body in shown.items())
    listed = (EXAMPLES / "README.md").read_text()
    assert {f"]({path.name})" in listed for path in EXAMPLES.glob("kerple-*")} == {True}


def test_the_notebook_is_the_script() -> None:
    script = (EXAMPLES / "score_your_model.py").read_text().splitlines()[2:]
    code = [line for line in script if not line.startswith("# %%") and line]
    cells = [line for cell in code_cells() for line in cell.splitlines() if line]
    assert [line.replace("print(run.table())", "run") for line in code] == cells


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str, tmp_path: Path) -> None:
    arguments, words, written = SCRIPTS[name]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(word in done.stdout for word in words), done.stdout
    assert all((tmp_path / path).stat().st_size for path in written)


@pytest.mark.slow
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in order, in one namespace; the run shows itself as a table of HTML."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for i, cell in enumerate(code_cells()):
            exec(compile(cell, f"{NOTEBOOK.name}[{i}]", "exec"), names)
    assert "position" in printed.getvalue()
    assert "<table" in names["run"]._repr_html_()  # type: ignore[attr-defined]
