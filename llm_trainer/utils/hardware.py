"""Accelerators, links and clusters: the figures that a plan on paper is computed from.

A table of data-sheet figures (dense bfloat16 peak, memory, bandwidths) and, for each accelerator,
the share of its peak that large matrix products reach in training. The share is fitted to one
published run of the family where `fitted` names it, and assumed otherwise; docs/scale.md shows what
the other runs say of it. `parse_cluster` reads "h100:64" and overrides such as
"h100:64,gpus_per_node=4,inter_gb_s=50"; `present` describes the machine at hand.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from llm_trainer.config.checks import refuse, text
from llm_trainer.exceptions import ConfigurationError

GB = 10**9
MICROSECOND = 1e-6


@dataclass(frozen=True)
class Link:
    """What one rank can send while it receives as much: latency and bandwidth."""

    bandwidth: float
    """Bytes a second in one direction, as collectives reach it (not the data sheet's sum)."""
    latency: float
    """Seconds of one hop."""


@dataclass(frozen=True)
class Accelerator:
    """One device that trains."""

    name: str
    peak_flops: float
    """Dense bfloat16 products, FLOP/s, by the data sheet; of a CPU as measured."""
    memory_bytes: int
    memory_bandwidth: float
    """Bytes a second by the data sheet."""
    matmul_share: float
    """Share of `peak_flops` that large products reach within training."""
    reserved_bytes: int
    """Memory that the driver, its context and the collectives' buffers keep."""
    price_hour: float | None = None
    """Assumed price of one, in dollars an hour."""
    fitted: str = ""
    """What `matmul_share` was fitted to; empty if it is assumed."""
    kernel_seconds: float = 0.0
    """Fixed cost of a kernel that nothing hides: of a CPU."""
    launch_seconds: float = 5 * MICROSECOND
    """Least time between two kernels, hidden behind those that take longer: of a GPU; assumed."""


@dataclass(frozen=True)
class Cluster:
    """Equal accelerators in equal nodes."""

    accelerator: Accelerator
    count: int
    """Accelerators, one rank each."""
    per_node: int
    intra: Link
    """Between ranks of a node."""
    inter: Link
    """Of a whole node with the others: its network cards together."""

    @property
    def num_nodes(self) -> int:
        """Nodes, the last of which may not be full."""
        return -(-self.count // self.per_node)

    @property
    def ring(self) -> Link:
        """The link that bounds a ring over all ranks.

        Several rings run side by side, so that a node's cards are all used: a rank's share is
        that of NVLink, or the whole node's network if that is less (the "bus bandwidth" that
        nccl-tests prints).
        """
        if self.num_nodes == 1:
            return self.intra
        hops = self.num_nodes / self.count  # share of the hops that leave a node
        latency = self.intra.latency * (1 - hops) + self.inter.latency * hops
        return Link(min(self.intra.bandwidth, self.inter.bandwidth), latency)

    def describe(self) -> str:
        """One line: "64 x h100 in 8 nodes"."""
        nodes = f" in {self.num_nodes} nodes" if self.num_nodes > 1 else ""
        return f"{self.count} x {self.accelerator.name}{nodes}"


# Data sheets of NVIDIA. Prices: what rented nodes of 8 were listed at in public run reports
# (24 and 14.32 dollars an hour for 8 x H100 and A100-80GB); the rest are assumptions.
_RESERVED = 2 * GB
ACCELERATORS: dict[str, Accelerator] = {
    item.name: item
    for item in (
        Accelerator("a100-40", 312e12, 40 * GB, 1.555e12, 0.77, _RESERVED, 1.3,
                    "as a100-80"),
        Accelerator("a100-80", 312e12, 80 * GB, 2.039e12, 0.77, _RESERVED, 1.79,
                    "MPT 7B, 8 GPUs, rows of 2,048 (llm-foundry)"),
        Accelerator("h100", 989e12, 80 * GB, 3.35e12, 0.60, _RESERVED, 3.0,
                    "MPT 7B, 8 GPUs, rows of 2,048 (llm-foundry)"),
        Accelerator("h200", 989e12, 141 * GB, 4.8e12, 0.60, _RESERVED, 3.5, "as h100"),
        Accelerator("b200", 2250e12, 180 * GB, 8.0e12, 0.55, _RESERVED, 5.0),
        Accelerator("l4", 121e12, 24 * GB, 0.3e12, 0.5, _RESERVED, 0.7),
        Accelerator("rtx4090", 165e12, 24 * GB, 1.008e12, 0.6, _RESERVED, 0.5),
    )
}  # fmt: skip

# share of a link's nominal speed that NCCL's rings reach: 230 to 250 of 300 GB/s on A100
_LINK_SHARE = 0.8
NVLINK = {"a100-40": 300 * GB, "a100-80": 300 * GB, "h100": 450 * GB, "h200": 450 * GB,
          "b200": 900 * GB}  # fmt: skip
PCIE = 16 * GB
"""Between cards without NVLink, as collectives reach it."""
NETWORK = {"a100-40": 200 * GB, "a100-80": 200 * GB, "h100": 400 * GB, "h200": 400 * GB,
           "b200": 400 * GB}  # fmt: skip
"""Network of a node: 8 cards of 200 or 400 Gbit/s."""
ETHERNET = 12.5 * GB
"""100 Gbit/s a node, for the others."""
INTRA_LATENCY, INTER_LATENCY = 3 * MICROSECOND, 12 * MICROSECOND
OVERRIDES = ("gpus_per_node", "intra_gb_s", "inter_gb_s", "memory_gb", "price_hour", "matmul_share")


def make_cluster(name: str, count: int, per_node: int = 8) -> Cluster:
    """`count` accelerators of the table with the links that nodes of them usually have.

    Raises:
        ConfigurationError: no such accelerator, or a count below 1.
    """
    if name not in ACCELERATORS:
        near = difflib.get_close_matches(name, ACCELERATORS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(
            f"accelerator {name!r} is not one of {', '.join(sorted(ACCELERATORS))}{hint}"
        )
    if count < 1 or per_node < 1:
        raise ConfigurationError(f"count ({count}) and gpus_per_node ({per_node}) must be from 1")
    nvlink, network = NVLINK.get(name), NETWORK.get(name, ETHERNET)
    intra = nvlink * _LINK_SHARE if nvlink else float(PCIE)
    # a smaller node has as many cards less
    inter = network * _LINK_SHARE * min(1.0, per_node / 8)
    return Cluster(
        ACCELERATORS[name], count, min(per_node, count),
        Link(intra, INTRA_LATENCY), Link(inter, INTER_LATENCY),
    )  # fmt: skip


def parse_cluster(description: str) -> Cluster:
    """The cluster that "accelerator:count" describes, with overrides "key=number" after commas.

    Keys: gpus_per_node, intra_gb_s and inter_gb_s (what collectives reach, GB/s of a rank and of
    a node), memory_gb, price_hour, matmul_share.

    Raises:
        ConfigurationError: not of this form; every problem is named.
    """
    refuse(ConfigurationError, text("cluster", description))
    head, *pairs = [part.strip() for part in description.split(",")]
    name, _, number = head.partition(":")
    if number and not number.isdecimal():
        raise ConfigurationError(
            f"{description!r}: the number of accelerators ({number!r}) must be a whole number, "
            f"as in h100:64"
        )
    values: dict[str, float] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        try:
            values[key] = float(value)
        except ValueError:
            equals = ""
        if key not in OVERRIDES or not equals or not 0 < values[key] < float("inf"):
            raise ConfigurationError(
                f"{description!r}: {pair!r} must be one of {', '.join(OVERRIDES)} with a number "
                f"above 0, such as inter_gb_s=50"
            )
    per_node = values.get("gpus_per_node", 8)
    if per_node != int(per_node):
        raise ConfigurationError(f"gpus_per_node ({per_node:g}) must be a whole number")
    cluster = make_cluster(name.lower(), int(number or 1), int(per_node))
    device = cluster.accelerator
    device = replace(
        device,
        memory_bytes=int(values.get("memory_gb", device.memory_bytes / GB) * GB),
        price_hour=values.get("price_hour", device.price_hour),
        matmul_share=min(1.0, values.get("matmul_share", device.matmul_share)),
    )
    intra = replace(
        cluster.intra, bandwidth=values.get("intra_gb_s", cluster.intra.bandwidth / GB) * GB
    )
    inter = replace(
        cluster.inter, bandwidth=values.get("inter_gb_s", cluster.inter.bandwidth / GB) * GB
    )
    return replace(cluster, accelerator=device, intra=intra, inter=inter)
