"""Whether torch.compile can work here, found out without importing torch."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
