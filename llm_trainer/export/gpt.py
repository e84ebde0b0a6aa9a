"""GPT-NeoX and GPT-2: LayerNorm and a plain feed-forward layer; rotary or learned positions.

GPT-NeoX here is the sequential form (`use_parallel_residual: false`) with all of each head
rotated. Both have biases throughout: for a model without, they are written as zeros, which changes
no sum. GPT-2's matrices lie transposed (Conv1D), and each head of GPT-NeoX has its query, key and
value side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from llm_trainer.config.model import ModelConfig
from llm_trainer.export.foreign import ForeignConfig
from llm_trainer.export.layout import Biases, Layout, Names, reversed_names, unless
from llm_trainer.export.llama import initializer_range

logger = logging.getLogger(__name__)

_ACTIVATIONS = {name: name for name in ("gelu", "relu", "relu2", "silu")}
_THEIR_ACTIVATIONS = reversed_names(_ACTIVATIONS, swish="silu")


def _problems(config: ModelConfig, position: str) -> list[str]:
    found: list[str] = []
    unless(found, "norm", config.norm, ("layernorm",))
    unless(found, "position", config.position_kind, (position,))
    unless(found, "activation", config.activation, tuple(_ACTIVATIONS))
    unless(found, "pre_norm", config.pre_norm, (True,))
    unless(found, "qk_norm", config.qk_norm, (False,))
    unless(found, "n_kv_heads", config.num_kv_heads, (config.n_heads,))
    return found


class GPTNeoX(Layout):
    """GPTNeoXForCausalLM."""

    name = "GPT-NeoX"
    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    prefix = "gpt_neox."
    qkv_form = "by_head"
    # transformers 4 wrote embed_out, 5 reads both
    renamed: ClassVar[Mapping[str, str]] = {"lm_head.weight": "embed_out.weight"}
    ignored = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    names = Names(
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        block="gpt_neox.layers.{}.",
        attention_norm="input_layernorm",
        qkv=("attention.query_key_value",),
        out="attention.dense",
        feed_forward_norm="post_attention_layernorm",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
    )

    def problems(self, config: ModelConfig) -> list[str]:
        """See `Layout`."""
        return _problems(config, "rope")

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        """See `Layout`."""
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "intermediate_size": config.d_ff,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "hidden_act": _ACTIVATIONS[config.activation],
            "max_position_embeddings": config.max_seq_len,
            "layer_norm_eps": config.norm_eps,
            "use_parallel_residual": False,
            # transformers 5 reads rope_parameters, 4 and many others the two keys after it
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "partial_rotary_factor": 1.0,
            },
            "rotary_emb_base": config.rope_theta,
            "rotary_pct": 1.0,
            "tie_word_embeddings": config.tie_embeddings,
            "attention_bias": True,
            "attention_dropout": config.attention_dropout,
            "hidden_dropout": config.dropout,
            **initializer_range(config),
        }

    def read_fields(self, foreign: ForeignConfig) -> dict[str, Any]:
        """See `Layout`."""
        foreign.require(
            "use_parallel_residual",
            False,
            True,
            "here the feed-forward layer comes after attention",
        )
        has_attention_bias = foreign.flag("attention_bias", True)
        return {
            "vocab_size": foreign.whole("vocab_size"),
            "d_model": foreign.whole("hidden_size"),
            "n_heads": foreign.whole("num_attention_heads"),
            "n_layers": foreign.whole("num_hidden_layers"),
            "d_ff": foreign.whole("intermediate_size"),
            "max_seq_len": foreign.positions("max_position_embeddings", 2048),
            "dropout": foreign.number("hidden_dropout", 0.0),
            "attention_dropout": foreign.number("attention_dropout", 0.0),
            "activation": foreign.choice("hidden_act", "gelu", _THEIR_ACTIVATIONS),
            "norm": "layernorm",
            "position": "rope",
            "tie_embeddings": foreign.flag("tie_word_embeddings", False),
            "bias": True,
            "attention_bias": None if has_attention_bias else False,
            "rope_theta": foreign.rope_theta(
                base_key="rotary_emb_base", share_key="rotary_pct", share=0.25
            ),
            "norm_eps": foreign.number("layer_norm_eps", 1e-5),
            "init_std": foreign.number("initializer_range", 0.02),
        }

    def biases(self, values: Mapping[str, Any]) -> Biases:
        """See `Layout`."""
        return Biases(values.get("attention_bias") is not False, feed_forward=True, norm=True)


class GPT2(Layout):
    """GPT2LMHeadModel."""

    name = "GPT-2"
    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    linear_form = "transposed"
    qkv_form = "transposed"
    ignored = (".attn.bias", ".attn.masked_bias")
    names = Names(
        embedding="transformer.wte",
        position="transformer.wpe",
        final_norm="transformer.ln_f",
        head="lm_head",
        block="transformer.h.{}.",
        attention_norm="ln_1",
        qkv=("attn.c_attn",),
        out="attn.c_proj",
        feed_forward_norm="ln_2",
        up=("mlp.c_fc",),
        down="mlp.c_proj",
    )

    def problems(self, config: ModelConfig) -> list[str]:
        """See `Layout`."""
        return _problems(config, "learned")

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        """See `Layout`."""
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.max_seq_len,
            "n_ctx": config.max_seq_len,  # of old releases; converters read it
            "n_embd": config.d_model,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.d_ff,
            "activation_function": _ACTIVATIONS[config.activation],
            "layer_norm_epsilon": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "attn_pdrop": config.attention_dropout,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            **initializer_range(config),
        }

    def read_fields(self, foreign: ForeignConfig) -> dict[str, Any]:
        """See `Layout`."""
        reason = "here scores are divided by the square root of the head's width"
        foreign.require("scale_attn_weights", True, True, reason)
        foreign.require("scale_attn_by_inverse_layer_idx", False, False, reason)
        foreign.require("add_cross_attention", False, False, "there is no encoder here")
        width = foreign.whole("n_embd", 768)
        dropout = foreign.number("resid_pdrop", 0.1)
        embedding_dropout = foreign.number("embd_pdrop", 0.1)
        if embedding_dropout != dropout:
            logger.warning(
                "%s: embd_pdrop (%s) becomes resid_pdrop (%s): there is one dropout here",
                foreign.where, embedding_dropout, dropout,
            )  # fmt: skip
        return {
            "vocab_size": foreign.whole("vocab_size", 50257),
            "d_model": width,
            "n_heads": foreign.whole("n_head", 12),
            "n_layers": foreign.whole("n_layer", 12),
            "d_ff": foreign.whole("n_inner", 4 * width),
            "max_seq_len": foreign.positions("n_positions", 1024),
            "dropout": dropout,
            "attention_dropout": foreign.number("attn_pdrop", 0.1),
            "activation": foreign.choice("activation_function", "gelu_new", _THEIR_ACTIVATIONS),
            "norm": "layernorm",
            "position": "learned",
            "tie_embeddings": foreign.flag("tie_word_embeddings", True),
            "bias": True,
            "norm_eps": foreign.number("layer_norm_epsilon", 1e-5),
            "init_std": foreign.number("initializer_range", 0.02),
        }

    def biases(self, values: Mapping[str, Any]) -> Biases:  # noqa: ARG002 - it has no choice
        """See `Layout`."""
        return Biases(attention=True, feed_forward=True, norm=True)
