"""From a position in the row stream to the tensors of a micro-batch.

The stream is endless: position p is row `permute(p mod n)` of epoch `p div n` (see `data.order`).
Micro-batch k of a run takes positions k B to (k + 1) B - 1, whatever happened before, so a
checkpoint needs one integer and no loader has any state. Batches are always full: the last one of
an epoch reaches into the next. Where rows are cut into k pieces (see `row_growth`), the stream is
one of pieces, with an order of its own: micro-batch j takes positions j k B to (j + 1) k B - 1 of
it. Packed rows come straight from the memory map at a hundred million
tokens a second, so there are no worker processes to wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_trainer.data.order import rows_at
from llm_trainer.exceptions import DataError, TrainingError
from llm_trainer.training.loader_workers import WorkerBatches

IGNORED = -100


@runtime_checkable
class RowSource(Protocol):
    """Rows of equal length, readable in any order: packed shards, or a data set in memory."""

    @property
    def row_length(self) -> int:
        """Tokens per row, padding included."""

    def __len__(self) -> int: ...

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, (n, row_length), and the number of valid ones in each row, (n,)."""

    def segments(self, indices: np.ndarray) -> np.ndarray:
        """Number of the document within its row for each token, (n, row_length)."""

    def documents(self, index: int) -> list[int]:
        """Document of each piece of a row."""


@dataclass
class Batch:
    """One micro-batch."""

    input_ids: Tensor
    """(rows, time) long."""
    labels: Tensor
    """(rows, time) long; the ids, with IGNORED where there is no target."""
    segments: Tensor | None
    """(rows, time) document numbers, if attention stays within documents."""

    @property
    def num_targets(self) -> int:
        """Valid targets: labels from the second position on that are not IGNORED."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; from pinned memory the copy is asynchronous."""
        if device.type == "cpu":
            return self
        pin = device.type == "cuda"

        def move(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)

        segments = None if self.segments is None else move(self.segments)
        return Batch(move(self.input_ids), move(self.labels), segments)


def num_rows(dataset: RowSource | Dataset[Any]) -> int:
    """Rows of a data set.

    Raises:
        DataError: there are none, or it cannot tell (only map-style data sets can).
    """
    try:
        count = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        raise DataError(
            f"{type(dataset).__name__} has no length; a training data set must be map-style"
        ) from None
    if count == 0:
        raise DataError("the training data set has no rows; is max_length longer than the text?")
    return count


class BatchStream:
    """Micro-batches of a data set by number.

    Args:
        dataset: a `RowSource`, or any map-style torch data set of dictionaries with `input_ids`
            and optionally `labels` and `attention_mask`, all items of one length.
        batch_size: rows per micro-batch.
        seed: sub-seed of the row order.
        shuffle: keep the order of the data set if False.
        document_mask: yield `segments`; needs a `RowSource`.
        num_workers: processes that read a data set that is no `RowSource`.
        parts: into how many pieces each row of a micro-batch is cut, by its number; other than 1
            only for a `RowSource`.
        after: the number that is asked for after another one; only of use to the processes, which
            read ahead.

    Raises:
        DataError: an empty data set.
        TrainingError: `document_mask` with a data set that has no document boundaries.
    """

    def __init__(
        self,
        dataset: RowSource | Dataset[Any],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        document_mask: bool = False,
        num_workers: int = 0,
        parts: Callable[[int], int] = lambda _number: 1,
        after: Callable[[int], int] = lambda number: number + 1,
    ) -> None:
        self.num_rows = len(dataset)  # type: ignore[arg-type]
        if self.num_rows == 0:
            raise DataError(
                "the training data set has no rows; is max_length longer than the text?"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.document_mask = document_mask
        self.num_workers = num_workers
        self.parts = parts
        self.after = after
        self._ahead: WorkerBatches | None = None
        self._next = -1
        if document_mask and not isinstance(dataset, RowSource):
            raise TrainingError(
                f"document_mask needs packed rows that know their documents, and "
                f"{type(dataset).__name__} does not; set document_mask: false"
            )

    def row_indices(self, number: int) -> np.ndarray:
        """Rows of micro-batch `number`, (batch_size,) int64; of pieces the rows that they are of,
        (batch_size * parts,)."""
        return self._pieces(number)[0]

    def _pieces(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Row, and number within the row, of each piece of a micro-batch."""
        parts = self.parts(number)
        count = parts * self.batch_size
        positions = np.arange(number * count, (number + 1) * count, dtype=np.int64)
        pieces = rows_at(positions, parts * self.num_rows, self.seed, shuffle=self.shuffle)
        rows, places = np.divmod(pieces, parts)
        return rows, places

    def load(self, number: int) -> Batch:
        """Micro-batch `number`."""
        if isinstance(self.dataset, RowSource):
            return self._from_rows(self.dataset, number)
        assert self.parts(number) == 1
        if self.num_workers == 0:
            return collate([self.dataset[int(i)] for i in self.row_indices(number)])
        ahead = self._ahead
        if ahead is None or number != self._next:
            self.close()
            ahead = WorkerBatches(self.dataset, _Ahead(self, number), self.num_workers, collate)
        self._ahead, self._next = ahead, self.after(number)
        batch: Batch = next(ahead)
        return batch

    @contextmanager
    def workers(self) -> Iterator[None]:
        """End the workers, if any, after the body.

        Raises:
            DataError: one of them died or took too long; names the rows in work.
        """
        try:
            yield
        except RuntimeError as error:
            # torch raises wherever the trainer is when a worker dies, not only while it waits
            if self._ahead is None or not str(error).startswith("DataLoader "):
                raise
            raise self._ahead.failure(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """End the workers, if any; `load` starts new ones."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead, self._next = None, -1

    def _from_rows(self, source: RowSource, number: int) -> Batch:
        indices, places = self._pieces(number)
        length = source.row_length // self.parts(number)
        ids, lengths = source.rows(indices)
        lengths = lengths - places * length  # valid tokens from the start of the piece on
        input_ids = torch.from_numpy(_cut(ids.astype(np.int64), places, length))
        labels = input_ids
        if int(lengths.min()) < length:
            beyond = torch.arange(length) >= torch.from_numpy(lengths)[:, None]
            labels = input_ids.masked_fill(beyond, IGNORED)
        segments = None
        if self.document_mask:
            segments = torch.from_numpy(_cut(source.segments(indices), places, length))
        return Batch(input_ids, labels, segments)


def _cut(values: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    """Piece `places[i]` of row i of `values`, (rows, row_length): (rows, length)."""
    if values.shape[1] == length:
        return values
    return np.take_along_axis(values, places[:, None] * length + np.arange(length), axis=1)


class _Ahead:
    """Index lists of the micro-batches from `first` on, without end."""

    def __init__(self, stream: BatchStream, first: int) -> None:
        self.stream, self.first = stream, first

    def __iter__(self) -> Any:
        number = self.first
        while True:
            yield self.stream.row_indices(number).tolist()
            number = self.stream.after(number)


def collate(items: Sequence[Any]) -> Batch:
    """Items of a map-style data set as one batch; padding by `attention_mask` is no target.

    Raises:
        DataError: items that are no dictionaries with `input_ids`, or of different lengths.
    """
    try:
        ids = [torch.as_tensor(item["input_ids"], dtype=torch.long) for item in items]
    except (TypeError, KeyError, IndexError) as error:
        raise DataError(
            "items of a training data set must be dictionaries with 'input_ids'; "
            f"found {type(items[0]).__name__}"
        ) from error
    if len({row.shape for row in ids}) > 1:
        raise DataError(
            f"rows of different lengths ({sorted({len(row) for row in ids})}) in one batch; pad or "
            f"pack them, for example with LanguageModelingDataset"
        )
    input_ids = torch.stack(ids)
    labels = input_ids
    if "labels" in items[0]:
        labels = torch.stack([torch.as_tensor(item["labels"], dtype=torch.long) for item in items])
    elif "attention_mask" in items[0]:
        mask = torch.stack([torch.as_tensor(item["attention_mask"]) for item in items])
        labels = input_ids.masked_fill(mask == 0, IGNORED)
    return Batch(input_ids, labels, None)
