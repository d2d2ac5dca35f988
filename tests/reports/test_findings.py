"""The paragraph in words: every number in it is a quotient of two numbers of the table."""

from __future__ import annotations

from pathlib import Path

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.grid import read_grids
from kerple_eval.reports.page.findings import in_words
from tests.helpers.handmade import row, write_run


def words(folder: Path, lines: list[str]) -> str | None:
    (grid,) = read_grids(RunReader([write_run(folder, lines)]))
    return in_words(grid)


def curve(model: str, by_length: dict[int, float | None], **changes: object) -> list[str]:
    return [row(model, length, ppl, **changes) for length, ppl in by_length.items()]


def test_what_holds_and_what_doubles(tmp_path: Path) -> None:
    """The best up to the trained length is 20 at 256 for log; rope falls back below twice at 2048 once."""
    lines = [
        *curve("log", {256: 20.0, 512: 21.0, 1024: 19.0, 4096: 18.0}),
        *curve("alibi", {256: 21.0, 512: 20.0, 1024: 20.0, 4096: 25.0}),
        *curve("rope", {256: 20.0, 512: 20.0, 1024: 40.0, 2048: 39.0, 4096: 40.0}),
        *curve("t5", {512: 20.0, 1024: 21.0, 2048: 40.0, 4096: 400.0}),
        *curve("nope", {512: 10.0, 1024: 25.0, 4096: 30.0}),
        *curve("none", {512: 10.0, 1024: 50.0, 2048: 50.0}),
    ]
    assert words(tmp_path / "r", lines) == (
        "At 4,096, log's perplexity is 0.90 times its best up to 512 and alibi's 1.25. "
        "From 1,024 on, nope's and none's perplexity is at least twice its best up to 512; "
        "from 2,048 on, t5's; from 4,096 on, rope's."
    )


def test_without_a_trained_length_the_shortest_is_the_measure(tmp_path: Path) -> None:
    lines = [
        *curve("who", {512: 20.0, 1024: 25.0}, train_length=""),
        *curve("far", {1024: 20.0, 2048: 230.0, 4096: 20.5}, train_length=256),
    ]
    assert words(tmp_path / "r", lines) == (
        "At 1,024, who's perplexity is 1.25 times its own at 512. "
        "At 4,096, far's perplexity is 1.02 times its own at 1,024."
    )


def test_failed_cells_and_single_lengths_say_nothing(tmp_path: Path) -> None:
    assert words(tmp_path / "a", [*curve("log", {512: 20.0, 1024: None}), *curve("t5", {512: None})]) is None


def test_seeds_speak_by_their_mean(tmp_path: Path) -> None:
    lines = [
        *curve("log-s1", {512: 10.0, 1024: 20.0}, scheme="log", seed=1),
        *curve("log-s2", {512: 20.0, 1024: 25.0}, scheme="log", seed=2),
    ]
    assert words(tmp_path / "r", lines) == "At 1,024, log's perplexity is 1.50 times its best up to 512."


def test_other_targets_are_said_and_bits_per_byte_across_tokenisers(tmp_path: Path) -> None:
    lines = [
        row("a", 512, 20.0, bits_per_byte=2.0),
        row("a", 1024, 20.0, bits_per_byte=1.0, targets_hash="b"),
    ]
    folder = write_run(tmp_path / "r", [*lines, row("b", 512, 9.0, bits_per_byte=3.0)], {"b": "other"})
    (grid,) = read_grids(RunReader([folder]))
    assert in_words(grid) == (
        "At 1,024, a's bits per byte are 0.50 times its best up to 512. "
        "The targets differ between lengths, so these ratios are of text too."
    )
