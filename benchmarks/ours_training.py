"""Contestant: our `Trainer`, stopped every few steps to let the others have their turn."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import SETTLE, Turn
from benchmarks.corpus import load_corpus
from benchmarks.machine import matmul_flops
from benchmarks.shapes import BATCH_SIZE, llama_a
from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.models import TransformerLM
from llm_trainer.training import Trainer
from llm_trainer.utils.parameters import flops_per_token


class PacedTrainer(Trainer):
    """A trainer that tells the time of every `steps` steps and waits after them."""

    turn: Turn
    steps: int
    warmup: int
    _started: float

    def _log(self) -> None:
        super()._log()
        done = self.state.step - self.warmup
        place = done % (SETTLE + self.steps)
        if done > 0 and place == SETTLE:
            self._started = time.perf_counter()
        if done == 0:
            self.turn({})
        elif done > 0 and place == 0:
            seconds = time.perf_counter() - self._started
            row_length = self.model.config.max_seq_len
            speed = self.steps * self.config.effective_batch_size * row_length / seconds
            peak = matmul_flops()
            flops = flops_per_token(self.model.config, row_length)
            self.turn(
                {
                    "tokens_per_second": speed,
                    "peak_share": speed * flops / peak,
                    "peak_gflops": peak / 1e9,
                }
            )


def run(args: dict[str, Any], turn: Turn) -> None:
    """args: steps, warmup; model and training: values that differ from shape A's."""
    torch.manual_seed(0)
    config = ModelConfig(**(llama_a().to_dict() | args.get("model", {})))
    corpus = load_corpus(config.max_seq_len)
    with tempfile.TemporaryDirectory() as folder:
        training = {
            "batch_size": BATCH_SIZE, "max_steps": 1_000_000, "optimizer": "adamw",
            "learning_rate": 1e-3, "report_to": ["jsonl"], "eval_strategy": "no",
            "save_steps": 0, "compile_model": True, "amp_dtype": "bfloat16",
            "checkpoint_dir": str(Path(folder) / "run"), **args.get("training", {}),
        }  # fmt: skip
        trainer = PacedTrainer(
            TransformerLM(config), corpus.tokenizer, TrainingConfig(**training), corpus.train
        )
        trainer.turn, trainer.steps, trainer.warmup = turn, args["steps"], args["warmup"]
        trainer.train()
