"""Whether torch.compile can work here and whether it pays, told without importing torch; and how it
is set up for whoever compiles."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch

COMPILE_REPAYS_FLOPS = {"cpu": 2e13, "cuda": 5e16}
"""Training FLOPs from which compiling repays itself. On 2 CPU cores compiling takes about 45 s and
makes steps 1.4 times faster, at about 130 GFLOP/s eager."""

GRAPH_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "size_asserts": False,
    "alignment_asserts": False,
}
"""Of all that is compiled: without the graph's own look, at every step, at shapes that it computed
itself."""

_NUMBERS = itertools.count()
_Function = TypeVar("_Function", bound=Callable[..., Any])


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


def cache_custom_gradients() -> None:
    """Let torch keep what it traced of code that has backward passes of its own, too.

    It goes by the traced operations, so another backward pass is another entry. Without this a
    training of the default model starts 2 s later with a warm cache.
    """
    from torch._functorch import config

    config.autograd_cache_allow_custom_autograd_functions = True


def with_own_code(function: _Function) -> _Function:
    """The function with a code object of its own, by which the compiler files its graphs.

    It makes so many of them for one code object, and runs what follows uncompiled; so the function
    of each model needs its own.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_NUMBERS)}")
    copied: Any = FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    return copied  # type: ignore[no-any-return]
