"""Work on input files, cut into units: what one worker reads at a time, and where a run goes on.

A unit is a range of lines of a plain JSONL file, a range of row groups of a Parquet file, or whole
files (what is compressed, CSV with line ends in its fields, and plain text, which is one document).
Small files share a unit. The units depend on the files alone: on their order, their sizes and the
footers of Parquet files, never on who reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from llm_trainer.data.documents import Document
from llm_trainer.data.input_file import InputFile
from llm_trainer.data.intake import Intake
from llm_trainer.data.jsonl import iter_jsonl
from llm_trainer.data.plain_text import iter_python, iter_text
from llm_trainer.data.streams import TextStream, line_start, open_text
from llm_trainer.data.tables import iter_csv, iter_parquet, open_parquet

UNIT_BYTES = 32 * 2**20
"""Bytes of a unit, as they lie in the file; more for whole files that are larger."""
UNIT_FILES = 1000
"""Whole files in a unit, at most."""
_READERS: dict[str, Callable[[TextStream, str, Intake], Iterator[Document]]] = {
    "txt": iter_text, "md": iter_text, "py": iter_python, "jsonl": iter_jsonl, "csv": iter_csv,
}  # fmt: skip


class Part(NamedTuple):
    """A file, or a part of one."""

    file: InputFile
    start: int = 0
    """First byte (of a JSONL file; its line is the first that starts there or later) or row group
    (of a Parquet file)."""
    stop: int | None = None
    """Where the next part starts; None for the end."""
    rows_before: int = 0
    """Of a Parquet file: rows before `start`."""

    @property
    def is_range(self) -> bool:
        """Whether it is less than a whole file."""
        return self.start > 0 or self.stop is not None

    @property
    def is_lines(self) -> bool:
        """Whether it is a range of lines, whose numbers depend on the parts before."""
        return self.is_range and self.file.format == "jsonl"


@dataclass(frozen=True)
class Unit:
    """What is read at a time, in this order; a range of a file is alone."""

    parts: tuple[Part, ...]

    @property
    def lines(self) -> Part | None:
        """Its part, if that is a range of lines."""
        return self.parts[0] if self.parts[0].is_lines else None

    def __str__(self) -> str:
        first = self.parts[0]
        what = "row group" if first.file.format == "parquet" else "byte"
        where = f" from {what} {first.start:,}" if first.is_range else ""
        more = f" and {len(self.parts) - 1:,} more" if len(self.parts) > 1 else ""
        return f"{first.file.name}{where}{more}"


def list_units(files: Iterable[InputFile]) -> Iterator[Unit]:
    """The units of these files, in order. Footers of Parquet files are read on the way.

    Raises:
        DataError: a file cannot be read at all.
    """
    together: list[Part] = []
    num_bytes = 0
    for file in files:
        parts = _parts(file)
        full = num_bytes + file.size > UNIT_BYTES or len(together) == UNIT_FILES
        if together and (full or len(parts) > 1):
            yield Unit(tuple(together))
            together, num_bytes = [], 0
        if len(parts) > 1:
            yield from (Unit((part,)) for part in parts)
        else:
            together += parts
            num_bytes += file.size
    if together:
        yield Unit(tuple(together))


def iter_unit(unit: Unit, intake: Intake, lines_before: int) -> Iterator[Document]:
    """The documents of a unit, in order; `lines_before` are those before a range of lines.

    Raises:
        DataError: see `iter_part`.
    """
    for part in unit.parts:
        yield from iter_part(part, intake, lines_before)


def iter_part(part: Part, intake: Intake, lines_before: int = 0) -> Iterator[Document]:
    """The documents of a file or a part of it, in order.

    Raises:
        DataError: it cannot be read, or has a bad record and on_bad_line does not say to skip it.
    """
    file = part.file
    if file.format == "parquet":
        groups = range(part.start, part.stop) if part.stop is not None else None
        yield from iter_parquet(file, intake, groups, part.rows_before)
    elif part.is_lines:
        start = line_start(file, part.start)
        stop = file.size if part.stop is None else line_start(file, part.stop)
        with open_text(file, (start, stop)) as stream:
            yield from iter_jsonl(stream, file.name, intake, lines_before)
    else:
        with open_text(file) as stream:
            yield from _READERS[file.format](stream, file.name, intake)


def _parts(file: InputFile) -> list[Part]:
    if file.size <= UNIT_BYTES or file.compression:
        return [Part(file)]
    if file.format == "parquet":
        return _parquet_parts(file)
    if file.format == "jsonl":
        return _line_parts(file)
    return [Part(file)]


def _line_parts(file: InputFile) -> list[Part]:
    with open_text(file, (0, min(file.size, 4096))) as stream:
        if stream.foreign is not None:  # its line ends are other bytes; it is refused as a whole
            return [Part(file)]
    starts = range(0, file.size, UNIT_BYTES)
    return [
        Part(file, start, stop) for start, stop in zip(starts, [*starts[1:], None], strict=True)
    ]


def _parquet_parts(file: InputFile) -> list[Part]:
    import pyarrow as pa

    try:
        with open_parquet(file) as table:
            groups = [table.metadata.row_group(k) for k in range(table.metadata.num_row_groups)]
            sizes = [(group.total_byte_size, group.num_rows) for group in groups]
    except (OSError, pa.ArrowException):
        return [Part(file)]  # whoever reads it says what is wrong
    parts: list[Part] = []
    start = rows = rows_before = num_bytes = 0
    for number, (size, num_rows) in enumerate(sizes):
        if number > start and num_bytes + size > UNIT_BYTES:
            parts.append(Part(file, start, number, rows_before))
            start, rows_before, num_bytes = number, rows, 0
        num_bytes += size
        rows += num_rows
    if not parts or rows == 0:
        return [Part(file)]
    return [*parts, Part(file, start, len(sizes), rows_before)]
