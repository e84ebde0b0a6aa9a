"""From a data configuration to rows of tokens, kept between runs.

How: raw text, tokenizer and packed rows each get a directory that is named after a digest of all
that they are made from: `raw-<digest>`, `tokenizer-<digest>`, `packed-<digest>`. What is there and
whole is used; what is missing or damaged is made, by the same functions as in the pipeline. So a
changed setting never meets data of the old one, and going back to it costs nothing.
Price: every byte that is used is hashed at each start (about 1 GB/s), local files too. Nothing
is ever removed: delete the directory when the disk is needed.

A data set of the hub is known by its configuration alone: pin `revision` if it may change, or
delete the directory to fetch it again.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llm_trainer.config.data import (
    STDLIB_DATASET,
    DataConfig,
    PackingConfig,
    SourceConfig,
    TokenizerConfig,
)
from llm_trainer.data.input_file import InputFile
from llm_trainer.data.local_files import find_files
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.data.shards import PackedRows
from llm_trainer.digests import digest_json, sha256_file
from llm_trainer.exceptions import IntegrityError
from llm_trainer.locks import hold_lock
from llm_trainer.manifests import MANIFEST_NAME, read_manifest

if TYPE_CHECKING:
    from llm_trainer.data.dataset import LanguageModelingDataset
    from llm_trainer.tokenizer.bpe import BPETokenizer

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Part of every digest; a change makes all that is kept out of date."""
_DIGITS = 16
"""Hexadecimal digits of a digest in the name of a directory."""
_FILE_KEYS = ("train_file", "validation_file")
_HUB_KEYS = ("dataset_name", "dataset_config", "dataset_split", "validation_split", "revision")


def prepare_data(
    config: DataConfig, tokenizer: BPETokenizer, directory: Path, *, progress: bool = True
) -> tuple[PackedRows, PackedRows]:
    """The rows that `config` describes, training and validation, made unless they are there.

    With `pack_sequences` off each document has rows of its own, padded.

    Args:
        config: source, row length, packing and number of processes.
        tokenizer: trained.
        directory: where everything is kept.
        progress: show bars if stderr is a terminal.

    Raises:
        DataError: the source is missing, malformed, or too small.
        LockHeldError: another process prepares data in `directory`.
        LLMTrainerError: `directory` cannot be written, or the disk is full.
    """
    raw = prepare_raw(config.source(), directory, progress=progress)
    return prepare_rows(
        raw, tokenizer, config.packing(), directory,
        num_workers=config.preprocessing_num_workers, progress=progress,
    )  # fmt: skip


def prepare_raw(config: SourceConfig, directory: Path, *, progress: bool = True) -> RawCorpus:
    """The documents of a source, in `directory/raw-<digest>`; see `prepare_data`."""
    path = directory / f"raw-{source_digest(config)[:_DIGITS]}"

    def build() -> None:
        metrics = build_raw(config, path, progress=progress)
        logger.info(
            "%s: %s documents (%.1f MB) to train on, %s (%.1f MB) to validate on",
            metrics["dataset_name"],
            f"{metrics['train_documents']:,}", metrics["train_bytes"] / 1e6,
            f"{metrics['validation_documents']:,}", metrics["validation_bytes"] / 1e6,
        )  # fmt: skip

    return _kept(path, lambda: RawCorpus(path), build)


def prepare_tokenizer(
    raw: RawCorpus,
    config: TokenizerConfig,
    directory: Path,
    *,
    retrain: bool = False,
    progress: bool = True,
) -> BPETokenizer:
    """A tokenizer trained on `raw`, in `directory/tokenizer-<digest>`; see `prepare_data`.

    Args:
        raw: the corpus.
        config: vocabulary size, pattern, sample size.
        directory: where everything is kept.
        retrain: train it even if it is there.
        progress: show bars if stderr is a terminal.
    """
    from llm_trainer.data.vocabulary import build_tokenizer
    from llm_trainer.tokenizer.bpe import BPETokenizer

    path = directory / f"tokenizer-{tokenizer_settings_digest(raw, config)[:_DIGITS]}"

    def build() -> None:
        metrics = build_tokenizer(raw, config, path, progress=progress)
        logger.info(
            "tokenizer: %s tokens, %.2f bytes per token of validation text",
            f"{metrics['vocab_size']:,}", metrics["bytes_per_token"],
        )  # fmt: skip

    return _kept(path, lambda: BPETokenizer.from_pretrained(path), build, again=retrain)


def prepare_rows(
    raw: RawCorpus,
    tokenizer: BPETokenizer,
    config: PackingConfig,
    directory: Path,
    *,
    num_workers: int,
    progress: bool = True,
) -> tuple[PackedRows, PackedRows]:
    """Packed rows of `raw`, in `directory/packed-<digest>`; see `prepare_data`.

    `num_workers` is the number of processes that encode, and changes no byte.
    """
    from llm_trainer.data.packing import pack_corpus

    digest = rows_digest(raw.digest, tokenizer.digest, config)
    path = directory / f"packed-{digest[:_DIGITS]}"

    def build() -> None:
        metrics = pack_corpus(
            raw, tokenizer, config, path, num_workers=num_workers, progress=progress
        )
        logger.info(
            "rows of %d tokens: %s to train on (%s tokens), %s to validate on (%s tokens)",
            config.max_length,
            f"{metrics['train_rows']:,}", f"{metrics['train_tokens']:,}",
            f"{metrics['validation_rows']:,}", f"{metrics['validation_tokens']:,}",
        )  # fmt: skip

    def load() -> tuple[PackedRows, PackedRows]:
        return PackedRows(path, "train"), PackedRows(path, "validation")

    return _kept(path, load, build)


def validation_rows(
    config: SourceConfig, tokenizer: BPETokenizer, max_length: int, *, pack_sequences: bool = True
) -> tuple[LanguageModelingDataset, list[str]]:
    """The validation documents of a source as rows in memory, and the name of each document.

    Only the validation set is read if the source has one of its own. The rows are those that
    `prepare_data` would give for validation (with `packing_strategy: concat`), and so are the
    figures of an evaluation. Price: 2 or 4 bytes a token in memory, twice.

    Raises:
        DataError: the source is missing or malformed, or has no validation documents.
    """
    from llm_trainer.data.dataset import LanguageModelingDataset
    from llm_trainer.data.ledger import Ledger
    from llm_trainer.data.sources import iter_documents

    names: list[str] = []

    def texts() -> Iterator[str]:
        for document in iter_documents(config, "validation", Ledger("evaluate")):
            names.append(document.source)
            yield document.text

    rows = LanguageModelingDataset(texts(), tokenizer, max_length, pack_sequences)
    return rows, names


class PreparedSize(NamedTuple):
    """What a plan needs to know of prepared data."""

    num_rows: int
    """Training rows."""
    vocab_size: int
    """Tokens of the trained tokenizer."""


def find_prepared(
    source: SourceConfig, tokenizer: TokenizerConfig, packing: PackingConfig, directory: Path
) -> PreparedSize | None:
    """The size of what is there already for these settings; None if it is yet to be made.

    Nothing is made, and only manifests are read (and local files, which are hashed).

    Raises:
        DataError: a local file is missing or of an unknown kind.
    """
    raw_path = directory / f"raw-{source_digest(source)[:_DIGITS]}"
    try:
        raw = RawCorpus(raw_path, verify=False)
        name = f"tokenizer-{tokenizer_settings_digest(raw, tokenizer)[:_DIGITS]}"
        manifest = read_manifest(directory / name, "tokenizer", remedy="train it")
        digest = rows_digest(raw.digest, str(manifest["digest"]), packing)
        rows = PackedRows(directory / f"packed-{digest[:_DIGITS]}", "train", verify=False)
    except (IntegrityError, KeyError):
        return None
    return PreparedSize(len(rows), rows.vocab_size)


# --------------------------------------------------------------------------- identities


def source_digest(config: SourceConfig) -> str:
    """Identity of what a source will give: its settings, and what they do not tell.

    That is the content of local files, and the version of Python for its standard library.

    Raises:
        DataError: a local file is missing or of an unknown kind.
    """
    values: dict[str, Any] = {
        key: value
        for key, value in config.to_dict().items()
        if key in SourceConfig.__dataclass_fields__ and key not in _FILE_KEYS
    }
    if config.train_file is not None:
        for key in _HUB_KEYS:
            del values[key]
        found = find_files(config)
        for key, files in zip(_FILE_KEYS, (found.train, found.validation), strict=True):
            values[key] = [[file.name, file.format, _content(file)] for file in files]
    elif config.dataset_name == STDLIB_DATASET:
        values["python"] = [platform.python_implementation(), platform.python_version()]
    return digest_json({"format": _FORMAT, "source": values})


def _content(file: InputFile) -> str | list[Any]:
    # of what lies elsewhere the store's word must do: to hash it would be to fetch it
    return [file.size, file.tag] if file.is_remote else sha256_file(file.place)


def tokenizer_settings_digest(raw: RawCorpus, config: TokenizerConfig) -> str:
    """Identity of the tokenizer that `config` gives on `raw`."""
    return digest_json({"format": _FORMAT, "raw": raw.digest, "tokenizer": config.to_dict()})


def rows_digest(raw_digest: str, tokenizer_digest: str, config: PackingConfig) -> str:
    """Identity of packed rows: text, tokenizer and packing."""
    return digest_json(
        {
            "format": _FORMAT,
            "raw": raw_digest,
            "tokenizer": tokenizer_digest,
            "packing": config.to_dict(),
        }
    )


def _kept(path: Path, load: Callable[[], T], build: Callable[[], None], again: bool = False) -> T:
    """What is in `path`, made first if it is missing or damaged, or if `again`."""
    if not again and (path / MANIFEST_NAME).is_file():
        try:
            found = load()
        except IntegrityError as error:
            logger.warning("prepared data is damaged, and made again: %s", error)
        else:
            logger.info("using %s", path)
            return found
    with hold_lock(path.parent / "lock", "preparing data"):
        build()
    return load()
