"""From a validated checkpoint to its model on the device, with its weights, adapter and placement."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kerple_eval.models.hf import loaded
from kerple_eval.models.hf import weights as hf_weights
from kerple_eval.models.hf.adapters import Adapter
from kerple_eval.models.hf.files import Weights
from kerple_eval.models.hf.foreign import foreign
from kerple_eval.models.hf.placement import Placement
from kerple_eval.models.hf.quantised import Quantisation
from kerple_eval.support.scratch import ScratchFolder


@dataclass(frozen=True)
class Source:
    """What a model is loaded from. ``gguf``: the one file of GGUF weights."""

    weights: Weights
    model_class: Any
    config: Any
    placement: Placement
    own_code: bool
    gguf: Path | None = None
    adapter: Adapter | None = None
    merge: bool = False  # the adapter into the weights
    quantisation: Quantisation | None = None

    @property
    def where(self) -> str:
        return str(self.weights.files[0])

    def load(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, ScratchFolder | None]:
        """The model, and the folder that its weights are read from during use.

        Raises:
            UserError: transformers finds no place for a tensor, or none for a parameter.
        """
        scratch = None
        if self.gguf is not None:
            model, info = hf_weights.load_gguf(self.model_class, self.config, self.gguf, dtype)
            hf_weights.refuse_gaps(info, self.where)
        elif self.placement.word or self.quantisation is not None:
            scratch = ScratchFolder("model")
            model = self._from_files(scratch.path, device, dtype)
        else:
            state = hf_weights.read_state(self.weights)
            model, info = hf_weights.load(self.model_class, self.config, state, self.where, dtype=dtype)
            hf_weights.refuse_gaps(info, self.where)
            loaded.take_over(model, hf_weights.read_state(self.weights), self.where)
        if self.own_code:
            loaded.compute_buffers(model, self.model_class, self.config, dtype, self.where)
        if self.adapter is not None:
            model = self.adapter.put_on(model, merge=self.merge)
        return model, scratch

    def _from_files(self, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
        """Loaded from a folder of the weight files alone, where transformers must read them itself."""
        link_weights(self.weights, folder)
        config = copy.deepcopy(self.config)
        if self.quantisation is not None:
            config.quantization_config = dict(self.quantisation.settings)
        bars = contextlib.redirect_stderr(io.StringIO())  # compressed-tensors' progress bars have no switch
        with foreign(self.where, "transformers cannot load it"), bars:
            model, info = self.model_class.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **self.placement.arguments(device, folder),
            )
        hf_weights.refuse_gaps(info, self.where)
        if not self.placement.tensor:  # of which each rank holds a part
            loaded.take_over(model, self._plain_state(), self.where)
        return model

    def _plain_state(self) -> dict[str, Any]:
        """Stored tensors that are no part of a packed weight."""
        state = hf_weights.read_state(self.weights)
        if self.quantisation is None:
            return state
        headers = hf_weights.headers(self.weights)
        return {
            name: part for name, part in state.items() if not self.quantisation.is_piece(name, headers[name])
        }


def link_weights(weights: Weights, folder: Path) -> None:
    """Links to safetensors files in ``folder``, under the names that transformers reads."""
    (folder / "generation_config.json").write_text("{}", encoding="utf-8")  # it fails without one
    if weights.index is None:
        (folder / "model.safetensors").symlink_to(weights.files[0].resolve())
        return
    for name, path in zip(sorted(set(weights.index.values())), weights.files, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path.resolve())
    index = {"metadata": {}, "weight_map": weights.index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
