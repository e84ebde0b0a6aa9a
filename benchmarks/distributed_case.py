"""One training of `benchmarks.distributed`, as one process or as a rank under torchrun.

    python -m benchmarks.distributed_case '{"out": ..., "parallel": ..., "exact": ...}'

Writes `<out>/rank<number>.json`: seconds of each step, by the clock and of this process's
processor, and the bytes that the rank keeps and needs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer
from llm_trainer.training.reduction import local
from llm_trainer.utils.machine import peak_memory_bytes, reset_peak_memory

WIDTH, LAYERS, VOCAB_SIZE, ROW_LENGTH = 768, 8, 4096, 128
BATCH_SIZE, MICRO_BATCHES = 2, 4
"""Rows of a micro-batch, and micro-batches of a step over all processes."""
WARMUP, STEPS = 2, 5
"""Steps that do not count, and that do."""


def main() -> None:
    """Train a few steps and write the figures down."""
    case = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    made = trainer(Path(case["out"]), case)
    figures: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    step = made._optimizer_step
    before = [0.0, 0.0]

    def stepped(targets: int) -> None:
        step(targets)
        now = [time.perf_counter(), time.process_time()]
        if made.state.step > WARMUP:
            for name, start, end in zip(figures, before, now, strict=True):
                figures[name].append(end - start)
        else:
            reset_peak_memory()
        before[:] = now
        if made.state.step == WARMUP + STEPS:
            write(Path(case["out"]), made, figures)

    made._optimizer_step = stepped  # type: ignore[method-assign]
    made.train()


def trainer(folder: Path, case: dict[str, Any]) -> Trainer:
    """A trainer of the model that all cases train, on ids that mean nothing."""
    torch.manual_seed(0)
    tokenizer = BPETokenizer()
    tokenizer.train(["the rows are random ids, so the text of the tokenizer does not matter"], 260)
    model = TransformerLM(
        ModelConfig(
            vocab_size=VOCAB_SIZE, d_model=WIDTH, n_heads=WIDTH // 64, n_layers=LAYERS,
            max_seq_len=ROW_LENGTH, d_ff=WIDTH * 8 // 3, dropout=0.0, attention_dropout=0.0,
            activation="swiglu", norm="rmsnorm", position="rope", bias=False,
        )
    )  # fmt: skip
    config = TrainingConfig(
        batch_size=BATCH_SIZE, gradient_accumulation_steps=MICRO_BATCHES, optimizer="adamw",
        max_steps=WARMUP + STEPS, amp_dtype="bfloat16", eval_strategy="no", save_steps=0,
        report_to=[], checkpoint_dir=str(folder / "run"), parallel=case["parallel"],
        deterministic_reduction=case["exact"], activation_checkpointing=case["recomputed"],
    )  # fmt: skip
    rows = [{"input_ids": torch.randint(VOCAB_SIZE, (ROW_LENGTH,)).tolist()} for _ in range(64)]
    return Trainer(model, tokenizer, config, rows, device="cpu")  # type: ignore[arg-type]


def write(folder: Path, made: Trainer, figures: dict[str, list[float]]) -> None:
    """What this rank measured."""
    parameters = [local(parameter) for parameter in made.model.parameters()]
    states = [local(t) for state in made.optimizer.state.values() for t in state.values()]
    found = {name: statistics.median(values) for name, values in figures.items()}
    found |= {
        "weights_mb": sum(t.nbytes for t in parameters) / 1e6,
        "optimizer_mb": sum(t.nbytes for t in states) / 1e6,
        "peak_mb": peak_memory_bytes() / 1e6,
    }
    path = folder / f"rank{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
