"""How the processes share the work of a step: who takes which micro-batch, and how gradients meet.

`OneProcess` is the plain loop. `Replicas` has the whole model on each rank and adds the gradients
up by torch's DistributedDataParallel while the backward pass still runs. Losses are divided by the
number of targets of the whole step before the backward pass, so gradients are added, not averaged.
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

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket


class OneProcess:
    """All micro-batches, one after the other."""

    def __init__(
        self, model: TransformerLM, config: TrainingConfig, execution: Execution, world: World
    ) -> None:
        self.model, self.world = model, world
        self.total = config.micro_batches_per_step
        self.loss = execution.loss_function(model)

    @property
    def share(self) -> int:
        """Micro-batches of each rank in a step."""
        return self.total // self.world.size

    def micro_batches(self, step: int) -> range:
        """Numbers of this rank's micro-batches of optimizer step `step`."""
        first = step * self.total + self.world.rank * self.share
        return range(first, first + self.share)

    def in_order(self, losses: list[float]) -> list[float]:
        """The losses of all ranks' micro-batches in the order of their numbers."""
        if self.world.size == 1 or not losses:
            return losses
        rows = self.world.gather(torch.tensor(losses, dtype=torch.float64))
        return [float(loss) for row in rows for loss in row]

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Forward and backward pass of a micro-batch happen in this."""
        return nullcontext()


class Replicas(OneProcess):
    """The whole model on each rank, which takes consecutive micro-batches."""

    def __init__(
        self, model: TransformerLM, config: TrainingConfig, execution: Execution, world: World
    ) -> None:
        super().__init__(model, config, execution, world)
        # the same weights everywhere, whatever the ranks were seeded with
        world.broadcast([parameter.data for parameter in model.parameters()])
        with warnings.catch_warnings():
            # its new name is not known to all releases that we allow
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self._replica = nn.parallel.DistributedDataParallel(
                _Loss(model, execution), broadcast_buffers=False, gradient_as_bucket_view=True,
                init_sync=False,
            )  # fmt: skip
        # torch reads the hook's annotations, which a lambda has none of
        self._replica.register_comm_hook(None, lambda _, bucket: _add(bucket))
        self.loss = self._replica

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients meet in the last one only."""
        return nullcontext() if last else self._replica.no_sync()


class _Loss(nn.Module):
    """The loss of a micro-batch as a module's forward, which is what torch wraps."""

    def __init__(self, model: TransformerLM, execution: Execution) -> None:
        super().__init__()
        self.model = model
        self._loss = execution.loss_function(model)

    def forward(self, input_ids: Tensor, labels: Tensor, segments: Tensor | None) -> Tensor:
        """The summed loss, a scalar."""
        return self._loss(input_ids, labels, segments)


def _add(bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Add up a bucket of gradients over the ranks: torch's own hooks take the mean."""
    import torch.distributed as dist

    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[list[Tensor]] = work.get_future()
    return future.then(lambda done: done.value()[0])


def make_parallel(
    model: TransformerLM, config: TrainingConfig, execution: Execution, world: World
) -> OneProcess:
    """The way of sharing the work that the configuration and the processes ask for."""
    kind = OneProcess if world.size == 1 else Replicas
    return kind(model, config, execution, world)
