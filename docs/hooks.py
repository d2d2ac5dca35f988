"""What the site does that GitHub does by itself: links out of docs/, and mathematics in $`...`$.

A link to a file of the repository outside docs/ works on GitHub and has no page here: it becomes the file's
path, and a path that does not exist ends the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>(?:\.\./)+[^)#]*)(?:#[^)]*)?\)")
INLINE = re.compile(r"\$`(.+?)`\$")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        path = (folder / match["target"]).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return match[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {match['target']} does not exist")
        name = str(path.relative_to(ROOT))
        return f"`{name}`" if match["text"].strip("`") in name else f"{match['text']} (`{name}`)"

    return INLINE.sub(lambda match: f"${match[1]}$", LINK.sub(outside, markdown))
