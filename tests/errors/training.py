"""Nonsense for the trainer, optimizers, schedules and the helpers around them."""

from __future__ import annotations

import torch
from torch import nn

from llm_trainer.config import DataConfig, ModelConfig
from llm_trainer.training import Trainer
from llm_trainer.training.benchmark import benchmark_training
from llm_trainer.training.optimizer import create_optimizer
from llm_trainer.training.scheduler import create_scheduler, lr_factor
from llm_trainer.training.utils import (
    get_device,
    load_checkpoint,
    save_checkpoint,
    set_seed,
    setup_logging,
)
from tests.errors.models import PROMPT
from tests.errors.nonsense import (
    AMOUNT,
    CHOICE,
    COUNT,
    DEVICE,
    FLAG,
    FOLDER,
    NAN,
    NEW_FOLDER,
    OBJECT,
    POSITIVE,
    SHARE,
    SIZE,
    WHOLE,
    Entry,
    maybe,
)

DATASET = ("text", 3, [], iter([1]))
BETAS = (None, 0.9, "text", (0.9,), (0.9, 1.0), (-0.1, 0.9), (NAN, 0.9), ("a", "b"))
CHECKPOINT = (*maybe(FOLDER), "models/final")

_PIECES = {
    "train_dataset": DATASET, "eval_dataset": DATASET, "device": DEVICE,
    "tracking": ("text", 3, {}),
}  # fmt: skip


def data_config() -> DataConfig:
    """The project's text."""
    return DataConfig(
        train_file="train", validation_file="validation", max_length=32, vocab_size=300,
        preprocessing_num_workers=1,
    )  # fmt: skip


ENTRIES = [
    Entry(
        "llm_trainer.training:Trainer", lambda w: Trainer,
        lambda w: {"model": w.model, "tokenizer": w.tokenizer, "config": w.training},
        {
            "model": (*OBJECT, nn.Linear(2, 2)), "tokenizer": OBJECT, "config": (*OBJECT, {}),
            **_PIECES,
        },
        cases=((lambda w: {"tokenizer": w.untrained}, ("not trained", "train")),),
    ),
    Entry(
        "llm_trainer.training:Trainer.train", lambda w: w.trainer.train, lambda w: {},
        {"resume_from_checkpoint": CHECKPOINT, "allow_changes": FLAG},
    ),
    Entry(
        "llm_trainer.training:Trainer.train_from_config", lambda w: w.trainer.train_from_config,
        lambda w: {"model_config": w.shape, "data_config": data_config()},
        {
            "model_config": OBJECT, "data_config": (*OBJECT, {}),
            "resume_from_checkpoint": CHECKPOINT, "allow_changes": FLAG,
        },
        cases=(
            ({"model_config": ModelConfig()}, ("model_config", "vocab_size", "300", "50000")),
            (
                {"data_config": DataConfig(train_file="train", max_length=64)},
                ("max_length (64)", "max_seq_len (32)"),
            ),
            (
                {"data_config": DataConfig(train_file="no-such-file.txt", max_length=32)},
                ("no-such-file.txt",),
            ),
        ),
    ),
    Entry(
        "llm_trainer.training:Trainer.generate_text", lambda w: w.trainer.generate_text,
        lambda w: {"prompt": "def", "max_length": 10}, {"prompt": PROMPT, "max_length": COUNT},
        cases=(({"temprature": 1}, ("temprature", "did you mean 'temperature'")),),
    ),
    Entry(
        "llm_trainer.training:Trainer.save_model", lambda w: w.trainer.save_model,
        lambda w: {"save_path": "models/saved"}, {"save_path": (*NEW_FOLDER, "folder")},
    ),
    Entry(
        "llm_trainer.training:Trainer.from_pretrained", lambda w: Trainer.from_pretrained,
        lambda w: {
            "model_path": "models/final", "tokenizer_path": "models/tokenizer",
            "config": w.training,
        },
        {
            "model_path": FOLDER, "tokenizer_path": FOLDER, "config": (*OBJECT, {}), **_PIECES,
        },
    ),
    Entry(
        "llm_trainer.training:Trainer.plan", lambda w: w.trainer.plan, lambda w: {},
        {"peak_flops": maybe(POSITIVE)},
    ),
    Entry(
        "llm_trainer.training:Trainer.evaluate",
        lambda w: Trainer(w.model, w.tokenizer, w.training).evaluate, lambda w: {}, {},
        cases=(({}, ("eval_dataset", "give")),),
    ),
    Entry(
        "llm_trainer.training:Trainer._save_checkpoint", lambda w: w.trainer._save_checkpoint,
        lambda w: {}, {"wait": FLAG},
    ),
    Entry(
        "llm_trainer.training:Trainer._load_checkpoint", lambda w: w.trainer._load_checkpoint,
        lambda w: {"allow_changes": True}, {"checkpoint_path": CHECKPOINT, "allow_changes": FLAG},
    ),
    Entry(
        "llm_trainer.training.optimizer:create_optimizer", lambda w: create_optimizer,
        lambda w: {"model": w.model},
        {
            "model": (*OBJECT, nn.ReLU()), "optimizer_type": CHOICE, "learning_rate": POSITIVE,
            "weight_decay": AMOUNT, "betas": BETAS, "eps": POSITIVE,
            "momentum": (*AMOUNT, 1.0), "embedding_learning_rate": maybe(POSITIVE),
            "head_learning_rate": maybe(POSITIVE), "vector_learning_rate": maybe(POSITIVE),
            "exchange": maybe(OBJECT), "separable": FLAG,
        },
    ),
    Entry(
        "llm_trainer.training.scheduler:create_scheduler", lambda w: create_scheduler,
        lambda w: {"optimizer": w.optimizer},
        {
            "optimizer": OBJECT, "scheduler_type": CHOICE, "num_training_steps": COUNT,
            "warmup_steps": (*SIZE, 1001), "min_lr_ratio": SHARE, "decay_ratio": SHARE,
            "power": POSITIVE,
        },
    ),
    Entry(
        "llm_trainer.training.scheduler:lr_factor", lambda w: lr_factor,
        lambda w: {"step": 3, "num_training_steps": 10},
        {
            "step": SIZE, "num_training_steps": COUNT, "warmup_steps": SIZE,
            "scheduler_type": CHOICE, "min_lr_ratio": SHARE, "decay_ratio": SHARE,
            "power": POSITIVE,
        },
    ),
    Entry(
        "llm_trainer.training.utils:set_seed", lambda w: set_seed, lambda w: {"seed": 1},
        {"seed": (*WHOLE, -1, 2**63)},
    ),
    Entry(
        "llm_trainer.training.utils:get_device", lambda w: get_device, lambda w: {"name": "cpu"},
        {"name": (*DEVICE, None, "cuda:99")}, called={"name": "device"},
    ),
    Entry(
        "llm_trainer.training.utils:setup_logging", lambda w: setup_logging, lambda w: {},
        {"level": (None, 3, "loud", "", ["info"])},
    ),
    Entry(
        "llm_trainer.training.utils:save_checkpoint", lambda w: save_checkpoint,
        lambda w: {
            "model": w.model, "optimizer": w.optimizer, "step": 2, "checkpoint_dir": "saved",
        },
        {
            "model": (*OBJECT, nn.Linear(2, 2)), "optimizer": OBJECT, "step": SIZE,
            "checkpoint_dir": (None, 3, "", "text.txt", "nul\0byte"),
        },
    ),
    Entry(
        "llm_trainer.training.utils:load_checkpoint", lambda w: load_checkpoint,
        lambda w: {
            "checkpoint_path": "checkpoints/checkpoint-1", "model": w.model,
            "optimizer": w.optimizer,
        },
        {
            "checkpoint_path": (*FOLDER, "models/final", "checkpoints"),
            "model": (*OBJECT, nn.Linear(2, 2)), "optimizer": OBJECT,
        },
        cases=(
            (
                lambda w: {"model": _other(w)}, ("does not fit", "model.safetensors", "(32,)"),
            ),
        ),
    ),
    Entry(
        "llm_trainer.training.benchmark:benchmark_training", lambda w: benchmark_training,
        lambda w: {
            "model": _other(w), "config": w.training, "batch_size": 1, "steps": 1, "warmup": 1,
        },
        {
            "model": (*OBJECT, nn.Linear(2, 2)), "config": (*OBJECT, {}), "batch_size": COUNT,
            "steps": COUNT, "warmup": SIZE, "progress": FLAG,
        },
    ),
]  # fmt: skip


def _other(world: object) -> torch.nn.Module:
    from llm_trainer.models import TransformerLM
    from tests.errors.models import TINY

    return TransformerLM(TINY)
