"""JSON lines: each line an object whose `text_column` holds one document.

Strict, because a lenient reader turns a torn or mistyped line into nothing without a word. What is
refused, and named by file and line: no JSON, not UTF-8, NUL bytes, a last line that was cut off,
no object, the key missing, null or a number as text, nesting beyond the parser's depth, a line
beyond the size limit, half surrogate pairs. Blank lines are passed over and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llm_trainer.data.documents import Document
from llm_trainer.data.intake import Intake, excerpt
from llm_trainer.data.plain_text import refuse_foreign
from llm_trainer.data.streams import Line, TextStream

_TYPE_NAMES = {
    "NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number",
    "str": "text", "list": "a list", "dict": "an object",
}  # fmt: skip


class _BadLine(Exception):
    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


def iter_jsonl(
    stream: TextStream, name: str, intake: Intake, lines_before: int | None = None
) -> Iterator[Document]:
    """The documents of a JSONL file, in order, named `<name>:<line>`.

    `lines_before` is given for a part of a file: what is in front of it. A part may be empty.

    Raises:
        DataError: a bad line, unless on_bad_line says to skip it; or nothing but blank lines.
    """
    if refuse_foreign(stream, name, intake):
        return
    first = lines_before or 0
    empty = True
    intake.num_lines = 0
    for line in stream.lines(intake.line_limit):
        intake.num_lines = line.number
        if line.data is not None and not line.data.strip():
            intake.ledger.note("blank_lines")
            continue
        empty = False
        where = f"{name}:{first + line.number}"
        try:
            text = _text_of(line, intake)
        except _BadLine as error:
            intake.refuse(where, error.reason, str(error), line.size)
            continue
        yield from intake.accept(text, where)
    if empty and lines_before is None:
        refuse_empty(name, intake)


def refuse_empty(name: str, intake: Intake) -> None:
    """Refuse a file without records."""
    intake.refuse(name, "empty_file", "the file has no records", 0)


def _text_of(line: Line, intake: Intake) -> str:
    if line.data is None:
        raise _BadLine(
            "length",
            f"line of {line.size:,} bytes, more than the {intake.line_limit:,} that are parsed at "
            f"once (raise data.max_document_bytes, or give such a document a text file)",
        )
    record = _parse(line, line.data)
    if not isinstance(record, dict):
        kind = _TYPE_NAMES[type(record).__name__]
        raise _BadLine("json", f"expected an object, found {kind}: {excerpt(record)}")
    key = intake.text_column
    if key not in record:
        found = ", ".join(repr(k) for k in list(record)[:8]) or "none"
        raise _BadLine("key", f"no key {key!r} (keys: {found}; data.text_column names another)")
    value = record[key]
    if not isinstance(value, str):
        kind = _TYPE_NAMES[type(value).__name__]
        shown = "" if value is None else f": {excerpt(value)}"
        raise _BadLine("type", f"{key!r} is {kind}, not text{shown}")
    return value


def _parse(line: Line, data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise _BadLine(
            "encoding", f"byte 0x{data[error.start]:02x} at column {error.start + 1} is not UTF-8"
        ) from None
    except RecursionError:
        raise _BadLine("json", "nested too deep to be parsed") from None
    except ValueError as error:
        if 0 in data:
            problem = f"NUL byte at column {data.index(0) + 1}, the file is damaged"
        elif line.is_torn:
            problem = f"the file ends within this line, it was cut off: {excerpt(data[-40:])}"
        else:
            problem = f"not valid JSON ({error}): {excerpt(data)}"
        raise _BadLine("json", problem) from None
