"""How a model is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from llm_trainer.config.base import Config, at_least, within

Backend = Literal["tensorboard", "mlflow", "wandb", "console", "jsonl"]


class _DefaultSteps(int):
    """The default of `warmup_steps`, told apart by type from the same number given explicitly."""


_DEFAULT_WARMUP_STEPS = _DefaultSteps(1000)


@dataclass
class TrainingConfig(Config):
    """Everything that the trained weights depend on beside the model's shape and the data, and the
    intervals at which a run is saved, evaluated and logged."""

    section: ClassVar[str] = "training"

    # Core
    batch_size: int = 32
    """Rows per micro-batch and process."""
    learning_rate: float = 1e-4
    """Peak learning rate: of the hidden matrices under muon, of all parameters otherwise."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases, norms and embeddings have none."""
    num_epochs: int = 10
    """Passes over the training rows, if max_steps does not say otherwise."""
    max_steps: int | None = None
    """Optimizer steps; None means num_epochs passes. The data is repeated if it is shorter."""

    # Schedule
    lr_scheduler: Literal["cosine", "linear", "constant", "polynomial", "wsd"] = "cosine"
    """Shape after the warm-up, down to min_lr_ratio. wsd holds the peak, then decays linearly over
    the last decay_ratio of the steps (Hu et al. 2024)."""
    warmup_steps: int | None = _DEFAULT_WARMUP_STEPS
    """Optimizer steps of linear warm-up. Given explicitly it wins; otherwise, or if None,
    warmup_ratio counts."""
    warmup_ratio: float = 0.1
    """Warm-up as a share of all optimizer steps."""
    min_lr_ratio: float = 0.1
    """Learning rate at the last step, as a share of the peak."""
    decay_ratio: float = 0.4
    """Share of all steps over which wsd decays."""
    lr_power: float = 1.0
    """Power of the polynomial schedule."""

    # Optimization
    optimizer: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """muon: Muon for the hidden matrices, AdamW for embeddings, head and vectors."""
    max_grad_norm: float = 1.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    embedding_learning_rate: float | None = None
    """Peak learning rate of the token and position embeddings; None means learning_rate."""
    head_learning_rate: float | None = None
    """Peak learning rate of an untied output matrix; None means embedding_learning_rate."""
    vector_learning_rate: float | None = None
    """Peak learning rate of norms and biases; None means embedding_learning_rate."""
    beta1: float = 0.9
    """Decay of Adam's first moment; momentum of sgd and muon is `momentum`."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's epsilon."""
    momentum: float = 0.95
    """Momentum (Nesterov) of muon; momentum of sgd."""

    # Mixed precision and compilation
    use_amp: bool = True
    """Compute matrix products in amp_dtype; weights and optimizer stay float32."""
    amp_dtype: Literal["float16", "bfloat16"] = "float16"
    """float16 scales gradients and needs CUDA; on a CPU bfloat16 is used, with one warning."""
    compile_model: bool | Literal["auto"] = False
    """torch.compile the training step; auto compiles when the planned run is long enough to
    repay it and a C++ compiler is there."""
    deterministic: bool = True
    """Same inputs, same bytes: torch's deterministic algorithms."""
    seed: int = 42
    """Root of all randomness: initialisation, row order, dropout each have their own sub-seed."""

    # Checkpointing
    save_steps: int = 1000
    """Optimizer steps between checkpoints; 0 saves at the end and on a stop signal only."""
    checkpoint_dir: str = "./checkpoints"
    """Where `Trainer` keeps its checkpoints."""
    async_save: bool = False
    """Save in a thread while the training goes on, from a copy in host memory. Off by default: it
    takes memory for the copy, on a CPU the thread takes its time from the training, and a full
    disk is told a step later."""
    save_total_limit: int | None = 2
    """Newest checkpoints to keep; None keeps all."""
    strict_resume: bool = False
    """Refuse, rather than warn, when a resumed run would not be bitwise equal (other thread count,
    torch version, CPU capability)."""

    # Evaluation
    eval_steps: int = 500
    """Optimizer steps between evaluations during training."""
    eval_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When to evaluate during training; the end of a run is always evaluated if there is data."""
    eval_batches: int | None = None
    """Validation batches of each evaluation during training; None means all."""
    sample_steps: int = 0
    """Optimizer steps between text samples during training; 0 means none."""
    sample_prompts: list[str] = field(default_factory=list)
    """Prompts of these samples; an empty list samples from the end token alone."""
    sample_tokens: int = 48
    """New tokens of each sample."""

    # Logging
    logging_steps: int = 100
    """Optimizer steps between log records."""
    report_to: list[Backend] = field(default_factory=lambda: ["tensorboard"])
    """Where records go, beside the local JSON lines that are always written."""

    # Data
    dataloader_num_workers: int = 0
    """Worker processes of a torch DataLoader over a data set that is not packed in shards; packed
    rows are read from the memory map faster than workers could send them."""
    document_mask: bool = False
    """Keep attention and positions within a document instead of the whole row."""
    short_rows: list[int] = field(default_factory=list)
    """Tokens per row at first, ascending, such as [64, 128]: packed rows are cut into pieces of
    that many, drawn from all over the corpus; each length for an equal share of the steps that
    short_rows_ratio gives. Batches keep their number of tokens. Empty for whole rows throughout."""
    short_rows_ratio: float = 0.7
    """Share of all optimizer steps that train on short_rows."""
    nan_policy: Literal["stop", "skip"] = "stop"
    """What a non-finite loss or gradient does: stop before the step, or leave the step out, with
    a warning, at most ten times in a row."""

    # Distributed training
    world_size: int = 1
    """Number of processes; under a launcher it must agree with the launcher's."""
    local_rank: int = -1
    """Rank of this process on its machine; -1 means no launcher."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the work. ddp: the whole model on each; fsdp: weights, gradients
    and optimizer states in shards, one on each; auto: ddp if all of it fits comfortably."""
    hybrid_shard: bool = False
    """Under fsdp, shard within each machine and keep a replica on each: less traffic between
    machines, more memory."""
    activation_checkpointing: bool = False
    """Keep only the inputs of blocks for the backward pass and compute the rest again: less memory,
    a third more compute, the same bits."""
    deterministic_reduction: bool = False
    """Add gradients in one order for any number of processes, so that the result is the same bit by
    bit for all of them. Costs memory and time; see docs/distributed.md."""

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches per optimizer step over all processes."""
        return self.gradient_accumulation_steps * self.world_size

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step over all processes."""
        return self.batch_size * self.micro_batches_per_step

    @property
    def warmup_is_explicit(self) -> bool:
        """Whether `warmup_steps` was given, so that it wins over `warmup_ratio`."""
        return self.warmup_steps is not None and not isinstance(self.warmup_steps, _DefaultSteps)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; a warm-up that was not given explicitly is None."""
        values = super().to_dict()
        if not self.warmup_is_explicit:
            values["warmup_steps"] = None
        return values

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = []
        for name in (
            "batch_size", "num_epochs", "max_steps", "gradient_accumulation_steps", "eval_steps",
            "eval_batches", "logging_steps", "world_size", "sample_tokens", "save_total_limit",
        ):  # fmt: skip
            found += at_least(name, getattr(self, name), 1)
        for name in (
            "warmup_steps",
            "save_steps",
            "sample_steps",
            "dataloader_num_workers",
            "seed",
        ):
            found += at_least(name, getattr(self, name), 0)
        for name in ("weight_decay", "max_grad_norm"):
            found += at_least(name, getattr(self, name), 0.0)
        for name in (
            "learning_rate", "embedding_learning_rate", "head_learning_rate",
            "vector_learning_rate", "eps", "lr_power",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(f"{name} ({value}) must be above 0")
        for name in ("warmup_ratio", "min_lr_ratio", "decay_ratio", "short_rows_ratio"):
            found += within(name, getattr(self, name), 0.0, 1.0)
        for name in ("beta1", "beta2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                found.append(f"{name} ({getattr(self, name)}) must be from 0 to below 1")
        ascending = sorted(set(self.short_rows)) == self.short_rows
        if not ascending or any(length < 2 for length in self.short_rows):
            found.append(
                f"short_rows ({self.short_rows}) must be lengths of 2 tokens or more, ascending, "
                f"such as [64, 128]"
            )
        if self.local_rank < -1:
            found.append(
                f"local_rank ({self.local_rank}) must be -1 (no launcher) or a rank from 0"
            )
        if self.seed >= 2**63:
            found.append(f"seed ({self.seed}) must be below 2**63")
        return found
