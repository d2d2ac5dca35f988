"""torch.save files: read as plain containers of tensors, or refused in one line with no code run."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kerple_eval.models.pickles import load_tensors
from kerple_eval.types import UserError

PLAIN = {"numbers": [1, 2.5, None, True, 1 << 70], "text": "x", "bytes": b"\x00\xff", "pair": (1, (2,))}


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 8, generator=generator)
    return {
        "module": OrderedDict(weight=wide, view=wide[1:3, ::2], tied=wide),
        "half": wide.to(torch.bfloat16),
        "parameter": torch.nn.Parameter(wide[0]),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "plain": PLAIN,
        "kinds": {"dtype": torch.float16, "size": torch.Size([2, 3]), "set": {1, 2}},
    }


@pytest.fixture(params=["zip", "stream"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same object in both layouts of torch.save."""
    made = tmp_path / "weights.pt"
    torch.save(state(), made, _use_new_zipfile_serialization=request.param == "zip")
    return made


def refused(path: Path, *parts: str) -> None:
    for meta in (False, True):
        with pytest.raises(UserError) as caught:
            load_tensors(path, meta=meta)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        for part in parts:
            assert part in message, message


def test_what_was_saved_is_read(path: Path) -> None:
    found, wanted = load_tensors(path), state()
    assert found["plain"] == PLAIN
    assert found["kinds"] == wanted["kinds"]
    for key in ("half", "parameter", "scalar", "empty"):
        assert found[key].dtype == wanted[key].dtype
        assert torch.equal(found[key], wanted[key]), key
    for key, tensor in wanted["module"].items():
        assert torch.equal(found["module"][key], tensor), key
    assert found["module"]["tied"].data_ptr() == found["module"]["weight"].data_ptr()


def test_shapes_without_weights(path: Path) -> None:
    found = load_tensors(path, meta=True)
    assert found["half"].is_meta
    assert (found["half"].shape, found["half"].dtype) == ((6, 8), torch.bfloat16)
    assert found["module"]["view"].shape == (2, 4)


# --- Hostile pickles -----------------------------------------------------------------------------


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("kind", ["zip", "stream", 0, 1, 2, 3, 4, 5])
def test_os_system_is_refused_by_name(kind: str | int, tmp_path: Path) -> None:
    content = {"a": torch.ones(2), "b": Hostile(tmp_path / "trace")}
    path = tmp_path / "weights.pt"
    if isinstance(kind, int):
        path.write_bytes(pickle.dumps({"b": content["b"]}, protocol=kind))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    refused(path, f"'{os.system.__module__}.system'", "only tensors and plain containers")
    assert not (tmp_path / "trace").exists()


class Foreign:
    """A class someone else has told torch to trust."""


@pytest.mark.parametrize(
    "value",
    [Foreign(), print, torch.nn.Linear(2, 2), Path("x"), range(3)],
    ids=lambda value: type(value).__name__,
)
def test_any_other_class_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    torch.save({"x": value}, tmp_path / "weights.pt")
    cls = value if value is print else type(value)
    refused(tmp_path / "weights.pt", "refused", cls.__name__)


def test_what_others_allow_is_not_allowed_here(tmp_path: Path) -> None:
    torch.save({"x": Foreign()}, tmp_path / "weights.pt")
    with torch.serialization.safe_globals([Foreign]):
        assert isinstance(torch.load(tmp_path / "weights.pt")["x"], Foreign)
        refused(tmp_path / "weights.pt", "Foreign")
        torch.save({"x": torch.ones(1)}, tmp_path / "good.pt")
        load_tensors(tmp_path / "good.pt")
        assert Foreign in torch.serialization.get_safe_globals()  # given back afterwards


def test_tuples_too_deep_to_hash(tmp_path: Path) -> None:
    """A million nested tuples as a key would overflow the C stack."""
    content = b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"K\x01s."
    (tmp_path / "raw.pt").write_bytes(content)
    refused(tmp_path / "raw.pt", "nested more than")
    rebuild(saved(tmp_path), {"data.pkl": content})
    refused(tmp_path / "weights.pt", "nested more than")


@pytest.mark.parametrize("opening", [b"]", b"}K\x00"])
def test_deeply_nested_lists_and_dicts_do_not_break_it(opening: bytes, tmp_path: Path) -> None:
    count = 20_000
    close = b"a" if opening == b"]" else b"s"
    content = b"\x80\x02" + opening * count + b"N" + close * count + b"."
    rebuild(saved(tmp_path), {"data.pkl": content})
    load_tensors(tmp_path / "weights.pt")


def text(content: str) -> bytes:
    return b"X" + len(content).to_bytes(4, "little") + content.encode()


def storage(kind: str, count: int) -> bytes:
    """A tensor's storage: entry ``data/0`` of the archive, where one is needed."""
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text("0") + text("cpu")
        + b"J" + count.to_bytes(4, "little") + b"tQ"
    )  # fmt: skip


def tensor(shape: bytes, strides: bytes, offset: int = 0) -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage("FloatStorage", 100)[1:]
        + b"J" + offset.to_bytes(4, "little") + shape + strides + b"\x89}tR"
    )  # fmt: skip


def alike(number: int) -> bytes:
    """A whole number that hashes to 0: a multiple of 2^61 - 1."""
    content = (number * ((1 << 61) - 1)).to_bytes(10, "little")
    return b"\x8a" + bytes([len(content)]) + content


ALIKE = [alike(number) for number in range(1, 300)]
MADE = {"set": b"c__builtin__\nset\n", "OrderedDict": b"ccollections\nOrderedDict\n"}
REDUCED = {
    "keys that hash alike": (b"}(" + b"".join(key + b"N" for key in ALIKE) + b"u", "more than 256 keys"),
    "one by one": (b"}" + b"".join(key + b"Ns" for key in ALIKE), "more than 256 keys"),
    "tuples of them": (b"}(" + b"".join(key + b"\x85N" for key in ALIKE) + b"u", "more than 256 keys"),
    "a set of them": (MADE["set"] + b"](" + b"".join(ALIKE) + b"e\x85R", "more than 256 keys"),
    "a set again and again": (
        MADE["set"] + b"q\x010](" + b"".join(ALIKE[:200]) + b"eq\x000" + b"h\x01h\x00\x85R" * 2,
        "more than 256",
    ),
    "a set of a dictionary": (MADE["set"] + b"}\x85R", "something else than a list"),
    "pairs": (
        MADE["OrderedDict"] + b"](" + b"".join(key + b"N\x86" for key in ALIKE) + b"e\x85R",
        "more than 256 keys",
    ),
    "pairs as lists": (
        MADE["OrderedDict"] + b"](" + b"".join(b"](" + key + b"Ne" for key in ALIKE) + b"e\x85R",
        "than 256 keys",
    ),
    "doubling tuples": (b"K\x01\x85q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"0", "tuples of more than"),
    "another codec": (b"c_codecs\nencode\n" + text("a" * 9) + text("punycode") + b"\x86R", "than latin1"),
    "no codec": (b"c_codecs\nencode\n" + text("a" * 9) + b"\x85R", "than latin1"),
    "a storage by its size": (b"ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R", "UntypedStorage"),
    "a size's new object": (b"ctorch\nFloatStorage\nK\x01\x85\x81", "FloatStorage"),
    "a string called": (text("x") + b")R", "no function"),
    "methods shadowed": (b"ccollections\nOrderedDict\n)R}" + text("items") + b"K\x01sb", "sets attributes"),
    "a state that is no dictionary": (b"ccollections\nOrderedDict\n)RK\x01b", "sets attributes"),
    "a tensor beyond its storage": (tensor(b"J\xff\xff\xff\x7f\x85", b"K\x01\x85"), "exceeds its storage"),
    "an offset beyond it": (tensor(b"K\x01\x85", b"K\x01\x85", offset=100), "exceeds its storage"),
    "shape without strides": (tensor(b"K\x01\x85", b")"), "1 sizes and 0 strides"),
    "a fractional shape": (tensor(b"G?\xf0" + bytes(6) + b"\x85", b"K\x01\x85"), "not whole numbers"),
}


@pytest.mark.parametrize("name", REDUCED)
def test_what_torch_save_never_writes(name: str, tmp_path: Path) -> None:
    """Each would hang, take memory, or break whoever reads the result."""
    operations, part = REDUCED[name]
    content = b"\x80\x02" + operations + b"."
    rebuild(saved(tmp_path), {"data.pkl": content})
    refused(tmp_path / "weights.pt", part)
    (tmp_path / "stream.pt").write_bytes(content)
    refused(tmp_path / "stream.pt", part)


def test_what_it_does_write_beside_tensors(tmp_path: Path) -> None:
    """A module's state dict brings ``_metadata``, protocol 2 encodes bytes as latin1 text."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    others = {"numbers": dict.fromkeys(range(-999, 999)), "set": set(range(999)), "few": {None, 0.5, (1, 2)}}
    others["pairs"] = {1 << 70: 1, True: 2}
    held = {"module": module.state_dict(), "bytes": b"\xff\x00", "others": others}
    torch.save(held, tmp_path / "weights.pt")
    loaded = load_tensors(tmp_path / "weights.pt")
    assert loaded["bytes"] == b"\xff\x00"
    assert loaded["others"] == others
    assert torch.equal(loaded["module"]["0.weight"], module.state_dict()["0.weight"])


def test_an_ordered_dictionary_of_python_2(tmp_path: Path) -> None:
    """It was written as a list of pairs."""
    pairs = b"".join(b"](" + text(f"w{n}") + b"K\x07e" for n in range(999))
    content = b"\x80\x02" + MADE["OrderedDict"] + b"](" + pairs + b"e\x85R."
    rebuild(saved(tmp_path), {"data.pkl": content})
    assert load_tensors(tmp_path / "weights.pt") == {f"w{n}": 7 for n in range(999)}


# --- Damaged and forged archives -----------------------------------------------------------------


def saved(folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save({"a": torch.arange(100.0), "b": torch.arange(7)}, path)
    return path


def rebuild(
    path: Path,
    replaced: dict[str, bytes] | None = None,
    *,
    name: Callable[[str], str] = lambda x: x,
    compression: int = zipfile.ZIP_STORED,
    extra: dict[str, bytes] | None = None,
) -> None:
    """The archive anew with right checksums, some entries changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {e.filename: archive.read(e) for e in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for full, content in entries.items():
            archive.writestr(name(full), (replaced or {}).get(full.split("/", 1)[1], content))
        for full, content in (extra or {}).items():
            archive.writestr(full, content)


def test_a_rebuilt_archive_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rebuild(path)
    assert torch.equal(load_tensors(path)["a"], torch.arange(100.0))


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rebuild(path, {"data/0": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "compressed")


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """Directory entries that all point at one large entry: more bytes than the file has."""
    path = saved(tmp_path)
    rebuild(path, {"data/0": bytes(100_000)})
    raw = path.read_bytes()
    start = int.from_bytes(raw[-6:-2], "little")
    directory = raw[start:-22]
    copies = b"".join(directory.replace(b"weights/data/0", f"weights/dat{n}/0".encode()) for n in range(3))
    end = bytearray(raw[-22:])
    count = int.from_bytes(end[8:10], "little") * 3
    end[8:10] = end[10:12] = count.to_bytes(2, "little")
    end[12:16] = len(copies).to_bytes(4, "little")
    path.write_bytes(raw[:start] + copies + end)
    refused(path)


@pytest.mark.parametrize(
    "bad", ["../evil", "weights/../../evil", "/etc/evil", "weights//x", "weights/./x", "C:/evil", "a\\b"]
)
def test_names_that_leave_the_folder(bad: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    rebuild(path, extra={bad: b"x"})
    refused(path, "refused: zip entry")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_given_twice(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rebuild(path, extra={"weights/data.pkl": b"\x80\x02}."})
    refused(path, "twice")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rebuild(path, extra={"weights/constants.pkl": b"\x80\x02}."})
    refused(path, "TorchScript")


def test_a_storage_larger_than_its_entry(tmp_path: Path) -> None:
    """torch would read past the entry's end."""
    path = saved(tmp_path)
    rebuild(path, {"data/0": bytes(40)})
    refused(path, "claims 400 bytes", "has 40")


def test_a_storage_without_an_entry(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rebuild(path, name=lambda full: full.replace("data/1", "data/9"))
    refused(path, "no entry for storage '1'")


def test_a_flipped_bit_in_a_weight_is_seen(tmp_path: Path) -> None:
    path = saved(tmp_path)
    raw = path.read_bytes()
    at = raw.index(torch.arange(100.0).numpy().tobytes()) + 200
    changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    assert zlib.crc32(changed) != zlib.crc32(raw)
    path.write_bytes(changed)
    refused(path, "damaged", "CRC")


def test_an_expanded_tensor_is_refused(tmp_path: Path) -> None:
    """Ten numbers that claim to be a billion: copying them would exhaust the memory."""
    torch.save({"a": torch.ones(10, 1).expand(10, 100_000_000)}, tmp_path / "weights.pt")
    refused(tmp_path / "weights.pt", "exceeds its storage")


@pytest.mark.parametrize("keep", [0, 1, 4, 30, 0.5, 0.9, -1], ids=str)
def test_truncated(path: Path, keep: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep) if isinstance(keep, float) else keep])
    refused(path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not a file that torch.save writes"),
        (b"hello, world", "not a file that torch.save writes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (pickle.dumps({"a": 1}, protocol=2), "not a file that torch.save writes"),
        (b"PK\x03\x04" + bytes(100), "no zip directory"),
    ],
)
def test_other_files(content: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    refused(tmp_path / "weights.pt", part)


def test_no_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "not a regular file")
    refused(tmp_path / "nowhere.pt", "cannot be read")
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("seed", range(6))
def test_mutations_never_end_in_anything_but_one_line(path: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    raw = path.read_bytes()
    before = set(tmp_path.iterdir())
    for _ in range(60):
        content = bytearray(raw)
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            load_tensors(path)
        except UserError as error:
            assert "\n" not in str(error)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("seed", range(6))
def test_mutated_pickles_with_right_checksums(tmp_path: Path, seed: int) -> None:
    """The checksum does not protect from a forger: only the scan and torch's restrictions do."""
    rng = random.Random(seed)
    original = saved(tmp_path)
    with zipfile.ZipFile(original) as archive:
        content = archive.read("weights/data.pkl")
    for _ in range(40):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 4])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path = tmp_path / "forged.pt"
        shutil.copy(original, path)
        rebuild(path, {"data.pkl": bytes(changed)})
        try:
            load_tensors(path)
        except UserError as error:
            assert "\n" not in str(error)
