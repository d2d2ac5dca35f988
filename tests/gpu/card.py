"""torch and Triton made to believe in one H100: enough for Inductor to write its Triton code.

Imported before anything of the project, in a process started with the two libraries of ``prepare.sh``. What
it replaces are torch's private names in 2.11.0; another version may need others. Nothing runs on the card:
compiled graphs are interpreted on fake tensors, and their source is kept in :data:`SOURCES`.
"""

from __future__ import annotations

import ctypes
import os
import types
from pathlib import Path
from typing import Any

import torch
import torch.utils._triton
import triton
from torch._subclasses import fake_tensor
from triton.backends.compiler import GPUTarget

SHARED_MEMORY = 232_448  # bytes a block of threads may ask for
SOURCES: list[str] = []  # of the compiled graphs, in order

PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, warp_size=32,
    total_memory=80 * 1024**3, max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536,
    shared_memory_per_block=49152, shared_memory_per_block_optin=SHARED_MEMORY,
    shared_memory_per_multiprocessor=233_472, L2_cache_size=50 * 1024**2, clock_rate=1_980_000,
    gcnArchName="", is_integrated=False, pci_bus_id=0, uuid="none", max_threads_per_block=1024,
)  # fmt: skip


class _Driver:
    """What Triton asks of the active driver while it compiles."""

    class utils:  # noqa: N801 - Triton's name
        @staticmethod
        def get_device_properties(_: int) -> dict[str, int]:
            return {
                "max_shared_mem": SHARED_MEMORY, "max_num_regs": 65536, "multiprocessor_count": 132,
                "warpSize": 32, "mem_bus_width": 5120,
                "sm_clock_rate": 1_980_000, "mem_clock_rate": 2_619_000,
            }  # fmt: skip

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda


def _keep_source(graph: Any) -> Any:
    """In place of loading a compiled module: its source is kept, its graph interpreted."""
    wrapper = (graph.codegen_with_cpp_wrapper() if graph.cpp_wrapper else graph.codegen())[0]
    SOURCES.append(wrapper.value if hasattr(wrapper, "value") else wrapper)

    def call(arguments: list[Any]) -> Any:
        out = torch.fx.Interpreter(graph.orig_gm).run(*arguments)
        arguments.clear()
        return out

    names = {"__file__": os.devnull, "__path__": os.devnull, "key": "none", "constants": {}, "partitions": []}
    return types.SimpleNamespace(call=call, runner=None, recursively_apply_fns=None, **names)


def pretend(devices: Path, shared_memory: int = SHARED_MEMORY) -> None:
    """``devices``: the library that counts devices (``devices.cpp``); ``shared_memory``: bytes of a block."""
    PROPERTIES.shared_memory_per_block_optin = shared_memory
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._C._ensureCUDADeviceGuardSet()
    ctypes.CDLL(str(devices)).set_fake_count(64)
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": PROPERTIES,
        "get_device_capability": (9, 0), "get_device_name": PROPERTIES.name, "_lazy_init": None,
        "synchronize": None, "is_bf16_supported": True, "is_initialized": False, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "set_rng_state": None,
        "get_rng_state": torch.empty(16, dtype=torch.uint8),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    for name in ("getDevice", "setDevice", "exchangeDevice", "maybeExchangeDevice", "getCurrentRawStream"):
        setattr(torch._C, f"_cuda_{name}", lambda *_: 0)
    for name in ("has_triton", "has_triton_package"):
        setattr(torch.utils._triton, name, lambda: True)
    fake_tensor.init_gpu_context = lambda *_: None
    triton.runtime.driver.set_active(_Driver())
    # Only now, as Inductor keeps the functions that it finds when it is imported.
    from torch._inductor.fx_passes import joint_graph, post_grad  # noqa: PLC0415
    from torch._inductor.graph import GraphLowering  # noqa: PLC0415

    for module in (joint_graph, post_grad):
        module.lazy_init = lambda *_, **__: None
    GraphLowering.compile_to_module = _keep_source
    torch._inductor.config.fx_graph_cache = False
    torch._inductor.config.joint_graph_constant_folding = False
    torch._functorch.config.enable_autograd_cache = False
    torch.tensor = _tensor
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10_cuda.so"))
    hook = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_byte)(lambda _: False)
    library["_ZN3c104cuda9_internal20setHasPrimaryContextEPFbaE"](hook)
    KEPT.append(hook)


KEPT: list[Any] = []  # what C holds a pointer to
_real_tensor = torch.tensor


def _tensor(data: Any, *, device: Any = None, dtype: Any = None, **named: Any) -> torch.Tensor:
    """``torch.tensor``, whose numbers never reach a card that is not there."""
    if device is None or torch.device(device).type != "cuda":
        return _real_tensor(data, device=device, dtype=dtype, **named)
    made = _real_tensor(data, dtype=dtype)
    return torch.empty(tuple(made.shape), dtype=made.dtype, device=device)
