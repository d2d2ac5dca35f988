"""The tokeniser of a Hugging Face checkpoint: its ``tokenizer.json``, or what its files convert to.

A ``tokenizer.json`` is read by the ``tokenizers`` library as it stands. Vocabularies in other files
(``vocab.json`` with ``merges.txt``, SentencePiece models, those inside a GGUF file) are converted by
transformers, without running code of the checkpoint, and then go the same way. What the tokeniser puts
around a text is what its post-processor puts: transformers 5, too, ignores ``add_bos_token`` and
``add_eos_token`` where there is a ``tokenizer.json`` (``tokenization_utils_base.py: _from_pretrained``).
Some of its classes write a post-processor over the file's (GPT-NeoX puts nothing, T5 ends with ``</s>``);
where the checkpoint names one of them, that class is asked.
Which token begins and ends a document is what ``tokenizer_config.json``, ``special_tokens_map.json`` or
``config.json`` declare; names are guessed only where none of them says.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kerple_eval.data.tokenizer import JsonTokenizer, guarded, markers_around
from kerple_eval.models.hf.files import CheckpointFolder, inside, stamp
from kerple_eval.models.hf.gguf_reader import quick_reader
from kerple_eval.models.hf.kept import kept
from kerple_eval.support.readers import quoted, read_json
from kerple_eval.types import UserError

Around = tuple[tuple[int, ...], tuple[int, ...]]

_CONVERTIBLE = (
    "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.model",
)  # fmt: skip


class HfTokenizer(JsonTokenizer):
    """A ``tokenizer.json`` with the markers that the checkpoint declares.

    ``declared`` holds ``bos_token``, ``eos_token`` (texts), ``bos_token_id`` and ``eos_token_id`` (numbers)
    as far as the checkpoint's files give them. ``around``: the ids before and after a text, where not the
    file decides which.
    """

    def __init__(self, path: Path, declared: dict[str, Any], around: Around | None = None) -> None:
        super().__init__(path)
        if around is not None and around != (self.before, self.after):
            self.before, self.after = around
            self.identity += f"+before={list(self.before)},after={list(self.after)}"
        guessed = (self.bos, self.end_of_document, bool(self.before))
        self.bos = self._marker("bos", declared, self.bos)
        self.end_of_document = self._marker("eos", declared, self.end_of_document)
        adds_bos = self.before[:1] == (self.bos,)
        if guessed != (self.bos, self.end_of_document, adds_bos):  # another tokeniser than the file alone
            self.identity += f"+bos={self.bos},eos={self.end_of_document},adds_bos={adds_bos}".lower()

    @property
    def special_ids(self) -> list[int]:
        """Ids of the tokens that the tokeniser's file marks as special."""
        tokens = self._fast.get_added_tokens_decoder()
        return [number for number, token in tokens.items() if token.special]

    def _marker(self, name: str, declared: dict[str, Any], guessed: int | None) -> int | None:
        token = declared.get(f"{name}_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            number = self._fast.token_to_id(token)
            return None if number is None else int(number)
        if f"{name}_token" in declared:
            return None  # the tokeniser's file says that there is none
        number = declared.get(f"{name}_token_id")
        if isinstance(number, list):
            number = number[0] if number else None
        if isinstance(number, int) and 0 <= number < self.vocab_size:
            return number
        return guessed


def read_tokenizer(
    folder: CheckpointFolder, config: dict[str, Any], given: str | None = None
) -> HfTokenizer | None:
    """The tokeniser ``given`` as a file, or that in the folder (or in the GGUF file), or None."""
    root = folder.root
    declared = {key: config[key] for key in ("bos_token_id", "eos_token_id") if config.get(key) is not None}
    if given is not None:
        return HfTokenizer(Path(given), declared)
    if folder.gguf is not None:
        return _of_gguf(folder, stamp(root / folder.gguf))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (root / name).exists():
            data = read_json(inside(root, name, str(root)))
            declared |= {k: data[k] for k in ("bos_token", "eos_token") if k in data}
            if "auto_map" in data and not (root / "tokenizer.json").exists():
                raise UserError(
                    f"{root / name}: auto_map asks for the checkpoint's own Python code, not run for "
                    "tokenisers; convert it to a tokenizer.json, or give token ids with --tokens"
                )
    if (root / "tokenizer.json").exists():
        around = _around(folder, config.get("model_type"))
        return HfTokenizer(inside(root, "tokenizer.json", str(root)), declared, around)
    if any((root / name).exists() for name in _CONVERTIBLE):
        return _converted(folder, declared)
    return None


def _around(folder: CheckpointFolder, model_type: Any) -> Around | None:
    """Ids around a text by transformers' class of tokenisers, where that overwrites those of the file."""
    from transformers import AutoTokenizer  # noqa: PLC0415
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES  # noqa: PLC0415

    path = folder.root / "tokenizer_config.json"
    data = read_json(inside(folder.root, path.name, str(folder.root))) if path.exists() else {}
    usual = TOKENIZER_MAPPING_NAMES.get(model_type) if isinstance(model_type, str) else None
    name = data.get("tokenizer_class") or usual
    if "auto_map" in data or not isinstance(name, str) or not _writes_post_processor(name):
        return None
    file = folder.root / "tokenizer.json"

    def ask() -> Around:
        made = AutoTokenizer.from_pretrained(str(folder.root), local_files_only=True, trust_remote_code=False)
        return markers_around(made.backend_tokenizer, str(file))

    return guarded(
        ask, f"{file}: transformers cannot read it as {quoted(name)}; tokenizer={file} would read it alone"
    )


def _writes_post_processor(name: str) -> bool:
    """Whether code of the class ``name`` sets what goes around a text, beside the file's own template."""
    from transformers import TokenizersBackend  # noqa: PLC0415
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name  # noqa: PLC0415

    found = tokenizer_class_from_name(name)
    if found is None or not issubclass(found, TokenizersBackend):
        return False
    own = found.__mro__[: found.__mro__.index(TokenizersBackend)]
    functions = [value for cls in own for value in vars(cls).values() if hasattr(value, "__code__")]
    return any("post_processor" in used for function in functions for used in function.__code__.co_names)


@lru_cache(maxsize=4)
def _of_gguf(folder: CheckpointFolder, stamp: tuple[int, int]) -> HfTokenizer | None:
    """Takes seconds, and a run often opens one file several times."""
    made = kept(folder.root / (folder.gguf or ""), "tokeniser", lambda: _conversion(folder))
    return _of_json(made["tokenizer"], made["markers"])


def _converted(folder: CheckpointFolder, declared: dict[str, Any]) -> HfTokenizer | None:
    """What transformers makes of the vocabulary files, written out as a tokenizer.json and read back."""
    made = _conversion(folder)
    return _of_json(made["tokenizer"], declared | made["markers"])


def _conversion(folder: CheckpointFolder) -> dict[str, Any]:
    """The text of a tokenizer.json, and the markers that transformers' tokeniser has."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - only where it is needed

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if folder.gguf is not None:
        options["gguf_file"] = folder.gguf

    def convert() -> dict[str, Any]:
        with quick_reader() if folder.gguf is not None else nullcontext():
            made = AutoTokenizer.from_pretrained(str(folder.root), **options)
        return {"tokenizer": made.backend_tokenizer.to_str(), "markers": _markers(made)}

    where = folder.root / (folder.gguf or "")
    absent = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
    models = folder.gguf is None and any(folder.root.glob("*.model"))
    needed = f" (a .model file may need {' and '.join(absent)}: pip install 'kerple-eval[hf]')"
    return guarded(
        convert,
        f"{where}: its tokeniser cannot be read; a tokenizer.json beside it would do"
        + (needed if models and absent else ""),
    )


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def from_object(given: Any) -> HfTokenizer:
    """A tokeniser object of transformers or of the ``tokenizers`` library, which is left as it is.

    Raises:
        UserError: an object of another kind, or one of transformers that is written in Python alone.
    """
    if type(given).__module__.startswith("tokenizers") and hasattr(given, "to_str"):
        return _of_json(given.to_str(), {})
    backend = getattr(given, "backend_tokenizer", None)
    if backend is not None:
        return _of_json(backend.to_str(), _markers(given))
    if hasattr(given, "bos_token_id"):
        raise UserError(
            f"tokenizer {type(given).__name__} has no form that the tokenizers library reads; load it with "
            "AutoTokenizer.from_pretrained, or give token ids"
        )
    raise UserError(
        f"tokenizer: expected one of transformers or tokenizers, or 'bytes', got {type(given).__name__}"
    )


def _markers(made: Any) -> dict[str, Any]:
    """The first and last token that a tokeniser of transformers declares."""
    return {"bos_token": made.bos_token, "eos_token": made.eos_token}


def _of_json(text: str, declared: dict[str, Any]) -> HfTokenizer:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.json"
        path.write_text(text, encoding="utf-8")
        return HfTokenizer(path, declared)
