"""The positional scheme of each layer of a transformers model, measured on the model without weights.

Configurations name such things in fifty ways and leave much to the code, so the code is asked: the model's
own ``forward`` is run on the meta device over a few tokens, and labels (`labels.py`) say what reaches the
scores of each layer's attention: rotary frequencies, relative or learned positions, and which mask. The
input of every layer is taken as new, so that a layer answers for itself.

A layer is named by what is found in it (see :func:`kerple_eval.schemes.layers.format_layers`):

    rope, rope-yarn, ...   queries and keys are rotated, by frequencies of that type
    alibi, t5              a bias for the distance, or for its bucket
    learned, sinusoidal    nothing in the layer; a vector a position is added to the embeddings
    nope                   attention in which nothing says where a token stands but the mask
    recurrent              a state is carried from token to token (Mamba, linear attention, ...)
    conv                   a short convolution over tokens
    mlp                    tokens do not meet
    unknown                positions enter in another way, or the pass could not be made

``,window=N`` and ``,chunk=N`` say that a token sees the last N tokens or those of its block of N,
``,compressed`` that it also sees compressed blocks of what lies before; ``a&b`` that one layer has both.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.models.hf.labels import POSITION, Labels, plain
from kerple_eval.models.lent import replaced_forwards

TOKENS = 13  # of the pass: a number that no size of a model equals by chance
#: Model types whose attention adds ALiBi's biases, computed in ``forward``.
_ALIBI = ("bloom", "mpt")
#: Types with biases for buckets of distance that are computed from hidden states.
_BUCKETS = ("prophetnet", "xlm-prophetnet")
#: Types whose embeddings get sine and cosine from a plain attribute.
_SINUSOIDAL = ("ctrl",)
#: Modules that hold one learned vector a position, by the last part of their name.
LEARNED = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed")
#: Parts of a model that do not read text.
OTHER_SENSES = ("vision", "visual", "image", "audio", "speech")
_RECURRENT = (
    "mamba", "mixer", "deltanet", "deltaattention", "linearattention", "lightning", "recurrentblock",
    "rwkvself", "lstm",
)  # fmt: skip
_CONVOLUTION = ("shortconv",)
_NO_MIXING = ("mlp", "moe", "ffn", "feedforward", "experts")
_MASKS = {
    "create_causal_mask": (None, ""),
    "create_sliding_window_causal_mask": ("sliding_window", "window"),
    "create_chunked_causal_mask": ("attention_chunk_size", "chunk"),
}


def layer_schemes(model_class: Any, config: Any) -> list[str]:
    """One name a layer, in order; see :func:`schemes_by_path`."""
    return list(schemes_by_path(model_class, config).values())


def schemes_by_path(model_class: Any, config: Any) -> dict[str, str]:
    """Path of a layer in ``model_class(config)`` -> its name, for all that text passes through, in order."""
    own = copy.deepcopy(config)
    own._attn_implementation_internal = None  # transformers' choice, whatever the model is scored with
    with torch.device("meta"):
        model = model_class._from_config(own).eval()
    trace = _Trace(model)
    with contextlib.suppress(Exception):  # layers that it did not reach are unknown
        trace.run()
    return trace.names()


class _Trace:
    """One pass over a model on the meta device, and what was seen in each layer."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.text = model.config.get_text_config(decoder=True)
        self.labels = Labels(TOKENS, self._attention)
        self.layers = text_layers(model)
        self.found: dict[str, set[str]] = {}  # layer -> labels at its attention
        self.ran: dict[str, set[str]] = {}  # layer -> classes of modules that ran in it, in lower case
        self.ended: set[str] = set()  # layers that ran to their end
        self.current: str | None = None
        self.embedded: frozenset[str] | None = None  # labels of the first layer's input
        self.whole = False  # whether the pass came to its end
        self._mark_tables()

    def run(self) -> None:
        ids = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
        handles = list(self._hooks())
        with self.labels, torch.no_grad(), _masks(self.labels), _without_experts(self.model):
            try:
                self.model(input_ids=ids, use_cache=False)
                self.whole = True
            finally:
                for handle in handles:
                    handle.remove()

    def _mark_tables(self) -> None:
        for name, module in self.model.named_modules():
            if any(word in name for word in OTHER_SENSES):
                continue
            own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            kinds = getattr(module, "rope_type", None)
            for key, tensor in own.items():
                if "inv_freq" in key:
                    layer = key.removesuffix("inv_freq").removesuffix("original_").rstrip("_")
                    kind = kinds.get(layer) if isinstance(kinds, dict) else kinds
                    self.labels.mark(tensor, [_rope(kind)])
                elif "relative_attention_bias" in f"{name}.{key}":
                    self.labels.mark(tensor, ["t5"])
            last = name.rsplit(".", 1)[-1]
            if "Sinusoid" in type(module).__name__ or "embed_positions" in own:
                tables = [value for value in vars(module).values() if isinstance(value, Tensor)]
                self.labels.mark([*own.values(), *tables], ["sinusoidal"])
            elif last in LEARNED and isinstance(module, nn.Embedding):
                self.labels.mark(module.weight, ["learned"])

    def _hooks(self) -> Iterator[Any]:
        for name, module in self.model.named_modules():
            if "Rotary" in type(module).__name__:
                yield module.register_forward_hook(self._rotated)
            layer = next((layer for layer in self.layers if name.startswith(f"{layer}.")), None)
            if name in self.layers:
                yield module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
                yield module.register_forward_hook(partial(self._leave, name))
            elif layer is not None:
                yield module.register_forward_pre_hook(partial(self._note, layer))

    def _rotated(self, module: Any, args: Any, output: Any) -> None:
        """Cosine and sine of frequencies that were computed anew in ``forward``."""
        if not any(label.startswith("rope") for label in self.labels.of(output)):
            kind = getattr(module, "rope_type", None)
            self.labels.mark(output, [_rope(kind)])

    def _enter(self, name: str, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self.current = name
        self.found.setdefault(name, set())
        self.ran.setdefault(name, set())
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            return args, kwargs
        if self.embedded is None:
            self.embedded = self.labels.of(hidden)
        return (
            ((plain(hidden), *args[1:]), kwargs)
            if args
            else (args, kwargs | {"hidden_states": plain(hidden)})
        )

    def _leave(self, name: str, module: Any, args: Any, output: Any) -> None:
        self.current = None
        self.ended.add(name)

    def _note(self, layer: str, module: Any, args: Any) -> None:
        self.ran.setdefault(layer, set()).add(type(module).__name__.lower())

    def _attention(self, labels: frozenset[str]) -> None:
        if self.current is not None:
            self.found[self.current] |= {"attention", *labels}

    def names(self) -> dict[str, str]:
        """One name a layer that text passes through; lists of other modules (norms, say) are no layers."""
        named = {layer: self._name(layer) for layer in self.layers if not self.whole or layer in self.found}
        lists = {layer.rpartition(".")[0] for layer, name in named.items() if name not in ("unknown", "mlp")}
        return {k: name for k, name in named.items() if not lists or k.rpartition(".")[0] in lists}

    def _name(self, layer: str) -> str:
        if layer not in self.ended:
            return "unknown"
        found, ran = self.found[layer], self.ran[layer]
        parts = []
        family = type(self.model).__name__.removesuffix("ForCausalLM").lower()  # Kimi*Linear*'s attention
        if "attention" in found:
            parts.append(self._position(layer) + self._mask(layer))
        for kind, words in (("recurrent", _RECURRENT), ("conv", _CONVOLUTION)):
            if any(word in name for name in ran - {f"{family}attention"} for word in words):
                parts.append(kind)
        if parts:
            return "&".join(parts)
        children = [child for child in self.model.get_submodule(layer).children() if list(child.children())]
        classes = [type(child).__name__.lower() for child in children]
        apart = all(any(word in name for word in _NO_MIXING) for name in classes)
        return "mlp" if classes and apart else "unknown"

    def _position(self, layer: str) -> str:
        """How attention knows positions: by its own means, else by what was added to the embeddings."""
        found, kind = self.found[layer], self.text.model_type
        embedded = self.embedded or frozenset()
        counted = POSITION in embedded or POSITION in found
        rotary = sorted(label for label in found if label.startswith("rope"))
        signs = {
            "rope": "sinusoidal" in found,  # sines that reach the scores rotate
            "alibi": kind in _ALIBI or getattr(self.text, "alibi", False),
            "learned&t5": "learned" in embedded and kind in _BUCKETS,
            "t5": "t5" in found,
            "sinusoidal": kind in _SINUSOIDAL or "sinusoidal" in embedded,
            "learned": "learned" in embedded,
            "unknown": counted,
        }
        if rotary:
            return rotary[0]
        return next((name for name, seen in signs.items() if seen), "nope")

    def _mask(self, layer: str) -> str:
        masks = sorted(label for label in self.found[layer] if label.startswith(("window=", "chunk=")))
        if any(
            getattr(m, "attention_type", "") == "local" for m in self.model.get_submodule(layer).modules()
        ):
            masks.append(f"window={self.text.window_size}")  # GPT-Neo's mask is a buffer of its own
        compressed = any("compressor" in name for name in self.ran[layer])
        return "".join(f",{label}" for label in (*masks, *(["compressed"] if compressed else [])))


def _rope(kind: object) -> str:
    return f"rope-{kind}" if isinstance(kind, str) and kind != "default" else "rope"


def text_layers(model: Any) -> list[str]:
    """Paths of the members of the outermost lists of modules that read text, in order."""
    lists: list[str] = []
    layers: list[str] = []
    for path, module in model.named_modules():
        inner = any(path.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inner and not any(w in path for w in OTHER_SENSES):
            lists.append(path)
            layers += [f"{path}.{index}" for index in range(len(module))]
    return layers


@contextlib.contextmanager
def _masks(labels: Labels) -> Iterator[None]:
    """Inside, transformers' masks are ones with a label, wherever its modules name their makers."""
    from transformers import masking_utils  # noqa: PLC0415

    made = {
        getattr(masking_utils, name): partial(_mask, labels, setting, word)
        for name, (setting, word) in _MASKS.items()
        if hasattr(masking_utils, name)
    }
    replaced: list[tuple[dict[Any, Any], Any, Any]] = []

    def replace(names: dict[Any, Any]) -> None:
        for key, value in list(names.items()):
            maker = value.func if isinstance(value, partial) else value
            if (
                callable(maker)
                and getattr(maker, "__module__", "") == masking_utils.__name__
                and maker in made
            ):
                replaced.append((names, key, value))
                names[key] = made[maker]

    patterns = masking_utils.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
    for names in (patterns, *(value for value in patterns.values() if isinstance(value, dict))):
        replace(names)
    for name, module in list(sys.modules.items()):
        if ".modeling_" in name or name == masking_utils.__name__:
            replace(vars(module))
    try:
        yield
    finally:
        for names, key, value in replaced:
            names[key] = value


def _mask(
    labels: Labels, setting: str | None, word: str, config: Any = None, *words: Any, **named: Any
) -> Tensor:
    """A mask of a few tokens whose label is ``word=N``, N the configuration's ``setting``."""
    with torch._C.DisableTorchFunction():
        mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device="meta")
    size = getattr(config, setting, None) if setting else None
    if isinstance(size, int):
        labels.mark(mask, [f"{word}={size}"])
    return mask


@contextlib.contextmanager
def _without_experts(model: nn.Module) -> Iterator[None]:
    """Inside, experts give what they got: which tokens go to which needs numbers."""
    experts = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    with replaced_forwards((module, lambda hidden, *words, **named: plain(hidden)) for module in experts):
        yield
