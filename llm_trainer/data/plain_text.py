"""Plain text files: one file is one document, cut into pieces only if it is very long.

The text is kept exactly, line ends and control characters included, but for a UTF-8 byte order
mark at the start. Text must be UTF-8; a `.py` file may declare another encoding in its first two
lines, as Python itself reads it.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator

from llm_trainer.data.documents import Document
from llm_trainer.data.intake import Intake
from llm_trainer.data.streams import TextStream, split_pieces


def iter_text(stream: TextStream, name: str, intake: Intake) -> Iterator[Document]:
    """The documents of a text file in UTF-8.

    Raises:
        DataError: it is in another encoding, and on_bad_line does not say to skip it.
    """
    if refuse_foreign(stream, name, intake):
        return
    yield from _documents(stream, name, intake)


def iter_python(stream: TextStream, name: str, intake: Intake) -> Iterator[Document]:
    """The documents of a Python source file, in the encoding that it declares.

    Raises:
        DataError: it is not valid in that encoding, and on_bad_line does not say to skip it.
    """
    if refuse_foreign(stream, name, intake):
        return
    data = b""
    try:
        encoding = python_encoding(stream.head)
        if encoding == "utf-8":
            yield from _documents(stream, name, intake)
            return
        data = stream.body.read(intake.limit + 1)
        if len(data) > intake.limit:
            raise UnicodeError(f"more than {intake.limit:,} bytes in {encoding}, not UTF-8")
        text = data.decode(encoding)
    except (SyntaxError, UnicodeError, LookupError) as error:
        size = len(data) + sum(map(len, stream.blocks()))
        intake.refuse(name, "encoding", f"is not valid Python text ({error})", size)
        return
    yield from intake.accept(text, name)


def python_encoding(head: bytes) -> str:
    """The encoding of a Python source file by its first two lines, as `tokenize.open` finds it.

    Raises:
        SyntaxError: it declares an unknown encoding, or two different ones, or its first lines
            are not in it.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(head).readline)
    return "utf-8" if encoding == "utf-8-sig" else encoding


def refuse_foreign(stream: TextStream, name: str, intake: Intake) -> bool:
    """Refuse a file in UTF-16 or UTF-32; whether it was one."""
    if stream.foreign is None:
        if stream.had_bom:
            intake.ledger.note("byte_order_marks_removed")
        return False
    remedy = f"convert it: `iconv -f {stream.foreign} -t UTF-8`"
    size = sum(map(len, stream.blocks()))
    intake.refuse(name, "encoding", f"is {stream.foreign}, not UTF-8 ({remedy})", size)
    return True


def _documents(stream: TextStream, name: str, intake: Intake) -> Iterator[Document]:
    if not stream.head:  # no bytes make no piece, but the file was a document
        intake.ledger.take_in(1)
        intake.ledger.drop("empty", 1)
        return
    yield from intake.accept_pieces(split_pieces(stream.blocks(), intake.limit), name)
