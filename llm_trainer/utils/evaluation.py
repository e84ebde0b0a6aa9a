"""Loss, perplexity and bits per byte of a model over packed rows.

Every target of the split is scored once and sums are taken in float64, so the figures do not
depend on the batch size beyond the rounding of single losses. Loss and perplexity are means over
all targets, end tokens included. Bits per byte is the negative log-likelihood of the text tokens
alone (end tokens stand for no byte; nanochat counts so too) over the bytes of text they stand for:
with concat packing on a fixed text it is comparable between tokenizers. Its interval takes
documents as units, see `confidence`. Price: one forward pass in float32, unless `autocast_dtype`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from tqdm import tqdm

from llm_trainer.config.checks import flags, instance, number, refuse, shown, whole
from llm_trainer.exceptions import ConfigurationError, IntegrityError, TrainingError
from llm_trainer.models.checks import language_model
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.allocator import keep_freed_memory
from llm_trainer.utils.confidence import ratio_interval

if TYPE_CHECKING:
    from llm_trainer.data.shards import PackedRows

MAX_LOG_PERPLEXITY = 700.0
"""Perplexity is cut at e^700, where float64 ends; only a diverged model comes near."""


@runtime_checkable
class DocumentRows(Protocol):
    """Rows of token ids that know their documents, such as `PackedRows`."""

    def __len__(self) -> int: ...

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, (n, row_length), and the number of valid ones in each row, (n,)."""
        ...

    def segments(self, indices: np.ndarray) -> np.ndarray:
        """Number of the piece within its row for each token, (n, row_length)."""
        ...

    def documents(self, index: int) -> list[int]:
        """Document of each piece of a row."""
        ...


@runtime_checkable
class Processes(Protocol):
    """Several processes that evaluate together, such as `training.distributed.World`."""

    @property
    def rank(self) -> int:
        """Number of this one, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensor of each, by rank; all of one shape."""


@dataclass(frozen=True)
class DocumentScores:
    """Text tokens by document; arrays of one length, documents in ascending order."""

    document: np.ndarray
    """Index of the document within the split, int64."""
    nats: np.ndarray
    """Summed negative log-likelihood of its text tokens, float64."""
    num_bytes: np.ndarray
    """Bytes of text of these tokens, int64."""

    @property
    def bits_per_byte(self) -> np.ndarray:
        """Of each document, float64."""
        return self.nats / (math.log(2) * self.num_bytes)

    def ranked(self, min_bytes: int = 0) -> np.ndarray:
        """Positions in these arrays by ascending bits per byte, of documents of that size."""
        order = np.argsort(self.bits_per_byte, kind="stable")
        return order[self.num_bytes[order] >= min_bytes]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_rows` found."""

    loss: float
    """Mean negative log-likelihood of all targets, in nats per token."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float
    """Negative log-likelihood of the text tokens, in bits per byte of text."""
    bits_per_byte_low: float | None
    """Lower end of its confidence interval; None with fewer than two documents."""
    bits_per_byte_high: float | None
    """Upper end."""
    num_tokens: int
    """Targets, end tokens included."""
    num_bytes: int
    """Bytes of text that the targets stand for."""
    num_documents: int
    """Documents with text among the targets."""
    documents: DocumentScores
    """The same by document."""

    def to_dict(self) -> dict[str, float | int]:
        """The figures, flat; without the interval where there is none."""
        values: dict[str, float | int | None] = {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_low": self.bits_per_byte_low,
            "bits_per_byte_high": self.bits_per_byte_high,
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "documents": self.num_documents,
        }
        return {name: value for name, value in values.items() if value is not None}


def check_rows(model: TransformerLM, tokenizer_digest: str, rows: PackedRows) -> None:
    """Refuse packed rows that are of another tokenizer, or too long or with too large ids for the
    model.

    Raises:
        IntegrityError: names the directory, both values, and the stage to run.
    """
    if rows.tokenizer_digest != tokenizer_digest:
        raise IntegrityError(
            f"{rows.path}: packed with tokenizer {rows.tokenizer_digest[:12]}, not with "
            f"{tokenizer_digest[:12]}; run `dvc repro pack_sequences`"
        )
    if rows.row_length > model.config.max_seq_len or rows.max_id >= model.config.vocab_size:
        raise IntegrityError(
            f"{rows.path}: rows of {rows.row_length} tokens with ids up to {rows.max_id}, but the "
            f"model takes {model.config.max_seq_len} tokens with ids below "
            f"{model.config.vocab_size}; run `dvc repro train`"
        )


def evaluate_rows(
    model: TransformerLM,
    rows: DocumentRows,
    *,
    token_bytes: np.ndarray,
    batch_size: int = 16,
    document_mask: bool = False,
    max_batches: int | None = None,
    confidence: float = 0.95,
    progress: bool = False,
    autocast_dtype: torch.dtype | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Score the targets of `rows` with `model`; the model's mode is restored afterwards.

    Args:
        model: on any device; put into evaluation mode for the while.
        rows: a split of packed rows.
        token_bytes: (vocab_size,) bytes of text that each id stands for, 0 for special tokens.
        batch_size: rows per forward pass; no influence on the figures beyond rounding.
        document_mask: keep attention and positions within a document.
        max_batches: score only this many batches, of rows spread evenly over the split; None for
            all of it.
        confidence: level of the interval of bits per byte.
        progress: show a bar if stderr is a terminal.
        autocast_dtype: compute products in this type; None is the type of the weights.
        processes: share the batches out over these, which all call this; the figures are those of
            one process, on all of them.

    Raises:
        IntegrityError: an id has no entry in `token_bytes`, so it is another tokenizer's.
        TrainingError: no rows, no text, or a loss that is not finite.
    """
    _check_arguments(model, rows, token_bytes, autocast_dtype)
    refuse(
        ConfigurationError,
        whole("batch_size", batch_size, 1),
        whole("max_batches", max_batches, 1, none=True),
        number("confidence", confidence, above=0, below=1),
        flags(document_mask=document_mask, progress=progress),
        instance("processes", processes, Processes, none=True, hint="such as that of `connect`"),
    )
    chosen = _chosen_rows(len(rows), batch_size, max_batches)
    if len(chosen) == 0:
        raise TrainingError("there are no rows to evaluate on; give more validation text")
    totals = _Totals(token_bytes)
    if model.device.type == "cpu":
        keep_freed_memory()
    training = model.training
    model.eval()
    try:
        starts = range(0, len(chosen), batch_size)
        shown = progress and (processes is None or processes.rank == 0)
        bar = tqdm(total=len(starts), desc="evaluating", unit="batch", leave=False,
                   disable=None if shown else True)  # fmt: skip

        def score(which: int) -> np.ndarray:
            indices = chosen[starts[which] : starts[which] + batch_size]
            ids, lengths = rows.rows(indices)
            segments = rows.segments(indices) if document_mask else None
            return _losses(model, ids, lengths, segments, autocast_dtype)

        with bar:
            for which, losses in shared_out(len(starts), score, processes):
                indices = chosen[starts[which] : starts[which] + batch_size]
                ids, lengths = rows.rows(indices)
                documents = [np.array(rows.documents(int(index)), np.int64) for index in indices]
                totals.add(ids, lengths, rows.segments(indices), documents, losses[: len(indices)])
                bar.update()
    finally:
        model.train(training)
    return totals.evaluation(confidence)


def shared_out(
    count: int, work: Callable[[int], np.ndarray], processes: Processes | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Results of `work` on 0 to `count` - 1, in this order, each done by one of the processes.

    All of them get all results. Where there are more processes than work is left, it is done twice,
    since under fsdp a forward pass needs all of them. Results may differ in their first dimension;
    behind shorter ones stands what is no part of them.
    """
    if processes is None or processes.size == 1:
        for number in range(count):
            yield number, work(number)
        return
    for start in range(0, count, processes.size):
        mine = torch.from_numpy(work(min(start + processes.rank, count - 1)))
        rows = torch.cat(processes.gather(torch.tensor([len(mine)])))
        padded = mine.new_zeros(int(rows.max()), *mine.shape[1:])
        padded[: len(mine)] = mine
        found = processes.gather(padded)
        for number in range(start, min(start + processes.size, count)):
            yield number, found[number - start].numpy()


def _check_arguments(
    model: object, rows: object, token_bytes: Any, autocast_dtype: torch.dtype | None
) -> None:
    problems = []
    if not isinstance(rows, DocumentRows):
        problems.append(f"rows ({shown(rows)}) must be packed rows or a LanguageModelingDataset")
    kind = token_bytes.dtype.kind if isinstance(token_bytes, np.ndarray) else ""
    if kind not in ("i", "u") or token_bytes.ndim != 1:
        problems.append(
            f"token_bytes ({shown(token_bytes)}) must be an array of whole numbers, one for each "
            f"id; use tokenizer.token_bytes()"
        )
    if autocast_dtype not in (None, torch.bfloat16, torch.float16):
        problems.append(f"autocast_dtype ({autocast_dtype!r}) must be bfloat16, float16 or None")
    refuse(ConfigurationError, language_model("model", model, "token_losses"), problems)


def _chosen_rows(num_rows: int, batch_size: int, max_batches: int | None) -> np.ndarray:
    if max_batches is None or max_batches * batch_size >= num_rows:
        return np.arange(num_rows, dtype=np.int64)
    num = max_batches * batch_size
    return np.arange(num, dtype=np.int64) * num_rows // num


@torch.inference_mode()
def _losses(
    model: TransformerLM,
    ids: np.ndarray,
    lengths: np.ndarray,
    segments: np.ndarray | None,
    autocast_dtype: torch.dtype | None,
) -> np.ndarray:  # (rows, time - 1) float32
    device = model.device
    context = (
        torch.autocast(device.type, autocast_dtype) if autocast_dtype is not None else nullcontext()
    )
    with context:
        losses = model.token_losses(
            torch.from_numpy(ids.astype(np.int64)).to(device),
            lengths=torch.from_numpy(lengths).to(device),
            segments=None if segments is None else torch.from_numpy(segments).to(device),
        )
    result: np.ndarray = losses.float().cpu().numpy()
    return result


class _Totals:
    """Running sums over batches, in float64, whole and by document."""

    def __init__(self, token_bytes: np.ndarray) -> None:
        self._token_bytes = token_bytes
        self._nats = 0.0
        self._tokens = 0
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        segments: np.ndarray,
        documents: list[np.ndarray],
        losses: np.ndarray,
    ) -> None:
        """Count a batch: ids and segments (rows, time), losses (rows, time - 1)."""
        valid = np.arange(1, ids.shape[1]) < lengths[:, None]
        targets = ids[:, 1:][valid]
        if int(targets.max()) >= len(self._token_bytes):
            raise IntegrityError(
                f"rows hold the token id {int(targets.max())}, but token_bytes has only "
                f"{len(self._token_bytes)} ids; use the tokenizer that the rows were packed with"
            )
        nats = losses[valid].astype(np.float64)
        if not np.isfinite(nats).all():
            raise TrainingError(
                "the loss is not finite, so the model's weights are damaged or have diverged; "
                "train it again, with a lower learning_rate"
            )
        self._nats += float(nats.sum())
        self._tokens += len(nats)
        # The piece of a target is that of the token before it: a text token has the piece's start
        # token or text in front of it, and the end token that closes a document belongs to it.
        first = np.cumsum([0, *(len(row) for row in documents[:-1])])
        piece = (segments[:, :-1] + first[:, None])[valid]
        of_target = np.concatenate(documents)[piece]
        sizes = self._token_bytes[targets]
        text = sizes > 0
        names, place = np.unique(of_target[text], return_inverse=True)
        self._parts.append(
            (
                names,
                np.bincount(place, nats[text], len(names)),
                np.bincount(place, sizes[text], len(names)),
            )
        )

    def evaluation(self, confidence: float) -> Evaluation:
        """The figures of everything added."""
        names, place = np.unique(
            np.concatenate([part[0] for part in self._parts]), return_inverse=True
        )
        if len(names) == 0:
            raise TrainingError("the rows hold no text, only end tokens; there is nothing to score")
        nats = np.bincount(place, np.concatenate([part[1] for part in self._parts]))
        sizes = np.bincount(place, np.concatenate([part[2] for part in self._parts]))
        scores = DocumentScores(names, nats, np.rint(sizes).astype(np.int64))
        loss = self._nats / self._tokens
        interval = ratio_interval(nats / math.log(2), sizes, confidence)
        low, high = interval if interval else (None, None)
        return Evaluation(
            loss=loss,
            perplexity=math.exp(min(loss, MAX_LOG_PERPLEXITY)),
            bits_per_byte=float(nats.sum() / (math.log(2) * sizes.sum())),
            bits_per_byte_low=low,
            bits_per_byte_high=high,
            num_tokens=self._tokens,
            num_bytes=int(scores.num_bytes.sum()),
            num_documents=len(names),
            documents=scores,
        )
