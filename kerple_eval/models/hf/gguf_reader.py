"""Quick ways through package gguf, for transformers' own reading of a file.

``gguf.GGUFReader`` makes numpy objects of every element of every array: minutes for a vocabulary of 262,144
pieces with scores, types and merges, at each reading of the configuration, the tokeniser and the weights.
transformers takes only numbers and lengths from there (its texts it reads by ``integrations/gguf``). And
transformers asks for the table of all tensor names anew for each module of the model.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Size in bytes, parts, which of them are data, types.
Parts = tuple[int, list[Any], list[int], list[Any]]


@contextlib.contextmanager
def quick_reader() -> Iterator[None]:
    """Inside, transformers reads GGUF headers by a reader that gives arrays of texts as empty texts.

    A table of tensor names is made once.
    """
    import gguf  # noqa: PLC0415
    from transformers.integrations.gguf import reader  # noqa: PLC0415

    original, mapped, names = gguf.GGUFReader, reader._mapped, gguf.get_tensor_name_map
    text, array = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY

    class QuickReader(original):  # type: ignore[misc, valid-type]
        """With ``GGUFReader._get_field_parts`` of gguf 0.19 for long arrays."""

        def _get_field_parts(
            self, orig_offs: int, raw_type: int
        ) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type != array or self.byte_order != "I":
                answer: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(
                    orig_offs, raw_type
                )
                return answer
            kind, count = struct.unpack_from("<IQ", self.data, orig_offs)
            start = orig_offs + 12
            types = [array, gguf.GGUFValueType(kind)] if count else [array]
            if kind == text:
                end, walked = start, memoryview(self.data)
                for _ in range(count):
                    (length,) = struct.unpack_from("<Q", walked, end)
                    end += 8 + length
                return end - orig_offs, [np.zeros(0, np.uint8)], [0] * count, types
            plain = self.gguf_scalar_to_np.get(kind)
            if plain is None:
                answer = super()._get_field_parts(orig_offs, raw_type)
                return answer
            values = np.frombuffer(self.data, plain, count, start) if count else np.zeros(0, plain)
            return 12 + values.nbytes, list(values.reshape(-1, 1)), list(range(count)), types

    gguf.GGUFReader, gguf.get_tensor_name_map = QuickReader, functools.cache(names)
    reader._mapped = lambda path: memoryview(mapped(path))
    try:
        yield
    finally:
        gguf.GGUFReader, reader._mapped, gguf.get_tensor_name_map = original, mapped, names
