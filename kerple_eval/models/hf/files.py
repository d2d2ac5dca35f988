"""Where a Hugging Face checkpoint's files are, which of them hold weights, and that none lies outside.

A checkpoint is a local folder, a ``.gguf`` file, or a hub id with an optional ``@revision``. Nothing here
executes or unpickles anything. A folder of the hub's cache keeps its files as links into the
``blobs`` folder beside it (``models--*/snapshots/<commit>/f -> ../../blobs/<hash>``); no other link
out of the folder is followed.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from kerple_eval.models.hf import parts
from kerple_eval.support.files import inside as inside_folder
from kerple_eval.support.files import is_file, is_folder
from kerple_eval.support.readers import quoted, read_json
from kerple_eval.types import UserError

CONFIG = "config.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SECONDS = 10.0  # the hub answers within these or counts as out of reach
#: What a checkpoint's folder may hold besides weights; only these are fetched from the hub.
_SMALL = (
    CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """A folder on this machine, and what it is a copy of."""

    root: Path
    gguf: str | None = None  # a file name in ``root``
    hub: str | None = None
    revision: str | None = None  # the commit, where it came from the hub
    note: str | None = None

    @property
    def name(self) -> str:
        """For messages: the hub's id, or the folder's path."""
        return self.hub or str(self.root)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One stored tensor: its shape in torch's order and its dtype's name (F32, BF16, ..., or Q4_1)."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of a checkpoint in order of name; ``kind`` is safetensors, gguf or pickle."""

    kind: str
    files: tuple[Path, ...]
    index: dict[str, str] | None = None  # tensor name -> file name, where an index file says so

    def sha256(self) -> str:
        """Over the bytes of all files in order of name, as ``cat FILES | sha256sum``."""
        digest = hashlib.sha256()
        for path in self.files:
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 22):
                        digest.update(block)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        return digest.hexdigest()


def locate(text: str, gguf: str | None, *, code: bool = False, adapter: bool = False) -> CheckpointFolder:
    """The folder that ``PATH_OR_ID[@revision]`` names; a hub id is fetched, or found in the hub's cache.

    Python files are fetched only with ``code``; of a repository that holds a model too, ``adapter`` fetches
    the adapter.
    """
    local = Path(text).expanduser()
    if is_folder(local):
        return CheckpointFolder(local, gguf)
    if is_file(local):
        if local.suffix == ".gguf" and gguf is None:
            return CheckpointFolder(local.parent, local.name)
        raise UserError(f"{text}: is a file; hf: takes a folder, a .gguf file or a hub id")
    name, _, revision = text.partition("@")
    if _HUB_ID.fullmatch(name) is None or text.startswith((".", "~")):
        raise UserError(f"{text}: no such folder; hf: takes a local folder or a hub id, as in hf:org/name")
    if revision and is_folder(Path(name)):
        raise UserError(f"{text}: {name} is a local folder, which has no revisions")
    if revision == "" and "@" in text:
        raise UserError(f"{text}: no revision after '@'; as in hf:{name}@main")
    return _from_hub(name, revision or None, gguf, code=code, adapter=adapter)


def inside(root: Path, name: str, named_by: str) -> Path:
    """``root / name``, refused where ``..`` or a link leads out of ``root``."""
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    if (
        not name
        or ".." in parts
        or "\0" in name
        or PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).drive
        or name.startswith("\\")
    ):
        raise UserError(f"{named_by}: names {quoted(name)}, which leads out of the checkpoint's folder")
    home = root.resolve()
    blobs = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []  # the hub's cache
    return inside_folder(root / name, root, *blobs)


def check_links(root: Path) -> None:
    """No file at the top of the folder is a link out of it."""
    try:
        for path in sorted(root.iterdir()):
            if path.is_symlink():
                inside(root, path.name, str(root))
    except OSError as error:
        raise UserError(f"{root}: cannot be read: {error.strerror}") from None


def find_weights(folder: CheckpointFolder) -> Weights:
    """safetensors before pickles, as transformers prefers them; a GGUF file where one was named."""
    root = folder.root
    if folder.gguf is not None:
        path = inside(root, folder.gguf, f"gguf={folder.gguf}")
        if not path.is_file():
            available = ", ".join(sorted(p.name for p in root.glob("*.gguf"))) or "none"
            raise UserError(f"{path}: no such file; .gguf files there: {available}")
        return Weights("gguf", parts.of(path))
    for kind, stem, suffix in (("safetensors", "model", "safetensors"), ("pickle", "pytorch_model", "bin")):
        single = root / f"{stem}.{suffix}"
        if single.is_file() or single.is_symlink():
            return Weights(kind, (inside(root, single.name, str(root)),))
        index = root / f"{stem}.{suffix}.index.json"
        if index.is_file() or index.is_symlink():
            return _sharded(root, index, kind, suffix)
    raise UserError(
        f"{root}: no weights; expected model.safetensors, its shards with model.safetensors.index.json, "
        "pytorch_model.bin, or a .gguf file by gguf=FILE"
    )


def _sharded(root: Path, index: Path, kind: str, suffix: str) -> Weights:
    inside(root, index.name, str(root))
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UserError(f"{index}: weight_map must map tensor names to files")
    files: dict[str, Path] = {}
    for tensor, name in where.items():
        if not isinstance(name, str):
            raise UserError(
                f"{index}: weight_map[{quoted(tensor)}] must be a file name, got {type(name).__name__}"
            )
        if name not in files:
            path = inside(root, name, str(index))
            if path.suffix != f".{suffix}":
                raise UserError(f"{index}: names {quoted(name)}, expected a .{suffix} file")
            if not path.is_file():
                raise UserError(f"{path}: no such file, but {index.name} names it: a shard is missing")
            files[name] = path
    return Weights(kind, tuple(files[name] for name in sorted(files)), dict(where))


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of change: what a file's reading may be kept under."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def only_gguf(folder: Path) -> str | None:
    """The one ``.gguf`` file of a folder without config.json, or the first part of one; None otherwise."""
    if (folder / CONFIG).exists():
        return None
    names = sorted(p.name for p in folder.glob("*.gguf"))
    return names[0] if len(names) == 1 else parts.first_of(names)


# --- The hub -------------------------------------------------------------------------------------


def _from_hub(
    name: str, revision: str | None, gguf: str | None, *, code: bool, adapter: bool
) -> CheckpointFolder:
    import huggingface_hub as hub  # noqa: PLC0415 - comes with transformers
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"hf:{name}" + (f"@{revision}" if revision else "")
    if not hub.is_offline_mode():
        try:
            about = hub.HfApi().model_info(name, revision=revision, timeout=_SECONDS)
            patterns = _needed_files([file.rfilename for file in about.siblings or ()], what, gguf, adapter)
            patterns += ["*.py"] if code else []
            folder = hub.snapshot_download(name, revision=about.sha, allow_patterns=patterns)
            return CheckpointFolder(Path(folder), gguf, name, str(about.sha))
        except (GatedRepoError, RevisionNotFoundError, RepositoryNotFoundError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{what}: the hub refuses it ({type(error).__name__}: {reason})") from None
        except UserError:
            raise
        except Exception as error:  # network, proxy and cache errors share no base class
            if isinstance(error, OSError) and error.errno in _FULL:
                raise UserError(f"{what}: cannot be written to the hub's cache: {error.strerror}") from None
            reason = type(error).__name__
    else:
        reason = "offline mode"
    try:
        folder = hub.snapshot_download(name, revision=revision, local_files_only=True)
    except Exception:  # whatever is wrong with the cache, it does not hold this model
        raise UserError(
            f"{what}: the hub cannot be reached ({reason}) and its cache does not hold this model; "
            "give a local folder, as in hf:./DIR"
        ) from None
    note = f"the hub was not asked ({reason}); this is the copy in its cache"
    return CheckpointFolder(Path(folder), gguf, name, Path(folder).name, note)


def _needed_files(names: Sequence[str], what: str, gguf: str | None, adapter: bool) -> list[str]:
    """The files of a hub repository that are needed: one kind of weights, and no code."""
    small = [name for name in names if name in _SMALL]
    if ADAPTER in names and (
        adapter or not any(name.startswith(("model", "pytorch_model")) for name in names)
    ):
        return [name for name in names if name in (ADAPTER, ADAPTER_WEIGHTS)]
    available = ", ".join(name for name in names if name.endswith(".gguf"))
    if gguf is not None:
        if gguf not in names:
            raise UserError(f"{what}: has no file {gguf}; .gguf files there: {available or 'none'}")
        return [name for name in names if name in parts.names_of(gguf)]
    for pattern in (
        r"model\.safetensors", r"model(-\d+-of-\d+)\.safetensors|model\.safetensors\.index\.json",
        r"pytorch_model\.bin", r"pytorch_model(-\d+-of-\d+)\.bin|pytorch_model\.bin\.index\.json",
    ):  # fmt: skip
        weights = [name for name in names if re.fullmatch(pattern, name)]
        if weights:
            return small + weights
    by_name = f"; gguf=FILE reads one of its .gguf files: {available}" if available else ""
    raise UserError(f"{what}: holds no model.safetensors, pytorch_model.bin or shards of them{by_name}")
