"""A `config.json` of Hugging Face, read with suspicion: types checked, all problems in one error.

A key that would change the numbers and has no counterpart here is a problem; keys that only tell
about training, generation or the file are not read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from llm_trainer.exceptions import ModelConfigurationError

logger = logging.getLogger(__name__)

MAX_POSITIONS = 2**20
"""Longest context that is read, in tokens; the tables of rotary angles grow with it."""
MAX_WHOLE = 2**24
"""Largest vocabulary or width that is read."""

_TANH = "is the tanh approximation of GELU; activations here are exact"
_REASONS = dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), _TANH)


class ForeignConfig:
    """Checked access to the keys of a `config.json`.

    Each reader returns a usable value even where it notes a problem, so that `finish` can tell
    all problems at once.

    Args:
        values: the parsed file.
        where: names the file in messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self.problems: list[str] = []

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 on; required unless there is a default."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is int and 1 <= value <= MAX_WHOLE:
            return value
        wanted = f"({value!r}) must be a whole number from 1 to {MAX_WHOLE:,}"
        self.problems.append(f"{key} {'is missing' if value is None else wanted}")
        return 1

    def number(self, key: str, default: float) -> float:
        """A number; the default where it is missing or null."""
        return self._number(key, self.values.get(key), default)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; the default where it is missing or null."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.problems.append(f"{key} ({value!r}) must be true or false")
            return default
        return value

    def choice(self, key: str, default: str, known: Mapping[str, str]) -> str:
        """What `known` translates a word to."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in known:
            reason = _REASONS.get(str(value), "has no counterpart here")
            self.problems.append(f"{key} ({value!r}) {reason}; it can be {', '.join(known)}")
            return next(iter(known.values()))
        return known[value]

    def require(self, key: str, wanted: Any, default: Any, reason: str) -> None:
        """Note a problem unless the value, or its default, is `wanted`."""
        value = self.values.get(key)
        value = default if value is None else value
        if value != wanted:
            self.problems.append(f"{key} ({value!r}) must be {wanted!r}: {reason}")

    def positions(self, key: str, default: int) -> int:
        """The longest context, in tokens."""
        length = self.whole(key, default)
        if length > MAX_POSITIONS:
            self.problems.append(f"{key} ({length:,}) is above {MAX_POSITIONS:,}")
            return 2
        return length

    def rope_theta(self, *, base_key: str = "rope_theta", share_key: str, share: float) -> float:
        """Base of the rotary frequencies; whatever else changes the angles is a problem.

        Args:
            base_key: where files of transformers 4 have the base.
            share_key: where they have the share of each head that is rotated.
            share: that share where nothing says it.
        """
        rope = self.values.get("rope_scaling") or self.values.get("rope_parameters") or {}
        if not isinstance(rope, Mapping) or any(isinstance(v, Mapping) for v in rope.values()):
            self.problems.append("rope_parameters differ between layers, which no model here has")
            return 10000.0
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            self.problems.append(
                f"rope_type ({kind!r}) must be 'default': scaled rotary positions give other angles"
            )
        for name in ("partial_rotary_factor", share_key):
            if name in rope or name in self.values:
                share = self._number(name, rope.get(name, self.values.get(name)), share)
                break
        if share != 1.0:
            self.problems.append(f"{share_key} ({share}) must be 1: here all of a head is rotated")
        base = rope.get("rope_theta", self.values.get(base_key))
        return self._number(base_key, base, 10000.0)

    def finish(self, layout: str) -> None:
        """Raise one error with everything that was noted.

        Raises:
            ModelConfigurationError: if there is anything.
        """
        if self.values.get("quantization_config") is not None:
            self.problems.append(
                "quantization_config: the weights are quantised; use the originals"
            )
        if self.problems:
            raise ModelConfigurationError(
                "\n".join(
                    [f"{self.where}: this {layout} model has no exact counterpart here"]
                    + self.problems
                )
            )

    def _number(self, key: str, value: Any, default: float) -> float:
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problems.append(f"{key} ({value!r}) must be a number")
            return default
        return float(value)
