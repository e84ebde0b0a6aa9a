"""Sums whose bits do not depend on how many processes take part.

Floating-point addition is commutative, but not associative, so the order is fixed here once and for
all. `PartialSums` adds the gradients of a step's micro-batches in a binary tree over their numbers,
((0 + 1) + (2 + 3)) + ..., by a stack that works like a binary counter. A process that has an
aligned power of two of them arrives at an inner node of that tree; `tree_all_reduce` and
`TreeReduceScatter` add such nodes over processes. `tree_norm` adds squares in float64 in an order
that follows from the shapes alone. Price: a copy of the gradients for each level of the stack in
use, at most log2 of the micro-batches of a process; sums between processes do not overlap with the
backward pass of DDP; two passes over the gradients in float64 for the norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BUCKET = 1 << 23
"""Elements that are exchanged at a time between replicas: 32 MiB of float32."""
BLOCK = 1 << 18
"""Elements that are squared at a time, so that they stay in the cache."""


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here, sharing its memory: of a DTensor, this rank's rows."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor.detach()
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor), type(tensor)
    with torch.no_grad():
        rows: Tensor = tensor.to_local()
    return rows


def is_power_of_two(number: int) -> bool:
    """Whether a number from 1 is 1, 2, 4, 8, ..."""
    return number & (number - 1) == 0


class PartialSums:
    """Gradients of micro-batches 0, 1, 2, ... of a step, added in a binary tree.

    After n of them the stack holds one sum for each binary digit of n that is 1, the largest first.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._parameters = {name: p for name, p in parameters if p.requires_grad}
        self._stack: list[tuple[int, dict[str, Tensor]]] = []

    def push(self) -> None:
        """Take the gradient of the next micro-batch away from the parameters."""
        gradients = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        for parameter in self._parameters.values():
            parameter.grad = None
        level = 0
        while self._stack and self._stack[-1][0] == level:
            gradients = _added(self._stack.pop()[1], gradients)
            level += 1
        self._stack.append((level, gradients))

    def total(self) -> None:
        """Give the parameters the gradient of all micro-batches, and begin anew."""
        _, gradients = self._stack.pop()
        while self._stack:
            gradients = _added(self._stack.pop()[1], gradients)
        for name, gradient in gradients.items():
            self._parameters[name].grad = gradient

    def tensors(self) -> dict[str, Tensor]:
        """The stack for a checkpoint: `<name>|<level>` -> tensor."""
        return {
            f"{name}|{level}": tensor
            for level, gradients in self._stack
            for name, tensor in gradients.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        found: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, level = key.rpartition("|")
            found.setdefault(int(level), {})[name] = tensor
        self._stack = sorted(found.items(), reverse=True)

    def clear(self) -> None:
        """Forget all."""
        self._stack.clear()


@torch.no_grad()
def _added(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    """left + right, in the memory of left; None counts as zero."""
    common = [name for name in left if name in right]
    torch._foreach_add_([local(left[n]) for n in common], [local(right[n]) for n in common])
    return {**right, **left}


def tree_add(terms: Sequence[Tensor]) -> Tensor:
    """The sum of nodes 0, 1, 2, ... in the order of `PartialSums`; may overwrite them."""
    stack: list[tuple[int, Tensor]] = []
    for term in terms:
        level = 0
        while stack and stack[-1][0] == level:
            term = stack.pop()[1].add_(term)
            level += 1
        stack.append((level, term))
    _, total = stack.pop()
    while stack:
        total = stack.pop()[1].add_(total)
    return total


def gather_into(table: Tensor, given: Tensor, group: ProcessGroup | None) -> None:
    """Into `table`, (ranks * n,), the tensors of all ranks, (n,), by rank."""
    import torch.distributed as dist

    # the newer of its two names, where there are both
    name = "all_gather_single" if "all_gather_single" in dir(dist) else "all_gather_into_tensor"
    vars(dist)[name](table, given, group=group)


def scatter_sums(received: Tensor, given: Tensor, group: ProcessGroup | None) -> None:
    """Into `received`, (n,), this rank's part of the sum of all `given`, (ranks * n,)."""
    import torch.distributed as dist

    terms = torch.empty_like(given)
    dist.all_to_all_single(terms, given, group=group)
    received.copy_(tree_add(terms.chunk(given.numel() // received.numel())))


@torch.no_grad()
def tree_all_reduce(tensors: Sequence[Tensor], group: ProcessGroup | None, size: int) -> None:
    """Overwrite plain tensors of one type by their sums over the `size` ranks of a group.

    Each rank adds up its part in tree order, then all get all parts: as many bytes as a ring.
    """
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        each = -(-flat.numel() // size)
        padded = nn.functional.pad(flat, (0, each * size - flat.numel()))
        part = torch.empty(each, dtype=flat.dtype, device=flat.device)
        scatter_sums(part, padded, group)
        gather_into(padded, part, group)
        sums = padded[: flat.numel()].split([tensor.numel() for tensor in bucket])
        for tensor, total in zip(bucket, sums, strict=True):
            tensor.copy_(total.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


class TreeReduceScatter:
    """FSDP's reduce-scatter with a fixed order of addition; see `FSDPModule`."""

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Room for what is sent or received."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: ProcessGroup, op: Any,
        async_op: bool = False,
    ) -> None:  # fmt: skip
        """Sum `input_tensor`, (ranks * n,), into `output_tensor`, (n,)."""
        import torch.distributed as dist

        assert op == dist.ReduceOp.SUM, op
        assert not async_op, "nobody waits for it"
        scatter_sums(output_tensor, input_tensor, group)


@torch.no_grad()
def tree_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a float32 scalar on the CPU.

    Squares of float32 are exact in float64. Those of a row are added by halving the row, those of
    rows by halving the column of their sums, those of tensors one after the other; so it makes no
    difference where the rows of a DTensor are.
    """
    sums = _all_rows([_row_sums(local(gradient)) for gradient in gradients], gradients)
    totals = torch.stack([_halved(rows) for rows in sums]).tolist() if sums else []
    squares = 0.0
    for total in totals:  # one by one, unlike `sum`, which newer Pythons round less
        squares += total
    return torch.tensor(squares, dtype=torch.float64).sqrt().float()


def _row_sums(tensor: Tensor) -> Tensor:
    """Sum of squares of each row, (rows,) float64; elements of a vector are rows."""
    if tensor.ndim < 2:
        return tensor.reshape(-1).double().square_()
    table = tensor.reshape(tensor.shape[0], -1)
    step = max(1, BLOCK // max(1, table.shape[1]))
    parts = [_halved(rows.double().square_()) for rows in table.split(step)]
    return torch.cat(parts)


def _halved(x: Tensor) -> Tensor:
    """Sum over the last dimension, in an order that follows from its length alone."""
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        rest = x[..., half:]
        x = x[..., :half].clone()
        x[..., : rest.shape[-1]] += rest
    return x[..., 0]


def _all_rows(sums: list[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The sums of all rows where this rank has some of them, by one exchange."""
    if not gradients or type(gradients[0]) is Tensor:
        return sums
    from torch.distributed.tensor import DTensor

    first = gradients[0]
    assert isinstance(first, DTensor)
    mesh = first.device_mesh
    dimension = mesh.ndim - 1  # the last one shards, one before it replicates
    group, size = mesh.get_group(dimension), mesh.size(dimension)
    each = [-(-gradient.shape[0] // size) for gradient in gradients]
    mine = torch.cat(
        [nn.functional.pad(s, (0, n - s.numel())) for s, n in zip(sums, each, strict=True)]
    )
    table = torch.empty(size, mine.numel(), dtype=mine.dtype, device=mine.device)
    gather_into(table.view(-1), mine, group)
    columns = table.split(each, dim=1)  # (ranks, rows of each)
    return [c.reshape(-1)[: g.shape[0]] for c, g in zip(columns, gradients, strict=True)]
