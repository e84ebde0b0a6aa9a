"""What every source does with a record: count it, refuse it, split it.

All sources hand their records to one `Intake`, so that strictness, splitting and the books are the
same for JSONL, CSV, Parquet, plain text, the hub and the standard library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from llm_trainer.config import SourceConfig
from llm_trainer.data.documents import Document
from llm_trainer.data.input_file import InputFile
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.streams import split_pieces
from llm_trainer.exceptions import DataError

MIN_LINE_LIMIT = 64 * 2**20
"""Bytes up to which a JSONL or CSV line is parsed; a longer one is a bad record. It is more than
a document's limit, as escapes make a line longer than its text."""


class Intake:
    """Turns records into documents and keeps the books of the incoming side.

    Args:
        config: column, size limit and what to do about bad records.
        ledger: where everything is entered.
    """

    def __init__(self, config: SourceConfig, ledger: Ledger) -> None:
        self.text_column = config.text_column
        self.ledger = ledger
        self.limit = config.max_document_bytes
        self.line_limit = max(MIN_LINE_LIMIT, 4 * config.max_document_bytes)
        self._skip = config.on_bad_line == "skip"
        self._max_bad = config.max_bad_lines
        self.num_bad = 0
        """Bad records so far, in all that this was or will be given."""
        self.num_lines = 0
        """Lines of the part of a JSONL file that was read last."""

    def accept(self, text: str, source: str) -> Iterable[Document]:
        """The documents of one record: one, none if it is empty, several if it is too long.

        Raises:
            DataError: the text has a lone surrogate, which no encoding can store.
        """
        size = len(text)
        if not text.isascii():
            try:
                size = len(text.encode())
            except UnicodeEncodeError as error:
                self.refuse(
                    source,
                    "surrogate",
                    f"lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
                    f"half of a character, which is no valid text",
                    len(text.encode("utf-8", "surrogatepass")),
                )
                return ()
        if size > self.limit:
            return self.accept_pieces(split_pieces([text.encode()], self.limit), source)
        self.ledger.take_in(1, size)
        if not text or text.isspace():
            self.ledger.drop("empty", 1, size)
            return ()
        return (Document(text, source),)

    def accept_pieces(self, pieces: Iterable[tuple[int, bytes]], source: str) -> Iterator[Document]:
        """The documents of one record that comes as UTF-8 in pieces (see `split_pieces`).

        Each piece becomes a document of its own, named `source#1` and so on. One that is not
        UTF-8 is a bad record.
        """
        offset, line = 0, 1
        for number, data in pieces:
            if number <= 1:
                self.ledger.take_in(1, len(data))
            else:
                self.ledger.take_in(0, len(data))
                self.ledger.add("split", 1)
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                self._count_bad(
                    f"{source}:{line + data.count(10, 0, error.start)}",
                    f"byte 0x{data[error.start]:02x} at offset {offset + error.start:,} is not "
                    f"UTF-8 (convert the file, for instance `iconv -f WINDOWS-1252 -t UTF-8`)",
                )
                self.ledger.drop("bad_encoding", 1, len(data))
            else:
                if text.isspace():
                    self.ledger.drop("empty", 1, len(data))
                else:
                    yield Document(text, f"{source}#{number}" if number else source)
            offset += len(data)
            line += data.count(10)

    def refuse(self, where: str, reason: str, problem: str, size: int) -> None:
        """Enter a record that cannot be used: an error, or, if the user said so, skipped.

        Args:
            where: file and line, or row.
            reason: one word for the ledger, where it stands as `bad_<reason>`.
            problem: what is wrong, with the value.
            size: the record's bytes.

        Raises:
            DataError: on_bad_line is "error", or this is one too many.
        """
        self._count_bad(where, problem)
        self.ledger.take_in(1, size)
        self.ledger.drop(f"bad_{reason}", 1, size)

    def _count_bad(self, where: str, problem: str) -> None:
        self.num_bad += 1
        if not self._skip:
            raise DataError(
                f"{where}: {problem}; mend it, or set data.on_bad_line: skip to leave out up to "
                f"data.max_bad_lines ({self._max_bad}) such records"
            )
        if self.num_bad > self._max_bad:
            raise DataError(
                f"{where}: {problem}; this is bad record number {self.num_bad} and "
                f"data.max_bad_lines is {self._max_bad}: mend the source or raise the limit"
            )


Reader = Callable[[Intake], Iterator[Document]]


@dataclass(frozen=True)
class Source:
    """A place that documents come from, found and checked, but not yet read."""

    name: str
    """For messages and metrics."""
    train: Reader
    """Gives the training documents, or all of them if there is no `validation`."""
    validation: Reader | None
    """Gives the validation documents; None if they must be cut from `train`."""
    origin: dict[str, str | int | None]
    """What identifies the corpus, for the manifest: dataset, revision, Python version, ..."""
    train_files: list[InputFile] | None = None
    """Of files: what `train` reads, so that it can be split into units."""
    validation_files: list[InputFile] | None = None
    """The same for `validation`; empty without."""


def excerpt(value: object, length: int = 60) -> str:
    """A short spelling of a value for a message."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
