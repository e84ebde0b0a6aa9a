"""Read packed rows at random: the data set that training and evaluation see.

How: every shard is memory-mapped once; a row number becomes shard and row by arithmetic, and rows
are gathered shard by shard with numpy, so a batch is one copy out of the page cache. Everything
that can be wrong with the files is found when they are opened, not in the middle of an epoch.
Price: opening with `verify` reads each byte of the split once (about 1 GB/s); copies in other
processes skip that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from llm_trainer.config.checks import flags, place, refuse, text
from llm_trainer.data.packed_manifest import Split, read_packed_manifest
from llm_trainer.data.row_batch import RowBatch, as_indices, run_starts
from llm_trainer.data.shard_file import REMEDY, Shard
from llm_trainer.exceptions import DataError, IntegrityError
from llm_trainer.manifests import manifest_digest


class PackedRows:
    """Rows of one split of a packed directory.

    Every valid token of a row but its first is a target exactly once in the whole split: see
    `llm_trainer.data.packing`.

    Args:
        path: directory written by `pack_corpus`.
        split: train or validation.
        verify: compare every byte of the split with its sha256, and look at every id and length.
        tokenizer_digest: the tokenizer that the caller will use; another one is refused.

    Raises:
        DataError: no such split.
        IntegrityError: a file is missing, extra, swapped, truncated or changed; an id is outside
            the vocabulary; type or length are not the manifest's; another tokenizer made the
            rows. The message names the file and the stage to run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: Split,
        *,
        verify: bool = True,
        tokenizer_digest: str | None = None,
    ) -> None:
        refuse(
            DataError,
            place("path", path),
            flags(verify=verify),
            text("tokenizer_digest", tokenizer_digest, none=True),
        )
        self.path = Path(path)
        self.split: Split = split
        self.manifest: dict[str, Any] = read_packed_manifest(self.path, split, verify=verify)
        if tokenizer_digest not in (None, self.tokenizer_digest):
            raise IntegrityError(
                f"{self.path}: packed with the tokenizer {self.tokenizer_digest[:12]}, but the "
                f"one in use is {str(tokenizer_digest)[:12]}; {REMEDY} to pack with this one"
            )
        self._open()
        if verify:
            self._check_content()

    # ------------------------------------------------------------------ what it is

    def __len__(self) -> int:
        return int(self._entry["rows"])

    @property
    def digest(self) -> str:
        """Identity of the whole packed directory."""
        return manifest_digest(self.manifest)

    @property
    def row_length(self) -> int:
        """Tokens per row, padding included."""
        return int(self.manifest["row_length"])

    @property
    def num_tokens(self) -> int:
        """Targets in the split: each token and end token of its documents once."""
        return int(self._entry["tokens"])

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of text that the targets cover: the divisor of bits per byte."""
        return int(self._entry["bytes"])

    @property
    def num_documents(self) -> int:
        """Documents that have targets in the split."""
        return int(self._entry["documents"])

    @property
    def max_id(self) -> int:
        """Largest token id in the split."""
        return int(self._entry["max_id"])

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer that made the rows."""
        return int(self.manifest["vocab_size"])

    @property
    def end_id(self) -> int:
        """Id before, between and after documents."""
        return int(self.manifest["end_id"])

    @property
    def pad_id(self) -> int:
        """Id that fills a row from its length on."""
        return int(self.manifest["pad_id"])

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer that made the rows."""
        return str(self.manifest["tokenizer_digest"])

    # ------------------------------------------------------------------ rows

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gather rows in the order of `indices` (n,).

        Returns:
            ids (n, row_length), uint16 or uint32, a copy; lengths (n,) int64, the valid tokens of
            each row.

        Raises:
            IndexError: an index is outside [0, len).
        """
        shards, local = self._locate(indices)
        if len(self._shards) == 1:
            return self._shards[0].rows(local)
        ids = np.empty((len(local), self.row_length), self._dtype)
        lengths = np.empty(len(local), np.int64)
        for number in np.unique(shards):
            chosen = np.flatnonzero(shards == number)
            ids[chosen], lengths[chosen] = self._shards[number].rows(local[chosen])
        return ids, lengths

    def segments(self, indices: np.ndarray) -> np.ndarray:
        """(n, row_length) int32: which piece of its row each position belongs to, from 0.

        A piece begins at the end token before its document. Padding counts as one more piece, so
        that a mask made of these numbers keeps it apart too.
        """
        shards, local = self._locate(indices)
        marks = np.zeros((len(local), self.row_length), np.int32)
        for number in np.unique(shards):
            chosen = np.flatnonzero(shards == number)
            shard, rows = self._shards[number], local[chosen]
            counts, _, starts = shard.pieces(rows)
            marks[np.repeat(chosen, counts), starts] = 1
            lengths = shard.lengths(rows)
            short = lengths < self.row_length
            marks[chosen[short], lengths[short]] = 1
        marks[:, 0] = 0
        return np.cumsum(marks, axis=1, dtype=np.int32)

    def pieces(self, index: int) -> list[tuple[int, int]]:
        """(document, start) of each piece in row `index`; documents count from 0 in the split."""
        shards, local = self._locate(np.array([index]))
        _, documents, starts = self._shards[shards[0]].pieces(local)
        return list(zip(documents.tolist(), starts.tolist(), strict=True))

    def documents(self, index: int) -> list[int]:
        """Index within the split of each document that has a piece in row `index`."""
        return [document for document, _ in self.pieces(index)]

    # ------------------------------------------------------------------ files

    @property
    def _entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.manifest["splits"][self.split]
        return entry

    def _open(self) -> None:
        self._dtype: np.dtype[np.unsignedinteger] = np.dtype(self.manifest["dtype"])
        self._shards: list[Shard] = [
            Shard(self.path / name, self.row_length, self._dtype) for name in self._entry["files"]
        ]
        sizes = np.array([len(shard) for shard in self._shards], np.int64)
        self._ends, self._firsts = np.cumsum(sizes), run_starts(sizes)
        if not self._shards or self._ends[-1] != len(self):
            found = int(self._ends[-1]) if self._shards else 0
            raise IntegrityError(
                f"{self.path}: split '{self.split}' has {found:,} rows, but the manifest says "
                f"{len(self):,}; {REMEDY}"
            )

    def _check_content(self) -> None:
        allowed, tokens = min(self.max_id, self.vocab_size - 1), 0
        for name, shard in zip(self._entry["files"], self._shards, strict=True):
            for rows in shard.batches():
                problem = _problem(rows, allowed)
                if problem:
                    raise IntegrityError(f"{self.path / name}: {problem}; {REMEDY}")
                tokens += int(rows.lengths.sum()) - len(rows)
        if tokens != self.num_tokens:
            raise IntegrityError(
                f"{self.path}: split '{self.split}' has {tokens:,} targets, but the manifest says "
                f"{self.num_tokens:,}; {REMEDY}"
            )

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices = as_indices(indices)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(
                f"row {indices.min()} or {indices.max()} is outside [0, {len(self)}) of {self.path}"
            )
        shards = np.searchsorted(self._ends, indices, side="right")
        return shards, indices - self._firsts[shards]

    # A copy in another process (a loader's worker) maps the files itself instead of receiving
    # gigabytes through a pipe; the bytes were verified here.

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _problem(rows: RowBatch, allowed: int) -> str | None:
    """What is wrong with these rows, if anything is."""
    highest, row_length = int(rows.ids.max()), rows.ids.shape[1]
    if highest > allowed:
        return f"holds the token id {highest:,}, but the manifest allows at most {allowed:,}"
    shortest, longest = int(rows.lengths.min()), int(rows.lengths.max())
    if shortest < 2 or longest > row_length:
        return f"rows of {shortest} to {longest} valid tokens, outside 2 to {row_length}"
    if rows.piece_counts.min() < 1 or rows.starts[run_starts(rows.piece_counts)].any():
        return "a row whose first token belongs to no document"
    if rows.starts.max() >= row_length or rows.documents.min() < 0:
        return "a piece that lies outside its row"
    return None
