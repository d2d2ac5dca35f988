"""The tokeniser of a GPT-NeoX checkpoint: by option, as its configuration names it, or beside it.

GPT-2's byte-level BPE is two files (``vocab.json`` and ``merges.txt``, also under the names below),
any other a ``tokenizer.json`` (``20B_tokenizer.json``). Paths in a configuration are another
machine's: only their last part is looked for, in the checkpoint's own folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kerple_eval.data.tokenizer import Gpt2Tokenizer, JsonTokenizer, Tokenizer
from kerple_eval.models.neox.config import NeoxConfig
from kerple_eval.support.files import inside, is_file
from kerple_eval.types import UserError

PAIRS = (("vocab.json", "merges.txt"), ("gpt2-vocab.json", "gpt2-merges.txt"), ("encoder.json", "vocab.bpe"))
SINGLES = ("tokenizer.json", "20B_tokenizer.json")
OPTIONS = ("tokenizer", "vocab", "merges")


def find_tokenizer(
    config: NeoxConfig, folders: tuple[Path, ...], options: Mapping[str, str]
) -> Tokenizer | None:
    """None where the checkpoint has no tokeniser: then only token ids can be scored."""
    given = [name for name in OPTIONS if name in options]
    if given == ["tokenizer"]:
        return JsonTokenizer(Path(options["tokenizer"]))
    if given == ["vocab", "merges"]:
        return Gpt2Tokenizer(Path(options["vocab"]), Path(options["merges"]))
    if given:
        raise UserError(f"neox: give tokenizer=FILE, or vocab=FILE and merges=FILE; got {', '.join(given)}")
    named, merges = _last_part(config.vocab_file), _last_part(config.merge_file)
    for folder in folders:
        if named and merges and is_file(folder / named) and is_file(folder / merges):
            return Gpt2Tokenizer(inside(folder / named, folder), inside(folder / merges, folder))
        if named and not merges and is_file(folder / named):
            return JsonTokenizer(inside(folder / named, folder))
        tokenizer = _beside(folder)
        if tokenizer is not None:
            return tokenizer
    return None


def _beside(folder: Path) -> Tokenizer | None:
    pairs = [pair for pair in PAIRS if any(is_file(folder / name) for name in pair)]
    singles = [name for name in SINGLES if is_file(folder / name)]
    if len(pairs) + len(singles) > 1:
        names = [*(pair[0] for pair in pairs), *singles]
        raise UserError(
            f"{folder}: holds several tokenisers ({', '.join(names)}); say which: "
            ",tokenizer=FILE or ,vocab=FILE,merges=FILE"
        )
    if singles:
        return JsonTokenizer(inside(folder / singles[0], folder))
    if not pairs:
        return None
    for name in pairs[0]:
        if not is_file(folder / name):
            other = next(n for n in pairs[0] if n != name)
            raise UserError(f"{folder}: has {other} but no {name}; GPT-2's tokeniser needs both")
    vocabulary, merges = (inside(folder / name, folder) for name in pairs[0])
    return Gpt2Tokenizer(vocabulary, merges)


def _last_part(path: str | None) -> str | None:
    return Path(path).name or None if path else None
