"""The native decoder's configuration: what ``config.json`` of a native checkpoint says.

A key that has a default here may be absent there; any other must be given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from kerple_eval.schemes.layers import format_layers, parse_layers
from kerple_eval.schemes.spelling import MIX, format_scheme
from kerple_eval.support.readers import quoted
from kerple_eval.support.registry import unknown
from kerple_eval.types import Geometry, UserError

#: Names alone, so that reading a configuration needs no torch; ``models.decoder.pointwise`` defines them.
ACTIVATIONS = ("gelu", "gelu-tanh", "geglu", "relu", "softsign", "swish", "mish")
NORMS = ("layernorm", "rmsnorm")
MOST = 10**9  # of any size, and tokens of the trained length


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape of the decoder and its positional scheme. Widths in units, ``train_length`` in tokens."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    mlp_width: int
    train_length: int
    scheme: str
    scheme_options: dict[str, Any] = field(default_factory=dict)
    modifiers: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> options, applied in order
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = False
    activation: str = "gelu"
    norm: str = "layernorm"
    original_length: int = 0  # tokens: what the scheme calls the trained length, where that was another
    parallel_residual: bool = False  # x + attention(norm1(x)) + mlp(norm2(x)), GPT-J's

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "width", "heads", "mlp_width", "train_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
            if getattr(self, name) > MOST:
                raise UserError(f"{name} must be at most {MOST:,}, got {getattr(self, name)}")
        if not 0 <= self.original_length <= MOST:
            raise UserError(f"original_length must be 0 to {MOST:,}, got {self.original_length}")
        for name, known in (("activation", ACTIVATIONS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if not 0 <= self.norm_epsilon < math.inf:
            raise UserError(f"norm_epsilon must be finite and at least 0, got {self.norm_epsilon}")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            heads=self.heads,
            head_dim=self.width // self.heads,
            width=self.width,
            layers=self.layers,
            train_length=self.original_length or self.train_length,
        )

    @property
    def scheme_name(self) -> str:
        """The scheme with its modifiers, as text: ``kerple-log,window=512``, ``rope 3/4 + nope 1/4``."""
        if self.scheme != MIX:
            return format_scheme(self.scheme, {}, self.modifiers)
        specs = parse_layers(self.scheme_options, self.layers)
        named = {s: format_scheme(s.name, {}, s.modifier_options | self.modifiers) for s in set(specs)}
        return format_layers([named[spec] for spec in specs])

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        for absent in ("modifiers", "original_length"):
            if not data[absent]:
                del data[absent]
        return data

    @classmethod
    def from_json(cls, data: Any, where: str) -> DecoderConfig:
        """Strict: a missing, unknown or wrongly typed key is refused, named with the file."""
        if not isinstance(data, Mapping):
            raise UserError(f"{where}: 'model' must be an object, got {type(data).__name__}")
        types = {f.name: str(f.type) for f in fields(cls)}
        optional = {f.name for f in fields(cls) if (f.default, f.default_factory) != (MISSING, MISSING)}
        for key in data:
            if key not in types:
                raise UserError(f"{where}: {unknown('key of model', str(key), types)}")
        values: dict[str, Any] = {}
        for key, kind in types.items():
            if key not in data and key in optional:
                continue
            if key not in data:
                raise UserError(f"{where}: model.{key} is missing")
            value = data[key]
            good = {
                "int": isinstance(value, int) and not isinstance(value, bool),
                "float": isinstance(value, int | float) and not isinstance(value, bool),
                "bool": isinstance(value, bool),
                "str": isinstance(value, str),
                "dict[str, Any]": isinstance(value, dict),
                "dict[str, dict[str, Any]]": isinstance(value, dict)
                and all(isinstance(inner, dict) for inner in value.values()),
            }[kind]
            if not good:
                raise UserError(
                    f"{where}: model.{key} must be {kind.split('[')[0]}, "
                    f"got {type(value).__name__} {quoted(value)}"
                )
            values[key] = value
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
