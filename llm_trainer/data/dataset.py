"""LanguageModelingDataset: texts in memory as rows of tokens, for torch and for `Trainer`.

For texts that fit in memory; a corpus of any size goes through `pack_corpus` and `PackedRows`,
which give the same rows for the same documents. Packed (the default), documents are joined with the
end token between them and the stream is cut into rows that overlap by one token, so every token is
a target exactly once; unpacked, each document has rows of its own, padded.
Price: 2 or 4 bytes a token, twice; encoding at 10 MB/s, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_trainer.config.checks import flags, instance, iterable, refuse, whole
from llm_trainer.config.model import MAX_SIZE
from llm_trainer.data.packers import create_packer
from llm_trainer.data.row_batch import EncodedDocuments, RowBatch, as_indices, run_starts
from llm_trainer.data.shard_file import id_dtype
from llm_trainer.data.single_rows import single_rows
from llm_trainer.exceptions import DataError
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.tokenizer.encoder import FastEncoder
from llm_trainer.tokenizer.text import check_text

IGNORED = -100
"""Label of positions that are no target."""


class LanguageModelingDataset(Dataset[dict[str, Tensor]]):
    """Rows of `max_length` tokens made from texts.

    Items are dictionaries of long tensors of shape (max_length,): `input_ids`; `attention_mask`, 1
    on tokens and 0 on padding; `labels`, the ids themselves with -100 on padding (the shift to the
    next token happens in the model). `rows`, `segments` and `documents` are those of `PackedRows`,
    so training and evaluation read either.

    Args:
        texts: documents, in order; read once.
        tokenizer: trained.
        max_length: tokens per row, at least 2.
        pack_sequences: whether to call `pack_sequences()` at once.
        min_length: documents with fewer tokens are left out; `get_stats` counts them.

    Raises:
        DataError: an impossible setting, or no document is left.
        TokenizerError: a text is no string or no valid Unicode.
        TokenizerNotTrainedException: the tokenizer has no vocabulary.
    """

    def __init__(
        self,
        texts: Iterable[str],
        tokenizer: BPETokenizer,
        max_length: int = 1024,
        pack_sequences: bool = True,
        min_length: int = 1,
    ) -> None:
        refuse(
            DataError,
            iterable("texts", texts),
            instance("tokenizer", tokenizer, BPETokenizer),
            whole("max_length", max_length, 2, MAX_SIZE),  # a token and its target
            flags(pack_sequences=pack_sequences),
            whole("min_length", min_length, 0),
        )
        self.row_length = max_length
        self.vocab_size = tokenizer.vocab_size
        self.end_id = tokenizer.end_id
        self.pad_id = tokenizer.pad_id
        self.tokenizer_digest = tokenizer.digest
        self._encode(texts, tokenizer, min_length)
        self._packed = False
        self._digest: str | None = None
        if pack_sequences:
            self.pack_sequences()
        else:
            self._set_rows(self._single(), packed=False)

    def pack_sequences(self) -> None:
        """Join all documents into full rows; nothing changes if they are joined already."""
        if self._packed:
            return
        packer = create_packer(
            "concat",
            row_length=self.row_length,
            end_id=self.end_id,
            pad_id=self.pad_id,
            dtype=self._encoded.ids.dtype,
        )
        batches = [*packer.add(self._encoded), *packer.finish()]
        self._set_rows(RowBatch.concatenate(batches), packed=True)

    def get_stats(self) -> dict[str, Any]:
        """Counts of rows, documents, tokens and bytes, and what was left out.

        `num_tokens` are targets: each token and end token once. `num_split_documents` lie in
        several rows. `padding_share` is the share of positions that hold padding.
        """
        positions = len(self) * self.row_length
        pieces = np.bincount(self._rows.documents, minlength=1)
        return {
            "num_rows": len(self),
            "row_length": self.row_length,
            "packed": self._packed,
            "num_documents": self.num_documents,
            "num_split_documents": int((pieces > 1).sum()),
            "num_empty_documents": self._num_empty,
            "num_short_documents": self._num_short,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "bytes_per_token": round(self.num_bytes / self.num_tokens, 4),
            "mean_document_tokens": round(float((self._encoded.sizes - 1).mean()), 2),
            "max_document_tokens": int(self._encoded.sizes.max()) - 1,
            "padding_share": round(1 - int(self._rows.lengths.sum()) / positions, 6),
        }

    # ------------------------------------------------------------------ torch

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, idx: int) -> dict[str, Tensor]:
        row = range(len(self))[idx]  # counts from the end below 0; IndexError outside
        ids = torch.from_numpy(self._rows.ids[row].astype(np.int64))
        valid = torch.arange(self.row_length) < int(self._rows.lengths[row])
        return {
            "input_ids": ids,
            "attention_mask": valid.long(),
            "labels": ids.masked_fill(~valid, IGNORED),
        }

    # ------------------------------------------------------------------ as PackedRows

    @property
    def digest(self) -> str:
        """Identity of the rows: a hash of tokenizer, row length, tokens and lengths."""
        if self._digest is None:
            digest = hashlib.sha256(f"{self.tokenizer_digest} {self.row_length}".encode())
            for array in (self._rows.ids, self._rows.lengths):
                digest.update(np.ascontiguousarray(array).data)
            self._digest = digest.hexdigest()
        return self._digest

    @property
    def num_tokens(self) -> int:
        """Targets: each token and end token of the documents once."""
        return len(self._encoded.ids)

    @property
    def num_documents(self) -> int:
        """Documents that were not left out."""
        return len(self._encoded.sizes)

    @property
    def max_id(self) -> int:
        """Largest id among the tokens."""
        return int(self._encoded.ids.max())

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, row_length), uint16 or uint32, a copy; valid tokens of each, (n,) int64."""
        chosen = self._checked(indices)
        return self._rows.ids[chosen], self._rows.lengths[chosen]

    def segments(self, indices: np.ndarray) -> np.ndarray:
        """(n, row_length) int32: which piece of its row each position belongs to, from 0.

        Padding counts as one more piece.
        """
        chosen = self._checked(indices)
        counts = self._rows.piece_counts[chosen]
        nth = np.arange(counts.sum()) - np.repeat(run_starts(counts), counts)
        pieces = np.repeat(self._first[chosen], counts) + nth
        marks = np.zeros((len(chosen), self.row_length), np.int32)
        marks[np.repeat(np.arange(len(chosen)), counts), self._rows.starts[pieces]] = 1
        lengths = self._rows.lengths[chosen]
        short = np.flatnonzero(lengths < self.row_length)
        marks[short, lengths[short]] = 1
        marks[:, 0] = 0
        return np.cumsum(marks, axis=1, dtype=np.int32)

    def pieces(self, index: int) -> list[tuple[int, int]]:
        """(document, start) of each piece in a row; documents count from 0 among the texts."""
        row = int(self._checked(np.array([index]))[0])
        first = int(self._first[row])
        chosen = slice(first, first + int(self._rows.piece_counts[row]))
        documents, starts = self._rows.documents[chosen], self._rows.starts[chosen]
        return list(zip(documents.tolist(), starts.tolist(), strict=True))

    def documents(self, index: int) -> list[int]:
        """Number among the texts of each document that has a piece in a row."""
        return [document for document, _ in self.pieces(index)]

    # ------------------------------------------------------------------ inside

    def _encode(self, texts: Iterable[str], tokenizer: BPETokenizer, min_length: int) -> None:
        encoder = FastEncoder(tokenizer)
        dtype = id_dtype(self.vocab_size)
        end = np.array([self.end_id], dtype)
        arrays: list[np.ndarray] = []
        kept: list[int] = []
        num_texts = self._num_empty = self._num_short = self.num_bytes = 0
        for number, text in enumerate(texts):
            num_texts += 1
            ids = encoder.encode(check_text(text, f"text {number:,}"))
            if len(ids) == 0:
                self._num_empty += 1
            elif len(ids) < min_length:
                self._num_short += 1
            else:
                arrays += [ids.astype(dtype), end]
                kept.append(number)
                self.num_bytes += len(text.encode("utf-8"))
        if not kept:
            raise DataError(
                f"no text to make rows of: {num_texts:,} texts, {self._num_empty:,} empty, "
                f"{self._num_short:,} with fewer than min_length ({min_length}) tokens; give more "
                f"text"
            )
        sizes = np.array([len(ids) + 1 for ids in arrays[::2]], np.int64)
        self._encoded = EncodedDocuments(np.concatenate(arrays), sizes, np.array(kept, np.int64))

    def _single(self) -> RowBatch:
        return single_rows(
            self._encoded, row_length=self.row_length, end_id=self.end_id, pad_id=self.pad_id
        )

    def _set_rows(self, rows: RowBatch, *, packed: bool) -> None:
        self._rows = rows
        self._packed = packed
        self._first = run_starts(rows.piece_counts)
        self._digest = None

    def _checked(self, indices: np.ndarray) -> np.ndarray:
        chosen = as_indices(indices)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"row {chosen.min()} or {chosen.max()} is outside [0, {len(self)})")
        return chosen
