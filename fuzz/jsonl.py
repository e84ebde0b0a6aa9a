"""JSON lines, strict and skipping; the books must balance whatever comes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fuzz.target import Target, folder
from llm_trainer.config import SourceConfig
from llm_trainer.data.intake import Intake
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.local_files import open_local
from llm_trainer.exceptions import LLMTrainerError

_SEEDS = [
    b'{"text": "good"}\n', b'{"text": "torn', b'\xef\xbb\xbf{"text": "mark"}\r\n\n', b"\x00\n",
    b'{"text": "\\ud800"}\n{"text": null}\n', b'["text"]\n{"txt": 1}\n', b"[" * 3000 + b"\n",
    b'{"text": "a"}{"text": "b"}\n', "{}\n".encode("utf-16"), b'{"n": 1e999, "text": "\xff"}\n',
    b'{"text": ' + b"9" * 5000 + b"}\n", b'{"text": "' + "é".encode() * 700 + b'"}\n',
]  # fmt: skip


@cache
def _path() -> Path:
    return folder() / "data.jsonl"


def seeds() -> list[bytes]:
    """One of each kind of line."""
    return _SEEDS


def run(data: bytes) -> None:
    """Read the file twice; all that went in came out or was dropped with a reason."""
    _path().write_bytes(data)
    for policy in ("error", "skip"):
        config = SourceConfig(
            train_file=str(_path()), on_bad_line=policy, max_bad_lines=50, max_document_bytes=1024
        )
        ledger = Ledger("fuzz")
        try:
            for document in open_local(config).train(Intake(config, ledger)):
                ledger.give_out(1, len(document.text.encode()))
                assert document.text
                assert not document.text.isspace()
        except LLMTrainerError as error:
            if "data.jsonl" not in str(error):
                raise RuntimeError("a message that names no file") from error
        else:
            ledger.check()


TARGET = Target("JSON lines", seeds, run)
