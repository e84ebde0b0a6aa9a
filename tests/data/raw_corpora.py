"""Raw corpora for tests of packing, written without a source: any text goes, empty ones too."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trainer.data import raw_file
from llm_trainer.data.raw import RawCorpus
from llm_trainer.manifests import seal_manifest, write_manifest
from tests.data.sources import csv_bytes, jsonl

WORDS = [
    "return", "self", "value", "for", "in", "range", "(", ")", ":", "\n", "    ", "é", "日本",
    "🙂", "<|endoftext|>", "<|pad|>", "0x1F", "\t", "\r\n", "# a comment that is longer",
]  # fmt: skip


def random_text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=num_words))


def random_texts(seed: int, count: int, longest: int = 200) -> list[str]:
    """Texts of 1 to `longest` words."""
    rng = random.Random(seed)
    return [random_text(rng, rng.randint(1, longest)) for _ in range(count)]


def write_raw(
    path: Path,
    train: Iterable[str],
    validation: Sequence[str] = ("one", "a second text to validate on"),
    *,
    group_bytes: int = 4096,
    file_bytes: int = 2**16,
) -> RawCorpus:
    """A verified corpus in several files and row groups; document k of train is `train:k`."""
    path.mkdir(parents=True)
    splits = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_file, "GROUP_BYTES", group_bytes)
        patch.setattr(raw_file, "FILE_BYTES", file_bytes)
        for split, texts in (("train", train), ("validation", validation)):
            writer = raw_file.RawWriter(path, split)
            for number, text in enumerate(texts):
                writer.add(text.encode(), f"{split}:{number}")
            writer.close()
            splits[split] = {
                "documents": writer.num_documents,
                "bytes": writer.num_bytes,
                "files": writer.names,
            }
    seal_manifest(path, write_manifest(path, "raw", splits=splits, ledger={}, origin={}))
    return RawCorpus(path)


def write_sources(folder: Path) -> None:
    """A file of each kind; with units of 20,000 bytes, several are of more than one."""
    texts = random_texts(1, 900, 60)
    lines = jsonl([*texts[:300], "", "copy", "copy", "long\n" * 3000])
    (folder / "a.jsonl").write_bytes(lines.replace(b"\n", b"\n\n", 40))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl([*texts[300:450], "copy"])))
    (folder / "c.csv").write_bytes(csv_bytes(texts[450:600]))
    table = pa.table({"text": texts[600:800]})
    pq.write_table(table, folder / "d.parquet", row_group_size=30)
    for number, text in enumerate(texts[800:]):
        (folder / f"e{number:03d}.txt").write_text(text, newline="")
