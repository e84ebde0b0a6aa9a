"""What one rank keeps in memory while it trains, under each way of spreading a model.

Weights, gradients and optimizer states are exact: whole on every rank under DDP, a part of each
under FSDP (Rajbhandari et al. 2020, "ZeRO", section 3.1, with float32 weights and gradients: 4 + 4
+ 8 bytes a parameter for AdamW). Activations and logits are those of `memory.plan_memory`, within a
fifth in eager mode. What FSDP gathers for a moment, the allocator's slack and the driver's share
are estimates. `RankMemory.certain` is a floor that no arrangement goes below: what exceeds the
memory there cannot run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llm_trainer.utils.hardware import Accelerator, Cluster
from llm_trainer.utils.memory import (
    FLOAT32_BYTES,
    HALF_BYTES,
    activation_bytes,
    optimizer_bytes,
)
from llm_trainer.utils.parameters import count_parameters
from llm_trainer.utils.step_model import Job, block_parameters, shard_ranks

SLACK = 0.06
"""Share of what is planned that the allocator loses to blocks of unequal size."""
CERTAIN_SHARE = 0.5
"""Share of the estimated activations and logits that counts as certain: a compiled step keeps less
than the estimate, never less than half."""
CLOSE_SHARE = 0.8
"""Share of the memory from which a plan is said to be close: on a CPU, peaks were up to a fifth
above the plan (docs/scale.md)."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    """Estimate: weights and gradients of whole blocks that FSDP holds for a moment, or the
    buckets of DDP."""
    activations: float
    """Estimate, with half-precision copies of weights."""
    logits: float
    """Estimate: logits of one micro-batch with their gradients."""
    slack: float
    """Estimate: what the allocator loses."""
    reserved: float
    """Estimate: driver, libraries, Python where it counts."""

    @property
    def states(self) -> float:
        """Weights, gradients and optimizer states: exact."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """All of it."""
        rest = self.gathered + self.activations + self.logits + self.slack + self.reserved
        return self.states + rest

    @property
    def certain(self) -> float:
        """What is needed at least; see CERTAIN_SHARE."""
        return self.states + CERTAIN_SHARE * (self.activations + self.logits)

    def parts(self) -> tuple[tuple[str, float], ...]:
        """Name and bytes, in the order of a table."""
        return (
            ("weights", self.weights), ("gradients", self.gradients),
            ("optimizer states", self.optimizer), ("gathered for a moment", self.gathered),
            ("activations", self.activations), ("logits", self.logits),
            ("allocator's slack", self.slack), ("driver and libraries", self.reserved),
        )  # fmt: skip


def rank_memory(job: Job, cluster: Cluster, *, momentum: float = 0.95) -> RankMemory:
    """Memory of each rank of `cluster` that runs `job`."""
    count = count_parameters(job.model)
    shards = shard_ranks(job, cluster)
    sharded = job.parallel in ("fsdp", "hybrid") and cluster.count > 1
    element = HALF_BYTES if job.half else FLOAT32_BYTES
    model = replace(job.model, gradient_checkpointing=job.recompute)
    kernel = "sdpa" if job.flash else "masked"
    activations = float(activation_bytes(model, job.micro_tokens, job.row_length, element, kernel))
    per_logit = 2 * FLOAT32_BYTES + (HALF_BYTES if job.half else 0)
    gathered = 0.0
    if sharded:
        outside = count.embedding + count.head
        block = block_parameters(job.model)
        # the block at work, the one fetched ahead, and what stands outside of the blocks; the
        # gradients of one block while they are summed
        gathered = job.gather_bytes * (2 * block + outside)
        gathered += job.reduce_bytes * max(2 * block, outside)
        if job.accumulation > 1 and not job.sync_each:  # whole gradients until the last one
            gathered += FLOAT32_BYTES * count.total
    elif job.parallel == "ddp" and cluster.count > 1:
        gathered = 2 * 25 * 2.0**20  # DDP's buckets in flight; gradients are views into buckets
    if job.half and not (sharded and job.gather_bytes == HALF_BYTES):
        # autocast rounds each weight once and keeps the copy until the pass is over, whole also
        # where the weight itself is a shard
        activations += HALF_BYTES * count.multiplied
    states = FLOAT32_BYTES * count.total / shards
    optimizer = optimizer_bytes(count, job.optimizer, momentum) / shards
    logits = float(job.micro_tokens) * job.model.vocab_size * per_logit
    planned = 2 * states + optimizer + gathered + activations + logits
    return RankMemory(
        weights=states, gradients=states, optimizer=optimizer, gathered=gathered,
        activations=activations, logits=logits, slack=SLACK * planned,
        reserved=float(cluster.accelerator.reserved_bytes),
    )  # fmt: skip


def verdict(memory: RankMemory, chip: Accelerator) -> str:
    """How `memory` stands to the device's: "impossible", "too large", "close" or "fits".

    "impossible" is certain; "too large" is what the estimate says, which may be a fifth off.
    """
    if memory.certain > chip.memory_bytes:
        return "impossible"
    if memory.total > chip.memory_bytes:
        return "too large"
    return "close" if memory.total > CLOSE_SHARE * chip.memory_bytes else "fits"
