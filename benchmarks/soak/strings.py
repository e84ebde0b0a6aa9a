"""B2: random strings of surrogates, NUL, marks, line ends, controls and astral characters."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.soak.row import Report, Row
from llm_trainer.config import SourceConfig
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.exceptions import DataError
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.tokenizer.encoder import FastEncoder
from tests.data.sources import jsonl, parquet, read

STRINGS = 10_000
_PIECES = [
    "a", "word ", "\x00", "\ufeff", "\r\n", "\n", "\r", "\t", "\x1b", "\x85", "\u2028", "\u200d",
    "\U0001f389", "\U0010ffff", "\ufffe", "e\u0301", "\u3000", '"', "\\", "<|endoftext|>", "\x7f",
]  # fmt: skip
_HALVES = ["\ud800", "\udbff", "\udc00", "\udfff"]


def run(folder: Path, scale: float) -> Report:
    """Halves of surrogate pairs are named; all else comes back exactly, through every step."""
    chance = random.Random(0)
    good: list[str] = []
    bad: list[str] = []
    while len(good) + len(bad) < STRINGS * scale:
        pieces = chance.choices(_PIECES, k=chance.randint(1, 30))
        if chance.random() < 0.1:
            pieces.insert(chance.randint(0, len(pieces)), chance.choice(_HALVES))
        # as JSON has it: two halves side by side are a character
        text: str = json.loads(json.dumps("".join(pieces)))
        halves = any(0xD800 <= ord(char) < 0xE000 for char in text)
        if not text.isspace():
            (bad if halves else good).append(text)
    report = Report()
    path = folder / "one.jsonl"
    named = 0
    for text in bad:
        path.write_bytes(jsonl([text]))
        try:
            read(path)
        except DataError as error:
            named += "one.jsonl:1: lone surrogate U+D" in str(error)
    both = [*good, *bad]
    chance.shuffle(both)
    path.write_bytes(jsonl(both))
    ledger = Ledger("soak")
    kept = [d.text for d in read(path, ledger, on_bad_line="skip", max_bad_lines=len(bad))]
    exact = kept == [text for text in both if text in set(good)]
    (folder / "good.parquet").write_bytes(parquet(list(good)))
    config = SourceConfig(train_file=str(folder / "good.parquet"), validation_fraction=0.2)
    build_raw(config, folder / "raw", progress=False)
    corpus = RawCorpus(folder / "raw")
    sides = {split: corpus.iter_documents(split) for split in ("train", "validation")}
    stored = [document.text for side in sides.values() for document in side]
    tokenizer = BPETokenizer()
    tokenizer.train(good, 400)
    fast = FastEncoder(tokenizer)
    decoded = sum(tokenizer.decode(tokenizer.encode(text)) == text for text in good)
    quick = sum(tokenizer.decode(ids) == text for ids, text in _pairs(fast, good))
    report.counters = {
        "strings": len(both), "with_half_a_pair": len(bad), "named": named, "counted":
        ledger.dropped["bad_surrogate"].documents, "exact_from_a_file": len(kept),
        "exact_from_data_raw": len(stored), "exact_through_tokens": min(decoded, quick),
    }  # fmt: skip
    report.require(named == len(bad), "a lone surrogate was not named")
    report.require(ledger.dropped["bad_surrogate"].documents == len(bad), "one was not counted")
    report.require(exact, "a string came back otherwise from JSON lines")
    report.require(sorted(stored) == sorted(good), "a string came back otherwise from data/raw")
    report.require(decoded == quick == len(good), "a string came back otherwise through tokens")
    return report


def _pairs(fast: FastEncoder, texts: list[str]) -> list[tuple[list[int], str]]:
    return [(i.tolist(), text) for i, text in zip(fast.encode_batch(texts), texts, strict=True)]


ROW = Row("B2", "lone surrogates, NUL, byte order marks, CRLF, astral characters, controls", run)
