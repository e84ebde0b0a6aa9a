"""Event by event, where a closed form has to simplify: FSDP's prefetch, stragglers, failures.

Each simulation is seeded and small, and a test holds it against the closed form where both are
right: uniform blocks (`step_model.exposed_communication`), Gaussian delays (the expected maximum of
W of them), Poisson failures (`fault_model.goodput`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def fsdp_step(
    forward: Sequence[float],
    backward: Sequence[float],
    gather: Sequence[float],
    scatter: Sequence[float],
    prefetch: int = 1,
) -> float:
    """Seconds of one forward and backward pass with weights gathered ahead.

    Args:
        forward, backward: seconds of each block's passes, in the order of the forward pass.
        gather, scatter: seconds to gather a block's weights, and to reduce-scatter its gradients.
        prefetch: blocks whose weights may be fetched before their turn, beside the one at work.

    Compute is one queue and the network another; a gather may start when the block `prefetch`
    places before it begins to compute (so that no more than prefetch + 1 are whole at once), and
    a scatter when its block's backward pass is over. Gathers go before scatters that are ready at
    the same time, as FSDP2 issues them.
    """
    order = list(range(len(forward)))
    starts: list[float] = []
    network = compute = 0.0
    pending: list[tuple[float, float]] = []  # scatters: ready at, seconds
    work: list[tuple[float, float, float | None]]
    work = [(forward[n], gather[n], None) for n in order]
    work += [(backward[n], gather[n], scatter[n]) for n in reversed(order)]
    for place, (seconds, fetch, give) in enumerate(work):
        # nothing is fetched ahead over the turn from forward to backward
        ahead = prefetch and place >= prefetch and place != len(order)
        may = starts[place - prefetch] if ahead else compute if place else 0.0
        while pending and max(pending[0][0], network) < may:
            ready, duration = pending.pop(0)
            network = max(network, ready) + duration
        network = max(network, may) + fetch
        arrived = network
        begin = max(compute, arrived)
        starts.append(begin)
        compute = begin + seconds
        if give is not None:
            pending.append((compute, give))
    for ready, duration in pending:
        network = max(network, ready) + duration
    return max(compute, network)


def straggling(
    ranks: int, mean: float, deviation: float, steps: int = 1000, seed: int = 0
) -> float:
    """Mean seconds of a step that waits for the slowest of `ranks`, each normally distributed."""
    generator = random.Random(seed)
    total = 0.0
    for _ in range(steps):
        total += max(generator.gauss(mean, deviation) for _ in range(ranks))
    return total / steps


def expected_maximum(ranks: int) -> float:
    """Expected maximum of `ranks` standard normal numbers, in deviations.

    Blom's approximation (1958), F^-1((n - 3/8) / (n + 1/4)); within 1.5 % from 2 numbers on.
    """
    from statistics import NormalDist

    if ranks == 1:
        return 0.0
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def failing(
    work: float, interval: float, save: float, restart: float, between: float, seed: int = 0
) -> float:
    """Share of useful time of a run of `work` seconds with failures at random.

    After a failure it restarts (which may fail too) and goes on from the last checkpoint.
    """
    generator = random.Random(seed)
    clock = done = 0.0
    until = generator.expovariate(1 / between)
    while done < work:
        segment = min(interval, work - done) + save
        if clock + segment <= until:
            clock += segment
            done += segment - save
            continue
        clock = until
        while True:
            until = clock + generator.expovariate(1 / between)
            if clock + restart <= until:
                clock += restart
                break
            clock = until
    return work / clock if math.isfinite(clock) else 0.0
