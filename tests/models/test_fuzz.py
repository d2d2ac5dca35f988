"""Some hundreds of damaged checkpoints: a clear line or a right answer, never a traceback or a hang.

Each case damages one file of a whole checkpoint by a seeded draw: a cut, flipped bits, overwritten,
removed, doubled or foreign bytes, or (JSON) a value of another kind. What opens is loaded and scored as
a run does it: there a failure that ``run`` records as a failed cell is allowed too.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.open import open_model, parse_model
from kerple_eval.models.scoring import score
from kerple_eval.types import UserError, Window
from tests.helpers import neox_writer
from tests.helpers.command import make_model

CASES = 120  # a format
SECONDS = 20


def native(folder: Path) -> Path:
    return make_model(folder, "kerple-log")


def neox(folder: Path) -> Path:
    folder.mkdir()
    return neox_writer.write(folder, neox_writer.variant(pos_emb="kerple_log"))


def hf(folder: Path) -> Path:
    from tests.helpers import hf_folders  # noqa: PLC0415 - transformers, which may be absent

    return hf_folders.save(folder, hf_folders.model("llama"))


BUILDERS: dict[str, Callable[[Path], Path]] = {"native": native, "neox": neox, "hf": hf}


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damage(raw: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(raw)
    at = int(rng.integers(len(data)))
    count = int(rng.integers(1, 64))
    match int(rng.integers(7)):
        case 0:
            return bytes(data[:at])
        case 1:
            for place in rng.integers(len(data), size=count):
                data[place] ^= 1 << int(rng.integers(8))
        case 2:
            data[at : at + count] = rng.bytes(min(count, len(data) - at))
        case 3:
            del data[at : at + count]
        case 4:
            data[at:at] = data[at : at + count]
        case 5:
            head = int(rng.integers(min(len(data), 512)))  # headers are where the trouble is
            data[head] = int(rng.integers(256))
        case _:
            return rng.bytes(count)
    return bytes(data)


def other_value(data: Any, rng: np.random.Generator) -> Any:
    """One leaf of a JSON value, drawn at random, becomes something else."""
    values = [None, True, -1, 0, 2**40, 1e308, "", "x" * 300, [], {}, [1, "a"], "../../etc/passwd", "NaN"]
    if isinstance(data, dict) and data:
        key = list(data)[int(rng.integers(len(data)))]
        if rng.random() < 0.1:
            return {k: v for k, v in data.items() if k != key}
        return {**data, key: other_value(data[key], rng)}
    if isinstance(data, list) and data:
        at = int(rng.integers(len(data)))
        return [*data[:at], other_value(data[at], rng), *data[at + 1 :]]
    return values[int(rng.integers(len(values)))]


def mutate(folder: Path, rng: np.random.Generator) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    raw = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        path.write_text(json.dumps(other_value(json.loads(raw), rng)))
    else:
        path.write_bytes(damage(raw, rng))
    return path.name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return {name: build(root / name) for name, build in BUILDERS.items()}


def damage_and_use(name: str, cases: range, source: Path, tmp_path: Path) -> int:
    """How many of the ``cases`` are refused; a traceback or a hang fails."""
    refusals = 0
    for case in cases:
        rng = np.random.default_rng([case, *name.encode()])
        folder = tmp_path / str(case)
        shutil.copytree(source, folder)
        damaged = mutate(folder, rng)
        with bounded(SECONDS):
            try:
                use(f"{name}:{folder}")
            except UserError as error:
                refusals += 1
                assert "\n" not in str(error).strip(), f"case {case}"
                assert len(str(error)) < 1000, f"case {case}"
            except BaseException as error:
                raise AssertionError(f"{name} case {case} ({damaged}): {type(error).__name__}") from error
        shutil.rmtree(folder)
    return refusals


def use(model: str) -> None:
    checkpoint = open_model(parse_model(model))
    description = checkpoint.description
    checkpoint.scheme_parameters()
    tokens = np.arange(13, dtype=np.int64) % min(description.vocab_size, 11)
    try:
        loaded = checkpoint.load(torch.device("cpu"), torch.float32)
        for _ in score(loaded, [tokens], [(0, Window(0, 12, 1))]):
            pass
    except (ArithmeticError, MemoryError, RuntimeError):
        pass  # what ``run`` records as a failed cell


@pytest.mark.parametrize("name", BUILDERS)
def test_the_undamaged_one_is_scored(name: str, whole: dict[str, Path]) -> None:
    use(f"{name}:{whole[name]}")


@pytest.mark.parametrize("name", BUILDERS)
def test_damaged_checkpoints(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    count = CASES if name == "native" else CASES // 8  # the others in the slow suite
    assert damage_and_use(name, range(count), whole[name], tmp_path) > count // 3  # most damage is seen


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "native"])
def test_more_damaged_checkpoints(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    assert damage_and_use(name, range(CASES // 8, 3 * CASES), whole[name], tmp_path) > CASES
