"""Documents that train and validation share: whole, nearly, or in pieces.

A validation document that was trained on measures memory, not skill. Three findings, for each
validation document: `equal` to a training document but for case and white space; `near` one, with
a Jaccard similarity of word 5-grams from a threshold on; and the share of its 5-grams that occur
anywhere in train. All are exact, with no sampling of signatures as in MinHash: the 5-grams of
the validation set are held in an inverted index and train streams past. A training document is
compared only if enough of its 5-grams occur in validation at all, and only with documents that
have one of its rarest (the prefix filter of Chaudhuri et al. 2006), so nearly all pass at the
price of a look-up.

Price: about 0.1 seconds a megabyte, and memory of about 9 times the validation text, of which at
most MAX_VALIDATION_BYTES are looked at: more is sampled by document, and the report says so.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from llm_trainer.config import checks
from llm_trainer.config.checks import refuse
from llm_trainer.exceptions import DataError
from llm_trainer.utils.shingles import NormalisedText

MAX_VALIDATION_BYTES = 32 * 2**20
"""Validation text that is indexed."""


@runtime_checkable
class SourceDocument(Protocol):
    """A text and its stable name, such as `llm_trainer.data.documents.Document`."""

    @property
    def text(self) -> str:
        """The text."""
        ...

    @property
    def source(self) -> str:
        """Its name."""
        ...


@dataclass(frozen=True)
class SharedPair:
    """A validation document and a training document that it is equal or nearly equal to."""

    validation: str
    """Source of the validation document."""
    train: str
    """Source of the first training document found to be that similar."""
    similarity: float
    """Jaccard similarity of word 5-grams; 1 for equal texts."""
    equal: bool
    """Equal but for case and white space."""
    num_bytes: int
    """Bytes of the validation document."""


@dataclass(frozen=True)
class LeakReport:
    """What train and validation share."""

    documents: int
    """Validation documents looked at."""
    num_bytes: int
    """Their bytes."""
    skipped_documents: int
    """Validation documents left out because there are too many."""
    train_documents: int
    equal: int
    """Validation documents equal to a training document."""
    near: int
    """Further ones that are nearly equal to one."""
    shared_bytes: int
    """Bytes of the equal and the near ones."""
    ngram_overlap: float
    """Share of the distinct 5-grams of validation that occur in train. Not zero for unrelated
    text: licences, idioms, phrases."""
    pairs: tuple[SharedPair, ...]
    """All equal and near ones, the most similar and then the largest first."""

    @property
    def shared_share(self) -> float:
        """Share of the validation bytes in equal and near documents."""
        return self.shared_bytes / self.num_bytes if self.num_bytes else 0.0

    def to_dict(self) -> dict[str, float | int]:
        """The figures, flat, without the pairs."""
        return {
            "leak_documents_checked": self.documents,
            "leak_documents_skipped": self.skipped_documents,
            "leak_equal_documents": self.equal,
            "leak_near_documents": self.near,
            "leak_bytes_share": self.shared_share,
            "leak_ngram_overlap": self.ngram_overlap,
        }


def find_leaks(
    validation: Callable[[], Iterable[SourceDocument]],
    train: Iterable[SourceDocument],
    *,
    threshold: float = 0.8,
    max_validation_bytes: int = MAX_VALIDATION_BYTES,
    num_train: int | None = None,
    progress: bool = False,
) -> LeakReport:
    """Compare every training document with the validation documents.

    Args:
        validation: gives an iterator over the validation documents; called twice.
        train: training documents, read once.
        threshold: Jaccard similarity, above 0 and at most 1, from which documents are near.
        max_validation_bytes: text to look at; documents are chosen by a hash of their source.
        num_train: number of training documents, for the bar.
        progress: show a bar if stderr is a terminal.

    Raises:
        DataError: an impossible setting, or something that is no document.
    """
    refuse(
        DataError,
        checks.function("validation", validation, none=False),
        checks.iterable("train", train, "documents"),
        checks.number("threshold", threshold, above=0, most=1),
        checks.whole("max_validation_bytes", max_validation_bytes, 1),
        checks.whole("num_train", num_train, 0, none=True),
        checks.flags(progress=progress),
    )
    chosen, skipped = _choose(validation(), max_validation_bytes)
    index = _Index(document for document in validation() if document.source in chosen)
    count = 0
    hidden = None if progress else True
    for document in tqdm(
        train, "leak report", total=num_train, unit="document", leave=False, disable=hidden
    ):
        refuse(DataError, checks.instance("train: a document", document, SourceDocument))
        index.compare(document, threshold)
        count += 1
    return index.report(skipped, count)


def _choose(documents: Iterable[SourceDocument], max_bytes: int) -> tuple[set[str], int]:
    """Sources of the documents with the smallest hashes that fit into `max_bytes`; how many not."""
    kept: list[tuple[int, str, int]] = []  # a heap with the largest hash first
    total, seen = 0, 0
    for document in documents:
        rank = int.from_bytes(hashlib.sha256(document.source.encode()).digest()[:8], "big")
        size = len(document.text.encode("utf-8"))
        heapq.heappush(kept, (-rank, document.source, size))
        total += size
        seen += 1
        while total > max_bytes and len(kept) > 1:
            total -= heapq.heappop(kept)[2]
    return {source for _, source, _ in kept}, seen - len(kept)


class _Index:
    """The validation documents by digest and by 5-gram, and what was found of them so far."""

    def __init__(self, documents: Iterable[SourceDocument]) -> None:
        self._sources: list[str] = []
        self._bytes: list[int] = []
        self._by_digest: dict[bytes, list[int]] = {}
        shingles: list[np.ndarray] = []
        for number, document in enumerate(documents):
            text = NormalisedText(document.text)
            self._sources.append(document.source)
            self._bytes.append(len(document.text.encode("utf-8")))
            shingles.append(text.shingles())
            if len(shingles[-1]):
                self._by_digest.setdefault(text.digest, []).append(number)
        self._sizes = np.array([len(array) for array in shingles], np.int64)
        # Compressed sparse rows: postings[starts[k] : starts[k + 1]] have the shingle keys[k].
        every = np.concatenate([*shingles, np.zeros(0, np.uint64)])
        owner = np.repeat(np.arange(len(shingles), dtype=np.int32), self._sizes)
        order = np.argsort(every, kind="stable")
        every, self._postings = every[order], owner[order]
        new = np.ones(len(every), bool)
        new[1:] = every[1:] != every[:-1]
        self._keys = every[new]
        self._starts = np.append(np.flatnonzero(new), len(every))
        self._seen = np.zeros(len(self._keys), bool)
        self._found: dict[int, SharedPair] = {}
        self._open = np.ones(len(shingles), bool)  # not yet found near anything

    def compare(self, document: SourceDocument, threshold: float) -> None:
        """Note what a training document shares with the validation documents."""
        text = NormalisedText(document.text)
        for number in self._by_digest.get(text.digest, ()):
            known = self._found.get(number)
            if known is None or not known.equal:
                self._note(number, document.source, 1.0, equal=True)
        shingles = text.shingles()
        if len(shingles) == 0 or len(self._keys) == 0:
            return
        place = np.searchsorted(self._keys, shingles)
        place[place == len(self._keys)] = 0
        known_keys = place[self._keys[place] == shingles]
        self._seen[known_keys] = True
        # A near document has at least `needed` of these 5-grams, all of them known keys, so it has
        # at least one of any len(known_keys) - needed + 1 of them: the rarest are the cheapest.
        needed = math.ceil(threshold * len(shingles) - 1e-9)
        spare = len(known_keys) - needed
        if spare < 0:
            return
        frequency = self._starts[known_keys + 1] - self._starts[known_keys]
        rarest = known_keys[np.argsort(frequency, kind="stable")[: spare + 1]]
        candidates = np.unique(self._documents_with(rarest))
        candidates = candidates[self._open[candidates]]
        if len(candidates) == 0:
            return
        shared = np.bincount(self._documents_with(known_keys), minlength=len(self._sizes))
        both = shared[candidates]
        similarity = both / (len(shingles) + self._sizes[candidates] - both)
        for number, value in zip(candidates.tolist(), similarity.tolist(), strict=True):
            if value >= threshold:
                self._note(number, document.source, value, equal=False)

    def report(self, skipped: int, train_documents: int) -> LeakReport:
        """Everything found so far."""
        pairs = sorted(
            self._found.values(),
            key=lambda pair: (-pair.similarity, not pair.equal, -pair.num_bytes, pair.validation),
        )
        equal = sum(pair.equal for pair in pairs)
        return LeakReport(
            documents=len(self._sources),
            num_bytes=sum(self._bytes),
            skipped_documents=skipped,
            train_documents=train_documents,
            equal=equal,
            near=len(pairs) - equal,
            shared_bytes=sum(pair.num_bytes for pair in pairs),
            ngram_overlap=float(self._seen.mean()) if len(self._seen) else 0.0,
            pairs=tuple(pairs),
        )

    def _documents_with(self, keys: np.ndarray) -> np.ndarray:
        """Documents that have these shingles, one entry a shingle and document."""
        starts = self._starts[keys]
        counts = self._starts[keys + 1] - starts
        before = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) + np.repeat(starts - before, counts)
        documents: np.ndarray = self._postings[places]
        return documents

    def _note(self, number: int, train: str, similarity: float, *, equal: bool) -> None:
        self._open[number] = False
        self._found[number] = SharedPair(
            validation=self._sources[number],
            train=train,
            similarity=similarity,
            equal=equal,
            num_bytes=self._bytes[number],
        )
