"""B1: lines that are no JSON, torn, in another encoding, without text; plain and compressed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak.row import Report, Row
from llm_trainer.data.ledger import Ledger
from llm_trainer.exceptions import DataError
from tests.data.sources import COMPRESS, GOOD, read
from tests.data.test_strictness import BAD_JSONL

_OTHERS = {
    **{kind: '{"text": "some words"}\n'.encode(kind) for kind in ("utf-16", "utf-16-le", "utf-32")},
    "blank lines only": b"\n \n\r\n",
}
"""Whole files that are refused as such."""


def run(folder: Path, scale: float) -> Report:
    """Each bad line between good ones: refused by file and line, or skipped and counted."""
    report = Report()
    named = counted = silent = 0
    cases = {name: (GOOD + b"\n" + line, 3) for name, (line, _, _) in BAD_JSONL.items()}
    cases |= {name: (content, 0) for name, content in _OTHERS.items()}
    for suffix, compress in COMPRESS.items():
        for name, (content, line) in cases.items():
            path = folder / f"data.jsonl{suffix}"
            path.write_bytes(compress(content))
            where = f"{path.name}:{line}: " if line else path.name
            if where in _error(path):
                named += 1
            else:
                report.require(False, f"{name}{suffix}: not named by {where}")
            ledger = Ledger("soak")
            documents = read(path, ledger, on_bad_line="skip")
            bad = sum(n.documents for why, n in ledger.dropped.items() if why.startswith("bad_"))
            if bad == 1 and [document.text for document in documents] == ["good"] * bool(line):
                counted += 1
            else:
                silent += 1
    (folder / "none.jsonl").touch()
    report.require("is empty" in _error(folder / "none.jsonl"), "an empty file is not named")
    expected = len(cases) * len(COMPRESS)
    report.counters = {
        "kinds_of_bad_content": len(cases) + 1, "files": expected + 1, "named_by_file_and_line":
        named + 1, "skipped_and_counted": counted, "lost_without_a_word": silent,
    }  # fmt: skip
    report.require(counted == expected, f"{silent} bad lines were not counted")
    return report


def _error(path: Path) -> str:
    try:
        read(path)
    except DataError as error:
        return str(error)
    return ""


ROW = Row("B1", "JSONL with bad lines, torn, NUL, other encodings, wrong types, deep nesting", run)
