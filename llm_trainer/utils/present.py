"""The machine at hand as a cluster of one node: its memory, its speed, what its cores reach.

A CPU's constants are fitted to training steps measured on 2 cores of an AMD EPYC
(`python -m benchmarks.scale_model`); another processor will be some tens of percent off, except
that its peak is measured each time.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.utils.hardware import (
    ACCELERATORS,
    MICROSECOND,
    Accelerator,
    Cluster,
    Link,
    make_cluster,
)
from llm_trainer.utils.memory import PROCESS_BYTES

if TYPE_CHECKING:
    import torch

CPU_MATMUL_SHARE = 0.93
"""Share of the measured matmul peak that products reach within training, measured by itself."""
CPU_BANDWIDTH = 18e9
"""Bytes a second that kernels between the products move."""
CPU_KERNEL_SECONDS = 380e-6
"""Fixed cost of a kernel, forward and backward, on two threads."""
CPU_LINK = 1e9
"""Bytes a second of gloo over loopback; assumed."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's share of its host's memory stands, in versions 2 and 1."""


def present_memory(device: torch.device) -> int:
    """Bytes of memory that training on `device` has at most: of the card, or of this machine.

    On a CPU the smaller of the machine's memory and the control group's limit counts.
    """
    if device.type == "cuda":
        import torch as module

        return int(module.cuda.get_device_properties(device).total_memory)
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in LIMITS:
        try:
            limit = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdecimal():
            total = min(total, int(limit))
    return total


def present_swap(device: torch.device) -> int:
    """Bytes of swap that stand behind the memory of a CPU; none behind a card's."""
    if device.type == "cuda":
        return 0
    import psutil

    return int(psutil.swap_memory().total)


def present_cluster(
    device: torch.device, peak_flops: float, ranks: int = 1, per_node: int | None = None
) -> Cluster:
    """Machines like this one with `ranks` ranks, `per_node` on each (None: all on this one).

    `peak_flops` is what `machine.matmul_peak` measured. Ranks on a CPU share its memory, its cores
    and its peak; cards of CUDA are each their own.
    """
    memory = present_memory(device)
    local = per_node or ranks
    if device.type == "cuda":
        return _cards(device, peak_flops, memory, ranks, local)
    return cpu_cluster(peak_flops, memory, ranks, local, name=device.type)


def cpu_cluster(
    peak_flops: float, memory: int, ranks: int = 1, per_node: int = 1, name: str = "cpu"
) -> Cluster:
    """Processors of `peak_flops` and `memory` bytes, which `per_node` of `ranks` ranks share."""
    chip = Accelerator(
        name=name, peak_flops=peak_flops / per_node, memory_bytes=memory // per_node,
        memory_bandwidth=CPU_BANDWIDTH / per_node, matmul_share=CPU_MATMUL_SHARE,
        reserved_bytes=PROCESS_BYTES, kernel_seconds=CPU_KERNEL_SECONDS, launch_seconds=0.0,
        fitted="eager steps of benchmarks/growth.json",
    )  # fmt: skip
    link = Link(CPU_LINK, 50 * MICROSECOND)
    return Cluster(chip, ranks, per_node, link, link)


def _cards(device: torch.device, peak_flops: float, memory: int, ranks: int, local: int) -> Cluster:
    import torch as module

    name = module.cuda.get_device_properties(device).name
    known = [key for key in ACCELERATORS if key.partition("-")[0] in name.lower().replace(" ", "")]
    table = make_cluster(known[-1] if known else "rtx4090", ranks, local)
    chip = table.accelerator
    # the table's share is of the data sheet's peak, and this peak is measured
    share = min(1.0, chip.matmul_share * chip.peak_flops / peak_flops) if known else 0.7
    return replace(
        table,
        accelerator=replace(
            chip, name=name, memory_bytes=memory, peak_flops=peak_flops, matmul_share=share,
            price_hour=None,
        ),
    )  # fmt: skip
