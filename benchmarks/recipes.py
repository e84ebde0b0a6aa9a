"""The settings that are measured: the pipeline's own, and those of the peers.

What `benchmarks.peer_tries` measured of the peers' settings stands in docs/performance.md.
"""

from __future__ import annotations

from typing import Any

from benchmarks.corpus import VOCAB_SIZE
from pipeline.params import load_params

GPT2_QUALITY = {
    "width": 192, "heads": 3, "layers": 2, "batch_size": 4, "learning_rate": 2e-3, "seconds": 300,
}  # fmt: skip
"""The GPT-2 loop in time to quality: of the best two of `peer_tries` the larger, for its longer
time."""
TRY_SECONDS = 100
"""What each setting of the GPT-2 loop is given when several are tried."""
QUICK_STEPS = 150
"""Steps in which the pipeline's recipe reaches what GPT-2 reaches in 300 s."""

_BF16 = {"bf16": True, "optim": "adamw_torch_fused"}
HF_TRAINER: dict[str, dict[str, Any]] = {
    "Llama, bf16": {"layout": "llama", "training": _BF16},
    "Llama, bf16, attention written out": {
        "layout": "llama", "training": _BF16, "model": {"attn_implementation": "eager"},
    },
    "Llama, bf16, compiled": {"layout": "llama", "training": {**_BF16, "torch_compile": True}},
    "Llama, bf16, compiled, attention written out": {
        "layout": "llama", "training": {**_BF16, "torch_compile": True},
        "model": {"attn_implementation": "eager"},
    },
    "GPT-2, bf16": {"layout": "gpt2", "training": _BF16},
    "GPT-2, bf16, compiled": {"layout": "gpt2", "training": {**_BF16, "torch_compile": True}},
}  # fmt: skip
_STATIC = {"generate": {"cache_implementation": "static"}, "compile": True}
HF_GENERATE: dict[str, dict[str, Any]] = {
    "Llama": {"layout": "llama"},
    "Llama, bf16": {"layout": "llama", "dtype": "bfloat16"},
    "Llama, static cache, compiled": {"layout": "llama", **_STATIC},
    "Llama, bf16, static cache, compiled": {"layout": "llama", "dtype": "bfloat16", **_STATIC},
    "GPT-2": {"layout": "gpt2"},
    "GPT-2, bf16": {"layout": "gpt2", "dtype": "bfloat16"},
}


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
