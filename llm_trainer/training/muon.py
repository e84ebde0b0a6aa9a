"""Muon for the hidden matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024) replaces a matrix's momentum by its nearest orthogonal matrix, found by
five Newton-Schulz steps in bfloat16. The numbers are those of `torch.optim.Muon`; two things
differ in how they are computed. Matrices that the model stores fused (query, key and value; gate
and up) are orthogonalised block by block, as if they were stored apart. And blocks of equal shape
go through the iteration as one batch, which for a small model is several times faster than one by
one. Over several processes each matrix is orthogonalised by one of them; see `matrix_exchange`.
Price: one momentum buffer a matrix, and per step about 30 d_out d_in min(d_out, d_in)
floating-point operations a block.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from llm_trainer.training.reduction import local

if TYPE_CHECKING:
    from llm_trainer.training.matrix_exchange import Exchange

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
        exchange: shares the matrices out over the ranks; None for one process.
        alone: orthogonalise block by block, and never fuse, so that no bit of a matrix depends on
            which others or which of its rows are here.
    """

    def __init__(
        self, groups: list[dict[str, Any]], blocks: Mapping[Tensor, tuple[int, ...]],
        exchange: Exchange | None = None, *, alone: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0})
        self._blocks = dict(blocks)
        self._exchange, self._alone = exchange, alone
        vectors = [group for group in self.param_groups if not group["muon"]]
        how = {"foreach": True, "fused": False} if alone else {"fused": True}
        self._adamw = torch.optim.AdamW(vectors, **how) if vectors else None  # type: ignore[arg-type]
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
        weights = [local(parameter) for parameter in parameters]
        given, kept = [local(gradient) for gradient in gradients], [local(m) for m in momenta]
        torch._foreach_lerp_(kept, given, 1 - group["momentum"])
        updates = torch._foreach_lerp(given, kept, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        if self._exchange is None:
            self._apply_here(group, parameters, updates)
        else:
            self._apply_shared(group, parameters, updates, self._exchange)

    def _rows(self, parameter: Tensor) -> tuple[int, ...]:
        return self._blocks.get(parameter, (parameter.shape[0],))

    def _apply_here(
        self, group: dict[str, Any], parameters: Sequence[Tensor], updates: Sequence[Tensor]
    ) -> None:
        """Move each block by its direction; blocks of one shape are a batch."""
        equal: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, update in zip(parameters, updates, strict=True):
            rows = list(self._rows(parameter))
            for part, target in zip(update.split(rows), parameter.split(rows), strict=True):
                wide = part.mT if part.shape[0] > part.shape[1] else part
                key = (len(equal),) if self._alone else tuple(wide.shape)
                equal[key].append((wide, target))
        for blocks in equal.values():
            directions = orthogonalize(torch.stack([wide for wide, _ in blocks]))
            for direction, (wide, target) in zip(directions.unbind(), blocks, strict=True):
                out = direction if wide.shape == target.shape else direction.mT
                target.add_(out, alpha=-_rate(group, *target.shape))

    def _apply_shared(
        self, group: dict[str, Any], parameters: Sequence[Tensor], updates: Sequence[Tensor],
        exchange: Exchange,
    ) -> None:  # fmt: skip
        """The same, each parameter's direction found by one of the ranks."""
        equal: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, update in zip(parameters, updates, strict=True):
            equal[tuple(parameter.shape), self._rows(parameter)].append((parameter, update))
        for (shape, rows), members in equal.items():
            for start in range(0, len(members), exchange.size):
                some = members[start : start + exchange.size]
                found = exchange.directions(
                    [update for _, update in some], shape[0], partial(_direction, rows=rows)
                )
                for (parameter, _), direction in zip(some, found, strict=True):
                    self._move(group, parameter, direction, rows)

    def _move(
        self, group: dict[str, Any], parameter: Tensor, direction: Tensor, rows: tuple[int, ...]
    ) -> None:
        """Add to the rows that are here; blocks of another height have another rate."""
        target = local(parameter)
        here = _first_row(parameter)
        start = 0
        for height in rows:
            first, last = max(start, here), min(start + height, here + len(target))
            if first < last:
                target[first - here : last - here].add_(
                    direction[first - here : last - here],
                    alpha=-_rate(group, height, target.shape[1]),
                )
            start += height


def _direction(whole: Tensor, rows: tuple[int, ...]) -> Tensor:
    """The blocks of a matrix, (height, width), each orthogonalised."""
    parts = []
    for part in whole.split(list(rows)):
        tall = part.shape[0] > part.shape[1]
        # stacked as in one process: a product's bits depend on the layout
        direction = orthogonalize(torch.stack([part.mT if tall else part]))[0]
        parts.append(direction.mT if tall else direction)
    return torch.cat(parts)


def _rate(group: dict[str, Any], height: int, width: int) -> float:
    rate: float = group["lr"] * math.sqrt(max(1.0, height / width))
    return rate


def _first_row(parameter: Tensor) -> int:
    """Number of the first row that is on this rank."""
    if len(local(parameter)) == parameter.shape[0]:
        return 0
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    dimension = mesh.ndim - 1  # the last one shards, one before it replicates
    each = -(-parameter.shape[0] // mesh.size(dimension))
    return min(parameter.shape[0], mesh.get_local_rank(dimension) * each)
