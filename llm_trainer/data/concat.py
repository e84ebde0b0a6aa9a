"""Concat packing: one stream of documents, cut into rows.

How: the split is the stream END d1 END d2 END ... dn END; row i is stream[i * (L - 1) : i * (L - 1)
+ L] with L = row_length. Rows overlap by one token, so every token after the first is a target
exactly once.
Price: a document is cut wherever a row ends. No padding but in the last row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llm_trainer.data.row_batch import EncodedDocuments, RowBatch


class ConcatPacker:
    """Cuts the stream as its tokens come; keeps less than a row."""

    def __init__(
        self, row_length: int, end_id: int, pad_id: int, dtype: np.dtype[np.unsignedinteger]
    ) -> None:
        self.num_split = 0
        self._targets = row_length - 1
        self._pad_id = pad_id
        # What the rows so far left over: at least the token that the next row starts with.
        self._tokens = np.full(1, end_id, dtype)
        self._documents = np.zeros(0, np.int64)
        self._starts = np.zeros(0, np.int64)  # of each document in _tokens; 0 if it began earlier

    def add(self, encoded: EncodedDocuments) -> Iterator[RowBatch]:
        """Take documents; yield the rows that are complete."""
        if len(encoded.sizes) == 0:
            return
        # Documents tile the input positions: each owns those from its start token to its last.
        starts = len(self._tokens) - 1 + np.cumsum(encoded.sizes) - encoded.sizes
        ends = starts + encoded.sizes
        self.num_split += int((starts // self._targets != (ends - 1) // self._targets).sum())
        self._tokens = np.concatenate([self._tokens, encoded.ids])
        self._documents = np.concatenate([self._documents, encoded.documents])
        self._starts = np.concatenate([self._starts, starts])
        full = (len(self._tokens) - 1) // self._targets
        if full:
            yield self._take(full)

    def finish(self) -> Iterator[RowBatch]:
        """Yield the rest, the last of it padded."""
        left = len(self._tokens) - 1
        if left:
            padding = np.full(self._targets - left, self._pad_id, self._tokens.dtype)
            self._tokens = np.concatenate([self._tokens, padding])
            rows = self._take(1, end=left)
            rows.lengths[0] = left + 1
            yield rows

    def _take(self, num_rows: int, end: int | None = None) -> RowBatch:
        """Cut off the first rows; documents end at position `end`, by default with the tokens."""
        targets, starts = self._targets, self._starts
        size = num_rows * targets
        ends = np.append(starts[1:], len(self._tokens) - 1 if end is None else end)
        # One piece for each row that a document reaches, here only among the rows cut off.
        first = starts // targets
        last = (np.minimum(ends, size) - 1) // targets
        counts = np.maximum(last - first + 1, 0) * (starts < size)
        document = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = first[document] + nth
        batch = RowBatch(
            ids=np.lib.stride_tricks.sliding_window_view(self._tokens, targets + 1)[
                : size - targets + 1 : targets
            ],
            lengths=np.full(num_rows, targets + 1, np.int64),
            piece_counts=np.bincount(rows, minlength=num_rows),
            documents=self._documents[document],
            starts=np.where(nth == 0, starts[document] % targets, 0).astype(np.uint32),
        )
        left = ends > size
        self._tokens = self._tokens[size:].copy()
        self._documents = self._documents[left]
        self._starts = np.maximum(starts[left] - size, 0)
        return batch
