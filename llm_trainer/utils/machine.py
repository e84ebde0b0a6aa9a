"""What the machine is and what it can do: description, matmul peak, memory high-water mark.

A figure such as "52 % of peak" says nothing without the peak, and data sheets promise clock rates
that a virtual CPU never runs at, so the peak is measured: the best of short square products. Price:
up to half a second a type on a CPU, once per process. A description holds no host name, user or
path, so it may be committed.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.utils.timing import synchronize

if TYPE_CHECKING:
    import torch

CPU_SIZES = (512, 1024, 2048)
CUDA_SIZES = (4096, 8192)
SECONDS_PER_SIZE = 0.1
"""How long each size of matrix is tried; the best run counts, so load only matters if it lasts."""
MAX_CALL_SECONDS = 0.2
"""Sizes whose one product is expected to take longer are left out; smaller ones come near it."""


def matmul_peak(device: torch.device | str, dtype: str) -> float:
    """Best measured speed of a square matrix product on `device`, in FLOP/s.

    `dtype` is a torch name such as "bfloat16" or "float32". Depends on torch's thread count on a
    CPU and is measured once per process for each device, type and thread count.
    """
    import torch

    return _matmul_peak(str(torch.device(device)), dtype, torch.get_num_threads())


@cache
def _matmul_peak(device_name: str, dtype_name: str, num_threads: int) -> float:
    import torch

    assert num_threads == torch.get_num_threads(), "the cache key is the present thread count"
    device, dtype = torch.device(device_name), getattr(torch, dtype_name)
    generator = torch.Generator(device).manual_seed(0)  # leaves the caller's random state alone
    best = 0.0
    expected = 0.0
    for size in CUDA_SIZES if device.type == "cuda" else CPU_SIZES:
        if expected > MAX_CALL_SECONDS:
            break
        left, right = (
            torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2)
        )
        result = left @ right
        synchronize(device)
        fastest = float("inf")
        end = time.perf_counter() + SECONDS_PER_SIZE
        while True:
            start = time.perf_counter()
            torch.mm(left, right, out=result)
            synchronize(device)
            now = time.perf_counter()
            fastest = min(fastest, now - start)
            if now > end:
                break
        best = max(best, 2.0 * size**3 / fastest)
        expected = 8 * fastest
    return best


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX, or ARM's BF16)."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())


def describe_machine(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """The machine and the software that figures depend on, flat, without names or paths.

    Keys: cpu, cpu_capability, cores (physical), threads (of torch), memory_bytes, gpu ("none"
    without one), gpu_memory_bytes, cuda (both only with one), torch, python, os.
    """
    import psutil
    import torch

    device = torch.device(device)
    description: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cpu_capability": cpu_capability(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": "none",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description["gpu"] = properties.name
        description["gpu_memory_bytes"] = properties.total_memory
        description["cuda"] = str(torch.version.cuda)
    elif device.type != "cpu":
        description["gpu"] = device.type
    return description


def cpu_capability() -> str:
    """Vector extensions that torch uses here, such as "AVX512, AVX512-BF16, AMX-BF16"."""
    import torch

    found = [torch.backends.cpu.get_cpu_capability()]
    names = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "bf16": "BF16", "sve": "SVE"}
    found += [name for flag, name in names.items() if flag in _cpu_flags()]
    return ", ".join(found)


@cache
def _cpu_info() -> str:
    try:
        # one processor's block is enough, and the whole file is long on a large machine
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return ""


def _cpu_flags() -> set[str]:
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpu_info(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def _cpu_model() -> str:
    """Its name, with family and model where the system tells them: virtual machines often give
    processors of different generations the same name."""
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in _cpu_info().splitlines())
    }
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [
        f"{word} {fields[key]}"
        for word, key in (("family", "cpu family"), ("model", "model"))
        if key in fields
    ]
    return f"{name} ({', '.join(numbers)})" if numbers else name


# --------------------------------------------------------------------------- memory


def peak_memory_bytes(device: torch.device | str = "cpu") -> int:
    """High-water mark in bytes: of the allocator on a CUDA device, else of the process's RSS.

    Counted since `reset_peak_memory`, or since the process began.
    """
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    # ru_maxrss is no substitute on Linux: it survives exec, so that a process started by a larger
    # one reports the larger one's peak
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reset_peak_memory(device: torch.device | str = "cpu") -> bool:
    """Start counting the high-water mark anew; False where the system cannot."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
