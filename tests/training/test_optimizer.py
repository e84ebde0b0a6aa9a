"""Optimizers against torch's own, and parameter groups as stated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm_trainer.config import ModelConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models import TransformerLM
from llm_trainer.training.muon import MuonAdamW
from llm_trainer.training.optimizer import create_optimizer, set_learning_rates


def model(tie: bool = False) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(
        ModelConfig(
            vocab_size=40, d_model=16, n_heads=2, n_layers=2, d_ff=48, max_seq_len=16, dropout=0.0,
            attention_dropout=0.0, activation="swiglu", n_kv_heads=1, tie_embeddings=tie,
            qk_norm=True,
        )
    )  # fmt: skip


def test_groups() -> None:
    net = model()
    optimizer = create_optimizer(
        net, "adamw", 1e-3, 0.1, embedding_learning_rate=2e-3, head_learning_rate=3e-3
    )
    names = {id(p): name for name, p in net.named_parameters()}
    groups = {group["role"]: group for group in optimizer.param_groups}
    members = {role: {names[id(p)] for p in g["params"]} for role, g in groups.items()}
    assert members["embedding"] == {"embedding.weight"}
    assert members["head"] == {"head.weight"}
    assert all(name.endswith("bias") or "norm" in name for name in members["vector"])
    assert sum(len(group["params"]) for group in groups.values()) == len(names)
    decay = {role: group["weight_decay"] for role, group in groups.items()}
    assert decay == {"matrix": 0.1, "embedding": 0.0, "head": 0.1, "vector": 0.0}
    rates = {role: group["lr"] for role, group in groups.items()}
    assert rates == {"matrix": 1e-3, "embedding": 2e-3, "head": 3e-3, "vector": 2e-3}
    set_learning_rates(optimizer, 0.5)
    assert groups["head"]["lr"] == 1.5e-3


def test_a_tied_head_is_an_embedding() -> None:
    roles = {group["role"] for group in create_optimizer(model(tie=True)).param_groups}
    assert "head" not in roles


@pytest.mark.parametrize("tie", [False, True])
def test_adamw_equals_torch_adamw_over_these_groups(tie: bool) -> None:
    """Matrices and an untied head are decayed; embeddings, norms and biases are not."""
    ours_net, theirs_net = model(tie), model(tie)
    ours = create_optimizer(ours_net, "adamw", 3e-3, 0.3, (0.8, 0.95), 1e-9)
    named = dict(theirs_net.named_parameters())
    decayed = [n for n, p in named.items() if p.ndim == 2 and n != "embedding.weight"]
    theirs = torch.optim.AdamW(
        [
            {"params": [named[n] for n in decayed], "weight_decay": 0.3},
            {"params": [named[n] for n in named if n not in decayed], "weight_decay": 0.0},
        ],
        lr=3e-3, betas=(0.8, 0.95), eps=1e-9,
    )  # fmt: skip
    ids = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(5))
    for _ in range(5):
        for net, optimizer in ((ours_net, ours), (theirs_net, theirs)):
            net.loss_sum(ids, ids).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in ours_net.named_parameters():
        torch.testing.assert_close(parameter, named[name], atol=1e-6, rtol=1e-5)


def unfused(net: TransformerLM) -> list[list[nn.Parameter]]:
    """Copies of the hidden matrices with each fused block as a parameter of its own."""
    out = []
    for block in net.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        for parameter, rows in (
            (attention.qkv.weight, (16, 8, 8)), (attention.out.weight, (16,)),
            (feed_forward.up.weight, (48, 48)), (feed_forward.down.weight, (16,)),
        ):  # fmt: skip
            out.append([nn.Parameter(p.detach().clone()) for p in parameter.split(list(rows))])
    return out


def test_muon_equals_torch_muon_block_by_block() -> None:
    net = model()
    copies = unfused(net)
    ours = create_optimizer(net, "muon", 0.02, 0.1, momentum=0.9)
    assert isinstance(ours, MuonAdamW)
    theirs = torch.optim.Muon(
        [p for group in copies for p in group], lr=0.02, weight_decay=0.1, momentum=0.9
    )
    generator = torch.Generator().manual_seed(3)
    matrices = [
        p
        for block in net.blocks
        for p in (
            block.attention.qkv.weight, block.attention.out.weight,
            block.feed_forward.up.weight, block.feed_forward.down.weight,
        )
    ]  # fmt: skip
    for _ in range(3):
        for matrix, parts in zip(matrices, copies, strict=True):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            for part, grad in zip(parts, matrix.grad.split([len(p) for p in parts]), strict=True):
                part.grad = grad.clone()
        ours.step()
        theirs.step()
    for matrix, parts in zip(matrices, copies, strict=True):
        # both iterate in bfloat16; batched and single products round differently
        torch.testing.assert_close(matrix, torch.cat(list(parts)), atol=2e-3, rtol=0)


def test_muon_leaves_the_rest_to_adamw() -> None:
    net, other = model(), model()
    ours = create_optimizer(net, "muon", 0.02, 0.0, (0.8, 0.95), 1e-9, embedding_learning_rate=0.01)
    named = dict(other.named_parameters())
    names = [
        name for name, p in net.named_parameters() if p.ndim < 2 or "e" in name.split(".")[0][:2]
    ]
    names = [n for n in names if n.startswith(("embedding", "head")) or named[n].ndim < 2]
    theirs = torch.optim.AdamW(
        [named[n] for n in names], lr=0.01, weight_decay=0.0, betas=(0.8, 0.95), eps=1e-9
    )
    ids = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(5))
    net.loss_sum(ids, ids).backward()
    other.loss_sum(ids, ids).backward()
    ours.step()
    theirs.step()
    mine = dict(net.named_parameters())
    for name in names:
        torch.testing.assert_close(mine[name], named[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "muon"])
def test_each_optimizer_learns(kind: str) -> None:
    net = model()
    rate = {"sgd": 0.03, "muon": 0.05}.get(kind, 1e-2)
    optimizer = create_optimizer(net, kind, rate, momentum=0.9)  # type: ignore[arg-type]
    ids = torch.arange(12).repeat(2, 1)
    losses = []
    for _ in range(60):
        loss = net(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_nonsense_is_named() -> None:
    with pytest.raises(ConfigurationError) as error:
        create_optimizer(model(), "adamm", -1.0, -2.0, (2.0, 0.9), 0.0)  # type: ignore[arg-type]
    for word in ("adamm", "learning_rate", "weight_decay", "betas", "eps"):
        assert word in str(error.value)
    frozen = model().requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no trainable"):
        create_optimizer(frozen)
