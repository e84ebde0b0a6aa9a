"""From encoded documents to rows, by the name of the strategy.

A document of n tokens has n + 1 targets: its tokens and the end token after it. Its start token is
the end token before it, so documents that follow each other share one. With each strategy a
target is in exactly one row, with the token that precedes it in its document in front of it; a
row's first token is context only: an end token, or the last token of an earlier row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import numpy as np

from llm_trainer.data.best_fit import BestFitPacker
from llm_trainer.data.concat import ConcatPacker
from llm_trainer.data.row_batch import EncodedDocuments, RowBatch
from llm_trainer.data.single_rows import SinglePacker

Strategy = Literal["concat", "best_fit", "single"]


class Packer(Protocol):
    """Makes rows from a stream of documents, in bounded memory."""

    num_split: int
    """Documents so far that lie in more than one row."""

    def add(self, encoded: EncodedDocuments) -> Iterator[RowBatch]:
        """Take documents; yield the rows that are complete."""
        ...

    def finish(self) -> Iterator[RowBatch]:
        """Yield the rest, the last of it padded."""
        ...


def create_packer(
    strategy: Strategy,
    *,
    row_length: int,
    end_id: int,
    pad_id: int,
    dtype: np.dtype[np.unsignedinteger],
) -> Packer:
    """The packer of that name; `row_length` is at least 2."""
    if strategy == "best_fit":
        return BestFitPacker(row_length, end_id, pad_id, dtype)
    if strategy == "single":
        return SinglePacker(row_length, end_id, pad_id)
    return ConcatPacker(row_length, end_id, pad_id, dtype)


def pack_arrays(
    documents: Iterable[np.ndarray],
    strategy: Strategy,
    *,
    row_length: int,
    end_id: int,
    pad_id: int,
    dtype: np.dtype[np.unsignedinteger],
) -> RowBatch | None:
    """Pack documents that are in memory (arrays of ids without end tokens); None if there are none.

    The same rows as those of `pack_corpus` for the same documents.
    """
    packer = create_packer(
        strategy, row_length=row_length, end_id=end_id, pad_id=pad_id, dtype=dtype
    )
    arrays = [np.append(document, end_id).astype(dtype) for document in documents]
    if not arrays:
        return None
    encoded = EncodedDocuments(
        ids=np.concatenate(arrays),
        sizes=np.array([len(array) for array in arrays], np.int64),
        documents=np.arange(len(arrays)),
    )
    return RowBatch.concatenate([*packer.add(encoded), *packer.finish()])
