"""What a vocabulary consists of, and how well it fits a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from llm_trainer.tokenizer.definition import Definition


def vocabulary_stats(definition: Definition) -> dict[str, Any]:
    """Counts over the vocabulary; lengths in bytes of text, control tokens left out.

    `incomplete_tokens` are no valid UTF-8 by themselves (parts of a character);
    `word_start_tokens` begin with a space before a letter, digit or sign.
    """
    values = [value for value in definition.token_values() if value]
    lengths = np.array([len(value) for value in values])
    longest = max(values, key=len)
    return {
        "vocab_size": definition.size,
        "special_tokens": len(definition.control),
        "byte_tokens": int((lengths == 1).sum()),
        "merges": len(definition.merges),
        "mean_token_bytes": round(float(lengths.mean()), 3),
        "max_token_bytes": int(lengths.max()),
        "longest_token": longest.decode("utf-8", "backslashreplace"),
        "whitespace_tokens": sum(value.isspace() for value in values),
        "word_start_tokens": sum(value[:1] == b" " and not value.isspace() for value in values),
        "incomplete_tokens": sum(not _is_utf8(value) for value in values),
    }


class Fit:
    """How a tokenizer cuts a sample of texts: bytes per token, round trips, unused tokens.

    Args:
        encode: text to ids, without special tokens.
        decode: ids to text, if round trips are to be counted.
        vocab_size: number of ids.
    """

    def __init__(
        self,
        vocab_size: int,
        encode: Callable[[str], np.ndarray],
        decode: Callable[[np.ndarray], str] | None = None,
    ) -> None:
        self.num_texts = 0
        self.num_bytes = 0
        self.num_round_trips = 0
        self.first_failure: int | None = None
        """Number of the first text that did not come back, from 0."""
        self.counts = np.zeros(vocab_size, np.int64)
        self._encode = encode
        self._decode = decode

    def add(self, texts: Iterable[str]) -> None:
        """Encode more texts."""
        for text in texts:
            ids = self._encode(text)
            self.counts += np.bincount(ids, minlength=len(self.counts))
            self.num_bytes += len(text.encode("utf-8"))
            if self._decode is not None:
                if self._decode(ids) == text:
                    self.num_round_trips += 1
                elif self.first_failure is None:
                    self.first_failure = self.num_texts
            self.num_texts += 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return int(self.counts.sum())

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that a token stands for on average; 0 without text."""
        return self.num_bytes / max(self.num_tokens, 1)

    @property
    def round_trip_rate(self) -> float:
        """Share of texts that decode to themselves; 1 without text."""
        return self.num_round_trips / self.num_texts if self.num_texts else 1.0

    def unused(self, definition: Definition) -> int:
        """Tokens that occur in no text, control tokens left out."""
        control = list(definition.control.values())
        return int((self.counts == 0).sum()) - int((self.counts[control] == 0).sum())


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
