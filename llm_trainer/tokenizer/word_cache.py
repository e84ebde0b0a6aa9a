"""Encode many texts by looking words up: each different word is merged once.

How: a batch of texts is cut into words by array operations (`words`), Arrow numbers the different
ones, and those that were not met before are merged by `tiktoken`; the rest is copying of ids. Text
repeats its words so much that merging is a small part of the work, where it is most of it without.
Price: the words met are kept, up to the limits below, beside the arrays of a batch: 200 MB a
process in packing, whatever the corpus (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llm_trainer.tokenizer.words import ASCII_SEPARATOR, SEPARATOR, word_starts

MOST_WORDS = 2**18
"""Words kept; then it begins anew. 10 MB of source code have 40,000."""
MOST_BYTES = 2**25
"""Bytes of words kept, likewise; a word may be long."""
BATCH_CHARS = 2**20
"""Characters that are worked on at once."""


class WordCache:
    """Ids by word.

    Args:
        merge: the ids of one word, given as UTF-8.
    """

    def __init__(self, merge: Callable[[bytes], list[int]]) -> None:
        self._merge = merge
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._starts = np.zeros(1024, np.int64)
        self._counts = np.zeros(1024, np.int64)
        self._pool = np.zeros(4096, np.uint32)
        self._used = 0
        self._bytes = 0

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """Ids of each text, (tokens,) uint32; None where a text holds the separator."""
        found: list[np.ndarray | None] = [None] * len(texts)
        # the bytes of ASCII are its codes and need no second copy of four bytes a character
        plain = [text.isascii() and ASCII_SEPARATOR not in text for text in texts]
        for ascii_only in (True, False):
            chosen = [number for number, one in enumerate(plain) if one == ascii_only]
            for numbers in _batches(chosen, texts):
                part = self._encode([texts[number] for number in numbers], ascii_only)
                if part is None:
                    return None
                for number, ids in zip(numbers, part, strict=True):
                    found[number] = ids
        return [ids for ids in found if ids is not None]

    def _encode(self, texts: list[str], ascii_only: bool) -> list[np.ndarray] | None:
        import pyarrow as pa

        separator = ASCII_SEPARATOR if ascii_only else SEPARATOR
        joined = separator.join(texts)
        data = joined.encode("utf-8")
        if ascii_only:
            codes = np.frombuffer(data, np.uint8)
        else:
            codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        starts = word_starts(codes)
        breaks = np.flatnonzero(codes[starts] == ord(separator))  # words that are separators
        if len(breaks) != len(texts) - 1:
            return None
        offsets = _byte_offsets(codes, starts, len(data))
        words = pa.Array.from_buffers(
            pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        )
        different = words.dictionary_encode()
        numbers = self._number(different.dictionary.to_pylist())
        indices = np.frombuffer(different.indices.buffers()[1], np.int32, count=len(starts))
        chosen = numbers[indices]
        counts = self._counts[chosen]
        counts[breaks] = 0
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        places = np.repeat(self._starts[chosen] - (ends - counts), counts) + np.arange(total)
        ids = self._pool[places]
        return np.split(ids, ends[breaks])

    def _number(self, words: list[bytes]) -> np.ndarray:
        """The number of each word, new ones merged first, (words,) int64."""
        if len(self._numbers) + len(words) > MOST_WORDS or self._bytes > MOST_BYTES:
            self._forget()
        found = list(map(self._numbers.get, words))
        numbers = [
            self._add(word) if number is None else number
            for word, number in zip(words, found, strict=True)
        ]
        return np.array(numbers, np.int64)

    def _add(self, word: bytes) -> int:
        number = len(self._numbers)
        ids = self._merge(word)
        if number == len(self._starts):
            self._starts, self._counts = _doubled(self._starts), _doubled(self._counts)
        while self._used + len(ids) > len(self._pool):
            self._pool = _doubled(self._pool)
        self._pool[self._used : self._used + len(ids)] = ids
        self._starts[number], self._counts[number] = self._used, len(ids)
        self._used += len(ids)
        self._numbers[word] = number
        self._bytes += len(word)
        return number


def _batches(numbers: list[int], texts: Sequence[str]) -> Iterator[list[int]]:
    """`numbers` in groups of texts that have BATCH_CHARS together, or a little more."""
    first, chars = 0, 0
    for position, number in enumerate(numbers):
        chars += len(texts[number])
        if chars >= BATCH_CHARS or position == len(numbers) - 1:
            yield numbers[first : position + 1]
            first, chars = position + 1, 0


def _byte_offsets(codes: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """UTF-8 offset of each word and of the end, (words + 1,) int32."""
    offsets = np.append(starts, size).astype(np.int32)
    wide = np.flatnonzero(codes >= 0x80)
    if len(wide):
        chars = codes[wide]
        extra = 1 + (chars >= 0x800) + (chars >= 0x10000).astype(np.int32)  # bytes above one
        # each moves all words that begin after it
        moved = np.bincount(
            np.searchsorted(starts, wide, side="right"), extra, minlength=len(starts) + 1
        )
        offsets[:-1] += np.cumsum(moved[:-1]).astype(np.int32)
    return offsets


def _doubled(array: np.ndarray) -> np.ndarray:
    return np.concatenate((array, np.zeros_like(array)))
