"""The configuration of a transformers checkpoint: read without running its code, and its model class.

``config.json`` (or a GGUF file's metadata) is checked, cleaned and then read by ``AutoConfig``, so that no
step of transformers' own reading is left out. What a configuration could use to reach code or files
elsewhere is removed before: remote classes (``auto_map``), kernels named as attention, names of other
weight or configuration files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from kerple_eval.models.hf.files import CONFIG, CheckpointFolder, inside, stamp
from kerple_eval.models.hf.foreign import foreign, one_line
from kerple_eval.models.hf.gguf_reader import quick_reader
from kerple_eval.models.hf.kept import kept
from kerple_eval.models.hf.rope import rope_dicts
from kerple_eval.support.readers import quoted, read_json
from kerple_eval.types import UserError

#: Keys by which a config.json could name kernels of the hub, other files or other repositories.
_LEFT_OUT = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_flash_attn_2_enabled",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    "transformers_weights", "fusion_config", "kernel_config", "use_kernels", "_name_or_path", "name_or_path",
    "_commit_hash", "configuration_files", "auto_map",
)  # fmt: skip
#: Loggers of other packages that speak while a model is opened or loaded.
_LOUD = ("huggingface_hub", "accelerate", "torchao", "torch.utils._pytree", "bitsandbytes")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines, warnings or progress bars of transformers and the hub; as before afterwards."""
    from huggingface_hub.utils import (  # noqa: PLC0415
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as log  # noqa: PLC0415

    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    log.set_verbosity(logging.CRITICAL)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    log.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        if bars:
            log.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def raw_config(folder: CheckpointFolder) -> dict[str, Any]:
    """``config.json`` as it stands; transformers' reading of the metadata for a GGUF file."""
    if folder.gguf is None:
        path = folder.root / CONFIG
        if not path.exists():
            raise UserError(f"{folder.root}: no {CONFIG}; a Hugging Face checkpoint has one")
        return read_json(inside(folder.root, CONFIG, str(folder.root)), non_finite=True)
    path = inside(folder.root, folder.gguf, f"gguf={folder.gguf}")
    return dict(_gguf_config(path, stamp(path)))


@lru_cache(maxsize=4)
def _gguf_config(path: Path, stamp: tuple[int, int]) -> dict[str, Any]:
    """Takes seconds, and a run often opens one file several times, with and without an extension."""
    from transformers import AutoConfig  # noqa: PLC0415

    def read() -> dict[str, Any]:
        with foreign(str(path), "cannot be read"), quick_reader():
            made = AutoConfig.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
            )
            data: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
            return data

    return kept(path, "configuration", read)


def build_config(raw: dict[str, Any], folder: CheckpointFolder, *, remote: bool) -> Any:
    """A transformers configuration of the class that ``model_type`` names."""
    import transformers  # noqa: PLC0415
    from transformers import CONFIG_MAPPING, AutoConfig  # noqa: PLC0415

    where = str(folder.root / (folder.gguf or CONFIG))
    kind = raw.get("model_type")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if "auto_map" in raw and remote:
        with foreign(where, "its own code fails"):
            own = AutoConfig.from_pretrained(str(folder.root), local_files_only=True, trust_remote_code=True)
        if getattr(own, "quantization_config", None) is not None:
            del own.quantization_config  # which ``raw`` no longer has
        return own
    if "auto_map" in raw and not known:
        raise UserError(
            f"{where}: auto_map asks for the checkpoint's own Python code; trust-remote-code=true would "
            "run it, with your rights, on this machine: read that code first"
        )
    if not known:
        close = get_close_matches(str(kind)[:80], list(CONFIG_MAPPING), n=1) if isinstance(kind, str) else []
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"{where}: model_type {quoted(kind)} is not known to transformers "
            f"{transformers.__version__}{hint}; import=MODULE would import a package that registers it"
        )
    config = _read_by_transformers(_cleaned(raw), where, f"not a valid {kind} configuration")
    _check_rope_types(config, where)
    if kind == "mpt":
        _check_mpt(config, where)
    return config


def _read_by_transformers(data: dict[str, Any], where: str, failed: str) -> Any:
    """``AutoConfig.from_pretrained`` of a checked dictionary, through a folder that holds nothing else."""
    from transformers import AutoConfig  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / CONFIG).write_text(json.dumps(data), encoding="utf-8")
        try:
            config = AutoConfig.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
        except (MemoryError, RecursionError) as error:
            raise UserError(f"{where}: {failed}: {type(error).__name__}") from error
        except Exception as error:  # validators of configurations raise many classes
            raise UserError(f"{where}: {failed}: {one_line(error).replace(scratch, where)}") from error
    config.name_or_path = ""  # a folder that is gone
    return config


def _check_rope_types(config: Any, where: str) -> None:
    """transformers fails on an unknown type while it builds the model, naming neither file nor types."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

    known = sorted({"default", *ROPE_INIT_FUNCTIONS})
    for _, parameters in rope_dicts(text_config(config, where)):
        kind = parameters.get("rope_type", "default")
        if not isinstance(kind, str) or kind not in known:
            raise UserError(
                f"{where}: rope_type {quoted(kind)} is not known; transformers has {', '.join(known)}"
            )


def _check_mpt(config: Any, where: str) -> None:
    """transformers' MPT has ALiBi of maximum 8 and nothing else, whatever the configuration asks for."""
    for key, only in (("alibi", True), ("alibi_bias_max", 8), ("qk_ln", False), ("prefix_lm", False)):
        value = getattr(config.attn_config, key, only)
        if value != only:
            raise UserError(
                f"{where}: attn_config.{key}={quoted(value)}: transformers' MPT ignores it and knows only "
                f"{only}"
            )
    if config.logit_scale is not None:
        raise UserError(f"{where}: logit_scale={quoted(config.logit_scale)}: transformers' MPT ignores it")


def _cleaned(value: Any) -> Any:
    """Without the keys of ``_LEFT_OUT``, at any depth."""
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items() if key not in _LEFT_OUT}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def fingerprint(raw: dict[str, Any]) -> str:
    """sha256 of the whole cleaned configuration: every key of it may decide losses."""
    text = json.dumps(_cleaned(raw), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def code_sha256(*classes: Any) -> str:
    """Over the files of the checkpoint's own code that was imported, those its modules import among them."""
    packages = {cls.__module__.rpartition(".")[0] for cls in classes}
    files = {
        name: module.__file__
        for name, module in list(sys.modules.items())
        if name.rpartition(".")[0] in packages and getattr(module, "__file__", None)
    }
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.rpartition(".")[2]):
        digest.update(name.rpartition(".")[2].encode() + b"\0" + Path(str(files[name])).read_bytes() + b"\0")
    return digest.hexdigest()


def text_config(config: Any, where: str) -> Any:
    """The part that describes the decoder of text, for models that also see or hear."""
    with foreign(where, "transformers finds no single decoder of text in it"):
        text = config.get_text_config(decoder=True)
    if not isinstance(getattr(text, "model_type", None), str):
        raise UserError(f"{where}: its configuration of text is {quoted(text)}, expected that of a model")
    return text


def model_class(config: Any, folder: CheckpointFolder, *, remote: bool) -> Any:
    """The causal language model class for ``config``; encoders are refused."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM  # noqa: PLC0415
    from transformers.models.auto.auto_factory import _get_model_class  # noqa: PLC0415

    where = str(folder.root / (folder.gguf or CONFIG))
    if remote and hasattr(config, "auto_map"):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: PLC0415

        reference = config.auto_map.get("AutoModelForCausalLM")
        if reference is None:
            raise UserError(f"{where}: auto_map names no AutoModelForCausalLM: not a causal language model")
        with foreign(where, "its own code fails"):
            return get_class_from_dynamic_module(reference, str(folder.root), local_files_only=True)
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise UserError(f"{where}: transformers has no causal language model of type {config.model_type}")
    encoder = (
        type(config) in AutoModelForMaskedLM._model_mapping
    )  # BERT and its relatives can be decoders too
    if encoder and getattr(config, "is_decoder", True) is False:
        raise UserError(
            f"{where}: is_decoder is false: this {config.model_type} sees later tokens too, so its losses "
            "are not those of a language model"
        )
    return _get_model_class(config, mapping)
