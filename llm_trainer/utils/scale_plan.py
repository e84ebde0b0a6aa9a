"""The plan of a run on a given cluster: time, memory a rank, network, checkpoints, price, verdict.

`plan_scale` shares the configured effective batch out over the ranks (the result belongs to the
configuration, never to the number of ranks), chooses how the model is spread if `parallel` is auto,
and says what breaks first. What cannot fit comes with the nearest setting that does: smaller
micro-batches and activation checkpointing are tried before another way to spread the model, and
that before more accelerators. Price: milliseconds, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llm_trainer.config.model import ModelConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.utils.fault_model import Saving, plan_saving
from llm_trainer.utils.hardware import Cluster
from llm_trainer.utils.memory import COMFORTABLE
from llm_trainer.utils.planning import format_bytes, format_seconds
from llm_trainer.utils.rank_memory import RankMemory, rank_memory, verdict
from llm_trainer.utils.step_model import Job, Parallel, StepTime, step_time

Choice = Literal["auto", "none", "ddp", "fsdp", "hybrid"]
MOST_ACCELERATORS = 4096
"""How far the search for a cluster that is large enough goes."""


@dataclass(frozen=True)
class ScalePlan:
    """A run on a cluster, on paper."""

    job: Job
    cluster: Cluster
    steps: int
    step: StepTime
    memory: RankMemory
    saving: Saving
    verdict: str
    """Of `rank_memory.verdict`."""
    remedy: str | None
    """What would fit, if this does not; None if it fits or nothing does."""

    @property
    def seconds(self) -> float:
        """Time of the run, saving and failures included."""
        return self.steps * self.step.total / max(self.saving.goodput, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks, while training."""
        return self.job.tokens * self.cluster.count / self.step.total

    @property
    def price(self) -> float | None:
        """Dollars, at the assumed price of the accelerator."""
        hour = self.cluster.accelerator.price_hour
        return None if hour is None else hour * self.cluster.count * self.seconds / 3600

    @property
    def fits(self) -> bool:
        """Whether the estimate stays within the memory of a rank."""
        return self.verdict in ("fits", "close")

    def lines(self) -> list[str]:
        """The plan, one figure a line, aligned."""
        job, step, chip = self.job, self.step, self.cluster.accelerator
        several = self.cluster.count > 1
        spread = {
            "none": "one process", "ddp": "ddp: a whole model on each rank",
            "fsdp": "fsdp: a part of the model on each rank",
            "hybrid": "fsdp within a node, ddp between nodes",
        }[job.parallel]  # fmt: skip
        shares = ", ".join(
            f"{name} {seconds / step.total:.0%}"
            for name, seconds in (
                ("attention", step.attention), ("projections", step.projections),
                ("mlp", step.mlp), ("head", step.head), ("between products", step.elementwise),
                ("recomputing", step.recompute), ("optimizer", step.optimizer),
                ("waiting for the network", step.exposed),
            )
            if seconds / step.total >= 0.005
        )  # fmt: skip
        again = ", activations recomputed" if job.recompute else ""
        memory = f"{format_bytes(self.memory.total)} of {format_bytes(chip.memory_bytes)}"
        parts = [(name, size) for name, size in self.memory.parts()
                 if size >= 0.01 * self.memory.total]  # fmt: skip
        saving = self.saving
        rows: list[tuple[str, str]] = []
        if several:
            rows += [("on", self.cluster.describe()), ("spread", spread)]
        rows += [
            ("rank's step" if several else "micro-batches of a step",
             f"{job.accumulation} x {job.batch_size} rows of {job.row_length:,}{again}"),
            ("time of a step", f"{_short(step.total)}: {shares}"),
        ]  # fmt: skip
        if several:
            rows.append(("network", f"{_short(step.communication)} of collectives a step, "
                         f"{_short(step.exposed)} not hidden"))  # fmt: skip
        rows += [
            ("tokens per second", f"{self.tokens_per_second:,.0f}, {step.mfu:.0%} of peak (MFU)"),
            ("memory of a rank" if several else "memory",
             f"{memory} {'each' if several else 'here'}: {self.verdict}"),
            *((f"  {name}", format_bytes(size)) for name, size in parts),
            ("checkpoint", f"{format_bytes(saving.size)}, written in about {_short(saving.write)}"),
        ]  # fmt: skip
        useful = ""
        if several:
            rows.append(("save every", f"{format_seconds(saving.interval)}, with a failure each "
                         f"{format_seconds(saving.between)}"))  # fmt: skip
            useful = f", {saving.goodput:.1%} of it useful"
        rows.append(("time", f"{format_seconds(self.seconds)}{useful}"))
        if self.price is not None:
            rows.append(("price", f"${self.price:,.0f}, at ${chip.price_hour:g} an hour each"))
        width = max(len(name) for name, _ in rows)
        return [f"{name.ljust(width)}  {value}" for name, value in rows]

    def render(self) -> str:
        """The table, and below it what does not fit and what would."""
        lines = self.lines()
        if not self.fits:
            lines += ["", self.complaint()]
        return "\n".join(lines)

    def complaint(self) -> str:
        """What does not fit, and the nearest setting that does."""
        chip = self.cluster.accelerator
        needed = self.memory.certain if self.verdict == "impossible" else self.memory.total
        sure = "at least " if self.verdict == "impossible" else "about "
        largest = max(self.memory.parts(), key=lambda part: part[1])
        advice = self.remedy or "nothing tried here is enough: make the model or its rows smaller"
        return (
            f"memory: a rank needs {sure}{format_bytes(needed)}, most of it for {largest[0]} "
            f"({format_bytes(largest[1])}), and {chip.name} has "
            f"{format_bytes(chip.memory_bytes)}; {advice}"
        )


def share_out(training: TrainingConfig, ranks: int) -> tuple[int, int]:
    """Rows of a micro-batch and micro-batches of each of `ranks`, for the configured step.

    Raises:
        ConfigurationError: the rows of a step cannot be dealt out evenly.
    """
    rows = training.effective_batch_size
    if rows % ranks:
        near = max(ranks, rows - rows % ranks)
        raise ConfigurationError(
            f"a step has {rows:,} rows (batch_size {training.batch_size} x "
            f"gradient_accumulation_steps {training.gradient_accumulation_steps} x world_size "
            f"{training.world_size}), which {ranks} ranks cannot share evenly; take "
            f"gradient_accumulation_steps={ranks} for {ranks * training.batch_size:,} rows, or "
            f"another batch_size for {near:,}"
        )
    share = rows // ranks
    batch = max(n for n in range(1, min(share, training.batch_size) + 1) if share % n == 0)
    return batch, share // batch


def plan_scale(
    model: ModelConfig,
    training: TrainingConfig,
    cluster: Cluster,
    row_length: int,
    steps: int,
    *,
    parallel: Choice | None = None,
    recompute: bool = False,
    asynchronous: bool = False,
    fused: bool = True,
    search: bool = True,
) -> ScalePlan:
    """Plan `steps` optimizer steps of `training` on `cluster`, rows of `row_length` tokens.

    Args:
        parallel: how the model is spread, auto as `choose_parallel` does; None as configured.
        recompute: activation checkpointing, beside what is configured.
        asynchronous: checkpoints are written while training goes on.
        fused: a compiled step.
        search: look for the nearest setting that fits, if this one does not.

    Raises:
        ConfigurationError: the rows of a step cannot be dealt out over the ranks.
    """
    batch, accumulation = share_out(training, cluster.count)
    job = Job(
        model, batch, row_length, accumulation, optimizer=training.optimizer,
        recompute=recompute or model.gradient_checkpointing or training.activation_checkpointing,
        half=training.use_amp, fused=fused,
        flash=not model.attention_dropout, sync_each=True, spread_optimizer=True,
    )  # fmt: skip
    wanted = configured(training) if parallel is None else parallel
    chosen = choose_parallel(job, cluster) if wanted == "auto" else wanted
    job = replace(job, parallel="none" if cluster.count == 1 else chosen)
    if job.parallel == "ddp":
        job = replace(job, sync_each=False)
    memory = rank_memory(job, cluster, momentum=training.momentum)
    said = verdict(memory, cluster.accelerator)
    writers = cluster.num_nodes if job.parallel in ("fsdp", "hybrid") else 1
    remedy = None
    if search and said in ("impossible", "too large"):
        remedy = next(iter(_remedies(job, cluster, training)), None)
    return ScalePlan(
        job=job, cluster=cluster, steps=steps, step=step_time(job, cluster), memory=memory,
        saving=plan_saving(
            model, training.optimizer, accelerators=cluster.count, writers=writers,
            asynchronous=asynchronous,
        ),
        verdict=said, remedy=remedy,
    )  # fmt: skip


def configured(training: TrainingConfig) -> Choice:
    """How the configuration spreads a model."""
    if training.hybrid_shard and training.parallel == "fsdp":
        return "hybrid"
    return training.parallel


def choose_parallel(job: Job, cluster: Cluster) -> Parallel:
    """ddp if a whole model is comfortable on each rank, else fsdp; none for one rank."""
    if cluster.count == 1:
        return "none"
    whole = rank_memory(replace(job, parallel="ddp"), cluster)
    comfortable = whole.states <= COMFORTABLE * cluster.accelerator.memory_bytes
    return "ddp" if comfortable else "fsdp"


def _remedies(job: Job, cluster: Cluster, training: TrainingConfig) -> Iterator[str]:
    """Settings that fit, the nearest first, each as a sentence."""
    rows = training.effective_batch_size
    tried: list[tuple[Job, Cluster, list[str]]] = []
    ways: tuple[Parallel, ...] = (job.parallel,)
    if cluster.count > 1 and job.parallel != "fsdp":
        ways += ("fsdp",)
    for way in ways:
        spread = [f"parallel: {way}"] if way != job.parallel else []
        tried += [
            (one, cluster, spread + words) for one, words in _smaller(job, way, rows, cluster)
        ]
    count = cluster.count
    while count < MOST_ACCELERATORS and cluster.accelerator.name not in ("cpu", "mps"):
        count *= 2
        if rows % count:
            break
        more = replace(cluster, count=count, per_node=min(8, count))
        words = [f"{count} accelerators", "parallel: fsdp"]
        tried += [(one, more, words + extra) for one, extra in _smaller(job, "fsdp", rows, more)]
    for one, where, words in tried:
        if words and verdict(rank_memory(one, where), where.accelerator) in ("fits", "close"):
            needed = rank_memory(one, where).total
            yield f"{', '.join(words)} would fit ({format_bytes(needed)} a rank)"


def _smaller(
    job: Job, parallel: Parallel, rows: int, cluster: Cluster
) -> Iterator[tuple[Job, list[str]]]:
    """`job` spread as `parallel`, with less and less to keep; what was changed, in words.

    The `rows` of a step stay the same, so that the result does.
    """
    share = rows // cluster.count
    sizes = [n for n in range(min(job.batch_size, share), 0, -1) if share % n == 0]
    for recompute in (False, True):
        if job.recompute and not recompute:
            continue
        for batch in sizes:
            words = []
            if batch != job.batch_size:
                # the key counts the micro-batches of all ranks together
                words += [f"batch_size: {batch}", f"gradient_accumulation_steps: {rows // batch}"]
            if recompute and not job.recompute:
                words.append("activation_checkpointing: true")
            yield (
                replace(
                    job, parallel=parallel, batch_size=batch, recompute=recompute,
                    accumulation=share // batch, sync_each=parallel != "ddp",
                ),
                words,
            )  # fmt: skip


def _short(seconds: float) -> str:
    """A short time: "350 us", "12.3 ms", "1.4 s"."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return format_seconds(seconds)
