"""A generation request on its way in and out: prompts checked, cut and grouped; continuations.

Each row counts on its own: its limit depends on its own length, never on the padding that its
neighbours cause, so a row of a batch gets what it would get alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llm_trainer.config.generation import GenerationConfig
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import GenerationError

logger = logging.getLogger(__name__)

FinishReason = Literal["end", "stop", "length"]
"""The end token, a stop request of the streamer, or no room or allowance left."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are continued together."""

    input_ids: Tensor
    """(rows, width) long, left-padded, at most what the context holds."""
    attention_mask: Tensor | None
    """(rows, width) 1 and 0; None if nothing is padded."""
    rows: list[int]
    """Index of each row in the request."""
    limits: list[int]
    """New tokens that each row may get, at least 1."""

    @property
    def max_new(self) -> int:
        """New tokens of the row that may get most."""
        return max(self.limits)


@dataclass(frozen=True)
class Continuation:
    """What was generated, without the prompts."""

    ids: Tensor
    """(batch, longest) long; rows are filled with the pad id after their end."""
    lengths: list[int]
    """New tokens of each row, an end token included."""
    reasons: list[FinishReason]
    """Why each row ended."""
    scores: list[float] | None = None
    """Beam search: log-probability of each row / length ** length_penalty."""


def end_and_pad(config: GenerationConfig, vocab_size: int) -> tuple[int | None, int]:
    """The end id, or None for no end, and the id that fills finished rows.

    Raises:
        GenerationError: an id outside the vocabulary.
    """
    for name, value in (("end_id", config.end_id), ("pad_id", config.pad_id)):
        if value is not None and value >= vocab_size:
            raise GenerationError(
                f"{name} ({value}) must be below the model's vocab_size ({vocab_size})"
            )
    return config.end_id, config.pad_id if config.pad_id is not None else config.end_id or 0


def plan_batches(
    model: ModelConfig, input_ids: Tensor, attention_mask: Tensor | None, config: GenerationConfig
) -> list[PromptBatch]:
    """Check the prompts, cut those that the context does not hold, and group them into batches.

    A prompt that leaves no room in `max_seq_len` is cut on its left: its last tokens stay, and
    room for the new ones, but for at most half of the context. Generation ends where the context
    ends. Either is one warning. Usually there is one batch; rows are split only if padding would
    take room from the shorter ones.

    Raises:
        GenerationError: prompts of a wrong shape, type or padding, empty, with ids outside the
            vocabulary, or already as long as `max_length`.
    """
    mask = _check_prompts(model, input_ids, attention_mask)
    lengths = [int(n) for n in mask.sum(dim=1)]
    kept, limits = _budget(lengths, config, model.max_seq_len)
    batches = []
    for rows in _groups(kept, limits, model.max_seq_len):
        width = max(kept[row] for row in rows)
        index = torch.tensor(rows, device=input_ids.device)
        ids = input_ids.index_select(0, index)[:, input_ids.shape[1] - width :]
        padded = None
        if any(kept[row] < width for row in rows):
            column = torch.arange(width, device=input_ids.device)
            first = width - torch.tensor([kept[row] for row in rows], device=input_ids.device)
            padded = (column >= first[:, None]).long()
        batches.append(PromptBatch(ids, padded, rows, [limits[row] for row in rows]))
    return batches


def _check_prompts(model: ModelConfig, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Raise on impossible prompts; return the mask as bool, (batch, time)."""
    if ids.ndim != 2 or ids.dtype not in (torch.long, torch.int):
        raise GenerationError(
            f"input_ids are {ids.dtype} of shape {tuple(ids.shape)}; give whole numbers of shape "
            f"(batch, time)"
        )
    if 0 in ids.shape:
        raise GenerationError(
            f"input_ids have shape {tuple(ids.shape)}: nothing to continue; start an empty prompt "
            f"from the end token"
        )
    if mask is None:
        mask = torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise GenerationError(
            f"attention_mask has shape {tuple(mask.shape)}, but input_ids have {tuple(ids.shape)}; "
            f"give one number for each id"
        )
    mask = mask.bool()
    if not bool(mask[:, -1].all()) or bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise GenerationError(
            "attention_mask must have its zeros on the left of each row: pad shorter prompts on "
            "the left, and give an empty one the end token"
        )
    real = ids[mask]
    low, high = int(real.min()), int(real.max())
    if low < 0 or high >= model.vocab_size:
        raise GenerationError(
            f"input_ids go from {low} to {high}, but the model knows 0 to {model.vocab_size - 1}; "
            f"use the tokenizer that it was trained with"
        )
    return mask


def _budget(
    lengths: list[int], config: GenerationConfig, context: int
) -> tuple[list[int], list[int]]:
    """Prompt tokens to keep and new tokens to allow, row by row."""
    kept, limits = [], []
    cut: tuple[int, int] | None = None
    short: tuple[int, int] | None = None
    for row, length in enumerate(lengths):
        wanted = config.max_new_tokens or config.max_length - length
        if wanted < 1:
            raise GenerationError(
                f"max_length ({config.max_length}) counts the prompt, and prompt {row} has "
                f"{length} tokens already; raise it above {length}, or set max_new_tokens"
            )
        keep = length if length < context else context - min(wanted, context // 2)
        limit = min(wanted, context - keep)
        if keep < length:
            cut = cut or (length, keep)
        elif limit < wanted:
            short = short or (wanted, limit)
        kept.append(keep)
        limits.append(limit)
    warnings = []
    if cut is not None:
        warnings.append(f"of a prompt of {cut[0]} tokens only the last {cut[1]} are used")
    if short is not None:
        warnings.append(f"{short[1]} new tokens are generated instead of {short[0]}")
    if warnings:
        logger.warning("the context holds %d tokens: %s", context, "; ".join(warnings))
    return kept, limits


def _groups(kept: list[int], limits: list[int], context: int) -> list[list[int]]:
    """Rows that fit side by side: the longest prompt and the largest limit within the context."""
    groups: list[list[int]] = []
    width = most = 0
    for row in sorted(range(len(kept)), key=lambda row: -kept[row]):
        if groups and max(width, kept[row]) + max(most, limits[row]) <= context:
            groups[-1].append(row)
        else:
            groups.append([row])
            width = most = 0
        width, most = max(width, kept[row]), max(most, limits[row])
    return [sorted(group) for group in groups]
