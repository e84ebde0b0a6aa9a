"""Everything a training run needs to know, from a configuration file of either form.

`params.yaml` has a section for each stage, and in `runtime` what changes no result; the library's
form has `model`, `training` and `data`. From here on they are the same. Reading is cheap: no torch,
no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llm_trainer.config import (
    DataConfig,
    ModelConfig,
    PackingConfig,
    RuntimeConfig,
    SourceConfig,
    TokenizerConfig,
    TrainingConfig,
)
from llm_trainer.config.experiment import experiment_from_dict
from llm_trainer.config.loader import parse_config_text, raise_problems, read_config_file
from llm_trainer.exceptions import ConfigurationError


@dataclass(frozen=True)
class RunSettings:
    """A checked configuration of a training run."""

    source: SourceConfig
    tokenizer: TokenizerConfig
    packing: PackingConfig
    model: ModelConfig
    training: TrainingConfig
    runtime: RuntimeConfig
    """Of the library's form only device, threads and tracking server count."""
    sections: dict[str, dict[str, Any]]
    """All of it as plain values, by section of the file."""
    staged: bool
    """Whether the file is of the form of `params.yaml`."""
    num_workers: int
    """Processes that tokenize."""


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a file of either form, with `section.key=value` from `overrides` over it.

    Raises:
        ConfigurationError: one message with every problem: file, section, key, value, remedy.
    """
    values = read_config_file(path)
    for override in overrides:
        apply_override(values, override)
    experiment = experiment_from_dict(values, str(path))
    staged = "tokenizer" in values or "packing" in values
    sections = experiment.sections()
    if staged:
        from llm_trainer.data.engine import usable_cores

        num_workers = experiment.runtime.preprocessing_num_workers or usable_cores()
    else:
        raise_problems(_misplaced(values, str(path)))
        data = experiment.data if isinstance(experiment.data, DataConfig) else DataConfig()
        num_workers = data.preprocessing_num_workers
        kept = ("model", "training", "data")
        sections = {name: section for name, section in sections.items() if name in kept}
    return RunSettings(
        source=experiment.data, tokenizer=experiment.tokenizer, packing=experiment.packing,
        model=experiment.model, training=experiment.training, runtime=experiment.runtime,
        sections=sections, staged=staged, num_workers=num_workers,
    )  # fmt: skip


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in a parsed configuration; the value is read as YAML.

    Raises:
        ConfigurationError: not of this form.
    """
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigurationError(
            f"override {override!r} must be section.key=value, such as training.max_steps=100"
        )
    value = parse_config_text(f"value: {text}", f"override {name}")["value"]
    place = values.setdefault(section, {})
    if not isinstance(place, dict):
        raise ConfigurationError(f"override {override!r}: section '{section}' is not a mapping")
    place[key] = value


def _misplaced(values: Mapping[str, Any], where: str) -> list[str]:
    """Keys of `runtime` that the library's form has elsewhere, or not at all; one line each."""
    homes = {field.name: f"training.{field.name}" for field in fields(TrainingConfig)}
    homes |= {
        "checkpoint_root": "training.checkpoint_dir",
        "preprocessing_num_workers": "data.preprocessing_num_workers",
        "keep_finished": "",
    }
    return [
        f"{where}: runtime.{key} does not count in a file without the sections of params.yaml; "
        + (f"set {homes[key]} instead" if homes[key] else "leave it out")
        for key in values.get("runtime", {})
        if key in homes
    ]
