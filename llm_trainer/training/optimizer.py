"""Optimizers by name, with parameter groups by role.

Matrices are decayed, vectors (norms, biases) and embeddings are not. Under `muon` the hidden
matrices go to Muon and the rest to AdamW; embedding, head and vectors may each have a rate of
their own. Each group carries `peak_lr`, from which the schedule sets `lr` at every step.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm_trainer.config.checks import choice, flags, instance, number, refuse, shown
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.training.matrix_exchange import Exchange
from llm_trainer.training.muon import MuonAdamW

OptimizerType = Literal["adamw", "adam", "sgd", "muon"]
Role = Literal["matrix", "embedding", "head", "vector"]


def parameter_roles(model: nn.Module) -> dict[Role, list[tuple[str, nn.Parameter]]]:
    """The trainable parameters of any module by what they do, in the module's order.

    A weight that an embedding and an output matrix share is an embedding.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    roles: dict[Role, list[tuple[str, nn.Parameter]]] = {
        "matrix": [], "embedding": [], "head": [], "vector": [],
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            role: Role = "embedding"
        elif parameter.ndim < 2:
            role = "vector"
        elif name in ("head.weight", "lm_head.weight"):
            role = "head"
        else:
            role = "matrix"
        roles[role].append((name, parameter))
    return roles


def create_optimizer(
    model: nn.Module,
    optimizer_type: OptimizerType = "adamw",
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    momentum: float = 0.95,
    embedding_learning_rate: float | None = None,
    head_learning_rate: float | None = None,
    vector_learning_rate: float | None = None,
    exchange: Exchange | None = None,
    separable: bool = False,
) -> Optimizer:
    """Build an optimizer over the trainable parameters of `model`.

    Args:
        optimizer_type: adamw, adam (L2 instead of decoupled decay), sgd, or muon.
        learning_rate: peak rate of the hidden matrices, and of what has no rate of its own.
        weight_decay: of hidden matrices and an untied head; nothing else is decayed.
        betas, eps: of Adam.
        momentum: of muon (Nesterov) and sgd.
        embedding_learning_rate, head_learning_rate, vector_learning_rate: peak rates by role; the
            last two default to the first, and that to `learning_rate`.
        exchange: shares Muon's matrices out over several ranks.
        separable: no bit of a parameter depends on which others, or which of its rows, are in this
            process. On a CPU torch's fused kernels round the last elements of a tensor otherwise.

    Raises:
        ConfigurationError: unknown type, impossible number, or a model without parameters.
    """
    _check(model, optimizer_type, learning_rate, weight_decay, betas, eps, momentum)
    refuse(
        ConfigurationError,
        number("embedding_learning_rate", embedding_learning_rate, above=0, none=True),
        number("head_learning_rate", head_learning_rate, above=0, none=True),
        number("vector_learning_rate", vector_learning_rate, above=0, none=True),
        instance("exchange", exchange, Exchange, none=True, hint="which the trainer makes"),
        flags(separable=separable),
    )
    roles = parameter_roles(model)
    if not any(roles.values()):
        raise ConfigurationError(
            f"model (a {type(model).__name__}) has no trainable parameters; give one that has some"
        )
    embedding_rate = learning_rate if embedding_learning_rate is None else embedding_learning_rate
    rates: dict[Role, float] = {
        "matrix": learning_rate,
        "embedding": embedding_rate,
        "head": embedding_rate if head_learning_rate is None else head_learning_rate,
        "vector": embedding_rate if vector_learning_rate is None else vector_learning_rate,
    }
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for _, parameter in members],
            "role": role,
            "lr": rates[role],
            "peak_lr": rates[role],
            "weight_decay": weight_decay if role in ("matrix", "head") else 0.0,
        }
        for role, members in roles.items()
        if members
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    how = {"foreach": True, "fused": False} if separable else {"fused": fused}
    match optimizer_type:
        case "adamw":
            return torch.optim.AdamW(groups, betas=betas, eps=eps, **how)
        case "adam":
            return torch.optim.Adam(groups, betas=betas, eps=eps, **how)
        case "sgd":
            return torch.optim.SGD(groups, momentum=momentum)
        case "muon":
            for group in groups:
                group["muon"] = group["role"] == "matrix"
                if group["muon"]:
                    group["momentum"] = momentum
                else:
                    group |= {"betas": betas, "eps": eps}
            return MuonAdamW(groups, fused_blocks(model), exchange, alone=separable)


def optimizer_from_config(
    model: nn.Module, config: TrainingConfig, exchange: Exchange | None = None
) -> Optimizer:
    """The optimizer that a training configuration describes; for `exchange` see `MuonAdamW`."""
    return create_optimizer(
        model,
        config.optimizer,
        config.learning_rate,
        config.weight_decay,
        (config.beta1, config.beta2),
        config.eps,
        momentum=config.momentum,
        embedding_learning_rate=config.embedding_learning_rate,
        head_learning_rate=config.head_learning_rate,
        vector_learning_rate=config.vector_learning_rate,
        exchange=exchange,
        separable=config.deterministic_reduction,
    )


def fused_blocks(model: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """Parameter -> rows of each matrix that is stored fused in it, for the modules that say so."""
    return {
        module.get_parameter(name): rows
        for module in model.modules()
        if isinstance(blocks := module.__dict__.get("fused_blocks"), dict)
        for name, rows in blocks.items()
    }


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set each group's rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _check(
    model: nn.Module, optimizer_type: str, learning_rate: float, weight_decay: float,
    betas: tuple[float, float], eps: float, momentum: float,
) -> None:  # fmt: skip
    pair = isinstance(betas, tuple | list) and len(betas) == 2
    refuse(
        ConfigurationError,
        instance("model", model, nn.Module),
        choice("optimizer_type", optimizer_type, get_args(OptimizerType)),
        number("learning_rate", learning_rate, above=0),
        number("weight_decay", weight_decay, 0),
        [] if pair else [f"betas ({shown(betas)}) must be two numbers, such as (0.9, 0.999)"],
        *(number("each of betas", beta, 0, below=1) for beta in (betas if pair else ())),
        number("eps", eps, above=0),
        number("momentum", momentum, 0, below=1),
    )
