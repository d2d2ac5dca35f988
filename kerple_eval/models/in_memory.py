"""Models in memory: a transformers model, any ``torch.nn.Module`` or function, or a `LanguageModel`.

    kerple_eval.evaluate({"mine": model}, tokenizer=tokenizer, text=..., out="runs/mine")
    kerple_eval.evaluate({"mine": kerple_eval.from_module(model, train_length=512, scheme="rope")}, ...)

Device and dtype are the model's own. Mode (train or eval), gradients, buffers and settings of the model are
after the run what they were before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kerple_eval.data.tokenizer import BYTE_TOKENIZER, Tokenizer
from kerple_eval.models import lent, state_hash
from kerple_eval.models.base import Checkpoint, Description, LanguageModel, Shape
from kerple_eval.models.callable import CallableModel
from kerple_eval.models.probes import logits_of, probe
from kerple_eval.schemes.layers import format_layers
from kerple_eval.types import UserError

if TYPE_CHECKING:
    from kerple_eval.models.hf.extension import Method

Model = nn.Module | LanguageModel | Callable[[Tensor], Any]


class InMemoryCheckpoint(Checkpoint):
    """A model in memory with what is known of it; made by :func:`from_module`."""

    def __init__(
        self,
        model: Model,
        *,
        tokenizer: Tokenizer | None = None,
        scheme: str | None = None,
        train_length: int | None = None,
        max_length: int | None = None,
        prefix_invariant: bool | None = None,
        seed: int | None = None,
        identity: str | None = None,
        extend: str | None = None,
    ) -> None:
        if not (isinstance(model, LanguageModel) or callable(model)):
            raise UserError(
                f"a model in memory must be a torch.nn.Module, a function of token ids or a "
                f"kerple_eval.LanguageModel, got {type(model).__name__}"
            )
        self.given = model
        self.model: Model
        self.model, self.adapter = lent.unwrapped(model)
        self.feeds_pieces = lent.is_transformers(self.model)
        self._tokenizer = tokenizer
        self.scheme = scheme
        self.train_length = train_length
        self.max_length = max_length
        self.prefix_invariant = prefix_invariant
        self.seed = seed
        self.identity = identity
        self.extend = extend
        if extend is not None and not self.feeds_pieces:
            raise UserError(f"extend={extend}: {self.name} is no transformers model; only such are extended")

    def completed(self, tokenizer: Tokenizer | None, identity: str | None) -> InMemoryCheckpoint:
        """The same with a tokeniser, and a name for its version where it has neither one nor parameters."""
        has_state = self.module is not None and any(True for _ in self.module.parameters())
        if has_state or self.identity is not None:
            identity = self.identity
        return InMemoryCheckpoint(
            self.given, tokenizer=self._tokenizer or tokenizer, scheme=self.scheme,
            train_length=self.train_length, max_length=self.max_length,
            prefix_invariant=self.prefix_invariant, seed=self.seed, identity=identity, extend=self.extend,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The class or function, for the record."""
        name = getattr(self.model, "__qualname__", None) or lent.own_class(self.model).__qualname__
        return str(name)

    @property
    def module(self) -> nn.Module | None:
        """The module whose state the model is, where there is one."""
        if isinstance(self.model, nn.Module):
            return self.model
        if not isinstance(self.model, LanguageModel):
            return None
        inner = (getattr(self.model, name, None) for name in ("model", "decoder"))
        return next((module for module in inner if isinstance(module, nn.Module)), None)

    @cached_property
    def scored(self) -> LanguageModel:
        """What scores, in the dtype that its matrix products have."""
        if self._interface is not self.model:
            self._interface.dtype = self._first_pass[1] or self._interface.dtype
        return self._interface

    @cached_property
    def _interface(self) -> LanguageModel:
        """The model itself, or its own forward behind the interface."""
        together = self.module is not None and lent.in_parts(self.module, self.name)
        if isinstance(self.model, LanguageModel):
            self.model.together |= together
            return self.model
        device, dtype = self._device_and_dtype()
        if self._method is not None:
            from kerple_eval.models.hf.extended import ExtendedModel  # noqa: PLC0415
            from kerple_eval.models.hf.extension import with_frequencies  # noqa: PLC0415

            _, answering = with_frequencies(self.model, self._method, self.name)
            with self.borrowed():
                return ExtendedModel(
                    self.model, device, dtype, self.name, method=self._method, answering=answering,
                    placed=True, together=together,
                )  # fmt: skip
        if lent.is_transformers(self.model):
            from kerple_eval.models.hf.model import HfModel  # noqa: PLC0415

            return HfModel(self.model, device, dtype, self.name, placed=True, together=together)
        return CallableModel(self.model, device, dtype, together=together)

    @cached_property
    def _method(self) -> Method | None:
        """What ``extend`` asks for."""
        if self.extend is None:
            return None
        from kerple_eval.models.hf.extension import method_of  # noqa: PLC0415

        return method_of(self.extend, self.model, self.train_length, self.name)

    def _device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        tensors = [*self.module.parameters(), *self.module.buffers()] if self.module is not None else []
        mapped = getattr(self.model, "hf_device_map", None) is not None  # a meta tensor then lies on disk
        devices = {lent.placement(tensor) for tensor in tensors}
        if len(devices) > 1 and not mapped:
            names = ", ".join(sorted(map(str, devices)))
            raise UserError(
                f"{self.name} is on several devices ({names}) without a device map; move it to one"
            )
        floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
        device = next(
            (lent.placement(tensor) for tensor in tensors if not tensor.is_meta), torch.device("cpu")
        )
        return device, floating[0] if floating else torch.float32

    @cached_property
    def _first_pass(self) -> tuple[int, torch.dtype | None]:
        """Of a pass over two tokens: V, and the dtype of most matrix products, None where none is seen.

        Autocast (accelerate's too) and FSDP's policy compute in another one than the parameters have.
        """
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self._interface.device)
        products = lent.Products()

        def width() -> int:
            return int(next(iter(self._interface.logits(ids, 2))).shape[-1])

        from kerple_eval.models.hf.foreign import foreign  # noqa: PLC0415

        with self.borrowed(), lent.without_gradients(), foreign(self.name, "its own code fails"):
            try:
                with products:
                    return width(), products.dtype
            except Exception:  # an operation that torch does not watch; or what is wrong is said here
                return width(), None

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return False  # nothing on disk

    @classmethod
    def open(cls, place: str, options: dict[str, str]) -> Checkpoint:
        raise UserError(f"{place}: a model in memory has no path")

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def set_attention(self, attention: str, device: torch.device, dtype: torch.dtype) -> None:
        if attention != "auto":
            raise UserError(
                f"attention {attention}: a model in memory computes attention by its own code; use auto"
            )

    def auto_dtype(self, device: torch.device) -> torch.dtype:
        return self.scored.dtype

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.scored.dtype

    def load(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        if self.feeds_pieces:
            self.scored.feeding = copy(self.feeding)
        return self.scored

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """In eval mode inside; afterwards the model is what it was."""
        with nullcontext() if self.module is None else lent.borrowed(self.module):
            yield

    def measure_together(self) -> None:
        """What is measured of a model in parts, on all ranks at once: later rank 0 alone would be asked."""
        if self.scored.together:
            _ = self.description

    @cached_property
    def description(self) -> Description:
        _ = self.scored, self.state_sha256  # of the model as it was given
        vocabulary = self._first_pass[0]
        facts = self._facts()
        scored = self.scored
        logits = partial(logits_of, scored, vocabulary)
        measured = probe(logits, vocabulary, scored.device, scored.dtype, longest=facts.get("max_length"))
        details: dict[str, Any] = {
            "architecture": self.name,
            "tokenizer": None if self._tokenizer is None else self._tokenizer.identity,
            "identity": "the caller's word" if self.state_sha256 is None else "sha256 of the model's state",
        }
        if self.adapter is not None:
            details["adapter"] = {"peft_type": self.adapter}
        if self._method is not None:
            details |= self._method.details()
            measured = bool(measured and self._method.prefix_invariant)
        parameters = 0 if self.module is None else sum(p.numel() for p in self.module.parameters())
        return Description(
            format="memory",
            scheme=facts.get("scheme", "unknown"),
            vocab_size=vocabulary,
            parameters=parameters,
            train_length=facts.get("train_length"),
            seed=self.seed,
            # Measured at short windows only, so a length beyond them is served by a pass of its own unless
            # the caller says that it need not be.
            prefix_invariant=bool(measured and facts.get("prefix_invariant", False)),
            max_length=facts.get("max_length"),
            weights_sha256=self.state_sha256 or self._named_identity(),
            architecture=self.name,
            shape=facts.get("shape") or Shape(0, 0, 1, 1, 0, 0),
            stored_dtypes=(),
            details=details,
        )

    def _facts(self) -> dict[str, Any]:
        """What the model's own configuration says, and over it what the caller says."""
        known: dict[str, Any] = {}
        if lent.is_transformers(self.model):
            from kerple_eval.models.hf import config_facts  # noqa: PLC0415
            from kerple_eval.models.hf.config import text_config  # noqa: PLC0415

            model: Any = self.model
            text = text_config(model.config, self.name)
            layers = self._layers(model)
            known = {
                "scheme": format_layers(layers),
                "train_length": config_facts.train_length(text, {}),
                "max_length": config_facts.longest_window(text, model),
                "shape": config_facts.shape(text),
            }
        told = {
            name: getattr(self, name) for name in ("scheme", "train_length", "max_length", "prefix_invariant")
        }
        return known | {name: value for name, value in told.items() if value is not None}

    def _layers(self, model: Any) -> list[str]:
        """The scheme of each layer."""
        from kerple_eval.models.hf.layers import layer_schemes  # noqa: PLC0415

        if self._method is None:
            return layer_schemes(lent.own_class(model), model.config) or ["unknown"]
        from kerple_eval.models.hf.config import text_config  # noqa: PLC0415
        from kerple_eval.models.hf.extension import with_frequencies  # noqa: PLC0415

        config, _ = with_frequencies(model, self._method, self.name)
        names = layer_schemes(lent.own_class(model), config) or ["unknown"]
        return self._method.renamed(names, text_config(config, self.name))

    @cached_property
    def state_sha256(self) -> str | None:
        return None if self.module is None else state_hash.state_sha256(self.module, self.identity)

    def _named_identity(self) -> str:
        if self.identity is None:
            raise UserError(
                f"{self.name} has no state whose sha256 could tell it from another; name its version: "
                'kerple_eval.from_module(function, identity="my-model-v1")'
            )
        return hashlib.sha256(self.identity.encode()).hexdigest()


def tokenizer_of(given: Any) -> Tokenizer | None:
    """A tokeniser of this package from one of transformers or tokenizers, or ``"bytes"``.

    Raises:
        UserError: an object that reads no text.
    """
    if given is None:
        return None
    if isinstance(given, str):
        if given != "bytes":
            raise UserError(
                f"tokenizer {given!r}: the only tokeniser known by name is 'bytes'; give the object itself"
            )
        return BYTE_TOKENIZER
    if all(hasattr(given, name) for name in ("identity", "vocab_size", "before", "after", "encode")):
        own: Tokenizer = given
        return own
    from kerple_eval.models.hf.tokenizer import from_object  # noqa: PLC0415

    return from_object(given)
