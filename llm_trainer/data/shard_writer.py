"""Cut a stream of packed rows into record batches, and these into shards of bounded size.

How: rows are copied into one buffer of the size of a record batch; a full buffer is written. Before
a row would make the file too large, what is there is written and the next file begins. Where a file
ends depends on the rows alone, not on how they arrive.
Price: one record batch (about 4 MiB) of memory, whatever the size of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llm_trainer.data.row_batch import RowBatch
from llm_trainer.data.shard_file import (
    BYTES_PER_PIECE,
    ShardFile,
    file_sizes,
    rows_per_batch,
    shard_name,
)


@dataclass
class ShardSummary:
    """What a writer has written; the reader compares the files with it."""

    rows: int = 0
    tokens: int = 0
    """Targets: valid tokens but the first of each row."""
    padding: int = 0
    """Positions that hold the pad id."""
    pieces: int = 0
    max_id: int = 0
    files: list[str] = field(default_factory=list)


class ShardWriter:
    """Writes `<split>-00000.arrow`, ... into a directory.

    Args:
        directory: where; made by the caller, who also commits or removes it.
        split: train or validation.
        row_length: tokens per row.
        dtype: uint16 or uint32.
        shard_bytes: largest file, in bytes; a single row that is larger gets a file of its own.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        row_length: int,
        dtype: np.dtype[np.unsignedinteger],
        shard_bytes: int,
    ) -> None:
        self.summary = ShardSummary()
        self._directory = directory
        self._split = split
        self._shard_bytes = shard_bytes
        self._sizes = file_sizes(row_length, dtype)
        self._ids = np.empty((rows_per_batch(row_length, dtype), row_length), dtype)
        self._parts: list[RowBatch] = []  # of the rows in _ids: lengths and pieces
        self._rows = 0
        self._file: ShardFile | None = None
        self._file_bytes = 0  # of the file at hand, the rows in _ids included

    def write(self, rows: RowBatch) -> None:
        """Append rows; full record batches go to disk."""
        start = 0
        while start < len(rows):
            if self._rows == 0:
                self._file_bytes += self._sizes.per_batch
                self._file_bytes += 0 if self._file else self._sizes.fixed
            taken, size = self._fitting(rows.piece_counts[start : start + len(self._ids)])
            if taken == 0:
                self._end_file()
                continue
            self._take(rows.slice(start, start + taken))
            self._file_bytes += size
            start += taken
            if self._rows == len(self._ids):
                self._write_batch()

    def close(self) -> ShardSummary:
        """Write what is left and return the totals."""
        self._end_file()
        return self.summary

    def _fitting(self, piece_counts: np.ndarray) -> tuple[int, int]:
        """How many of these next rows fit into batch and file at hand, and their bytes.

        At least one if the file is empty.
        """
        room = self._shard_bytes - self._file_bytes
        candidates = piece_counts[: len(self._ids) - self._rows]
        ends = np.cumsum(candidates * BYTES_PER_PIECE + self._sizes.per_row)
        count = int(np.searchsorted(ends, room, side="right"))
        if self._rows == 0 and self._file is None:
            count = max(count, 1)
        return count, int(ends[count - 1]) if count else 0

    def _take(self, part: RowBatch) -> None:
        self._ids[self._rows : self._rows + len(part)] = part.ids
        self._rows += len(part)
        # Copies: a part is a view that would keep all of its batch.
        self._parts.append(
            RowBatch(
                part.ids[:0].copy(),
                part.lengths.copy(),
                part.piece_counts.copy(),
                part.documents.copy(),
                part.starts.copy(),
            )
        )

    def _write_batch(self) -> None:
        summary = self.summary
        if self._file is None:
            name = shard_name(self._split, len(summary.files))
            self._file = ShardFile(self._directory / name, self._ids.shape[1], self._ids.dtype)
            summary.files.append(name)
        parts = RowBatch.concatenate(self._parts)
        ids = self._ids[: self._rows]
        self._file.write(
            RowBatch(ids, parts.lengths, parts.piece_counts, parts.documents, parts.starts)
        )
        valid = int(parts.lengths.sum())
        summary.rows += self._rows
        summary.tokens += valid - self._rows
        summary.padding += ids.size - valid
        summary.pieces += len(parts.documents)
        summary.max_id = max(summary.max_id, int(ids.max()))
        self._parts = []
        self._rows = 0

    def _end_file(self) -> None:
        if self._rows:
            self._write_batch()
        if self._file is not None:
            self._file.close()
        self._file = None
        self._file_bytes = 0
