"""Hugging Face checkpoints: ``hf:PATH_OR_ID[@revision]``, any causal language model of transformers.

    hf:DIR                    a folder: config.json with safetensors or pytorch_model*.bin
    hf:DIR,gguf=FILE          a GGUF file in it, unpacked (hf:DIR/FILE.gguf is the same)
    hf:org/name@revision      a repository of the hub, or the copy in its cache

    extend=NAME,...           extend rotary positions, no weight touched (extension.py); or rope=NAME
    tokenizer=FILE            a tokenizer.json, in place of the checkpoint's own
    trust-remote-code=true    run the Python code that the checkpoint brings; never otherwise
    import=MODULE             import the package that registers the architecture with transformers
    adapter=DIR_OR_ID         an adapter on top, by peft (adapters.py); hf:DIR of an adapter names its base
    devices=auto              spread over cards, memory and disk (placement.py)
    parallel=tensor           each rank of torchrun holds a part of every layer (placement.py)

Numbers are those of the model's own ``forward``: soft-capped and scaled logits stay as they are. Pickled
weights are read by the restricted reader of ``pickles.py``. Everything is validated from headers, on
the meta device, before any weight is loaded.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.models.base import Checkpoint, Description
from kerple_eval.models.hf.files import ADAPTER, CONFIG, only_gguf
from kerple_eval.models.hf.opened import Opened, need
from kerple_eval.support.readers import read_json
from kerple_eval.types import UserError

if TYPE_CHECKING:
    import torch

    from kerple_eval.models.decoder.network import Decoder
    from kerple_eval.models.hf.model import HfModel

#: Models whose attention was compared in this process: weights, configuration, method.
_CHECKED: set[tuple[str, str, str]] = set()


class HfCheckpoint(Checkpoint):
    tokenizer_option = ",tokenizer=FILE (a tokenizer.json)"
    feeds_pieces = True

    def __init__(self, opened: Opened) -> None:
        self.opened = opened

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """config.json of a transformers model, an adapter, or one GGUF file and no config.json."""
        if not (folder / CONFIG).is_file():
            return (folder / ADAPTER).is_file() or only_gguf(folder) is not None
        try:
            data = read_json(folder / CONFIG, non_finite=True)
        except UserError:
            return only_gguf(folder) is not None
        return data.get("format") != "kerple-eval" and ("model_type" in data or "architectures" in data)

    @classmethod
    def open(cls, location: str, options: dict[str, str]) -> Checkpoint:
        need(("transformers",))
        return cls(Opened(location, options))

    @cached_property
    def description(self) -> Description:
        from kerple_eval.models.hf.description import describe  # noqa: PLC0415 - torch

        return describe(self.opened)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.opened.tokenizer

    def decoder(self) -> Decoder:
        import torch  # noqa: PLC0415

        from kerple_eval.models.hf.convert import as_native, refuse_others  # noqa: PLC0415

        opened = self.opened
        where = str(opened.weights.files[0].parent)
        if opened.quantisation is not None:
            raise UserError(
                f"{where}: its weights are quantised ({opened.quantisation.method}): no native form"
            )
        if opened.placement.word:
            raise UserError(f"{where}: is converted on the CPU as a whole; leave {opened.placement.word} out")
        if opened.adapter is not None and not opened.merged:
            raise UserError(
                f"{opened.adapter.where}: an adapter of kind {opened.adapter.kind} is computed beside the "
                "weights, which has no native form; one that is merged into them has"
            )
        refuse_others(opened.empty, where)  # before the weights are read
        loaded = self.load(torch.device("cpu"), torch.float32)
        modifiers = {} if opened.method is None else opened.method.modifiers
        return as_native(loaded.model, opened.train_length, where, modifiers)

    def set_attention(self, attention: str, device: torch.device, dtype: torch.dtype) -> None:
        if attention == "flex" and device.type != "cuda":
            raise UserError(f"attention flex: is compiled for CUDA, the device is {device.type}")
        opened = self.opened
        if attention != "auto" and opened.method is not None and opened.method.modifiers:
            raise UserError(
                f"attention {attention}: {', '.join(opened.method.modifiers)} is computed by blocks of "
                "query rows here; use auto"
            )
        if attention != "auto":
            set_attention(opened.empty, attention, str(opened.weights.files[0]))
        self.attention = attention

    def load(self, device: torch.device, dtype: torch.dtype) -> HfModel:
        from kerple_eval.models.hf import sdpa_chunks  # noqa: PLC0415
        from kerple_eval.models.hf.config import quiet  # noqa: PLC0415
        from kerple_eval.models.hf.loading import Source  # noqa: PLC0415

        opened = self.opened
        where = str(opened.weights.files[0])
        gguf_path = opened.gguf_path if opened.weights.kind == "gguf" else None
        source = Source(
            opened.weights, opened.model_class, opened.config, opened.placement, opened.own_code, gguf_path,
            opened.adapter, opened.merged, opened.quantisation,
        )  # fmt: skip
        with quiet():
            model, scratch = source.load(device, dtype)
            if self.attention != "auto":
                set_attention(model, self.attention, where)
            described = self.description
            made = self._ready(model, device, dtype, where)
            made.scratch = scratch
            if device.type == "cuda":
                sdpa_chunks.install(made, described.max_length)
            made.probe(
                where, opened.special_ids(), described.max_length, invariant=described.prefix_invariant
            )
            made.feeding = copy(self.feeding)
            return made

    def _ready(self, model: Any, device: torch.device, dtype: torch.dtype, where: str) -> HfModel:
        from kerple_eval.models.hf.extended import ExtendedModel  # noqa: PLC0415
        from kerple_eval.models.hf.model import HfModel  # noqa: PLC0415

        opened = self.opened
        placed = bool(opened.placement.word) or opened.quantisation is not None
        together = opened.placement.tensor
        if opened.method is None or not opened.method.modifiers:
            return HfModel(model, device, dtype, where, placed=placed, together=together)
        return ExtendedModel(
            model, device, dtype, where, method=opened.method, special=opened.special_ids(),
            longest=self.description.max_length, placed=placed, together=together,
        )  # fmt: skip

    def check_weights(self, device: torch.device, dtype: torch.dtype) -> None:
        """Loading compares the attention computed here with the model's own, whatever the method is.

        A model over several ranks is loaded by all of them together, so there it is the first cell's load.
        """
        opened = self.opened
        if opened.method is None or not opened.method.modifiers or opened.placement.tensor:
            return
        key = (self.description.weights_sha256, opened.fingerprint, str(opened.method))
        if key not in _CHECKED:
            self.load(device, dtype)
            _CHECKED.add(key)

    def check_ranks(self, count: int) -> None:
        self.opened.placement.check_ranks(count, self.description.shape, self.opened.where)

    def auto_dtype(self, device: torch.device) -> torch.dtype:
        from kerple_eval.models.hf.weights import stored_dtype  # noqa: PLC0415 - torch

        opened = self.opened
        return (
            super().auto_dtype(device)
            if device.type == "cpu"
            else stored_dtype(opened.headers, opened.config)
        )


def set_attention(model: Any, attention: str, where: str) -> None:
    """Use transformers' implementation of that name; refused where the model has none."""
    name = {"flex": "flex_attention"}.get(attention, attention)
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: attention {attention}: {reason}") from None
    if model.config._attn_implementation != name:
        raise UserError(
            f"{where}: attention {attention}: {type(model).__name__} computes attention by its own code; "
            "use --attention auto"
        )
