"""Weights, gradients and optimizer state cut into shards, one a rank, by torch's FSDP2.

Each block is gathered when it computes and dropped after, forward and backward; embedding, final
norm and head stay whole from the forward to the backward pass. Weights are gathered in float32, so
that all numbers are those of one process. Price: three times the bytes of the weights travel each
micro-batch (gathered twice, gradients scattered once), against twice a step for replicas.
Source: Zhao et al. 2023; torch's `fully_shard`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llm_trainer.config.training import TrainingConfig
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.distributed import World
from llm_trainer.training.execution import Execution
from llm_trainer.training.matrix_exchange import Exchange, ShardExchange
from llm_trainer.training.one_process import OneProcess
from llm_trainer.training.reduction import TreeReduceScatter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed.device_mesh import DeviceMesh


class Shards(OneProcess):
    """A shard of everything on each rank; under `hybrid_shard`, on each rank of a machine.

    Ranks take turns with the micro-batches, so that those of one moment are neighbours: in tree
    order their sum is one node, and what remains are sums of shards.
    """

    def __init__(
        self, model: TransformerLM, config: TrainingConfig, execution: Execution, world: World
    ) -> None:
        machines = world.size // world.local_size if config.hybrid_shard else 1
        self._mesh = _mesh(execution.device.type, machines, world.size // machines)
        shard(model, self._mesh, world, in_tree_order=config.deterministic_reduction)
        super().__init__(model, config, execution, world)

    def compiles_blocks(self, config: TrainingConfig) -> bool:  # noqa: ARG002
        """Whether what is compiled is each block, so that its gathering stays outside."""
        return True

    def micro_batches(self, step: int) -> range:
        """Numbers of this rank's micro-batches of optimizer step `step`."""
        first = step * self.total
        return range(first + self.world.rank, first + self.total, self.world.size)

    def after(self, number: int) -> int:
        """Number of this rank's micro-batch after `number`."""
        return number + self.world.size

    def in_order(self, losses: list[float]) -> list[float]:
        """The losses of all ranks' micro-batches in the order of their numbers."""
        found, share = super().in_order(losses), len(losses)
        return [found[r * share + n] for n in range(share) for r in range(self.world.size)]

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Gradients are scattered in each micro-batch, and go between machines in the last one.

        Keeping whole gradients until the last micro-batch would cost what sharding saves.
        """
        if self._mesh.ndim == 2 and self.sums is None:
            self.model.set_requires_all_reduce(last)  # type: ignore[operator]
        yield

    def norm(self) -> Tensor:
        """Of the whole gradient, a scalar."""
        if self.sums is not None:
            return super().norm()
        norm: Any = torch.nn.utils.get_total_norm(self.gradients())
        total: Tensor = norm.full_tensor()
        return total

    def drop_gathered(self) -> None:
        """After a forward pass without a backward one: what only the latter would drop."""
        self.model.reshard()  # type: ignore[operator]

    def exchange(self) -> Exchange:
        """How Muon's matrices meet."""
        dimension = self._mesh.ndim - 1
        return ShardExchange(
            self._mesh.get_group(dimension), self._mesh.get_local_rank(dimension),
            self._mesh.size(dimension),
        )  # fmt: skip

    def whole_model(self) -> TransformerLM | None:
        """A whole copy on the CPU of rank 0; None elsewhere. All ranks call it."""
        whole = None
        if self.world.is_main:
            with torch.random.fork_rng(devices=[]):
                whole = TransformerLM(self.model.config)
            whole.tokenizer_digest = self.model.tokenizer_digest
        targets = dict(whole.named_parameters()) if whole is not None else {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                tensor = parameter.full_tensor()  # type: ignore[attr-defined]
                if whole is not None:
                    targets[name].copy_(tensor)
        return whole


def shard(model: TransformerLM, mesh: DeviceMesh, world: World, *, in_tree_order: bool) -> None:
    """Cut the weights of a model, which all ranks have whole, into shards, in place."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    world.broadcast([parameter.data for parameter in model.parameters()])
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # sums, not means: the loss is already divided by the targets of all ranks
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if in_tree_order:
                module.set_custom_reduce_scatter(TreeReduceScatter())  # type: ignore[arg-type]
    for method in ("loss_sum", "token_losses"):
        register_fsdp_forward_method(model, method)


def _mesh(device: str, machines: int, shards: int) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    if machines == 1:
        return init_device_mesh(device, (shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (machines, shards), mesh_dim_names=("replicate", "shard"))
