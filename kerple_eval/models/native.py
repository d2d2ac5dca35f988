"""The native format: a folder with ``config.json``, ``model.safetensors`` and a tokeniser.

    config.json        {"format": "kerple-eval", "version": 1, "model": {...},
                        "tokenizer": "bytes" | "tokenizer.json" | null, "seed": int | null,
                        "weights_sha256": "...", "training": {...}}
    model.safetensors  the decoder's tensors by name, any floating dtype
    tokenizer.json     where config.json names it

Loading is strict: a missing, unclaimed or wrongly shaped tensor is named and refused, and so are
weights whose sha256 is not the one in ``config.json`` (safetensors itself has no checksum). Weights
may be stored in half precision; the scheme's parameters are stored in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from kerple_eval.data.tokenizer import BYTE_TOKENIZER, FastTokenizer, JsonTokenizer, Tokenizer
from kerple_eval.models.base import Checkpoint, Description, Shape
from kerple_eval.models.decoder.backends import resolve_backend
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.extend import extended
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.decoder.scored import DecoderModel, check_scheme
from kerple_eval.models.zoo import shipped_folder
from kerple_eval.schemes.base import Scheme
from kerple_eval.support.files import inside, is_file, is_folder, write_atomically
from kerple_eval.support.readers import quoted, read_json
from kerple_eval.support.typed_json import LARGEST
from kerple_eval.types import UserError

TensorShape = tuple[int, ...]

FORMAT = "kerple-eval"
VERSION = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
BYTES = "bytes"


class NativeCheckpoint(Checkpoint):
    """A folder that ``train`` or ``convert`` wrote; ``options`` are those of MODEL (``extend=...``).

    Raises:
        UserError: configuration, weights or tokeniser are missing, damaged or do not fit together.
    """

    def __init__(self, folder: Path, options: dict[str, str] | None = None) -> None:
        self.folder = folder
        for path in (folder / name for name in (CONFIG, WEIGHTS, TOKENIZER)):
            if path.is_symlink() or path.exists():
                inside(path, folder)
        data = _read_config(folder / CONFIG)
        where = str(folder / CONFIG)
        self.stored_config = DecoderConfig.from_json(data.get("model"), where)
        self.data = data
        stored = _stored_tensors(folder / WEIGHTS)
        _check_sizes(self.stored_config, {name: shape for name, (shape, _) in stored.items()}, where)
        self._shapes = _shapes(self.stored_config, where)
        self.config = extended(self.stored_config, options) if options else self.stored_config
        _check_tensors(folder / WEIGHTS, stored, self._shapes)
        self.stored = {name: dtype for name, (_, dtype) in stored.items()}
        self._sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        if self._sha256 != data["weights_sha256"]:
            raise UserError(
                f"{folder / WEIGHTS}: its sha256 is {self._sha256}, {CONFIG} says "
                f"{quoted(data['weights_sha256'])[1:-1]}: "
                "the weights are damaged or another model's"
            )
        self._tokenizer: Tokenizer | None = None
        if data["tokenizer"] == TOKENIZER:
            self._tokenizer = JsonTokenizer(folder / TOKENIZER)
        elif data["tokenizer"] == BYTES:
            self._tokenizer = BYTE_TOKENIZER
        if self._tokenizer is not None and self._tokenizer.vocab_size > self.config.vocab_size:
            raise UserError(
                f"{where}: the tokeniser has {self._tokenizer.vocab_size} ids, "
                f"the model's vocabulary {self.config.vocab_size}"
            )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        if not (folder / CONFIG).is_file():  # a pipe would never end
            return False
        try:
            return read_json(folder / CONFIG, non_finite=True).get("format") == FORMAT
        except UserError:
            return False

    @classmethod
    def open(cls, location: str, options: dict[str, str]) -> Checkpoint:
        folder = Path(location)
        if not is_folder(folder):
            problem = "is a file" if is_file(folder) else "no such folder"
            raise UserError(f"{location}: {problem}; a native checkpoint is a folder with {CONFIG}")
        return cls(folder, options)

    @cached_property
    def description(self) -> Description:
        return Description(
            format="native",
            scheme=self.config.scheme_name,
            vocab_size=self.config.vocab_size,
            parameters=sum(torch.Size(shape).numel() for shape in self._shapes.values()),
            train_length=self.config.train_length,
            seed=self.data.get("seed"),
            prefix_invariant=self._evaluated.prefix_invariant,
            max_length=self._evaluated.max_positions,
            weights_sha256=self._sha256,
            architecture="decoder",
            shape=Shape(
                layers=self.config.layers,
                width=self.config.width,
                heads=self.config.heads,
                kv_heads=self.config.heads,
                head_dim=self.config.geometry.head_dim,
                mlp_width=self.config.mlp_width,
            ),
            stored_dtypes=tuple(sorted(set(self.stored.values()))),
            details={
                "model": self.config.to_json(),
                "tokenizer": self._tokenizer.identity if self._tokenizer else None,
            },
            warnings=tuple(
                f"{count} values of scheme.{name} are outside their interval and are put back on loading"
                for name, count in self._scheme()[1].items()
            ),
        )

    @cached_property
    def _evaluated(self) -> Scheme:
        return scheme_of(self.config).eval()

    def _scheme(self) -> tuple[Scheme, dict[str, int]]:
        """The trained scheme with its parameters, projected, and how many values moved, by name."""
        scheme = scheme_of(self.stored_config)
        names = [name for name, _ in scheme.named_parameters()]
        tensors = self._read([f"scheme.{name}" for name in names], torch.float32)
        scheme.load_state_dict({name: tensors[f"scheme.{name}"] for name in names})
        return scheme, scheme.project_()

    def scheme_parameters(self) -> dict[str, list[float]]:
        return {name: p.flatten().tolist() for name, p in self._scheme()[0].named_parameters()}

    def _read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
        path = self.folder / WEIGHTS
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name).to(dtype) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: {error}") from None

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def set_attention(self, attention: str, device: torch.device, dtype: torch.dtype) -> None:
        self.attention = resolve_backend(attention, self._evaluated, self.config.scheme_name, device, dtype)

    def load(self, device: torch.device, dtype: torch.dtype) -> DecoderModel:
        decoder = self.decoder()
        check_scheme(decoder)
        return DecoderModel(decoder, device, dtype, self.attention)

    def decoder(self) -> Decoder:
        """The decoder on CPU in float32, or in float64 where the weights are stored so."""
        wide = torch.float64 if "F64" in self.stored.values() else torch.float32
        decoder = Decoder(self.stored_config).to(wide)
        state = self._read(self._shapes, wide)
        if self.config.tie_embeddings:
            state["head.weight"] = state["embedding.weight"]
        decoder.load_state_dict(state, strict=True)
        decoder.scheme.project_()
        if self.config is not self.stored_config:
            decoder.set_scheme(self.config)
        return decoder


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path.parent}: no {CONFIG}; a native checkpoint has one")
    data = read_json(path, non_finite=True)  # a training record may hold what Python's json writes
    if data.get("format") != FORMAT:
        raise UserError(f'{path}: not a native checkpoint: "format" must be "{FORMAT}"')
    if data.get("version") != VERSION:
        raise UserError(f"{path}: version {quoted(data.get('version'))}; this release reads {VERSION}")
    if data.get("tokenizer", "") not in (BYTES, TOKENIZER, None):
        raise UserError(
            f'{path}: tokenizer must be "{BYTES}", "{TOKENIZER}" or null, got {quoted(data.get("tokenizer"))}'
        )
    if not isinstance(data.get("weights_sha256"), str):
        raise UserError(
            f"{path}: weights_sha256 must be the sha256 of {WEIGHTS}, "
            f"got {quoted(data.get('weights_sha256'))}"
        )
    seed = data.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) > LARGEST):
        raise UserError(f"{path}: seed must be an integer of 64 bits or null, got {quoted(seed)}")
    return data


def _stored_tensors(path: Path) -> dict[str, tuple[TensorShape, str]]:
    """Shape and dtype of every tensor in the file, from its header; the file has the size it says."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in found.items()}
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {WEIGHTS}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or damaged: {error}") from None


def _check_sizes(config: DecoderConfig, shapes: dict[str, TensorShape], where: str) -> None:
    """No size that decides how much is built is larger than the weights': said before anything is built."""
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    sizes = {"layers": len(layers)}
    embedding = shapes.get("embedding.weight", ())
    if len(embedding) == 2:
        sizes["vocab_size"], sizes["width"] = embedding
    for key, size in sizes.items():
        if getattr(config, key) > size:
            raise UserError(f"{where}: model.{key} is {getattr(config, key)}, the weights have {size}")


def _shapes(config: DecoderConfig, where: str) -> dict[str, TensorShape]:
    """Every tensor of the decoder that ``config`` describes."""
    try:
        with torch.device("meta"):
            empty = Decoder(config)
    except UserError as error:  # a scheme or an option of it that is not known
        raise UserError(f"{where}: {error}") from None
    except (RuntimeError, TypeError):  # torch's, of a tensor of more elements than it can count
        raise UserError(f"{where}: model: its sizes make a tensor too large for any machine") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if config.tie_embeddings:
        del shapes["head.weight"]
    return shapes


def _check_tensors(
    path: Path, stored: dict[str, tuple[TensorShape, str]], expected: dict[str, TensorShape]
) -> None:
    """The stored tensors are those of the decoder, in name, shape and kind."""
    missing = [name for name in expected if name not in stored]
    if missing:
        raise UserError(f"{path}: missing tensor {_some(missing)}")
    extra = [name for name in stored if name not in expected]
    if extra:
        raise UserError(f"{path}: tensor not claimed by the model: {_some(extra)}")
    for name, shape in expected.items():
        found, dtype = stored[name]
        if found != shape:
            raise UserError(f"{path}: tensor {name} has shape {list(found)}, expected {list(shape)}")
        if not dtype.startswith(("F", "BF")):
            raise UserError(f"{path}: tensor {name} is {dtype}, expected floating point")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def write_checkpoint(
    folder: Path,
    decoder: Decoder,
    *,
    seed: int | None,
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = BYTE_TOKENIZER,
    training: dict[str, Any] | None = None,
) -> None:
    """Write the native format; ``config.json`` comes last, so that it marks a whole checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", torch.float32 if name.startswith("scheme.") else dtype)
        for name, tensor in decoder.state_dict().items()
        if not (decoder.config.tie_embeddings and name == "head.weight")
    }
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    weights = to_safetensors(state, metadata={"format": "pt"})
    write_atomically(folder / WEIGHTS, weights)
    if isinstance(tokenizer, FastTokenizer):
        write_atomically(folder / TOKENIZER, tokenizer.to_json())
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": decoder.config.to_json(),
        "tokenizer": TOKENIZER if isinstance(tokenizer, FastTokenizer) else tokenizer and BYTES,
        "seed": seed,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": training or {},
    }
    write_atomically(folder / CONFIG, json.dumps(config, indent=2).encode() + b"\n")


class ZooCheckpoint(NativeCheckpoint):
    """``zoo:NAME``: a native checkpoint that the package ships."""

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return False  # reached by name only; its folders are native ones

    @classmethod
    def open(cls, location: str, options: dict[str, str]) -> Checkpoint:
        return NativeCheckpoint.open(str(shipped_folder(location)), options)
