"""The identity of a run: a digest of everything that its result depends on.

Two runs with equal fingerprints end in the same bytes (on the same instruction set, torch build and
thread count), so one may continue, or stand for, the other. Intervals of saving and logging, places
and trackers are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.config.experiment import RUNTIME_ONLY
from llm_trainer.digests import digest_json, sha256_file


def result_params(model: ModelConfig, training: TrainingConfig) -> dict[str, dict[str, Any]]:
    """The configuration that a trained model depends on, by section.

    How many processes share the micro-batches of a step changes nothing: all count as one's.
    """
    values = {k: v for k, v in training.to_dict().items() if k not in RUNTIME_ONLY}
    values["gradient_accumulation_steps"] = training.micro_batches_per_step
    return {"model": model.to_dict(), "training": values}


def code_digests(modules: list[str], root: Path) -> dict[str, str]:
    """Path -> sha256 of each source file, relative to `root`."""
    return {name: sha256_file(root / name) for name in sorted(modules)}


def run_fingerprint(
    params: Mapping[str, Any],
    *,
    packed_digest: str,
    tokenizer_digest: str,
    code: Mapping[str, str],
) -> str:
    """Hex digest of configuration, data, tokenizer and code."""
    return digest_json(
        {
            "params": params,
            "packed": packed_digest,
            "tokenizer": tokenizer_digest,
            "code": dict(code),
        }
    )
