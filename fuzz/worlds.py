"""Small good artifacts that targets damage: made once a process, by the library itself."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from fuzz.target import folder
from llm_trainer.config import PackingConfig, SourceConfig
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.tokenizer.bpe import BPETokenizer

TEXTS = [f"document {n} says {n * n} and naïve things\n" * (1 + n % 5) for n in range(40)]


@cache
def raw_folder() -> Path:
    """data/raw of forty short documents."""
    place = folder()
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (place / "texts.jsonl").write_text("\n".join(lines))
    source = SourceConfig(train_file=str(place / "texts.jsonl"), validation_fraction=0.3)
    build_raw(source, place / "raw", progress=False)
    return place / "raw"


@cache
def tokenizer() -> BPETokenizer:
    """280 tokens."""
    made = BPETokenizer()
    made.train(TEXTS, 280)
    return made


@cache
def tokenizer_folder() -> Path:
    """The same as a directory."""
    place = folder() / "tokenizer"
    tokenizer().save_pretrained(place)
    return place


@cache
def packed_folder() -> Path:
    """data/packed of the same documents."""
    place = folder() / "packed"
    packing = PackingConfig(max_length=16, min_length=2)
    pack_corpus(RawCorpus(raw_folder()), tokenizer(), packing, place, num_workers=1, progress=False)
    return place


def noise(seed: int, size: int) -> bytes:
    """The same bytes for the same seed."""
    return np.random.default_rng(seed).bytes(size)
