"""README and docs/: every command and every Python block runs, and prints what the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kerple_eval.schemes.catalogue import SCHEMES
from tests.docs.blocks import PAGES, ROOT, Block, blocks, same, tidy, with_outputs
from tests.docs.blocks import run_page as run

MOST_NOT_RUN = 15
READ_ONLY = {"text", "math", "yaml", "toml", "json"}  # languages of blocks that are for reading, or files


def every_block() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def test_blocks_say_what_they_are() -> None:
    for block in every_block():
        assert block.language in {"sh", "python"} | READ_ONLY, f"{block.where}: {block.language!r}"
        reason = block.marks.get("not run")
        assert reason is None or any(word in reason for word in ("GPU", "hub", "minutes")), block.where
    not_run = [block.where for block in every_block() if "not run" in block.marks]
    assert len(not_run) <= MOST_NOT_RUN, not_run


def test_no_output_is_left_open() -> None:
    for page in PAGES:
        for block, output in with_outputs(page):
            assert output is None or output.body.strip() not in ("", "..."), f"{block.where}: no output shown"


def test_outputs_are_compared_up_to_times_and_rounding() -> None:
    assert same("a 2.813 b\n", "a  2.8131 b\n")
    assert not same("a 2.813\n", "a 2.83\n")
    assert not same("12 cells\n", "13 cells\n")
    assert not same("a\n", "a\nb\n") and not same("a\nb\n", "a\n")
    assert same("a\n...\nd\n", "a\nb\nc\nd\n") and not same("a\n...\ne\n", "a\nb\nd\n")
    assert tidy("done in 3.2 s") == tidy("done in 17 s")


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    for block in reversed(blocks(ROOT / "README.md")):
        text = text[: block.span[0]] + text[block.span[1] :]
    assert len(text.split()) <= 600


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub and the site make it."""
    words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"\s", "-", words)


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "examples" / "README.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                assert anchor in map(slug, headings), f"{page.name}: {target}"


def test_readme_counts_the_schemes() -> None:
    assert len(SCHEMES) == 49
    assert "Forty-nine positional schemes" in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    wrong = run(page, tmp_path)
    assert not wrong, "\n\n".join(f"{b.where} shows\n{b.body}\nprinted\n{text}" for b, text in wrong)
