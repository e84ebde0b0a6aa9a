"""Attention heads that begin with something to do, instead of with noise.

Copying from the context takes two heads (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"; Olsson et al. 2022): a previous-token head, by which each place knows the
token before it, and in a later layer an induction head, which looks for places whose token before
is the current one, and predicts what stands there. Training finds such heads late; here they are
initial values, of the same parameters that any model of that shape has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_trainer.config.model import ModelConfig
from llm_trainer.models.attention import Attention
from llm_trainer.models.layers import apply_rope, rope_frequencies, rope_tables

NEIGHBOUR_ANGLE = 0.4
"""Radians from one token to the next from which on a rotary frequency tells neighbours apart."""
FAR_ANGLE = 1.5
"""Radians over a whole row up to which a rotary frequency leaves a match a match."""
COPY_GAIN = 0.5
"""Singular values of the initial value and output matrices of copying heads. As large as those
that training makes; 0.3 and 1 did as well."""


@torch.no_grad()
def look_back(attention: Attention, heads: int, rope_theta: float) -> None:
    """Set biases such that the first heads look one, two, ... tokens back, as far as `heads`.

    All keys get the same vector u, and the queries of head n get u rotated n + 1 tokens back: a
    rotary position further on, the two agree with a key n + 1 tokens before, and score
    sqrt(d_head) there. u has the fastest frequencies alone, which tell neighbours apart.
    """
    bias, d_head = attention.qkv.bias, attention.d_head
    assert bias is not None
    fast = int((rope_frequencies(d_head, rope_theta) >= NEIGHBOUR_ANGLE).sum())
    vector = torch.zeros(d_head)
    vector[: max(1, fast)] = 1.0
    vector *= d_head**0.5 / vector.norm()
    queries, keys, _ = _heads(attention, bias)
    cos, sin = rope_tables(heads + 1, d_head, rope_theta)
    for head in range(heads):
        back = apply_rope(vector[None, None, None], cos[head + 1], -sin[head + 1])
        queries[head] = back.flatten()
        keys[_kv_head(attention, head)] = vector


@torch.no_grad()
def copy_what_followed(
    first: Attention, later: Attention, embedding: Tensor, head: Tensor, config: ModelConfig
) -> None:
    """Let the first head of `later` be an induction head, fed by the first head of `first`.

    The residual stream has three equal parts. Head 0 of `first`, which looks at the token before,
    adds the first part of that token's embedding to the second part of the stream. Head 0 of
    `later` has the first part as query and the second as key, so that it looks where the token
    before was the current one; it reads the third part there, and adds it to where the output
    matrix, an independent copy of the embedding with its features moved, expects that token. Only
    rotary frequencies that hardly turn within a row carry the match.

    Args:
        first: attention of the first layer; its head 0 looks back, see `look_back`.
        later: attention of a later layer.
        embedding: (vocab_size, d_model), drawn already.
        head: the output matrix, (vocab_size, d_model); the embedding itself if tied.
        config: the architecture.
    """
    d_model, d_head = config.d_model, config.d_head
    part = d_model // 3
    width = min(part, d_head)  # features of a part that a head can carry
    moved = 0 if config.tie_embeddings else d_model // 2
    head.copy_(embedding.roll(moved, dims=1))

    slow = rope_frequencies(d_head, config.rope_theta) * config.max_seq_len <= FAR_ANGLE
    slow[-max(1, d_head // 8) :] = True  # of a very long row too the slowest must do
    pairs = slow.nonzero().flatten()
    rows = torch.cat((pairs, pairs + d_head // 2))[:width]
    matched = torch.arange(len(rows))
    carried = torch.arange(width)

    _, _, values = _heads(first, first.qkv.weight)
    values[0] = 0.0
    values[0, carried, carried] = COPY_GAIN
    first.out.weight[:, :d_head] = 0.0
    first.out.weight[part + carried, carried] = COPY_GAIN

    queries, keys, values = _heads(later, later.qkv.weight)
    queries[0], keys[0], values[0] = 0.0, 0.0, 0.0
    score = (d_head / len(rows)) ** 0.5  # a match scores about sqrt(d_head), as with QK-norm
    queries[0, rows, matched] = score
    keys[0, rows, part + matched] = score
    values[0, carried, 2 * part + carried] = COPY_GAIN
    later.out.weight[:, :d_head] = 0.0
    later.out.weight[(2 * part + carried + moved) % d_model, carried] = COPY_GAIN


def _heads(attention: Attention, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the rows of queries, keys and values of a fused parameter, head by head."""
    heads = fused.view(-1, attention.d_head, *fused.shape[1:])
    counts = (attention.n_heads, attention.n_kv_heads, attention.n_kv_heads)
    queries, keys, values = heads.split(counts)
    return queries, keys, values


def _kv_head(attention: Attention, head: int) -> int:
    """The head of keys and values that a head of queries shares."""
    return head * attention.n_kv_heads // attention.n_heads
