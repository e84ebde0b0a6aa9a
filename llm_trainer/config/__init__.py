"""Configuration: dataclasses with documented fields, and the strict loader that they share."""

from llm_trainer.config.data import DataConfig, PackingConfig, SourceConfig, TokenizerConfig
from llm_trainer.config.experiment import Experiment, load_experiment
from llm_trainer.config.model import ModelConfig
from llm_trainer.config.stages import BenchmarkConfig, EvaluationConfig, RuntimeConfig
from llm_trainer.config.training import TrainingConfig

__all__ = [
    "BenchmarkConfig",
    "DataConfig",
    "EvaluationConfig",
    "Experiment",
    "ModelConfig",
    "PackingConfig",
    "RuntimeConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "load_experiment",
]
