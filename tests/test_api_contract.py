"""The API reference by introspection: every name, parameter and default, and no field unread."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.config import DataConfig, ModelConfig, TrainingConfig
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import (
    ConfigurationError,
    GenerationError,
    LLMTrainerError,
    ModelConfigurationError,
    TokenizerNotTrainedException,
    TrainingError,
)
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer
from tests.test_layers import ROOT

REQUIRED = object()
"""Stands for a parameter without a default."""

# --------------------------------------------------------------------------- configurations

CONFIGS: dict[type, dict[str, Any]] = {
    ModelConfig: {
        "vocab_size": 50000, "d_model": 768, "n_heads": 12, "n_layers": 12, "d_ff": 3072,
        "max_seq_len": 1024, "dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu",
        "pre_norm": True, "use_learned_pos_emb": False, "gradient_checkpointing": False,
    },
    TrainingConfig: {
        "batch_size": 32, "learning_rate": 1e-4, "weight_decay": 0.01, "num_epochs": 10,
        "max_steps": None, "lr_scheduler": "cosine", "warmup_steps": 1000, "warmup_ratio": 0.1,
        "min_lr_ratio": 0.1, "optimizer": "adamw", "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1, "use_amp": True, "amp_dtype": "float16",
        "save_steps": 1000, "checkpoint_dir": "./checkpoints", "eval_steps": 500,
        "eval_strategy": "steps", "logging_steps": 100, "report_to": ["tensorboard"],
        "world_size": 1, "local_rank": -1,
    },
    DataConfig: {
        "dataset_name": "wikitext", "dataset_config": "wikitext-103-raw-v1",
        "dataset_split": "train", "validation_split": "validation", "text_column": "text",
        "max_length": 1024, "min_length": 10, "vocab_size": 50000, "pack_sequences": True,
        "preprocessing_num_workers": 4, "dataloader_num_workers": 4, "train_file": None,
        "validation_file": None,
    },
}  # fmt: skip
OTHER_VALUES: dict[type, dict[str, Any]] = {
    ModelConfig: {
        "vocab_size": 300, "d_model": 64, "n_heads": 4, "n_layers": 2, "d_ff": 96,
        "max_seq_len": 128, "dropout": 0.2, "attention_dropout": 0.3, "activation": "relu",
        "pre_norm": False, "use_learned_pos_emb": True, "gradient_checkpointing": True,
    },
    TrainingConfig: {
        "batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.1, "num_epochs": 2,
        "max_steps": 7, "lr_scheduler": "linear", "warmup_steps": 3, "warmup_ratio": 0.2,
        "min_lr_ratio": 0.0, "optimizer": "sgd", "max_grad_norm": 0.5,
        "gradient_accumulation_steps": 4, "use_amp": False, "amp_dtype": "bfloat16",
        "save_steps": 10, "checkpoint_dir": "elsewhere", "eval_steps": 5, "eval_strategy": "epoch",
        "logging_steps": 1, "report_to": ["console"], "world_size": 2, "local_rank": 1,
        "compile_model": True, "dataloader_num_workers": 8,
    },
    DataConfig: {
        "dataset_name": "a/b", "dataset_config": None, "dataset_split": "all",
        "validation_split": None, "text_column": "content", "max_length": 64, "min_length": 1,
        "vocab_size": 300, "pack_sequences": False, "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0, "train_file": "a.txt", "validation_file": "b.txt",
    },
}  # fmt: skip


@pytest.mark.parametrize("cls", CONFIGS)
def test_defaults_of_configurations(cls: Any) -> None:
    made = cls()
    assert {name: getattr(made, name) for name in CONFIGS[cls]} == CONFIGS[cls]


@pytest.mark.parametrize("cls", OTHER_VALUES)
def test_configurations_keep_and_save_what_they_are_given(cls: Any, tmp_path: Path) -> None:
    values = OTHER_VALUES[cls]
    assert set(values) >= set(CONFIGS[cls]), "each field of the reference"
    made = cls(**values)
    assert {name: getattr(made, name) for name in values} == values
    assert cls.from_dict(made.to_dict()) == made
    for name in ("config.json", "config.yaml"):
        made.save(str(tmp_path / name))
        assert cls.load(str(tmp_path / name)) == made


def test_properties_of_configurations() -> None:
    assert ModelConfig(d_model=768, n_heads=12).d_head == 64
    config = TrainingConfig(batch_size=4, gradient_accumulation_steps=3, world_size=2)
    assert config.effective_batch_size == 24


def test_every_field_is_read_somewhere() -> None:
    """A field that nothing reads is a promise that nothing keeps; its own checks do not count."""
    read: set[str] = set()
    for package in ("llm_trainer", "pipeline", "scripts"):
        for path in (ROOT / package).rglob("*.py"):
            read |= attributes_read(ast.parse(path.read_bytes()))
    launchers = {"local_rank"}  # checked, and otherwise the launcher's
    for cls in (*CONFIGS, GenerationConfig):
        unread = {field.name for field in dataclasses.fields(cls)} - read - launchers
        assert not unread, cls


def attributes_read(node: ast.AST) -> set[str]:
    """Names of all attributes that are read, outside of functions named `problems`."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and child.name == "problems":
            continue
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            found.add(child.attr)
        found |= attributes_read(child)
    return found


# --------------------------------------------------------------------------- signatures

SIGNATURES: dict[str, dict[str, Any]] = {
    # module:name -> parameters in order, with defaults; more may follow
    "llm_trainer.models:TransformerLM": {"config": REQUIRED},
    "llm_trainer.models:TransformerLM.forward": {
        "input_ids": REQUIRED, "attention_mask": None, "labels": None,
    },
    "llm_trainer.models:TransformerLM.generate": {"input_ids": REQUIRED, "max_length": 100},
    "llm_trainer.models:TransformerLM.get_num_params": {},
    "llm_trainer.models:TransformerLM.get_model_size_mb": {},
    "llm_trainer.models:TransformerLM.save_pretrained": {"save_directory": REQUIRED},
    "llm_trainer.models:TransformerLM.from_pretrained": {"load_directory": REQUIRED},
    "llm_trainer.tokenizer:BPETokenizer": {},
    "llm_trainer.tokenizer:BPETokenizer.train": {"texts": REQUIRED, "vocab_size": 50000},
    "llm_trainer.tokenizer:BPETokenizer.train_from_dataset": {
        "dataset_name": REQUIRED, "vocab_size": 50000,
    },
    "llm_trainer.tokenizer:BPETokenizer.encode": {"text": REQUIRED, "add_special_tokens": True},
    "llm_trainer.tokenizer:BPETokenizer.decode": {
        "token_ids": REQUIRED, "skip_special_tokens": True,
    },
    "llm_trainer.tokenizer:BPETokenizer.save_pretrained": {"save_directory": REQUIRED},
    "llm_trainer.tokenizer:BPETokenizer.from_pretrained": {"load_directory": REQUIRED},
    "llm_trainer.tokenizer:BPETokenizer.get_vocab_stats": {},
    "llm_trainer.training:Trainer": {
        "model": REQUIRED, "tokenizer": REQUIRED, "config": REQUIRED, "train_dataset": None,
        "eval_dataset": None,
    },
    "llm_trainer.training:Trainer.train": {},
    "llm_trainer.training:Trainer.train_from_config": {
        "model_config": REQUIRED, "data_config": REQUIRED,
    },
    "llm_trainer.training:Trainer.evaluate": {},
    "llm_trainer.training:Trainer.generate_text": {"prompt": REQUIRED, "max_length": 100},
    "llm_trainer.training:Trainer.save_model": {"save_path": REQUIRED},
    "llm_trainer.training:Trainer.from_pretrained": {
        "model_path": REQUIRED, "tokenizer_path": REQUIRED, "config": REQUIRED,
    },
    "llm_trainer.training:Trainer._train_epoch": {},
    "llm_trainer.training:Trainer._evaluate": {},
    "llm_trainer.training:Trainer._save_checkpoint": {},
    "llm_trainer.training:Trainer._load_checkpoint": {},
    "llm_trainer.utils.generation:TextGenerator": {
        "model": REQUIRED, "tokenizer": REQUIRED, "device": None,
    },
    "llm_trainer.utils.generation:TextGenerator.generate": {"prompt": REQUIRED, "config": None},
    "llm_trainer.utils.generation:TextGenerator.batch_generate": {
        "prompts": REQUIRED, "config": None,
    },
    "llm_trainer.utils.generation:TextGenerator.interactive_generate": {},
    "llm_trainer.utils.generation:sample_top_k": {"logits": REQUIRED, "k": REQUIRED},
    "llm_trainer.utils.generation:sample_top_p": {"logits": REQUIRED, "p": REQUIRED},
    "llm_trainer.utils.generation:apply_repetition_penalty": {
        "logits": REQUIRED, "input_ids": REQUIRED, "penalty": REQUIRED,
    },
    "llm_trainer.utils.generation:create_causal_mask": {"size": REQUIRED},
    "llm_trainer.utils.inference:InferenceEngine": {
        "model": REQUIRED, "tokenizer": REQUIRED, "device": None,
    },
    "llm_trainer.utils.inference:InferenceEngine.infer": {"prompt": REQUIRED},
    "llm_trainer.utils.inference:InferenceEngine.batch_infer": {"prompts": REQUIRED},
    "llm_trainer.utils.inference:InferenceEngine.optimize": {
        "enable_kv_cache": True, "compile_model": False, "quantize": False,
    },
    "llm_trainer.utils.inference:InferenceEngine.benchmark": {
        "prompts": REQUIRED, "num_runs": 10,
    },
    "llm_trainer.utils.metrics:compute_perplexity": {
        "model": REQUIRED, "dataloader": REQUIRED, "device": None,
    },
    "llm_trainer.utils.metrics:compute_bleu_score": {
        "predictions": REQUIRED, "references": REQUIRED,
    },
    "llm_trainer.utils.metrics:compute_diversity_metrics": {"texts": REQUIRED},
    "llm_trainer.utils.metrics:compute_repetition_metrics": {"texts": REQUIRED},
    "llm_trainer.utils.metrics:evaluate_generation_quality": {
        "generated": None, "references": None, "generated_texts": None, "reference_texts": None,
    },
    "llm_trainer.utils.planning:estimate_memory_usage": {"config": REQUIRED},
    "llm_trainer.utils.planning:calculate_parameters": {"config": REQUIRED},
    "llm_trainer.data:LanguageModelingDataset": {
        "texts": REQUIRED, "tokenizer": REQUIRED, "max_length": 1024, "pack_sequences": True,
    },
    "llm_trainer.data:LanguageModelingDataset.__len__": {},
    "llm_trainer.data:LanguageModelingDataset.__getitem__": {"idx": REQUIRED},
    "llm_trainer.data:LanguageModelingDataset.pack_sequences": {},
    "llm_trainer.data:LanguageModelingDataset.get_stats": {},
    "llm_trainer.data:create_dataloader": {
        "dataset": REQUIRED, "batch_size": 32, "shuffle": True, "num_workers": 0,
        "pin_memory": True, "drop_last": True,
    },
    "llm_trainer.training.optimizer:create_optimizer": {
        "model": REQUIRED, "optimizer_type": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01,
        "betas": (0.9, 0.999), "eps": 1e-8,
    },
    "llm_trainer.training.scheduler:create_scheduler": {
        "optimizer": REQUIRED, "scheduler_type": "cosine", "num_training_steps": 1000,
        "warmup_steps": 0, "min_lr_ratio": 0.1,
    },
    "llm_trainer.training.utils:set_seed": {"seed": REQUIRED},
    "llm_trainer.training.utils:get_device": {},
    "llm_trainer.training.utils:setup_logging": {"level": "info"},
    "llm_trainer.training.utils:save_checkpoint": {},
    "llm_trainer.training.utils:load_checkpoint": {},
    "llm_trainer.training.utils:get_memory_usage": {},
}  # fmt: skip


def resolve(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_and_defaults(name: str) -> None:
    found = resolve(name)
    parameters = [p for p in inspect.signature(found).parameters.values() if p.name != "self"]
    expected = SIGNATURES[name]
    named = parameters[: len(expected)]
    assert [p.name for p in named] == list(expected), "in this order, so that positions work too"
    defaults = {p.name: REQUIRED if p.default is p.empty else p.default for p in named}
    assert defaults == expected
    if name.rpartition(":")[2] != "LanguageModelingDataset.__getitem__":
        more = [p for p in parameters[len(expected) :] if p.kind is not p.VAR_KEYWORD]
        added = {"save_checkpoint", "load_checkpoint"}  # the reference names no parameters
        if name.rpartition(":")[2] not in added:
            assert all(p.default is not p.empty for p in more), "what we add is optional"


@pytest.mark.parametrize("cls", [TransformerLM, BPETokenizer, Trainer])
def test_loaders_are_class_methods(cls: Any) -> None:
    assert inspect.ismethod(cls.from_pretrained)


def test_properties_of_the_tokenizer() -> None:
    for name in ("vocab_size", "vocab", "special_tokens"):
        assert isinstance(inspect.getattr_static(BPETokenizer, name), property)


def test_generation_parameters() -> None:
    """All that the reference names are fields; `GenerationConfig` is the one both modules have."""
    from llm_trainer.utils.generation import GenerationConfig as Exported

    assert Exported is GenerationConfig
    names = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert names >= {
        "max_length", "temperature", "top_k", "top_p", "do_sample", "num_beams",
        "repetition_penalty",
    }  # fmt: skip
    assert GenerationConfig().max_length == 100


EXCEPTIONS: dict[type[Exception], tuple[type[Exception], ...]] = {
    TokenizerNotTrainedException: (LLMTrainerError, RuntimeError),
    ModelConfigurationError: (LLMTrainerError, ConfigurationError, ValueError, AssertionError),
    TrainingError: (LLMTrainerError, RuntimeError),
    GenerationError: (LLMTrainerError, ValueError),
}


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_exceptions_are_also_what_the_language_has_for_them(kind: type[Exception]) -> None:
    assert issubclass(kind, EXCEPTIONS[kind])


# --------------------------------------------------------------------------- commands

COMMANDS = {
    "train": {
        "--config", "--output_dir", "--resume_from_checkpoint", "--force_retrain_tokenizer",
        "--log_level",
    },
    "generate": {
        "--model_path", "--prompts", "--max_length", "--temperature", "--top_k", "--top_p",
        "--interactive",
    },
    "evaluate": {"--model_path", "--dataset_config", "--output_path", "--max_batches"},
}  # fmt: skip


@pytest.mark.parametrize("script", COMMANDS)
def test_arguments_of_the_scripts(script: str) -> None:
    parser = runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["build_parser"]()
    known = {name for action in parser._actions for name in action.option_strings}
    assert known >= COMMANDS[script]
    for action in parser._actions:
        assert action.help, f"{action.option_strings} has no help"
