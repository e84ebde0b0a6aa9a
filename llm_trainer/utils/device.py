"""Which device to compute on."""

from __future__ import annotations

import os

import torch

from llm_trainer.models.checks import usable_device


def get_device(name: torch.device | str = "auto") -> torch.device:
    """The device of that name; auto takes cuda, then mps, then cpu.

    Raises:
        ConfigurationError: not a device, or one that is not here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    return usable_device(name)
