"""Which way the processes share the work of a step, and whether it can be done exactly."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from llm_trainer.config.model import ModelConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.distributed import World
from llm_trainer.training.execution import Execution
from llm_trainer.training.one_process import OneProcess
from llm_trainer.training.reduction import is_power_of_two
from llm_trainer.utils.memory import COMFORTABLE, FLOAT32_BYTES, optimizer_bytes
from llm_trainer.utils.parameters import count_parameters
from llm_trainer.utils.present import present_memory

logger = logging.getLogger(__name__)

Way = Literal["none", "ddp", "fsdp"]


def choose_way(
    config: TrainingConfig, model: ModelConfig, world: World, device: torch.device
) -> Way:
    """What `parallel` comes to.

    Raises:
        ConfigurationError: `hybrid_shard`, float16 or `deterministic_reduction` cannot be had.
    """
    if world.size == 1:
        return "none"
    way: Way = "ddp"
    if config.parallel == "auto":
        count = count_parameters(model)
        needed = 2 * FLOAT32_BYTES * count.total + optimizer_bytes(
            count, config.optimizer, config.momentum
        )
        there = _memory(device, world.local_size)
        way = world.share("fsdp" if needed > COMFORTABLE * there else "ddp")
        logger.info(
            "parallel: auto: %s, for %.1f GiB of weights, gradients and optimizer, and %.1f GiB "
            "a process", way, needed / 2**30, there / 2**30,
        )  # fmt: skip
    else:
        way = config.parallel
    problems = _problems(config, way, world, device)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return way


def make_way(
    way: Way, model: TransformerLM, config: TrainingConfig, execution: Execution, world: World
) -> OneProcess:
    """Prepare the model for it: wrapped, or cut into shards."""
    if way == "none":
        return OneProcess(model, config, execution, world)
    if way == "fsdp":
        from llm_trainer.training.sharding import Shards

        return Shards(model, config, execution, world)
    from llm_trainer.training.replicas import Replicas, TreeReplicas

    kind = TreeReplicas if config.deterministic_reduction else Replicas
    return kind(model, config, execution, world)


def _memory(device: torch.device, local_size: int) -> int:
    """Bytes that a process of this machine may use."""
    there = present_memory(device)
    return there if device.type == "cuda" else there // local_size


def _problems(config: TrainingConfig, way: Way, world: World, device: torch.device) -> list[str]:
    found = []
    machines = 1
    if config.hybrid_shard and way != "fsdp":
        found.append("hybrid_shard shards within a machine, so it needs parallel: fsdp")
    elif config.hybrid_shard:
        if world.size % world.local_size:
            found.append(
                f"hybrid_shard needs as many processes on each machine; {world.size} are not a "
                f"multiple of {world.local_size}"
            )
        machines = world.size // world.local_size
    if way == "fsdp" and device.type == "cuda" and config.use_amp and config.amp_dtype == "float16":
        found.append("amp_dtype: float16 cannot be used with parallel: fsdp; use bfloat16")
    if config.deterministic_reduction:
        found += _order_problems(config, way, world, machines)
    return found


def _order_problems(config: TrainingConfig, way: Way, world: World, machines: int) -> list[str]:
    """Why the ranks' sums are no nodes of the tree over micro-batches; see `reduction`."""
    share = config.micro_batches_per_step // world.size
    if machines > 2:
        return [
            f"deterministic_reduction with hybrid_shard is for two machines, not {machines}; set "
            f"hybrid_shard: false"
        ]
    if way == "ddp" and not is_power_of_two(share):
        return [
            f"deterministic_reduction: {share} micro-batches for each process cannot be added in "
            f"an order of their own; under ddp their number must be a power of two, so set "
            f"gradient_accumulation_steps * world_size to {world.size} times one"
        ]
    if way == "fsdp" and not is_power_of_two(world.size) and (share > 1 or machines > 1):
        return [
            f"deterministic_reduction: under fsdp the number of processes ({world.size}) must be a "
            f"power of two, or gradient_accumulation_steps * world_size equal to it"
        ]
    return []
