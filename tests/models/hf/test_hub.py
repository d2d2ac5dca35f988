"""Where files may lie: links, the hub's cache, and hub ids with and without a hub."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.files import _needed_files
from kerple_eval.types import UserError
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folders.save(tmp_path / "model", folders.model("llama"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_links_out_of_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("{}")
    (folder / name).symlink_to(outside)
    refused(folder, name, "link that leads out of")


def test_a_link_inside_the_folder_and_a_linked_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "real.safetensors")
    (folder / "model.safetensors").symlink_to("real.safetensors")
    HfCheckpoint.open(str(folder), {})
    (tmp_path / "alias").symlink_to(folder)
    HfCheckpoint.open(str(tmp_path / "alias"), {})


def cached(folder: Path, cache: Path, name: str = "org--tiny", commit: str = "c0ffee" * 6 + "c0ff") -> Path:
    """``folder`` as the hub's cache keeps it."""
    snapshot = cache / f"models--{name}" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (cache / f"models--{name}" / "refs").mkdir()
    (cache / f"models--{name}" / "refs" / "main").write_text(commit)
    blobs = cache / f"models--{name}" / "blobs"
    blobs.mkdir()
    for path in folder.iterdir():
        shutil.copy(path, blobs / f"hash-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"hash-{path.name}")
    return snapshot


def test_the_hubs_cache_layout_is_allowed(folder: Path, tmp_path: Path) -> None:
    HfCheckpoint.open(str(cached(folder, tmp_path / "hub")), {})


def test_a_cached_model_while_offline(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants  # noqa: PLC0415

    commit = cached(folder, tmp_path / "hub").name
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = HfCheckpoint.open("org/tiny", {}).description
    assert found.details["hub"] == "org/tiny"
    assert found.details["revision"] == commit
    assert any("cache" in warning for warning in found.warnings)
    assert HfCheckpoint.open(f"org/tiny@{commit}", {}).description.details["revision"] == commit


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_that_cannot_be_had(offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so at once, without a second try, and names the local form."""
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub import constants  # noqa: PLC0415

    asked: list[str] = []

    def unreachable(self: Any, name: str, **options: Any) -> Any:
        asked.append(name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    refused("org/none@v1", "hf:org/none@v1", "cannot be reached", "local folder", "hf:./DIR")
    refused("gpt2", "hf:gpt2", "local folder")
    assert asked == ([] if offline else ["org/none", "gpt2"])


def test_fetched_from_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kind of weights and no code is asked for, at the commit that the revision names."""
    import huggingface_hub  # noqa: PLC0415

    snapshot = cached(folder, tmp_path / "hub")
    names = [p.name for p in folder.iterdir()]
    names += ["modeling_evil.py", "pytorch_model.bin", "README.md", "model-q4.gguf", "tokenizer.json"]
    asked: dict[str, Any] = {}

    class About:
        sha = snapshot.name
        siblings = tuple(type("File", (), {"rfilename": name}) for name in names)

    def fetch(name: str, **options: Any) -> str:
        asked.update(options)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **options: About)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    found = HfCheckpoint.open("org/tiny@main", {}).description
    assert found.details["revision"] == asked["revision"] == snapshot.name
    assert sorted(asked["allow_patterns"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    refused("org/tiny", "no file q.gguf", "model-q4.gguf", gguf="q.gguf")


@pytest.mark.parametrize(
    "place", ["./nowhere", "no/such/folder", "/nowhere/at/all", "../org/name", "org/na me"]
)
def test_no_such_folder(place: str) -> None:
    refused(place, place, "no such folder")


def test_revisions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("org/name@", "no revision")
    monkeypatch.chdir(folder.parent)
    refused("model@main", "local folder, which has no revisions")


def test_what_a_repository_of_gguf_files_wants() -> None:
    with pytest.raises(UserError, match=r"; gguf=FILE reads one of its \.gguf files: m-Q4\.gguf, m-Q8\.gguf"):
        _needed_files(["README.md", "m-Q4.gguf", "m-Q8.gguf"], "hf:org/m", None, False)


def test_a_full_disk_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub  # noqa: PLC0415

    class About:
        sha = "c0ffee"
        siblings = (type("File", (), {"rfilename": "model.safetensors"}),)

    def fetch(name: str, **options: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **options: About)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    refused("org/tiny", "hf:org/tiny: cannot be written to the hub's cache: No space left on device")
