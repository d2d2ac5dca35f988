"""Triton source compiled for sm_90 by Triton's own ptxas: registers, spills, shared memory, instructions.

``machine_code.py SOURCE``: one JSON line a program of the file.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
HEAD = """import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math
"""


@dataclass
class Program:
    """``shared``: bytes of shared memory; ``spilled``: bytes of the stack; ``loop``: instructions of the last
    loop with matrix products (over whole blocks), a score; ``loads``: of memory in the source."""

    name: str
    registers: int
    spilled: int
    shared: int
    warps: int
    stages: int
    loop: float | None
    loads: int


def sources(text: str) -> Iterator[tuple[str, str]]:
    """Name and source of each program that Inductor wrote into a file."""
    for found in re.finditer(r"async_compile\.triton\('([^']+)', '''(.*?)''', device_str", text, re.DOTALL):
        yield found.group(1), found.group(2).replace("\\'", "'")


def compiled(name: str, source: str) -> Any:
    meta = re.search(r"triton_meta=(\{.*\}),\s*inductor_meta", source, re.DOTALL)
    assert meta is not None
    facts = eval(re.sub(r"DeviceProperties\(.*?\)", "None", meta.group(1)), {})  # Inductor's own text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(HEAD + source[source.index("@triton.jit") :], encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        options = {
            word: int(found.group(1)) if (found := re.search(rf"{word}=(\d+)", source)) else default
            for word, default in (("num_warps", 4), ("num_stages", 3))
        }
        constants = dict(facts.get("constants", {}))
        if "XBLOCK" in source and "XBLOCK" not in constants:  # a reduction: one row a block, 4,096 columns
            constants |= {"XBLOCK": 1, "R0_BLOCK": 4096}
        signature = dict(facts["signature"]) | dict.fromkeys(constants, "constexpr")
        made = ASTSource(
            getattr(module, name),
            signature,
            constexprs=constants,
            attrs=dict(*facts.get("configs", [{}])[:1]),
        )
        return triton.compile(made, target=GPUTarget("cuda", 90, 32), options=options)


def measured(name: str, source: str) -> Program:
    program = compiled(name, source)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        listing, resources = (
            subprocess.run(
                [TOOLS / tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "--dump-resource-usage"))
        )
    used = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    assert used is not None
    block = [re.search(rf"{side} : tl.constexpr = (\d+)", source) for side in ("BLOCK_M", "BLOCK_N")]
    scores = None
    if all(block):
        scores = int(block[0][1]) * int(block[1][1]) / (32 * program.metadata.num_warps)
    loop = matrix_loop(listing)
    return Program(
        name, int(used[1]), int(used[2]), program.metadata.shared, program.metadata.num_warps,
        program.metadata.num_stages, round(loop / scores, 1) if loop and scores else None,
        source.count("tl.load("),
    )  # fmt: skip


def matrix_loop(listing: str) -> int | None:
    """Instructions of the last innermost loop that multiplies matrices; None where there is none."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_[\w$.]+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(instruction[1])
    found = []
    for index, line in enumerate(lines):
        back = re.search(r"BRA.*`\((\.L_[\w$.]+)\)", line)
        if back and labels.get(back[1], index + 1) <= index:
            body = lines[labels[back[1]] : index + 1]
            if any("MMA" in instruction for instruction in body):
                found.append(len(body))
    return found[-1] if found else None


if __name__ == "__main__":
    for name, source in sources(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if name.startswith(("triton_tem", "triton_red")):  # the rest goes over one tensor once
            print(json.dumps(asdict(measured(name, source))), flush=True)
