"""Rows without packing: each document in rows of its own.

How: document d becomes END d END, cut into rows that overlap by one token, the last one padded, so
every token of the document and its end token is a target exactly once.
Price: padding. With short documents most of a row may be empty; `concat` has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from llm_trainer.data.row_batch import EncodedDocuments, RowBatch, run_starts

_BLOCK_TOKENS = 2**22
"""Positions, padding included, that `SinglePacker` fills at once, unless one document has more."""


class SinglePacker:
    """Rows of single documents from a stream of them; see `packers.Packer`.

    Args:
        row_length: tokens per row, at least 2.
        end_id: the token before each document.
        pad_id: fills rows.
    """

    def __init__(self, row_length: int, end_id: int, pad_id: int) -> None:
        self.num_split = 0
        self._row_length = row_length
        self._end_id = end_id
        self._pad_id = pad_id

    def add(self, encoded: EncodedDocuments) -> Iterator[RowBatch]:
        """Yield the rows of these documents, a block of documents at a time."""
        counts = -(-encoded.sizes // (self._row_length - 1))  # rows of each document
        self.num_split += int((counts > 1).sum())
        block = (np.cumsum(counts) - 1) * self._row_length // _BLOCK_TOKENS
        bounds = [*np.flatnonzero(np.diff(block, prepend=-1)).tolist(), len(counts)]
        ends = np.append(0, np.cumsum(encoded.sizes))
        for first, last in pairwise(bounds):
            part = EncodedDocuments(
                encoded.ids[ends[first] : ends[last]],
                encoded.sizes[first:last],
                encoded.documents[first:last],
            )
            yield single_rows(
                part, row_length=self._row_length, end_id=self._end_id, pad_id=self._pad_id
            )

    def finish(self) -> Iterator[RowBatch]:
        """Nothing is left: each document's rows are its own."""
        return iter(())


def single_rows(
    encoded: EncodedDocuments, *, row_length: int, end_id: int, pad_id: int
) -> RowBatch:
    """One row for each document, or several for one that is too long.

    Args:
        encoded: documents, each with its end token.
        row_length: tokens per row, at least 2.
        end_id: the token before each document.
        pad_id: fills rows.

    Returns:
        Rows in document order.
    """
    room = row_length - 1  # targets of a row
    counts = -(-encoded.sizes // room)  # rows of each document
    document = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(document)) - np.repeat(run_starts(counts), counts)
    # With an end token in front, document k has its start token at sum(sizes[:k]): the end token
    # of the document before it.
    stream = np.append(np.array([end_id], encoded.ids.dtype), encoded.ids)
    start = run_starts(encoded.sizes)[document] + nth * room
    lengths = np.minimum(encoded.sizes[document] - nth * room, room) + 1
    columns = np.arange(row_length)
    valid = columns < lengths[:, None]  # (rows, row_length)
    ids = np.full(valid.shape, pad_id, encoded.ids.dtype)
    ids[valid] = stream[(start[:, None] + columns)[valid]]
    return RowBatch(
        ids=ids,
        lengths=lengths,
        piece_counts=np.ones(len(document), np.int64),
        documents=encoded.documents[document],
        starts=np.zeros(len(document), np.uint32),
    )
