"""Memory-mapped data sets written with ``struct``: every dtype, every damage, and hundreds of mutations."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kerple_eval.data.opening import own_tokens, task_text
from kerple_eval.data.sources.megatron import MegatronDocuments, is_megatron, open_megatron
from kerple_eval.data.texts import DocumentSelection
from kerple_eval.data.tokenizer import ByteTokenizer, ModelTokens
from kerple_eval.models.training.corpus import training_corpus
from kerple_eval.support.specs import parse_spec
from kerple_eval.types import BosRule, UserError
from tests.helpers.megatron_writer import CODES, write

LIMITS = {
    "uint8": (0, 255),
    "int8": (0, 127),
    "int16": (0, 32767),
    "uint16": (0, 65535),
    "float32": (0, 2**24),
}
DOCUMENTS = [[5, 6, 7, 0], [], [8, 0], [1, 2, 3, 4, 5, 6, 0], [0]]


def read(documents: MegatronDocuments) -> list[list[int]]:
    return [document.ids.tolist() for document in documents]


@pytest.mark.parametrize("dtype", CODES)
def test_every_dtype_is_read_to_its_limits(tmp_path: Path, dtype: str) -> None:
    low, high = LIMITS.get(dtype, (0, 2**31 - 1))
    written = [*DOCUMENTS, [low, high, high - 1, low + 1]]
    documents = open_megatron(write(tmp_path / "d", written, dtype))
    assert read(documents) == written
    assert documents.sizes.tolist() == [len(d) for d in written]
    assert [d.name for d in documents] == [f"d:{i}" for i in range(len(written))]
    assert documents[-1].ids.tolist() == written[-1]
    assert [d.ids.tolist() for d in documents[1:3]] == written[1:3]
    assert documents.record == {
        "kind": "megatron", "documents": 6, "tokens": 18, "dtype": dtype,
        "bin_bytes": 18 * np.dtype(dtype).itemsize,
        "idx_sha256": hashlib.sha256((tmp_path / "d.idx").read_bytes()).hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize(("dtype", "code"), [("float32", 6), ("float64", 7)])
def test_floating_point_codes_whose_width_the_bin_tells(tmp_path: Path, dtype: str, code: int) -> None:
    documents = open_megatron(write(tmp_path / "d", DOCUMENTS, dtype, code=code))
    assert read(documents) == DOCUMENTS
    assert {d.ids.dtype for d in documents} == {np.dtype(np.int64)}


@pytest.mark.parametrize("value", [1.5, -3.25, float("nan"), float("inf")])
def test_a_number_that_is_no_token_id(tmp_path: Path, value: float) -> None:
    documents = open_megatron(write(tmp_path / "d", [[1, 2], [3, value]], "float64"))
    with pytest.raises(UserError, match=r"document d:1: token 1 is \S+, not a token id"):
        read(documents)


def test_documents_stay_in_the_file_until_asked_for(tmp_path: Path) -> None:
    """A view of the mapping, in the file's dtype; ``plain`` copies it out."""
    document = open_megatron(write(tmp_path / "d", DOCUMENTS))[0]
    base: Any = document.ids
    while not isinstance(base, np.memmap):
        base = base.base
    assert document.ids.dtype == np.uint16
    assert document.plain().ids.dtype == np.int64
    same = hashlib.sha256(np.array(DOCUMENTS[0], dtype="<i8").tobytes()).hexdigest()
    assert document.sha256 == document.plain().sha256 == same


@pytest.mark.parametrize("form", ["d.v1", "d.v1.idx", "d.v1.bin"])
def test_a_data_set_is_named_by_its_prefix_or_either_file(tmp_path: Path, form: str) -> None:
    write(tmp_path / "d.v1", DOCUMENTS)
    assert is_megatron(str(tmp_path / form))
    assert read(open_megatron(tmp_path / form)) == DOCUMENTS
    assert not is_megatron("tokens.jsonl")


def test_documents_may_lie_anywhere_in_the_file(tmp_path: Path) -> None:
    """Pointers rule: out of order, with gaps, odd ones too."""
    write(tmp_path / "d", [[1, 2, 3], [4, 5]], sizes=[2, 3, 1], pointers=[6, 0, 1])
    assert read(open_megatron(tmp_path / "d")) == [[4, 5], [1, 2, 3], [2 << 8]]


def test_document_edges_group_nothing(tmp_path: Path) -> None:
    """GPT-NeoX counts sequences; two in one document are two here as well, and modes are passed over."""
    write(tmp_path / "d", DOCUMENTS, doc_idx=[0, 2, 2, 5], tail=b"\0" * 5)
    assert read(open_megatron(tmp_path / "d")) == DOCUMENTS


def test_parts_keep_the_names_of_the_whole(tmp_path: Path) -> None:
    part = open_megatron(write(tmp_path / "d", DOCUMENTS)).part(range(2, 4))
    assert [(d.name, d.ids.tolist()) for d in part] == [("d:2", DOCUMENTS[2]), ("d:3", DOCUMENTS[3])]
    assert part.sizes.tolist() == [2, 7]
    assert [d.name for d in part.part(range(1, 2))] == ["d:3"]


DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"magic": b"MMIDIDX\0\1"}, r"d\.idx: not the index of a memory-mapped data set: begins with b'MMIDIDX"),
    ({"magic": b"TNTIDX\0\0\0"}, r"d\.idx: not .*\(an index of the older, not memory-mapped kind\)"),
    ({"version": 2}, r"d\.idx: version 2; only version 1 is known"),
    ({"code": 0}, r"code 0; known: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16"),
    ({"code": 9}, r"d\.idx: unknown dtype code 9"),
    ({"code": 6}, r"d\.idx: dtype code 6 means .* the \.bin has 28 bytes for 14 tokens"),
    ({"code": 7}, r"d\.idx: dtype code 7 means numbers of 4 or 8 bytes"),
    ({"sizes": [4, 0, -2, 7, 1]}, r"d\.idx: damaged: document 2 has -2 tokens"),
    ({"sizes": [4, 0, 2, 7, 2]}, r"d\.bin: truncated, or of another .* 4 ends at byte 30, the file at 28"),
    ({"pointers": [0, 8, 8, 12, 27]}, r"document 4 ends at byte 29, the file at 28"),
    ({"pointers": [0, 8, 2**62, 12, 26]}, r"document 2 ends at byte 4611686018427387908"),
    ({"pointers": [0, 8, -1, 12, 26]}, r"d\.idx: damaged: document 2 begins at byte -1"),
    ({"doc_idx": [0, 2, 1, 5]}, r"d\.idx: damaged: doc_idx is out of order, 1 after 2"),
    ({"doc_idx": [1, 2, 5]}, r"d\.idx: damaged: doc_idx begins at 1, not at 0"),
    ({"doc_idx": [0, 2, 6]}, r"d\.idx: damaged: doc_idx ends at 6, beyond its 5 sequences"),
    ({"tail": b"\0"}, r"d\.idx: damaged: 143 bytes where its header says 142"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), DAMAGED)
def test_damage_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        open_megatron(write(tmp_path / "d", DOCUMENTS, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", range(0, 142, 7))
def test_a_truncated_index(tmp_path: Path, length: int) -> None:
    write(tmp_path / "d", DOCUMENTS)
    raw = (tmp_path / "d.idx").read_bytes()
    (tmp_path / "d.idx").write_bytes(raw[:length])
    with pytest.raises(UserError, match=r"d\.idx: (truncated: \d+ bytes|not the index)"):
        open_megatron(tmp_path / "d")


def test_counts_beyond_any_memory(tmp_path: Path) -> None:
    write(tmp_path / "d", DOCUMENTS)
    raw = bytearray((tmp_path / "d.idx").read_bytes())
    raw[18:34] = struct.pack("<QQ", 2**64 - 1, 2**63)
    (tmp_path / "d.idx").write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"d\.idx: truncated: 142 bytes, 18446744073709551615 sequences"):
        open_megatron(tmp_path / "d")


@pytest.mark.parametrize("missing", ["idx", "bin"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "d", DOCUMENTS)
    (tmp_path / f"d.{missing}").unlink()
    with pytest.raises(UserError, match=rf"d\.{missing}: cannot be read: No such file"):
        open_megatron(tmp_path / "d.bin")


def test_a_truncated_or_empty_bin(tmp_path: Path) -> None:
    write(tmp_path / "d", DOCUMENTS)
    for raw in ((tmp_path / "d.bin").read_bytes()[:-1], b""):
        (tmp_path / "d.bin").write_bytes(raw)
        with pytest.raises(UserError, match=rf"d\.bin: truncated.* the file at {len(raw)}"):
            open_megatron(tmp_path / "d")


def test_mutations_never_bring_anything_but_a_refusal(tmp_path: Path) -> None:
    """600 indices with bytes overwritten, cut or added: read in full, or refused in one line."""
    write(tmp_path / "d", DOCUMENTS)
    raw = (tmp_path / "d.idx").read_bytes()
    draw, refused = random.Random(0), 0
    for _ in range(600):
        bad = bytearray(raw)
        for _ in range(draw.randint(1, 4)):
            kind, at = draw.randrange(4), draw.randrange(len(bad))
            if kind == 0:
                bad[at] = draw.randrange(256)
            elif kind == 1:
                bad[at : at + 8] = draw.choice([b"\xff" * 8, b"\0" * 8, struct.pack("<q", -(2**63))])
            elif kind == 2:
                del bad[at : at + draw.randint(1, 9)]
            else:
                bad[at:at] = draw.randbytes(draw.randint(1, 9))
            bad = bad or bytearray(b"x")
        (tmp_path / "d.idx").write_bytes(bytes(bad))
        try:
            documents = open_megatron(tmp_path / "d")
            assert len(read(documents)) == len(documents)
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path / "d."))
            assert "\n" not in str(error)
    assert refused > 400


MODELS = [ModelTokens("m", None, 100)]


def test_as_tokens(tmp_path: Path) -> None:
    write(tmp_path / "d", DOCUMENTS)
    text = own_tokens([str(tmp_path / "d.idx")])
    prepared = text.prepare(MODELS, DocumentSelection(3))
    reading = prepared.by_model["m"]
    assert [d.ids.tolist() for d in reading.documents] == [DOCUMENTS[0], DOCUMENTS[3]]
    assert {d.ids.dtype for d in reading.documents} == {np.dtype(np.int64)}
    assert (reading.bos, reading.bos_id) == ("never", None)
    assert len(prepared.record.tokens_sha256) == 64
    with pytest.raises(UserError, match="stands alone"):
        own_tokens([str(tmp_path / "d.idx"), "more.jsonl"])
    write(tmp_path / "none", [])
    with pytest.raises(UserError, match="holds no document"):
        own_tokens([str(tmp_path / "none.idx")])


@pytest.mark.parametrize(("dtype", "bad"), [("int16", -5), ("uint16", 100), ("int64", 2**40)])
def test_ids_beyond_the_vocabulary(tmp_path: Path, dtype: str, bad: int) -> None:
    write(tmp_path / "d", [[1, 2], [3, bad, 4]], dtype)
    says = rf"document d:1: token 1 is id {bad}, beyond the vocabulary of model m \(0..99\)"
    with pytest.raises(UserError, match=says):
        own_tokens([str(tmp_path / "d.bin")]).prepare(MODELS, DocumentSelection(1))


def task(folder: Path, **changes: Any) -> str:
    source = {"kind": "megatron", "path": "sets/d"} | changes.pop("source", {})
    data = {
        "name": "neox", "version": 1, "description": "d", "licence": "l", "split": {"test": 1.0},
        "source": source,
    } | changes  # fmt: skip
    (folder / "neox.yaml").write_text(yaml.safe_dump(data))
    return str(folder / "neox.yaml")


def test_as_a_task_source_relative_to_the_task_file(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    write(tmp_path / "sets/d", [[i, i, 0] for i in range(20)])
    text = task_text(parse_spec(task(tmp_path)))
    assert len(text.prepare(MODELS, DocumentSelection(2)).by_model["m"].documents) == 20
    assert text.record.source["part"] == "all"
    by_part = {}
    for part in ("train", "valid", "test"):
        path = task(tmp_path, source={"part": part, "shares": "16/3/1"})
        documents = task_text(parse_spec(path)).prepare(MODELS, DocumentSelection(2)).by_model["m"].documents
        by_part[part] = sorted(int(d.ids[0]) for d in documents)
    assert by_part == {"train": list(range(16)), "valid": [16, 17, 18], "test": [19]}
    with pytest.raises(UserError, match=r"task neox: source.part: test holds none of 20 documents"):
        task_text(parse_spec(task(tmp_path, source={"part": "test"})))


def test_training_needs_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task neox: its source \(megatron\) holds token ids, where text is"):
        training_corpus(parse_spec(task(tmp_path)), (), ByteTokenizer())


def test_a_packed_task_is_one_document_of_all_ids(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    write(tmp_path / "sets/d", DOCUMENTS)
    text = task_text(parse_spec(task(tmp_path, packing="concatenate")))
    (document,) = text.prepare(MODELS, DocumentSelection(2)).by_model["m"].documents
    assert document.ids.tolist() == [i for d in DOCUMENTS for i in d]
    whole = text.prepare(MODELS, DocumentSelection(2, whole=True)).by_model["m"]
    assert [len(d) for d in whole.documents] == [len(d) for d in DOCUMENTS]


def test_a_first_token_marker_has_no_place_in_given_ids(tmp_path: Path) -> None:
    write(tmp_path / "d", DOCUMENTS)
    rules: tuple[BosRule, ...] = ("document", "window")
    for rule in rules:
        with pytest.raises(
            UserError, match=rf"--bos {rule}: --tokens holds token ids, which are used as given"
        ):
            own_tokens([str(tmp_path / "d.idx")], rule)
    own_tokens([str(tmp_path / "d.idx")], "tokenizer")
