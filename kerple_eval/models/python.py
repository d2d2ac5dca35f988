"""``python:FILE.py:FUNCTION`` or ``python:module:function``: a user's function that returns a model.

    python:my_models.py:build                  build()
    python:my_models.py:build,width=128        build(width=128), converted by the parameter's annotation

The function returns a model as :mod:`kerple_eval.models.in_memory` accepts it, a pair (model, tokenizer), or
what ``kerple_eval.from_module`` makes. The named code runs: that is what the word ``python:`` says. The
record keeps the sha256 of its file. The model is built once to be described and again when its cells are
scored, so that only one model of a run is in memory.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.models.base import Checkpoint, Description, LanguageModel
from kerple_eval.models.in_memory import InMemoryCheckpoint, tokenizer_of
from kerple_eval.models.user_code import load_file, load_module
from kerple_eval.support.readers import quoted
from kerple_eval.support.registry import unknown
from kerple_eval.support.specs import typed_options
from kerple_eval.types import UserError


class PythonCheckpoint(Checkpoint):
    """What the user's function returns."""

    def __init__(self, location: str, options: dict[str, str]) -> None:
        source, colon, name = location.rpartition(":")
        if not (colon and source and name.isidentifier()):
            raise UserError(f"python:{location}: expected python:FILE.py:FUNCTION or python:module:function")
        module = (
            load_file(Path(source)) if source.endswith(".py") else load_module(source, f"python:{source}")
        )
        self.location = location
        function = getattr(module, name, None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            raise unknown(f"function of {source}", name, known)
        self.function: Callable[..., Any] = function
        self.options = typed_options(self.function, options, f"python:{location}", positional=True)
        file = inspect.getsourcefile(module)
        self.code_sha256 = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
        built = self._build()
        self._tokenizer = built.tokenizer
        self.dtype = built.scored.dtype
        about = built.description
        details = about.details | {"function": name, "code_sha256": self.code_sha256}
        self._description = replace(about, format="python", details=details)
        self.feeds_pieces = built.feeds_pieces

    def _build(self) -> InMemoryCheckpoint:
        """Call the function.

        Raises:
            UserError: it raises (its own error is the cause), or returns no model.
        """
        try:
            found: Any = self.function(**self.options)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"python:{self.location} raised {type(error).__name__}: {quoted(str(error), 200)}; "
                "--traceback shows where"
            ) from error
        tokenizer = None
        if isinstance(found, tuple) and len(found) == 2:
            found, tokenizer = found
        made = found if isinstance(found, InMemoryCheckpoint) else InMemoryCheckpoint(found)
        made = made.completed(tokenizer_of(tokenizer), f"{self.code_sha256} {sorted(self.options.items())}")
        if made.module is not None:
            made.module.eval()
        return made

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return False  # only where ``python:`` names it

    @classmethod
    def open(cls, place: str, options: dict[str, str]) -> Checkpoint:
        return cls(place, options)

    @property
    def description(self) -> Description:
        return self._description

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def set_attention(self, attention: str, device: torch.device, dtype: torch.dtype) -> None:
        if attention != "auto":
            raise UserError(
                f"attention {attention}: python:{self.location} computes attention by its own code; use auto"
            )

        if dtype != self.dtype:
            raise UserError(
                f"dtype {str(dtype).removeprefix('torch.')}: python:{self.location} gives a model in "
                f"{str(self.dtype).removeprefix('torch.')}, which is not converted; leave --dtype out"
            )

    def auto_dtype(self, device: torch.device) -> torch.dtype:
        return self.dtype

    def load(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        expected = self.description.weights_sha256
        built = self._build()
        if (built.state_sha256 or expected) != expected:
            raise UserError(
                f"python:{self.location}: gives a model with other weights each time it is called; "
                "set its seed"
            )
        if built.module is not None:
            built.module.to(device)
        built.feeding = self.feeding
        return built.load(device, dtype)
