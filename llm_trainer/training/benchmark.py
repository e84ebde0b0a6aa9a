"""Time the training step of a model as its training ran it: same precision, kernel, compilation.

The step is that of `Trainer`: forward and backward of a full batch, the clipping of the gradient,
the optimizer. Rows are random ids, since no value changes how long a product takes; reading rows
from the memory map takes microseconds and is left out. Price: `warmup + steps` steps, and the
compilation, if training was compiled (its cache makes that seconds).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from llm_trainer.config.checks import flags, instance, refuse, whole
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.clipping import clip_gradients
from llm_trainer.training.execution import (
    Execution,
    deterministic_algorithms,
    resolve_execution,
)
from llm_trainer.training.optimizer import optimizer_from_config
from llm_trainer.utils.allocator import keep_freed_memory
from llm_trainer.utils.machine import matmul_peak, peak_memory_bytes, reset_peak_memory
from llm_trainer.utils.parameters import flops_per_token
from llm_trainer.utils.timing import time_calls


@dataclass(frozen=True)
class TrainingTiming:
    """What `benchmark_training` measured."""

    step_seconds: float
    """Median time of an optimizer step."""
    step_seconds_min: float
    step_seconds_max: float
    tokens_per_step: int
    flops_per_token: int
    """Forward and backward; see `flops_per_token`."""
    peak_flops: float
    """Measured matmul peak in the step's type, FLOP/s."""
    peak_memory: int
    """Bytes: high-water mark during the steps."""
    dtype: str
    """Type of matrix products."""
    compiled: bool
    deterministic: bool
    first_step_seconds: float
    """The first warm-up step, with the compilation."""

    @property
    def tokens_per_second(self) -> float:
        """Training speed."""
        return self.tokens_per_step / self.step_seconds

    @property
    def mfu(self) -> float:
        """Share of the matmul peak that the step reaches."""
        return self.tokens_per_second * self.flops_per_token / self.peak_flops

    def to_dict(self) -> dict[str, float | int | str]:
        """Flat figures for metrics."""
        return {
            "training_step_ms": 1e3 * self.step_seconds,
            "training_step_ms_min": 1e3 * self.step_seconds_min,
            "training_step_ms_max": 1e3 * self.step_seconds_max,
            "training_first_step_seconds": self.first_step_seconds,
            "training_tokens_per_step": self.tokens_per_step,
            "training_tokens_per_second": self.tokens_per_second,
            "training_flops_per_token": self.flops_per_token,
            "training_gflops_per_second": self.tokens_per_second * self.flops_per_token / 1e9,
            "training_peak_share": self.mfu,
            "training_peak_memory_bytes": self.peak_memory,
            "training_dtype": self.dtype,
            "training_compiled": "yes" if self.compiled else "no",
            "training_deterministic": "yes" if self.deterministic else "no",
            "matmul_peak_gflops": self.peak_flops / 1e9,
        }


def benchmark_training(
    model: TransformerLM,
    config: TrainingConfig,
    *,
    batch_size: int,
    steps: int,
    warmup: int,
    progress: bool = False,
) -> TrainingTiming:
    """Time optimizer steps of `model` under `config`, on the model's device.

    Args:
        model: it is trained in place on random ids, so it is of no use afterwards.
        config: as the model was trained; its batch size and accumulation do not count here.
        batch_size: rows of `max_seq_len` tokens per step.
        steps: timed steps, after `warmup` (at least one) that are not.
        progress: show a bar if stderr is a terminal.

    Raises:
        ConfigurationError: `compile_model: true` where nothing can be compiled.
    """
    refuse(
        ConfigurationError,
        instance("model", model, TransformerLM),
        instance("config", config, TrainingConfig),
        whole("batch_size", batch_size, 1),
        whole("steps", steps, 1),
        whole("warmup", warmup, 0),
        flags(progress=progress),
    )
    row_length = model.config.max_seq_len
    execution = resolve_execution(config, model.device, _planned_flops(model, config, row_length))
    dtype = str(execution.amp_dtype or torch.float32).removeprefix("torch.")
    peak = matmul_peak(model.device, dtype)
    if model.device.type == "cpu":
        keep_freed_memory()
    compiled_cpu = execution.compiled and model.device.type == "cpu"
    model.set_attention_kernel("masked" if compiled_cpu else "sdpa")
    step = _Step(model, replace(config, batch_size=batch_size), execution, row_length)
    warmup = max(1, warmup)
    with deterministic_algorithms(execution.deterministic):
        reset_peak_memory(model.device)
        bar = tqdm(
            total=warmup + steps, desc="training steps", unit="step", leave=False,
            disable=None if progress else True,
        )  # fmt: skip
        with bar:

            def run() -> None:
                step.run()
                bar.update()

            first = time_calls(run, repeats=1, warmup=0, device=model.device)[0]
            seconds = time_calls(run, repeats=steps, warmup=warmup - 1, device=model.device)
    return TrainingTiming(
        step_seconds=statistics.median(seconds),
        step_seconds_min=min(seconds),
        step_seconds_max=max(seconds),
        tokens_per_step=batch_size * row_length,
        flops_per_token=flops_per_token(model.config, row_length),
        peak_flops=peak,
        peak_memory=peak_memory_bytes(model.device),
        dtype=dtype,
        compiled=execution.compiled,
        deterministic=execution.deterministic,
        first_step_seconds=first,
    )


class _Step:
    """One optimizer step on a fixed batch of random ids."""

    def __init__(
        self, model: TransformerLM, config: TrainingConfig, execution: Execution, row_length: int
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (config.batch_size, row_length)
        ids = torch.randint(model.config.vocab_size, shape, generator=generator)
        self._ids = ids.to(model.device)
        self.norm = 0.0
        self._model = model.train()
        self._config = config
        self._targets = config.batch_size * (row_length - 1)
        self._loss = execution.loss_function(model)
        self._optimizer = optimizer_from_config(model, config)
        self._scaler = torch.amp.GradScaler(model.device.type, enabled=execution.scales_gradients)

    def run(self) -> None:
        loss = self._loss(self._ids, self._ids, None) / self._targets
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.norm = clip_gradients(self._model.parameters(), norm, self._config.max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)


def _planned_flops(model: TransformerLM, config: TrainingConfig, row_length: int) -> float:
    """FLOPs of the run that made the model, which decide `compile_model: auto`; a run over
    epochs of a data set of unknown size counts as long."""
    if config.max_steps is None:
        return math.inf
    tokens = config.max_steps * config.effective_batch_size * row_length
    return float(tokens) * flops_per_token(model.config, row_length)
