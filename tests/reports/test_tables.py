"""Tables from run directories written by hand: what is bold, what is marked, what is said beside them."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.numbers import number
from kerple_eval.reports.tables.table import make
from kerple_eval.types import UserError
from tests.helpers.handmade import row, write_run
from tests.helpers.markdown import body, header


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Three models at 512, 1024, 2048; one tie up to rounding; one failed and one missing cell."""
    lines = [
        row("log", 512, 24.0), row("log", 1024, 23.456), row("log", 2048, 1234.5),
        row("alibi", 512, 24.000001), row("alibi", 1024, 25.0), row("alibi", 2048, None),
        row("rope", 512, 25.5), row("rope", 1024, 187.04),
    ]  # fmt: skip
    return write_run(tmp_path / "plain", lines)


def test_markdown(plain: Path) -> None:
    text = make([plain], "markdown")
    assert header(text) == ["512\\*", "1024", "2048"]
    assert body(text) == {
        "log": ["**24.00**", "**23.46**", "1234"],
        "alibi": ["**24.00**", "25.00", "failed"],
        "rope": ["25.50", "187.0", "-"],
    }
    assert "sotu, full-context: perplexity against length; \\* trained length 512" in text
    assert "alibi at 2048 failed: MemoryError: no room" in text
    assert "3 documents, 3,000 targets, the same at every length (hash aaaa)" in text


def test_text_has_bold_where_there_is_colour(plain: Path) -> None:
    title, _, heading, *lines = make([plain], "text", color=True).splitlines()
    assert [title[:4], heading.split()[0][:4]] == ["\x1b[1m"] * 2
    assert re.findall(r"\x1b\[1m([^\x1b]*)\x1b\[0m", "\n".join(lines)) == ["24.00", "23.46", "24.00"]
    text = make([plain], "text")
    assert "\x1b" not in text
    log = next(line for line in text.splitlines() if line.split()[:1] == ["log"])
    assert log.split() == ["log", "24.00", "23.46", "1234"]
    heading = next(line for line in text.splitlines() if line.split()[:1] == ["model"])
    assert heading.split() == ["model", "512*", "1024", "2048"]


def test_text_keeps_every_column_of_a_wide_table(tmp_path: Path) -> None:
    lengths = [2**i for i in range(5, 25)]
    name = "a-label-of-forty-characters-or-even-more"
    text = make([write_run(tmp_path, [row(name, n, 20.0 + n) for n in lengths])], "text")
    line = next(line for line in text.splitlines() if line.split()[:1] == [name])
    assert len(line.split()) == 1 + len(lengths)


def test_csv_has_full_precision_and_empty_fields(plain: Path) -> None:
    found = list(csv.reader(io.StringIO(make([plain], "csv"))))
    assert found == [
        ["task", "protocol", "value", "model", "train_length", "512", "1024", "2048"],
        ["sotu", "full-context", "ppl", "log", "512", "24.0", "23.456", "1234.5"],
        ["sotu", "full-context", "ppl", "alibi", "512", "24.000001", "25.0", ""],
        ["sotu", "full-context", "ppl", "rope", "512", "25.5", "187.04", ""],
    ]


def test_a_perplexity_beyond_floats_is_an_empty_field(tmp_path: Path) -> None:
    lines = [row("log", 512, "", nll=800.0), row("rope", 512, 20.0)]
    folder = write_run(tmp_path, lines)
    assert [r[-1] for r in csv.reader(io.StringIO(make([folder], "csv")))] == ["512", "", "20.0"]
    assert "None" not in make([folder], "markdown")


def test_one_model_alone_is_not_best(tmp_path: Path) -> None:
    assert body(make([write_run(tmp_path, [row("log", 512, 24.0)])], "markdown")) == {"log": ["24.00"]}


def test_different_targets_are_never_compared(tmp_path: Path) -> None:
    lines = [
        row("log", 512, 24.0), row("log", 1024, 20.0),
        row("rope", 512, 25.0), row("rope", 1024, 21.0, targets_hash="bbbb"),
    ]  # fmt: skip
    text = make([write_run(tmp_path, lines)], "markdown")
    assert body(text) == {"log": ["**24.00**", "20.00"], "rope": ["25.00", "21.00"]}
    assert "different targets across models at 1024: no best marked" in text


def test_different_targets_are_not_compared_by_bits_per_byte_either(tmp_path: Path) -> None:
    lines = [
        row("log", 512, 24.0, bits_per_byte=4.0),
        row("rope", 512, 25.0, bits_per_byte=5.0, targets_hash="b"),
    ]
    text = make([write_run(tmp_path, lines)], "markdown")
    assert "bits per byte" in text
    assert "no best marked" in text
    assert text.count("**") == 2 * 2  # the two titles


def test_bits_per_byte_has_its_own_best(tmp_path: Path) -> None:
    lines = [row("log", 512, 24.0, bits_per_byte=5.0), row("rope", 512, 25.0, bits_per_byte=4.0)]
    text = make([write_run(tmp_path, lines)], "markdown")
    first, second = text.split("bits per byte against length")
    assert body(first) == {"log": ["**24.00**"], "rope": ["25.00"]}
    assert body(second) == {"log": ["5.000"], "rope": ["**4.000**"]}


def test_mixed_tokenisers_show_bits_per_byte_alone(tmp_path: Path) -> None:
    lines = [
        row("log", 512, 24.0, bits_per_byte=4.58, targets=3000),
        row("gpt", 512, 99.0, bits_per_byte=1.374, targets=900, targets_hash="bbbb"),
    ]
    text = make([write_run(tmp_path, lines, {"gpt": "tokenizer.json:1"})], "markdown")
    assert "perplexity against" not in text
    assert body(text) == {"log": ["4.580"], "gpt": ["**1.374**"]}
    assert "models with different tokenisers: compare bits per byte, not perplexity" in text
    assert "no best marked" not in text


def test_mixed_tokenisers_without_bytes_mark_no_best(tmp_path: Path) -> None:
    lines = [row("log", 512, 24.0), row("gpt", 512, 99.0, targets_hash="bbbb")]
    text = make([write_run(tmp_path, lines, {"gpt": "tokenizer.json:1"})], "markdown")
    assert body(text) == {"log": ["24.00"], "gpt": ["99.00"]}
    assert "different tokenisers" in text


def test_targets_that_fall_with_length_are_said(tmp_path: Path) -> None:
    lines = [
        row(m, n, 20.0, targets=t, targets_hash=h, protocol="last:k=256")
        for m in ("log", "rope") for n, t, h in ((512, 2560, "a"), (1024, 1280, "b"))
    ]  # fmt: skip
    text = make([write_run(tmp_path, lines)], "text")
    assert "targets differ between lengths (512: 2,560; 1024: 1,280)" in text


def test_the_note_counts_targets_where_the_first_length_failed(tmp_path: Path) -> None:
    text = make([write_run(tmp_path, [row("log", 512, None), row("log", 1024, 20.0)])], "text")
    assert "3 documents, 3,000 targets" in text


def test_trained_lengths_that_differ_get_a_column(tmp_path: Path) -> None:
    lines = [
        row("log", 512, 24.0),
        row("rope", 512, 25.0, train_length=1024),
        row("who", 512, 26.0, train_length=""),
    ]
    text = make([write_run(tmp_path, lines)], "markdown")
    assert header(text) == ["trained", "512"]
    assert body(text) == {"log": ["512", "**24.00**"], "rope": ["1024", "25.00"], "who": ["?", "26.00"]}


def test_a_trained_length_outside_the_table_is_in_the_title(tmp_path: Path) -> None:
    text = make([write_run(tmp_path, [row("log", 1024, 24.0), row("log", 2048, 25.0)])], "markdown")
    assert "; trained at 512" in text
    assert header(text) == ["1024", "2048"]


def test_one_table_a_task_and_protocol(tmp_path: Path) -> None:
    lines = [
        row("log", 512, 24.0),
        row("log", 512, 21.0, protocol="aligned:k=4"),
        row("log", 512, 9.0, task="pg19"),
    ]
    text = make([write_run(tmp_path, lines)], "markdown")
    titles = re.findall(r"\*\*(.*): perplexity", text)
    assert titles == ["sotu, full-context", "sotu, aligned:k=4", "pg19, full-context"]


def test_runs_together_keep_models_of_one_name_apart(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / place / "run", [row("log", 512, ppl), row(f"own{i}", 512, 30.0 + i)])
        for i, (place, ppl) in enumerate((("a", 24.0), ("b", 23.0), ("c", 22.0)))
    ]
    found = body(make(folders, "markdown"))
    assert found == {
        "log": ["24.00"],
        "own0": ["30.00"],
        "log (run)": ["23.00"],
        "own1": ["31.00"],
        f"log ({folders[2]})": ["**22.00**"],
        "own2": ["32.00"],
    }
    assert make([folders[0], folders[0]], "csv") == make([folders[0]], "csv")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3.2144, "3.214"), (23.914, "23.91"), (185.24, "185.2"), (14039.4, "14039"), (None, "")],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


NASTY = "50%_of #1 & {x} ^~$\\"


def test_latex_escapes_and_is_balanced(tmp_path: Path) -> None:
    lines = [row(NASTY, 512, 24.0), row("b", 512, 25.0), row("b", 1024, 26.0), row("c", 512, None)]
    folder = write_run(tmp_path, lines)
    text = make([folder], "latex")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[&%$#_{}]", "", code)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[#$%~^]", bare)
    begun = re.findall(r"\\begin{(\w+)}", code)
    assert begun == ["table", "tabular"]
    assert re.findall(r"\\end{(\w+)}", code) == begun[::-1]
    assert r"\begin{tabular}{@{}lrr@{}}" in code
    assert [code.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    table_rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert len(table_rows) == 1 + 3
    assert {line.count("&") for line in table_rows} == {2}
    assert (
        r"50\%\_of \#1 \& \{x\} \textasciicircum{}\textasciitilde{}\$\textbackslash{} & \textbf{24.00} & -"
        in code
    )
    assert r"c & failed & -" in code


SCHEMES = ("kerple-log", "kerple-power", "alibi", "t5", "rope", "sinusoidal")
COMPILED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "odd": ([row(NASTY, 512, 24.0), row("b", 512, 25.0)], {}),
    **{
        f"table {table}": (
            [
                row(f"{scheme}-s{seed}", 512 * 2**i, 20.0 + seed + 40.0 * i * k, scheme=scheme, seed=seed)
                for k, scheme in enumerate(SCHEMES)
                for i in range(6)
                for seed in (1, 2, 3)
            ],
            {"over_seeds": True, "against": f"paper:table={table}"},
        )
        for table in (3, 5, 6, 9, 10)
    },
}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
@pytest.mark.parametrize("name", COMPILED)
def test_latex_compiles_within_the_width_of_the_text(name: str, tmp_path: Path) -> None:
    lines, options = COMPILED[name]
    folder = write_run(tmp_path / "run", lines)
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(head + make([folder], "latex", **options) + "\\end{document}\n")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert "Overfull" not in (tmp_path / "t.log").read_text(errors="replace")


def test_refusals(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [row("log", 512, 24.0)])
    with pytest.raises(UserError, match="did you mean 'markdown'"):
        make([folder], "markdwn")
    (folder / "summary.csv").write_text("model,ppl\nlog,3\n")
    with pytest.raises(UserError, match=r"summary\.csv: not a summary"):
        make([folder])
    (folder / "summary.csv").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        make([folder])
    with pytest.raises(UserError, match="no cell has been run yet"):
        make([write_run(tmp_path / "empty", [])])


def test_a_damaged_summary_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [row("log", 512, 24.0), row("rope", 512, None)])
    file = folder / "summary.csv"
    whole = file.read_text()
    cases: list[tuple[str, bytes | str]] = [
        ("length '5.0', expected a whole number", whole.replace(",512,3,", ",5.0,3,")),
        ("length '-1', expected a whole number", whole.replace(",512,3,", ",-1,3,")),
        ("targets '99999999999", whole.replace(",3000,", f",{'9' * 40},")),
        ("nll 'nan', expected a number of at least 0", whole.replace(",1.0,24.0", ",nan,24.0")),
        ("ppl 'inf', expected", whole.replace(",1.0,24.0", ",1.0,inf")),
        ("ppl 'many', expected", whole.replace(",1.0,24.0", ",1.0,many")),
        ("status 'fine', expected ok or failed", whole.replace(",ok,", ",fine,")),
        ("no targets in the row", whole.replace(",3000,aaaa", ",,aaaa")),
        ("no length in the row", whole.replace(",512,3,", ",,3,")),
        ("a row of 3 fields, expected 18", whole + "a,b,c\n"),
        ("a row of 19 fields, expected 18", whole.replace("no room", "no room,x")),
        (
            "a row of 'other, sotu, full-context, 512', a cell that run.json does not",
            whole.replace("\nrope,", "\nother,"),
        ),
        ("not UTF-8", whole.encode() + b"\xff"),
        ("damaged: field larger than", whole + "x" * 200_000),
        ("its columns are not the contract's", ""),
    ]
    for message, content in cases:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError) as refused:
            make([folder])
        assert str(file) in str(refused.value)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < len(str(file)) + 250
    file.unlink()
    os.mkfifo(file)  # nobody writes into it: waiting would never end
    with pytest.raises(UserError, match="not a regular file"):
        make([folder])


def test_bits_per_byte_of_other_bytes_mark_no_best(tmp_path: Path) -> None:
    """3000 and 900 targets of 1 nat: 3000 / (ln 2 x 4.58) = 945 bytes, 900 / (ln 2 x 1.1) = 1180."""
    lines = [
        row("log", 512, 24.0, bits_per_byte=4.58, targets=3000),
        row("gpt", 512, 99.0, bits_per_byte=1.1, targets=900, targets_hash="bbbb"),
    ]
    text = make([write_run(tmp_path, lines, {"gpt": "tokenizer.json:1"})], "markdown")
    assert body(text) == {"log": ["4.580"], "gpt": ["1.100"]}
    assert "warning: other bytes scored across models (512: 945 or 1,180): no best marked" in text


def test_tokenisers_do_not_matter_where_token_ids_were_given(tmp_path: Path) -> None:
    lines = [row("log", 512, 24.0, task="tokens"), row("gpt", 512, 99.0, task="tokens")]
    text = make([write_run(tmp_path, lines, {"gpt": "tokenizer.json:1"})], "markdown")
    assert body(text) == {"log": ["**24.00**"], "gpt": ["99.00"]}
    assert "tokenisers" not in text


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63) + 1])
def test_a_seed_of_64_bits_is_read(seed: int, tmp_path: Path) -> None:
    assert "24.00" in make([write_run(tmp_path, [row("log", 512, 24.0, seed=seed)])])


def test_a_folder_given_twice_is_one_run_however_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "r", [row("log", 512, 24.0)])
    (tmp_path / "link").symlink_to("r")
    monkeypatch.chdir(tmp_path)
    reader = RunReader(["r", "./r/", tmp_path / "r", "r/../r", "link"])
    assert (reader.folders, len(reader.runs)) == (("r",), 1)
