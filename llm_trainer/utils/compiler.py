"""Whether torch.compile can work here, found out without importing torch."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def compiler_problem() -> str | None:
    """What torch.compile lacks on this machine's processor, with the remedy; None if nothing."""
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        return "there is no C++ compiler (install g++ or clang++)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return f"the headers of this Python are missing ({header.name}; install python3-dev)"
    return None
