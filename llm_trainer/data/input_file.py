"""A file to read documents from: on this machine, or at an address such as s3://bucket/a.jsonl.

Formats by suffix: txt, md and py are one document a file; jsonl, csv and parquet one a record; all
but parquet (which compresses itself) may end in `.gz` or `.zst` too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlsplit

FORMATS = ("txt", "md", "py", "jsonl", "csv", "parquet")
COMPRESSIONS = ("gz", "zst")
KNOWN = ", ".join(f".{name}" for name in FORMATS) + "; each but .parquet with .gz or .zst too"


@dataclass(frozen=True)
class InputFile:
    """A file that was found and not yet read."""

    place: str
    """Absolute path, or address."""
    name: str
    """What its documents are named after: the path as given, never an absolute one."""
    format: str
    """txt, md, py, jsonl, csv or parquet."""
    compression: str
    """"", gz or zst."""
    size: int
    """Bytes, as it lies there."""
    tag: str | None
    """What changes with the content: the store's ETag, or the time of the last change."""

    @property
    def is_remote(self) -> bool:
        """Whether `place` is an address."""
        return is_address(self.place)

    def open(self, least: int = 0) -> BinaryIO:
        """The bytes of the file, seekable; `least` are fetched at a time from an address.

        Raises:
            OSError: a file of this machine cannot be opened.
            DataError: an address cannot be read, or has other content than when it was found.
        """
        if self.is_remote:
            from llm_trainer.data.remote_file import open_remote

            return open_remote(self.place, self.size, self.tag, least)
        return open(self.place, "rb", buffering=0)


def is_address(entry: str) -> bool:
    """Whether an entry of `train_file` is an address rather than a path."""
    return "://" in entry


def format_of(name: str) -> tuple[str, str] | None:
    """Format and compression by a path's or address's suffix; None if it is no known one."""
    path = urlsplit(name).path if is_address(name) else name
    parts = path.rpartition("/")[2].lower().split(".")[1:]
    compression = parts.pop() if parts and parts[-1] in COMPRESSIONS else ""
    kind = parts[-1] if parts else ""
    if kind not in FORMATS or (kind == "parquet" and compression):
        return None
    return kind, compression
