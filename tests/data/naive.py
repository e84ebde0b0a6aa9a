"""Concat packing in plain Python, one token at a time: what the real one is compared with."""

from __future__ import annotations


def naive_concat(
    documents: list[list[int]], length: int, end: int, pad: int
) -> tuple[list[list[int]], list[int], list[list[tuple[int, int]]]]:
    """Rows, their lengths, and the (document, start) pieces of each."""
    stream, owner = [end], [0]  # owner[p]: the document whose input position p is
    for number, document in enumerate(documents):
        stream += [*document, end]
        owner += [number] * len(document) + [number + 1]
    rows, lengths, pieces = [], [], []
    for start in range(0, len(stream) - 1, length - 1):
        row = stream[start : start + length]
        pieces.append([])
        for position in range(len(row) - 1):  # a piece has a target: the last token is none's input
            document = owner[start + position]
            if not pieces[-1] or pieces[-1][-1][0] != document:
                pieces[-1].append((document, position))
        lengths.append(len(row))
        rows.append(row + [pad] * (length - len(row)))
    return rows, lengths, pieces
