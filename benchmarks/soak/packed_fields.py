"""B7: packed rows whose manifest is sealed and whose digests are right, but which make no sense."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.soak.row import Report, Row
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import IntegrityError
from tests.data.packed_rows import write_packed

_CHANGES: list[dict[str, Any]] = [
    {"vocab_size": 400}, {"vocab_size": 499}, {"vocab_size": 70_000}, {"vocab_size": 0},
    {"dtype": "uint32"}, {"dtype": "int16"}, {"dtype": "float16"}, {"dtype": "O"},
    {"row_length": 8}, {"row_length": 17}, {"row_length": 1}, {"row_length": "16"},
    {"row_length": 2**40}, {"end_id": 500}, {"pad_id": -1}, {"splits": {}}, {"files": {}},
]  # fmt: skip


def run(folder: Path, scale: float) -> Report:
    """Each is refused when it is opened, before a batch is made, and the good one is not."""
    report = Report()
    named = 0
    write_packed(folder / "good")
    PackedRows(folder / "good", "train")
    for number, change in enumerate(_CHANGES):
        place = folder / str(number)
        if "files" in change:
            shutil.copytree(folder / "good", place)
            (place / "train-00000.arrow").write_bytes(b"")
        else:
            write_packed(place, changed=change)
        try:
            PackedRows(place, "train")
        except IntegrityError as error:
            named += "dvc repro pack_sequences" in str(error)
        else:
            report.require(False, f"{change} was accepted")
    report.counters = {"wrong_directories": len(_CHANGES), "named_at_open": named}
    report.require(named == len(_CHANGES), "a directory was refused without a remedy")
    return report


ROW = Row("B7", "token ids beyond the vocabulary, wrong types, wrong lengths", run)
