"""`Trainer`: the training loop, with exact resume.

A run that is stopped at any micro-batch and resumed ends in the same bytes as one that never was.
The loop itself is `_train_epoch`; each thing it does is a named method below it. What it uses, and
how its state is saved and restored, stands in `resumable`.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch

from llm_trainer.training.clipping import clip_gradients
from llm_trainer.training.compatibility import check_request
from llm_trainer.training.distributed import lost_peers_named
from llm_trainer.training.execution import deterministic_algorithms
from llm_trainer.training.non_finite import NonFinite
from llm_trainer.training.optimizer import set_learning_rates
from llm_trainer.training.reporting import Reporter, sample_texts
from llm_trainer.training.result import TrainingResult as TrainingResult
from llm_trainer.training.resumable import ResumableTrainer
from llm_trainer.training.resuming import locked
from llm_trainer.training.seeds import sub_seed
from llm_trainer.training.signals import STOP_SIGNALS, stop_on_signals
from llm_trainer.training.silent import SilentReporter

logger = logging.getLogger(__name__)


class Trainer(ResumableTrainer):
    """Trains a `TransformerLM`.

    Args:
        model: trained in place.
        tokenizer: the one the data was encoded with; recorded with the model.
        config: see `TrainingConfig`.
        train_dataset: packed rows, a `LanguageModelingDataset`, or any map-style torch data set of
            dictionaries with `input_ids`.
        eval_dataset: the same, for evaluation.
        device: where to train; None chooses by `get_device`.
        tracking: names and places for trackers; None derives them from `config.checkpoint_dir`.

    Raises:
        IntegrityError: model or data were made with another tokenizer.
        TrainingError: the rows do not fit the model.
    """

    # ------------------------------------------------------------------ the public way in

    def train(
        self,
        resume_from_checkpoint: str | Path | Literal["auto"] | None = None,
        *,
        allow_changes: bool = False,
    ) -> TrainingResult:
        """Train to the end of the run, saving checkpoints on the way.

        On SIGINT or SIGTERM the micro-batch in hand is finished (the step, of several processes), a
        checkpoint is committed, and the process exits with 130 or 143; the same call with
        `resume_from_checkpoint="auto"` goes on. Every rank calls this; after it, rank 0 has the
        whole model, and the others have it under ddp.

        Args:
            resume_from_checkpoint: a checkpoint directory, which must be whole; "auto" for the
                newest whole one in `checkpoint_dir`, if any; None starts afresh, and checkpoints
                of an earlier run are moved aside.
            allow_changes: continue a checkpoint of another configuration, with a warning.

        Raises:
            TrainingError: no data, or a non-finite loss or gradient under `nan_policy: stop`.
            CheckpointError: the checkpoint belongs to another run.
            IntegrityError: an explicitly named checkpoint is damaged.
            LockHeldError: another process trains in `checkpoint_dir`.
            PeerLostError: another process of this training ended.
        """
        check_request(resume_from_checkpoint, allow_changes)
        directory = Path(self.config.checkpoint_dir)
        launched = self.world.size > 1
        with (
            lost_peers_named(self.world), locked(directory, self.world),
            stop_on_signals(launched=launched) as stop,
        ):  # fmt: skip
            self._set_up(stop)
            with deterministic_algorithms(self.execution.deterministic), self._stream.workers():
                self._resume(directory, resume_from_checkpoint, allow_changes)
                if self.world.is_main:
                    self._report = Reporter.open(self, resumed=self.state.step or None)
                try:
                    while self.state.step < self.total_steps:
                        self._train_epoch()
                    return self._finish()
                except BaseException as error:
                    self._background.settle()
                    stopped = isinstance(error, SystemExit | KeyboardInterrupt)
                    self._report.close("KILLED" if stopped else "FAILED")
                    raise
                finally:
                    self._report = SilentReporter()

    # ------------------------------------------------------------------ the loop

    def _train_epoch(self) -> None:
        """Train to the end of the present epoch, or of the run if that comes first.

        `train` calls it; on its own it goes on from `state` without lock, signals and trackers.
        """
        self._require_set_up()
        end = min(self.total_steps, self._epoch_end(self._epoch()))
        self.model.train()
        while self.state.step < end:
            started = time.monotonic()
            batches = [self._stream.load(n) for n in self._micro_batches()]
            targets = self._agree(sum(batch.num_targets for batch in batches))
            for batch in batches[self.state.micro_step :]:
                self._accumulate(batch, targets)
                if self.world.size == 1:  # several stop together, between steps
                    self._stop_if_asked(started)
            self._optimizer_step(targets)
            self.state.seconds += time.monotonic() - started
            self._log()
            if self._is_due(self.config.eval_steps) and self.config.eval_strategy == "steps":
                self._evaluate()
            if self._is_due(self.config.sample_steps):
                self._sample()
            if self._is_due(self.config.save_steps):
                self._save_checkpoint(wait=not self.config.async_save)
        if self.config.eval_strategy == "epoch":
            self._evaluate()

    def _micro_batches(self) -> range:
        """Numbers of this rank's micro-batches of the present step."""
        return self._parallel.micro_batches(self.state.step)

    def _agree(self, targets: int) -> int:
        """The targets of the step over all ranks; all stop here if a signal came to any, or a save
        in the background failed."""
        if self.world.size == 1:
            self._background.check()
            return targets
        total, failed, *signals = self.world.sum(
            targets, self._background.failed, *(self._stop.signal == n for n in STOP_SIGNALS)
        )
        if failed:
            self._background.wait()
        if any(signals):
            self._stop.take(next(n for n, s in zip(STOP_SIGNALS, signals, strict=True) if s))
            self._stop_if_asked(time.monotonic())
        return total

    def _accumulate(self, batch: Any, targets: int) -> None:
        """Forward and backward of one micro-batch into the gradients."""
        number = self._micro_batches()[self.state.micro_step]
        if self._drops:
            # keyed by the micro-batch, so that dropout does not depend on what ran before
            torch.manual_seed(sub_seed(self.config.seed, "dropout", number))
        batch = batch.to(self.device)
        with self._parallel.micro_batch(last=number == self._micro_batches()[-1]):
            loss = self._parallel.loss(batch.input_ids, batch.labels, batch.segments)
            self._scaler.scale(loss / max(targets, 1)).backward()
        self._parallel.collect()
        self._pending.append(loss.detach())
        self.state.tokens += batch.input_ids.numel() * self.world.size
        self.state.micro_step += 1
        self._stop.idle = False

    def _optimizer_step(self, targets: int) -> None:
        """Clip, check, and step with this step's learning rate."""
        self._settle()
        self._parallel.reduce()
        factor = self._factor(self.state.step)
        set_learning_rates(self.optimizer, factor)
        self._scaler.unscale_(self.optimizer)
        norm = self._clip()
        loss = self.state.partial_loss / targets if targets else math.nan
        finite = math.isfinite(loss) and math.isfinite(norm)
        overflow = self.execution.scales_gradients and math.isfinite(loss) and not finite
        if finite or overflow:  # of an overflow in float16 the scaler takes care
            self._scaler.step(self.optimizer)
            self._scaler.update()
            self.state.skipped = 0
        else:
            self._handle_non_finite(loss, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.state.history.append((loss, self.config.learning_rate * factor, norm))
        self.state.step += 1
        self.state.micro_step, self.state.partial_loss = 0, 0.0

    def _clip(self) -> float:
        """Clip the whole gradient to max_grad_norm; return its norm before."""
        norm = self._parallel.norm()
        return clip_gradients(self.model.parameters(), norm, self.config.max_grad_norm)

    def _handle_non_finite(self, loss: float, norm: float) -> None:
        """Leave the weights alone; stop with a report, or go on under `nan_policy: skip`."""
        self.state.skipped += 1
        step = self.state.step
        total = self.config.micro_batches_per_step
        numbers = range(step * total, (step + 1) * total)
        rows = [int(row) for n in numbers for row in self._stream.row_indices(n)]
        report = NonFinite(step, loss, norm, self.config.learning_rate * self._factor(step), rows)
        self.world.first(lambda: report.handle(self.config, self.state.skipped))

    def _stop_if_asked(self, started: float) -> None:
        """Commit a checkpoint and leave, if a signal came."""
        if self._stop.signal is None:
            return
        self.state.seconds += time.monotonic() - started
        path = self._save_checkpoint()
        logger.warning(
            "stopped at step %d; the same command goes on from %s", self.state.step, path
        )
        raise SystemExit(self._stop.exit_code)

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and (
            self.state.step % interval == 0 and self.state.step < self.total_steps
        )

    def _log(self) -> None:
        """Progress bar at every step, a record every logging_steps."""
        self._report.step()

    def _evaluate(self) -> dict[str, float]:
        """Evaluate on eval_batches of the evaluation data, record it, and return it."""
        if self.eval_dataset is None:
            return {}
        if self.state.evaluations and self.state.evaluations[-1]["step"] == self.state.step:
            return self.state.evaluations[-1]
        evaluator = self._evaluator(self.world)
        entry = {"step": self.state.step, **evaluator.run(self.config.eval_batches)}
        self._parallel.drop_gathered()
        self.state.evaluations.append(entry)
        self._report.evaluation(entry)
        self.model.train()
        return entry

    def _sample(self) -> None:
        """Generate from the sample prompts and record the texts."""
        model = self._parallel.whole_model()
        if self.world.is_main:
            assert model is not None
            for number, text in enumerate(sample_texts(self, model)):
                self._report.sample(number, text)
        self.model.train()

    def _finish(self) -> TrainingResult:
        """Evaluate, commit the last checkpoint, close the trackers."""
        evaluation = self._evaluate()
        if self.config.sample_steps:
            self._sample()
        self._save_checkpoint()
        self.model = self._parallel.whole_model() or self.model
        self._is_with_first = self.way == "fsdp"
        self.model.eval()
        self._report.close("FINISHED")
        return TrainingResult.of(self.state, evaluation)
