"""A whole configuration file: the pipeline's `params.yaml` or the library's three sections.

Both forms share one schema. `params.yaml` keeps source, tokenizer and packing apart, so that each
stage depends on its own section; the library's form has them in one `data` section. A file with a
`tokenizer` or `packing` section is of the first form, and then a key in `data` that belongs
elsewhere is an error that says where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llm_trainer.config.base import Config
from llm_trainer.config.checks import shown
from llm_trainer.config.data import (
    MIN_VOCAB_SIZE,
    DataConfig,
    PackingConfig,
    SourceConfig,
    TokenizerConfig,
)
from llm_trainer.config.loader import build_config, raise_problems, read_config_file, unknown_key
from llm_trainer.config.model import ModelConfig
from llm_trainer.config.stages import BenchmarkConfig, EvaluationConfig, RuntimeConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError

_SECTIONS: dict[str, type[Config]] = {
    "data": SourceConfig,
    "tokenizer": TokenizerConfig,
    "packing": PackingConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "benchmark": BenchmarkConfig,
    "runtime": RuntimeConfig,
}
RUNTIME_ONLY = (
    "save_steps", "async_save", "save_total_limit", "checkpoint_dir", "logging_steps", "report_to",
    "strict_resume", "dataloader_num_workers", "world_size", "local_rank", "parallel",
    "hybrid_shard", "activation_checkpointing",
)  # fmt: skip
"""Training fields that change no result; in `params.yaml` they live in `runtime`, where no stage
lists them."""


@dataclass
class Experiment:
    """All sections of a configuration file, checked one by one and against each other."""

    data: SourceConfig = field(default_factory=SourceConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def sections(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> value of everything."""
        return {name: getattr(self, name).to_dict() for name in _SECTIONS}


def load_experiment(path: str | Path) -> Experiment:
    """Read `params.yaml` or a file of the library's form and check all of it.

    Raises:
        ConfigurationError: one message with every problem: file, section, key, value, remedy.
    """
    return experiment_from_dict(read_config_file(path), str(path))


def experiment_from_dict(values: Mapping[str, Any], where: str) -> Experiment:
    """As `load_experiment`, from a parsed mapping; `where` names it in messages."""
    problems: list[str] = []
    staged = "tokenizer" in values or "packing" in values
    built: dict[str, Any] = {}
    kind = ConfigurationError
    for name, section in values.items():
        if name not in _SECTIONS:
            problems.append(unknown_key(str(name), list(_SECTIONS), where))
        elif not isinstance(section, Mapping):
            problems.append(f"{where}: section '{name}' must hold keys, found {shown(section)}")
        else:
            misplaced = _misplaced(name, section, where) if staged else []
            cls = DataConfig if name == "data" and not staged else _SECTIONS[name]
            known = {k: v for k, v in section.items() if not any(f"'{k}'" in m for m in misplaced)}
            problems += misplaced
            try:
                built[name] = build_config(cls, known, f"{where}: {name}", cls.error)
            except ConfigurationError as error:
                kind = type(error)
                problems.append(str(error))
    raise_problems(problems, kind if len(problems) == 1 else ConfigurationError)
    data = built.get("data")
    if isinstance(data, DataConfig):
        built.setdefault("tokenizer", data.tokenizer())
        built.setdefault("packing", data.packing())
    if not staged and "model" in built and "vocab_size" not in values["model"]:
        built["model"].vocab_size = built["tokenizer"].vocab_size if "tokenizer" in built else 50000
    experiment = Experiment(**built)
    raise_problems(cross_problems(experiment, where))
    return experiment


def cross_problems(experiment: Experiment, where: str) -> list[str]:
    """What is wrong between sections, one line each."""
    found = []
    model, packing, tokenizer = experiment.model, experiment.packing, experiment.tokenizer
    if packing.max_length > model.max_seq_len:
        found.append(
            f"{where}: packing.max_length ({packing.max_length}) is above model.max_seq_len "
            f"({model.max_seq_len}); raise max_seq_len or shorten the rows"
        )
    found += [
        f"{where}: training.short_rows: {length} tokens are no whole part of a row "
        f"(packing.max_length, {packing.max_length}); divide it by a whole number, or set "
        f"short_rows: [] for whole rows throughout"
        for length in experiment.training.short_rows
        if length >= packing.max_length or packing.max_length % length
    ]
    if tokenizer.vocab_size < MIN_VOCAB_SIZE:
        found.append(
            f"{where}: tokenizer.vocab_size ({tokenizer.vocab_size}) is below {MIN_VOCAB_SIZE}"
        )
    return found


def _misplaced(name: str, section: Mapping[str, Any], where: str) -> list[str]:
    homes: dict[str, str] = {}
    if name == "training":
        kept = {f.name for f in fields(RuntimeConfig)}
        homes = {key: f"runtime.{key}" if key in kept else "" for key in RUNTIME_ONLY}
        homes["checkpoint_dir"] = "runtime.checkpoint_root"
    elif name == "data":
        known = {f.name for f in fields(SourceConfig)}
        extra = {f.name for f in fields(DataConfig)} - known
        homes = {key: f"packing.{key}" for key in extra}
        homes |= {
            "vocab_size": "tokenizer.vocab_size",
            "preprocessing_num_workers": "runtime.preprocessing_num_workers",
        }
    elif name == "model":
        homes = {"vocab_size": "tokenizer.vocab_size"}
    return [
        f"{where}: '{key}' does not belong in {name} here; "
        + (f"set {homes[key]} instead" if homes[key] else "leave it out")
        for key in section
        if key in homes
    ]
