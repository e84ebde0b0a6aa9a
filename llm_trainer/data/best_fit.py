"""Best-fit packing: whole documents side by side, cut only where they exceed a row.

After Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830): bin
packing by best-fit-decreasing, which they show costs about as few rows as concatenation while
almost no document is cut. Here it runs over a bounded window of the corpus instead of all of it.

How: a window holds the documents up to WINDOW_TARGETS targets. A document longer than a row is cut
into full rows and one remainder. Remainders and whole documents go, largest first, each into the
row with the least room that still holds it. A row is [remainder that ends a document] [whole
documents] [remainder that begins one]: in this order each piece starts with the end token (or,
for a remainder that goes on, the token before it) that the piece before it ends with, so that
pieces share it as in `concat`, and no target has a foreign token in front of it.
Price: padding (printed in the metrics), one window in memory, a sort and a binary search a
document.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np

from llm_trainer.data.row_batch import EncodedDocuments, RowBatch

WINDOW_TARGETS = 2**22
"""Targets that are packed together, and then some to the end of the document: 8 MB of uint16. A
window ends at a document, wherever the batches end in which documents arrive."""
_BLOCK_TARGETS = 2**20
"""Targets whose rows are put together at once: indices take 8 bytes each."""

_Piece = tuple[int, int, int]
"""Document (number in the window) and the range of its targets."""


class BestFitPacker:
    """Best-fit-decreasing over a window; see the module's header."""

    def __init__(
        self,
        row_length: int,
        end_id: int,
        pad_id: int,
        dtype: np.dtype[np.unsignedinteger],
        *,
        window: int = WINDOW_TARGETS,
    ) -> None:
        self.num_split = 0
        self._room = row_length - 1
        self._end_id = end_id
        self._pad_id = pad_id
        self._dtype = dtype
        self._window = max(window, self._room)
        self._parts: list[EncodedDocuments] = []
        self._targets = 0

    def add(self, encoded: EncodedDocuments) -> Iterator[RowBatch]:
        """Take documents; yield the rows of windows that are full."""
        done, position = 0, 0
        ends = np.cumsum(encoded.sizes)
        while done < len(ends):
            # Up to and including the document that fills the window.
            limit = position + self._window - self._targets
            stop = min(int(np.searchsorted(ends, limit)) + 1, len(ends))
            end = int(ends[stop - 1])
            self._parts.append(
                EncodedDocuments(
                    encoded.ids[position:end],
                    encoded.sizes[done:stop],
                    encoded.documents[done:stop],
                )
            )
            self._targets += end - position
            done, position = stop, end
            if self._targets >= self._window:
                yield from self.finish()

    def finish(self) -> Iterator[RowBatch]:
        """Yield the rows of the window at hand."""
        if not self._parts:
            return
        parts, self._parts, self._targets = self._parts, [], 0
        # The stream of the window; document k has its start token at positions[k].
        stream = np.concatenate(
            [np.full(1, self._end_id, self._dtype), *(part.ids for part in parts)]
        )
        sizes = np.concatenate([part.sizes for part in parts])
        documents = np.concatenate([part.documents for part in parts])
        positions = np.cumsum(sizes) - sizes
        self.num_split += int((sizes > self._room).sum())
        rows = place(sizes.tolist(), self._room)
        step = max(1, _BLOCK_TARGETS // self._room)
        for start in range(0, len(rows), step):
            yield self._build(rows[start : start + step], stream, positions, documents)

    def _build(
        self,
        rows: list[list[_Piece]],
        stream: np.ndarray,
        positions: np.ndarray,
        documents: np.ndarray,
    ) -> RowBatch:
        counts = np.array([len(row) for row in rows], np.int64)
        pieces = np.array([piece for row in rows for piece in row], np.int64)  # (pieces, 3)
        row = np.repeat(np.arange(len(rows)), counts)
        sizes = pieces[:, 2] - pieces[:, 1]
        sources = positions[pieces[:, 0]] + pieces[:, 1]  # of the token before the first target
        before = np.cumsum(sizes) - sizes
        first = np.cumsum(counts) - counts  # first piece of each row
        starts = before - np.repeat(before[first], counts)
        ids = np.full((len(rows), self._room + 1), self._pad_id, self._dtype)
        ids[:, 0] = stream[sources[first]]
        nth = np.arange(sizes.sum()) - np.repeat(before, sizes)  # target within its piece
        ids[np.repeat(row, sizes), np.repeat(starts + 1, sizes) + nth] = stream[
            np.repeat(sources + 1, sizes) + nth
        ]
        return RowBatch(
            ids=ids,
            lengths=1 + np.add.reduceat(sizes, first),
            piece_counts=counts,
            documents=documents[pieces[:, 0]],
            starts=starts.astype(np.uint32),
        )


def place(sizes: list[int], room: int) -> list[list[_Piece]]:
    """Assign documents of `sizes` targets to rows of `room` targets; rows and pieces in order.

    Rows come in the order of their first pieces. Depends on the arguments alone.
    """
    whole: list[list[int]] = []  # of each open row: documents
    ends: list[list[int]] = []  # of each open row: at most two documents with their remainder here
    free = _Rows(), _Rows()  # open rows by room left: those that take a remainder, those that not
    for document in sorted(range(len(sizes)), key=lambda k: (-_loose(sizes[k], room), k)):
        size = _loose(sizes[document], room)
        if size == 0:
            break  # it fills its rows, as do all that follow
        remainder = sizes[document] > room
        left, row = free[0].best(size)
        if not remainder:
            other = free[1].best(size)
            if other < (left, row):
                left, row = other
        if row < 0:
            left, row = room, len(whole)
            whole.append([])
            ends.append([])
        else:
            free[len(ends[row]) == 2].remove(left, row)
        (ends if remainder else whole)[row].append(document)
        if left > size:
            free[len(ends[row]) == 2].add(left - size, row)
    return sorted(_pieces(sizes, room, whole, ends))


_NONE = 2**62


class _Rows:
    """Open rows, sorted by the room left in them."""

    def __init__(self) -> None:
        self._sorted: list[tuple[int, int]] = []

    def best(self, size: int) -> tuple[int, int]:
        """(room, row) with the least room that holds `size`."""
        index = bisect_left(self._sorted, (size, -1))
        return self._sorted[index] if index < len(self._sorted) else (_NONE, -1)

    def add(self, room: int, row: int) -> None:
        insort(self._sorted, (room, row))

    def remove(self, room: int, row: int) -> None:
        del self._sorted[bisect_left(self._sorted, (room, row))]


def _loose(size: int, room: int) -> int:
    """What of a document does not fill rows of its own."""
    return size if size <= room else size % room


def _pieces(
    sizes: list[int], room: int, whole: list[list[int]], ends: list[list[int]]
) -> Iterator[list[_Piece]]:
    heads: set[int] = set()  # long documents whose remainder is their beginning
    for documents, remainders in zip(whole, ends, strict=True):
        row = [(document, 0, sizes[document]) for document in sorted(documents)]
        if remainders:
            tail = remainders[0]
            row.insert(0, (tail, sizes[tail] - sizes[tail] % room, sizes[tail]))
        if len(remainders) == 2:
            head = remainders[1]
            heads.add(head)
            row.append((head, 0, sizes[head] % room))
        yield row
    for document, size in enumerate(sizes):
        if size > room:
            start = size % room if document in heads else 0
            for first in range(start, size - room + 1, room):
                yield [(document, first, first + room)]
