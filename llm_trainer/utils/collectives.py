"""How long collectives take: the ring algorithms, latency plus bandwidth.

Every formula is for one rank of `ranks`, `size` bytes being the whole tensor (before a
reduce-scatter, after an all-gather). A ring moves (p - 1) / p of it in p - 1 hops, which no
algorithm can do with fewer bytes (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
algorithms"; Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication
operations in MPICH", sections 4.1 and 4.4). Real libraries choose trees for small messages, which
saves latency; so small all-reduces on many ranks are over-estimated here.
"""

from __future__ import annotations

from llm_trainer.utils.hardware import Cluster, Link


def all_gather(size: float, ranks: int, link: Link) -> float:
    """Seconds until each of `ranks` has all `size` bytes, of which it had a `ranks`-th."""
    if ranks <= 1:
        return 0.0
    return (ranks - 1) * (link.latency + size / ranks / link.bandwidth)


def reduce_scatter(size: float, ranks: int, link: Link) -> float:
    """Seconds until each rank has its part of the sum of `size` bytes; as long as `all_gather`."""
    return all_gather(size, ranks, link)


def all_reduce(size: float, ranks: int, link: Link) -> float:
    """Seconds until each rank has the sum: a reduce-scatter and an all-gather."""
    return reduce_scatter(size, ranks, link) + all_gather(size, ranks, link)


def node_all_reduce(size: float, cluster: Cluster) -> float:
    """Seconds of an all-reduce between ranks of equal place in each node (hybrid sharding).

    All places do it at once, so a rank has its share of the node's network cards; `size` is the
    part that one rank holds.
    """
    own = Link(cluster.inter.bandwidth / cluster.per_node, cluster.inter.latency)
    return all_reduce(size, cluster.num_nodes, own)
