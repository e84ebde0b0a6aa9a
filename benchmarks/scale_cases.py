"""The worked cases of docs/scale.md: 1.5 B on 8 GPUs, 7 B on 64, 1 TB of text on 32 workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llm_trainer.config.model import ModelConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.utils.corpus_model import Corpus, Workers, corpus_price, corpus_stages
from llm_trainer.utils.fault_model import daly_interval, goodput
from llm_trainer.utils.hardware import Cluster, make_cluster, parse_cluster
from llm_trainer.utils.parameters import calculate_parameters
from llm_trainer.utils.scale_plan import Choice, ScalePlan, plan_scale
from llm_trainer.utils.scale_simulation import failing, straggling


@dataclass(frozen=True)
class Case:
    """A model, what it is trained on, and where."""

    name: str
    model: ModelConfig
    training: TrainingConfig
    tokens: float
    hardware: str
    row: int

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return round(self.tokens / (self.training.effective_batch_size * self.row))

    def plan(
        self, cluster: Cluster | None = None, *, parallel: Choice = "auto",
        recompute: bool = False, asynchronous: bool = False,
    ) -> ScalePlan:  # fmt: skip
        """The plan on `hardware`, or on another cluster."""
        return plan_scale(
            self.model, self.training, cluster or parse_cluster(self.hardware), self.row,
            self.steps, parallel=parallel, recompute=recompute, asynchronous=asynchronous,
        )  # fmt: skip


def _llama(vocab: int, width: int, heads: int, layers: int, inner: int, row: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab, d_model=width, n_heads=heads, n_layers=layers, d_ff=inner,
        max_seq_len=row, norm="rmsnorm", position="rope", activation="swiglu", bias=False,
        tie_embeddings=False, dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip


SMALL = Case(
    "1.5 B on 8 GPUs", _llama(50304, 2048, 16, 26, 5504, 2048),
    TrainingConfig(batch_size=4, gradient_accumulation_steps=64, use_amp=True,
                   amp_dtype="bfloat16"),
    30e9, "h100:8", 2048,
)  # fmt: skip
LARGE = Case(
    "7 B on 64 GPUs in 8 nodes", _llama(32000, 4096, 32, 32, 11008, 4096),
    TrainingConfig(batch_size=1, gradient_accumulation_steps=1024, use_amp=True,
                   amp_dtype="bfloat16"),
    140e9, "h100:64", 4096,
)  # fmt: skip
CASES = (SMALL, LARGE)
WAYS: tuple[tuple[str, Choice, bool], ...] = (
    ("ddp", "ddp", False), ("ddp, recomputing", "ddp", True), ("fsdp", "fsdp", False),
    ("fsdp, recomputing", "fsdp", True), ("hybrid", "hybrid", False),
    ("hybrid, recomputing", "hybrid", True),
)  # fmt: skip


def ways(case: Case) -> list[dict[str, Any]]:
    """Each way to spread the model: time, memory, verdict."""
    rows = []
    for name, parallel, recompute in WAYS:
        plan = case.plan(parallel=parallel, recompute=recompute)
        rows.append(
            {
                "way": name, "step_s": plan.step.total, "mfu": plan.step.mfu,
                "network_s": plan.step.communication, "exposed_s": plan.step.exposed,
                "memory_gb": plan.memory.total / 1e9, "states_gb": plan.memory.states / 1e9,
                "verdict": plan.verdict, "hours": plan.seconds / 3600, "price": plan.price,
            }
        )  # fmt: skip
    return rows


def sensitivity(case: Case, parallel: Choice) -> list[dict[str, Any]]:
    """How the time of the run changes when one assumption does."""
    base = parse_cluster(case.hardware)
    normal = case.plan(parallel=parallel).seconds
    chip = base.accelerator
    changes: list[tuple[str, Cluster, float]] = [
        ("a fifth less of the peak",
         replace(base, accelerator=replace(chip, matmul_share=0.8 * chip.matmul_share)), 1.0),
        ("half the memory bandwidth",
         replace(base, accelerator=replace(chip, memory_bandwidth=chip.memory_bandwidth / 2)), 1.0),
        ("NVLink at a quarter",
         replace(base, intra=replace(base.intra, bandwidth=base.intra.bandwidth / 4)), 1.0),
    ]  # fmt: skip
    if base.num_nodes > 1:
        changes += [
            (f"network of a node {speed} Gbit/s",
             replace(base, inter=replace(base.inter, bandwidth=speed / 8 * 1e9)), 1.0)
            for speed in (800, 200, 100, 25)
        ]  # fmt: skip
    rows = [
        {"change": name, "time": case.plan(where, parallel=parallel).seconds / normal - 1}
        for name, where, _ in changes
    ]
    if base.num_nodes > 1:
        hundred = replace(base, inter=replace(base.inter, bandwidth=12.5e9))
        once = case.plan(hundred, parallel="hybrid").seconds / normal - 1
        rows.append({"change": "100 Gbit/s, and hybrid instead of fsdp", "time": once})
    slow = straggling(base.count, 1.0, 0.03)
    rows.append({"change": "steps that vary by 3 % on each rank (simulated)", "time": slow - 1})
    saving = case.plan(parallel=parallel).saving
    often = goodput(
        daly_interval(saving.stall, saving.between / 10), saving.stall, 300, saving.between / 10
    )
    rows.append({"change": "ten times the failures", "time": saving.goodput / often - 1})
    return rows


def savings(case: Case) -> dict[str, Any]:
    """Useful share of the time against the interval, closed form and simulated."""
    saving = case.plan(parallel="fsdp").saving
    intervals = [60 * 2.0**n for n in range(-1, 12)]
    return {
        "bytes": saving.size, "write_s": saving.write, "best_s": saving.interval,
        "between_h": saving.between / 3600, "goodput": saving.goodput, "intervals": intervals,
        "closed": [goodput(i, saving.stall, 300, saving.between) for i in intervals],
        "simulated": [
            failing(400 * saving.between, i, saving.stall, 300, saving.between) for i in intervals
        ],
        "one_writer_s": case.plan(parallel="ddp").saving.write,
        "asynchronous": case.plan(parallel="fsdp", asynchronous=True).saving.goodput,
    }  # fmt: skip


def memory_curve(case: Case) -> list[dict[str, float]]:
    """Memory a rank against the number of ranks, fsdp and ddp."""
    chip = parse_cluster(case.hardware).accelerator.name
    curve = []
    for count in (1, 2, 4, 8, 16, 32, 64, 128):
        if case.training.effective_batch_size % count:
            continue
        where = make_cluster(chip, count)
        one = {"ranks": float(count)}
        for parallel in ("ddp", "fsdp"):
            plan = case.plan(where, parallel=parallel)
            one[parallel] = plan.memory.total / 1e9
            one[f"{parallel}_states"] = plan.memory.states / 1e9
            one[f"{parallel}_tokens"] = plan.tokens_per_second / count
        curve.append(one)
    return curve


def cases() -> dict[str, Any]:
    """All training cases with their figures."""
    return {
        case.name: {
            "parameters": calculate_parameters(case.model), "tokens": case.tokens,
            "steps": case.steps, "hardware": case.hardware,
            "tokens_per_step": case.training.effective_batch_size * case.row,
            "ways": ways(case), "sensitivity": sensitivity(case, "fsdp"),
            "saving": savings(case), "memory": memory_curve(case),
        }
        for case in CASES
    }  # fmt: skip


def corpus() -> dict[str, Any]:
    """1 TB on 32 workers."""
    text, workers = Corpus(1e12), Workers()
    stages = corpus_stages(text, workers)
    return {
        "tokens": text.tokens, "rows_bytes": text.rows, "parquet_bytes": 1e12 * text.compression,
        "stages": [vars(stage) for stage in stages],
        "price": corpus_price(stages, text, workers),
        "workers": [
            {"workers": count, **{stage.name: stage.seconds for stage in corpus_stages(
                text, replace(workers, count=count))}}
            for count in (1, 2, 4, 8, 16, 32, 64, 128)
        ],
        "sensitivity": list(_corpus_changes(text, workers)),
    }  # fmt: skip


def _corpus_changes(text: Corpus, workers: Workers) -> Iterator[dict[str, Any]]:
    normal = sum(stage.seconds for stage in corpus_stages(text, workers))
    changes = (
        ("workers at 70 % parallel efficiency", text, workers, 0.7, True),
        ("a source of 1 Gbit/s", text, replace(workers, origin=0.125e9), 1.0, True),
        ("workers with 1 Gbit/s", text, replace(workers, network=0.125e9), 1.0, True),
        ("a store of 2 GB/s in all", text, replace(workers, store=2e9), 1.0, True),
        ("outputs that DVC takes no digest of", text, workers, 1.0, False),
        ("32-bit ids (vocabulary above 65,536)", replace(text, id_bytes=4), workers, 1.0, True),
    )  # fmt: skip
    for name, one, where, efficiency, tracked in changes:
        stages = corpus_stages(one, where, efficiency=efficiency, tracked=tracked)
        yield {"change": name, "time": sum(stage.seconds for stage in stages) / normal - 1}
