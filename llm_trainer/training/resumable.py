"""What a run is made of, and how its state is saved and restored; `Trainer` adds the loop.

A run is a function of configuration, data and code. Row order, dropout and learning rate are
functions of the position in the run, so a checkpoint is weights, optimizer tensors and a few
integers, and whatever else a run uses is made anew by `_set_up`.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_trainer.config.checks import flags, refuse
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import CheckpointError, ConfigurationError, TrainingError
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training import checkpoint as checkpoints
from llm_trainer.training.background_save import BackgroundSave
from llm_trainer.training.batches import BatchStream, RowSource
from llm_trainer.training.compatibility import check_request
from llm_trainer.training.execution import Execution, resolve_execution
from llm_trainer.training.optimizer import optimizer_from_config
from llm_trainer.training.parallel import make_way
from llm_trainer.training.ranks import Ranks
from llm_trainer.training.reporting import Reporter, TrackingOptions
from llm_trainer.training.resuming import (
    at_step_start,
    find_checkpoint,
    require_newest,
    run_identity,
)
from llm_trainer.training.scheduler import clamp_warmup, resolve_warmup, schedule
from llm_trainer.training.seeds import sub_seed
from llm_trainer.training.signals import StopRequest
from llm_trainer.training.silent import SilentReporter
from llm_trainer.training.snapshot import take_snapshot, write_snapshot
from llm_trainer.training.state import TrainerState
from llm_trainer.training.trainer_base import TrainerBase
from llm_trainer.utils.allocator import give_back_freed_memory, keep_freed_memory
from llm_trainer.utils.row_growth import RowGrowth

if TYPE_CHECKING:
    from llm_trainer.tokenizer import BPETokenizer

logger = logging.getLogger(__name__)


class ResumableTrainer(TrainerBase):
    """The state of a run of `Trainer`, its checkpoints, and everything that the loop uses."""

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: BPETokenizer,
        config: TrainingConfig,
        train_dataset: RowSource | Dataset[Any] | None = None,
        eval_dataset: RowSource | Dataset[Any] | None = None,
        *,
        device: torch.device | str | None = None,
        tracking: TrackingOptions | None = None,
    ) -> None:
        super().__init__(
            model, tokenizer, config, train_dataset, eval_dataset, device=device, tracking=tracking
        )
        self.state = TrainerState()
        self._report: Reporter = SilentReporter()
        self._is_set_up = False

    # ------------------------------------------------------------------ setting up

    def _set_up(self, stop: StopRequest) -> None:
        """Everything that the loop uses, made anew from configuration and data."""
        if self._is_set_up and self.way == "fsdp":
            raise TrainingError(
                "under fsdp a trainer trains once, since its model is cut into shards; make "
                "another trainer of a fresh or saved model"
            )
        dataset = self._require_data()
        if self.config.short_rows and not isinstance(dataset, RowSource):
            raise TrainingError(
                f"short_rows ({self.config.short_rows}) needs packed rows, which can be cut, and "
                f"{type(dataset).__name__} is none; set short_rows: []"
            )
        self._stop = stop
        plan = self.plan()
        self.total_steps = plan.steps
        self.execution: Execution = resolve_execution(self.config, self.device, plan.total_flops)
        if self.device.type == "cpu":
            (give_back_freed_memory if self.way == "fsdp" else keep_freed_memory)()
        warmup = clamp_warmup(resolve_warmup(self.config, plan.steps), plan.steps, logger.warning)
        self._factor = schedule(self.config, plan.steps, warmup)
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.execution.scales_gradients
        )
        compiled_cpu = self.execution.compiled and self.device.type == "cpu"
        self.model.set_attention_kernel("masked" if compiled_cpu else "sdpa")
        self._ranks, self._background = Ranks.of(self.world), BackgroundSave()
        self.model.recompute = (
            self.config.activation_checkpointing or self.model.config.gradient_checkpointing
        )
        self._parallel = make_way(self.way, self.model, self.config, self.execution, self.world)
        growth = RowGrowth.of(self.config, plan.row_length, plan.steps)
        each = self.config.micro_batches_per_step
        self._stream = BatchStream(
            dataset, self.config.batch_size, seed=sub_seed(self.config.seed, "rows"),
            document_mask=self.config.document_mask,
            parts=lambda number: growth.parts(number // each),
            num_workers=self.config.dataloader_num_workers, after=self._parallel.after,
        )  # fmt: skip
        self.optimizer = optimizer_from_config(self.model, self.config, self._parallel.exchange())
        model = self.model.config
        self._pending: list[Tensor] = []
        self._drops = model.dropout > 0 or model.attention_dropout > 0
        self._is_set_up = True

    def _require_set_up(self) -> None:
        """Set up for a method that is called on its own, outside of `train`."""
        if not self._is_set_up:
            self._set_up(StopRequest())

    def _epoch(self) -> int:
        """The epoch, from 0, that the present step begins in."""
        return self.state.step * self.config.effective_batch_size // self._stream.num_rows

    def _epoch_end(self, epoch: int) -> int:
        """The first step that begins after `epoch`."""
        return math.ceil((epoch + 1) * self._stream.num_rows / self.config.effective_batch_size)

    # ------------------------------------------------------------------ saving

    def _settle(self) -> None:
        """Add the losses of the micro-batches to the state: the one wait for the device a step."""
        for loss in self._parallel.in_order([float(loss) for loss in self._pending]):
            self.state.partial_loss += loss
        self._pending.clear()

    def _save_checkpoint(self, *, wait: bool = True) -> Path:
        """Commit a checkpoint of the present state, drop the oldest, and return its path.

        Without `wait` a thread does so, while the training goes on.
        """
        refuse(ConfigurationError, flags(wait=wait))
        self._require_set_up()
        self._settle()
        self._background.wait()
        directory, report = Path(self.config.checkpoint_dir), self._report
        report.flush()
        snapshot = take_snapshot(
            self.model, self.optimizer, self.state, identity=self._identity(),
            environment=self._parallel.environment(), scaler=self._scaler.state_dict() or None,
            partial=self._parallel.partial(), ranks=self._ranks, copy=not wait,
        )  # fmt: skip

        def commit() -> None:
            report.sync()
            write_snapshot(directory, snapshot, self._ranks)
            if self.world.is_main:
                checkpoints.prune_checkpoints(directory, self.config.save_total_limit)

        if wait:
            commit()
        else:
            self._background.start(snapshot.name, commit)
        return directory / snapshot.name

    # ------------------------------------------------------------------ restoring

    def _resume(self, directory: Path, resume_from: str | Path | None, allow_changes: bool) -> None:
        """Continue a checkpoint, or start afresh with earlier checkpoints moved aside."""
        found = find_checkpoint(directory, resume_from, self.world, self._ranks)
        if found is None:
            self.state = TrainerState()
        else:
            self._continue(found, allow_changes)

    def _load_checkpoint(
        self, checkpoint_path: str | Path | None = None, *, allow_changes: bool = False
    ) -> Path:
        """Take weights, optimizer and position from a checkpoint, and return its path.

        `train("auto")` does this by itself; on its own it is for a look at an earlier state.

        Args:
            checkpoint_path: the directory; None for the newest whole one in `checkpoint_dir`.
            allow_changes: see `train`.

        Raises:
            CheckpointError: there is none, or it belongs to another run.
            IntegrityError: it is damaged.
        """
        check_request(checkpoint_path, allow_changes, "checkpoint_path")
        self._require_set_up()
        if checkpoint_path is not None:
            found = checkpoints.read_checkpoint(Path(checkpoint_path), self._ranks)
        else:
            found = require_newest(Path(self.config.checkpoint_dir), self._ranks)
        self._continue(found, allow_changes)
        return found.path

    def _continue(self, found: checkpoints.Checkpoint, allow_changes: bool) -> None:
        """Restore a checkpoint of this very run."""
        checkpoints.check_identity(found, self._identity(), allow_changes=allow_changes)
        checkpoints.check_environment(
            found, self._parallel.environment(), strict=self.config.strict_resume
        )
        if found.state.step > self.total_steps:
            raise CheckpointError(
                f"{found.path}: at step {found.state.step}, beyond the {self.total_steps} steps of "
                f"this run; raise max_steps"
            )
        if self.world.size > 1:
            at_step_start(found.state, self.config, self._stream)
        self._parallel.load_partial(checkpoints.restore(found, self.model, self.optimizer))
        if found.scaler is not None:
            self._scaler.load_state_dict(found.scaler)
        self.state = found.state
        logger.info("resuming from %s", found.path)

    def _identity(self) -> dict[str, Any]:
        return run_identity(
            self.model.config.to_dict(), self.config,
            getattr(self.train_dataset, "digest", None), self.tokenizer.digest,
        )  # fmt: skip
