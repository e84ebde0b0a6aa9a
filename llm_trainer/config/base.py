"""What all configuration classes share: coercion on construction, files, dictionaries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from llm_trainer.config.checks import instance, place, refuse
from llm_trainer.config.loader import (
    build_config,
    check_fields,
    raise_problems,
    read_config_file,
)
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.files import write_json, write_text


class Config:
    """Base of the configuration dataclasses.

    Each is checked when it is made: types are coerced where nothing is lost, and all problems
    come in one error. Subclasses list their own rules in `problems()`. Fields may be set later
    (the API allows `config.vocab_size = tokenizer.vocab_size`); whoever uses a config for long
    work calls `validate()` first.
    """

    section: ClassVar[str]
    """Name of this configuration's section in a file with several."""
    error: ClassVar[type[ConfigurationError]] = ConfigurationError

    def __post_init__(self) -> None:
        self.validate()

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each: field, value, remedy."""
        return []

    def validate(self) -> None:
        """Raise one error with every problem of this configuration, if there is any."""
        raise_problems(check_fields(self) or self.problems(), self.error)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, in declaration order."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """Build from a mapping; unknown keys and wrong types are errors."""
        refuse(cls.error, instance("config_dict", config_dict, Mapping))
        return build_config(cls, config_dict, cls.section, cls.error)

    def save(self, path: str | Path) -> None:
        """Write this configuration to a `.json`, `.yaml` or `.yml` file, atomically."""
        import yaml

        refuse(ConfigurationError, place("path", path))
        path = Path(path)
        if path.suffix in (".yaml", ".yml"):
            write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))
        elif path.suffix == ".json":
            write_json(path, json.loads(json.dumps(self.to_dict())))
        else:
            raise ConfigurationError(f"{path}: name a .json, .yaml or .yml file")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by `save`, or one that has this configuration as a section.

        Raises:
            ConfigurationError: names file, key, value and remedy.
        """
        values = read_config_file(path)
        if set(values) & {"model", "training", "data"}:
            if cls.section not in values:
                raise ConfigurationError(f"{path}: has no section '{cls.section}'")
            values = values[cls.section]
            if not isinstance(values, dict):
                raise ConfigurationError(f"{path}: section '{cls.section}' is not a mapping")
        return build_config(cls, values, f"{path}: {cls.section}", cls.error)


def at_least(name: str, value: float | None, minimum: float) -> list[str]:
    """A problem line if `value` is below `minimum`; None passes."""
    if value is not None and value < minimum:
        return [f"{name} ({value}) must be at least {minimum}"]
    return []


def within(name: str, value: float | None, low: float, high: float) -> list[str]:
    """A problem line if `value` is outside [low, high]; None passes."""
    if value is not None and not low <= value <= high:
        return [f"{name} ({value}) must be from {low} to {high}"]
    return []
