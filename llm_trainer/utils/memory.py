"""What training a model takes in memory, before it is taken.

Weights, gradients and optimizer states are exact; activations and logits are an estimate of what
autograd keeps from the forward for the backward pass, within a fifth in eager mode. What Python,
torch and their work space take besides is a part of its own, PROCESS_BYTES on a CPU; the high-water
mark of a CUDA device has nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm_trainer.config.checks import choice, instance, number, refuse, whole
from llm_trainer.config.model import ModelConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.utils.parameters import ParameterCount, calculate_parameters, count_parameters

FLOAT32_BYTES = 4
HALF_BYTES = 2
PROCESS_BYTES = 450_000_000
"""Resident memory of a training process on a CPU beside what is planned; seen: 460 and 500 MB,
compiled and eager, of which 230 after importing torch."""
COMFORTABLE = 0.6
"""Share of a device that weights, gradients and optimizer states may take for whole models on each
rank (`parallel: auto`); the rest is for activations."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one process needs to train, by what they are for."""

    weights: int
    """float32 master weights."""
    gradients: int
    """float32 gradients."""
    optimizer: int
    """Moments of the optimizer, float32."""
    activations: int
    """Estimate: tensors kept for the backward pass of one micro-batch, and half-precision copies
    of the weights under AMP."""
    logits: int
    """Estimate: logits of one micro-batch and their gradients."""
    process: int = 0
    """Estimate: Python, torch and their work space, where they count."""

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        training = self.weights + self.gradients + self.optimizer + self.activations + self.logits
        return training + self.process


def plan_memory(
    model: ModelConfig,
    training: TrainingConfig,
    row_length: int,
    *,
    kernel: Literal["sdpa", "masked"] = "sdpa",
    process: int = 0,
) -> MemoryPlan:
    """Memory of training `model` on micro-batches of `training.batch_size` rows, per process.

    `kernel` is the attention kernel: "masked" keeps the (time x time) attention weights. `process`
    is what to count for Python and torch: PROCESS_BYTES on a CPU, 0 on a CUDA device.
    """
    refuse(
        ConfigurationError,
        instance("model", model, ModelConfig),
        instance("training", training, TrainingConfig),
        whole("row_length", row_length, 1),
        choice("kernel", kernel, ("sdpa", "masked")),
        whole("process", process, 0),
    )
    count = count_parameters(model)
    element = HALF_BYTES if training.use_amp else FLOAT32_BYTES
    tokens = training.batch_size * row_length
    weight_copies = HALF_BYTES * count.multiplied if training.use_amp else 0
    # log-probabilities and their gradient in float32, and under AMP that of the product
    per_logit = 2 * FLOAT32_BYTES + (HALF_BYTES if training.use_amp else 0)
    return MemoryPlan(
        weights=FLOAT32_BYTES * count.total,
        gradients=FLOAT32_BYTES * count.total,
        optimizer=optimizer_bytes(count, training.optimizer, training.momentum),
        activations=weight_copies + activation_bytes(model, tokens, row_length, element, kernel),
        logits=tokens * model.vocab_size * per_logit,
        process=process,
    )


def optimizer_bytes(count: ParameterCount, optimizer: str, momentum: float = 0.95) -> int:
    """Bytes of optimizer state: two float32 moments a parameter for Adam and AdamW, one momentum
    for SGD (none if momentum is 0), one for the matrices under Muon and two for its rest."""
    refuse(
        ConfigurationError,
        instance("count", count, ParameterCount),
        choice("optimizer", optimizer, ("adamw", "adam", "sgd", "muon")),
        number("momentum", momentum, 0),
    )
    if optimizer == "sgd":
        return FLOAT32_BYTES * count.total if momentum else 0
    if optimizer == "muon":
        rest = count.total - count.hidden_matrices
        return FLOAT32_BYTES * (count.hidden_matrices + 2 * rest)
    return 2 * FLOAT32_BYTES * count.total


def estimate_memory_usage(config: ModelConfig) -> float:
    """Weights, gradients and AdamW states of a model in float32, in GB of 1024^3 bytes.

    16 bytes a parameter. `plan_memory` adds what depends on the batch.
    """
    return calculate_parameters(config) * 16 / 1024**3


def activation_bytes(
    model: ModelConfig, tokens: int, row_length: int, element: int, kernel: str
) -> int:
    """Bytes that autograd keeps of a forward pass over `tokens` tokens, loss not included.

    A count of the tensors that the eager model saves (the method of Korthikanti et al. 2022,
    section 4), `element` being the bytes of a number in the compute type. A compiled step fuses
    and recomputes some of them, so it needs less.
    """
    wide, d_model, d_kv = FLOAT32_BYTES, model.d_model, model.num_kv_heads * model.d_head
    # a norm keeps its input, RMSNorm also the normalised value; the product after it its own input
    norm = d_model * (wide * (2 if model.norm == "rmsnorm" else 1) + element)
    cast = 0 if element == wide else wide  # a float32 copy of what is not float32 already
    attention = element * (2 * d_model + 2 * d_kv)  # queries, keys, values; attended values
    if model.position_kind == "rope" or model.qk_norm:
        attention += element * (d_model + d_kv)  # queries and keys once more, rotated
    if model.qk_norm:  # input and normalised value
        attention += (cast + wide) * (d_model + d_kv)
    square = model.n_heads * row_length  # weights of attention, a token
    if kernel == "masked":  # with dropout also what is left of them, and which those are
        attention += square * (2 * element + 1 if model.attention_dropout else element)
    elif model.attention_dropout:  # no fused kernel on a CPU: torch keeps the softmax in float32
        attention += square * (cast + 3 * element)
    inner = {"relu": 1, "gelu": 2, "silu": 2, "relu2": 2, "swiglu": 4, "geglu": 4}
    mlp = element * inner[model.activation] * model.d_ff
    dropout = 2 * element * d_model if model.dropout else 0
    layer = 2 * norm + attention + mlp + dropout
    if model.gradient_checkpointing:  # the input of each layer, and one layer while it is redone
        return tokens * (model.n_layers * wide * d_model + layer + norm)
    return tokens * (model.n_layers * layer + norm)
