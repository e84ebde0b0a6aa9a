"""What all contestants get: the same text, tokenizer and rows, made once and kept.

The default corpus of the pipeline (Python's standard library), 4,096 tokens, rows of 256. The
pipeline's own recipe has its own rows, of the same text and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_trainer.config.data import PackingConfig, SourceConfig, TokenizerConfig
from llm_trainer.data.prepare import prepare_raw, prepare_rows, prepare_tokenizer
from llm_trainer.data.raw import RawCorpus
from llm_trainer.data.shards import PackedRows
from llm_trainer.tokenizer import BPETokenizer

FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "bench"
VOCAB_SIZE = 4096
ROW_LENGTH = 256


@dataclass(frozen=True)
class Corpus:
    """Text, tokenizer and rows."""

    raw: RawCorpus
    tokenizer: BPETokenizer
    train: PackedRows
    validation: PackedRows


def load_corpus(row_length: int = ROW_LENGTH) -> Corpus:
    """The corpus, from `.cache/bench` or made; rows of `row_length` tokens."""
    source = SourceConfig(dataset_name="python-stdlib", dataset_config=None, validation_split=None)
    raw = prepare_raw(source, FOLDER, progress=False)
    tokenizer = prepare_tokenizer(
        raw, TokenizerConfig(vocab_size=VOCAB_SIZE), FOLDER, progress=False
    )
    train, validation = prepare_rows(
        raw, tokenizer, PackingConfig(max_length=row_length), FOLDER, num_workers=2, progress=False
    )
    return Corpus(raw, tokenizer, train, validation)
