"""How a training step is executed: device, threads, precision, compilation, determinism.

All decisions are made here, once, from the configuration and the machine, before the first step;
each that differs from what was asked is one warning. `Execution.environment()` is what bits depend
on, recorded in every checkpoint and compared on resume.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.compiler import (
    GRAPH_OPTIONS,
    cache_custom_gradients,
    compile_problem,
    do_without_openssl,
    is_to_be_compiled,
    with_own_code,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """The resolved way to run a step."""

    device: torch.device
    amp_dtype: torch.dtype | None
    """Type of matrix products; None is float32 throughout."""
    compiled: bool
    deterministic: bool

    @property
    def scales_gradients(self) -> bool:
        """Whether the range of float16 makes a gradient scaler necessary."""
        return self.amp_dtype == torch.float16

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that a forward pass runs in."""
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def loss_function(
        self, model: TransformerLM, *, by_block: bool = False
    ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """`model.loss_sum` under autocast, compiled if so decided; `by_block` only the blocks."""

        def loss_sum(input_ids: Tensor, labels: Tensor, segments: Tensor | None) -> Tensor:
            return model.loss_sum(input_ids, labels, segments)

        if self.compiled:
            do_without_openssl()
            cache_custom_gradients()
        if self.compiled and by_block:
            for block in model.blocks:
                # the hooks of FSDP stay outside of what is compiled
                block.forward = torch.compile(block.forward, dynamic=False, options=GRAPH_OPTIONS)
        elif self.compiled:
            loss_sum = torch.compile(with_own_code(loss_sum), dynamic=False, options=GRAPH_OPTIONS)

        def loss(input_ids: Tensor, labels: Tensor, segments: Tensor | None) -> Tensor:
            with self.autocast():
                return loss_sum(input_ids, labels, segments)

        return loss

    def environment(self) -> dict[str, Any]:
        """What the bits of a result depend on beside code, configuration and data."""
        return {
            "torch": torch.__version__.split("+")[0],
            "device": self.device.type,
            "device_name": (
                torch.cuda.get_device_name(self.device)
                if self.device.type == "cuda"
                else torch.backends.cpu.get_cpu_capability()
            ),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "dtype": str(self.amp_dtype or torch.float32).removeprefix("torch."),
            "compiled": self.compiled,
            "deterministic": self.deterministic,
        }


def resolve_execution(
    config: TrainingConfig, device: torch.device, training_flops: float
) -> Execution:
    """Decide how to run `config` on `device`; `training_flops` of the whole run decide `auto`.

    Raises:
        ConfigurationError: `compile_model: true` where nothing can be compiled.
    """
    return Execution(
        device=device,
        amp_dtype=_resolve_amp(config, device),
        compiled=_resolve_compile(config, device, training_flops),
        deterministic=config.deterministic,
    )


def product_dtype(config: TrainingConfig, device: torch.device) -> str:
    """The name of the type that matrix products will have, such as "bfloat16"."""
    dtype, _ = _amp_choice(config, device)
    return str(dtype or torch.float32).removeprefix("torch.")


def _resolve_amp(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    dtype, warning = _amp_choice(config, device)
    if warning:
        logger.warning("%s", warning)
    return dtype


def _amp_choice(
    config: TrainingConfig, device: torch.device
) -> tuple[torch.dtype | None, str | None]:
    """The type of matrix products, and what differs from what was asked."""
    if not config.use_amp:
        return None, None
    if device.type == "cuda":
        return _torch_dtype(config.amp_dtype), None
    if device.type != "cpu":
        return None, f"use_amp: not used on {device.type}; training in float32 instead"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None, "use_amp: this CPU has no bfloat16 instructions; training in float32 instead"
    if config.amp_dtype == "float16":
        return torch.bfloat16, ("amp_dtype: float16 needs CUDA; using bfloat16 on the CPU instead")
    return torch.bfloat16, None


def _torch_dtype(name: str) -> torch.dtype:
    """The torch type of a configured name."""
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def _resolve_compile(config: TrainingConfig, device: torch.device, training_flops: float) -> bool:
    if config.compile_model is False:
        return False
    problem = compile_problem(device)
    if config.compile_model is True:
        if problem:
            raise ConfigurationError(f"compile_model: true, but {problem}; set it to auto or false")
        return True
    if not is_to_be_compiled("auto", device.type, training_flops):
        logger.info("compile_model: auto: not compiling, the run is too short to repay it")
        return False
    if problem:
        logger.warning("compile_model: auto: not compiling, because %s", problem)
        return False
    logger.info("compile_model: auto: compiling the training step")
    return True


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Run the body with torch's deterministic algorithms; the former setting comes back after.

    Without it, compiled steps on several CPU threads differ from run to run: the gradient of the
    embedding is added with atomics.
    """
    if not enabled:
        yield
        return
    # read by cuBLAS when its first handle is made
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # filling fresh tensors guards against reading them unwritten; it costs time and no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
