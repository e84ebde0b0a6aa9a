"""Documents, lines, row groups and archives of any size are read in bounded memory."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.data.ledger import Ledger
from llm_trainer.data.streams import split_pieces
from tests.data.sources import GOOD, csv_bytes, jsonl, parquet, read
from tests.test_layers import ROOT


@given(
    st.lists(st.text("aé🎉\n", max_size=40), max_size=6).map(
        lambda parts: [p.encode() for p in parts]
    ),
    st.integers(4, 50),
)
def test_pieces_are_the_whole_bounded_and_end_at_lines(blocks: list[bytes], limit: int) -> None:
    whole = b"".join(blocks)
    numbered = list(split_pieces(blocks, limit))
    pieces = [piece for _, piece in numbered]
    assert b"".join(pieces) == whole
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert [number for number, _ in numbered] == (
        list(range(1, len(pieces) + 1)) if len(whole) > limit else [0] * len(pieces)
    )
    for piece in pieces[:-1]:
        piece.decode()  # never within a character
        # at a line end, unless the piece is within a line and as full as whole characters allow
        assert piece.endswith(b"\n") or (b"\n" not in piece and len(piece) > limit - 4)


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl", "long.csv", "long.parquet"])
def test_a_long_document_becomes_several(tmp_path: Path, name: str) -> None:
    whole = "".join(f"line {n} é\n" for n in range(1000))
    make = {
        "txt": str.encode,
        "jsonl": lambda t: jsonl([t]),
        "csv": lambda t: csv_bytes([t]),
        "parquet": lambda t: parquet([t]),
    }
    (tmp_path / name).write_bytes(make[name.split(".")[1]](whole))
    ledger = Ledger("test")
    documents = read(tmp_path / name, ledger, max_document_bytes=1024)
    assert "".join(document.text for document in documents) == whole
    assert all(document.text.endswith("\n") for document in documents)
    assert [d.source.rpartition("#")[2] for d in documents] == [
        str(n + 1) for n in range(len(documents))
    ]
    assert (ledger.into.documents, ledger.added["split"].documents) == (1, len(documents) - 1)


# Not ru_maxrss: on Linux a process inherits that of the one which started it.
MEASURE = """
import re, sys
from pathlib import Path
from llm_trainer.config import SourceConfig
from llm_trainer.data.intake import Intake
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.local_files import open_local
import pyarrow.parquet
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
config = SourceConfig(train_file=sys.argv[1], on_bad_line="skip", max_document_bytes=2**20)
ledger = Ledger("test")
size = sum(len(document.text) for document in open_local(config).train(Intake(config, ledger)))
print(size, (peak() - before) // 1024, sum(c.documents for c in ledger.dropped.values()))
"""


def measure(path: Path) -> list[int]:
    """Characters read, MiB of memory that it took, documents dropped."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def repeat(line: bytes, size: int) -> Iterator[bytes]:
    block = line * (2**20 // len(line))
    for _ in range(size // len(block)):
        yield block


def test_a_document_of_hundreds_of_megabytes_takes_little_memory(tmp_path: Path) -> None:
    with open(tmp_path / "big.txt", "wb") as file:
        file.writelines(repeat(b"some words in a line\n", 300 * 2**20))
    size, memory, dropped = measure(tmp_path / "big.txt")
    assert size == (tmp_path / "big.txt").stat().st_size
    assert dropped == 0
    assert memory < 40


def test_a_long_line_is_read_and_a_boundless_one_refused(tmp_path: Path) -> None:
    with open(tmp_path / "long.jsonl", "wb") as file:
        file.write(b'{"text": "' + b"x" * (30 * 2**20) + b'"}\n')
        file.write(b'{"text": "')
        file.writelines(repeat(b"x", 300 * 2**20))
        file.write(b'"}\n' + GOOD)
    size, memory, dropped = measure(tmp_path / "long.jsonl")
    assert (size, dropped) == (30 * 2**20 + 4, 1)
    assert memory < 300  # a few times the limit of a line, 64 MiB


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_decompression_bomb_takes_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb.txt{suffix}"
    with (gzip if suffix == ".gz" else zstandard).open(path, "wb") as file:
        for block in repeat(b"bomb\n", 300 * 2**20):
            file.write(block)
    assert path.stat().st_size < 2**20
    size, memory, _ = measure(path)
    assert size > 299 * 2**20
    assert memory < 40


def test_one_huge_row_group_is_not_loaded_at_once(tmp_path: Path) -> None:
    path = tmp_path / "big.parquet"
    table = pa.table(
        {"text": [f"{n} " + "word " * 2000 for n in range(30_000)], "id": range(30_000)}
    )
    pq.write_table(table, path, row_group_size=30_000, use_dictionary=False)
    del table
    size, memory, _ = measure(path)
    assert size > 290 * 10**6
    assert memory < 80
