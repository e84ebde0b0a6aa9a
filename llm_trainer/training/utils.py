"""Small helpers around a training run: seeds, devices, logging, plain checkpoints, memory."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import torch
from torch.optim import Optimizer

from llm_trainer.config.checks import instance, place, refuse, text, whole
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.checkpoint import read_checkpoint, restore
from llm_trainer.training.checkpoint import save_checkpoint as write_checkpoint
from llm_trainer.training.state import TrainerState
from llm_trainer.utils.device import get_device as get_device


def set_seed(seed: int) -> None:
    """Seed the generators of Python, numpy and torch (all devices).

    Raises:
        ConfigurationError: no whole number from 0 to below 2**63.
    """
    refuse(ConfigurationError, whole("seed", seed, 0, 2**63 - 1))
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is what libraries draw from
    torch.manual_seed(seed)


def setup_logging(level: str = "info") -> None:
    """Log to stderr from `level` on: debug, info, warning, error or critical.

    Raises:
        ConfigurationError: an unknown level.
    """
    refuse(ConfigurationError, text("level", level, empty=False))
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigurationError(
            f"level ({level!r}) of logging must be debug, info, warning, error or critical"
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger().setLevel(number)


def save_checkpoint(
    model: TransformerLM, optimizer: Optimizer, step: int, checkpoint_dir: str | Path
) -> Path:
    """Write `checkpoint-<step>` under `checkpoint_dir` atomically and return its path.

    For loops of your own; `Trainer` keeps its position and identity in its checkpoints too.

    Raises:
        LLMTrainerError: no space or no permission.
    """
    refuse(
        ConfigurationError,
        instance("model", model, TransformerLM),
        instance("optimizer", optimizer, Optimizer),
        whole("step", step, 0),
        place("checkpoint_dir", checkpoint_dir),
    )
    state = TrainerState(step=step)
    return write_checkpoint(
        Path(checkpoint_dir), model, optimizer, state, identity={}, environment={}
    )


def load_checkpoint(checkpoint_path: str | Path, model: TransformerLM, optimizer: Optimizer) -> int:
    """Load weights and optimizer state from a checkpoint directory; return its step.

    Learning rate and weight decay stay those of `optimizer`.

    Raises:
        CheckpointError: there is no such checkpoint.
        IntegrityError: it is damaged, or does not fit the model.
    """
    refuse(
        ConfigurationError,
        place("checkpoint_path", checkpoint_path),
        instance("model", model, TransformerLM),
        instance("optimizer", optimizer, Optimizer),
    )
    checkpoint = read_checkpoint(Path(checkpoint_path))
    restore(checkpoint, model, optimizer)
    return checkpoint.state.step


def get_memory_usage() -> dict[str, float]:
    """Memory in use, in MiB: resident set of the process, and of CUDA where there is any."""
    import psutil

    usage = {
        "process_mb": psutil.Process().memory_info().rss / 2**20,
        "available_mb": psutil.virtual_memory().available / 2**20,
    }
    if torch.cuda.is_available():
        usage["cuda_allocated_mb"] = torch.cuda.memory_allocated() / 2**20
        usage["cuda_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return usage
