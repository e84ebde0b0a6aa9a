"""How many documents are exact copies of others, in memory that does not grow with the corpus.

Distinct sampling (Gibbons 2001): only documents whose hash is below a threshold are counted, each
with all of its copies, and the threshold is halved whenever they are too many to remember. So the
count is exact up to `capacity` distinct documents and an unbiased estimate beyond, and it is a
function of the documents alone: the same corpus gives the same number. Price: at most 10 MB.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import numpy as np


class DuplicateCounter:
    """Counts the documents beyond the first of each distinct one.

    Args:
        capacity: distinct documents that are remembered.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._threshold = 2**64
        self._copies: dict[int, int] = {}

    def add(self, digest: bytes) -> None:
        """Count a document by its content hash, at least 8 bytes of it."""
        key = int.from_bytes(digest[-8:], "big")
        if key >= self._threshold:
            return
        self._copies[key] = self._copies.get(key, 0) + 1
        while len(self._copies) > self._capacity:
            self._threshold //= 2
            self._copies = {k: n for k, n in self._copies.items() if k < self._threshold}

    @property
    def is_exact(self) -> bool:
        """Whether `count` is no estimate."""
        return self._threshold == 2**64

    @property
    def count(self) -> int:
        """Documents that are copies of an earlier one."""
        seen = sum(self._copies.values()) - len(self._copies)
        return seen * (2**64 // self._threshold)

    def to_dict(self) -> dict[str, Any]:
        """All that it remembers, as plain values."""
        pairs = np.array([*self._copies.items()], np.uint64).reshape(-1, 2)
        return {"threshold": self._threshold, "copies": b64encode(pairs.tobytes()).decode()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DuplicateCounter:
        """The counter whose `to_dict` gave these."""
        counter = cls()
        counter._threshold = values["threshold"]
        pairs = np.frombuffer(b64decode(values["copies"]), np.uint64).reshape(-1, 2)
        counter._copies = dict(zip(*pairs.T.tolist(), strict=True))
        return counter
