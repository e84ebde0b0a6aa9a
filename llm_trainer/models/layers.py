"""Normalisation, positions and the feed-forward layer.

Sources: RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021, half-split form as in
GPT-NeoX and Llama), GLU variants (Shazeer 2020), squared ReLU (So et al. 2021).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_trainer.config.model import ModelConfig
from llm_trainer.models.activations import swiglu

WEIGHT_GRADIENT_PARTS = 64
"""Parts of the rows in which a compiled norm sums the gradient of its weight."""


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The configured normalisation over the last dimension, of `width` features."""
    if config.norm == "rmsnorm":
        return RMSNorm(width, config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in the dtype of x; the mean square is taken in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width)."""
        if torch.compiler.is_compiling():
            compiled: Tensor = CompiledRMSNorm.apply(x, self.weight, self.eps)
            return compiled
        return rms_norm(x, self.weight, self.eps)[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, (..., width), normalised, in its dtype; and what it was scaled by, (..., 1), float32."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype), scale


class CompiledRMSNorm(torch.autograd.Function):
    """`rms_norm` with its gradient in closed form.

    The weight's gradient is a sum over all rows. Compiled for a CPU in one go, it starts threads
    and walks through all rows anew for every few features; so it is taken in parts of the rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x normalised; arguments as those of `rms_norm`."""
        normed, scale = rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of x and the weight, in their types."""
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        wide, gradient = x.float(), gradient.float()
        weighted = gradient * weight
        along = (weighted * wide).sum(-1, keepdim=True) * (scale * scale * scale / width)
        of_x = weighted * scale - wide * along
        terms = (gradient * (wide * scale)).reshape(-1, width)
        parts = math.gcd(len(terms), WEIGHT_GRADIENT_PARTS)
        of_weight = terms.view(parts, -1, width).sum(1).sum(0)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), None


def without_values() -> bool:
    """Whether tensors are being made for their shapes alone; see `outline`."""
    return torch.get_default_device().type == "meta"


def rope_frequencies(d_head: int, theta: float) -> Tensor:
    """Radians from one token to the next of each pair of features, (d_head / 2,), falling."""
    return theta ** (-torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)


def rope_tables(length: int, d_head: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (length, d_head / 2), float32."""
    if without_values():
        return torch.empty(length, d_head // 2), torch.empty(length, d_head // 2)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * rope_frequencies(d_head, theta)
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + d_head/2) of x, (batch, heads, time, d_head).

    cos and sin are (time, d_head/2) or (batch, 1, time, d_head/2).
    """
    # both halves by one formula on whole rows: compiled, there is nothing to join afterwards
    pairs = x.unflatten(-1, (2, -1)).float()
    turned = pairs.flip(-2) * torch.stack((-sin, sin), dim=-2)
    rotated: Tensor = pairs * cos.unsqueeze(-2) + turned
    return rotated.to(x.dtype).flatten(-2)


def sinusoidal_table(length: int, width: int) -> Tensor:
    """Fixed sinusoidal positions (Vaswani et al. 2017, section 3.5), (length, width)."""
    if without_values():
        return torch.empty(length, width)
    position = torch.arange(length, dtype=torch.float32)[:, None]
    pairs = torch.arange(0, width, 2, dtype=torch.float32)
    angle = position * torch.exp(-math.log(10000.0) * pairs / width)
    table = torch.zeros(length, width)
    table[:, 0::2] = angle.sin()
    table[:, 1::2] = angle.cos()[:, : width // 2]
    return table


class FeedForward(nn.Module):
    """Two matrices and an activation, or three with a gate.

    Gate and up projections are one matrix, so that they are one product.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.d_ff = config.d_ff
        width = 2 * config.d_ff if config.gated else config.d_ff
        self.up = nn.Linear(config.d_model, width, bias=config.bias)
        self.fused_blocks = {"up.weight": (config.d_ff, config.d_ff)} if config.gated else {}
        """Matrices that are stored as one: parameter -> rows of each. Muon treats them apart."""
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, d_model) to the same shape."""
        hidden = self.up(x)  # (batch, time, d_ff or 2 d_ff)
        match self.activation:
            case "swiglu":
                hidden = swiglu(hidden)
            case "geglu":
                gate, up = hidden.chunk(2, dim=-1)
                hidden = F.gelu(gate) * up
            case "gelu":
                hidden = F.gelu(hidden)
            case "relu":
                hidden = F.relu(hidden)
            case "relu2":
                hidden = F.relu(hidden).square()
            case "silu":
                hidden = F.silu(hidden)
        out: Tensor = self.dropout(self.down(hidden))
        return out
