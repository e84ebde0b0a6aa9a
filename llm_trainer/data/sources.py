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
from llm_trainer.data.intake import Intake, Reader, Source
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
    placing = Placing(source.name, config, own_validation=source.validation is not None)
    intake = Intake(config, ledger)
    phases: tuple[tuple[Split, Reader | None], ...] = (
        ("validation", source.validation),
        ("train", source.train),
    )
    for phase, reader in phases:
        for document in reader(intake) if reader else ():
            data = document.text.encode()
            digest = content_hash(data)
            split = placing.place(phase, digest)
            if split is None:
                ledger.drop("in_validation", 1, len(data))
                continue
            yield Placed(split, document, data, digest)
            if placing.is_full:
                break
        placing.end(phase)


class Placing:
    """Decides the side of each document, in the order of the source.

    Args:
        name: of the source, for messages.
        config: share of validation, and how many training documents are wanted.
        own_validation: whether the source has a validation set of its own, which comes first.

    Attributes:
        known: content hashes of the source's own validation documents.
        counts: documents of each side so far.
        shared: training documents that were in validation too.
        lowest, highest: `hash_fraction` of the documents that were cut, so far.
    """

    def __init__(self, name: str, config: SourceConfig, *, own_validation: bool) -> None:
        self.known: set[bytes] = set()
        self.counts: dict[Split, int] = {"train": 0, "validation": 0}
        self.shared = 0
        self.lowest, self.highest = 1.0, 0.0
        self._name = name
        self._own_validation = own_validation
        self._fraction = config.validation_fraction
        self._most = config.max_documents

    @property
    def room(self) -> int | None:
        """Training documents that are still wanted; None for all."""
        return None if self._most is None else self._most - self.counts["train"]

    @property
    def is_full(self) -> bool:
        """Whether no more documents are wanted."""
        return self._most is not None and self.counts["train"] >= self._most

    def place(self, phase: Split, digest: bytes) -> Split | None:
        """Side of the next document, read from the source's set `phase`; None to drop it."""
        split: Split | None = self.side(phase, digest)
        if split is None:
            self.shared += 1
            return None
        if phase == "validation":
            self.known.add(digest)
        elif not self._own_validation:
            fraction = hash_fraction(digest)
            self.lowest, self.highest = min(self.lowest, fraction), max(self.highest, fraction)
        self.counts[split] += 1
        return split

    def side(self, phase: Split, digest: bytes) -> Split | None:
        """The side of a document, without counting it."""
        if phase == "validation":
            return "validation"
        if self._own_validation:
            return None if digest in self.known else "train"
        return "validation" if is_validation(digest, self._fraction) else "train"

    def end(self, phase: Split) -> None:
        """Check what the set `phase` of the source gave.

        Raises:
            DataError: a side has no documents.
        """
        if phase == "train":
            self._check_own() if self._own_validation else self._check_cut()
        elif self._own_validation and not self.known:
            raise DataError(
                f"{self._name}: the validation set has no documents with text; name another, or "
                f"none (data.validation_split, data.validation_file: null) to cut "
                f"data.validation_fraction ({self._fraction}) of the training documents"
            )

    def _check_own(self) -> None:
        if self.counts["train"] == 0:
            why = f"all {self.shared:,} are in validation too" if self.shared else "it is empty"
            raise DataError(f"{self._name}: the training set has no documents of its own: {why}")

    def _check_cut(self) -> None:
        num_documents = sum(self.counts.values())
        if num_documents == 0:
            raise DataError(f"{self._name}: no documents with text; the corpus is empty")
        if self.lowest == self.highest:
            raise DataError(
                f"{self._name}: one document (or copies of one) cannot be both training and "
                f"validation data; name other data for validation (data.validation_file), or set "
                f"data.max_document_bytes to a hundredth of its size, so that it is cut into pieces"
            )
        remedies: tuple[tuple[Split, float], ...] = (
            # any fraction above the lowest hash and up to the highest leaves each side something
            ("validation", math.floor(self.lowest * 1e6 + 1) / 1e6),
            ("train", math.floor(self.highest * 1e6) / 1e6),
        )
        for split, remedy in remedies:
            if self.counts[split] == 0:
                raise DataError(
                    f"{self._name}: of {num_documents:,} documents none fell to {split} by its "
                    f"hash, with data.validation_fraction {self._fraction}; {remedy:.6f} would "
                    f"give it some, or name other data for validation"
                )
