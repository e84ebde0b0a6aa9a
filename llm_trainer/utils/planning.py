"""The plan of a training run before it starts, and the same table with what came of it after.

`training_plan` computes parameters, tokens per step, steps, tokens per parameter, FLOPs, memory
and time from configuration and data sizes alone; `Plan.render()` prints them aligned, and
`Plan.render(Actuals(...))` sets what was measured beside them. Price: microseconds. The time is
FLOPs over the machine's measured matmul peak times an assumed utilization, so it is a guess of the
right order, not a promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llm_trainer.config.checks import instance, number, refuse, whole
from llm_trainer.config.model import ModelConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.utils.memory import (
    PROCESS_BYTES,
    MemoryPlan,
    estimate_memory_usage,
    optimizer_bytes,
    plan_memory,
)
from llm_trainer.utils.parameters import (
    ParameterCount,
    calculate_parameters,
    count_parameters,
    flops_per_token,
)
from llm_trainer.utils.row_growth import RowGrowth

ASSUMED_MFU = 0.4
"""Share of the measured matmul peak that a training step is assumed to reach: compiled steps of
small models on a CPU and of large ones on a GPU reach 0.3 to 0.6, eager ones half of that."""


@dataclass(frozen=True)
class Actuals:
    """What a finished run measured; None is shown as a dash."""

    parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    """Tokens that entered the model in `seconds`."""
    seconds: float | None = None
    """Wall-clock time of the training loop."""
    peak_memory: int | None = None
    """Bytes: high-water mark of the process, or of the CUDA device."""


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a training run before it starts."""

    parameters: ParameterCount
    num_rows: int | None
    """Training rows of the data set; None if the data is not there yet."""
    row_length: int
    """Tokens per row; each row has one target less."""
    effective_batch_size: int
    """Rows per optimizer step over all processes."""
    steps: int
    flops_per_token: int
    """On average over the steps, whose rows may be shorter at first."""
    memory: MemoryPlan
    """Of one process."""
    peak_flops: float | None
    """Measured matmul peak of all processes together, in FLOP/s; None if it was not measured."""
    mfu: float
    """Assumed share of peak_flops."""
    compute: str
    """Type of matrix products, for the note."""
    optimizer: str

    @property
    def tokens_per_step(self) -> int:
        """Tokens that enter the model in one optimizer step."""
        return self.effective_batch_size * self.row_length

    @property
    def tokens(self) -> int:
        """Tokens that enter the model in the whole run."""
        return self.steps * self.tokens_per_step

    @property
    def epochs(self) -> float | None:
        """Passes over the training rows."""
        if self.num_rows is None:
            return None
        return self.steps * self.effective_batch_size / self.num_rows

    @property
    def tokens_per_parameter(self) -> float:
        """Tokens seen per parameter; about 20 is compute-optimal (Hoffmann et al. 2022)."""
        return self.tokens / self.parameters.total

    @property
    def total_flops(self) -> float:
        """Floating-point operations of the whole run."""
        return float(self.tokens) * self.flops_per_token

    @property
    def seconds(self) -> float | None:
        """Estimated time of the training loop, without compilation and evaluation."""
        if not self.peak_flops:
            return None
        return self.total_flops / (self.peak_flops * self.mfu)

    @property
    def tokens_per_second(self) -> float | None:
        """Estimated speed."""
        return self.tokens / self.seconds if self.seconds else None

    def utilization(self, tokens_per_second: float) -> float | None:
        """Share of the matmul peak (MFU) that a measured speed amounts to."""
        refuse(ConfigurationError, number("tokens_per_second", tokens_per_second, 0))
        return (
            tokens_per_second * self.flops_per_token / self.peak_flops if self.peak_flops else None
        )

    def to_dict(self) -> dict[str, int | float | None]:
        """The planned figures, flat, under the names that metrics and logs use."""
        return {
            "parameters": self.parameters.total,
            "parameters_non_embedding": self.parameters.non_embedding,
            "tokens_per_step": self.tokens_per_step,
            "steps": self.steps,
            "tokens": self.tokens,
            "epochs": self.epochs,
            "tokens_per_parameter": self.tokens_per_parameter,
            "flops_per_token": self.flops_per_token,
            "total_flops": self.total_flops,
            "memory_bytes": self.memory.total,
            "estimated_seconds": self.seconds,
        }

    def render(self, actuals: Actuals | None = None, *, brief: bool = False) -> str:
        """The plan as an aligned table, one line a figure; with `actuals` a column more.

        `brief` leaves out memory, speed and time, for which a `ScalePlan` has more to say.
        """
        refuse(ConfigurationError, instance("actuals", actuals, Actuals, none=True))
        rows = self._rows(actuals or Actuals())
        if brief:
            rows = rows[: [row[0] for row in rows].index("memory")]
        heads = ("", "plan", "actual", "")
        table = [heads, *rows] if actuals else [(row[0], row[1], row[3]) for row in rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        last = len(widths) - 1
        lines = []
        for row in table:
            cells = [row[0].ljust(widths[0])]
            cells += [row[i].rjust(widths[i]) for i in range(1, last)]
            lines.append("  ".join([*cells, row[last]]).rstrip())
        return "\n".join(lines)

    def _rows(self, actual: Actuals) -> list[tuple[str, str, str, str]]:
        count, memory = self.parameters, self.memory
        speed = actual.tokens / actual.seconds if actual.tokens and actual.seconds else None
        mfu = self.utilization(speed) if speed else None
        row_tokens = None if self.num_rows is None else self.num_rows * self.row_length
        epochs = actual.tokens / row_tokens if actual.tokens and row_tokens else None
        rows = "rows not known yet" if self.num_rows is None else f"{self.num_rows:,} rows"
        per_parameter = actual.tokens / count.total if actual.tokens else None
        flops = float(actual.tokens) * self.flops_per_token if actual.tokens else None
        per_step = round(actual.tokens / actual.steps) if actual.tokens and actual.steps else None
        groups = (
            ("embedding", count.embedding), ("head", count.head), ("attention", count.attention),
            ("mlp", count.mlp), ("norms", count.norms),
        )  # fmt: skip
        uses = (
            ("weights", memory.weights), ("gradients", memory.gradients),
            (f"{self.optimizer} states", memory.optimizer),
            ("activations", memory.activations), ("logits", memory.logits),
            *((("Python and torch", memory.process),) if memory.process else ()),
        )  # fmt: skip
        peak = (
            f"{self.peak_flops / 1e9:,.0f} GFLOP/s peak" if self.peak_flops else "peak not measured"
        )
        return [
            ("parameters", f"{count.total:,}", _int(actual.parameters), ""),
            *[(f"  {name}", f"{number:,}", "", "") for name, number in groups],
            ("tokens per step", f"{self.tokens_per_step:,}", _int(per_step),
             f"{self.effective_batch_size:,} rows of {self.row_length:,}"),
            ("steps", f"{self.steps:,}", _int(actual.steps), ""),
            ("tokens", f"{self.tokens:,}", _int(actual.tokens), ""),
            ("epochs", _float(self.epochs), _float(epochs), rows),
            ("tokens per parameter", f"{self.tokens_per_parameter:,.2f}", _float(per_parameter),
             "about 20 is compute-optimal"),
            ("FLOPs", f"{self.total_flops:.3g}", f"{flops:.3g}" if flops else "-",
             f"{self.flops_per_token / 1e6:,.1f} MFLOP a token, forward and backward"),
            ("memory", format_bytes(memory.total),
             format_bytes(actual.peak_memory) if actual.peak_memory else "-",
             "actual: peak of the process" if actual.peak_memory else "of one process"),
            *[(f"  {name}", format_bytes(size), "", "") for name, size in uses],
            ("tokens per second", _rate(self.tokens_per_second), _rate(speed), self.compute),
            ("share of peak (MFU)", f"{self.mfu:.0%}", f"{mfu:.0%}" if mfu else "-", peak),
            ("time", format_seconds(self.seconds), format_seconds(actual.seconds), ""),
        ]  # fmt: skip


def planned_steps(training: TrainingConfig, num_rows: int | None) -> int:
    """Optimizer steps of a run: `max_steps`, or as many as `num_epochs` passes need.

    `num_rows` may only be None if `max_steps` is given. The row order is one endless stream, so a
    batch may reach into the next epoch; only the last step may see a few rows more than
    `num_epochs` passes have.
    """
    refuse(
        ConfigurationError,
        instance("training", training, TrainingConfig),
        whole("num_rows", num_rows, 1, none=True),
    )
    if training.max_steps is not None:
        return training.max_steps
    if num_rows is None:
        raise ConfigurationError(
            "num_rows is None, and so is max_steps of training, so there is no end; give one"
        )
    return max(1, math.ceil(training.num_epochs * num_rows / training.effective_batch_size))


def training_plan(
    model: ModelConfig,
    training: TrainingConfig,
    num_rows: int | None,
    row_length: int,
    peak_flops: float | None = None,
    *,
    mfu: float = ASSUMED_MFU,
    steps: int | None = None,
    kernel: Literal["sdpa", "masked"] = "sdpa",
    process: int = 0,
) -> Plan:
    """Plan a run of `training` on `num_rows` rows of `row_length` tokens; None if still unknown.

    `peak_flops` is the measured matmul peak of all processes together, in FLOP/s (see
    `machine.matmul_peak`); without it the time is unknown. `steps` overrides `planned_steps`;
    `kernel` (the attention kernel) and `process` are those of `plan_memory`.
    """
    refuse(
        ConfigurationError,
        instance("model", model, ModelConfig),
        instance("training", training, TrainingConfig),
        whole("row_length", row_length, 2),  # an input and a target
        number("peak_flops", peak_flops, above=0, none=True),
        number("mfu", mfu, above=0, most=1),
        whole("steps", steps, 1, none=True),
    )
    if steps is None:
        steps = planned_steps(training, num_rows)
    mean_length = RowGrowth.of(training, row_length, steps).mean_length(steps)
    return Plan(
        parameters=count_parameters(model),
        num_rows=num_rows,
        row_length=row_length,
        effective_batch_size=training.effective_batch_size,
        steps=steps,
        flops_per_token=flops_per_token(model, round(mean_length)),
        memory=plan_memory(model, training, row_length, kernel=kernel, process=process),
        peak_flops=peak_flops,
        mfu=mfu,
        compute=training.amp_dtype if training.use_amp else "float32",
        optimizer=training.optimizer,
    )


def format_bytes(size: float) -> str:
    """`size` in bytes, readable, in decimal units: 1,500,000 is "1.5 MB"."""
    refuse(ConfigurationError, number("size", size, 0))
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} B"


def format_seconds(seconds: float | None) -> str:
    """A duration as people say it: "42.0 s", "3 min 20 s", "5 h 07 min", "-" if unknown."""
    refuse(ConfigurationError, number("seconds", seconds, 0, none=True))
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _int(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _float(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


__all__ = [
    "ASSUMED_MFU",
    "PROCESS_BYTES",
    "Actuals",
    "MemoryPlan",
    "ParameterCount",
    "Plan",
    "calculate_parameters",
    "count_parameters",
    "estimate_memory_usage",
    "flops_per_token",
    "format_bytes",
    "format_seconds",
    "optimizer_bytes",
    "plan_memory",
    "planned_steps",
    "training_plan",
]
