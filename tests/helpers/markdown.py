"""Tables read back from their Markdown."""

from __future__ import annotations


def body(markdown: str) -> dict[str, list[str]]:
    """Model -> cells of the first Markdown table."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    found: dict[str, list[str]] = {}
    for line in lines[2:]:
        name, *cells = (part.strip() for part in line.strip("|").split("|"))
        if name in found or name == "model":
            break
        found[name] = cells
    return found


def header(markdown: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith("| model"))
    return [part.strip() for part in line.strip("|").split("|")][1:]
