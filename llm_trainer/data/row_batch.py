"""What goes into a packer and what comes out: encoded documents, and rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_trainer.config.checks import shown
from llm_trainer.exceptions import DataError


@dataclass(frozen=True)
class EncodedDocuments:
    """Consecutive documents of a split as one array of ids."""

    ids: np.ndarray
    """(targets,) uint16 or uint32: the tokens of each document and an end token after each."""
    sizes: np.ndarray
    """(documents,) int64: targets of each document, its end token included; they sum to `ids`."""
    documents: np.ndarray
    """(documents,) int64: index of each document within its split."""


@dataclass(frozen=True)
class RowBatch:
    """Some packed rows. A row's pieces are consecutive in `documents` and `starts`."""

    ids: np.ndarray
    """(rows, row_length) uint16 or uint32; positions from a row's length on hold the pad id."""
    lengths: np.ndarray
    """(rows,) int64: valid tokens, at least 2: every valid token but the first is a target."""
    piece_counts: np.ndarray
    """(rows,) int64: pieces in each row, at least 1."""
    documents: np.ndarray
    """(pieces,) int64: index of the document within its split."""
    starts: np.ndarray
    """(pieces,) uint32: position of the piece's first token in its row; a row's first is 0."""

    def __len__(self) -> int:
        return len(self.lengths)

    def slice(self, start: int, stop: int) -> RowBatch:
        """Rows `start` to `stop`, as views."""
        first, last = self.piece_counts[:start].sum(), self.piece_counts[:stop].sum()
        return RowBatch(
            self.ids[start:stop],
            self.lengths[start:stop],
            self.piece_counts[start:stop],
            self.documents[first:last],
            self.starts[first:last],
        )

    @classmethod
    def concatenate(cls, batches: list[RowBatch]) -> RowBatch:
        """All rows of `batches`, in order."""
        if len(batches) == 1:
            return batches[0]
        return cls(
            np.concatenate([batch.ids for batch in batches]),
            np.concatenate([batch.lengths for batch in batches]),
            np.concatenate([batch.piece_counts for batch in batches]),
            np.concatenate([batch.documents for batch in batches]),
            np.concatenate([batch.starts for batch in batches]),
        )


def as_indices(indices: np.ndarray) -> np.ndarray:
    """Row numbers as (n,) int64.

    Raises:
        DataError: no whole numbers.
    """
    found: np.ndarray = np.asarray(indices).reshape(-1)
    if found.size and found.dtype.kind not in "iu":
        raise DataError(
            f"indices ({shown(found.tolist())}) must be whole numbers, found {found.dtype}"
        )
    return found.astype(np.int64)


def run_starts(counts: np.ndarray) -> np.ndarray:
    """Where each of consecutive runs of these lengths begins."""
    starts: np.ndarray = np.cumsum(counts) - counts
    return starts
