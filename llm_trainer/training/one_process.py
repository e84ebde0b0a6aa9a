"""The work of a step in one process, and what all ways of sharing it have in common.

`parallel` chooses the way; `replicas` and `sharding` are those of several processes. Losses are
divided by the number of targets of the whole step before the backward pass, so gradients are added
over micro-batches and ranks, and never averaged.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llm_trainer.config.training import TrainingConfig
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.distributed import World
from llm_trainer.training.execution import Execution
from llm_trainer.training.reduction import PartialSums, tree_norm

if TYPE_CHECKING:
    from llm_trainer.training.matrix_exchange import Exchange


class OneProcess:
    """All micro-batches, one after the other."""

    def __init__(
        self, model: TransformerLM, config: TrainingConfig, execution: Execution, world: World
    ) -> None:
        self.model, self.world, self._execution = model, world, execution
        self.total = config.micro_batches_per_step
        in_tree_order = config.deterministic_reduction
        self.sums = PartialSums(model.named_parameters()) if in_tree_order else None
        self.loss = execution.loss_function(model, by_block=self.compiles_blocks(config))

    def compiles_blocks(self, config: TrainingConfig) -> bool:
        """Whether what is compiled is each block, and not the whole step."""
        # another cut into kernels rounds differently, so all ways must have the same one
        return config.deterministic_reduction

    def micro_batches(self, step: int) -> range:
        """Numbers of this rank's micro-batches of optimizer step `step`."""
        share = self.total // self.world.size
        first = step * self.total + self.world.rank * share
        return range(first, first + share)

    def after(self, number: int) -> int:
        """Number of this rank's micro-batch after `number`."""
        share = self.total // self.world.size
        ends_step = (number + 1) % share == 0
        return number + 1 + (self.total - share if ends_step else 0)

    def in_order(self, losses: list[float]) -> list[float]:
        """The losses of all ranks' micro-batches in the order of their numbers."""
        if self.world.size == 1 or not losses:
            return losses
        rows = self.world.gather(torch.tensor(losses, dtype=torch.float64))
        return [float(loss) for row in rows for loss in row]

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Forward and backward pass of a micro-batch happen in this."""
        return nullcontext()

    def collect(self) -> None:
        """After each backward pass."""
        if self.sums is not None:
            self.sums.push()

    def reduce(self) -> None:
        """After the last one: leaves the gradients of the step with the parameters."""
        if self.sums is not None:
            self.sums.total()

    def gradients(self) -> list[Tensor]:
        """Of all parameters that have one."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def norm(self) -> Tensor:
        """Of the whole gradient, a scalar."""
        if self.sums is not None:
            return tree_norm(self.gradients())
        return torch.nn.utils.get_total_norm(self.gradients())

    def drop_gathered(self) -> None:
        """After a forward pass without a backward one."""

    def partial(self) -> dict[str, Tensor]:
        """Sums of the present step that are not with the parameters, for a checkpoint."""
        return {} if self.sums is None else self.sums.tensors()

    def load_partial(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `partial`."""
        if self.sums is not None:
            self.sums.load(tensors)

    def environment(self) -> dict[str, Any]:
        """What bits depend on besides, the number of processes included where they do."""
        values = self._execution.environment()
        if self.world.size > 1 and self.sums is None:
            values["processes"] = f"{self.world.size} ({type(self).__name__.lower()})"
        return values

    def exchange(self) -> Exchange | None:
        """How Muon's matrices are shared out; None if each rank has all the work."""
        return None

    def whole_model(self) -> TransformerLM | None:
        """The whole model where this rank has it, as rank 0 always does; all ranks call it."""
        return self.model
