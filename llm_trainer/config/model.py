"""The shape of a Transformer language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm_trainer.config.base import Config, within
from llm_trainer.exceptions import ConfigurationError, ModelConfigurationError

Activation = Literal["gelu", "relu", "relu2", "silu", "swiglu", "geglu"]
GATED_ACTIVATIONS = ("swiglu", "geglu")
MAX_SIZE = 2**31 - 1
"""Largest extent of anything: beyond it kernels that count in 32 bits would wrap around."""

MAX_LENGTH = 2**24
"""Longest `max_seq_len`, in tokens. Tables of positions are made of it whatever the weights are, so
that a larger one in the configuration of a stranger's model could take all memory."""

MAX_PARAMETERS = 10**13
"""Several times the largest models that there are; more is a slip of the finger."""


@dataclass
class ModelConfig(Config):
    """Architecture of `TransformerLM`.

    Combinations map onto public architectures, so that exports are exact: swiglu + rmsnorm + rope
    is Llama (Qwen3 with `qk_norm`), gelu + layernorm + rope is GPT-NeoX, gelu + layernorm +
    learned is GPT-2.
    """

    section: ClassVar[str] = "model"
    error: ClassVar[type[ConfigurationError]] = ModelConfigurationError

    vocab_size: int = 50000
    """Token ids: 0 to vocab_size - 1. Set from the tokenizer in the pipeline."""
    d_model: int = 768
    """Width of the residual stream, in features."""
    n_heads: int = 12
    """Query heads; must divide d_model."""
    n_layers: int = 12
    """Transformer blocks."""
    d_ff: int = 3072
    """Width of the feed-forward layer, in features. Gated activations have three matrices of this
    width instead of two, so 2/3 of it costs the same."""
    max_seq_len: int = 1024
    """Longest sequence, in tokens, that positions are defined for."""
    dropout: float = 0.1
    """Probability of dropping a feature after the embedding and after each sub-layer."""
    attention_dropout: float = 0.1
    """Probability of dropping an attention weight."""
    activation: Activation = "gelu"
    """gelu is the exact (erf) form; relu2 is ReLU squared (So et al. 2021); swiglu and geglu are
    gated (Shazeer 2020)."""
    pre_norm: bool = True
    """Normalise before each sub-layer (GPT-2 and later) instead of after it (Vaswani et al.)."""
    use_learned_pos_emb: bool = False
    """Learned absolute positions. Off means `position`, whose default is rotary."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    n_kv_heads: int | None = None
    """Key and value heads (grouped-query attention, Ainslie et al. 2023); must divide n_heads.
    None means n_heads."""
    norm: Literal["rmsnorm", "layernorm"] = "layernorm"
    """Normalisation layer."""
    position: Literal["rope", "learned", "sinusoidal"] | None = None
    """How positions enter. None means learned if use_learned_pos_emb, else rope."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation, as in Qwen3."""
    tie_embeddings: bool = True
    """Use the token embedding as output matrix too."""
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
    attention_bias: bool | None = None
    """Biases of the query, key, value and output projections. None means `bias`."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Added to the variance in normalisation."""
    init_std: float = 0.02
    """Standard deviation of the initial matrices and embeddings."""
    init: Literal["scaled", "zero"] = "scaled"
    """Output projections of each sub-layer: normal with deviation init_std / sqrt(2 n_layers) as in
    GPT-2, or zero, so that each block starts as the identity."""
    previous_token_heads: int = 0
    """Heads, in each layer of the first half, that begin by looking at one earlier token: the first
    at the last one, the second at the last but one, and so on. Found by training itself, such heads
    come late, and copying from the context waits for them (Olsson et al. 2022). They are initial
    values of the biases of queries and keys, and cost nothing."""
    induction_head: bool = False
    """Whether a head of the second half begins by looking where the current token stood before, and
    predicting what followed it there; it needs `previous_token_heads`. Initial values again, of
    which the output matrix is one: it begins as a copy of the embedding, with features moved."""

    @property
    def d_head(self) -> int:
        """Features per attention head."""
        return self.d_model // self.n_heads

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def has_attention_bias(self) -> bool:
        """Biases in attention, resolved."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def position_kind(self) -> Literal["rope", "learned", "sinusoidal"]:
        """How positions enter, resolved."""
        if self.position is not None:
            return self.position
        return "learned" if self.use_learned_pos_emb else "rope"

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate matrix."""
        return self.activation in GATED_ACTIVATIONS

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = []
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "n_kv_heads"):
            found += within(name, getattr(self, name), 1, MAX_SIZE)
        found += within("max_seq_len", self.max_seq_len, 2, MAX_LENGTH)
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                found.append(f"{name} ({getattr(self, name)}) must be from 0 to below 1")
        if found:
            return found
        width, inner = self.d_model, self.d_ff
        rough = self.vocab_size * width + self.n_layers * width * (4 * width + 2 * inner)
        if rough > MAX_PARAMETERS:
            found.append(
                f"vocab_size ({self.vocab_size}), d_model ({width}), d_ff ({inner}) and n_layers "
                f"({self.n_layers}) make {rough:.0e} parameters; lower them to at most "
                f"{MAX_PARAMETERS:.0e}"
            )
        if self.d_model % self.n_heads:
            fitting = [str(n) for n in range(1, 65) if self.d_model % n == 0]
            near = sorted(fitting, key=lambda n: abs(int(n) - self.n_heads))[:4]
            choices = ", ".join(sorted(near, key=int))
            found.append(
                f"d_model ({self.d_model}) must be divisible by n_heads ({self.n_heads}); "
                f"try n_heads of {choices}"
            )
        elif self.position_kind == "rope" and self.d_head % 2:
            found.append(
                f"d_model / n_heads ({self.d_head}) must be even for rotary positions; change "
                f"n_heads ({self.n_heads}) or use position: learned"
            )
        if self.n_heads % self.num_kv_heads:
            found.append(
                f"n_heads ({self.n_heads}) must be divisible by n_kv_heads ({self.n_kv_heads})"
            )
        if self.use_learned_pos_emb and self.position not in (None, "learned"):
            found.append(
                f"use_learned_pos_emb: true contradicts position: {self.position}; set one of them"
            )
        found += self._initial_head_problems()
        if self.rope_theta <= 0:
            found.append(f"rope_theta ({self.rope_theta}) must be above 0")
        found += within("init_std", self.init_std, 1e-6, 10.0)
        found += within("norm_eps", self.norm_eps, 1e-12, 1.0)
        return found

    def _initial_head_problems(self) -> list[str]:
        heads = self.previous_token_heads
        found = within("previous_token_heads", heads, 0, self.n_heads)
        if heads and not (self.position_kind == "rope" and self.has_attention_bias):
            found.append(
                f"previous_token_heads ({heads}) are made of biases and rotary positions; set "
                f"attention_bias: true and position: rope, or previous_token_heads: 0"
            )
        if self.induction_head and not (heads and self.n_layers > 1 and self.d_model > 2):
            found.append(
                f"induction_head: true needs a head of an earlier layer that looks one token back; "
                f"set previous_token_heads ({heads}) to 1 or more and n_layers ({self.n_layers}) "
                f"to 2 or more, or induction_head: false"
            )
        return found
