"""The models that are measured, each in our words and in those of the peers."""

from __future__ import annotations

from typing import Any

from benchmarks.corpus import ROW_LENGTH, VOCAB_SIZE
from llm_trainer.config.model import ModelConfig

BATCH_SIZE = 16


def llama_a() -> ModelConfig:
    """Shape A as a Llama: 6 layers of 256, 4 heads, tied, 5.8 million parameters."""
    return ModelConfig(
        vocab_size=VOCAB_SIZE, d_model=256, n_heads=4, n_layers=6, d_ff=688,
        max_seq_len=ROW_LENGTH, dropout=0.0, attention_dropout=0.0, activation="swiglu",
        norm="rmsnorm", position="rope", tie_embeddings=True, bias=False,
    )  # fmt: skip


def hf_llama(config: ModelConfig) -> Any:
    """The same shape as transformers spells it."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model,
        intermediate_size=config.d_ff, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_seq_len, rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings, attention_dropout=0.0,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip


def hf_gpt2(config: ModelConfig) -> Any:
    """GPT-2 of the same depth, width and heads, feed-forward of 4 x width."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_seq_len, n_embd=config.d_model,
        n_layer=config.n_layers, n_head=config.n_heads, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
