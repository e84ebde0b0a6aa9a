"""Who does the work of the data stages: this machine's processes, or Ray.

The result is the same, byte for byte. `ray_engine` is imported only where Ray is asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Engine:
    """An engine."""

    name: Literal["local", "ray"] = "local"
    address: str | None = None
    """Of a running Ray cluster (`host:port`, or `auto` for the one that this machine belongs to);
    None starts one on this machine, for the time of the work."""
    num_workers: int | None = None
    """Parts that Ray works on at once; None for one per core of the cluster."""


LOCAL = Engine()


def usable_cores() -> int:
    """Cores that this process may use: how many workers pay."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
