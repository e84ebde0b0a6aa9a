"""How busy the machine is, sampled when a run logs anyway: no thread, about 0.3 ms a sample."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

INTERVAL = 10.0
"""Least seconds between samples."""


class SystemSampler:
    """CPU and memory as `system/*`; empty between samples, and where psutil is missing."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._next = 0.0
        self._psutil: Any = None
        self._process: Any = None
        try:
            import psutil
        except ImportError:
            return
        self._psutil = psutil
        self._process = psutil.Process(os.getpid())
        # both measure since their previous call, which must exist
        psutil.cpu_percent(None)
        self._process.cpu_percent(None)
        self._next = time.monotonic() + min(1.0, interval)

    def sample(self) -> dict[str, float]:
        """CPU in percent (process: of one core) since the last sample, memory in MiB now."""
        if self._psutil is None or time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + self._interval
        memory = self._psutil.virtual_memory()
        values = {
            "system/cpu_percent": self._psutil.cpu_percent(None),
            "system/process_cpu_percent": self._process.cpu_percent(None),
            "system/memory_used_percent": memory.percent,
            "system/process_memory_mib": self._process.memory_info().rss / 2**20,
        }
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            values["system/gpu_memory_mib"] = torch.cuda.memory_reserved() / 2**20
        return values
