"""How many parameters a model has and what a token of training costs, from its config alone.

Pure arithmetic over `ModelConfig`: nothing is built and torch is not imported, so a plan can be
printed before any memory is taken. A test compares the counts with built models over every switch
of the architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_trainer.config.checks import instance, refuse, whole
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import ConfigurationError


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model by group; a tied output matrix is counted once, as embedding."""

    embedding: int
    """Token embedding, and learned positions where there are any."""
    head: int
    """Output matrix; 0 when it is the token embedding."""
    attention: int
    """Query, key, value and output projections, with their biases."""
    mlp: int
    """Feed-forward layers, with their biases."""
    norms: int
    """All normalisation layers, those of queries and keys included."""
    hidden_matrices: int
    """Weights (no biases) of attention and feed-forward layers: what Muon updates."""
    multiplied: int
    """Weights that every token is multiplied by: hidden_matrices and the output matrix, tied or
    not. Looking up an embedding multiplies nothing."""

    @property
    def total(self) -> int:
        """All parameters: equal to the sum of numel() over the model's parameters."""
        return self.embedding + self.head + self.attention + self.mlp + self.norms

    @property
    def non_embedding(self) -> int:
        """All parameters but embedding and output matrix (the N of Kaplan et al. 2020)."""
        return self.attention + self.mlp + self.norms


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Exact parameter count of `TransformerLM(config)`, by group."""
    refuse(ConfigurationError, instance("config", config, ModelConfig))
    d_model, d_ff, layers = config.d_model, config.d_ff, config.n_layers
    d_kv = config.num_kv_heads * config.d_head
    bias, attention_bias = int(config.bias), int(config.has_attention_bias)

    attention_weights = 2 * d_model * d_model + 2 * d_model * d_kv  # query, output; key, value
    attention_biases = attention_bias * (2 * d_model + 2 * d_kv)
    num_inner = 2 if config.gated else 1  # up, and gate
    mlp_weights = (num_inner + 1) * d_model * d_ff
    mlp_biases = bias * (num_inner * d_ff + d_model)

    per_norm = d_model * (2 if config.norm == "layernorm" and config.bias else 1)
    # pre-norm needs one more norm, after the last block; post-norm ends in one already
    num_norms = 2 * layers + int(config.pre_norm)
    qk_norms = 2 * config.d_head * layers if config.qk_norm else 0

    positions = config.max_seq_len * d_model if config.position_kind == "learned" else 0
    table = config.vocab_size * d_model
    hidden = layers * (attention_weights + mlp_weights)
    return ParameterCount(
        embedding=table + positions,
        head=0 if config.tie_embeddings else table,
        attention=layers * (attention_weights + attention_biases),
        mlp=layers * (mlp_weights + mlp_biases),
        norms=num_norms * per_norm + qk_norms,
        hidden_matrices=hidden,
        multiplied=hidden + table,
    )


def calculate_parameters(config: ModelConfig) -> int:
    """Number of parameters of `TransformerLM(config)`."""
    return count_parameters(config).total


def flops_per_token(config: ModelConfig, row_length: int) -> int:
    """Floating-point operations of one training step (forward and backward) per token.

    `6 N + 12 L H Q T` (Chowdhery et al. 2022, "PaLM", appendix B): each of the N multiplied
    weights costs a multiplication and an addition forward and twice that backward; L layers of H
    heads of Q features attend over rows of T tokens. Two conventions matter when figures are
    compared: N leaves out embedding look-ups, which are no products, and attention counts the
    whole T x T square as in the paper, though a causal model needs half of it. Recomputation
    (gradient checkpointing) is not useful work and is not counted.
    """
    refuse(ConfigurationError, whole("row_length", row_length, 1))
    products = 6 * count_parameters(config).multiplied
    attention = 12 * config.n_layers * config.n_heads * config.d_head * row_length
    return products + attention
