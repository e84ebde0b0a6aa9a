"""How long an optimizer step takes, part by part, from shapes and a cluster's data sheet.

Compute is an additive roofline: each product of (m, k) by (k, n) takes 2 m k n / (share x peak)
plus the bytes of its three matrices over the memory's bandwidth, so that small matrices reach less
of the peak by themselves (after Williams, Waterman and Patterson 2009). What lies between the
products (norms, activations, dropout, rotations) only moves bytes: the tensors that the backward
pass keeps (Korthikanti et al. 2022), each touched TRAFFIC times. Collectives overlap with compute
block by block as DDP and FSDP2 arrange them (`exposed_communication`).

Not in it: tensor, pipeline and expert parallelism, which this project does not have; kernels that
run slower on some shapes; clocks that fall under load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llm_trainer.config.model import ModelConfig
from llm_trainer.utils import collectives
from llm_trainer.utils.hardware import Accelerator, Cluster, Link
from llm_trainer.utils.memory import FLOAT32_BYTES, HALF_BYTES, activation_bytes
from llm_trainer.utils.parameters import count_parameters, flops_per_token

Parallel = Literal["none", "ddp", "fsdp", "hybrid"]

TRAFFIC = 9.0
"""How often each kept byte is moved by kernels that are not fused, forward and backward. With
ATTENTION_SHARE chosen on the A100-80GB rows of llm-foundry; all other rows only check them."""
FUSED_SHARE = 0.4
"""Share of that traffic that a compiled step has left; assumed, checked on torchtitan's pair."""
ATTENTION_SHARE = 0.45
"""Speed of fused attention against that of large products."""
NEWTON_SCHULZ_STEPS = 5
ADAM_BYTES = 28
"""Read weight, gradient and two moments, write weight and moments: 7 numbers of float32."""
KERNELS_PER_LAYER = 60
"""Kernels of one layer, forward and backward, in eager mode; for a fixed cost of each."""
KERNELS_FUSED = 20
"""The same of a compiled step."""
KERNELS_OF_MUON = 20
"""Kernels of Muon for the matrices of one layer, which go through it in batches of equal shape."""


@dataclass(frozen=True)
class Job:
    """What one rank does in one optimizer step."""

    model: ModelConfig
    batch_size: int
    """Rows of a micro-batch."""
    row_length: int
    """Tokens of a row."""
    accumulation: int = 1
    """Micro-batches of one rank in a step."""
    optimizer: str = "adamw"
    parallel: Parallel = "none"
    recompute: bool = False
    """Activation checkpointing: the forward pass of each block is done again."""
    flash: bool = True
    """Fused attention, which keeps no (time x time) weights and skips what the mask hides."""
    half: bool = True
    """Products in bfloat16; otherwise float32, at half the speed."""
    gather_bytes: int = FLOAT32_BYTES
    """Bytes of a number that FSDP gathers: 4, or 2 with a bfloat16 copy of the shards."""
    reduce_bytes: int = FLOAT32_BYTES
    """Bytes of a number of gradients that are summed over ranks."""
    sync_each: bool = False
    """Sum gradients over ranks after each micro-batch instead of after the last one only; hybrid
    sharding sums over nodes after the last one in any case."""
    spread_optimizer: bool = False
    """Whether Muon's orthogonalisations are shared out over ranks, instead of done by each."""
    fused: bool = True
    """A compiled step, which keeps and moves less between the products."""

    @property
    def micro_tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.batch_size * self.row_length

    @property
    def tokens(self) -> int:
        """Tokens of one rank in one step."""
        return self.micro_tokens * self.accumulation


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step of one rank."""

    attention: float
    """Products of queries, keys and values with each other."""
    projections: float
    """Query, key, value and output projections."""
    mlp: float
    head: float
    """Output matrix and loss."""
    elementwise: float
    """Everything between the products, embedding included."""
    recompute: float
    optimizer: float
    communication: float
    """All collectives, hidden or not."""
    exposed: float
    """The part of them that compute does not hide."""
    useful_flops: float
    """Of one rank, by `flops_per_token`."""
    peak_flops: float

    @property
    def compute(self) -> float:
        """Forward and backward passes alone."""
        parts = (self.attention, self.projections, self.mlp, self.head, self.elementwise)
        return sum(parts) + self.recompute

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.optimizer + self.exposed

    @property
    def mfu(self) -> float:
        """Useful share of the peak (Chowdhery et al. 2022)."""
        return self.useful_flops / (self.total * self.peak_flops)


def step_time(job: Job, cluster: Cluster) -> StepTime:
    """Time of one optimizer step of `job` on each rank of `cluster`."""
    chip = cluster.accelerator
    blocks = block_seconds(job, chip)
    layers, passes = job.model.n_layers, job.accumulation
    recompute = layers * sum(blocks.values()) / 3 if job.recompute else 0.0
    head, elementwise = outer_seconds(job, chip)
    communication, exposed = exposed_communication(job, cluster, blocks, head + elementwise)
    return StepTime(
        attention=passes * layers * blocks["attention"],
        projections=passes * layers * blocks["projections"],
        mlp=passes * layers * blocks["mlp"],
        head=passes * head,
        elementwise=passes * (layers * blocks["elementwise"] + elementwise),
        recompute=passes * recompute,
        optimizer=optimizer_seconds(job, cluster),
        communication=communication,
        exposed=exposed,
        useful_flops=float(job.tokens) * flops_per_token(job.model, job.row_length),
        peak_flops=chip.peak_flops,
    )


def product_seconds(m: int, k: int, n: int, job: Job, chip: Accelerator) -> float:
    """Seconds of (m, k) @ (k, n) and of the two products of its backward pass."""
    speed = chip.peak_flops * chip.matmul_share / (1 if job.half else 2)
    element = HALF_BYTES if job.half else FLOAT32_BYTES
    traffic = element * (m * k + k * n + m * n) / chip.memory_bandwidth
    return 3 * (2.0 * m * k * n / speed + traffic)


def block_seconds(job: Job, chip: Accelerator) -> dict[str, float]:
    """Seconds of one block, forward and backward, for one micro-batch, by part."""
    model, tokens, row = job.model, job.micro_tokens, job.row_length
    d_model, d_kv = model.d_model, model.num_kv_heads * model.d_head
    projections = product_seconds(tokens, d_model, d_model + 2 * d_kv, job, chip)
    projections += product_seconds(tokens, d_model, d_model, job, chip)
    inner = (2 if model.gated else 1) * model.d_ff
    mlp = product_seconds(tokens, d_model, inner, job, chip)
    mlp += product_seconds(tokens, model.d_ff, d_model, job, chip)
    # scores and sums forward, and backward twice that; fused kernels make the scores again (2.5
    # times) but only for the half of the square that a causal mask leaves
    square = 4.0 * tokens * row * model.n_heads * model.d_head
    speed = chip.peak_flops * chip.matmul_share * ATTENTION_SHARE / (1 if job.half else 2)
    attention = (3.5 * square / 2 if job.flash else 3 * square) / speed
    element = HALF_BYTES if job.half else FLOAT32_BYTES
    kept = _kept_bytes(job, element)
    kernels = KERNELS_FUSED if job.fused else KERNELS_PER_LAYER
    elementwise = TRAFFIC * kept / chip.memory_bandwidth + kernels * chip.kernel_seconds
    # a small model's kernels end before the next one is there
    waiting = kernels * chip.launch_seconds - (projections + mlp + attention + elementwise)
    elementwise += max(0.0, waiting)
    return {
        "attention": attention, "projections": projections, "mlp": mlp, "elementwise": elementwise,
    }  # fmt: skip


def _kept_bytes(job: Job, element: int) -> float:
    """Bytes that one block keeps for the backward pass; without what fusion removes."""
    kernel = "sdpa" if job.flash else "masked"
    plain = replace(job.model, gradient_checkpointing=False)
    more, less = (
        activation_bytes(replace(plain, n_layers=n), job.micro_tokens, job.row_length, element,
                         kernel)
        for n in (3, 2)
    )  # fmt: skip
    return (more - less) * (FUSED_SHARE if job.fused else 1.0)


def outer_seconds(job: Job, chip: Accelerator) -> tuple[float, float]:
    """Seconds of a micro-batch outside of the blocks: output matrix with its loss; embedding."""
    model, tokens = job.model, job.micro_tokens
    head = product_seconds(tokens, model.d_model, model.vocab_size, job, chip)
    logits = 3 * FLOAT32_BYTES * tokens * model.vocab_size / chip.memory_bandwidth
    embedding = 4 * FLOAT32_BYTES * tokens * model.d_model / chip.memory_bandwidth
    # the float32 weights are rounded to bfloat16 once a micro-batch
    cast = 6.0 * count_parameters(model).multiplied if job.half else 0.0
    return head + logits, embedding + cast / chip.memory_bandwidth


def optimizer_seconds(job: Job, cluster: Cluster) -> float:
    """Seconds of clipping and the update; shards update their own part only.

    AdamW moves ADAM_BYTES a parameter. Muon's Newton-Schulz iteration on an (r, c) matrix, r <= c,
    costs 5 (4 r^2 c + 2 r^3) operations (Jordan et al. 2024); it needs whole matrices, so every
    rank does all of them unless they are shared out.
    """
    chip, count = cluster.accelerator, count_parameters(job.model)
    sharded = shard_ranks(job, cluster)
    rest = count.total - (count.hidden_matrices if job.optimizer == "muon" else 0)
    moved = ADAM_BYTES * rest / sharded
    seconds = (moved + FLOAT32_BYTES * count.total / sharded) / chip.memory_bandwidth
    if job.optimizer == "muon":
        owners = 1
        if job.spread_optimizer and cluster.count > 1:
            owners = cluster.count if sharded == 1 else sharded
            link = cluster.intra if job.parallel == "hybrid" else cluster.ring
            size = HALF_BYTES * count.hidden_matrices  # there and, of shards, back again
            seconds += collectives.all_gather(size, owners, link) * (1 if sharded == 1 else 2)
        speed = chip.peak_flops * chip.matmul_share
        seconds += muon_flops(job.model) / owners / speed
        seconds += 20 * count.hidden_matrices / owners / chip.memory_bandwidth
        seconds += KERNELS_OF_MUON * chip.kernel_seconds
    return seconds


def muon_flops(model: ModelConfig) -> float:
    """Operations of orthogonalising all hidden matrices once."""
    d_model, d_kv, d_ff = model.d_model, model.num_kv_heads * model.d_head, model.d_ff
    shapes = [(d_model, d_model)] * 2 + [(d_kv, d_model)] * 2
    shapes += [(d_ff, d_model)] * (3 if model.gated else 2)
    total = 0.0
    for pair in shapes:
        rows, columns = sorted(pair)
        total += 4.0 * rows * rows * columns + 2.0 * rows**3
    return NEWTON_SCHULZ_STEPS * model.n_layers * total


def shard_ranks(job: Job, cluster: Cluster) -> int:
    """Over how many ranks each parameter is spread."""
    if job.parallel == "fsdp":
        return cluster.count
    return min(cluster.per_node, cluster.count) if job.parallel == "hybrid" else 1


# --------------------------------------------------------------------------- communication


def block_parameters(model: ModelConfig) -> float:
    """Parameters of one block."""
    count = count_parameters(model)
    return (count.attention + count.mlp + count.norms) / model.n_layers


def fsdp_times(job: Job, cluster: Cluster, parameters: float) -> tuple[float, float, float]:
    """Seconds to gather `parameters`, to reduce-scatter their gradients, and to sum over nodes.

    Hybrid sharding gathers and scatters within a node and adds an all-reduce of each shard
    between nodes (Zhao et al. 2023, "PyTorch FSDP", section 3.2.2).
    """
    ranks = shard_ranks(job, cluster)
    link: Link = cluster.ring if job.parallel == "fsdp" else cluster.intra
    gather = collectives.all_gather(job.gather_bytes * parameters, ranks, link)
    scatter = collectives.reduce_scatter(job.reduce_bytes * parameters, ranks, link)
    between = 0.0
    if job.parallel == "hybrid":
        between = collectives.node_all_reduce(job.reduce_bytes * parameters / ranks, cluster)
    return gather, scatter, between


def exposed_communication(
    job: Job, cluster: Cluster, blocks: dict[str, float], outer: float
) -> tuple[float, float]:
    """Seconds of all collectives of a step, and of the part that compute does not hide.

    DDP sums each bucket while earlier layers go backward, in the last micro-batch only: exposed is
    what is longer than that backward pass, and the last bucket. FSDP gathers each block's weights
    one block ahead, forward and again backward, and reduce-scatters gradients behind the backward
    pass (Rajbhandari et al. 2020, "ZeRO", section 7: 3 times the parameters' bytes in all): block
    for block the longer of compute and communication counts. `scale_simulation` plays the same
    event by event.
    """
    if job.parallel == "none" or cluster.count == 1:
        return 0.0, 0.0
    layers = job.model.n_layers
    forward = sum(blocks.values()) / 3
    backward = (3 if job.recompute else 2) * forward
    count = count_parameters(job.model)
    if job.parallel == "ddp":
        syncs = job.accumulation if job.sync_each else 1
        total = collectives.all_reduce(job.reduce_bytes * count.total, cluster.count, cluster.ring)
        bucket = total / (layers + 1)
        exposed = max(bucket, total - layers * backward)
        return syncs * total, syncs * exposed
    gather, scatter, between = fsdp_times(job, cluster, block_parameters(job.model))
    outside = count.embedding + count.head
    root_gather, root_scatter, root_between = fsdp_times(job, cluster, outside)
    exposed = total = 0.0
    for number in range(job.accumulation):
        last = number == job.accumulation - 1
        behind = (scatter if job.sync_each or last else 0.0) + (between if last else 0.0)
        root_behind = root_scatter if job.sync_each or last else 0.0
        root_behind += root_between if last else 0.0
        total += root_gather + layers * (2 * gather + behind) + root_behind
        # the root's weights and the first block's can hide behind nothing
        exposed += root_gather + gather + (layers - 1) * max(0.0, gather - forward)
        exposed += gather + (layers - 1) * max(0.0, gather + behind - backward)
        exposed += behind + max(0.0, root_behind - outer / 3)
    return total, exposed
