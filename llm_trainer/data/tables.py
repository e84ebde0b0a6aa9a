"""CSV and Parquet files: each row's `text_column` holds one document.

CSV is read as RFC 4180 has it: commas, a header line, quotes doubled within quotes, line ends
within quotes kept exactly. A row with more or fewer fields than the header is refused, since that
is what a torn file or an unescaped comma looks like. Parquet is read in batches of a few rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llm_trainer.data.documents import Document
from llm_trainer.data.input_file import InputFile
from llm_trainer.data.intake import Intake
from llm_trainer.data.plain_text import refuse_foreign
from llm_trainer.data.streams import Line, TextStream
from llm_trainer.exceptions import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_PARQUET_BATCH_ROWS = 64
_PARQUET_BUFFER_BYTES = 2**20
_FOOTER_BYTES = 2**16
"""Least that is fetched from an address at a time: most footers are smaller."""


# --------------------------------------------------------------------------- csv


class _CsvLines:
    """Feeds lines to the csv module, and remembers what was wrong with those of one record."""

    def __init__(self, stream: TextStream, limit: int) -> None:
        self._lines = stream.lines(limit)
        self.next_line = 1
        self.size = 0
        self.problem: tuple[str, str] | None = None

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.next_line = line.number + 1
            self.size += line.size
            yield self._decode(line)

    def start_record(self) -> int:
        """Forget the last record; the number of the line at which the next one starts."""
        self.size = 0
        self.problem = None
        return self.next_line

    def _decode(self, line: Line) -> str:
        if line.data is None:
            self.problem = ("length", f"line of {line.size:,} bytes, too long to be parsed at once")
            return "\n"
        try:
            text = line.data.decode()
        except UnicodeDecodeError as error:
            byte = line.data[error.start]
            self.problem = (
                "encoding",
                f"byte 0x{byte:02x} at column {error.start + 1} of line {line.number} is not UTF-8",
            )
            return line.data.decode("utf-8", "replace")
        if 0 in line.data:
            self.problem = ("csv", f"NUL byte in line {line.number}, the file is damaged")
        return text


def iter_csv(stream: TextStream, name: str, intake: Intake) -> Iterator[Document]:
    """The documents of a CSV file, in order, named `<name>:<line>` by the row's first line.

    Raises:
        DataError: no header, no such column, or a bad row, unless on_bad_line says to skip it.
    """
    if refuse_foreign(stream, name, intake):
        return
    # The limit is one of the csv module, not of a reader; it only ever grows here.
    csv.field_size_limit(max(csv.field_size_limit(), intake.line_limit))
    lines = _CsvLines(stream, intake.line_limit)
    reader = csv.reader(iter(lines), strict=True)
    header = _read_header(reader, lines, name)
    column = _column_index(header, name, intake.text_column)
    empty = True
    while True:
        where = f"{name}:{lines.start_record()}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            problem = lines.problem or ("csv", f"not valid CSV ({error})")
            intake.refuse(where, *problem, lines.size)
            empty = False
            continue
        if row is None:
            break
        if not row:
            intake.ledger.note("blank_lines")
            continue
        empty = False
        if lines.problem is not None:
            intake.refuse(where, *lines.problem, lines.size)
        elif len(row) != len(header):
            torn = f"{len(row)} fields, but the header has {len(header)}"
            intake.refuse(where, "csv", torn, lines.size)
        else:
            yield from intake.accept(row[column], where)
    if empty:
        intake.refuse(name, "empty_file", "the file has no rows", 0)


def _read_header(reader: Any, lines: _CsvLines, name: str) -> list[str]:
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{name}:1: the header is not valid CSV ({error})") from error
    if lines.problem is not None:
        raise DataError(f"{name}:1: the header cannot be read: {lines.problem[1]}")
    if not header:
        raise DataError(f"{name}: the file is empty; a CSV file starts with a line of column names")
    return header


def _column_index(header: list[str], name: str, column: str) -> int:
    if header.count(column) > 1:
        raise DataError(f"{name}:1: the header has column {column!r} more than once; rename one")
    if column in header:
        return header.index(column)
    hint = "set data.text_column to the one with the text"
    if len(header) == 1:
        for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in header[0]:
                hint = f"the columns seem to be separated by {word}; only commas are read"
    raise DataError(
        f"{name}:1: no column {column!r} (columns: {', '.join(map(repr, header[:8]))}); {hint}"
    )


# --------------------------------------------------------------------------- parquet


def iter_parquet(
    file: InputFile, intake: Intake, groups: range | None = None, rows_before: int = 0
) -> Iterator[Document]:
    """The documents of a Parquet file, in order, named `<name>:<row>` from 1.

    `groups` are the row groups to read, all by default, and `rows_before` the rows of those in
    front of them. Only the footer and the column of text are fetched from an address.

    Raises:
        DataError: not a Parquet file, damaged, no such column, not a column of text, or a null,
            unless on_bad_line says to skip it.
    """
    import pyarrow as pa

    name = file.name
    number = 0
    try:
        with open_parquet(file) as table:
            check_text_column(table.schema_arrow, name, intake.text_column)
            batches = table.iter_batches(
                _PARQUET_BATCH_ROWS,
                row_groups=groups,
                columns=[intake.text_column],
                use_threads=False,
            )
            for batch in batches:
                yield from accept_column(batch.column(0), name, rows_before + number, intake)
                number += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{name}: not a readable Parquet file ({error}); check it, or copy it again"
        ) from error
    if number == 0 and groups is None:
        intake.refuse(name, "empty_file", "the file has no rows", 0)


@contextmanager
def open_parquet(file: InputFile) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; its footer is read.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read, or is none.
    """
    import pyarrow.parquet as pq

    # a local one by its path, which Arrow reads without Python's help
    place = file.open(least=_FOOTER_BYTES) if file.is_remote else file.place
    try:
        with pq.ParquetFile(place, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES) as table:
            yield table
    finally:
        if not isinstance(place, str):
            place.close()


def check_text_column(schema: pa.Schema, name: str, column: str) -> None:
    """Make sure that `schema` has exactly one such column, and that it holds text.

    Raises:
        DataError: names the columns that there are, or the type that was found.
    """
    import pyarrow as pa

    indices = schema.get_all_field_indices(column)
    if len(indices) != 1:
        problem = f"no column {column!r}" if not indices else f"column {column!r} more than once"
        raise DataError(
            f"{name}: {problem} (columns: {', '.join(map(repr, schema.names[:12]))}); set "
            f"data.text_column to the one with the text"
        )
    kind = schema.field(indices[0]).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = (
        pa.types.is_string(value_kind)
        or pa.types.is_large_string(value_kind)
        or pa.types.is_string_view(value_kind)
        or pa.types.is_null(value_kind)  # its rows are refused one by one
    )
    if not is_text:
        raise DataError(
            f"{name}: column {column!r} holds {kind}, not text; set data.text_column to another of "
            f"{', '.join(map(repr, schema.names[:12]))}"
        )


def accept_column(
    column: pa.Array, name: str, first_row: int, intake: Intake
) -> Iterator[Document]:
    """The documents of an Arrow array of text, one a value, named `<name>:<row>` from 1.

    Raises:
        DataError: a null or a value that is not UTF-8, unless on_bad_line says to skip it.
    """
    for index, value in enumerate(column):
        where = f"{name}:{first_row + index + 1}"
        if not value.is_valid:
            intake.refuse(where, "type", f"{intake.text_column!r} is null, not text", 0)
            continue
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            problem = f"byte {error.start} of {intake.text_column!r} is not UTF-8"
            intake.refuse(where, "encoding", problem, len(error.object))
            continue
        yield from intake.accept(text, where)
