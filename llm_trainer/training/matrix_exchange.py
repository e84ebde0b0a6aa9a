"""Muon's matrices over several ranks: each is orthogonalised by one rank, whole.

Matrices of one shape are taken as many at a time as there are ranks; number i of these is rank i's
to work on. Their directions come back in bfloat16, which is what the iteration computes in, and so
do the rows that go there: nothing is rounded that one process would not round. Price: two bytes a
parameter to all ranks for replicas; the same to one rank, and back, for shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from llm_trainer.training.reduction import gather_into

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BYTES = 2
"""Of a number in bfloat16."""


@runtime_checkable
class Exchange(Protocol):
    """Shares out matrices that several ranks have, whole or by rows."""

    size: int
    """How many ranks share the work, and matrices are given at a time."""

    def directions(
        self, rows: Sequence[Tensor], height: int, work: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """Apply `work` to at most `size` matrices of one shape.

        Args:
            rows: of each matrix what is on this rank, (rows here, width).
            height: rows of the whole matrix.
            work: (height, width) to the same, both bfloat16; called for this rank's matrix.

        Returns:
            The same rows of each result, bfloat16.
        """


class ReplicaExchange:
    """Each rank has all matrices whole."""

    def __init__(self, group: ProcessGroup | None, rank: int, size: int) -> None:
        self._group, self._rank, self.size = group, rank, size

    def directions(
        self, rows: Sequence[Tensor], height: int, work: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """See `Exchange`."""
        width = rows[0].shape[1]
        mine = rows[0].new_zeros(height, width, dtype=torch.bfloat16)
        if self._rank < len(rows):
            mine = work(rows[self._rank].bfloat16()).contiguous()
        table = torch.empty(self.size, height, width, dtype=torch.bfloat16, device=mine.device)
        # as bytes, which all back ends can send
        gather_into(_bytes(table), _bytes(mine), self._group)
        return list(table[: len(rows)])


class ShardExchange:
    """Each rank has ceil(height / size) rows of each matrix, the last ones fewer or none."""

    def __init__(self, group: ProcessGroup | None, rank: int, size: int) -> None:
        self._group, self._rank, self.size = group, rank, size

    def directions(
        self, rows: Sequence[Tensor], height: int, work: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """See `Exchange`."""
        width, device = rows[0].shape[1], rows[0].device
        each = -(-height // self.size)
        heights = [min(height, (r + 1) * each) - min(height, r * each) for r in range(self.size)]
        owner = self._rank < len(rows)
        # sent by this rank to each, and received from each
        out = [heights[self._rank] * width * BYTES * (r < len(rows)) for r in range(self.size)]
        back = [n * width * BYTES * owner for n in heights]
        sent = torch.cat([part.bfloat16().reshape(-1) for part in rows])
        whole = torch.empty(height * owner, width, dtype=torch.bfloat16, device=device)
        dist.all_to_all_single(_bytes(whole), _bytes(sent), back, out, group=self._group)
        if owner:
            whole = work(whole).contiguous()
        found = torch.empty_like(sent)
        dist.all_to_all_single(_bytes(found), _bytes(whole), out, back, group=self._group)
        return list(found.view(len(rows), heights[self._rank], width))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
