"""The page: nothing fetched, everything escaped, every number linked to the cell it came from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.grid import read_grids
from kerple_eval.reports.page import page
from kerple_eval.reports.page.findings import in_words
from kerple_eval.reports.page.gathered import gather
from kerple_eval.reports.page.sections import warnings
from kerple_eval.types import UserError
from tests.helpers.handmade import row, write_run
from tests.helpers.made_cells import cell, drawn, shifted, write_finished
from tests.helpers.records import session

HOSTILE = '<script>alert("1")</script>&amp;<img src=x onerror=alert(2)>'
VOID = {"meta", "input", "br", "img", "link", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str) -> list[Element]:
        found = [self] if self.tag == tag else []
        return found + [e for child in self.children for e in child.all(tag)]

    def whole(self) -> str:
        return self.text + "".join(child.whole() for child in self.children)


class Tree(HTMLParser):
    """A strict reader: every element is closed by its own end tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = self.here = Element("", {})
        self.every: list[Element] = []
        self.feed(text)
        self.close()
        assert self.here is self.root, f"<{self.here.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {k: v or "" for k, v in attrs}, self.here)
        assert len(element.attributes) == len(attrs)
        self.here.children.append(element)
        self.every.append(element)
        if tag not in VOID:
            self.here = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag, f"</{tag}> closes <{self.here.tag}>"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.text += data


def made(*folders: Path, out: Path | None = None, against: str | None = None) -> tuple[str, Tree]:
    (path,) = page.make(folders, out, against=against)
    text = path.read_text(encoding="utf-8")
    return text, Tree(text)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Six documents, two models at two lengths, with cells on disk and the summary of them."""
    base = drawn(3, [30, 40, 50, 30, 40, 50])
    cells = [
        cell(
            model,
            shifted(base, [length / 1000 + by * (1 + i) for i in range(6)]),
            length=length,
            scheme=model,
        )
        for model, by in (("kerple-log", 0.0), ("rope", 0.05))
        for length in (64, 128)
    ]
    return write_finished(tmp_path / "real", cells)


def test_the_page_asks_for_nothing(real: Path) -> None:
    text, tree = made(real)
    policy = next(e for e in tree.every if e.attributes.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy.attributes["content"]
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc=", text.replace(policy.attributes["content"], ""))
    assert not {e.tag for e in tree.every} & {"link", "img", "iframe", "object", "embed", "base"}
    assert {match[:5] for match in re.findall(r"url\(.{5}", text)} <= {"url(#"}
    (script,) = [e for e in tree.every if e.tag == "script"]
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy.attributes["content"]
    assert not [e for e in tree.every if any(name.startswith("on") for name in e.attributes)]


def test_anchors_are_unique_and_links_lead_somewhere(real: Path) -> None:
    _, tree = made(real)
    ids = Counter(e.attributes["id"] for e in tree.every if "id" in e.attributes)
    assert max(ids.values()) == 1
    links = [e.attributes["href"] for e in tree.every if "href" in e.attributes]
    assert len(links) > 30
    assert {link.removeprefix("#") for link in links} <= set(ids)
    described = [
        e.attributes.get(name) for e in tree.every for name in ("aria-labelledby", "aria-describedby")
    ]
    assert {name for name in described if name} <= set(ids)


def test_every_number_leads_to_its_cell(real: Path) -> None:
    _, tree = made(real)
    ids = {e.attributes["id"]: e for e in tree.every if "id" in e.attributes}
    results = ids["results"].all("table")
    assert len(results) == 2  # perplexity, bits per byte
    summary = [line.split(",") for line in (real / "summary.csv").read_text().splitlines()]
    head = summary[0]
    rows = [dict(zip(head, line, strict=True)) for line in summary[1:]]
    for table, value in zip(results, ("ppl", "bits_per_byte"), strict=True):
        lengths = [th.whole().strip("*") for th in table.all("thead")[0].all("th")][1:]
        assert lengths == ["64", "128", "holds to", "uses"]
        for line in table.all("tbody")[0].all("tr"):
            model = line.all("th")[0].whole()
            for length, td in zip(lengths[:2], line.all("td")[:2], strict=True):
                (link,) = td.all("a")
                target = ids[link.attributes["href"][1:]]
                (want,) = [r for r in rows if (r["model"], r["length"]) == (model, length)]
                assert abs(float(td.whole()) - float(want[value])) < 5.1e-3
                said = target.whole()
                assert target.all("th")[0].whole() == model
                assert length in [td.whole() for td in target.all("td")]
                for key in ("nll", "ppl", "bits_per_byte"):
                    assert f"{float(want[key]):#.8g}" in said
                assert want["targets_hash"] in said
                files = [c.whole() for c in target.all("code") if c.whole().startswith("cells/")]
                assert len(files) == 1
                assert (real / files[0]).is_file()
    for section in ("compared", "sure"):
        assert len([a for a in ids[section].all("a") if a.attributes["href"].startswith("#cell-")]) >= 8


def test_labels_are_text(tmp_path: Path) -> None:
    label = HOSTILE.replace(",", "")
    task = """t" onclick="go()"><img class='task'><!--"""
    lines = [row(label, n, 20.0 + n, scheme="x", task=task) for n in (512, 1024)]
    lines += [row("log", 512, 21.0, task=task), row("log", 1024, None, task=task, error="<b>boom</b>")]
    run = write_run(tmp_path / "r", lines)
    spec = json.loads((run / "run.json").read_text())
    spec["specification"]["tasks"] = [{"name": task, "version": "<u>"}]
    spec["provenance"]["sessions"] = [
        session(command=["kerple-eval", "run", "</code><b>", "--x"], platform="<i>")
    ]
    (run / "run.json").write_text(json.dumps(spec))
    _, tree = made(run)
    assert len([e for e in tree.every if e.tag == "script"]) == 1
    assert not [e for e in tree.every if any(name.startswith("on") for name in e.attributes)]
    assert not [e for e in tree.every if e.tag in ("img", "b", "i", "u")]
    names = [th.whole() for e in tree.every if e.tag == "tbody" for th in e.all("th")]
    assert label in names
    drawn_names = [
        "".join(t.whole().split("\u200b")) for e in tree.every if e.tag == "svg" for t in e.all("text")
    ]
    assert label in drawn_names


def test_tables_have_headers_and_figures_words(real: Path) -> None:
    _, tree = made(real)
    tables = [e for e in tree.every if e.tag == "table"]
    assert len(tables) >= 6
    for table in tables:
        assert table.attributes["aria-label"]
        assert {th.attributes["scope"] for th in table.all("thead")[0].all("th")} == {"col"}
        for line in [tr for body in table.all("tbody") for tr in body.all("tr")]:
            assert [th.attributes["scope"] for th in line.all("th")] == ["row"]
    ids = {e.attributes["id"]: e for e in tree.every if "id" in e.attributes}
    figures = [e for e in tree.every if e.tag == "svg"]
    assert len(figures) == 4  # curve, ratio, scatter, position
    for svg in figures:
        assert svg.attributes["role"] == "img"
        assert len(ids[svg.attributes["aria-describedby"]].whole()) > 60
    words = ids["figure-1-words"].whole()
    for model in ("kerple-log", "rope"):
        assert model in words
    assert next(e for e in tree.every if e.tag == "html").attributes["lang"] == "en"


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_colours_can_be_read() -> None:
    style = Path(page.__file__).with_name("page.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in style.split("@media", 2)[:2])
    assert light.keys() == dark.keys() >= {"page", "text", "soft", "link", "warn", "stripe"}
    for colours in (light, dark):
        pairs = [(ink, paper) for ink in ("text", "soft", "link") for paper in ("page", "stripe", "mark")]
        for ink, paper in [*pairs, ("warn", "warn-page"), ("text", "warn-page"), ("link", "warn-page")]:
            a, b = sorted((luminance(colours[ink]), luminance(colours[paper])))
            assert (b + 0.05) / (a + 0.05) >= (4.5 if (ink, paper) != ("soft", "mark") else 3), (ink, paper)
        a, b = sorted((luminance(colours["blue"]), luminance(colours["page"])))
        assert (b + 0.05) / (a + 0.05) >= 3


def said(folder: Path) -> str:
    return "\n".join(str(getattr(block, "text", "")) for block in warnings(gather([folder], None)).blocks)


def test_no_warning_where_all_is_well(real: Path) -> None:
    assert said(real) == "None: every cell asked for is finished and on disk, on the same targets."


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"targets_hash": "bbbb"}, "different targets at 1024"),
        ({"documents": 2}, "2 documents, and an interval needs 5"),
        ({"dtype": "bfloat16"}, "differ in dtype (bfloat16 and float32)"),
    ],
)
def test_warnings_of_a_cell(changes: dict[str, object], expected: str, tmp_path: Path) -> None:
    lines = [row(m, n, 20.0, documents=9) for m in ("a", "b") for n in (512, 1024)]
    assert expected not in said(write_run(tmp_path / "before", lines))
    lines[-1] = row("b", 1024, 20.0, **({"documents": 9} | changes))
    assert expected in said(write_run(tmp_path / "r", lines))


def test_warnings_of_a_run(tmp_path: Path) -> None:
    lines = [row("a", 512, 20.0), row("b", 512, 20.0), row("b", 1024, None)]
    text = said(write_run(tmp_path / "r", lines, {"b": "tokenizer.json:1"}))
    assert "different tokenisers" in text
    assert "b, sotu, full-context at 1024 failed: MemoryError: no room" in text
    assert "1 cells asked for have not been run" in text
    assert "of 2 finished cells the files are not beside run.json" in text
    by_length = [row("a", n, 20.0, targets_hash=h) for n, h in ((512, "aaaa"), (1024, "cccc"))]
    assert "the targets differ between lengths" in said(write_run(tmp_path / "l", by_length))


def test_the_change_with_length_is_explained(real: Path) -> None:
    _, tree = made(real)
    ids = {e.attributes["id"]: e for e in tree.every if "id" in e.attributes}
    rows = [[x.whole() for x in tr.children] for tr in ids["explained"].all("tbody")[0].all("tr")]
    assert [row[:2] for row in rows] == [["kerple-log", "64 -> 128"], ["rope", "64 -> 128"]]
    for _, _, change, *_ in rows:
        assert float(change.split()[0]) == pytest.approx(0.064, abs=1e-4)  # each loss is 0.064 nats more


def test_one_warning_for_several_tables(tmp_path: Path) -> None:
    lines = [row("a", 512, 20.0, protocol=p) for p in ("full-context", "last:k=4", "prefix")]
    text = said(write_run(tmp_path / "r", lines))
    assert text.count("3 documents, and an interval needs 5") == 1
    assert "sotu full-context, sotu last:k=4 and sotu prefix: 3 documents" in text


def test_seeds_have_a_table_of_their_own(tmp_path: Path) -> None:
    base = drawn(3, [30] * 6)
    cells = [
        cell(f"{m}-s{seed}", shifted(base, [by + 0.01 * seed] * 6), scheme=m, seed=seed)
        for m, by in (("log", 0.0), ("rope", 0.5))
        for seed in (1, 2, 3)
    ]
    _, tree = made(write_finished(tmp_path / "seeds", cells))
    ids = {e.attributes["id"]: e for e in tree.every if "id" in e.attributes}
    tables = [t for t in ids["results"].all("table") if t.all("thead")[0].all("th")[0].whole() == "scheme"]
    assert len(tables) == 1
    rows = {tr.all("th")[0].whole(): tr.all("td")[0].whole() for tr in tables[0].all("tbody")[0].all("tr")}
    for name, by in (("log", 0.0), ("rope", 0.5)):
        mean = np.mean([np.float32(x) for losses in base.values() for x in losses])
        powers = [np.exp(mean + by + 0.01 * seed) for seed in (1, 2, 3)]
        value, spread = (float(part) for part in rows[name].split(" ± "))
        assert value == pytest.approx(np.mean(powers), abs=0.06)
        assert spread == pytest.approx(np.std(powers, ddof=1), rel=0.06)


def test_provenance_down_to_weights_and_command(real: Path) -> None:
    content = json.loads((real / "run.json").read_text())
    digest = "ab" * 32
    content["specification"]["models"][1]["weights_sha256"] = digest
    content["provenance"] = {
        "models": {"rope": "zoo:rope"},
        "sessions": [{
            "began": "2026-11-25T07:18:16+00:00", "kerple_eval": "0.1.0", "torch": "2.13.0",
            "command": ["kerple-eval", "run", "zoo:rope", "--out", "a b"], "python": "3.11.7",
            "platform": "Linux-6", "threads": 1, "device": "x86_64",
        }],
    }  # fmt: skip
    (real / "run.json").write_text(json.dumps(content))
    _, tree = made(real)
    ids = {e.attributes["id"]: e for e in tree.every if "id" in e.attributes}
    whole = ids["provenance"].whole()
    for word in (digest, "zoo:rope", "kerple-eval run zoo:rope --out 'a b'", "2.13.0", "3.11.7", "Linux-6"):
        assert word in whole
    cells = [tr for tr in ids["provenance"].all("tr") if tr.attributes.get("id", "").startswith("cell-")]
    assert len(cells) == 4
    assert [digest[:16] in tr.whole() for tr in cells] == [False, False, True, True]
    for tr in cells:
        assert "float32" in tr.whole()
        assert {"#models-1", "#run-1"} <= {a.attributes["href"] for a in tr.all("a")}


def test_a_file_that_is_gone_is_marked(real: Path) -> None:
    gone = sorted((real / "cells").glob("rope*"))[0]
    gone.unlink()
    _, tree = made(real)
    cells = [e for e in tree.every if e.tag == "tr" and e.attributes.get("id", "").startswith("cell-")]
    files = [tr.all("td")[-1].whole() for tr in cells]
    assert [gone.name in file for file in files] == ["(not here)" in file for file in files]
    assert sum("(not here)" in file for file in files) == 1
    assert len(files) == 4


def test_results_come_first_with_words_table_and_figure(real: Path) -> None:
    _, tree = made(real)
    sections = [e.attributes["id"] for e in tree.every if e.tag == "section"]
    assert sections[:2] == ["results", "warnings"]
    assert sections[-2:] == ["asked", "provenance"]
    results = next(e for e in tree.every if e.attributes.get("id") == "results")
    text = [p.whole() for p in results.all("p") if not p.attributes]
    assert text == [in_words(read_grids(RunReader([real]))[0])]
    (beside,) = [e for e in results.all("div") if e.attributes.get("class") == "beside"]
    assert [len(beside.all(tag)) for tag in ("table", "figure")] == [2, 1]
    (switch,) = [e for e in beside.all("div") if e.attributes.get("class") == "switch"]
    assert [label.whole() for label in switch.all("label")] == ["perplexity", "bits per byte"]
    inputs, panels = switch.all("input"), [e for e in switch.children if e.tag == "div"]
    assert ["checked" in e.attributes for e in inputs] == [True, False]
    assert [e.attributes["id"] for e in inputs] == [e.attributes["for"] for e in switch.all("label")]
    assert [len(panel.all("table")) for panel in panels] == [1, 1]


def test_two_runs_in_one_page(real: Path, tmp_path: Path) -> None:
    other = write_finished(tmp_path / "again", [cell("rope", drawn(9, [30] * 6), length=64)])
    _, tree = made(real, other, out=tmp_path / "both.html")
    ids = {e.attributes["id"]: e for e in tree.every if "id" in e.attributes}
    names = [th.whole() for th in ids["results"].all("tbody")[0].all("th")]
    assert names == ["kerple-log", "rope", "rope (again)"]
    assert {"run-1", "run-2"} <= set(ids)
    third = ids["results"].all("tbody")[0].all("tr")[2]
    anchor = third.all("a")[0].attributes["href"][1:]
    assert "2: again" in ids[anchor].whole()


def test_markdown_says_the_same(real: Path, tmp_path: Path) -> None:
    files = page.make([real], None, "markdown")
    assert [f.name for f in files] == [
        "report.md", "report-curve.png", "report-ratio.png", "report-scatter.png", "report-position.png",
    ]  # fmt: skip
    assert all(f.exists() for f in files)
    text = files[0].read_text()
    _, tree = made(real)
    ids = {e.attributes["id"]: e for e in tree.every if "id" in e.attributes}
    for section in ("results", "compared", "sure", "provenance"):
        for td in ids[section].all("td"):
            assert td.whole().replace(" (not here)", "") in text
    assert "rope" in ids["figure-2-words"].whole()
    assert ids["figure-2-words"].whole() in text


@pytest.mark.parametrize(
    ("out", "style", "expected"),
    [
        ("page.txt", None, "must end with .html or .htm or .md"),
        ("page.html", "markdown", "a markdown page's name must end with .md"),
        (None, "htlm", "did you mean 'html'"),
    ],
)
def test_refusals(out: str | None, style: str | None, expected: str, real: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        page.make([real], tmp_path / out if out else None, style)
    with pytest.raises(UserError, match="did you mean 'rope'"):
        page.make([real], against="roppe")
    assert not list(tmp_path.glob("page*"))


def test_the_page_is_a_function_of_the_run(real: Path) -> None:
    first = made(real)[0]
    assert made(real)[0] == first
