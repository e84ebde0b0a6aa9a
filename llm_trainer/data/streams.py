"""Bytes from plain and compressed files, in bounded memory: lines and pieces of limited size.

What is compressed is decompressed as it is read, a block at a time, so a bomb costs time and no
memory. `.gz` goes through Python's gzip. `.zst` goes through Arrow's codec rather than the
`zstandard` package: that one takes a file that was cut off for one that ends there (seen with
0.25), and a corpus would lose its tail without a word; Arrow's says "truncated".
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, Protocol, cast

from llm_trainer.data.input_file import InputFile
from llm_trainer.exceptions import DataError, MissingDependencyError

BLOCK_BYTES = 2**20
"""Bytes asked for at a time."""
_SEEK_BYTES = 2**16
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


class Line(NamedTuple):
    """One line of a stream."""

    number: int
    """From 1."""
    data: bytes | None
    """With its line end; None if the line is longer than the limit."""
    size: int
    """Bytes, line end included."""

    @property
    def is_torn(self) -> bool:
        """Whether the stream ended before the line did."""
        return self.data is not None and not self.data.endswith(b"\n")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were already taken off, with them back in front."""

    def __init__(self, head: bytes, rest: _Readable) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        if self._head:
            data, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        else:
            data = self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._rest.close()
        super().close()


class TextStream:
    """The decompressed bytes of a text file, opened and looked at.

    Attributes:
        body: the bytes, without a UTF-8 byte order mark at the start (it marks the encoding and
            is no part of the text).
        head: the first bytes of `body`, at most `BLOCK_BYTES`; empty for an empty file.
        had_bom: whether a UTF-8 byte order mark was removed.
        foreign: "UTF-16" or "UTF-32" if the file is in one of these, by its mark or, for
            UTF-16 without one, by the zero in every other byte.
    """

    def __init__(self, raw: _Readable) -> None:
        head = b""
        while len(head) < BLOCK_BYTES and (block := raw.read(BLOCK_BYTES - len(head))):
            head += block
        self.had_bom = head.startswith(_BOM)
        self.head = head[len(_BOM) :] if self.had_bom else head
        self.foreign = _foreign_encoding(head)
        self.body: BinaryIO = io.BufferedReader(_Rejoined(self.head, raw), BLOCK_BYTES)

    def blocks(self) -> Iterator[bytes]:
        """The rest of the body in blocks."""
        while block := self.body.read(BLOCK_BYTES):
            yield block

    def lines(self, limit: int) -> Iterator[Line]:
        r"""The rest of the body in lines, ended by `\n` alone; a longer one than `limit` bytes is
        passed over and given without its data."""
        readline = self.body.readline
        number = 0
        while data := readline(limit + 1):
            number += 1
            if len(data) <= limit or data.endswith(b"\n"):
                yield Line(number, data, len(data))
                continue
            size = len(data)
            while data and not data.endswith(b"\n"):
                data = readline(BLOCK_BYTES)
                size += len(data)
            yield Line(number, None, size)


@contextmanager
def open_text(file: InputFile, window: tuple[int, int] | None = None) -> Iterator[TextStream]:
    """Open a text file, or the bytes from `window[0]` to before `window[1]` of a plain one.

    Errors while the stream is read in the body are translated too.

    Raises:
        DataError: the file is missing, cannot be read, is cut off or is not what its suffix says.
        MissingDependencyError: this build of pyarrow has no zstd.
    """
    name, compression = file.name, file.compression
    raw: _Readable | None = None
    try:
        raw = _open_raw(file)
        yield TextStream(raw if window is None else _Window(raw, *window))
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(_damaged(name, compression, error)) from error
    except OSError as error:
        if compression and error.errno is None:  # Arrow's codec has no error of its own
            raise DataError(_damaged(name, compression, error)) from error
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
    finally:
        if raw is not None:
            raw.close()


def line_start(file: InputFile, offset: int) -> int:
    """Where the first line begins that starts at or after byte `offset` of a plain file.

    Raises:
        DataError: it cannot be read.
    """
    if offset <= 0:
        return 0
    try:
        with file.open(least=_SEEK_BYTES) as raw:
            at = raw.seek(offset - 1)  # a line starts right here if the byte before ends one
            while block := raw.read(_SEEK_BYTES):
                found = block.find(b"\n")
                if found >= 0:
                    return at + found + 1
                at += len(block)
            return at
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read ({error.strerror or error})") from error


class _Window:
    """A part of a file's bytes."""

    def __init__(self, raw: BinaryIO, start: int, stop: int) -> None:
        self._raw = raw
        self._left = stop - start
        raw.seek(start)

    def read(self, size: int, /) -> bytes:
        data = self._raw.read(min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._raw.close()


def _open_raw(file: InputFile) -> BinaryIO:
    if file.compression == "gz":
        place = {"fileobj": file.open()} if file.is_remote else {"filename": file.place}
        return cast(BinaryIO, gzip.GzipFile(mode="rb", **place))
    if file.compression == "zst":
        import pyarrow as pa

        if not pa.Codec.is_available("zstd"):
            raise MissingDependencyError(
                f"{file.name}: this pyarrow was built without zstd; install pyarrow from PyPI, or "
                f"decompress the file with `unzstd`"
            )
        # opened by Python, for its error for a missing file: Arrow's names no errno
        stream: BinaryIO = pa.CompressedInputStream(pa.PythonFile(file.open(), "r"), "zstd")
        return stream
    return file.open()


def _damaged(name: str, compression: str, error: BaseException) -> str:
    tool = {"gz": "gzip -t", "zst": "zstd -t"}.get(compression, "cat")
    return (
        f"{name}: cannot be decompressed to its end ({error}); the file is cut off, damaged or no "
        f".{compression} file: check it with `{tool}`, and copy or download it again"
    )


def _foreign_encoding(head: bytes) -> str | None:
    for mark, encoding in _OTHER_BOMS.items():
        if head.startswith(mark):
            return encoding
    sample = head[:4096]
    half = len(sample) // 2
    if half >= 8:
        even, odd = sample[0::2].count(0), sample[1::2].count(0)
        if max(even, odd) > 0.7 * half and min(even, odd) < 0.1 * half:
            return "UTF-16"
    return None


def split_pieces(blocks: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    r"""Cut UTF-8 bytes into pieces of at most `limit` bytes, after the last `\n` that fits, or,
    where a line is longer than that, between two characters.

    Yields:
        (number, piece): number is 0 if the whole fits into one piece, else from 1. The pieces
        joined are the blocks joined. Nothing is yielded for no bytes.
    """
    buffer = bytearray()
    number = 0
    for block in blocks:
        buffer += block
        while len(buffer) > limit:
            cut = _cut_point(buffer, limit)
            number += 1
            yield number, bytes(buffer[:cut])
            del buffer[:cut]
    if buffer:
        yield (number + 1 if number else 0), bytes(buffer)


def _cut_point(buffer: bytearray, limit: int) -> int:
    newline = buffer.rfind(b"\n", 0, limit)
    if newline >= 0:
        return newline + 1
    for cut in range(limit, limit - 4, -1):
        if buffer[cut] & 0xC0 != 0x80:  # no continuation byte, so a character starts here
            return cut
    return limit  # not UTF-8; whoever decodes the piece says so
