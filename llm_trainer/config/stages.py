"""Configuration of the stages after training, and of what changes no result."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from llm_trainer.config.base import Config, at_least, within
from llm_trainer.config.training import Backend

Optimization = Literal[
    "cache_off", "quantize", "bfloat16", "compile", "compile_quantize", "compile_bfloat16"
]
"""Ways to run `InferenceEngine`; see `utils.optimization_benchmark`."""


@dataclass
class EvaluationConfig(Config):
    """What `evaluate` measures on a trained model."""

    section: ClassVar[str] = "evaluation"

    batch_size: int = 16
    """Rows per forward pass; changes memory and speed, not the result beyond rounding."""
    confidence: float = 0.95
    """Level of the confidence interval of bits per byte."""
    prompts: list[str] = field(
        default_factory=lambda: ["def __init__(self", "import os", "class Test"]
    )
    """Fixed prompts that samples continue. Words carry the space before them: end without one."""
    samples_per_prompt: int = 2
    """Samples of each prompt."""
    max_new_tokens: int = 96
    """New tokens of each sample."""
    temperature: float = 0.8
    """Sampling temperature; 0 is greedy."""
    top_k: int | None = 50
    """Sample from the k likeliest tokens; null for all."""
    top_p: float | None = 0.95
    """Sample from the smallest set of tokens with this probability; null for all."""
    repetition_penalty: float = 1.0
    """Divide the logits of tokens already present by this; 1 is off."""
    seed: int = 0
    """Seed of the samples."""
    near_duplicate_threshold: float = 0.8
    """Jaccard similarity of word 5-grams from which two documents count as nearly equal in the
    leak report."""

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = []
        for name in ("batch_size", "samples_per_prompt", "max_new_tokens", "top_k"):
            found += at_least(name, getattr(self, name), 1)
        for name in ("temperature", "seed"):
            found += at_least(name, getattr(self, name), 0)
        if not 0.5 <= self.confidence < 1.0:
            found.append(f"confidence ({self.confidence}) must be from 0.5 to below 1")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            found.append(f"top_p ({self.top_p}) must be above 0 and at most 1")
        if self.repetition_penalty <= 0:
            found.append(f"repetition_penalty ({self.repetition_penalty}) must be above 0")
        found += within("near_duplicate_threshold", self.near_duplicate_threshold, 0.1, 1.0)
        if not self.prompts:
            found.append("prompts is empty; give at least one")
        return found


@dataclass
class BenchmarkConfig(Config):
    """What `benchmark` times on a trained model."""

    section: ClassVar[str] = "benchmark"

    training_steps: int = 10
    """Timed optimizer steps, after warmup_steps."""
    warmup_steps: int = 2
    """Steps and generations before timing starts."""
    batch_size: int = 8
    """Rows per training step."""
    generation_batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    """Prompts generated at once."""
    prompt_tokens: int = 32
    """Length of the prompts, in tokens."""
    new_tokens: int = 64
    """Tokens generated after each prompt."""
    repeats: int = 3
    """Timed generations; the median counts."""
    optimizations: list[Optimization] = field(
        default_factory=lambda: ["cache_off", "quantize", "bfloat16", "compile"]
    )
    """Ways to run `InferenceEngine` that are timed beside the plain one, for one prompt. Compiled
    ones take up to a minute each the first time; an empty list times none."""
    quality_bytes: int = 131072
    """Bytes of validation text, spread over all of it, on which the loss of rounded weights is
    measured."""

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = []
        for name in ("training_steps", "batch_size", "prompt_tokens", "repeats", "quality_bytes"):
            found += at_least(name, getattr(self, name), 1)
        found += at_least("new_tokens", self.new_tokens, 2)
        found += at_least("warmup_steps", self.warmup_steps, 0)
        if not self.generation_batch_sizes or min(self.generation_batch_sizes) < 1:
            found.append(
                f"generation_batch_sizes ({self.generation_batch_sizes}) needs sizes from 1"
            )
        return found


@dataclass
class RuntimeConfig(Config):
    """What changes no result, so that no stage runs again for it: machine, logging, tracking."""

    section: ClassVar[str] = "runtime"

    device: str = "auto"
    """auto (cuda, mps, cpu in this order), or a torch device such as cuda:1."""
    num_threads: int | None = None
    """CPU threads of each process; null for one per physical core, shared out among the processes
    of the machine. Another number rounds differently."""
    preprocessing_num_workers: int | None = None
    """Processes that tokenize; null for one per core. Any number gives the same bytes."""
    engine: Literal["local", "ray"] = "local"
    """Who reads and tokenizes text: processes of this machine, or Ray (extra `ray`). Same bytes."""
    ray_address: str | None = None
    """A running Ray cluster, as host:port or auto; null starts one on this machine."""
    logging_steps: int = 10
    """Optimizer steps between log records."""
    save_steps: int = 200
    """Optimizer steps between checkpoints."""
    async_save: bool = False
    """Save in a thread while the training goes on, from a copy in host memory."""
    save_total_limit: int = 2
    """Newest checkpoints to keep while training."""
    keep_finished: int = 3
    """Finished runs whose last checkpoint is kept in checkpoint_root."""
    checkpoint_root: str = ".checkpoints"
    """Where runs in progress live, relative to the main checkout; no DVC output."""
    report_to: list[Backend] = field(default_factory=lambda: ["mlflow", "tensorboard", "console"])
    """Trackers beside the local JSON lines that are always written."""
    tracking_uri: str | None = None
    """MLflow server; null for MLFLOW_TRACKING_URI, or else mlflow.db in the main checkout."""
    experiment_name: str = "llm-trainer"
    """MLflow experiment that runs are filed under."""
    strict_resume: bool = False
    """Refuse, rather than warn, when a resumed run would not be bitwise equal."""
    launcher: Literal["torchrun"] | None = None
    """What starts the processes that train one model together; null for one process. They share
    the micro-batches of a step among them, so their number changes no result."""
    nproc_per_node: int | None = None
    """Processes on each machine; null for one per GPU."""
    nnodes: int = 1
    """Machines. On each but the first `python -m pipeline.launch` joins the stage `train`; they all
    see the same folder."""
    rdzv_endpoint: str | None = None
    """Where several machines meet: name and port of one of them, such as node-0:29500."""
    rdzv_id: str = "llm-trainer"
    """Name of the meeting, its own for each of several that use one endpoint."""
    max_restarts: int = 0
    """Times that the processes are started again from the newest checkpoint when one dies."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the model: ddp, a whole one on each; fsdp, a shard on each; auto,
    ddp if it fits comfortably."""
    hybrid_shard: bool = False
    """Under fsdp, shard within each machine and keep a replica on each."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more compute, same
    bits."""

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = []
        for name in (
            "num_threads", "preprocessing_num_workers", "logging_steps", "save_total_limit",
            "nproc_per_node", "nnodes",
        ):  # fmt: skip
            found += at_least(name, getattr(self, name), 1)
        for name in ("save_steps", "keep_finished", "max_restarts"):
            found += at_least(name, getattr(self, name), 0)
        if self.ray_address is not None and self.engine != "ray":
            found.append(f"ray_address ({self.ray_address}) is for engine: ray; set that, or null")
        if not self.experiment_name:
            found.append("experiment_name is empty")
        return found + self._launcher_problems()

    def _launcher_problems(self) -> list[str]:
        found = []
        if self.launcher is None:
            for name, value in (("nproc_per_node", self.nproc_per_node), ("nnodes", self.nnodes)):
                if value is not None and value > 1:
                    found.append(f"{name} ({value}) needs launcher: torchrun")
            return found
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            found.append(
                f"rdzv_endpoint is null, but {self.nnodes} machines have to meet; name one of them "
                f"with a port, such as node-0:29500"
            )
        if self.rdzv_endpoint is not None and not re.fullmatch(
            r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):[0-9]{1,5}", self.rdzv_endpoint
        ):
            found.append(
                f"rdzv_endpoint ({self.rdzv_endpoint!r}) must be host:port, such as node-0:29500"
            )
        if not re.fullmatch(r"[\w.-]+", self.rdzv_id):
            found.append(f"rdzv_id ({self.rdzv_id!r}) must be of letters, digits, '.', '_', '-'")
        if ":" in self.device:
            found.append(
                f"device ({self.device}) names one GPU for all processes; let each take its own by "
                f"device: auto"
            )
        return found
