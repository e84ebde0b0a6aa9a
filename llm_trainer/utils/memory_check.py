"""Refuse, before any of it is taken, a training that cannot fit in the memory that is there.

Refused is only what is certain: weights, gradients and optimizer states, which are exact, with half
of what activations and logits are estimated at (`rank_memory.CERTAIN_SHARE`), are more than the
memory, on a CPU with its swap. What the whole estimate says does not fit, or only just, is a
warning. Of several processes the least demanding way to share the model counts.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_trainer.config.model import ModelConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import TrainingError
from llm_trainer.utils.planning import format_bytes
from llm_trainer.utils.present import present_cluster, present_swap
from llm_trainer.utils.rank_memory import verdict
from llm_trainer.utils.scale_plan import ScalePlan, configured, plan_scale

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def memory_plan(
    model: ModelConfig,
    training: TrainingConfig,
    row_length: int,
    device: torch.device,
    *,
    ranks: int = 1,
    per_node: int = 1,
) -> ScalePlan:
    """What training takes of the memory here, as the least demanding way to share it does."""
    cluster = present_cluster(device, 1e12, ranks, per_node)  # the speed does not matter here
    wanted = configured(training)
    return plan_scale(
        model, training, cluster, row_length, 1, parallel="fsdp" if wanted == "auto" else wanted
    )


def check_memory(
    model: ModelConfig,
    training: TrainingConfig,
    row_length: int,
    device: torch.device,
    *,
    ranks: int = 1,
    per_node: int = 1,
    warn: bool = True,
) -> None:
    """Refuse what cannot fit, and warn of what may not.

    Args:
        row_length: tokens of a row.
        ranks: processes that train together, `per_node` of them on this machine.
        warn: whether to warn of what is close.

    Raises:
        TrainingError: it cannot fit; the message names the nearest setting that does.
    """
    plan = memory_plan(model, training, row_length, device, ranks=ranks, per_node=per_node)
    chip = plan.cluster.accelerator
    most = replace(chip, memory_bytes=chip.memory_bytes + present_swap(device) // per_node)
    if verdict(plan.memory, most) == "impossible":
        raise TrainingError(plan.complaint())
    if warn and plan.verdict != "fits":
        logger.warning(
            "memory: training needs about %s of the %s here, so it may fail%s",
            format_bytes(plan.memory.total), format_bytes(chip.memory_bytes),
            f"; {plan.remedy}" if plan.remedy else "",
        )  # fmt: skip
