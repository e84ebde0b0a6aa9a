"""Contestants of `benchmarks.growth`: training steps of one shape, reading of so many shards."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import Turn
from benchmarks.corpus import FOLDER, ROW_LENGTH, VOCAB_SIZE, load_corpus
from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.config.data import PackingConfig
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.shards import PackedRows
from llm_trainer.models import TransformerLM
from llm_trainer.training.benchmark import benchmark_training
from llm_trainer.utils.machine import peak_memory_bytes

STEPS = 4
READS = 2000


def run(args: dict[str, Any], turn: Turn) -> None:
    """args: piece, "step" or "read", and what it needs."""
    {"step": _step, "read": _read}[args["piece"]](args, turn)


def _step(args: dict[str, Any], turn: Turn) -> None:
    """Eager steps in bfloat16 with AdamW; the memory is what they need beyond torch itself."""
    before = peak_memory_bytes()
    model = TransformerLM(
        ModelConfig(
            vocab_size=VOCAB_SIZE, d_model=args["width"], n_heads=args["width"] // 64,
            n_layers=args["layers"], max_seq_len=args["context"], d_ff=args["width"] * 8 // 3,
            dropout=0.0, attention_dropout=0.0, activation="swiglu", norm="rmsnorm",
            position="rope", bias=False,
        )
    )  # fmt: skip
    training = TrainingConfig(optimizer="adamw", amp_dtype="bfloat16", compile_model=False)
    turn({"parameters": model.get_num_params()})
    while True:
        done = benchmark_training(
            model, training, batch_size=args["batch_size"], steps=STEPS, warmup=2
        )
        turn({
            "seconds": done.step_seconds, "memory_mb": (done.peak_memory - before) / 1e6
        })  # fmt: skip


def _read(args: dict[str, Any], turn: Turn) -> None:
    """Open the rows of the default corpus in about so many shards, read some at random."""
    corpus = load_corpus()
    row_bytes = sum(f.stat().st_size for f in Path(corpus.train.path).glob("train*.arrow"))
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        config = PackingConfig(
            max_length=ROW_LENGTH, shard_bytes=max(row_bytes // args["shards"], 4096)
        )
        pack_corpus(
            corpus.raw, corpus.tokenizer, config, Path(folder) / "packed", num_workers=2,
            progress=False,
        )  # fmt: skip
        turn({"shards": len(list((Path(folder) / "packed").glob("train*.arrow")))})
        order = torch.randperm(len(corpus.train), generator=torch.Generator().manual_seed(0))
        wanted = order[:READS].numpy()
        while True:
            started = time.perf_counter()
            rows = PackedRows(Path(folder) / "packed", "train")
            opened = time.perf_counter()
            for row in wanted:
                rows.rows(row[None])
            read = time.perf_counter()
            turn({
                "open_seconds": opened - started,
                "read_microseconds": (read - opened) / len(wanted) * 1e6,
            })  # fmt: skip
