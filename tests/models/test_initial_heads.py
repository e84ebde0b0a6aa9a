"""Heads that begin with work to do: where they look and what they predict before training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import ModelConfigurationError
from llm_trainer.models import TransformerLM

VOCABULARY = 200
ROTARY: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 256, "n_heads": 4, "n_layers": 3, "d_ff": 64,
    "max_seq_len": 64, "norm": "rmsnorm", "activation": "swiglu", "qk_norm": True,
    "tie_embeddings": False, "bias": False, "attention_bias": True, "init": "zero",
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip


def small(**changes: Any) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(**(ROTARY | changes))).eval()


def attention_weights(model: TransformerLM, ids: Tensor, layer: int) -> Tensor:
    """Weights of one layer, (batch, heads, time, keys), from queries and keys written out here."""
    seen: list[Tensor] = []
    attention = model.blocks[layer].attention
    handle = attention.qkv.register_forward_hook(lambda *call: seen.append(call[2]))
    model(ids)
    handle.remove()
    config = model.config
    blocks = seen[0].unflatten(-1, (-1, config.d_head)).transpose(1, 2)
    q, k = blocks[:, : config.n_heads], blocks[:, config.n_heads :][:, : config.num_kv_heads]
    if config.qk_norm:
        q, k = attention.q_norm(q), attention.k_norm(k)
    k = k.repeat_interleave(config.n_heads // config.num_kv_heads, dim=1)
    half = config.d_head // 2
    angle = torch.arange(ids.shape[1])[:, None] * config.rope_theta ** (-torch.arange(half) / half)
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k = (torch.complex(x[..., :half], x[..., half:]) * turn for x in (q, k))
    scores = (q[..., :, None, :] * k[..., None, :, :].conj()).real.sum(-1) * config.d_head**-0.5
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf).softmax(-1)


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2}, {"qk_norm": False}, {"d_model": 128}])
def test_heads_that_begin_by_looking_back(changes: dict[str, Any]) -> None:
    """Head n of the first half of the layers looks at the token n + 1 before; no other does."""
    made = small(**changes, previous_token_heads=3)
    ids = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(2))
    for layer in range(3):
        weights = attention_weights(made, ids, layer)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4, 32))
        for head in range(3):
            there = weights[:, head].diagonal(-head - 1, 1, 2)  # the weight that is meant
            if layer < 2:
                assert torch.equal(weights[:, head].argmax(-1)[:, head + 1 :],
                                   torch.arange(32 - head - 1).expand(4, -1))  # fmt: skip
                assert there.mean() > 0.4
            else:
                assert there.mean() < 0.2
    plain = small(**changes)
    for name, parameter in made.named_parameters():
        same = torch.equal(parameter, dict(plain.named_parameters())[name])
        assert same != (name in ("blocks.0.attention.qkv.bias", "blocks.1.attention.qkv.bias"))


@pytest.mark.parametrize(
    "changes", [{"attention_bias": False}, {"attention_bias": None}, {"position": "learned"}]
)
def test_heads_that_look_back_need_biases_and_rotary_positions(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigurationError, match=r"previous_token_heads \(1\) are made of"):
        small(previous_token_heads=1, **changes)
    with pytest.raises(ModelConfigurationError, match=r"previous_token_heads \(5\) must be from 0"):
        small(previous_token_heads=5)


@torch.no_grad()
def losses_of_a_text_read_twice(model: TransformerLM) -> tuple[float, float]:
    """Nats a token of the first and of the second time, over random tokens."""
    half = torch.randint(0, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(3))
    losses = model.token_losses(torch.cat((half, half), dim=1))
    return losses[:, :31].mean().item(), losses[:, 32:].mean().item()


SHAPES: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "two-layers": {"n_layers": 2},
    "narrow": {"d_model": 128},
    "grouped": {"n_kv_heads": 1},
    "tied": {"tie_embeddings": True},
    "without-qk-norm": {"qk_norm": False},
    "scaled": {"init": "scaled"},
    "feed-forward-biases": {"bias": True},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_head_that_begins_by_copying(shape: str) -> None:
    """It looks at what followed the token last time, and that is what the model then expects."""
    made = small(**SHAPES[shape], previous_token_heads=2, induction_head=True)
    plain = small(**SHAPES[shape], previous_token_heads=2)
    layer = 2 if made.config.n_layers == 3 else 1
    half = torch.stack([  # no token twice, so that there is one place to look
        torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(row))[:32]
        for row in range(8)
    ])  # fmt: skip
    ids = torch.cat((half, half), dim=1)
    there = attention_weights(made, ids, layer)[:, 0].diagonal(-31, 1, 2)[:, 1:]
    # of 33 to 64 places that it could look at
    assert there.mean() > 0.3
    assert attention_weights(plain, ids, layer)[:, 0].diagonal(-31, 1, 2)[:, 1:].mean() < 0.1
    for model in (made, plain):
        # as if trained for a while: untrained logits are too small to be sure of anything
        torch.nn.init.constant_(model.final_norm.weight, 6.0)
    first, second = losses_of_a_text_read_twice(made)
    assert second < 0.85 * first
    first, second = losses_of_a_text_read_twice(plain)
    assert second > 0.9 * first


def test_only_two_heads_and_the_output_are_set() -> None:
    made = small(previous_token_heads=2, induction_head=True)
    plain = dict(small(previous_token_heads=2).named_parameters())
    other = {
        name: (made_one - plain[name]).ne(0)
        for name, made_one in made.named_parameters()
        if not torch.equal(made_one, plain[name])
    }
    d_head = 64
    assert other.keys() == {
        "head.weight", "blocks.0.attention.qkv.weight", "blocks.0.attention.out.weight",
        "blocks.2.attention.qkv.weight", "blocks.2.attention.out.weight",
    }  # fmt: skip
    rows = {layer: other[f"blocks.{layer}.attention.qkv.weight"].any(1) for layer in (0, 2)}
    for layer, kinds in ((0, (2,)), (2, (0, 1, 2))):  # queries, keys, values
        expected = {kind * 4 * d_head + n for kind in kinds for n in range(d_head)}
        assert set(rows[layer].nonzero().flatten().tolist()) == expected
        assert not other[f"blocks.{layer}.attention.out.weight"][:, d_head:].any()
    # the output is the embedding with features moved: the same lengths, the same products
    embedding = made.embedding.weight
    torch.testing.assert_close(made.head.weight @ made.head.weight.T, embedding @ embedding.T)
    own = (made.head.weight * embedding).sum(1) / embedding.square().sum(1)
    assert own.abs().mean() < 0.2  # and yet no token begins by predicting itself


@pytest.mark.parametrize(
    "changes", [{"previous_token_heads": 0}, {"previous_token_heads": 1, "n_layers": 1}]
)
def test_a_copying_head_needs_an_earlier_one_that_looks_back(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelConfigurationError, match="induction_head: true needs a head of an"):
        small(induction_head=True, **changes)
