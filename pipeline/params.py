"""The one reader of `params.yaml`.

All sections are checked at once, also those of other stages: a mistake in `training` stops the run
before `download` starts, not an hour later. Reading is cheap: no torch, no network.
"""

from __future__ import annotations

from pathlib import Path

from llm_trainer.config import Experiment, load_experiment

PARAMS = Path("params.yaml")


def load_params(path: str | Path = PARAMS) -> Experiment:
    """Read and check the whole of `params.yaml`.

    Raises:
        ConfigurationError: one message with every problem: section, key, value, remedy.
    """
    return load_experiment(path)
