"""The Parquet files of data/raw: how they are written and read through (`raw_groups` reads parts).

One row a document (text, source), zstd, a checksum on every page. Files and row groups are of
bounded size, so that writing and reading take bounded memory, and nothing in them depends on time,
place or thread count: the same documents give the same bytes (with the same pyarrow, whose version
Parquet writes into each file).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_trainer.data.documents import Document
from llm_trainer.data.raw_groups import group_sizes, read_group

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FILE_BYTES = 64 * 2**20
"""Text after which a file is full, in bytes."""
GROUP_BYTES = 4 * 2**20
"""Text after which a row group is full, in bytes; a reader holds one at a time."""
GROUP_ROWS = 16_384
"""Documents after which a row group is full."""


class RawWriter:
    """Writes the documents of one split into `<split>-00000.parquet` and so on.

    Args:
        directory: where to; must exist.
        split: "train" or "validation".
        names: of files that are there already, and stay.

    Attributes:
        names: of the files begun so far.
        num_complete: how many of these are complete.
        complete_documents, complete_bytes: in these.
        num_documents: added so far.
        num_bytes: of UTF-8 text added so far.
    """

    def __init__(self, directory: Path, split: str, names: Iterable[str] = ()) -> None:
        import pyarrow as pa

        self.names = list(names)
        self.num_documents = 0
        self.num_bytes = 0
        self._directory = directory
        self._split = split
        self._schema = pa.schema(
            [pa.field("text", pa.string(), False), pa.field("source", pa.string(), False)]
        )
        self.num_complete = len(self.names)
        self.complete_documents = 0
        self.complete_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._texts: list[bytes] = []
        self._sources: list[bytes] = []
        self._group_bytes = 0
        self._file_bytes = 0

    def add(self, data: bytes, source: str) -> None:
        """Add a document, its text in UTF-8."""
        self._texts.append(data)
        self._sources.append(source.encode())
        self._group_bytes += len(data)
        if self._group_bytes >= GROUP_BYTES or len(self._texts) >= GROUP_ROWS:
            self._write_group()
            if self._file_bytes >= FILE_BYTES:
                self._close_file()

    def close(self) -> None:
        """Write what is left; the files are complete after this."""
        if self._texts:
            self._write_group()
        self._close_file()

    def abandon(self) -> None:
        """Close the open file after an error; what it holds is of no use."""
        self._texts, self._sources = [], []
        with suppress(OSError):  # of a full disk, which is why we are here
            self._close_file()

    def _write_group(self) -> None:
        import pyarrow as pa

        columns = [_string_array(self._texts), _string_array(self._sources)]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._open_file().write_table(table, row_group_size=len(self._texts))
        self.num_documents += len(self._texts)
        self.num_bytes += self._group_bytes
        self._file_bytes += self._group_bytes
        self._texts, self._sources, self._group_bytes = [], [], 0

    def _open_file(self) -> pq.ParquetWriter:
        import pyarrow.parquet as pq

        if self._writer is None:
            name = f"{self._split}-{len(self.names):05d}.parquet"
            self.names.append(name)
            self._writer = pq.ParquetWriter(
                self._directory / name,
                self._schema,
                compression="zstd",
                compression_level=3,
                use_dictionary=False,
                write_statistics=False,  # of texts, they would be texts
                write_page_checksum=True,
            )
        return self._writer

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.num_complete += 1
            self.complete_documents, self.complete_bytes = self.num_documents, self.num_bytes
        self._writer = None
        self._file_bytes = 0


def _string_array(values: list[bytes]) -> pa.StringArray:
    # straight from bytes: pa.array(list) would look for pandas first, half a second of imports
    import pyarrow as pa

    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    data = pa.py_buffer(b"".join(values))
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), data)


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of one file in order, one row group in memory at a time.

    Raises:
        IntegrityError: the file is missing or damaged, or a page differs from its checksum.
    """
    for group in range(len(group_sizes(path))):
        texts = read_group(path, group, "text").to_pylist()
        sources = read_group(path, group, "source").to_pylist()
        yield from map(Document, texts, sources)
