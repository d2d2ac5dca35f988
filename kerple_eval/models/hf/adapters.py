"""Adapters by peft: ``hf:BASE,adapter=DIR_OR_ID``, or a folder of an adapter that names its base.

LoRA and whatever else peft loads, safetensors only. The adapter is put on the base by peft itself and merged
into its weights where peft can; where it cannot (learned prompts, or a base whose weights are packed or lie
on several devices) it is computed beside them, and the record says so. Whether it fits is told on the meta
device, before any weight is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kerple_eval.models.hf.files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    CheckpointFolder,
    StoredTensor,
    check_links,
    inside,
    locate,
)
from kerple_eval.models.hf.foreign import foreign, one_line
from kerple_eval.models.hf.weights import meta_state, safetensors_headers
from kerple_eval.support.readers import quoted, read_json
from kerple_eval.types import UserError

#: Settings that say where an adapter was made, and decide nothing.
_PROVENANCE = ("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version")
#: Settings by which an adapter could import code, read other files, or depend on tokens of the text.
_REFUSED = (
    "megatron_config", "prompt_tuning_init_state_dict_path", "adapters", "arrow_config",
    "alora_invocation_tokens",
)  # fmt: skip
#: Parameters that peft keeps at other places than their names in the file (``PeftModel.from_pretrained``).
_SHARED = ("prompt_encoder", "vblora_vector_bank", ".tinylora_v.")


@dataclass(frozen=True)
class Adapter:
    """A validated adapter. ``settings``: its configuration without what decides nothing."""

    where: str
    weights: Path
    settings: dict[str, Any]
    tensors: dict[str, StoredTensor]
    base: str | None  # PATH_OR_ID[@revision] that its configuration names
    hub: str | None
    revision: str | None

    @classmethod
    def read(cls, folder: CheckpointFolder) -> Adapter:
        """The adapter of a folder, from its configuration and its file's header.

        Raises:
            UserError: peft is missing, or what is wrong with which file or setting.
        """
        if find_spec("peft") is None:
            raise UserError("hf: an adapter needs peft: pip install 'kerple-eval[peft]'")
        where = folder.root / ADAPTER
        if not where.exists():
            raise UserError(f"{folder.root}: no {ADAPTER}; an adapter has one")
        raw = read_json(inside(folder.root, ADAPTER, str(folder.root)))
        settings = {key: value for key, value in raw.items() if key not in _PROVENANCE}
        _check_settings(settings, str(where))
        weights = folder.root / ADAPTER_WEIGHTS
        if not weights.exists():
            pickled = (folder.root / "adapter_model.bin").exists()
            raise UserError(
                f"{folder.root}: no {ADAPTER_WEIGHTS}"
                + ("; adapter_model.bin is a pickle, which is not read: save it as safetensors" * pickled)
            )
        weights = inside(folder.root, ADAPTER_WEIGHTS, str(folder.root))
        base, revision = raw.get("base_model_name_or_path"), raw.get("revision")
        if base is not None and not (isinstance(base, str) and base):
            raise UserError(
                f"{where}: base_model_name_or_path must be a path or a hub id, got {quoted(base)}"
            )
        if base and revision and not Path(base).exists():
            base = f"{base}@{revision}"
        tensors = safetensors_headers(weights)
        return cls(str(where), weights, settings, tensors, base or None, folder.hub, folder.revision)

    def locate_base(self, gguf: str | None, *, code: bool) -> CheckpointFolder:
        """The folder of the model that the configuration names as its base."""
        right = "hf:BASE,adapter=DIR names it"
        if self.base is None:
            raise UserError(f"{self.where}: names no base model; {right}")
        try:
            found = locate(self.base, gguf, code=code)
        except UserError as error:
            raise UserError(f"{self.where}: its base model: {error}; {right}") from None
        if (found.root / ADAPTER).exists():
            raise UserError(
                f"{self.where}: its base model {self.base} is an adapter itself; merge that first"
            )
        return found

    @property
    def kind(self) -> str:
        return str(self.settings["peft_type"])

    @property
    def virtual_tokens(self) -> int:
        """How many positions a learned prompt takes before the first token."""
        return int(self.settings.get("num_virtual_tokens") or 0)

    def sha256(self) -> str:
        """Over the file's bytes."""
        with self.weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def record(self, *, merged: bool) -> dict[str, Any]:
        settings = json.dumps(self.settings, sort_keys=True, separators=(",", ":"))
        about: dict[str, Any] = {
            "peft_type": self.kind,
            "weights_sha256": self.sha256(),
            "config_sha256": hashlib.sha256(settings.encode("utf-8", "surrogatepass")).hexdigest(),
            "merged": merged,
        }
        return about | ({} if self.hub is None else {"hub": self.hub, "revision": self.revision})

    def fits(self, build: Callable[[], Any], base: str) -> bool:
        """Whether peft can merge it into the model that ``build`` makes on the meta device.

        Raises:
            UserError: the adapter was made for another model than ``base``.
        """
        from peft import get_peft_model, set_peft_model_state_dict  # noqa: PLC0415

        failed = f"the adapter does not fit {base}"
        config = self._config()
        for name in ("init_lora_weights", "init_weights"):
            if isinstance(getattr(config, name, None), str):
                setattr(config, name, True)  # what it begins with does not matter here, and may need values
        with foreign(self.where, failed), torch.device("meta"):
            model = get_peft_model(build(), config)
            state = meta_state(self.tensors)
            try:
                found = set_peft_model_state_dict(model, state)
            except KeyError as error:
                raise UserError(f"{self.where}: {failed}: missing tensor {one_line(error)}") from error
        prompt = {"prompt_embeddings"} if config.is_prompt_learning else set()  # goes to its own module
        if unexpected := sorted(set(found.unexpected_keys) - prompt):
            raise UserError(f"{self.where}: {failed}: nothing there takes tensor {unexpected[0]}")
        own = [name for name in found.missing_keys if re.search(r"(^|\.)default(\.|$)", name)]
        if missing := sorted(name for name in own if not any(part in name for part in _SHARED)):
            raise UserError(f"{self.where}: {failed}: missing tensor {missing[0]}")
        if not hasattr(model.base_model, "merge_and_unload"):
            return False
        try:
            model.merge_and_unload()
        except Exception:  # peft says in many ways that a kind or a layer cannot be merged
            return False
        return True

    def put_on(self, model: Any, *, merge: bool) -> Any:
        """``model`` with the adapter, as peft loads it; changed in place."""
        from peft import PeftModel  # noqa: PLC0415

        if any(parameter.is_meta for parameter in model.parameters()):
            raise UserError(
                f"{self.where}: layers of the base lie on disk (devices=auto), where peft puts no adapter"
            )
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / ADAPTER).write_text(
                json.dumps(self.settings | {"inference_mode": True}), encoding="utf-8"
            )
            (Path(scratch) / ADAPTER_WEIGHTS).symlink_to(self.weights.resolve())
            with foreign(self.where, "peft cannot load it"):
                made = PeftModel.from_pretrained(model, scratch)
                if merge:
                    return made.merge_and_unload(safe_merge=True)
        # A prompt goes before the ids in peft's own forward; other kinds are inside the model's modules.
        return made if made.active_peft_config.is_prompt_learning else made.get_base_model()

    def _config(self) -> Any:
        return _config_class(self.settings, self.where)(**self.settings, inference_mode=True)


def find(folder: CheckpointFolder, named: str | None) -> Adapter:
    """The adapter at ``named`` for the model in ``folder``; None names the one that the folder is.

    Raises:
        UserError: there is none, or a model and an adapter are in one folder.
    """
    root = folder.root
    if named is not None and (root / ADAPTER).exists():
        raise UserError(f"{root}: is or holds an adapter ({ADAPTER}); adapter= goes with a base model alone")
    if named is not None:
        return Adapter.read(locate(named, None, adapter=True))
    check_links(root)
    if any((*root.glob("model*"), *root.glob("pytorch_model*"))):
        raise UserError(
            f"{root}: holds an adapter ({ADAPTER}) beside a model; take one of them out, or write "
            "hf:BASE,adapter=DIR with BASE a folder of the model alone"
        )
    return Adapter.read(folder)


def _config_class(settings: dict[str, Any], where: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # noqa: PLC0415

    kind = settings.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        import peft  # noqa: PLC0415

        raise UserError(f"{where}: peft_type {quoted(kind)} is not known to peft {peft.__version__}")
    return PEFT_TYPE_TO_CONFIG_MAPPING[kind]


def _check_settings(settings: dict[str, Any], where: str) -> None:
    """Refuse what could reach code or other files, and what the installed peft would pass over."""
    import peft  # noqa: PLC0415

    made = _config_class(settings, where)
    for key in _REFUSED:
        if settings.get(key):
            raise UserError(f"{where}: {key} is set; such adapters are not supported")
    known = {field.name for field in fields(made)}
    for key in [key for key in settings if key not in known]:
        if settings.pop(key) not in (None, False, {}, []):
            raise UserError(
                f"{where}: {quoted(key)} is not known to peft {peft.__version__}; a newer one may read it"
            )
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(f"{where}: task_type is {quoted(settings['task_type'])}, expected CAUSAL_LM")
