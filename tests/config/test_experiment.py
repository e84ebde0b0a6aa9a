"""Whole files: params.yaml's form, the library's form, and what holds between sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_trainer.config import DataConfig, Experiment, RuntimeConfig, SourceConfig, load_experiment
from llm_trainer.config.experiment import RUNTIME_ONLY, experiment_from_dict
from llm_trainer.exceptions import ConfigurationError, ModelConfigurationError

STAGED: dict[str, Any] = {
    "data": {"dataset_name": "python-stdlib", "dataset_config": None},
    "tokenizer": {"vocab_size": 300},
    "packing": {"max_length": 64},
    "model": {"d_model": 32, "n_heads": 2, "max_seq_len": 64},
}
LIBRARY: dict[str, Any] = {
    "model": {"vocab_size": 50000, "d_model": 512, "n_heads": 8, "n_layers": 6, "d_ff": 2048,
              "max_seq_len": 1024, "dropout": 0.1, "activation": "gelu"},
    "training": {"batch_size": 32, "learning_rate": "1e-4", "num_epochs": 10,
                 "lr_scheduler": "cosine", "warmup_steps": 1000, "use_amp": True},
    "data": {"dataset_name": "wikitext", "dataset_config": "wikitext-103-raw-v1",
             "max_length": 1024, "vocab_size": 50000},
}  # fmt: skip


def read(*changes: tuple[str, str, Any], base: dict[str, Any] = STAGED) -> Experiment:
    values = {section: dict(keys) for section, keys in base.items()}
    for section, key, value in changes:
        values.setdefault(section, {})[key] = value
    return experiment_from_dict(values, "params.yaml")


def message(*changes: tuple[str, str, Any], base: dict[str, Any] = STAGED) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(*changes, base=base)
    return str(caught.value)


def test_staged_form() -> None:
    experiment = read(("training", "learning_rate", "3e-3"))
    assert type(experiment.data) is SourceConfig
    assert experiment.tokenizer.vocab_size == 300
    assert experiment.training.learning_rate == 3e-3
    assert experiment.runtime == RuntimeConfig()


def test_library_form_is_the_references_yaml_and_json() -> None:
    experiment = experiment_from_dict(LIBRARY, "model_config.yaml")
    assert isinstance(experiment.data, DataConfig)
    assert experiment.training.learning_rate == 1e-4
    assert experiment.training.warmup_is_explicit
    assert experiment.tokenizer.vocab_size == 50000
    assert experiment.packing.max_length == 1024


def test_library_form_takes_the_model_vocabulary_from_the_data() -> None:
    values = {"model": {"d_model": 64, "n_heads": 4}, "data": {"vocab_size": 777}}
    assert experiment_from_dict(values, "x").model.vocab_size == 777


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("training", "lerning_rate", 1), "unknown key 'lerning_rate' in params.yaml: training; "
                                          "did you mean 'learning_rate'?"),
        (("trainin", "x", 1), "unknown key 'trainin' in params.yaml; did you mean 'training'?"),
        (("training", "learning_rate", "abc"), "params.yaml: training.learning_rate: expected a "
                                               "number, found 'abc'"),
        (("model", "n_heads", 5), "d_model (32) must be divisible by n_heads (5)"),
        (("tokenizer", "vocab_size", 256), "vocab_size (256) must be at least 257"),
        (("packing", "max_length", 65), "packing.max_length (65) is above model.max_seq_len (64)"),
        (("model", "vocab_size", 300), "set tokenizer.vocab_size instead"),
        (("data", "max_length", 64), "set packing.max_length instead"),
        (("data", "vocab_size", 64), "set tokenizer.vocab_size instead"),
        (("data", "preprocessing_num_workers", 2), "set runtime.preprocessing_num_workers instead"),
        (("training", "save_steps", 5), "set runtime.save_steps instead"),
        (("training", "checkpoint_dir", "x"), "set runtime.checkpoint_root instead"),
    ],
)  # fmt: skip
def test_a_mistake_in_params_is_one_clear_line(change: tuple[str, str, Any], expected: str) -> None:
    text = message(change)
    assert expected in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("key", RUNTIME_ONLY)
def test_a_misplaced_key_is_sent_to_a_place_that_exists(key: str) -> None:
    text = message(("training", key, 1))
    assert f"'{key}' does not belong in training here" in text
    if "set " in text:
        home = text.partition("set ")[2].split()[0]
        section, _, name = home.partition(".")
        assert section == "runtime"
        assert name in RuntimeConfig().to_dict()


def test_problems_of_all_sections_come_together() -> None:
    text = message(
        ("training", "batch_size", 0), ("tokenizer", "vocab_size", 5), ("modle", "d_model", 5)
    )
    assert len(text.splitlines()) == 3


def test_a_section_must_hold_keys() -> None:
    with pytest.raises(ConfigurationError, match="section 'training' must hold keys, found None"):
        experiment_from_dict({**STAGED, "training": None}, "params.yaml")


def test_one_model_mistake_is_a_model_error() -> None:
    with pytest.raises(ModelConfigurationError):
        read(("model", "n_heads", 5))


def test_reading_a_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training:\n  batchsize: 4\n")
    with pytest.raises(ConfigurationError, match=r"mine\.yaml: training; did you mean"):
        load_experiment(path)
