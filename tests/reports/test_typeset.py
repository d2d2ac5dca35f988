"""The one table model: what each format shows of a hostile label is that label, and nothing it could do."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from kerple_eval.reports import escapes
from kerple_eval.reports.typeset import (
    Table,
    TableCell,
    TableRow,
    check_format,
    records_table,
    typeset,
)
from kerple_eval.types import UserError

#: Each does something in at least one of the formats.
HOSTILE = (
    "plain-label_s1", "two\nlines", "a\r\nb\tc", "| a | b |", "*bold* _it_ __x__ ~~no~~", "a*b|c`d``e",
    "<script>alert(1)</script>", "<b>", "<!-- ", "a<b", "x < 0.05", "&amp;lt; &#60; AT&T", "[x](http://e.org)",
    "[x]: /evil", "![i](y)", "# heading", "> quote", "- item", "+ item", "1. item", "12) item", "---", "===",
    "\\", "\\*", "a\\", "`", "``", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "\u202eevil",
    "\u2028next", "\udcff", "=1+1", "+1+1", "-1+1", "@SUM(A1:A9)", "\t=1", " =1", "\uff1d1+1", "[h] first",
    "*", "* starred", "50%_of #1 & {x} ^~$\\", "\ufffea\uffff", "a--b", "---", "=--", '"quoted", comma',
)  # fmt: skip


def hostile_table(label: str) -> Table:
    rows = (
        TableRow((TableCell(label), TableCell("1.50", 1.5, best=True), TableCell(label, code=True))),
        TableRow((TableCell("b"), TableCell("-", missing=True), TableCell(""))),
    )
    return Table(label, (label, "512*", label), rows, (label,), frozenset({0, 2}))


def shown(label: str) -> str:
    """A label on one line, as Python would write what cannot be printed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in label)


def test_what_is_shown_is_one_printable_line() -> None:
    for label in HOSTILE:
        assert escapes.printable(label) == shown(label)
    assert escapes.printable("é ± – 512\u00a0k 模型 \U0001f600") == "é ± – 512\u00a0k 模型 \U0001f600"


def test_the_terminal_gets_printable_lines_alone() -> None:
    for label in HOSTILE:
        text = typeset(hostile_table(label), "text")
        assert not re.search(r"[^\S \n]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\ud800-\udfff]", text)
        title, _, _, _, first, second, _, note = text.splitlines()
        assert title == shown(label)
        assert note.strip() == shown(label).strip()
        assert first.split() == [*shown(label).split(), "1.50", *shown(label).split()]
        assert second.split() == ["b", "-"]


def test_the_terminal_aligns_wide_characters() -> None:
    rows = tuple(TableRow((TableCell(label), TableCell("1.50"))) for label in ("模型", "abcd"))
    *_, first, second, _ = typeset(Table("t", ("m", "n"), rows), "text").splitlines()
    assert (first, second) == ("  模型  1.50", "  abcd  1.50")


def test_markdown_shows_the_label_and_renders_nothing_of_it() -> None:
    """Read by markdown-it, which follows CommonMark and GitHub's tables."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for label in HOSTILE:
        tokens = reader.parse(typeset(hostile_table(label), "markdown"))
        assert [t.type for t in tokens if t.level == 0 and t.nesting == 1] == [
            "paragraph_open", "table_open", "bullet_list_open",
        ], label  # fmt: skip
        assert not {t.type for t in tokens} & {"html_block", "heading_open", "blockquote_open", "fence"}
        inline = [t for t in tokens if t.type == "inline"]
        texts = ["".join(child.content for child in t.children or ()) for t in inline]
        word = shown(label)
        expected = [word, word, "512*", word, word, "1.50", word, "b", "-", "", word]
        assert [text.strip() for text in texts] == [text.strip() for text in expected], label
        kinds = [{c.type for c in t.children or ()} - {"text", "text_special"} for t in inline]
        bold = {"strong_open", "strong_close"}
        assert kinds == [bold, *[set()] * 4, bold, {"code_inline"}, *[set()] * 4], label


def test_a_markdown_block_cannot_be_left() -> None:
    tokens = MarkdownIt("commonmark").parse("\n".join(escapes.markdown_block("a\n```\n# b\n~~~~\n````")))
    assert [t.type for t in tokens] == ["fence"]
    assert tokens[0].content == "a\n```\n# b\n~~~~\n````\n"
    for words in ("[x](y)", "]", "\\]", "a]b["):
        (paragraph,) = [
            t for t in MarkdownIt("commonmark").parse(f"![{escapes.markdown_alt(words)}](<a>)") if t.children
        ]
        (image,) = paragraph.children or ()
        assert (image.type, "".join(c.content for c in image.children or ())) == ("image", words)


def test_csv_holds_no_formula_and_every_number() -> None:
    for label in HOSTILE:
        rows = list(csv.reader(io.StringIO(typeset(hostile_table(label), "csv"))))
        assert [len(row) for row in rows] == [3, 3, 3]
        assert rows[1][1] == "1.5"
        assert rows[2] == ["b", "", ""]
        for field in (rows[0][0], rows[0][2], rows[1][0], rows[1][2]):
            assert field.removeprefix("'") == shown(label)
            assert not field.lstrip().startswith(tuple("=+-@\uff1d"))
            assert field.startswith("'") is shown(label).lstrip().startswith(tuple("=+-@\uff1d"))
    table = records_table(("a", "b", "c", "d"), [{"a": -0.1, "b": None, "c": "-0.1", "d": 3}])
    assert typeset(table, "csv") == "a,b,c,d\n-0.1,,'-0.1,3\n"


class Texts(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("td", "th", "li", "p"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data.strip("\n")


def test_html_shows_the_label() -> None:
    known = {"div", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p", "strong", "code"}
    for label in HOSTILE:
        read = Texts(typeset(hostile_table(label), "html"))
        word = shown(label)
        assert read.tags == known
        assert read.cells == [word, word, "512*", word, word, "1.50", word, "b", "-", "", word]


def test_latex_rows_are_whole_and_protected() -> None:
    r"""No command before a row may take the row's first character: ``\\[`` is a distance, ``\\*`` a star."""
    for label in HOSTILE:
        text = typeset(hostile_table(label), "latex")
        lines = text.splitlines()
        assert lines[0] == r"\begin{table}"
        assert lines[-1] == r"\end{table}"
        body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
        assert [line.endswith(r" \\") for line in body] == [True, False, True, True]
        for line in body:
            assert line[0] not in "[*"
        bare = re.sub(r"\\textbackslash{}|\\[&%$#_{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert [len(re.findall("&", re.sub(r"\\&", "", line))) for line in body] == [2, 0, 2, 2]
        outside_commands = re.sub(r"\\\w+|\\\\|\\[&%$#_{}]|\$\^|\$", "", "\n".join([lines[2], *body]))
        assert not re.search(r"[#$%~^<>|]", outside_commands)
        assert "--" not in outside_commands
    assert escapes.latex("a – b ± c†") == r"a -- b $\pm$ c$^\dagger$"


def test_rows_become_columns() -> None:
    rows = (
        TableRow((TableCell("a"), TableCell("1"), TableCell("2")), heading="A"),
        TableRow((TableCell("b"), TableCell("3"), TableCell("4"))),
    )
    table = Table("t", ("model", "512", "1024"), rows, ruled_column=1, spaced=True)
    turned = table.transposed("length")
    assert turned.head == ("length", "A", "b")
    assert [[c.text for c in row.cells] for row in turned.rows] == [["512", "1", "3"], ["1024", "2", "4"]]
    assert [row.rule_below for row in turned.rows] == [True, False]
    assert turned.ruled_column is None


def test_empty_columns_go_and_words_keep_their_columns() -> None:
    cells = (TableCell("a"), TableCell(""), TableCell("1"), TableCell("w"))
    table = Table("t", ("m", "none", "n", "said"), (TableRow(cells),), words=frozenset({0, 3}))
    kept = table.without_empty_columns()
    assert (kept.head, kept.words) == (("m", "n", "said"), {0, 2})


def test_unknown_formats_are_refused() -> None:
    check_format("latex")
    with pytest.raises(UserError, match="unknown table format 'markdwn': did you mean 'markdown'"):
        check_format("markdwn")
    with pytest.raises(UserError, match="unknown table format 'htlm': did you mean 'html'"):
        typeset(hostile_table("a"), "htlm")
