"""The whole model on each rank: torch's DistributedDataParallel, or sums in tree order.

`Replicas` adds the gradients up over the ranks, bucket by bucket, while the backward pass still
runs. `TreeReplicas` gives that up for bits that do not depend on the number of processes.
Price: all weights, gradients and optimizer states on each rank; twice the bytes of the gradients
travel each step, and under muon half as many again (see `matrix_exchange`).
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_trainer.config.training import TrainingConfig
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.distributed import World
from llm_trainer.training.execution import Execution
from llm_trainer.training.matrix_exchange import Exchange, ReplicaExchange
from llm_trainer.training.one_process import OneProcess
from llm_trainer.training.reduction import tree_all_reduce

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket


class TreeReplicas(OneProcess):
    """Each rank adds up a subtree of its own; these meet after the last micro-batch."""

    def __init__(
        self, model: TransformerLM, config: TrainingConfig, execution: Execution, world: World
    ) -> None:
        # the same weights everywhere, whatever the ranks were seeded with
        world.broadcast([parameter.data for parameter in model.parameters()])
        super().__init__(model, config, execution, world)

    def reduce(self) -> None:
        """Add the ranks' subtrees up."""
        super().reduce()
        tree_all_reduce(self.gradients(), None, self.world.size)

    def exchange(self) -> Exchange:
        """How Muon's matrices are shared out."""
        return ReplicaExchange(None, self.world.rank, self.world.size)


class Replicas(OneProcess):
    """Gradients meet in the backward pass of the last micro-batch."""

    def __init__(
        self, model: TransformerLM, config: TrainingConfig, execution: Execution, world: World
    ) -> None:
        world.broadcast([parameter.data for parameter in model.parameters()])
        super().__init__(model, config, execution, world)
        with warnings.catch_warnings():
            # its new name is not known to all releases that we allow
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self._replica = nn.parallel.DistributedDataParallel(
                _Loss(model, self.loss), broadcast_buffers=False, gradient_as_bucket_view=True,
                init_sync=False,
            )  # fmt: skip
        # torch reads the hook's annotations, which a lambda has none of
        self._replica.register_comm_hook(None, lambda _, bucket: _add(bucket))
        self.loss = self._replica

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients meet in the last one only."""
        return nullcontext() if last else self._replica.no_sync()

    def exchange(self) -> Exchange:
        """How Muon's matrices are shared out."""
        return ReplicaExchange(None, self.world.rank, self.world.size)


class _Loss(nn.Module):
    """The loss of a micro-batch as a module's forward, which is what torch wraps."""

    def __init__(self, model: TransformerLM, loss: Any) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, input_ids: Tensor, labels: Tensor, segments: Tensor | None) -> Tensor:
        """The summed loss, a scalar."""
        loss: Tensor = self._loss(input_ids, labels, segments)
        return loss


def _add(bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Add up a bucket of gradients over the ranks: torch's own hooks take the mean."""
    import torch.distributed as dist

    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[list[Tensor]] = work.get_future()
    return future.then(lambda done: done.value()[0])
