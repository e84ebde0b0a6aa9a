"""Which device to compute on."""

from __future__ import annotations

import os

import torch

from llm_trainer.exceptions import ConfigurationError


def get_device(name: str = "auto") -> torch.device:
    """The device of that name; auto takes cuda, then mps, then cpu.

    Raises:
        ConfigurationError: not a device, or one that is not here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(
            f"device ({name!r}) is not a torch device; use auto, cpu, cuda, cuda:1 or mps"
        ) from None
    available = {"cpu": True, "cuda": torch.cuda.is_available()}
    available["mps"] = torch.backends.mps.is_available()
    if not available.get(device.type, False):
        raise ConfigurationError(f"device ({name!r}) is not available here; use auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device ({name!r}): there are only {torch.cuda.device_count()} CUDA devices"
        )
    return device
