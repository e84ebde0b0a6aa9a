"""The configuration files of the library's form in configs/, and their annotations."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from llm_trainer.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    TrainingConfig,
    load_experiment,
)
from llm_trainer.config.loader import read_config_file
from llm_trainer.utils.parameters import calculate_parameters

CONFIGS = Path(__file__).parents[2] / "configs"
REFERENCE = {
    "model": {
        "vocab_size": 50000, "d_model": 768, "n_heads": 12, "n_layers": 12, "d_ff": 3072,
        "max_seq_len": 1024, "dropout": 0.1, "activation": "gelu",
    },
    "training": {
        "batch_size": 32, "learning_rate": 1e-4, "num_epochs": 10, "lr_scheduler": "cosine",
        "warmup_steps": 1000, "use_amp": True,
    },
    "data": {
        "dataset_name": "wikitext", "dataset_config": "wikitext-103-raw-v1", "max_length": 1024,
        "vocab_size": 50000,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["model_config.yaml", "model_config.json"])
def test_the_reference_configuration(name: str) -> None:
    assert read_config_file(CONFIGS / name) == REFERENCE
    experiment = load_experiment(CONFIGS / name)
    assert isinstance(experiment.training.learning_rate, float)
    assert experiment.training.warmup_is_explicit
    for cls in (ModelConfig, TrainingConfig, DataConfig):
        assert cls.load(CONFIGS / name) == cls.from_dict(REFERENCE[cls.section])
    assert 120e6 < calculate_parameters(experiment.model) < 130e6


def test_each_key_is_annotated() -> None:
    for line in (CONFIGS / "model_config.yaml").read_text().splitlines():
        if line.startswith("  "):
            key, comment = line.split(":")[0].strip(), line.partition(" # ")[2]
            assert comment.strip(), key


def test_the_evaluation_configuration() -> None:
    values = read_config_file(CONFIGS / "eval_config.json")
    experiment: Experiment = load_experiment(CONFIGS / "eval_config.json")
    assert isinstance(experiment.data, DataConfig)
    assert experiment.data.validation_split == "test"
    assert set(values["evaluation"]) < {field.name for field in fields(EvaluationConfig)}
    assert experiment.evaluation.prompts == values["evaluation"]["prompts"]
