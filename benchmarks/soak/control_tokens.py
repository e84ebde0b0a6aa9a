"""B5: documents full of the spellings of control tokens."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterable
from pathlib import Path

from benchmarks.soak.row import Report, Row
from llm_trainer.digests import sha256_bytes
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.tokenizer.encoder import FastEncoder

DOCUMENTS = 100_000
_BATCH = 1000
_PIECES = [
    "<|endoftext|>", "<|pad|>", "<|", "|>", "endoftext", "pad", "<", "|", ">", "</s>", "[PAD]",
    "<|im_end|>", "<|endoftext", "\u200b", " ", "\n", "a", "\ufeff", "<|ENDOFTEXT|>", "\x00",
]  # fmt: skip


def run(folder: Path, scale: float) -> Report:
    """Both encoders, fresh and saved, here and in a worker: no control id from any text."""
    chance = random.Random(0)
    documents = [
        "".join(chance.choices(_PIECES, k=chance.randint(1, 20)))
        for _ in range(int(DOCUMENTS * scale))
    ]
    spelled = sum("<|endoftext|>" in text or "<|pad|>" in text for text in documents)
    tokenizer = BPETokenizer()
    # learned from the spellings, so that as many merges as possible lie within them
    tokenizer.train(documents[:2000], 500)
    tokenizer.save_pretrained(folder / "tokenizer")
    loaded = BPETokenizer.from_pretrained(folder / "tokenizer")
    loaded.save_pretrained(folder / "again")
    report = Report()
    found: dict[str, tuple[int, str]] = {}
    for name, one in {"fresh": tokenizer, "loaded": loaded}.items():
        for engine in ("tiktoken", "tokenizers"):
            fast = FastEncoder(one, engine=engine)
            report.require(fast.engine == engine, f"{engine} was not used")
            found[f"{name}_{engine}"] = _encode(fast, documents)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found["worker"] = pool.apply(_in_worker, (folder / "again", documents))
    wrong = sum(
        tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) != text
        for text in documents[:5000]
    )
    report.counters = {
        "documents": len(documents), "with_a_whole_spelling": spelled, "ways_of_encoding":
        len(found), "control_ids": sum(count for count, _ in found.values()),
        "ways_that_differ": len({digest for _, digest in found.values()}) - 1, "texts_changed":
        wrong,
    }  # fmt: skip
    report.require(report.counters["control_ids"] == 0, "a text was encoded to a control id")
    report.require(report.counters["ways_that_differ"] == 0, "two ways gave other ids")
    report.require(wrong == 0, "a text was not the same after decoding")
    return report


def _encode(fast: FastEncoder, documents: list[str]) -> tuple[int, str]:
    """Control ids (0 and 1) in all documents, and a digest of all ids."""
    count, digest = 0, ""
    for batch in _batches(documents):
        for ids in fast.encode_batch(batch):
            count += int((ids < 2).sum())
            digest = sha256_bytes(digest.encode() + ids.tobytes())
    return count, digest


def _batches(documents: list[str]) -> Iterable[list[str]]:
    return (documents[k : k + _BATCH] for k in range(0, len(documents), _BATCH))


def _in_worker(directory: Path, documents: list[str]) -> tuple[int, str]:
    return _encode(FastEncoder(BPETokenizer.from_pretrained(directory)), documents)


ROW = Row("B5", "documents with the spellings of control tokens", run)
