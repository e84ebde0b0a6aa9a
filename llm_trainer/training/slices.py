"""Which rows of a tensor a process has: all of them, or its shard under FSDP.

FSDP2 cuts each parameter along its first dimension as `torch.chunk` does: ranks have ceil(n / W)
rows each, the last ones fewer or none. Under hybrid sharding each node has all rows, and the first
node speaks for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_trainer.models.stored_tensors import StoredTensors
from llm_trainer.training.ranks import Ranks


@dataclass(frozen=True)
class Part:
    """A share of all rows, as files are made of them."""

    number: int = 0
    """From 0."""
    count: int = 1
    speaks: bool = True
    """Whether this process writes it; others may have the same rows."""


@dataclass(frozen=True)
class Slice:
    """The rows of a tensor in this process."""

    local: Tensor
    """(rows, ...), sharing the memory of the tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    first: int
    """Number of its first row in the whole."""
    part: Part | None
    """None for a tensor that each process has whole."""

    @property
    def rows(self) -> int:
        """How many rows are here; one, if the tensor has no dimension."""
        return self.local.shape[0] if self.shape else 1


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; torch.distributed is not touched for a plain one."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def slice_of(tensor: Tensor) -> Slice:
    """The rows of `tensor` that are here."""
    if not is_sharded(tensor):
        return Slice(tensor.detach(), tuple(tensor.shape), 0, None)
    sharded: Any = tensor
    coordinate = sharded.device_mesh.get_coordinate()
    assert coordinate is not None, "a process outside of the mesh has no rows"
    number, count, speaks = 0, 1, True
    for dimension, placement in enumerate(sharded.placements):
        if placement.is_replicate():
            speaks = speaks and coordinate[dimension] == 0
        else:
            assert placement.is_shard(0), placement
            assert count == 1, "rows are cut once"
            number, count = coordinate[dimension], sharded.device_mesh.size(dimension)
    with torch.no_grad():
        local: Tensor = sharded.to_local().detach()
    rows = sharded.shape[0]
    each = -(-rows // count)
    first = min(rows, number * each)
    assert local.shape[0] == min(rows, first + each) - first, (sharded.shape, local.shape)
    return Slice(local, tuple(sharded.shape), first, Part(number, count, speaks))


def part_of(tensors: Mapping[str, Tensor], ranks: Ranks) -> Part:
    """The share that this process writes: its shard, or on rank 0 all of what is nowhere cut."""
    for tensor in tensors.values():
        part = slice_of(tensor).part
        if part is not None:
            return part
    return Part(speaks=ranks.rank == 0)


def fill(tensor: Tensor, stored: StoredTensors, name: str) -> None:
    """Copy the rows that are here from files into a tensor; nothing else is read."""
    here = slice_of(tensor)
    if here.rows:
        here.local.copy_(stored.rows(name, here.first, here.rows))
