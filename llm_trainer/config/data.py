"""Where text comes from, how it becomes tokens, and how tokens become rows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeVar

from llm_trainer.config.base import Config, at_least, within
from llm_trainer.config.secrets import strip_secrets

STDLIB_DATASET = "python-stdlib"
"""Name of the default corpus: the source files of the running Python's standard library."""
MIN_VOCAB_SIZE = 257
"""256 bytes and the end token."""

Files = str | list[str] | None
_C = TypeVar("_C", bound=Config)


@dataclass
class SourceConfig(Config):
    """Which documents, and how they are split into train and validation.

    If `train_file` is given it is read and `dataset_name` is not.
    """

    section: ClassVar[str] = "data"

    dataset_name: str = "wikitext"
    """`python-stdlib`, or a Hugging Face data set such as `roneneldan/TinyStories`."""
    dataset_config: str | None = "wikitext-103-raw-v1"
    """Configuration (subset) of a Hugging Face data set; None for its default."""
    dataset_split: str = "train"
    """Split to train on."""
    validation_split: str | None = "validation"
    """Split to validate on; None, or a split that the data set lacks, cuts validation_fraction of
    the training documents instead."""
    text_column: str = "text"
    """Column (csv, parquet, hub) or key (jsonl) that holds the text."""
    train_file: Files = None
    """File, directory, glob, address (s3://bucket/*.jsonl.zst, gs://, https://), or list of them:
    txt, md, py, jsonl, csv, parquet, each plain, .gz or .zst."""
    validation_file: Files = None
    """The same for validation; None cuts validation_fraction of the training documents."""
    revision: str | None = None
    """Commit, tag or branch of a Hugging Face data set; pin a commit for reproducible runs."""
    streaming: bool = False
    """Read a Hugging Face data set as a stream instead of downloading all of it first."""
    max_documents: int | None = None
    """Stop after this many training documents, in source order."""
    validation_fraction: float = 0.03
    """Share of documents, chosen by a hash of their identity, that validate when the source has
    no validation set of its own."""
    on_bad_line: Literal["error", "skip"] = "error"
    """A malformed JSONL or CSV record stops the stage, or is skipped and entered in the ledger."""
    max_bad_lines: int = 100
    """With skip: more bad records than this are an error after all."""
    max_document_bytes: int = 16 * 2**20
    """Longer documents are split, at a line end where there is one, to bound memory."""

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = at_least("max_documents", self.max_documents, 1)
        found += at_least("max_bad_lines", self.max_bad_lines, 0)
        found += within("max_document_bytes", self.max_document_bytes, 1024, 2**30)
        if not 0.0 < self.validation_fraction < 1.0:
            found.append(
                f"validation_fraction ({self.validation_fraction}) must be between 0 and 1"
            )
        for name in ("dataset_name", "text_column", "dataset_split"):
            if not getattr(self, name):
                found.append(f"{name} is empty; name one")
        if self.validation_file is not None and self.train_file is None:
            found.append("validation_file needs train_file beside it")
        for name in ("train_file", "validation_file"):
            if getattr(self, name) in ("", []):
                found.append(f"{name} is empty; name files or leave it out (null)")
            value = getattr(self, name)
            for entry in [value] if isinstance(value, str) else value or []:
                if "://" in entry and strip_secrets(entry) != entry:
                    found.append(
                        f"{name} ({strip_secrets(entry)}) holds a password, token or signature, "
                        f"which would end up in files and logs; leave it out and use the "
                        f"environment (AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                        f"GOOGLE_APPLICATION_CREDENTIALS)"
                    )
        return found


@dataclass
class TokenizerConfig(Config):
    """How the byte-level BPE tokenizer is trained."""

    section: ClassVar[str] = "tokenizer"

    vocab_size: int = 50000
    """Tokens in the vocabulary, special tokens included; at least 257."""
    min_frequency: int = 2
    """A pair of tokens must occur this often to be merged."""
    pattern: Literal["gpt2", "gpt4"] = "gpt4"
    """Regular expression that cuts text into words before merging: GPT-2's, or GPT-4's, which
    keeps runs of white space and numbers of up to three digits together."""
    max_train_bytes: int | None = 200 * 2**20
    """Train on at most this many bytes of text, spread evenly over the corpus; None means all."""

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = at_least("min_frequency", self.min_frequency, 1)
        found += at_least("max_train_bytes", self.max_train_bytes, 1024)
        if self.vocab_size < MIN_VOCAB_SIZE:
            found.append(
                f"vocab_size ({self.vocab_size}) must be at least {MIN_VOCAB_SIZE}: 256 bytes and "
                f"the end token; try 4096 for a small corpus or 32768 for a large one"
            )
        found += within("vocab_size", self.vocab_size, 1, 2**31 - 1)
        return found


@dataclass
class PackingConfig(Config):
    """How documents become rows of equal length."""

    section: ClassVar[str] = "packing"

    max_length: int = 1024
    """Tokens per row; at most the model's max_seq_len."""
    min_length: int = 10
    """Documents with fewer tokens are left out, and counted in the ledger."""
    strategy: Literal["concat", "best_fit", "single"] = "concat"
    """concat joins all documents with the end token between them and cuts the stream; best_fit
    places whole documents into rows with the least padding (Ding et al. 2024); single gives each
    document rows of its own, padded."""
    shard_bytes: int = 64 * 2**20
    """Largest size of a shard file, in bytes; at least one row fits."""

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = at_least("max_length", self.max_length, 2)
        found += at_least("min_length", self.min_length, 0)
        found += at_least("shard_bytes", self.shard_bytes, 4096)
        return found


@dataclass
class DataConfig(SourceConfig):
    """The library's data configuration: source, tokenizer size and packing in one section.

    `source()`, `tokenizer()` and `packing()` give the parts that the pipeline keeps apart.
    """

    section: ClassVar[str] = "data"

    max_length: int = 1024
    """Tokens per row; at most the model's max_seq_len."""
    min_length: int = 10
    """Documents with fewer tokens are left out, and counted."""
    vocab_size: int = 50000
    """Tokens in the vocabulary, special tokens included; at least 257."""
    pack_sequences: bool = True
    """Join documents into full rows; off gives each document (or max_length piece of one) a row of
    its own, padded."""
    preprocessing_num_workers: int = 4
    """Processes that tokenize."""
    dataloader_num_workers: int = 4
    """Worker processes of the torch DataLoader, where one is used."""
    packing_strategy: Literal["concat", "best_fit"] = "concat"
    """See PackingConfig.strategy."""

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = super().problems()
        found += self.tokenizer_problems() + self.packing_problems()
        found += at_least("preprocessing_num_workers", self.preprocessing_num_workers, 1)
        found += at_least("dataloader_num_workers", self.dataloader_num_workers, 0)
        return found

    def tokenizer_problems(self) -> list[str]:
        """Problems of the fields that the tokenizer shares."""
        return _unchecked(TokenizerConfig, vocab_size=self.vocab_size).problems()

    def packing_problems(self) -> list[str]:
        """Problems of the fields that packing shares."""
        return _unchecked(
            PackingConfig, max_length=self.max_length, min_length=self.min_length
        ).problems()

    def source(self) -> SourceConfig:
        """Where the documents come from."""
        return SourceConfig(**{f.name: getattr(self, f.name) for f in fields(SourceConfig)})

    def tokenizer(self) -> TokenizerConfig:
        """How the tokenizer is trained."""
        return TokenizerConfig(vocab_size=self.vocab_size)

    def packing(self) -> PackingConfig:
        """How documents become rows."""
        return PackingConfig(
            max_length=self.max_length, min_length=self.min_length,
            strategy=self.packing_strategy if self.pack_sequences else "single",
        )  # fmt: skip


def _unchecked(cls: type[_C], **values: object) -> _C:
    config = cls.__new__(cls)
    for item in fields(cls):  # type: ignore[arg-type]
        setattr(config, item.name, values.get(item.name, item.default))
    return config
