"""Where documents come from, and which of them train and which validate.

Train and validation never share a document. If the source has a validation set of its own, it is
read first, and training documents with the exact text of one of its documents are dropped (memory:
about 100 bytes a validation document). Otherwise a hash of the text decides the side, so equal
documents land on the same one. Exact duplicates within the training set are kept, and counted where
the corpus is written: to remove them for certain takes memory in proportion to the corpus.

A document that was split for its length counts as several here: its pieces are dealt out one by
one, which is what makes a validation set possible for a corpus of one long text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from llm_trainer.config import SourceConfig
from llm_trainer.config.checks import choice, instance, refuse
from llm_trainer.config.data import STDLIB_DATASET
from llm_trainer.data.documents import Document, content_hash, hash_fraction, is_validation
from llm_trainer.data.intake import Intake, Source
from llm_trainer.data.ledger import Ledger
from llm_trainer.exceptions import DataError

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class Placed(NamedTuple):
    """A document with its side."""

    split: Split
    document: Document
    data: bytes
    """Its text in UTF-8."""
    digest: bytes
    """The content hash of `data`."""


def open_source(config: SourceConfig) -> Source:
    """Find what `config` names and check that it is there, without reading it.

    Raises:
        DataError: a file, data set, configuration or split is missing, or cannot be reached.
    """
    # each in its own module, imported when it is the one: `datasets` takes a second to import
    if config.train_file is not None:
        from llm_trainer.data.local_files import open_local

        return open_local(config)
    if config.dataset_name == STDLIB_DATASET:
        from llm_trainer.data.stdlib import open_stdlib

        return open_stdlib(config)
    from llm_trainer.data.hub import open_hub

    return open_hub(config)


def iter_documents(config: SourceConfig, split: Split, ledger: Ledger) -> Iterator[Document]:
    """The documents of one split, exactly those that `build_raw` would write for it.

    What belongs to the other split is entered in `ledger` as dropped, reason `other_split`.

    Raises:
        DataError: as `open_source`, and for what is wrong in the data.
    """
    refuse(
        DataError,
        instance("config", config, SourceConfig),
        choice("split", split, SPLITS),
        instance("ledger", ledger, Ledger, hint="make one with Ledger('a name')"),
    )
    source = open_source(config)
    for placed in iter_placed(source, config, ledger):
        if placed.split == split:
            ledger.give_out(1, len(placed.data))
            yield placed.document
        elif split == "validation" and source.validation is not None:
            ledger.drop("other_split", 1, len(placed.data))
            return  # its own validation set comes first, and is over
        else:
            ledger.drop("other_split", 1, len(placed.data))


def iter_placed(source: Source, config: SourceConfig, ledger: Ledger) -> Iterator[Placed]:
    """All documents of a source with their sides; a validation set of its own comes first.

    The caller enters in `ledger` what it gives out.

    Raises:
        DataError: a bad record; no validation documents; no training documents.
    """
    if source.validation is None:
        yield from _cut(source, config, ledger)
    else:
        yield from _apart(source, config, ledger)


def _apart(source: Source, config: SourceConfig, ledger: Ledger) -> Iterator[Placed]:
    assert source.validation is not None
    intake = Intake(config, ledger)
    known: set[bytes] = set()
    for document in source.validation(intake):
        placed = _placed("validation", document)
        known.add(placed.digest)
        yield placed
    if not known:
        raise DataError(
            f"{source.name}: the validation set has no documents with text; name another, or none "
            f"(data.validation_split, data.validation_file: null) to cut data.validation_fraction "
            f"({config.validation_fraction}) of the training documents"
        )
    num_train = num_shared = 0
    for document in source.train(intake):
        placed = _placed("train", document)
        if placed.digest in known:
            num_shared += 1
            ledger.drop("in_validation", 1, len(placed.data))
            continue
        num_train += 1
        yield placed
        if num_train == config.max_documents:
            return
    if num_train == 0:
        why = f"all {num_shared:,} are in validation too" if num_shared else "it is empty"
        raise DataError(f"{source.name}: the training set has no documents of its own: {why}")


def _cut(source: Source, config: SourceConfig, ledger: Ledger) -> Iterator[Placed]:
    counts: dict[Split, int] = {"train": 0, "validation": 0}
    lowest, highest = 1.0, 0.0
    for document in source.train(Intake(config, ledger)):
        placed = _placed("train", document)
        fraction = hash_fraction(placed.digest)
        lowest, highest = min(lowest, fraction), max(highest, fraction)
        if is_validation(placed.digest, config.validation_fraction):
            placed = placed._replace(split="validation")
        counts[placed.split] += 1
        yield placed
        if placed.split == "train" and counts["train"] == config.max_documents:
            break
    num_documents = sum(counts.values())
    if num_documents == 0:
        raise DataError(f"{source.name}: no documents with text; the corpus is empty")
    if lowest == highest:
        raise DataError(
            f"{source.name}: one document (or copies of one) cannot be both training and "
            f"validation data; name other data for validation (data.validation_file), or set "
            f"data.max_document_bytes to a hundredth of its size, so that it is cut into pieces"
        )
    remedies: tuple[tuple[Split, float], ...] = (
        # any fraction above the lowest hash and up to the highest leaves each side something
        ("validation", math.floor(lowest * 1e6 + 1) / 1e6),
        ("train", math.floor(highest * 1e6) / 1e6),
    )
    for split, remedy in remedies:
        if counts[split] == 0:
            raise DataError(
                f"{source.name}: of {num_documents:,} documents none fell to {split} by its hash, "
                f"with data.validation_fraction {config.validation_fraction}; {remedy:.6f} would "
                f"give it some, or name other data for validation"
            )


def _placed(split: Split, document: Document) -> Placed:
    data = document.text.encode()
    return Placed(split, document, data, content_hash(data))
