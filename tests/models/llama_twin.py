"""The same weights as a Hugging Face Llama, for tests that compare whole generations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_trainer.config import ModelConfig
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


def llama_twin(ours: TransformerLM) -> Any:
    """A `LlamaForCausalLM` with the weights of `ours`."""
    import transformers

    c = ours.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ff,
        num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.num_kv_heads, head_dim=c.d_head,
        max_position_embeddings=c.max_seq_len, rms_norm_eps=c.norm_eps, rope_theta=c.rope_theta,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()

    def parts(fused: Tensor, *rows: int) -> list[Tensor]:
        return list(fused.split(list(rows)))

    state = {
        "model.embed_tokens.weight": ours.embedding.weight,
        "model.norm.weight": ours.final_norm.weight,
        "lm_head.weight": ours.head.weight,
    }
    heads = [n * c.d_head for n in (c.n_heads, c.num_kv_heads, c.num_kv_heads)]
    for i, block in enumerate(ours.blocks):
        layer = f"model.layers.{i}"
        names = [f"{layer}.self_attn.{x}_proj.weight" for x in "qkv"]
        state |= dict(zip(names, parts(block.attention.qkv.weight, *heads), strict=True))
        names = [f"{layer}.mlp.{x}_proj.weight" for x in ("gate", "up")]
        state |= dict(zip(names, parts(block.feed_forward.up.weight, c.d_ff, c.d_ff), strict=True))
        state[f"{layer}.self_attn.o_proj.weight"] = block.attention.out.weight
        state[f"{layer}.mlp.down_proj.weight"] = block.feed_forward.down.weight
        state[f"{layer}.input_layernorm.weight"] = block.attention_norm.weight
        state[f"{layer}.post_attention_layernorm.weight"] = block.feed_forward_norm.weight
    theirs.load_state_dict(state)
    return theirs
