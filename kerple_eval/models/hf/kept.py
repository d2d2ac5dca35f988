"""What transformers makes of a large GGUF header, kept on disk by the header's hash.

Merges are made anew of a vocabulary without them: about ten seconds of a core for 262,144 pieces, and the
same file is opened by ``inspect``, by a dry run and by the run itself. Kept below ``$XDG_CACHE_HOME``
(``~/.cache``) in ``kerple-eval/gguf``, one JSON file for each header, transformers release and kind;
deleting it is safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kerple_eval.models.hf.gguf import header_bytes, metadata
from kerple_eval.support.files import write_atomically
from kerple_eval.types import UserError

PIECES = 50_000  # of a vocabulary, from which on it takes seconds
_TOKENS = "tokenizer.ggml.tokens"


def kept(path: Path, kind: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """``make()``, or what it gave before for the same header; a small file is always read anew."""
    import transformers  # noqa: PLC0415

    pieces = metadata(path).get(_TOKENS, 0)
    if not isinstance(pieces, int) or pieces < PIECES:
        return make()
    key = f"{transformers.__version__} {kind} ".encode() + header_bytes(path)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = root / "kerple-eval" / "gguf" / f"{hashlib.sha256(key).hexdigest()}.json"
    try:
        stored = json.loads(file.read_bytes())
        if isinstance(stored, dict):
            return stored
    except (OSError, ValueError):
        pass  # not kept yet, or not whole
    print(
        f"{path}: reading its {kind} ({pieces:,} pieces) takes about ten seconds, once: it is kept in "
        f"{file.parent}",
        file=sys.stderr,
    )
    made = make()
    with contextlib.suppress(UserError):  # a folder that cannot be written: read anew the next time
        write_atomically(file, json.dumps(made).encode())
    return made
