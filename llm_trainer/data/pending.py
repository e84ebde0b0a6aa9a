"""Documents of a file that is not full yet, kept so that a later process need not read them again.

One append-only list for each file, named after the number of the file, of which as much counts as
the last commit says.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llm_trainer.exceptions import IntegrityError

_HEAD = struct.Struct("<QI")


class Pending:
    """The list of documents of `split` that belong to its file number `number`.

    Args:
        directory: where it is written.
        split: names the list.
        number: of the file.
        entry: what `to_dict` gave for it at the last commit; later additions are cut off.
    """

    def __init__(
        self, directory: Path, split: str, number: int, entry: dict[str, Any] | None = None
    ) -> None:
        self._directory = directory
        self._split = split
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self.start(number)
        if entry is not None and entry["bytes"]:
            self._file = open(self._path, "r+b")  # noqa: SIM115 - closed by `close`
            self._hash.update(self._file.read(entry["bytes"]))
            self._length = self._file.tell()
            self._file.truncate()

    def start(self, number: int) -> None:
        """Begin the list of another file; the last one stays until `forget_older`."""
        self.close()
        self._path = self._directory / f"pending-{self._split}-{number:05d}"
        self._length = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes, source: str) -> None:
        """Append a document."""
        if self._file is None:
            self._file = open(self._path, "wb")  # noqa: SIM115
        name = source.encode()
        for part in (_HEAD.pack(len(data), len(name)), data, name):
            self._file.write(part)
            self._hash.update(part)
            self._length += len(part)

    def sync(self) -> None:
        """Make what was added durable."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the list."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def forget_older(self) -> None:
        """Remove the lists of files that are complete."""
        for path in self._directory.glob(f"pending-{self._split}-*"):
            if path != self._path:
                path.unlink()

    def to_dict(self) -> dict[str, Any]:
        """What `read` needs."""
        return {"name": self._path.name, "bytes": self._length, "sha256": self._hash.hexdigest()}

    @staticmethod
    def read(directory: Path, entry: dict[str, Any]) -> Iterator[tuple[bytes, str]]:
        """Text and name of each document of the list that `to_dict` described.

        Raises:
            IntegrityError: it is missing or damaged.
        """
        if entry["bytes"] == 0:
            return iter(())
        try:
            with open(directory / entry["name"], "rb") as file:
                content = file.read(entry["bytes"])
        except OSError as error:
            raise IntegrityError(f"{entry['name']}: cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise IntegrityError(f"{entry['name']}: content differs from its sha256")
        return _documents(content)


def _documents(content: bytes) -> Iterator[tuple[bytes, str]]:
    at = 0
    while at < len(content):
        size, name_size = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        yield content[at : at + size], content[at + size : at + size + name_size].decode()
        at += size + name_size
