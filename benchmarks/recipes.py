"""The settings that are measured: the pipeline's own, and those of the peers.

How many settings were tried for each stands in docs/performance.md.
"""

from __future__ import annotations

from typing import Any

from benchmarks.corpus import VOCAB_SIZE
from pipeline.params import load_params

GPT2 = {"width": 256, "heads": 4, "layers": 6}
"""Shape A as GPT-2."""
GPT2_QUALITY = {**GPT2, "batch_size": 4, "learning_rate": 1e-3, "seconds": 300}
"""The peer's best setting for 300 s."""
QUICK_STEPS = 46
"""Steps in which the pipeline's recipe reaches what GPT-2 reaches in 300 s."""


def default_recipe() -> dict[str, Any]:
    """Model and training of params.yaml."""
    params = load_params()
    model = params.model.to_dict() | {"vocab_size": VOCAB_SIZE}
    return {"model": model, "training": params.training.to_dict()}


def quick_recipe() -> dict[str, Any]:
    """The same for a tenth of the time, without stops on the way."""
    recipe = default_recipe()
    recipe["training"] |= {
        "max_steps": QUICK_STEPS, "eval_strategy": "no", "sample_steps": 0, "save_steps": 0,
        "report_to": ["jsonl"],
    }  # fmt: skip
    return recipe
