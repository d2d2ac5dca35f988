"""kerple-release against a literal walk over documents, token by token, in plain Python.

The walk follows the description of the release's code (``data_utils.py``, ``gpt2_dataset.py``,
``helpers.cpp: build_sample_idx``): three index arrays are made one after the other, and a sample is read
through all three.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from kerple_eval.data.documents import assemble
from kerple_eval.data.sources.megatron import open_megatron
from kerple_eval.protocols.kerple_release import KerpleRelease
from kerple_eval.protocols.neox_split import parse_shares, part_range
from kerple_eval.types import UserError
from tests.helpers.cases import each_case
from tests.helpers.megatron_writer import write
from tests.helpers.release_samples import drawn, split_bounds


class Loader:
    """The release's ``GPT2Dataset.__len__`` and its data loader: batches of one sample, in order.

    ``shuffle_idx_len = shuffle_idx.shape[0] - 1``, ``sample_idx_len = sample_idx.shape[0] - 1`` and
    ``__len__`` is the smaller; ``shuffle_idx`` holds a number a sample, ``sample_idx`` an edge more.
    ``start_iter = start % len(loader)``; the end of the loader is a StopIteration, which ends the program.
    """

    def __init__(self, samples: list[list[int]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        shuffle_idx_len = len(self.samples) - 1
        sample_idx_len = (len(self.samples) + 1) - 1
        return min(shuffle_idx_len, sample_idx_len)

    def take(self, start: int, wanted: int) -> list[list[int]] | None:
        """None where the loader ends before ``wanted`` samples."""
        if not len(self):
            return None
        batches = iter(range(start % len(self), len(self)))
        try:
            return [self.samples[next(batches)] for _ in range(wanted)]
        except StopIteration:
            return None


def corpus(seed: int, documents: int, longest: int) -> list[list[int]]:
    """Documents of 0 to ``longest`` tokens before the end-of-document token, every token its own id."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(0, longest, size=documents).tolist()
    ids = iter(range(1, 10**6))
    return [[next(ids) for _ in range(size)] + [0] for size in sizes]


@pytest.fixture(scope="module")
def small() -> list[list[int]]:
    return corpus(0, 130, 90)


@each_case("part", ["valid 949/50/1", "test 900/50/50", "train 10/80/10", "all 949/50/1"])
@each_case("length", [1, 2, 7, 64, 500])
@each_case(("seed", "wanted"), [(1234, 320), (1235, 320), (0, 3), (2**32 - 1, 1)])
def test_every_sample_is_the_releases(
    small: list[list[int]], part: str, length: int, seed: int, wanted: int, *, tmp_path: Path
) -> None:
    """From .bin and .idx: token for token, several epochs and one, both splits and all."""
    split, shares = part.split()
    documents = open_megatron(write(tmp_path / "d", small, "int32"))
    edges = split_bounds([float(w) for w in shares.split("/")], len(small))
    numbers = list(range(len(small)))
    if split != "all":
        at = ("train", "valid", "test").index(split)
        numbers = numbers[edges[at] : edges[at + 1]]
    expected, _ = drawn(small, numbers, length, seed, wanted)
    protocol = KerpleRelease(split=split, seed=seed, samples=wanted, shares=shares)
    taken = Loader(expected).take(0, wanted)
    if taken is None:
        with pytest.raises(
            UserError, match=f"start=0 leaves {len(expected) - 1} of the {len(expected) - 1} "
        ):
            protocol.samples(documents.sizes, length)
        return
    samples = assemble(documents, protocol.samples(documents.sizes, length))
    assert [s.ids.tolist() for s in samples] == taken
    assert len({s.name for s in samples}) == wanted
    for sample in samples:
        (window,) = protocol.plan(len(sample), length, 10**6)
        assert (window.start, window.stop, window.first_target) == (0, length, 1)


def test_the_grid_has_one_epoch_and_many(small: list[list[int]]) -> None:
    found = {drawn(small, list(range(130)), length, 1, 320)[1] for length in (1, 2, 7, 64, 500)}
    assert 1 in found
    assert max(found) > 20


@each_case("documents", range(1, 9))
def test_every_small_corpus(documents: int) -> None:
    """Documents of one token, one document, samples that end where a document does."""
    for sizes in itertools.islice(itertools.product((0, 1, 3), repeat=documents), 30):
        ids = iter(range(1, 10**6))
        text = [[next(ids) for _ in range(size)] for size in sizes]
        if not sum(sizes):
            continue
        for length, wanted in itertools.product((1, 2, 3), (1, 4)):
            expected, _ = drawn(text, list(range(documents)), length, 7, wanted)
            taken = Loader(expected).take(0, wanted)
            try:
                found = KerpleRelease(split="all", seed=7, samples=wanted).samples(sizes, length)
            except UserError:
                assert taken is None
                continue
            assert [
                [t for span in s.spans for t in text[span.document][span.start : span.stop]] for s in found
            ] == taken


@pytest.mark.parametrize(
    "weights", ["949/50/1", "1/1/1", "98/1/1", "0/0/1", "1/0/0", "2/1/1", "0.5/0.25/0.25"]
)
def test_documents_are_split_as_the_release_splits_them(weights: str) -> None:
    for count in range(1, 2100):
        edges = split_bounds([float(w) for w in weights.split("/")], count)
        for at, part in enumerate(("train", "valid", "test")):
            found = part_range(part, parse_shares(weights, "x"), count)
            assert list(found) == [i for i in range(edges[at], edges[at + 1]) if i >= 0]


def test_valid_goes_on_where_training_stopped(small: list[list[int]]) -> None:
    """start, modulo the loader's samples, of which it has one fewer than there are."""
    sizes = [len(d) for d in small]
    every, _ = drawn(small, list(range(130)), 7, 3, 100)
    last = len(every) - 1 - 100  # the loader's last start with 100 samples
    outcomes = []
    for start in (0, 1, 99, last, last + 1, last + 2, len(every) - 1, len(every), 16000):
        protocol = KerpleRelease(split="all", seed=3, samples=100, start=start)
        taken = Loader(every).take(start, 100)
        outcomes.append(taken is not None)
        if taken is None:
            with pytest.raises(UserError, match=rf"start={start} leaves \d+ of the {len(every) - 1} samples"):
                protocol.samples(sizes, 7)
            continue
        found = protocol.samples(sizes, 7)
        assert [
            [t for span in s.spans for t in small[span.document][span.start : span.stop]] for s in found
        ] == taken
    assert outcomes[3:5] == [True, False]


def test_another_seed_or_length_is_another_text(small: list[list[int]]) -> None:
    sizes = [len(d) for d in small]
    draws = {
        (seed, length): KerpleRelease(split="all", seed=seed, samples=20).samples(sizes, length)
        for seed in (1, 2)
        for length in (8, 16)
    }
    assert len({str(d) for d in draws.values()}) == 4


@pytest.mark.parametrize(("options", "says"), [
    ({"split": "dev"}, "split=dev: must be one of train, valid, test, all"),
    ({"seed": -1}, "seed=-1 must be within 0..4294967295"),
    ({"seed": 2**32}, "seed=4294967296 must be within"),
    ({"samples": 0}, "samples=0 must be at least 1"),
    ({"start": -1}, "start=-1 must be at least 0"),
    ({"shares": "949,50,1"}, "kerple-release: shares: must be TRAIN/VALID/TEST, as in 949/50/1"),
    ({"shares": "0/0/0"}, "kerple-release: shares: must add up to more than 0"),
])  # fmt: skip
def test_options_are_checked(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        KerpleRelease(**options)  # type: ignore[arg-type]


def test_more_samples_than_any_memory_holds_are_refused() -> None:
    with pytest.raises(UserError, match=r"samples=9+ at length 16 need the text's 5 tokens \d+ times"):
        KerpleRelease(split="all", samples=10**15 - 1).samples([5], 16)


def test_an_empty_split_or_text() -> None:
    with pytest.raises(
        UserError, match=r"split=test has none of the 10 documents \(not empty: train\); split=all"
    ):
        KerpleRelease().samples([5] * 10, 4)
    with pytest.raises(UserError, match=r"split=all has none of the 0 documents \(not empty: none\)"):
        KerpleRelease(split="all").samples([], 4)
    with pytest.raises(UserError, match="documents of split=all hold no token"):
        KerpleRelease(split="all").samples([0, 0], 4)
