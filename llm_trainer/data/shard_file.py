"""One shard: an Arrow IPC file of rows of token ids; no other module knows its layout.

How: uncompressed record batches of a fixed number of rows (the last has what is left), in each the
`input_ids` first, as fixed-size lists, on a 64-byte boundary. A reader maps the file once and finds
a row by arithmetic, any number of rows at a time: batch = row // batch_rows. An IPC *file* ends in
a footer, so a truncated one cannot be opened, where a stream cut between batches would read short
in silence. The same rows give the same bytes.
Price: no compression (2 bytes a token), 12 bytes a row plus 12 a document piece for what document
boundaries need, and one record batch (about 4 MiB) of memory to write.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_trainer.data.row_batch import RowBatch, run_starts
from llm_trainer.exceptions import IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa

REMEDY = "run `dvc repro pack_sequences`"
"""Ends every message about packed data that cannot be used."""
BYTES_PER_PIECE = 8 + 4
"""A document index and a start."""
BATCH_BYTES = 4 * 2**20
"""Ids in a record batch, in bytes."""
_ALIGNMENT = 64


def id_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest stored type that holds every id below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def shard_name(split: str, number: int) -> str:
    """File name of a split's shard; names sort as numbers do."""
    return f"{split}-{number:05d}.arrow"


def rows_per_batch(row_length: int, dtype: np.dtype[np.unsignedinteger]) -> int:
    """Rows of each record batch but the last of a file."""
    return max(1, BATCH_BYTES // (row_length * dtype.itemsize))


# --------------------------------------------------------------------------- writing


class ShardFile:
    """Writes one shard, a record batch at a time; `close` makes it readable.

    Raises:
        OSError: the file cannot be written; `files.atomic_directory` tells the user why.
    """

    def __init__(
        self, path: str | os.PathLike[str], row_length: int, dtype: np.dtype[np.unsignedinteger]
    ) -> None:
        import pyarrow as pa

        self._schema = _schema(row_length, dtype)
        self._sizes = file_sizes(row_length, dtype)
        self._sink = pa.OSFile(os.fspath(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def write(self, rows: RowBatch) -> None:
        """Append a record batch: `rows_per_batch` rows, or fewer and then no more."""
        position = self._sink.tell()
        values = position + self._sizes.header if position else self._sizes.first_values
        _write_batch(self._writer, self._schema, rows, padding=-values % _ALIGNMENT)

    def close(self) -> None:
        """Write the footer and close the file."""
        try:
            self._writer.close()
        finally:
            self._sink.close()


@dataclass(frozen=True)
class FileSizes:
    """Bytes of a shard's parts; those of rows and pieces depend on nothing else."""

    fixed: int
    """Schema (it stands twice) and footer, at most."""
    per_batch: int
    """A batch's header, its entry in the footer and alignment, at most."""
    per_row: int
    """Ids, length, two list offsets."""
    first_values: int
    """Where the ids of the first batch lie without padding."""
    header: int
    """From the end of a batch to the ids of the next, without padding."""


@functools.lru_cache(maxsize=16)
def file_sizes(row_length: int, dtype: np.dtype[np.unsignedinteger]) -> FileSizes:
    """Measured on a file of two batches with a row each, in memory.

    Arrow's writer aligns buffers to 8 bytes only. A batch's header has the same size whatever its
    rows, so what this file shows holds for all, and custom metadata of the right length moves the
    ids of each batch to a 64-byte boundary.
    """
    import pyarrow as pa

    schema, sink = _schema(row_length, dtype), pa.BufferOutputStream()
    row = RowBatch(
        ids=np.zeros((1, row_length), dtype),
        lengths=np.full(1, row_length),
        piece_counts=np.ones(1, np.int64),
        documents=np.zeros(1, np.int64),
        starts=np.zeros(1, np.uint32),
    )
    with pa.ipc.new_file(sink, schema) as writer:
        _write_batch(writer, schema, row, padding=0)
        second = sink.tell()
        _write_batch(writer, schema, row, padding=0)
        end = sink.tell()
    buffer = sink.getvalue()
    reader = pa.ipc.open_file(buffer)
    values = [_address(reader.get_batch(k).column(0).values) - buffer.address for k in (0, 1)]
    return FileSizes(
        fixed=values[0] + buffer.size - end,
        # Five buffers, each padded to 8 bytes, and the two lists' first offsets.
        per_batch=values[1] - second + _ALIGNMENT + 5 * 8 + 2 * 4 + 24,
        per_row=row_length * dtype.itemsize + 4 + 2 * 4,
        first_values=values[0],
        header=values[1] - second,
    )


def _write_batch(
    writer: pa.RecordBatchFileWriter, schema: pa.Schema, rows: RowBatch, padding: int
) -> None:
    import pyarrow as pa

    kinds = schema.types
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(rows.piece_counts, out=offsets[1:])
    columns = [
        pa.FixedSizeListArray.from_arrays(_array(rows.ids.reshape(-1)), type=kinds[0]),
        _array(rows.lengths.astype(np.uint32)),
        pa.ListArray.from_arrays(_array(offsets), _array(rows.documents), type=kinds[2]),
        pa.ListArray.from_arrays(_array(offsets), _array(rows.starts), type=kinds[3]),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    writer.write_batch(batch, custom_metadata={"padding": " " * padding})


def _array(values: np.ndarray) -> pa.Array:
    """An Arrow array over the same memory; `pa.array` would look for pandas, half a second."""
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _schema(row_length: int, dtype: np.dtype[np.unsignedinteger]) -> pa.Schema:
    import pyarrow as pa

    def required(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    token = required("item", pa.from_numpy_dtype(dtype))
    return pa.schema(
        [
            required("input_ids", pa.list_(token, row_length)),
            required("length", pa.uint32()),
            required("documents", pa.list_(required("item", pa.int64()))),
            required("starts", pa.list_(required("item", pa.uint32()))),
        ]
    )


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Columns:
    """Where each batch's values begin, (batches,) int64, in elements from the start of the file."""

    ids: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    pieces: np.ndarray
    """How many values of the last two there are."""


class Shard:
    """A mapped shard, read-only. Rows are arrays of row numbers (n,) within the shard.

    The file descriptor is closed again: a data set may have more shards than a process may have
    open files. For the content the manifest vouches; here only the form is checked.

    Raises:
        IntegrityError: not an Arrow file, or not of this layout, row length and id type.
    """

    def __init__(self, path: Path, row_length: int, dtype: np.dtype[np.unsignedinteger]) -> None:
        import pyarrow as pa

        self._path = path
        self._row_length = row_length
        try:
            with pa.memory_map(os.fspath(path)) as file:
                buffer = file.read_buffer()
            reader = pa.ipc.open_file(buffer)
            _check_schema(path, reader.schema, _schema(row_length, dtype))
            batches = [reader.get_batch(k) for k in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise IntegrityError(
                f"{path}: not a readable Arrow file ({error}); {REMEDY}"
            ) from error
        sizes = [int(batch.num_rows) for batch in batches]
        self._batch_rows = sizes[0] if sizes else 1
        if (
            any(size != self._batch_rows for size in sizes[:-1])
            or 0 in sizes
            or (sizes and sizes[-1] > self._batch_rows)
        ):
            raise IntegrityError(f"{path}: record batches of unequal size {sizes[:4]}; {REMEDY}")
        self._num_rows = sum(sizes)
        self._columns = _locate(path, batches, buffer, dtype)
        # The whole file as numbers of each type; one row is one window.
        self._int64 = _numbers(buffer, np.dtype(np.int64))
        self._int32 = _numbers(buffer, np.dtype(np.int32))
        self._uint32 = _numbers(buffer, np.dtype(np.uint32))
        self._ids = _numbers(buffer, dtype)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._ids, row_length)

    def __len__(self) -> int:
        return self._num_rows

    def rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (n, row_length), a copy, and lengths (n,) int64 of these rows."""
        batch, local = np.divmod(rows, self._batch_rows)
        ids = self._windows[self._columns.ids[batch] + local * self._row_length]
        return ids, self._uint32[self._columns.lengths[batch] + local].astype(np.int64)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64: valid tokens of each row."""
        batch, local = np.divmod(rows, self._batch_rows)
        lengths: np.ndarray = self._uint32[self._columns.lengths[batch] + local].astype(np.int64)
        return lengths

    def pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts (n,), and the documents (pieces,) int64 and starts (pieces,) int64 of all rows."""
        batch, local = np.divmod(rows, self._batch_rows)
        offset = self._columns.offsets[batch] + local
        first = self._int32[offset].astype(np.int64)
        counts = self._int32[offset + 1] - first
        piece = np.arange(counts.sum()) + np.repeat(first - run_starts(counts), counts)
        batch = np.repeat(batch, counts)
        documents = self._int64[self._columns.documents[batch] + piece]
        return counts, documents, self._uint32[self._columns.starts[batch] + piece].astype(np.int64)

    def batches(self) -> Iterator[RowBatch]:
        """All rows in order, a record batch at a time; the ids are views into the file.

        Raises:
            IntegrityError: offsets that do not rise, or lead beyond their values.
        """
        for batch, start in enumerate(range(0, len(self), self._batch_rows)):
            rows = np.arange(start, min(start + self._batch_rows, len(self)))
            first = self._columns.offsets[batch]
            offsets = self._int32[first : first + len(rows) + 1]
            if offsets[0] < 0 or (np.diff(offsets) < 0).any():
                raise IntegrityError(f"{self._path}: list offsets that do not rise; {REMEDY}")
            if offsets[-1] > self._columns.pieces[batch]:
                raise IntegrityError(f"{self._path}: list offsets beyond their list; {REMEDY}")
            first, size = self._columns.ids[batch], len(rows) * self._row_length
            ids = self._ids[first : first + size].reshape(-1, self._row_length)
            yield RowBatch(ids, self.lengths(rows), *self.pieces(rows))


def _check_schema(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    if not found.equals(expected):
        described = [
            ", ".join(f"{field.name} {field.type}" for field in schema)
            for schema in (found, expected)
        ]
        raise IntegrityError(
            f"{path}: has the columns ({described[0]}), but the manifest says ({described[1]}); "
            f"{REMEDY}"
        )


def _locate(
    path: Path,
    batches: list[pa.RecordBatch],
    buffer: pa.Buffer,
    dtype: np.dtype[np.unsignedinteger],
) -> _Columns:
    places: list[list[int]] = []
    pieces: list[int] = []
    sizes = np.array([dtype.itemsize, 4, 4, 8, 4])
    for batch in batches:
        ids, lengths, documents, starts = batch.columns
        if not documents.offsets.equals(starts.offsets):
            raise IntegrityError(f"{path}: documents and starts disagree on the pieces; {REMEDY}")
        arrays = (ids.values, lengths, documents.offsets, documents.values, starts.values)
        places.append([_address(array) - buffer.address for array in arrays])
        pieces.append(min(len(documents.values), len(starts.values)))
        ends = places[-1] + sizes * [len(array) for array in arrays]
        if min(places[-1]) < 0 or ends.max() > buffer.size:  # compressed, and so elsewhere
            raise IntegrityError(f"{path}: values that lie outside the file; {REMEDY}")
    table = np.array(places, np.int64).reshape(-1, 5)  # (batches, columns), bytes
    if (table % sizes).any():
        raise IntegrityError(f"{path}: values are not aligned to their size; {REMEDY}")
    ids, lengths, offsets, documents, starts = (table // sizes).T
    return _Columns(ids, lengths, offsets, documents, starts, np.array(pieces, np.int64))


def _address(array: pa.Array) -> int:
    assert array.offset == 0, "arrays of a file's batch begin with their buffers"
    return int(array.buffers()[1].address)


def _numbers(buffer: pa.Buffer, dtype: np.dtype[np.generic]) -> np.ndarray:
    return np.frombuffer(buffer, dtype, count=buffer.size // dtype.itemsize)
