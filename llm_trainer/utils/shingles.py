"""Texts as sets of hashed word 5-grams, for finding what two texts share.

Case and white space do not count. A word is hashed with CRC-32, five neighbouring words with a
64-bit mix of their five hashes: a chance collision among 2**26 shingles has a probability of about
2**-13. Text with few spaces (Chinese, base64) is taken by characters instead of words. Price: about
0.02 seconds a megabyte.
"""

from __future__ import annotations

import hashlib
from zlib import crc32

import numpy as np

NUM_WORDS = 5
"""Words in a shingle."""
LONG_WORD = 40
"""Mean bytes a word from which text is taken by characters."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FINAL = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1))
"""Shifts and multipliers of MurmurHash3's 64-bit finalizer."""


class NormalisedText:
    """A text in lower case with single spaces: what counts when two texts are compared."""

    def __init__(self, text: str) -> None:
        self._words = text.lower().encode("utf-8").split()

    @property
    def digest(self) -> bytes:
        """Equal for texts that differ in case and white space only."""
        return hashlib.blake2b(b" ".join(self._words), digest_size=16).digest()

    def shingles(self) -> np.ndarray:
        """Sorted distinct hashes of NUM_WORDS neighbouring words, uint64.

        A text of fewer words is one shingle; a text without words has none.
        """
        units = self._units()
        if len(units) == 0:
            return units
        hashes = np.zeros(max(1, len(units) - NUM_WORDS + 1), np.uint64)
        for k in range(min(NUM_WORDS, len(units))):
            hashes = hashes * _MULTIPLIER + units[k : k + len(hashes)] + np.uint64(1)
            hashes ^= hashes >> np.uint64(29)
        for shift, multiplier in _FINAL:
            hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(multiplier)
        return np.unique(hashes)

    def _units(self) -> np.ndarray:
        size = sum(map(len, self._words))
        if size > LONG_WORD * len(self._words) and len(self._words) > 0:
            text = b"".join(self._words).decode("utf-8")
            return np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
        return np.fromiter(map(crc32, self._words), np.uint64, len(self._words))
