"""Hugging Face checkpoints: ``hf:PATH_OR_ID[@revision]``, any causal language model of transformers.

    hf:DIR                    a folder: config.json with safetensors or pytorch_model*.bin
    hf:DIR,gguf=FILE          a GGUF file in it, unpacked (hf:DIR/FILE.gguf is the same)
    hf:org/name@revision      a repository of the hub, or the copy in its cache

    rope=linear|dynamic|yarn|llama3|ntk,factor=F[,original=N]   extend rotary positions (rope.py)
    trust-remote-code=true    run the Python code that the checkpoint brings; never otherwise

Numbers are those of the model's own ``forward``: soft-capped and scaled logits stay as they are. Pickled
weights are read by the restricted reader of ``pickles.py``. Everything is validated from headers, on
the meta device, before any weight is loaded.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.models.base import Checkpoint, Description
from kerple_eval.models.hf.files import CONFIG, check_links, find_weights, locate, only_gguf
from kerple_eval.models.hf.rope import LENGTH_DEPENDENT, Extension, rope_dicts, rope_types, serves
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

if TYPE_CHECKING:
    import torch

    from kerple_eval.models.decoder.network import Decoder
    from kerple_eval.models.hf.model import HfModel

OPTIONS = ("gguf", "rope", "factor", "original", "trust-remote-code")
#: Settings of a configuration that decide losses and are worth a line of their own.
_SHOWN = (
    "sliding_window", "attention_chunk_size", "final_logit_softcapping", "attn_logit_softcapping",
    "logit_scale", "logits_scaling", "no_rope_layer_interval", "num_local_experts", "num_experts",
)  # fmt: skip


class HfCheckpoint(Checkpoint):
    def __init__(self, place: str, options: dict[str, str]) -> None:
        from kerple_eval.models.hf import config as configs  # noqa: PLC0415 - transformers, torch
        from kerple_eval.models.hf import weights as hf_weights  # noqa: PLC0415
        from kerple_eval.models.hf.tokenizer import read_tokenizer  # noqa: PLC0415

        options = dict(options)
        for key in options:
            if key not in OPTIONS:
                raise unknown("option of a Hugging Face checkpoint", key, OPTIONS)
        self.extension = Extension.from_options(options)
        flag = options.get("trust-remote-code", "false")
        if flag not in ("true", "false"):
            raise UserError(f"hf: trust-remote-code={flag}: expected true or false")
        remote = flag == "true"
        with configs.quiet():
            self.folder = locate(place, options.get("gguf"), code=remote)
            if self.folder.gguf is None and (only := only_gguf(self.folder.root)):
                self.folder = replace(self.folder, gguf=only)
            root = self.folder.root
            check_links(root)
            if (root / "adapter_config.json").exists():
                raise UserError(
                    f"{root}: holds an adapter (adapter_config.json); merge it into its model first"
                )
            self.weights = find_weights(self.folder)
            self.headers = hf_weights.headers(self.weights)
            raw = configs.raw_config(self.folder)
            self.config = configs.build_config(raw, self.folder, remote=remote)
            text = configs.text_config(self.config)
            where = str(root / (self.folder.gguf or CONFIG))
            self.train_length = configs.train_length(text, raw)
            self.warnings = _warnings(self.folder.note, text, remote=remote)
            if self.weights.kind == "gguf" and self.extension is None:
                hf_weights.refuse_unread_scaling(self.weights.files[0], self.headers)
            if self.extension is not None:
                replaced = self.extension.apply(text, where)
                if replaced:
                    self.warnings += (f"rope={self.extension.kind} replaces the config's own {replaced}",)
            self.model_class = configs.model_class(self.config, self.folder, remote=remote)
            self.empty = hf_weights.check(self.model_class, self.config, self.weights, self.headers)
            if self.extension is not None and not serves(self.empty, self.extension):
                raise UserError(
                    f"{where}: {type(self.empty).__name__} has no rotary positions that rope= could extend"
                )
            self._tokenizer = read_tokenizer(self.folder, raw)
        self.vocabulary = int(text.vocab_size)
        if self._tokenizer is not None and self._tokenizer.vocab_size > self.vocabulary:
            raise UserError(
                f"{where}: the tokeniser has {self._tokenizer.vocab_size} ids, "
                f"the model's vocabulary {self.vocabulary}"
            )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """config.json of a transformers model, or one GGUF file and no config.json."""
        if not (folder / CONFIG).is_file():
            return only_gguf(folder) is not None
        try:
            data = json.loads((folder / CONFIG).read_bytes())
        except (OSError, ValueError):
            return only_gguf(folder) is not None
        return (
            isinstance(data, dict)
            and data.get("format") != "kerple-eval"
            and ("model_type" in data or "architectures" in data)
        )

    @classmethod
    def open(cls, place: str, options: dict[str, str]) -> Checkpoint:
        for package in ("transformers", "gguf", "accelerate"):
            if find_spec(package) is None:
                raise UserError(f"hf: needs {package}: pip install 'kerple-eval[hf]'")
        return cls(place, options)

    @cached_property
    def description(self) -> Description:
        from kerple_eval.models.hf import config as configs  # noqa: PLC0415

        text = configs.text_config(self.config)
        unknown_ = self._scheme == "unknown"
        return Description(
            format="hf",
            scheme=self._scheme,
            vocab_size=self.vocabulary,
            parameters=sum(p.numel() for p in self.empty.parameters()),
            train_length=self.train_length,
            seed=None,
            prefix_invariant=self._prefix_invariant,
            max_length=configs.longest_window(text, self.empty),
            weights_sha256=self.weights.sha256(),
            architecture=type(self.empty).__name__,
            shape=configs.shape(text),
            stored_dtypes=tuple(sorted({header.dtype for header in self.headers.values()})),
            details=self._details(text),
            warnings=self.warnings
            + ((f"how {text.model_type} encodes positions is not known here",) if unknown_ else ()),
        )

    @property
    def _scheme(self) -> str:
        from kerple_eval.models.hf import config as configs  # noqa: PLC0415

        name = configs.scheme(configs.text_config(self.config), self.empty)
        return f"{name}-ntk" if self.extension is not None and self.extension.kind == "ntk" else name

    @property
    def _prefix_invariant(self) -> bool:
        """False where frequencies follow the window's length, and where positions are not understood."""
        from kerple_eval.models.hf.config import text_config  # noqa: PLC0415

        types = rope_types(text_config(self.config))
        return self._scheme != "unknown" and not any(name in types for name in LENGTH_DEPENDENT)

    def _details(self, text: Any) -> dict[str, Any]:
        details: dict[str, Any] = {
            "architecture": type(self.empty).__name__,
            "model_type": text.model_type,
            "weights": self.weights.kind,
            "attention": getattr(self.empty.config, "_attn_implementation", None),
            "tokenizer": None if self._tokenizer is None else self._tokenizer.identity,
        }
        rope = dict(rope_dicts(text))
        if rope:
            details["rope_parameters"] = rope.get("", rope)
        if self.extension is not None:
            details["extension"] = self.extension.record()
        for key in _SHOWN:
            value = getattr(text, key, None)
            if value is not None and isinstance(value, int | float | str):
                details[key] = value
        if self.folder.hub is not None:
            details |= {"hub": self.folder.hub, "revision": self.folder.revision}
        return details

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def decoder(self) -> Decoder:
        import torch  # noqa: PLC0415

        from kerple_eval.models.hf.convert import as_native, refuse_others  # noqa: PLC0415

        where = str(self.weights.files[0].parent)
        refuse_others(self.empty, where)  # before the weights are read
        loaded = self.load(torch.device("cpu"), torch.float32)
        return as_native(loaded.model, self.train_length, where)

    def set_attention(self, attention: str, device: torch.device, dtype: torch.dtype) -> None:
        if attention == "flex" and device.type != "cuda":
            raise UserError(f"attention flex: is compiled for CUDA, the device is {device.type}")
        if attention != "auto":
            set_attention(self.empty, attention, str(self.weights.files[0]))
        self.attention = attention

    def load(self, device: torch.device, dtype: torch.dtype) -> HfModel:
        from kerple_eval.models.hf import weights as hf_weights  # noqa: PLC0415
        from kerple_eval.models.hf.config import quiet  # noqa: PLC0415
        from kerple_eval.models.hf.model import HfModel  # noqa: PLC0415

        where = str(self.weights.files[0])
        with quiet():
            if self.weights.kind == "gguf":
                model, info = hf_weights.load_gguf(
                    self.model_class, self.config, self.weights.files[0], dtype
                )
            else:
                state = hf_weights.read_state(self.weights)
                model, info = hf_weights.load(self.model_class, self.config, state, where, dtype=dtype)
            hf_weights.refuse_gaps(info, where)
            if self.attention != "auto":
                set_attention(model, self.attention, where)
            return HfModel(model, device, dtype, where)


def set_attention(model: Any, attention: str, where: str) -> None:
    """transformers' own implementation of that name, or a refusal."""
    name = {"flex": "flex_attention"}.get(attention, attention)
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: attention {attention}: {reason}") from None
    if model.config._attn_implementation != name:
        raise UserError(
            f"{where}: attention {attention}: {type(model).__name__} attends as its code does; "
            "use --attention auto"
        )


def _warnings(note: str | None, text: Any, *, remote: bool) -> tuple[str, ...]:
    """What a reader should know of how this checkpoint was read."""
    warnings = [] if note is None else [note]
    if remote:
        warnings.append("Python code of the checkpoint was run (trust-remote-code=true)")
    types = [name for name in rope_types(text) if name != "default"]
    if types:
        warnings.append(
            f"its config scales rotary positions ({', '.join(types)}); the trained length is the one it "
            "gives with that scaling"
        )
    return tuple(warnings)
