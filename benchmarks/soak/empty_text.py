"""B3: documents and corpora without text."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak.row import Report, Row
from llm_trainer.config import SourceConfig
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.raw import build_raw
from llm_trainer.exceptions import DataError, TokenizerError
from llm_trainer.tokenizer.bpe import BPETokenizer
from tests.data.sources import csv_bytes, jsonl, parquet, read

_BLANK = ["", " ", "\n\r\n\t", "\u3000\xa0", "\u2028"]


def run(folder: Path, scale: float) -> Report:
    """Blank documents are left out and counted; a corpus of nothing else is an error."""
    report = Report()
    repeats = max(1, int(1000 * scale))
    dropped = kept = refused = 0
    for name, content in {
        "a.jsonl": jsonl([*_BLANK * repeats, "text"]),
        "a.csv": csv_bytes([*_BLANK * repeats, "text"]),
        "a.parquet": parquet([*_BLANK * repeats, "text"]),
    }.items():
        (folder / name).write_bytes(content)
        ledger = Ledger("soak")
        kept += len(read(folder / name, ledger))
        dropped += ledger.dropped["empty"].documents
    for name, content in {
        "b.jsonl": jsonl(_BLANK), "b.txt": b" \n", "b.csv": csv_bytes([""]), "b.md": b"",
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
        try:
            build_raw(SourceConfig(train_file=str(folder / name)), folder / "raw", progress=False)
        except DataError:
            refused += 1
    for texts in ([], [""], ["", ""]):
        try:
            BPETokenizer().train(texts, 300)
        except TokenizerError:
            refused += 1
    expected = 3 * len(_BLANK) * repeats
    report.counters = {
        "blank_documents": expected, "counted": dropped, "kept": kept, "corpora_without_text": 7,
        "refused": refused,
    }  # fmt: skip
    report.require(dropped == expected, "a blank document was not counted")
    report.require(kept == 3, "a document was lost, or a blank one kept")
    report.require(refused == 7, "a corpus without text was accepted")
    report.require(not (folder / "raw").exists(), "a corpus without text was written")
    return report


ROW = Row("B3", "empty documents, white space, empty corpora", run)
