"""Evaluation during and after training, over whatever data set the trainer was given.

Packed rows and data sets in memory give loss, perplexity and bits per byte by
`utils.evaluation`; other map-style data sets know nothing of bytes and give loss and perplexity.
Batches are shared out over the ranks, and the figures are those of one process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from llm_trainer.config.training import TrainingConfig
from llm_trainer.models.attention import Attention
from llm_trainer.models.transformer import IGNORED, TransformerLM
from llm_trainer.training.batches import RowSource, collate
from llm_trainer.training.distributed import World
from llm_trainer.utils.evaluation import evaluate_rows, shared_out

if TYPE_CHECKING:
    from llm_trainer.tokenizer import BPETokenizer


class Evaluator:
    """Evaluates a model in the middle of its training and leaves no trace in it."""

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: BPETokenizer,
        dataset: RowSource | Dataset[Any],
        config: TrainingConfig,
        world: World,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.config = config
        self.world = world

    def run(self, max_batches: int | None) -> dict[str, float]:
        """Loss (nats per token), perplexity, and bits_per_byte where bytes are known.

        Computed in float32, in evaluation mode, which is left again.
        """
        training = self.model.training
        self.model.eval()
        try:
            with eager_attention(self.model):
                if isinstance(self.dataset, RowSource):
                    return self._rows(self.dataset, max_batches)
                return self._items(self.dataset, max_batches)
        finally:
            self.model.train(training)

    def _rows(self, rows: RowSource, max_batches: int | None) -> dict[str, float]:
        result = evaluate_rows(
            self.model, rows, token_bytes=self.tokenizer.token_bytes(),
            batch_size=self.config.batch_size, document_mask=self.config.document_mask,
            max_batches=max_batches, processes=self.world,
        )  # fmt: skip
        return {
            "loss": result.loss,
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
        }

    @torch.no_grad()
    def _items(self, dataset: Dataset[Any], max_batches: int | None) -> dict[str, float]:
        size, rows = self.config.batch_size, len(dataset)  # type: ignore[arg-type]
        starts = range(0, rows, size)[:max_batches]

        def score(number: int) -> np.ndarray:
            """(1, 2): summed loss and number of targets of a batch."""
            stop = min(starts[number] + size, rows)
            batch = collate([dataset[i] for i in range(starts[number], stop)])
            batch = batch.to(self.model.device)
            logits = self.model(batch.input_ids).logits[:, :-1].float()
            targets = batch.labels[:, 1:]
            loss = F.cross_entropy(
                logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="sum"
            )
            return np.array([[float(loss), float((targets != IGNORED).sum())]])

        total, count = 0.0, 0
        for _, found in shared_out(len(starts), score, self.world):
            total += float(found[0, 0])
            count += int(found[0, 1])
        loss = total / max(count, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


@contextmanager
def eager_attention(model: TransformerLM) -> Iterator[None]:
    """Use torch's fused attention in the body: the written-out one only pays when compiled."""
    before = next(module.kernel for module in model.modules() if isinstance(module, Attention))
    model.set_attention_kernel("sdpa")
    try:
        yield
    finally:
        model.set_attention_kernel(before)
