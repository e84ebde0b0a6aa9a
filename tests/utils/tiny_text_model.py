"""A tokenizer trained in process and a small random model that goes with it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from llm_trainer.config import ModelConfig
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "for name in names:\n    print(name)\n",
    "naïve café, 你好, Ελλάδα, 🙂🚀 and more\n",
    "the quick brown fox jumps over the lazy dog\n",
] * 3


@cache
def tiny_tokenizer(vocab_size: int = 300) -> BPETokenizer:
    tokenizer = BPETokenizer()
    tokenizer.train(TEXTS, vocab_size)
    return tokenizer


def tiny_text_model(seed: int = 0, **changes: Any) -> TransformerLM:
    """Two layers of 32 features with large random weights, so that its choices are clear."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size, "d_model": 32, "n_heads": 4, "n_layers": 2,
        "d_ff": 64, "max_seq_len": 128, "init_std": 0.3, "dropout": 0.0, "attention_dropout": 0.0,
        "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tie_embeddings": False,
    }  # fmt: skip
    model = TransformerLM(ModelConfig(**(values | changes))).eval()
    model.tokenizer_digest = tokenizer.digest
    return model


def greedy(**changes: object) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 30, "temperature": 0.0} | changes)
