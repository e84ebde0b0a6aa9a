"""Whether torch.compile can work here, and whether it pays, told without importing torch."""

from __future__ import annotations

import math
import os
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

COMPILE_REPAYS_FLOPS = {"cpu": 2e13, "cuda": 5e16}
"""Training FLOPs from which compiling repays itself. On 2 CPU cores compiling takes about 45 s and
makes steps 1.4 times faster, at about 130 GFLOP/s eager."""


def compile_problem(device: torch.device) -> str | None:
    """Why nothing can be compiled for `device` on this machine; None if nothing speaks against."""
    if device.type == "cuda":
        return None
    if device.type != "cpu":
        return f"compiling for {device.type} is not supported here"
    return compiler_problem()


def compiler_problem() -> str | None:
    """What torch.compile lacks on this machine's processor, with the remedy; None if nothing."""
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        return "there is no C++ compiler (install g++ or clang++)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return f"the headers of this Python are missing ({header.name}; install python3-dev)"
    return None


def is_to_be_compiled(
    compile_model: bool | Literal["auto"], device_type: str, training_flops: float
) -> bool:
    """What `compile_model` means for a run of so many floating-point operations."""
    if compile_model == "auto":
        return training_flops >= COMPILE_REPAYS_FLOPS.get(device_type, math.inf)
    return compile_model


def do_without_openssl() -> None:
    """Let torch not precompile its headers where the program `openssl` is missing.

    It has openssl digest them, and would end in a FileNotFoundError.
    """
    if shutil.which("openssl") is None:
        from torch._inductor import config

        config.cpp_cache_precompile_headers = False
