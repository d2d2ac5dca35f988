"""What each format needs escaped, in one place: a label, path or message may hold any character.

Every function takes plain text and returns one line of its format that shows that text.
"""

from __future__ import annotations

import html as _html
import re
import unicodedata

#: Two characters that XML, and with it SVG, cannot hold.
_NO_XML = "\ufffe\uffff"
#: Control characters, invisible format characters (which can reverse a line), lone surrogates, line ends.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: What Markdown would read as markup. An underscore within a word is none, and neither is "<" before a
#: space or a digit.
_MARKDOWN = re.compile(
    r"""[\\*|`~]
    | <(?=[A-Za-z/!?])  # raw HTML, or an automatic link
    | &(?=\#?\w+;)      # an entity
    | \](?=[(\[:])      # a link or its definition
    | (?<![^\W_])_ | _(?![^\W_])""",
    re.VERBOSE,
)
_MARKDOWN_ALT = re.compile(rf"{_MARKDOWN.pattern}|[\[\]]", re.VERBOSE)
_ENTITIES = {"<": "&lt;", "&": "&amp;"}
#: What would begin a heading, quotation or list at the start of a line.
_MARKDOWN_START = re.compile(r"^(\s*\d*)((?:[#>]|[-+.)=](?=\s|$)|[-=](?=[-=])).*)", re.DOTALL)
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "†": r"$^\dagger$", "–": "--", "-": "-{}",
}  # fmt: skip
#: A hyphen that another follows would become a dash.
_LATEX_SPECIAL = re.compile("[" + re.escape("".join(_LATEX.keys() - {"-"})) + "]|-(?=-)")
#: A spreadsheet takes a field that begins with one of these for a formula.
_FORMULA = tuple("=+-@＝＋－＠")  # the full-width forms count as well


def printable(text: str) -> str:
    r"""The text for a terminal: what is not printable as Python writes it (``\x1b``, ``\n``, ``\u202e``)."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNPRINTABLE or character in _NO_XML
        else character
        for character in text
    )


def html(text: str) -> str:
    """The text for an element or a quoted attribute."""
    return _html.escape(printable(text))


def markdown(text: str) -> str:
    """The text for a cell or a line that something precedes; :func:`markdown_line` for a whole line."""
    return _MARKDOWN.sub(_markdown_one, printable(text))


def _markdown_one(match: re.Match[str]) -> str:
    return _ENTITIES.get(match[0], "\\" + match[0])


def markdown_alt(text: str) -> str:
    """The text in place of an image, between brackets."""
    return _MARKDOWN_ALT.sub(_markdown_one, printable(text))


def markdown_target(name: str) -> str:
    """A file's name as the target of a link between angle brackets."""
    return re.sub(r"[<>%\\\x00-\x1f\x7f]", lambda match: f"%{ord(match[0]):02X}", name)


def markdown_line(text: str) -> str:
    """The text for a whole paragraph or list item."""
    return _MARKDOWN_START.sub(r"\1\\\2", markdown(text))


def markdown_code(text: str) -> str:
    """The text as a code span, also in a table: its fence is longer than any run of backticks in it."""
    shown = printable(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    space = " " if shown[:1] == "`" or shown[-1:] == "`" else ""
    fence = "`" * (longest + 1)
    return f"{fence}{space}{shown}{space}{fence}"


def markdown_block(lines: str) -> list[str]:
    """Lines of a code block."""
    longest = max((len(run) for run in re.findall("`{3,}", lines)), default=2)
    fence = "`" * (longest + 1)
    return [fence, *(printable(line) for line in lines.split("\n")), fence]


def latex(text: str) -> str:
    """The text for LaTeX; two hyphens stay two."""
    return _LATEX_SPECIAL.sub(lambda match: _LATEX[match[0]], printable(text))


def latex_row(cells: str) -> str:
    r"""Cells of a row; ``\\`` and ``\midrule`` before it would take a first ``[`` or ``*`` as their own."""
    return ("{}" if cells[:1] in ("[", "*") else "") + cells + r" \\"


def csv(text: str) -> str:
    """The text as a field that no spreadsheet takes for a formula: an apostrophe stands before it."""
    shown = printable(text)
    return "'" + shown if shown.lstrip().startswith(_FORMULA) else shown
