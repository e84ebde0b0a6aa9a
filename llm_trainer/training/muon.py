"""Muon for the hidden matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024) replaces a matrix's momentum by its nearest orthogonal matrix, found by
five Newton-Schulz steps in bfloat16. The numbers are those of `torch.optim.Muon`; two things
differ in how they are computed. Matrices that the model stores fused (query, key and value; gate
and up) are orthogonalised block by block, as if they were stored apart. And blocks of equal shape
go through the iteration as one batch, which for a small model is several times faster than one by
one. Price: one momentum buffer a matrix, and per step about 30 d_out d_in min(d_out, d_in)
floating-point operations a block.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5
NS_EPS = 1e-7


def orthogonalize(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T of a batch, (batch, rows <= columns), in bfloat16."""
    a, b, c = NS_COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=NS_EPS)
    for _ in range(NS_STEPS):
        gram = x @ x.mT  # (batch, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonAdamW(Optimizer):
    """Muon on the groups that say `muon: True`, torch's AdamW on the others.

    Groups of Muon have lr, weight_decay and momentum (Nesterov); those of AdamW lr, weight_decay,
    betas and eps.

    Args:
        groups: parameter groups, each with a `muon` key.
        blocks: parameter -> rows of its fused blocks; a parameter that is not named is one block.
    """

    def __init__(
        self, groups: list[dict[str, Any]], blocks: Mapping[Tensor, tuple[int, ...]]
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0})
        self._blocks = dict(blocks)
        vectors = [group for group in self.param_groups if not group["muon"]]
        self._adamw = torch.optim.AdamW(vectors, fused=True) if vectors else None
        self._share()

    def _share(self) -> None:
        # one set of groups and one state for both, so that schedules and checkpoints see all of it
        if self._adamw is not None:
            self._adamw.param_groups = [g for g in self.param_groups if not g["muon"]]
            self._adamw.state = self.state
            for group in self._adamw.param_groups:
                for name, value in self._adamw.defaults.items():
                    group.setdefault(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One optimizer step over all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._muon_step(group)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        gradients: list[Tensor] = [p.grad for p in parameters]
        momenta: list[Tensor] = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            momenta.append(state["momentum_buffer"])
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        equal: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, update in zip(parameters, updates, strict=True):
            rows = list(self._blocks.get(parameter, (parameter.shape[0],)))
            for part, target in zip(update.split(rows), parameter.split(rows), strict=True):
                wide = part.mT if part.shape[0] > part.shape[1] else part
                equal[tuple(wide.shape)].append((wide, target))
        for blocks in equal.values():
            directions = orthogonalize(torch.stack([wide for wide, _ in blocks]))
            for direction, (wide, target) in zip(directions.unbind(), blocks, strict=True):
                out = direction if wide.shape == target.shape else direction.mT
                rate = group["lr"] * math.sqrt(max(1.0, target.shape[0] / target.shape[1]))
                target.add_(out, alpha=-rate)
