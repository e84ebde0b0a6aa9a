"""Byte-level BPE in plain Python, straight from its description."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise


def naive_merges(
    words: list[bytes], count: int, first_id: int, ids: dict[bytes, int], min_frequency: int = 2
) -> list[tuple[bytes, bytes]]:
    """The most frequent pair again and again; ties go to the pair with the lower ids."""
    split = Counter(tuple(bytes([b]) for b in word) for word in words)
    ids, merges = dict(ids), []
    while len(merges) < count:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, times in split.items():
            for pair in pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]))
        if pairs[best] < min_frequency:
            break
        merges.append(best)
        ids[best[0] + best[1]] = first_id + len(merges) - 1
        merged: Counter[tuple[bytes, ...]] = Counter()
        for word, times in split.items():
            merged[replace(word, best)] += times
        split = merged
    return merges


def replace(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    """Merge each occurrence of the pair, from the left."""
    found: list[bytes] = []
    position = 0
    while position < len(word):
        if word[position : position + 2] == pair:
            found.append(pair[0] + pair[1])
            position += 2
        else:
            found.append(word[position])
            position += 1
    return tuple(found)


def naive_encode(word: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Apply the merges in order, each wherever it fits."""
    tokens = tuple(bytes([b]) for b in word)
    for pair in merges:
        tokens = replace(tokens, pair)
    return list(tokens)
