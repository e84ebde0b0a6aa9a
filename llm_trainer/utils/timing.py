"""Timing that waits for the device: a CUDA kernel that was launched has not yet run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def synchronize(device: torch.device) -> None:
    """Wait until everything launched on `device` has run; on a CPU nothing is pending."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_calls(
    function: Callable[[], object], *, repeats: int, warmup: int, device: torch.device
) -> list[float]:
    """Seconds that each of `repeats` calls took, after `warmup` calls that do not count."""
    for _ in range(warmup):
        function()
    synchronize(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds
