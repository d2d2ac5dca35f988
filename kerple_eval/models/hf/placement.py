"""A model over several devices: ``,devices=auto`` and ``,parallel=tensor``.

    devices=auto       layers on the visible cards, then in the CPU's memory, then on disk, as accelerate's
                       device map puts them; what lies elsewhere comes to the first card for its turn
    parallel=tensor    under torchrun: every rank holds a part of each layer, by the plan that transformers
                       has for the architecture; all ranks score the same windows together

Neither changes what is computed, but for the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from kerple_eval.models.base import Shape

_CHOICES = {"devices": ("auto",), "parallel": ("tensor",)}


@dataclass(frozen=True, slots=True)
class Placement:
    """``spread`` over devices, or ``tensor`` parallel over ranks, or neither."""

    spread: bool = False
    tensor: bool = False

    @classmethod
    def from_options(cls, options: dict[str, str]) -> Placement:
        """Removes its keys from ``options``."""
        given = {key: options.pop(key) for key in _CHOICES if key in options}
        for key, value in given.items():
            if value not in _CHOICES[key]:
                raise unknown(f"value of {key}=", value, _CHOICES[key])
        if len(given) == 2:
            raise UserError("hf: devices=auto and parallel=tensor are two ways to one end; use one of them")
        if "devices" in given and find_spec("accelerate") is None:
            raise UserError("hf: devices=auto needs accelerate: pip install 'kerple-eval[hf]'")
        return cls("devices" in given, "parallel" in given)

    @property
    def word(self) -> str:
        return "devices=auto" if self.spread else "parallel=tensor" if self.tensor else ""

    def check(self, model: Any, kind: str, where: str) -> None:
        """``model`` without weights, and the kind of its files, can be placed so.

        Raises:
            UserError: the files are not safetensors, or transformers has no plan for the architecture.
        """
        if self.word and kind != "safetensors":
            raise UserError(f"{where}: {self.word} reads safetensors alone, this is {kind}; convert it first")
        if self.tensor and not model.supports_tp_plan:
            raise UserError(
                f"{where}: transformers has no tensor-parallel plan for {type(model).__name__}; devices=auto "
                "spreads it over the cards of one process"
            )

    def check_ranks(self, count: int, shape: Shape, where: str) -> None:
        """With ``parallel=tensor`` there are several ranks, and each gets as many heads as the others."""
        if not self.tensor:
            return
        if count < 2:
            raise UserError(
                f"{where}: parallel=tensor needs several processes of one run: "
                "torchrun --nproc-per-node N -m kerple_eval run ..."
            )
        for what, number in (("heads", shape.heads), ("heads of keys and values", shape.kv_heads)):
            if number % count:
                raise UserError(
                    f"{where}: parallel=tensor: {number} {what} cannot be shared by {count} processes; use "
                    f"{' or '.join(map(str, _divisors(shape))) or 'devices=auto'}"
                )

    def arguments(self, device: torch.device, folder: Path) -> dict[str, Any]:
        """What ``from_pretrained`` is told; what it writes to disk goes below ``folder``."""
        if self.tensor:
            return {"distributed_config": _ranks(device)}
        if self.spread:
            return {
                "device_map": "auto",
                "max_memory": memory(device),
                "offload_folder": str(folder / "offloaded"),
                "offload_buffers": False,
            }
        return {"device_map": {"": device}}


def _divisors(shape: Shape) -> list[int]:
    """Numbers of processes, from two on, that heads and heads of keys and values can be shared by."""
    most = min(shape.heads, shape.kv_heads)
    return [n for n in range(2, most + 1) if shape.heads % n == 0 and shape.kv_heads % n == 0]


def memory(device: torch.device) -> dict[int | str, int]:
    """Bytes that each device has for weights: what is free, of the CPU alone where that was asked for."""
    from accelerate.utils import get_max_memory  # noqa: PLC0415 - only where it is needed

    free: dict[int | str, int] = get_max_memory()
    return {"cpu": free["cpu"]} if device.type == "cpu" else free


def _ranks(device: torch.device) -> Any:
    import torch  # noqa: PLC0415 - so that options are read without it
    import torch.distributed as dist  # noqa: PLC0415
    from transformers.distributed import DistributedConfig  # noqa: PLC0415

    if not (dist.is_available() and dist.is_initialized()):
        raise UserError("parallel=tensor: each of torchrun's processes holds a part, and there is one alone")
    if device.type == "cpu" and torch.cuda.is_available():
        raise UserError("parallel=tensor uses the cards that there are; leave --device cpu out")
    return DistributedConfig(tp_plan="auto", tp_size=dist.get_world_size())
