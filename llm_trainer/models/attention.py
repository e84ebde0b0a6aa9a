"""Causal self-attention with grouped queries, rotary positions, QK-norm and a KV cache.

Two kernels give the same numbers up to rounding. `sdpa` is torch's fused attention: flash on
CUDA, and the faster one in eager mode on a CPU. `masked` is written out, which `torch.compile`
fuses on a CPU into something faster than the fused kernel; it stores the (time x time) weights, so
its memory grows with the square of the row.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_trainer.config.model import ModelConfig
from llm_trainer.models.cache import KVCache
from llm_trainer.models.layers import RMSNorm, apply_rope

AttentionKernel = Literal["sdpa", "masked"]
QUERY_BLOCKS = (128, 256)
"""The fewest and the most queries at a time in causal `masked` attention; between them half a row.
Rows of 256 and 512 are spared a quarter of the products, rows of 1,024 three eighths. Smaller
blocks spare more, and cost more to compile than a run of minutes gets back."""


class Attention(nn.Module):
    """Multi-head causal self-attention of one layer.

    Query, key and value projections are one matrix of n_heads + 2 n_kv_heads blocks of d_head rows
    each, in this order.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.n_kv_heads = config.num_kv_heads
        self.d_head = config.d_head
        self.attention_dropout = config.attention_dropout
        self.kernel: AttentionKernel = "sdpa"
        width = (config.n_heads + 2 * config.num_kv_heads) * config.d_head
        self.qkv = nn.Linear(config.d_model, width, bias=config.has_attention_bias)
        rows = [
            n * config.d_head for n in (config.n_heads, config.num_kv_heads, config.num_kv_heads)
        ]
        self.fused_blocks = {"qkv.weight": tuple(rows)}
        """Matrices that are stored as one: parameter -> rows of each. Muon treats them apart."""
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.has_attention_bias)
        self.dropout = nn.Dropout(config.dropout)
        self.q_norm = RMSNorm(config.d_head, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.d_head, config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (batch, time, d_model).
            rope: cosines and sines for the positions of x, or None.
            mask: True where a query may look, broadcastable to (batch, heads, time, keys); None
                means plain causal attention within x.
            cache: holds the keys and values before x, and takes those of x.
        """
        batch, time, d_model = x.shape
        heads = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        qkv = self.qkv(x).view(batch, time, sum(heads), self.d_head)
        # each (batch, heads, time, d_head)
        q, k, v = (part.transpose(1, 2) for part in qkv.split(heads, dim=2))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.write(self.layer, k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)
        dropout = self.attention_dropout if self.training else 0.0
        if self.kernel == "masked":
            y = masked_attention(q, k, v, mask, dropout)
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout,
                enable_gqa=self.n_heads != self.n_kv_heads,
            )  # fmt: skip
        y = y.transpose(1, 2).reshape(batch, time, d_model)
        out: Tensor = self.dropout(self.out(y))
        return out


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """softmax(q k^T / sqrt(d_head) + mask) v, written out.

    Args:
        q: (batch, heads, time, d_head).
        k, v: (batch, kv_heads, keys, d_head).
        mask: True where a query may look; None means causal, with time equal to keys.
        dropout: probability of dropping a weight.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if mask is not None:
        return _attend(q, k, v, mask, dropout)
    time = q.shape[2]
    # 32 bits, as the scores have: compiled, comparing 64-bit positions took half of the softmax
    position = torch.arange(time, dtype=torch.int32, device=q.device)
    causal = position[:, None] >= position
    fewest, most = QUERY_BLOCKS
    block = min(max((time + 1) // 2, fewest), most)
    ends = [*range(block, time, block), time]
    # each product would copy what is not contiguous for itself, compiled these copies are made
    # along with the rotation; the keys after a block are hidden from all of it
    parts = []
    start = 0
    for end, queries, keys, values in zip(
        ends, q.split(block, dim=2), _Prefixes.apply(k, ends), _Prefixes.apply(v, ends),
        strict=True,
    ):  # fmt: skip
        visible = causal[start:end, :end]
        parts.append(_attend(queries.contiguous(), keys, values, visible, dropout))
        start = end
    return torch.cat(parts, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """As `masked_attention`, with as many heads in k and v as in q, and a mask."""
    # (batch, heads, time, keys)
    weights: Tensor = _MaskedSoftmax.apply(q @ k.transpose(-2, -1), mask, q.shape[-1] ** -0.5)
    if dropout:
        weights = F.dropout(weights, dropout)
    out: Tensor = _WeightedSum.apply(weights, v)
    return out


class _Prefixes(torch.autograd.Function):
    """The beginnings of rows, each up to one of the rising `ends`, contiguous.

    In the backward pass each stretch of a row is summed over the beginnings that reach it, in
    float32. What torch derives fills every gradient up with zeros to the whole row first.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: list[int]) -> tuple[Tensor, ...]:
        ctx.ends = ends
        return tuple(x[:, :, :end].contiguous() for end in ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        stretches = []
        start = 0
        for i, end in enumerate(ctx.ends):
            total = gradients[i][:, :, start:end].float()
            for gradient in gradients[i + 1 :]:
                total = total + gradient[:, :, start:end]
            stretches.append(total.to(gradients[i].dtype))
            start = end
        return torch.cat(stretches, dim=2), None


class _WeightedSum(torch.autograd.Function):
    """weights @ values.

    The gradient of the values is made as its transpose: on a CPU a product with turned weights, as
    torch derives it, takes 1.4 times as long, and the sum over beginnings turns it back anyway.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values)
        return weights @ values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weights, values = ctx.saved_tensors
        of_values = (gradient.transpose(-2, -1) @ weights).transpose(-2, -1)
        return gradient @ values.transpose(-2, -1), of_values


class _MaskedSoftmax(torch.autograd.Function):
    """softmax(scores * scale) where the mask is True, in the scores' type, computed in float32.

    The backward pass takes the weights as the product with the values has them. What torch derives
    keeps them in float32 too, which at shape A of the benchmarks is 17 MB a layer to be written
    and read twice; and it masks once more, though a weight of 0 has no gradient.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor, scale: float) -> Tensor:
        scaled = (scores.float() * scale).masked_fill(~mask, float("-inf"))
        weights = scaled.softmax(dim=-1).to(scores.dtype)
        ctx.save_for_backward(weights)
        ctx.scale = scale
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        wide = weights.float()
        weighted = gradient.float() * wide
        result = (weighted - wide * weighted.sum(dim=-1, keepdim=True)) * ctx.scale
        return result.to(gradient.dtype), None, None
