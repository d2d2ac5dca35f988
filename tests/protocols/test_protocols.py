"""Protocols on exhaustive small grids against the definitions, written as sets over targets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from kerple_eval.protocols.aligned import Aligned
from kerple_eval.protocols.base import Protocol
from kerple_eval.protocols.catalogue import PROTOCOLS
from kerple_eval.protocols.dape import Dape
from kerple_eval.protocols.full_context import FullContext
from kerple_eval.protocols.hf_guide import HfGuide
from kerple_eval.protocols.kerple_release import KerpleRelease
from kerple_eval.protocols.last import Last
from kerple_eval.protocols.lm_eval_rolling import LmEvalRolling
from kerple_eval.protocols.prefix import Prefix
from kerple_eval.protocols.sliding_window import SlidingWindow
from kerple_eval.protocols.yarn import Yarn
from kerple_eval.support.registry import load
from kerple_eval.support.specs import typed_options
from kerple_eval.types import UserError, Window

DOCUMENTS = range(41)
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 12, 40)


def contexts(windows: list[Window]) -> list[tuple[int, int]]:
    """(target, context) of everything scored, in order."""
    return [(k, k - w.start) for w in windows for k in range(w.first_target, w.stop + 1)]


def triples(windows: list[Window]) -> list[tuple[int, int, int]]:
    return [(w.start, w.stop, w.first_target) for w in windows]


def grid() -> Iterator[tuple[Protocol, int, int, int]]:
    """(protocol, n, L, M) for every protocol over small numbers, as a run would ask."""
    for n, length in itertools.product(DOCUMENTS, LENGTHS):
        yield FullContext(), n, length, length
        for part in range(1, length + 1):
            yield SlidingWindow(stride=part), n, length, length
            yield Last(k=part), n, length, length
        for longest in (m for m in LENGTHS if m >= length):
            yield Prefix(), n, length, longest
            for k in range(1, length + 1):
                for every in {None, k, k + 1, longest, longest + 2}:
                    if every is None or every >= k:
                        yield Aligned(k=k, every=every), n, length, longest


def test_every_window_fits() -> None:
    """Inside the document, at most L inputs, targets in 1..n-1, contexts 1..L, none scored twice."""
    count = 0
    for protocol, n, length, longest in grid():
        windows = protocol.plan(n, length, longest)
        seen = contexts(windows)
        for w in windows:
            assert 0 <= w.start < w.stop <= n - 1, (protocol, n, length, w)
            assert w.inputs <= length, (protocol, n, length, w)
        for target, context in seen:
            assert 1 <= target <= n - 1, (protocol, n, length, target)
            assert 1 <= context <= length, (protocol, n, length, target, context)
        targets = [target for target, _ in seen]
        assert targets == sorted(set(targets)), (protocol, n, length)
        assert windows == sorted(windows)
        count += len(windows)
    assert count > 10_000


def test_full_context_scores_every_target_once_from_its_segments_start() -> None:
    for n, length in itertools.product(DOCUMENTS, LENGTHS):
        windows = FullContext().plan(n, length, length)
        expected = [(k, (k - 1) % length + 1) for k in range(1, n)]
        assert contexts(windows) == expected
        assert [w.start for w in windows] == [s for s in range(n) if s % length == 0 and s < n - 1]


def test_sliding_window_scores_every_target_once_with_the_specified_context() -> None:
    """(0, min(L, n-1), 1), then windows of L inputs that end S further on, the last at n-1."""
    for n, length in itertools.product(DOCUMENTS, LENGTHS):
        for stride in range(1, length + 1):
            windows = SlidingWindow(stride=stride).plan(n, length, length)
            expected = []
            for k in range(1, n):
                if k <= length:
                    expected.append((k, k))
                else:
                    steps = next(s for s in itertools.count(1) if length + s * stride >= k)
                    end = min(length + steps * stride, n - 1)
                    expected.append((k, k - (end - length)))
            assert contexts(windows) == expected, (n, length, stride)
            for _, context in expected[length:]:
                assert length - stride + 1 <= context <= length
            assert all(w.inputs == min(length, n - 1) for w in windows)


def test_sliding_window_example() -> None:
    """n = 12, L = 4, S = 3 by hand: ends 4, 7, 10, then 11 with one target left."""
    windows = SlidingWindow(stride=3).plan(12, 4, 4)
    assert triples(windows) == [(0, 4, 1), (3, 7, 5), (6, 10, 8), (7, 11, 11)]


def test_stride_of_the_length_is_full_context_where_it_divides() -> None:
    for length, segments in itertools.product(LENGTHS, range(1, 5)):
        n = length * segments + 1
        assert SlidingWindow(stride=length).plan(n, length, length) == FullContext().plan(n, length, length)


def test_last_is_the_end_of_each_whole_segment() -> None:
    for n, length in itertools.product(DOCUMENTS, LENGTHS):
        for k in range(1, length + 1):
            expected = {
                (s, s + length, s + length - k + 1)
                for s in range(41)
                if s % length == 0 and s + length <= n - 1
            }
            windows = Last(k=k).plan(n, length, length)
            assert triples(windows) == sorted(expected)
            assert all(length - k + 1 <= context <= length for _, context in contexts(windows))


def test_aligned_is_its_definition() -> None:
    for n, length in itertools.product(DOCUMENTS, LENGTHS):
        for longest, every in itertools.product((m for m in LENGTHS if m >= length), (None, 3, 8, 50)):
            for k in range(1, min(length, every or longest) + 1):
                step = longest if every is None else every
                expected = {
                    (e - length, e, e - k + 1)
                    for e in range(n)
                    if e >= longest and (e - longest) % step == 0 and e <= n - 1
                }
                assert triples(Aligned(k=k, every=every).plan(n, length, longest)) == sorted(expected)


def test_aligned_has_the_same_targets_at_every_length() -> None:
    some = 0
    for n, longest, every, k in itertools.product(DOCUMENTS, LENGTHS, (None, 2, 5, 9), (1, 2, 5)):
        if every is not None and every < k:
            continue
        sets = set()
        for length in (length for length in LENGTHS if k <= length <= longest):
            seen = contexts(Aligned(k=k, every=every).plan(n, length, longest))
            sets.add(tuple(target for target, _ in seen))
            assert all(length - k + 1 <= context <= length for _, context in seen)
        assert len(sets) <= 1
        some += any(sets)
    assert some > 100


def test_prefix_has_the_same_starts_at_every_length() -> None:
    for n, length in itertools.product(DOCUMENTS, LENGTHS):
        for longest in (m for m in LENGTHS if m >= length):
            expected = {
                (s, s + length, s + 1) for s in range(41) if s % longest == 0 and s + longest <= n - 1
            }
            windows = Prefix().plan(n, length, longest)
            assert triples(windows) == sorted(expected)
            inside = Prefix().plan(n, longest, longest)
            longer = set(contexts(inside))
            assert set(contexts(windows)) == {(k, c) for k, c in longer if c <= length}


@pytest.mark.parametrize("n", [0, 1])
def test_a_document_without_a_target_has_no_window(n: int) -> None:
    for protocol in (FullContext(), SlidingWindow(stride=2), Last(k=2), Aligned(k=2), Prefix()):
        assert protocol.plan(n, 4, 4) == []


def test_a_document_of_one_whole_window() -> None:
    """n = L + 1 is the least at which last, aligned and prefix score; n = L leaves them none."""
    for protocol in (FullContext(), SlidingWindow(stride=2), Last(k=2), Aligned(k=2), Prefix()):
        assert [(w.start, w.stop) for w in protocol.plan(9, 8, 8)] == [(0, 8)]
    for protocol in (Last(k=2), Aligned(k=2), Prefix()):
        assert protocol.plan(8, 8, 8) == []


@pytest.mark.parametrize("entry", PROTOCOLS.values(), ids=lambda entry: entry.name)
def test_the_catalogue_holds_protocols(entry: object) -> None:
    cls = load(entry.target)  # type: ignore[attr-defined]
    assert issubclass(cls, Protocol)
    depends = {Aligned, Prefix}
    assert cls.depends_on_longest is (cls in depends)
    assert cls.is_prefix is (cls is Prefix)
    assert cls.draws_samples is (cls is KerpleRelease)
    made = cls(**typed_options(cls.__init__, one_option(cls), "x"))
    by_longest = {tuple(triples(made.plan(100, 4, longest))) for longest in (4, 5, 9)}
    assert (len(by_longest) > 1) is cls.depends_on_longest


def one_option(cls: type[Protocol]) -> dict[str, str]:
    if cls in (SlidingWindow, Yarn, HfGuide):
        return {"stride": "2"}
    return {"k": "2"} if cls in (Last, Aligned, Dape) else {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlidingWindow(stride=0), "stride=0 must be at least 1"),
        (lambda: SlidingWindow(stride=-4), "stride=-4"),
        (lambda: Last(k=0), "k=0 must be at least 1"),
        (lambda: Aligned(k=0), "k=0 must be at least 1"),
        (lambda: Aligned(k=4, every=3), "every=3 is below k=4"),
        (lambda: Aligned(k=1, every=0), "every=0"),
        (lambda: Yarn(stride=0), "stride=0 must be at least 1"),
        (lambda: HfGuide(stride=0), "stride=0 must be at least 1"),
        (lambda: HfGuide(stride=1).check([1, 4]), "a window of length 1 has no target"),
        (lambda: LmEvalRolling(prefix_token_id=-1), "prefix_token_id=-1 must be at least 0"),
        (lambda: SlidingWindow(stride=5).check([8, 4, 16]), "stride=5 exceeds length 4.*stride <= 4"),
        (lambda: Last(k=5).check([8, 4]), "k=5 exceeds length 4"),
        (lambda: Aligned(k=5).check([8, 4]), "k=5 exceeds the shortest length 4"),
        (lambda: typed_options(SlidingWindow.__init__, {}, "sliding-window"), "needs stride="),
        (lambda: typed_options(Last.__init__, {"k": "two"}, "last"), "k=two is not an int"),
        (lambda: typed_options(Last.__init__, {"k": "2.5"}, "last"), "k=2.5 is not an int"),
        (lambda: typed_options(Aligned.__init__, {"k": "1", "evry": "4"}, "aligned"), "mean 'every'"),
        (lambda: typed_options(FullContext.__init__, {"k": "1"}, "full-context"), "unknown option"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]


def test_the_longest_allowed_options_pass() -> None:
    for protocol in (SlidingWindow(stride=4), Last(k=4), Aligned(k=4), Aligned(k=4, every=4)):
        protocol.check([8, 4, 16])
    FullContext().check([1])
    Prefix().check([1])


@pytest.mark.parametrize("triple", [(-1, 3, 1), (2, 4, 2), (2, 4, 5), (3, 3, 3), (4, 3, 4)])
def test_what_is_no_window_is_refused(triple: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a window"):
        Window(*triple)


def test_window_counts() -> None:
    window = Window(3, 10, 6)
    assert window.inputs == 7  # tokens 3..9
    assert window.targets == 5  # targets 6..10
