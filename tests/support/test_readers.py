"""The bounded readers: values as the usual libraries read them, and one line for whatever else."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kerple_eval.support.readers import (
    DEEPEST,
    DIGITS,
    LARGEST_YAML,
    json_lines,
    parse_json,
    parse_yaml,
    quoted,
    read_bytes,
    read_json,
    read_yaml,
)
from kerple_eval.types import UserError


def refusal(function: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def nested(depth: int) -> Any:
    value: Any = 0
    for i in range(depth):
        value = [value] if i % 2 else {"k": value}
    return value


def test_json_is_what_json_says() -> None:
    values: list[Any] = [
        None,
        True,
        -1,
        10**DIGITS - 1,
        1.5e300,
        "a\U0001f600\0\n",
        [],
        {},
        {"a": [{"b": 1}]},
    ]
    values.append(nested(DEEPEST))
    for value in values:
        for ascii_only in (True, False):
            raw = json.dumps(value, ensure_ascii=ascii_only)
            assert parse_json(raw, "here") == value
            assert parse_json(b"\xef\xbb\xbf" + raw.encode(), "here") == value
    special = parse_json("[NaN, Infinity, -Infinity, 1e999]", "here", non_finite=True)
    assert math.isnan(special[0]) and special[1:] == [math.inf, -math.inf, math.inf]


def test_json_that_is_refused() -> None:
    cases: dict[str | bytes, str] = {
        "[1, 2": "here: not JSON: Expecting",
        b"\xff\xfe": "here: not UTF-8 at byte 0",
        '{"a": 1, "b": 2, "a": 1}': "key 'a' is given twice",
        '{"b": {"a": 1, "a": 2}}': "key 'a' is given twice",
        "NaN": "NaN is no JSON number",
        "[1e999]": "'1e999' is beyond the range of numbers",
        "9" * (DIGITS + 1): f"a number of {DIGITS + 1} digits; at most {DIGITS} are read",
        "[-" + "9" * 100_000 + "]": "a number of 100001 digits",
        '["\\ud83d"]': "half a surrogate pair",
        '{"\\uDE00": 1}': "half a surrogate pair",
        "[" * 100_000: "nested deeper than 100 levels",
        '{"a":' * 100_000 + "1" + "}" * 100_000: "nested deeper than 100 levels",
        json.dumps(nested(DEEPEST + 1)): "nested deeper than 100 levels",
    }
    for raw, problem in cases.items():
        assert problem in refusal(parse_json, raw, "here")


def test_json_objects_and_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
    file.write_text("[]")
    assert refusal(read_json, file) == f"{file}: expected a JSON object, got list"
    lines = b'\n{"a": "\xc2\x85"}\r\n \n{"b": 2}'.splitlines(keepends=True)
    assert list(json_lines(lines, "here")) == [(2, {"a": "\x85"}), (4, {"b": 2})]
    assert refusal(lambda: list(json_lines([b'{"a": 1}\n', b"[]\n"], "here"))) == (
        "here:2: expected a JSON object, got list"
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    loop, pipe, large = tmp_path / "loop", tmp_path / "pipe", tmp_path / "large"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    large.write_bytes(b"#" * (LARGEST_YAML + 1))
    assert "cannot be read: " in refusal(read_json, loop)
    assert refusal(read_json, pipe) == f"{pipe}: not a regular file; write what it gives into one"
    assert refusal(read_json, tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    assert "cannot be read: " in refusal(read_json, Path("n" * 300))
    assert "cannot be read: " in refusal(read_json, Path("a\0b"))
    assert "larger than 262,144 bytes" in refusal(read_yaml, large)
    assert refusal(read_bytes, large, 5).endswith("larger than 5 bytes, the most that is read of such a file")


def test_yaml_is_what_the_library_says() -> None:
    for text in (
        "", "# nothing", "---", "a", "- 1\n- -2\n- +3\n- 0x1F", "{a: 1.5, b: [~, null, true, False]}",
        "a: 'x: y'\nb: \"\\u00e9\\n\"\nc: |\n  two\n  lines\nd: >-\n  one\n  line", "[.5, 1., 1.5e+3, -.inf]",
        "a: {b: {c: [{d: e}]}} # comment", "&anchor a: &other 1", "? a\n: b", "1e-5", "a: ", "'12'",
    ):  # fmt: skip
        assert parse_yaml(text, "here") == yaml.safe_load(text), text
    assert math.isnan(parse_yaml(".nan", "here"))


def test_yaml_without_surprises() -> None:
    for text in ("2001-99-99", "2001-01-01", "1:30", "010", "1_000", "yes", "off", "=", "<<", "08"):
        assert parse_yaml(f"[{text}]", "here") == [text]
    assert parse_yaml("{1: a, true: b, 2001-01-01: c, <<: {d: e}}", "here") == {
        "1": "a",
        "true": "b",
        "2001-01-01": "c",
        "<<": {"d": "e"},
    }
    assert parse_yaml(json.dumps(nested(DEEPEST)), "here") == nested(DEEPEST)


def test_yaml_that_is_refused() -> None:
    bomb = "\n".join(["a0: &a0 [x,x]"] + [f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]" for i in range(1, 40)])
    for text, problem in {
        "a: 1\nb: [2": "here: not YAML: expected ',' or ']'",
        "a: 1\nb: !!int abc": "here: not YAML: tag tag:yaml.org,2002:int; plain values have none (line 2)",
        "!!python/object/apply:os.getcwd []": "tag tag:yaml.org,2002:python/object",
        "! a": "tag !",
        "a: 1\na: 1": "key 'a' is given twice (line 2)",
        "{a: 1, 'a': 1}": "key 'a' is given twice",
        "[a]: 1": "a key that is no plain text",
        "? {a: 1}\n: 1": "a key that is no plain text",
        bomb: "alias *a0; write the value out (line 2)",
        "&a [*a]": "alias *a",
        "*" + "a" * 1000: "alias *" + "a" * 40 + ";",
        "a\n---\nb": "a second document begins (line 2)",
        "[" * 10_000: "nested deeper than 100 levels",
        "- " * 10_000: "nested deeper than 100 levels",
        "a: \0": "special characters are not allowed",
        "9" * 5000: "a number of 5000 digits",
        "0x" + "f" * 5000: "a number of 5002 digits",
        "a" * (LARGEST_YAML + 1): "larger than 262,144 characters",
    }.items():
        assert problem in refusal(parse_yaml, text, "here"), text[:40]


@pytest.mark.slow
def test_the_largest_yaml_is_read_in_seconds() -> None:
    for piece in ("[],", "a,", "? ", "- ", "a: ", "{a: ", "'", "&a ", "!a ", "%a\n", "# \n", "- a\n", "a\n"):
        start = time.perf_counter()
        for opened in ("", "["):
            with contextlib.suppress(UserError):
                parse_yaml((opened + piece * LARGEST_YAML)[:LARGEST_YAML], "here")
        assert time.perf_counter() - start < 20, piece


def test_short_values_are_quoted_as_python_writes_them() -> None:
    values: list[Any] = [
        None,
        1,
        -2.5,
        "it's",
        b"\xff",
        [],
        [1, [2]],
        (),
        (1,),
        (1, 2),
        {},
        {"a": {"b": (1,)}},
    ]
    values += [{1}, 2**100, True, Path("a")]
    for value in values:
        assert quoted(value) == repr(value)


def test_long_values_are_cut_before_they_are_written() -> None:
    shared: Any = "x"
    for _ in range(200):
        shared = (shared, shared)
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    for value in (
        shared,
        loop,
        deep,
        "a" * 10**6,
        {"a" * 1000: 1},
        list(range(10**6)),
        {i: i for i in range(99)},
    ):
        text = quoted(value)
        assert len(text) == 80 and text.endswith("...")
    assert quoted("a" * 100, most=10) == "'aaaaaa..."
    assert quoted(10**10_000) == "a number of about 10001 digits"
    while deep:  # one level at a time: freeing it whole would recurse
        deep = deep[0]
