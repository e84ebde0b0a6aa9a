"""Corpora in all formats, and how the tests read them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from llm_trainer.config import SourceConfig
from llm_trainer.data.documents import Document
from llm_trainer.data.intake import Intake
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.local_files import open_local

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
GOOD = b'{"text": "good"}\n'


def read(
    path: Path | str | list[str], ledger: Ledger | None = None, **settings: object
) -> list[Document]:
    config = SourceConfig(train_file=path if isinstance(path, list) else str(path), **settings)
    books = ledger or Ledger("test")
    documents = list(open_local(config).train(Intake(config, books)))
    for document in documents:
        books.give_out(1, len(document.text.encode()))
    books.check()
    return documents


def texts(path: Path | str | list[str], **settings: object) -> list[str]:
    return [document.text for document in read(path, **settings)]


def jsonl(values: list[str]) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": value}).encode() + b"\n" for value in values)


def csv_bytes(values: list[str]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["id", "text"])
    writer.writerows([str(number), value] for number, value in enumerate(values))
    return stream.getvalue().encode()


def parquet(values: list[str | None], kind: pa.DataType | None = None) -> bytes:
    stream = io.BytesIO()
    pq.write_table(
        pa.table({"id": list(range(len(values))), "text": pa.array(values, kind or pa.string())}),
        stream,
    )
    return stream.getvalue()
