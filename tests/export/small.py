"""Small models for the tests of the export, every vector of them random too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llm_trainer.models import TransformerLM
from tests.utils.tiny_text_model import tiny_text_model, tiny_tokenizer

GPT: dict[str, Any] = {"norm": "layernorm", "activation": "gelu", "bias": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # what tiny_text_model is: rmsnorm, rope, swiglu, no biases, untied
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied-gqa": ("LlamaForCausalLM", {"tie_embeddings": True, "n_kv_heads": 2}),
    "llama-bias-geglu": ("LlamaForCausalLM", {"bias": True, "activation": "geglu"}),
    "llama-theta": ("LlamaForCausalLM", {"rope_theta": 500.0, "norm_eps": 0.01, "n_kv_heads": 1}),
    "llama-feed-forward-bias": ("LlamaForCausalLM", {"bias": True, "attention_bias": False}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
    "qwen3-bias": (
        "Qwen3ForCausalLM",
        {
            "qk_norm": True,
            "attention_bias": True,
            "previous_token_heads": 2,
            "induction_head": True,
        },
    ),
    "qwen3-tied-gqa": (
        "Qwen3ForCausalLM",
        {"qk_norm": True, "tie_embeddings": True, "n_kv_heads": 2, "activation": "geglu"},
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", GPT),
    "gpt-neox-theta": ("GPTNeoXForCausalLM", GPT | {"rope_theta": 500.0, "norm_eps": 0.01}),
    "gpt-neox-tied-no-bias": (
        "GPTNeoXForCausalLM",
        GPT | {"bias": False, "tie_embeddings": True, "activation": "relu2"},
    ),
    "gpt-neox-attention-bias": (
        "GPTNeoXForCausalLM",
        GPT | {"bias": False, "attention_bias": True, "activation": "silu"},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT | {"use_learned_pos_emb": True, "tie_embeddings": True}),
    "gpt2-untied-no-bias": (
        "GPT2LMHeadModel",
        GPT | {"position": "learned", "bias": False, "activation": "relu"},
    ),
    "gpt2-silu": ("GPT2LMHeadModel", GPT | {"position": "learned", "activation": "silu"}),
}


def small_model(**changes: Any) -> TransformerLM:
    """A random model whose norms and biases are no ones and zeros either."""
    model = tiny_text_model(**changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(float(name.endswith("weight")), 0.3, generator=generator)
    return model


def save(model: TransformerLM, directory: Path) -> Path:
    """A model directory with its tokenizer, as training leaves it."""
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory / "tokenizer")
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """File name -> bytes."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
