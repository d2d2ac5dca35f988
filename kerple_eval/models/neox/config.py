"""GPT-NeoX's configuration files (``configs/*.yml``): what they say of the model, typed.

Source: EleutherAI/gpt-neox and chijames/KERPLE, ``megatron/neox_arguments/neox_args.py`` (names and
defaults). The files are YAML flow mappings with comments, trailing commas and ``True``; several are
merged. Keys may be written with ``-`` or ``_``. Keys that do not change what the model computes are
ignored; those that change it in a way that is not supported here are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerple_eval.support.readers import LARGEST_YAML, parse_yaml, quoted, read_bytes
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

POS_EMBS = (
    "kerple_log", "kerple_power_ap_", "kerple_power__ap", "kerple_power_ap_ap", "kerple_power_original",
    "rpe", "alibi", "rotary", "learned", "sinusoidal", "none",
    "kerple", "kerple_c", "kerple_dapev2", "alibi_c", "alibi_dapev2", "nope_c", "fire", "cope",
)  # fmt: skip

#: Value under which a key changes nothing; any other is refused.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_mup": (False,), "soft_prompt_tuning": (None,), "onnx_safe": (False,), "use_bnb_optimizer": (False,),
    "moe_num_experts": (0, 1), "sliding_window_width": (None, 0),
    "mlp_type": ("regular",), "use_qk_layernorm": (False,), "use_bias_in_norms": (True,),
    "use_bias_in_attn_linear": (True,), "use_bias_in_mlp": (True,), "small_emb": (False,),
    "rotary_interleaved": (False,),
}  # fmt: skip
_MOST = 1 << 48  # of any whole number in one


@dataclass(frozen=True, slots=True)
class NeoxConfig:
    """The model's part of a configuration; None where the files do not say."""

    layers: int
    width: int
    heads: int
    train_length: int
    max_positions: int | None
    position_offset: int  # OPT's learned positions start there
    pos_emb: str | None
    rotary_base: float
    rotary_fraction: float
    buckets: int
    max_distance: int
    activation: str  # by the native decoder's name
    norm: str
    norm_epsilon: float
    untied: bool | None
    parallel_residual: bool
    tied_norms: bool  # gpt_j_tied: one norm serves attention and MLP
    mlp_width: int | None
    layer_scaling: bool  # apply_query_key_layer_scaling
    shards: int | None
    seed: int | None
    softmax_in_fp32: bool
    precision: str  # by the release's rule
    loss_in_fp16: bool  # fp16_lm_cross_entropy
    vocab_file: str | None
    merge_file: str | None


def read_config(files: Sequence[Path]) -> NeoxConfig:
    """Merge and check ``files``; UserError names the file and the key."""
    return _build(_Values(files))


def _build(values: _Values) -> NeoxConfig:
    for key, harmless in _UNSUPPORTED.items():
        value = values.get(key)
        if key in values.items and value not in harmless:
            raise values.wrong(key, "is not supported")
    _check_attention(values)
    layers, width, heads = (
        values.whole(k, needed=True) for k in ("num_layers", "hidden_size", "num_attention_heads")
    )
    assert layers is not None
    assert width is not None
    assert heads is not None
    if values.get("num_kv_heads") not in (None, 0, heads):
        raise values.wrong("num_kv_heads", f"is not supported, except as many as num-attention-heads {heads}")
    if width % heads:
        raise values.wrong("hidden_size", f"is not a multiple of num-attention-heads {heads}")
    fraction = values.number("rotary_pct", 1.0)
    if fraction > 1:
        raise values.wrong("rotary_pct", "must be a number above 0 and at most 1")
    unique = values.whole("num_unique_layers")
    if unique is not None and unique != layers:
        raise values.wrong("num_unique_layers", "is not supported: layers that share weights")
    max_positions = values.whole("max_position_embeddings")
    train_length = values.whole("seq_length", needed=max_positions is None) or max_positions
    assert train_length is not None
    norm = values.text("norm") or "layernorm"
    if norm not in ("layernorm", "rmsnorm"):
        raise values.wrong("norm", "is not supported; layernorm and rmsnorm are")
    epsilon = values.number("rms_norm_epsilon", 1e-8) if norm == "rmsnorm" else None
    pos_emb = values.text("pos_emb")
    if pos_emb is not None and pos_emb not in POS_EMBS:
        raise UserError(f"{values.items['pos_emb'][1]}: {unknown('pos-emb', pos_emb, POS_EMBS)}")
    return NeoxConfig(
        layers=layers,
        width=width,
        heads=heads,
        train_length=train_length,
        max_positions=max_positions,
        position_offset=values.whole("opt_pos_emb_offset", least=0) or 0,
        pos_emb=pos_emb,
        rotary_base=values.number("rotary_emb_base", 10000.0),
        rotary_fraction=fraction,
        buckets=values.whole("rpe_num_buckets") or 32,
        max_distance=values.whole("rpe_max_distance") or 128,
        activation=_activation(values),
        norm=norm,
        norm_epsilon=values.number("layernorm_epsilon", 1e-5) if epsilon is None else epsilon,
        untied=values.flag("no_weight_tying", None),
        parallel_residual=bool(values.flag("gpt_j_residual", False)),
        tied_norms=bool(values.flag("gpt_j_tied", False)),
        mlp_width=values.whole("intermediate_size"),
        layer_scaling=bool(values.flag("apply_query_key_layer_scaling", False)),
        shards=values.whole("model_parallel_size"),
        seed=values.whole("seed", least=None),
        softmax_in_fp32=bool(values.flag("attention_softmax_in_fp32", False)),
        loss_in_fp16=bool(values.flag("fp16_lm_cross_entropy", False)),
        precision=_precision(values),
        vocab_file=values.text("vocab_file"),
        merge_file=values.text("merge_file"),
    )


def _activation(values: _Values) -> str:
    name = values.text("activation") or "gelu"
    if name not in ("gelu", "geglu", "relu", "softsign", "swish", "mish"):
        raise values.wrong("activation", "is not supported; gelu, geglu, relu, softsign, swish, mish are")
    return "gelu-tanh" if name == "gelu" and values.flag("bias_gelu_fusion", False) else name


def _precision(values: _Values) -> str:
    """The release's rule (``neox_arguments/arguments.py``, ``calculate_derived``).

    bfloat16 where the block ``fp16`` has ``type: bfloat16`` (or, without a type, where ``precision`` says
    so), else fp16 where the block is enabled, else fp32, whatever the weights are stored in.
    """
    named = values.text("precision")
    if named not in (None, "fp16", "bfloat16", "fp32"):
        return str(named)
    block = values.get("fp16")
    block = block if isinstance(block, dict) else {}
    if block.get("type", named) == "bfloat16":
        return "bfloat16"
    return "fp16" if block.get("enabled") is True else "fp32"


def _check_attention(values: _Values) -> None:
    """Every layer's attention is the plain one (``[[["global"], 12]]``, or ``"all"`` for the number).

    "flash" computes the same.
    """
    todo = [values.get("attention_config")]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            times_all = len(item) == 2 and isinstance(item[0], list) and item[1] == "all"
            todo += item[:1] if times_all else item
        elif item not in ("global", "flash", None) and not isinstance(item, int):
            raise values.wrong("attention_config", "is not supported; global and flash are")


class _Values:
    """All keys of all files, with the file each came from."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.items: dict[str, tuple[Any, Path]] = {}
        self.clashes: dict[str, Path] = {}
        for path in files:
            for key, value in _read(path).items():
                name = str(key).replace("-", "_")
                if name in self.items and self.items[name][0] != value:
                    self.clashes[name] = path
                self.items[name] = (value, path)

    def get(self, key: str) -> Any:
        if key not in self.items:
            return None
        value, path = self.items[key]
        if key in self.clashes:
            other = next((file for file in self.files if file != path), path)
            raise UserError(f"{path}: {_yaml_name(key)} has another value in {other.name}; they must agree")
        return value

    def wrong(self, key: str, why: str) -> UserError:
        value, path = self.items[key]
        return UserError(f"{path}: {_yaml_name(key)}: {quoted(value)} {why}")

    def whole(self, key: str, *, needed: bool = False, least: int | None = 1) -> int | None:
        value = self.get(key)
        if value is None:
            if needed:
                where = ", ".join(file.name for file in self.files)
                raise UserError(f"{self.files[0].parent}: no {_yaml_name(key)} in {where}")
            return None
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            raise self.wrong(key, "must be an integer" + ("" if least is None else f" of at least {least}"))
        if abs(value) > _MOST:
            raise self.wrong(key, f"is beyond {_MOST:,}, the most that is read")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key)
        if value is None:
            return default
        try:
            number = float("nan") if isinstance(value, bool) else float(value)  # YAML reads 1e-5 as text
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not 0 < number < float("inf"):
            raise self.wrong(key, "must be a number above 0")
        return number

    def flag(self, key: str, default: bool | None) -> bool | None:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "must be a name")
        return value


def _yaml_name(key: str) -> str:
    return key.replace("_", "-")


def _read(path: Path) -> dict[str, Any]:
    try:
        # A tab between tokens, legal in JSON, is not in YAML.
        text = read_bytes(path, LARGEST_YAML).decode("utf-8").replace("\t", "    ")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not a GPT-NeoX configuration: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from None
    data = parse_yaml(text, path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a GPT-NeoX configuration: expected keys and values")
    return data
