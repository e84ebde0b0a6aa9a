"""A7: a checkpoint continued by another model, tokenizer, data or configuration, by field."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import Progress, World, end_state, fork, wait
from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.data import LanguageModelingDataset
from llm_trainer.exceptions import CheckpointError, LLMTrainerError
from llm_trainer.training import Trainer
from llm_trainer.training.checkpoint import ALLOWED_CHANGES

MODEL: dict[str, Any] = {
    "vocab_size": 320, "d_model": 32, "n_heads": 4, "n_layers": 1, "d_ff": 64, "max_seq_len": 48,
    "dropout": 0.2, "attention_dropout": 0.2, "activation": "relu", "pre_norm": False,
    "use_learned_pos_emb": True, "gradient_checkpointing": True, "n_kv_heads": 1,
    "norm": "rmsnorm", "position": "sinusoidal", "qk_norm": True, "tie_embeddings": False,
    "bias": False, "attention_bias": False, "rope_theta": 500.0, "norm_eps": 1e-6,
    "init_std": 0.01, "init": "zero", "previous_token_heads": 1,
    "induction_head": True,
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "batch_size": 3, "learning_rate": 0.02, "weight_decay": 0.1, "num_epochs": 3, "max_steps": 26,
    "lr_scheduler": "linear", "warmup_steps": 3, "warmup_ratio": 0.2, "min_lr_ratio": 0.2,
    "decay_ratio": 0.5, "lr_power": 2.0, "optimizer": "muon", "max_grad_norm": 0.5,
    "gradient_accumulation_steps": 4, "embedding_learning_rate": 0.02, "head_learning_rate": 0.02,
    "vector_learning_rate": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "momentum": 0.9,
    "use_amp": True, "amp_dtype": "bfloat16", "compile_model": "auto", "deterministic": False,
    "seed": 4, "save_steps": 5, "checkpoint_dir": None, "save_total_limit": 3,
    "strict_resume": True, "eval_steps": 3, "eval_strategy": "epoch", "eval_batches": 1,
    "sample_steps": 9, "sample_prompts": ["def "], "sample_tokens": 5, "logging_steps": 3,
    "report_to": ["console"], "dataloader_num_workers": 1, "document_mask": True,
    "nan_policy": "skip", "world_size": 2, "local_rank": 0,
}  # fmt: skip
"""Another value of each field; checkpoint_dir is another by itself, for each try has its own."""
_OTHER_LENGTH = {"max_steps", "num_epochs"}
_REFUSED_BY_NAME, _REFUSED_OTHERWISE = 3, 4


def run(folder: Path, scale: float) -> Report:
    """Every field: refused by its name, old -> new; or allowed, and then the end is the same."""
    world, report, counts = World(folder), Report(), Counter[str]()
    for section, config, values in (
        ("model", ModelConfig, MODEL), ("training", TrainingConfig, TRAINING),
    ):  # fmt: skip
        names = {field.name for field in fields(config)}
        report.require(set(values) == names, f"{section}: unlike {set(values) ^ names}")
    assert wait(fork(lambda: world.trainer(folder / "whole").train())) == 0
    assert wait(fork(lambda: _half(world, folder / "half"))) == 143
    expected = end_state(folder / "whole")
    for name, value in MODEL.items():
        _expect_refusal(world, folder, f"model.{name}", report, counts, model={name: value})
    for name, value in TRAINING.items():
        if name not in ALLOWED_CHANGES:
            _expect_refusal(world, folder, f"training.{name}", report, counts, **{name: value})
            continue
        counts["fields_allowed"] += 1
        directory = _copy(folder)
        changes = {} if name == "checkpoint_dir" else {name: value}
        code = wait(fork(partial(_go_on, world, directory, changes), folder / "log"))
        report.require(code == 0, f"training.{name}, which may change, ended with {code}")
        if code == 0 and name not in _OTHER_LENGTH:
            counts["allowed_and_the_end_compared"] += 1
            for file in ("model/model.safetensors", "optimizer.safetensors"):
                same = end_state(directory)[file] == expected[file]
                report.require(same, f"training.{name}: {file} differs")
    texts = [f"other text {n}" for n in range(200)]
    rows = LanguageModelingDataset(texts, world.tokenizer, max_length=16)
    _expect_refusal(world, folder, "data", report, counts, rows=rows)
    other = World(folder / "other")
    other.tokenizer.train(texts, vocab_size=270)
    other.rows = LanguageModelingDataset(texts, other.tokenizer, max_length=16)
    _expect_refusal(other, folder, "tokenizer", report, counts)
    report.counters = dict(counts)
    total = len(MODEL) + len(TRAINING) + 2
    classified = counts["refused_by_name"] + counts["refused_otherwise"] + counts["fields_allowed"]
    report.counters |= {"fields": total, "fields_classified": classified}
    report.require(classified == total, f"{total - classified} fields were not classified")
    return report


def _half(world: World, directory: Path) -> None:
    made = world.trainer(directory)
    accumulate = made._accumulate

    def counted(*arguments: Any) -> None:
        accumulate(*arguments)
        if made.state.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    made._accumulate = counted  # type: ignore[method-assign, assignment]
    made.train()


def _copy(folder: Path) -> Path:
    shutil.rmtree(folder / "try", ignore_errors=True)
    shutil.copytree(folder / "half", folder / "try")
    return folder / "try"


def _go_on(world: World, directory: Path, changes: dict[str, Any]) -> None:
    world.train(world.trainer(directory, **changes), Progress())


def _expect_refusal(
    world: World, folder: Path, field: str, report: Report, counts: Counter[str],
    model: dict[str, Any] | None = None, rows: Any = None, **changes: Any,
) -> None:  # fmt: skip
    directory, name = _copy(folder), field.rpartition(".")[2]

    def body() -> None:
        try:
            made: Trainer = world.trainer(directory, model, rows, **changes)
            made.train("auto")
        except CheckpointError as error:
            if f"{field}: " in str(error) and " -> " in str(error):
                raise SystemExit(_REFUSED_BY_NAME) from None
            raise
        except LLMTrainerError as error:
            raise SystemExit(_REFUSED_OTHERWISE if name in str(error) else 1) from error

    code = wait(fork(body, folder / "log"))
    counts["refused_by_name"] += code == _REFUSED_BY_NAME
    counts["refused_otherwise"] += code == _REFUSED_OTHERWISE
    report.require(code in (_REFUSED_BY_NAME, _REFUSED_OTHERWISE), f"{field}: ended with {code}")


ROW = Row("A7", "a checkpoint against another model, tokenizer, data or configuration", run)
