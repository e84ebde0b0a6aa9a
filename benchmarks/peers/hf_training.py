"""Contestant: `transformers.Trainer` on the same rows."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.contest import SETTLE, Turn
from benchmarks.corpus import ROW_LENGTH, load_corpus
from benchmarks.shapes import BATCH_SIZE, hf_gpt2, hf_llama, llama_a
from llm_trainer.data.shards import PackedRows


class Rows(Dataset[dict[str, Tensor]]):
    """The packed rows as the Trainer wants them."""

    def __init__(self, rows: PackedRows) -> None:
        indices = np.arange(len(rows))
        self._ids = torch.from_numpy(rows.rows(indices)[0].astype(np.int64))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._ids[index], "labels": self._ids[index]}


def run(args: dict[str, Any], turn: Turn) -> None:
    """args: layout (llama, gpt2), steps, warmup; training: more `TrainingArguments`."""
    from transformers import (
        AutoModelForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    steps, warmup = args["steps"], args["warmup"]

    class Pace(TrainerCallback):
        """Tells the time of every few steps and waits after them."""

        started = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            done = state.global_step - warmup
            place = done % (SETTLE + steps)
            if done > 0 and place == SETTLE:
                self.started = time.perf_counter()
            if done == 0:
                turn({})
            elif done > 0 and place == 0:
                seconds = time.perf_counter() - self.started
                turn({"tokens_per_second": steps * BATCH_SIZE * ROW_LENGTH / seconds})

    corpus = load_corpus()
    torch.manual_seed(0)
    config = hf_gpt2(llama_a()) if args["layout"] == "gpt2" else hf_llama(llama_a())
    model = AutoModelForCausalLM.from_config(config, **args.get("model", {}))
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder, "per_device_train_batch_size": BATCH_SIZE,
            "max_steps": 1_000_000, "learning_rate": 1e-3, "report_to": "none",
            "save_strategy": "no", "logging_steps": 1_000_000, "disable_tqdm": True,
            "use_cpu": True, **args.get("training", {}),
        }  # fmt: skip
        Trainer(
            model=model, args=TrainingArguments(**settings), train_dataset=Rows(corpus.train),
            callbacks=[Pace()],
        ).train()  # fmt: skip
