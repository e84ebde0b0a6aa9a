"""B4: a document of a gigabyte, a line of 30 MB, a line without end, bombs; in a child process."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

from benchmarks.soak.row import Report, Row
from tests.data.test_document_size import measure, repeat
from tests.data.test_raw import BUILD
from tests.test_layers import ROOT

_GIB = 2**30
_BUILD = BUILD.replace("sys.argv[1]", "sys.argv[1], validation_file=sys.argv[3]")
_MOST_STAGE_MIB = 400
"""Of the whole process; documents are cut at 16 MiB by default, and a few are in memory at once."""


def run(folder: Path, scale: float) -> Report:
    """Peak memory of reading each, and of the whole first stage for the large document."""
    size = int(_GIB * scale)
    report = Report()
    with open(folder / "big.txt", "wb") as file:
        file.writelines(repeat(b"some words in a line, and 12345 more of them\n", size))
    num_bytes = (folder / "big.txt").stat().st_size
    read, memory, dropped = measure(folder / "big.txt")
    report.counters = {"document_bytes": num_bytes, "document_reading_mib": memory}
    report.require(read == num_bytes and dropped == 0, "the large document lost text")
    report.require(memory < 40, f"the large document took {memory} MiB")
    (folder / "small.txt").write_text("some other words\n")
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, folder / "big.txt", folder / "raw", folder / "small.txt"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    report.require(done.returncode == 0, done.stderr[-200:])
    stage = int(done.stdout or 0)
    report.counters["document_download_stage_peak_mib"] = stage
    report.require(stage < _MOST_STAGE_MIB, f"the first stage took {stage} MiB in all")
    (folder / "big.txt").unlink()
    with open(folder / "long.jsonl", "wb") as file:
        file.write(b'{"text": "' + b"x" * (30 * 2**20) + b'"}\n{"text": "')
        file.writelines(repeat(b"x", size))
        file.write(b'"}\n{"text": "good"}\n')
    read, memory, dropped = measure(folder / "long.jsonl")
    report.counters |= {"line_bytes": 30 * 2**20, "boundless_line_bytes": size}
    report.counters |= {"lines_mib": memory, "boundless_lines_refused": dropped}
    report.require((read, dropped) == (30 * 2**20 + 4, 1), "a line was lost, or not refused")
    report.require(memory < 300, f"the long lines took {memory} MiB")
    with gzip.open(folder / "bomb.txt.gz", "wb", compresslevel=9) as packed:
        for block in repeat(b"bomb\n", size):
            packed.write(block)
    ratio = size // (folder / "bomb.txt.gz").stat().st_size
    read, memory, _ = measure(folder / "bomb.txt.gz")
    report.counters |= {"bomb_ratio": ratio, "bomb_mib": memory}
    report.require(memory < 40, f"the bomb took {memory} MiB")
    return report


ROW = Row("B4", "a document of 1 GiB, a line of 30 MiB, a line of 1 GiB, a bomb", run)
