"""Where a run goes on: its lock, its checkpoints, and whether one of them is this very run's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import CheckpointError
from llm_trainer.locks import hold_lock
from llm_trainer.training import checkpoint as checkpoints
from llm_trainer.training.batches import BatchStream
from llm_trainer.training.distributed import World
from llm_trainer.training.ranks import Ranks
from llm_trainer.training.state import TrainerState

logger = logging.getLogger(__name__)


@contextmanager
def locked(directory: Path, world: World) -> Iterator[None]:
    """Hold the lock of a checkpoint directory in the body; rank 0 holds it for all.

    Raises:
        LockHeldError: another process trains there.
    """
    with ExitStack() as held:

        def lock() -> None:
            held.enter_context(hold_lock(directory / "lock", "train"))

        world.first(lock)
        yield


def find_checkpoint(
    directory: Path, resume_from: str | Path | None, world: World, ranks: Ranks
) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from, verified; None to start afresh, others moved aside.

    Raises:
        CheckpointError, IntegrityError: a named one is not there, or damaged.
    """

    def clear() -> None:
        checkpoints.recover_checkpoints(directory)
        if resume_from is None and checkpoints.list_checkpoints(directory):
            aside = checkpoints.move_aside(directory)
            logger.warning("checkpoints of an earlier run in %s were moved to %s", directory, aside)

    world.first(clear)
    if resume_from == "auto":
        return checkpoints.newest_checkpoint(directory, ranks)
    return None if resume_from is None else checkpoints.read_checkpoint(Path(resume_from), ranks)


def require_newest(directory: Path, ranks: Ranks) -> checkpoints.Checkpoint:
    """The newest whole checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    newest = checkpoints.newest_checkpoint(directory, ranks)
    if newest is None:
        raise CheckpointError(f"{directory}: holds no whole checkpoint; train first")
    return newest


def run_identity(
    model: dict[str, Any], config: TrainingConfig, data: str | None, tokenizer: str
) -> dict[str, Any]:
    """What makes a run itself: two runs with equal identities have equal results.

    How many processes share the micro-batches of a step is no part of it.
    """
    training = config.to_dict()
    for name in ("parallel", "hybrid_shard", "activation_checkpointing"):
        del training[name]
    training["gradient_accumulation_steps"] = config.micro_batches_per_step
    training |= {"world_size": 1, "local_rank": -1}
    return {"model": model, "training": training, "data": data, "tokenizer": tokenizer}


def at_step_start(state: TrainerState, config: TrainingConfig, stream: BatchStream) -> TrainerState:
    """Go back to the beginning of the step: partial gradients of one process are nobody's else."""
    first = state.step * config.micro_batches_per_step
    done = range(first, first + state.micro_step)
    state.tokens -= sum(stream.load(number).input_ids.numel() for number in done)
    state.micro_step, state.partial_loss = 0, 0.0
    return state
