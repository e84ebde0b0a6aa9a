"""The configuration classes: the reference's fields and defaults, their rules, their files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.config import (
    BenchmarkConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PackingConfig,
    RuntimeConfig,
    SourceConfig,
    TokenizerConfig,
    TrainingConfig,
)
from llm_trainer.config.base import Config
from llm_trainer.exceptions import ConfigurationError, LLMTrainerError, ModelConfigurationError

ALL: list[type[Config]] = [
    BenchmarkConfig, DataConfig, EvaluationConfig, ModelConfig, PackingConfig, RuntimeConfig,
    SourceConfig, TokenizerConfig, TrainingConfig,
]  # fmt: skip

REFERENCE: dict[type[Config], dict[str, Any]] = {
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
        "world_size": 1, "local_rank": -1, "compile_model": False,
    },
    DataConfig: {
        "dataset_name": "wikitext", "dataset_config": "wikitext-103-raw-v1",
        "dataset_split": "train", "validation_split": "validation", "text_column": "text",
        "max_length": 1024, "min_length": 10, "vocab_size": 50000, "pack_sequences": True,
        "preprocessing_num_workers": 4, "dataloader_num_workers": 4, "train_file": None,
        "validation_file": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("cls", REFERENCE, ids=lambda c: c.__name__)
def test_fields_and_defaults_are_the_references(cls: type[Config]) -> None:
    values = {name: getattr(cls(), name) for name in REFERENCE[cls]}
    assert values == REFERENCE[cls]


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_dictionary_round_trip(cls: type[Config]) -> None:
    config = cls()
    assert cls.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_file_round_trip(cls: type[Config], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"config{suffix}"
    config = cls()
    config.save(path)
    assert cls.load(path).to_dict() == config.to_dict()


def test_saving_elsewhere_names_the_formats(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"name a \.json, \.yaml or \.yml file"):
        ModelConfig().save(tmp_path / "config.toml")


def test_loading_takes_the_section_of_a_larger_file(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text("model:\n  d_model: 96\n  n_heads: 4\ntraining:\n  learning_rate: 1e-3\n")
    assert ModelConfig.load(path).d_model == 96
    assert TrainingConfig.load(path).learning_rate == 1e-3
    with pytest.raises(ConfigurationError, match="has no section 'data'"):
        DataConfig.load(path)
    path.write_text("model: 5\n")
    with pytest.raises(ConfigurationError, match="section 'model' is not a mapping"):
        ModelConfig.load(path)


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_every_field_is_documented(cls: type[Config]) -> None:
    """The string below a field is its documentation; it has to be there for each."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(
            statement.annotation
        ):
            documented = isinstance(following, ast.Expr) and isinstance(
                following.value, ast.Constant
            )
            assert documented, f"{cls.__name__}.{ast.unparse(statement.target)}"


# --------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (
            ModelConfig,
            {"n_heads": 5},
            "d_model (768) must be divisible by n_heads (5); try",
        ),
        (ModelConfig, {"d_model": 12, "n_heads": 4}, "must be even for rotary positions"),
        (ModelConfig, {"n_kv_heads": 5}, "n_heads (12) must be divisible by n_kv_heads (5)"),
        (ModelConfig, {"dropout": 1.0}, "dropout (1.0) must be from 0 to below 1"),
        (ModelConfig, {"activation": "gelo"}, "did you mean 'gelu'?"),
        (ModelConfig, {"n_layers": 0}, "n_layers (0) must be from 1 to 2147483647"),
        (ModelConfig, {"max_seq_len": 1}, "max_seq_len (1) must be from 2 to"),
        (ModelConfig, {"d_model": "wide"}, "d_model: expected a whole number, found 'wide'"),
        (ModelConfig, {"use_learned_pos_emb": True, "position": "rope"}, "contradicts position"),
        (ModelConfig, {"rope_theta": 0}, "rope_theta (0.0) must be above 0"),
        (TrainingConfig, {"learning_rate": 0}, "learning_rate (0.0) must be above 0"),
        (TrainingConfig, {"learning_rate": "abc"}, "learning_rate: expected a number"),
        (TrainingConfig, {"lr_scheduler": "cosinus"}, "did you mean 'cosine'?"),
        (TrainingConfig, {"warmup_ratio": 1.5}, "warmup_ratio (1.5) must be from 0.0 to 1.0"),
        (TrainingConfig, {"beta2": 1.0}, "beta2 (1.0) must be from 0 to below 1"),
        (TrainingConfig, {"max_steps": 0}, "max_steps (0) must be at least 1"),
        (TrainingConfig, {"report_to": ["tensorbord"]}, "did you mean 'tensorboard'?"),
        (TrainingConfig, {"compile_model": "yes"}, "compile_model: expected true or false"),
        (TrainingConfig, {"local_rank": -2}, "local_rank (-2) must be -1"),
        (TrainingConfig, {"seed": 2**63}, "must be below 2**63"),
        (DataConfig, {"vocab_size": 256}, "vocab_size (256) must be at least 257"),
        (DataConfig, {"max_length": 1}, "max_length (1) must be at least 2"),
        (DataConfig, {"preprocessing_num_workers": 0}, "must be at least 1"),
        (SourceConfig, {"validation_fraction": 1.0}, "validation_fraction (1.0) must be between"),
        (SourceConfig, {"validation_file": "x"}, "validation_file needs train_file"),
        (SourceConfig, {"train_file": []}, "train_file is empty"),
        (SourceConfig, {"dataset_name": ""}, "dataset_name is empty"),
        (SourceConfig, {"on_bad_line": "ignore"}, "is not one of error, skip"),
        (TokenizerConfig, {"vocab_size": 100}, "256 bytes and the end token"),
        (PackingConfig, {"strategy": "bestfit"}, "did you mean 'best_fit'?"),
        (PackingConfig, {"shard_bytes": 1}, "shard_bytes (1) must be at least 4096"),
        (EvaluationConfig, {"confidence": 1.0}, "confidence (1.0) must be from 0.5 to below 1"),
        (EvaluationConfig, {"top_p": 0.0}, "top_p (0.0) must be above 0"),
        (EvaluationConfig, {"prompts": []}, "prompts is empty"),
        (EvaluationConfig, {"temperature": -1}, "temperature (-1.0) must be at least 0"),
        (BenchmarkConfig, {"generation_batch_sizes": [0]}, "needs sizes from 1"),
        (RuntimeConfig, {"num_threads": 0}, "num_threads (0) must be at least 1"),
        (RuntimeConfig, {"experiment_name": ""}, "experiment_name is empty"),
    ],
)
def test_an_impossible_value_is_refused_with_field_value_and_remedy(
    cls: type[Config], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(cls.error) as caught:
        cls(**values)
    assert message in str(caught.value)
    with pytest.raises(cls.error) as caught:
        cls.from_dict(values)
    assert message in str(caught.value)


def test_all_rules_speak_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig(batch_size=0, learning_rate=-1.0, warmup_ratio=2.0)
    assert len(str(caught.value).splitlines()) == 3


def test_model_errors_are_what_the_api_promises() -> None:
    with pytest.raises(AssertionError):
        ModelConfig(d_model=768, n_heads=5)
    with pytest.raises(ModelConfigurationError) as caught:
        ModelConfig(d_model=768, n_heads=5)
    assert isinstance(caught.value, LLMTrainerError | ValueError)


def test_rules_hold_without_assertions() -> None:
    code = (
        "from llm_trainer.config import ModelConfig\n"
        "try: ModelConfig(d_model=768, n_heads=5)\n"
        "except AssertionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert "must be divisible" in done.stdout, done.stderr


def test_a_field_set_later_is_seen_by_validate() -> None:
    config = ModelConfig()
    config.n_heads = 7
    with pytest.raises(ModelConfigurationError, match="divisible"):
        config.validate()


# --------------------------------------------------------------------------- derived values


def test_derived_values() -> None:
    model = ModelConfig(d_model=64, n_heads=4, n_kv_heads=2, activation="swiglu")
    assert (model.d_head, model.num_kv_heads, model.gated) == (16, 2, True)
    assert ModelConfig().num_kv_heads == 12
    assert not ModelConfig().gated
    kinds = {
        ModelConfig().position_kind,
        ModelConfig(use_learned_pos_emb=True).position_kind,
        ModelConfig(position="sinusoidal").position_kind,
    }
    assert kinds == {"rope", "learned", "sinusoidal"}
    training = TrainingConfig(batch_size=3, gradient_accumulation_steps=5, world_size=2)
    assert training.effective_batch_size == 30


def test_an_explicit_warm_up_is_told_from_the_default() -> None:
    assert not TrainingConfig().warmup_is_explicit
    assert TrainingConfig(warmup_steps=1000).warmup_is_explicit
    assert not TrainingConfig(warmup_steps=None).warmup_is_explicit
    again = TrainingConfig.from_dict(TrainingConfig().to_dict())
    assert not again.warmup_is_explicit
    assert TrainingConfig.from_dict(TrainingConfig(warmup_steps=5).to_dict()).warmup_steps == 5


def test_data_config_gives_the_pipelines_parts() -> None:
    data = DataConfig(vocab_size=300, max_length=64, min_length=3, packing_strategy="best_fit")
    assert data.tokenizer() == TokenizerConfig(vocab_size=300)
    assert data.packing() == PackingConfig(max_length=64, min_length=3, strategy="best_fit")
    source = data.source()
    assert type(source) is SourceConfig
    assert all(
        getattr(source, f.name) == getattr(data, f.name) for f in dataclasses.fields(SourceConfig)
    )
