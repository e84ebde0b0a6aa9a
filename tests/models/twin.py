"""The same weights in a model of Hugging Face, for tests that compare whole generations."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from llm_trainer.config import ModelConfig
from llm_trainer.export import export_model
from llm_trainer.models import TransformerLM

LLAMA: dict[str, Any] = {
    "norm": "rmsnorm", "activation": "swiglu", "n_kv_heads": 2, "bias": False,
    "tie_embeddings": False,
}  # fmt: skip


def tiny_model(seed: int = 0, **changes: Any) -> TransformerLM:
    """Two layers of 32 features with large random weights, so that its logits differ clearly."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": 50, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 64,
        "max_seq_len": 64, "init_std": 0.3, "dropout": 0.0, "attention_dropout": 0.0, **LLAMA,
    }  # fmt: skip
    return TransformerLM(ModelConfig(**(values | changes))).eval()


def twin(ours: TransformerLM) -> Any:
    """What `transformers` makes of an export of `ours`; it knows no end token."""
    import transformers

    with TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        export_model((ours, None), out, verify=False)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    return theirs.eval()
