"""Logits of the next token of a growing batch, with a KV cache or without.

The decoding loops know only `Runner`, so whoever wants to run the model otherwise (compiled,
quantised) makes another one. Price: with the cache a step computes one token a row; without it
the whole row, which is the slow reference that the cached path is tested against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from llm_trainer.models.cache import KVCache
from llm_trainer.models.transformer import TransformerLM


class Runner(Protocol):
    """What a decoding loop asks of a model."""

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, copies: int) -> Tensor:
        """Read the prompts, (rows, width), left-padded where the mask is 0.

        From then on there are `copies` rows for each prompt, side by side.

        Returns:
            (rows * copies, vocab_size) logits of the next token.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, (rows * copies,), and return the next logits."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of what row `rows[i]` is now; both are copies of one prompt."""
        ...


RunnerFactory = Callable[[TransformerLM, int], Runner]
"""Makes a runner for a model and a number of new tokens."""


class CachedRunner:
    """Keeps keys and values: the default."""

    def __init__(self, model: TransformerLM, max_new: int) -> None:
        self.model = model
        self.max_new = max_new

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, copies: int) -> Tensor:
        """See `Runner`. Memory: the prompts are read once, then their cache is copied."""
        rows, width = input_ids.shape
        prompts = self._cache(rows, width if copies > 1 else width + self.max_new - 1)
        logits = last_logits(self.model, input_ids, attention_mask, prompts)
        self.cache = prompts if copies == 1 else self._widen(prompts, copies)
        self.mask = None
        if attention_mask is not None:
            # allocated once; what is not generated yet is beyond the slice that a step shows
            self.mask = torch.nn.functional.pad(attention_mask, (0, self.max_new), value=1)
            self.mask = self.mask.repeat_interleave(copies, dim=0)
        return logits.repeat_interleave(copies, dim=0)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Runner`."""
        mask = None if self.mask is None else self.mask[:, : self.cache.length + 1]
        return last_logits(self.model, tokens[:, None], mask, self.cache)

    def reorder(self, rows: Tensor) -> None:
        """See `Runner`."""
        self.cache.reorder(rows)

    def _cache(self, rows: int, max_length: int) -> KVCache:
        weight = self.model.embedding.weight
        return KVCache(
            self.model.config, rows, max_length, dtype=weight.dtype, device=weight.device
        )

    def _widen(self, prompts: KVCache, copies: int) -> KVCache:
        width = prompts.length
        wide = self._cache(prompts.batch_size * copies, width + self.max_new - 1)
        for narrow_buffers, wide_buffers in (
            (prompts.keys, wide.keys),
            (prompts.values, wide.values),
        ):
            for narrow, buffer in zip(narrow_buffers, wide_buffers, strict=True):
                buffer[:, :, :width] = narrow.repeat_interleave(copies, dim=0)
        wide.advance(width)
        return wide


class UncachedRunner:
    """Reads the whole row again for each token."""

    def __init__(self, model: TransformerLM, max_new: int) -> None:
        self.model = model
        self.max_new = max_new

    def start(self, input_ids: Tensor, attention_mask: Tensor | None, copies: int) -> Tensor:
        """See `Runner`."""
        self.ids = input_ids.repeat_interleave(copies, dim=0)
        self.mask = None
        if attention_mask is not None:
            self.mask = attention_mask.repeat_interleave(copies, dim=0)
        return last_logits(self.model, self.ids, self.mask, None)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Runner`."""
        self.ids = torch.cat((self.ids, tokens[:, None]), dim=1)
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return last_logits(self.model, self.ids, self.mask, None)

    def reorder(self, rows: Tensor) -> None:
        """See `Runner`."""
        self.ids = self.ids.index_select(0, rows)


def last_logits(
    model: TransformerLM, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None
) -> Tensor:
    """(rows, vocab_size) logits after the last column; other columns never meet the head."""
    hidden = model.hidden_states(input_ids, attention_mask=attention_mask, cache=cache)
    logits: Tensor = model.head(hidden[:, -1])
    return logits
