"""Documents from a data set of the Hugging Face hub, downloaded or streamed.

Through the `datasets` library, which no longer runs code from the hub, as Arrow batches of a few
rows. One commit is resolved at the start and everything is read from it; the manifest records it.
`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as they do for that library.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_trainer.config import SourceConfig
from llm_trainer.config.checks import shown
from llm_trainer.data.documents import Document
from llm_trainer.data.hub_files import fetch_files
from llm_trainer.data.intake import Intake, Reader, Source
from llm_trainer.data.tables import accept_column, check_text_column
from llm_trainer.exceptions import DataError, LLMTrainerError, MissingDependencyError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that may be read from without encryption."""
BATCH_ROWS = 256
"""Rows that are in memory at once, beside what `datasets` itself holds."""
HOMES = {
    "ag_news": "fancyzhx/ag_news",
    "amazon_polarity": "fancyzhx/amazon_polarity",
    "bookcorpus": "bookcorpus/bookcorpus",
    "c4": "allenai/c4",
    "cc_news": "vblagoje/cc_news",
    "cnn_dailymail": "abisee/cnn_dailymail",
    "dbpedia_14": "fancyzhx/dbpedia_14",
    "enwik8": "LTCB/enwik8",
    "imdb": "stanfordnlp/imdb",
    "lambada": "cimec/lambada",
    "openwebtext": "Skylion007/openwebtext",
    "pg19": "deepmind/pg19",
    "ptb_text_only": "ptb-text-only/ptb_text_only",
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
    "tiny_shakespeare": "karpathy/tiny_shakespeare",
    "tinystories": "roneneldan/TinyStories",
    "wikipedia": "wikimedia/wikipedia",
    "wikitext": "Salesforce/wikitext",
    "xsum": "EdinburghNLP/xsum",
    "yelp_review_full": "Yelp/yelp_review_full",
}
"""Bare names of old, in lower case, and the repositories that hold these data sets now."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WIKITEXT_CONFIG = next(f.default for f in fields(SourceConfig) if f.name == "dataset_config")


def open_hub(config: SourceConfig) -> Source:
    """Find the data set, its configuration, its splits and its text column.

    Raises:
        DataError: one of these does not exist, or the hub cannot be reached.
        MissingDependencyError: `datasets` is not installed.
    """
    name = _present_home(config.dataset_name)
    subset = _subset(config, name)
    with _hub_errors(name):
        datasets = _import_datasets()
        builder = datasets.load_dataset_builder(name, subset, revision=config.revision)
    commit = builder.hash if _COMMIT.fullmatch(builder.hash or "") else None
    if _COMMIT.fullmatch(config.revision or "") and commit != config.revision:
        raise DataError(
            f"{name}: the hub cannot be reached, and the cache has commit {commit}, not the "
            f"data.revision {config.revision}; go online, or pin what is in the cache"
        )
    train, validation = config.dataset_split, config.validation_split
    with _hub_errors(name):
        streams = builder.as_streaming_dataset()
    _check_split(name, train, streams)
    _check_column(name, streams[_base(train)], config.text_column)
    if validation is not None and validation == train:
        raise DataError(
            f"data.validation_split: {validation!r} is the training split too; name another, or "
            f"null to cut data.validation_fraction of the training documents"
        )
    if validation is not None and _base(validation) not in streams:
        logger.warning(
            "%s has no split %r (it has %s): %s of the training documents validate instead",
            name, validation, ", ".join(streams), f"{config.validation_fraction:.3g}",
        )  # fmt: skip
        validation = None
    if config.streaming:
        for split in (train, validation or train):
            if split != _base(split):
                raise DataError(
                    f"{name}: split {split!r} names a part of a split, which cannot be streamed; "
                    f"set data.streaming: false, or data.max_documents"
                )
    return Source(
        name=name,
        train=_reader(name, builder, train, config),
        validation=_reader(name, builder, validation, config) if validation else None,
        origin={
            "kind": "hub",
            "dataset_config": builder.config.name,
            "revision": commit or config.revision,
            "train_split": train,
            "validation_split": validation,
        },
    )


def _reader(name: str, builder: Any, split: str, config: SourceConfig) -> Reader:
    def read(intake: Intake) -> Iterator[Document]:
        with _hub_errors(name):
            rows = _rows(builder, split, config)
            number = 0
            for table in rows.with_format("arrow").iter(BATCH_ROWS):
                check_text_column(table.schema, f"{name}, {split}", config.text_column)
                for chunk in table.column(config.text_column).chunks:
                    yield from accept_column(chunk, f"{name}/{split}", number, intake)
                    number += len(chunk)

    return read


def _rows(builder: Any, split: str, config: SourceConfig) -> Any:
    if config.streaming:
        return builder.as_streaming_dataset(split=split)
    if not Path(builder.cache_dir).exists() and _COMMIT.fullmatch(builder.hash or ""):
        data_files = builder.config.data_files or {}
        places = [place for files in data_files.values() for place in files]
        fetch_files(builder.repo_id, builder.hash, places)
    builder.download_and_prepare()  # at once if it is in the cache
    return builder.as_dataset(split=split).select_columns([config.text_column])


def _present_home(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise DataError(
            f"data.dataset_name: {shown(name)} is no name of a data set such as owner/name; for "
            f"files on this machine set data.train_file"
        )
    home = HOMES.get(name.lower(), name)
    if Path(home).exists():  # `datasets` would read it instead
        raise DataError(
            f"data.dataset_name: {home!r} is also a file or directory here; to read that set "
            f"data.train_file, else move it away"
        )
    if home != name:
        logger.info("data set %s is now at %s", name, home)
    return home


def _subset(config: SourceConfig, name: str) -> str | None:
    if config.dataset_config == _WIKITEXT_CONFIG and name != HOMES["wikitext"]:
        # the default of a field that only means something for the default data set
        logger.info("dataset_config %s is WikiText's; %s has its own", _WIKITEXT_CONFIG, name)
        return None
    return config.dataset_config


def _base(split: str) -> str:
    return split.partition("[")[0]


def _check_split(name: str, split: str, known: Any) -> None:
    if _base(split) not in known:
        raise DataError(
            f"{name}: no split {split!r}; set data.dataset_split to one of {', '.join(known)}"
        )


def _check_column(name: str, rows: Any, column: str) -> None:
    # unknown until the first rows are read where the data set does not declare its columns
    if rows.features is not None:
        check_text_column(rows.features.arrow_schema, name, column)


def _import_datasets() -> datasets:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"Hugging Face data sets need the package `datasets` ({error}); `pip install datasets`"
        ) from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    _guard_requests()
    return datasets


def _guard_requests() -> None:
    """Let nothing go out in the clear but to this machine, redirected requests included."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _refuse_cleartext not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _refuse_cleartext]}


def _refuse_cleartext(request: Any) -> None:
    url = request.url
    if url.scheme != "https" and url.host not in LOOPBACK:
        raise DataError(
            f"{url.scheme}://{url.host}: would be read without encryption, where anyone on the way "
            f"can change it; only https is, or this machine ({', '.join(LOOPBACK)}): see "
            f"HF_ENDPOINT"
        )


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Translate what `datasets` and `huggingface_hub` raise for a missing or unreachable set."""
    try:
        yield
    except LLMTrainerError:
        raise
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        raise DataError(f"{name}: {message}") from error


def _explain(error: Exception) -> str | None:
    """What a user can do about an error of the hub libraries; None if it is none of theirs."""
    import pyarrow as pa
    from datasets.exceptions import (
        DataFilesNotFoundError,
        DatasetGenerationError,
        DatasetNotFoundError,
        DatasetsError,
    )
    from huggingface_hub.errors import HfHubHTTPError

    text = " ".join(str(error).split())
    if "scripts are no longer supported" in text:
        return (
            "needs code from the hub to be read, which is never run; set data.revision: "
            "refs/convert/parquet for the hub's own conversion, if there is one"
        )
    if isinstance(error, DatasetNotFoundError):
        return f"{text} (data.dataset_name, data.revision; `hf auth login` opens private ones)"
    if isinstance(error, DataFilesNotFoundError):
        return f"{text}; the repository has no files that `datasets` can read"
    if isinstance(error, ValueError) and ("config" in text.lower()):
        return f"{text.partition(' Example of usage')[0]} (data.dataset_config)"
    if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        return f"its files cannot be read ({' '.join(str(error.__cause__).split())})"
    # the base error of whichever HTTP library huggingface_hub is built on
    http = tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)
    if isinstance(error, (ConnectionError, TimeoutError, *http)):
        return (
            f"cannot be read from the hub ({text or type(error).__name__}); check the network, "
            f"HF_ENDPOINT and HF_HUB_OFFLINE, or use local files (data.train_file)"
        )
    if isinstance(error, DatasetsError | OSError | ValueError | RuntimeError | pa.ArrowException):
        return f"cannot be read ({type(error).__name__}: {text})"
    return None
