"""Llama and Qwen3: RMSNorm, rotary positions, a gated feed-forward layer; Qwen3 with QK-norm.

`hidden_act` is the activation of the gate: silu makes SwiGLU, gelu (the exact one) GeGLU. The
files have no dropout but that of the attention weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from llm_trainer.config.model import ModelConfig
from llm_trainer.export.foreign import ForeignConfig
from llm_trainer.export.layout import Biases, Layout, Names, reversed_names, unless

_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu"}


class Llama(Layout):
    """LlamaForCausalLM."""

    name = "Llama"
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    prefix = "model."
    ignored = (".rotary_emb.inv_freq",)
    names = Names(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        head="lm_head",
        block="model.layers.{}.",
        attention_norm="input_layernorm",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.o_proj",
        feed_forward_norm="post_attention_layernorm",
        up=("mlp.gate_proj", "mlp.up_proj"),
        down="mlp.down_proj",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
    )
    default_heads: ClassVar[int | None] = None
    """Key and value heads where the file does not say; None for as many as query heads."""
    default_positions: ClassVar[int] = 2048
    qk_norm: ClassVar[bool] = False

    def problems(self, config: ModelConfig) -> list[str]:
        """See `Layout`."""
        found: list[str] = []
        unless(found, "norm", config.norm, ("rmsnorm",))
        unless(found, "position", config.position_kind, ("rope",))
        unless(found, "activation", config.activation, tuple(_ACTIVATIONS))
        unless(found, "pre_norm", config.pre_norm, (True,))
        return found + self.own_problems(config)

    def own_problems(self, config: ModelConfig) -> list[str]:
        """What sets the two families apart."""
        found: list[str] = []
        unless(found, "qk_norm", config.qk_norm, (self.qk_norm,))
        return found

    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        """See `Layout`."""
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "intermediate_size": config.d_ff,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.d_head,
            "hidden_act": _ACTIVATIONS[config.activation],
            "max_position_embeddings": config.max_seq_len,
            "rms_norm_eps": config.norm_eps,
            # transformers 5 reads rope_parameters, 4 and many others rope_theta
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "rope_theta": config.rope_theta,
            "tie_word_embeddings": config.tie_embeddings,
            "attention_bias": config.has_attention_bias,
            "attention_dropout": config.attention_dropout,
            **initializer_range(config),
            **self.own_fields(config),
        }

    def own_fields(self, config: ModelConfig) -> dict[str, Any]:
        """Keys that set the two families apart."""
        return {"mlp_bias": config.bias}

    def read_fields(self, foreign: ForeignConfig) -> dict[str, Any]:
        """See `Layout`."""
        heads = foreign.whole("num_attention_heads")
        width = foreign.whole("hidden_size")
        kv_heads = foreign.whole("num_key_value_heads", self.default_heads or heads)
        self.read_own(foreign, width // heads)
        biases = self.biases(foreign.values)
        layers = foreign.values.get("layer_types") or []
        if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
            foreign.problems.append(f"layer_types ({layers!r:.60}) must all be 'full_attention'")
        return {
            "vocab_size": foreign.whole("vocab_size"),
            "d_model": width,
            "n_heads": heads,
            "n_layers": foreign.whole("num_hidden_layers"),
            "d_ff": foreign.whole("intermediate_size"),
            "max_seq_len": foreign.positions("max_position_embeddings", self.default_positions),
            "dropout": 0.0,
            "attention_dropout": foreign.number("attention_dropout", 0.0),
            "activation": foreign.choice(
                "hidden_act", "silu", reversed_names(_ACTIVATIONS, swish="swiglu")
            ),
            "n_kv_heads": None if kv_heads == heads else kv_heads,
            "norm": "rmsnorm",
            "position": "rope",
            "qk_norm": self.qk_norm,
            "tie_embeddings": foreign.flag("tie_word_embeddings", False),
            "bias": biases.feed_forward,
            "attention_bias": None if biases.attention == biases.feed_forward else biases.attention,
            "rope_theta": foreign.rope_theta(share_key="partial_rotary_factor", share=1.0),
            "norm_eps": foreign.number("rms_norm_eps", 1e-6),
            "init_std": foreign.number("initializer_range", 0.02),
        }

    def read_own(self, foreign: ForeignConfig, d_head: int) -> None:
        """Check keys that set the two families apart."""
        foreign.flag("attention_bias", False)
        foreign.flag("mlp_bias", False)
        check_head(foreign, d_head, default=d_head)

    def biases(self, values: Mapping[str, Any]) -> Biases:
        """See `Layout`; a norm has none."""
        return Biases(
            attention=values.get("attention_bias") is True,
            feed_forward=values.get("mlp_bias") is True,
            norm=False,
        )


class Qwen3(Llama):
    """Qwen3ForCausalLM: as Llama, with a norm on each query and key head."""

    name = "Qwen3"
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    default_heads = 32
    default_positions = 32768
    qk_norm = True

    def own_problems(self, config: ModelConfig) -> list[str]:
        """See `Llama`."""
        found = super().own_problems(config)
        unless(found, "bias", config.bias, (False,))  # its feed-forward layer cannot have any
        return found

    def own_fields(self, config: ModelConfig) -> dict[str, Any]:
        """See `Llama`."""
        return {
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": config.n_layers,
            "layer_types": ["full_attention"] * config.n_layers,
        }

    def read_own(self, foreign: ForeignConfig, d_head: int) -> None:
        """See `Llama`."""
        foreign.flag("attention_bias", False)
        check_head(foreign, d_head, default=128)
        if foreign.flag("use_sliding_window", False):
            window = foreign.values.get("sliding_window", 4096)
            full = foreign.number("max_window_layers", 28) >= foreign.whole("num_hidden_layers")
            if window is not None and foreign.values.get("layer_types") is None and not full:
                foreign.problems.append(
                    f"sliding_window ({window!r}) is in force (use_sliding_window); attention here "
                    f"sees all earlier tokens"
                )

    def biases(self, values: Mapping[str, Any]) -> Biases:
        """See `Layout`."""
        return Biases(values.get("attention_bias") is True, feed_forward=False, norm=False)


def check_head(foreign: ForeignConfig, d_head: int, default: int) -> None:
    """Note a head width that is not the model's width divided by the heads."""
    found = foreign.whole("head_dim", default)
    if found != d_head:
        foreign.problems.append(
            f"head_dim ({found}) must be hidden_size / num_attention_heads ({d_head})"
        )


def initializer_range(config: ModelConfig) -> dict[str, Any]:
    """Their key for init_std, which they limit to 1; nothing but a fresh start reads it."""
    return {"initializer_range": config.init_std} if config.init_std <= 1.0 else {}
