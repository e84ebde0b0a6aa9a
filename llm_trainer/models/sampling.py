"""Pure functions from logits to logits, and from logits to the next token.

They compute what the logits processors of Hugging Face transformers compute, ties included; the
tests compare. Filtered tokens get -inf. In a decoding step the order is theirs too: repetition
penalty, temperature, top-k, top-p. Price: top-p sorts the vocabulary, the rest is linear in it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from llm_trainer.config.checks import instance, number, refuse, whole
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import GenerationError
from llm_trainer.models.checks import WHOLE_TYPES, usable_device

DRAWS_AT_ONCE = 64
"""Random numbers taken from each row's stream at a time."""


# --------------------------------------------------------------------------- public, checked


def sample_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row, and what ties with the k-th; others become -inf.

    Args:
        logits: (batch, vocab_size) or (vocab_size,).
        k: at least 1; more than the vocabulary keeps everything.

    Raises:
        GenerationError: k below 1 or no integer, or NaN logits.
    """
    refuse(GenerationError, whole("k", k, 1), logits_problems(logits))
    return _keep_top_k(logits, k)


def sample_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens with total probability >= p; others become -inf.

    The likeliest token always stays (nucleus sampling, Holtzman et al. 2020).

    Args:
        logits: (batch, vocab_size) or (vocab_size,).
        p: from 0 (the likeliest token alone) to 1 (all tokens).

    Raises:
        GenerationError: p outside [0, 1], or NaN logits.
    """
    refuse(GenerationError, number("p", p, 0, 1), logits_problems(logits))
    return _keep_top_p(logits, p)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by a temperature.

    Raises:
        GenerationError: a temperature that is not above 0, or NaN logits.
    """
    refuse(GenerationError, number("temperature", temperature, above=0), logits_problems(logits))
    return logits / temperature


def apply_repetition_penalty(
    logits: Tensor, input_ids: Tensor, penalty: float, attention_mask: Tensor | None = None
) -> Tensor:
    """Make tokens that occur in `input_ids` less likely, or with a penalty below 1 more likely.

    Positive logits are divided by the penalty and negative ones multiplied, once for each token
    however often it occurs (CTRL, Keskar et al. 2019).

    Args:
        logits: (batch, vocab_size) or (vocab_size,).
        input_ids: (batch, time) or (time,) long.
        penalty: above 0; 1 changes nothing.
        attention_mask: same shape as `input_ids`; ids at zeros are padding and do not count.

    Raises:
        GenerationError: a penalty that is not above 0, ids outside the vocabulary, NaN logits.
    """
    refuse(GenerationError, number("penalty", penalty, above=0), logits_problems(logits))
    vocab_size = logits.shape[-1]
    refuse(GenerationError, _seen_problems(input_ids, attention_mask, logits))
    return penalize(logits, seen_tokens(input_ids, vocab_size, attention_mask), penalty)


def create_causal_mask(size: int, device: torch.device | str | None = None) -> Tensor:
    """(size, size) bool, True where the query (row) may look at the key (column): at or before it.

    Raises:
        GenerationError: size below 1.
    """
    refuse(GenerationError, whole("size", size, 1))
    device = None if device is None else usable_device(device)
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def check_logits(logits: Tensor) -> None:
    """Refuse NaN logits, from which any token might follow. Waits for the device.

    Raises:
        GenerationError: some logit is NaN.
    """
    refuse(GenerationError, logits_problems(logits))


def logits_problems(logits: Tensor) -> list[str]:
    """A problem line for what is no tensor of logits, or has NaN among them."""
    found = instance("logits", logits, Tensor)
    if found or not bool(logits.isnan().any()):
        return found
    return [
        "the logits contain NaN (nan): the model's weights are damaged or its training diverged; "
        "use an earlier checkpoint"
    ]


def _seen_problems(ids: Tensor, mask: Tensor | None, logits: Tensor) -> list[str]:
    """Problem lines for ids whose tokens are to be made less likely."""
    found = instance("input_ids", ids, Tensor)
    found += instance("attention_mask", mask, Tensor, none=True)
    if found:
        return found
    if ids.dtype not in WHOLE_TYPES or ids.shape[:-1] != logits.shape[:-1]:
        return [
            f"input_ids are {ids.dtype} of shape {tuple(ids.shape)} for logits of shape "
            f"{tuple(logits.shape)}; give whole numbers, as many rows as there are of logits"
        ]
    if mask is not None and mask.shape != ids.shape:
        return [f"attention_mask has shape {tuple(mask.shape)}; give {tuple(ids.shape)}"]
    low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
    if low < 0 or high >= logits.shape[-1]:
        return [
            f"input_ids go from {low} to {high}, but there are logits for 0 to "
            f"{logits.shape[-1] - 1} only; use the tokenizer that the model was trained with"
        ]
    return []


# --------------------------------------------------------------------------- kernels, unchecked


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    if k >= logits.shape[-1]:
        return logits
    kth = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def _keep_top_p(logits: Tensor, p: float) -> Tensor:
    descending, order = logits.sort(dim=-1, descending=True, stable=True)
    # of equal logits the first one stays longest, as argmax would have it
    ascending, order = descending.flip(-1), order.flip(-1)
    # what the tokens up to here hold in total; the rest, from here on, holds p or more
    below = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    below[..., -1] = False
    return logits.masked_fill(below.scatter(-1, order, below), float("-inf"))


def seen_tokens(input_ids: Tensor, vocab_size: int, attention_mask: Tensor | None = None) -> Tensor:
    """(..., vocab_size) bool: which tokens occur in the unmasked part of input_ids, (..., time)."""
    if attention_mask is not None:
        # one slot more, which takes the padding
        input_ids = input_ids.masked_fill(attention_mask == 0, vocab_size)
    shape = (*input_ids.shape[:-1], vocab_size + 1)
    seen = torch.zeros(shape, dtype=torch.bool, device=input_ids.device)
    return seen.scatter(-1, input_ids, True)[..., :vocab_size].contiguous()


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Apply the repetition penalty to the logits of `seen` tokens, (..., vocab_size) bool."""
    changed = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, changed, logits)


def filter_logits(logits: Tensor, config: GenerationConfig) -> Tensor:
    """Temperature, top-k and top-p of `config`, in this order; (batch, vocab_size) both ways."""
    if config.temperature != 1.0:
        logits = logits / config.temperature
    if config.top_k is not None:
        logits = _keep_top_k(logits, config.top_k)
    if config.top_p is not None and config.top_p < 1.0:
        logits = _keep_top_p(logits, config.top_p)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Turn a uniform number in [0, 1) for each row into a token of its distribution.

    Takes (batch, vocab_size) and (batch,), gives (batch,) long: the inverse of the cumulative
    distribution, in the precision of `uniform`. A token of probability 0 never comes out. No
    synchronisation with the device.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=uniform.dtype)
    total = cumulative[:, -1:]
    # rounding may lift the product to the total itself, above which there is no token
    just_below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniform[:, None] * total, just_below)
    index = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return index.clamp(max=logits.shape[-1] - 1)  # only NaN comes here out of range


class UniformStreams:
    """Uniform numbers in [0, 1), one stream for each row, that depend on seed and row alone.

    A row's text therefore does not depend on how many rows are generated beside it, nor on the
    device: the numbers are made on the CPU, many at once.
    """

    def __init__(self, seed: int, rows: list[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(row_seed(seed, row)) for row in rows]
        self._device = device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._block = torch.empty(0)
        self._used = DRAWS_AT_ONCE

    def next(self) -> Tensor:
        """(rows,) the next number of each stream."""
        if self._used == DRAWS_AT_ONCE:
            numbers = [
                torch.rand(DRAWS_AT_ONCE, generator=generator, dtype=self._dtype)
                for generator in self._generators
            ]
            self._block = torch.stack(numbers, dim=1).to(self._device)  # (draws, rows)
            self._used = 0
        self._used += 1
        return self._block[self._used - 1]

    def gumbel(self, count: int) -> Tensor:
        """(rows, count) float32 of the standard Gumbel distribution, from the same streams."""
        uniform = torch.stack(
            [torch.rand(count, generator=generator) for generator in self._generators]
        )
        return -(-uniform.log()).log().to(self._device)


def row_seed(seed: int, row: int) -> int:
    """Seed of row `row` of a request with `seed`."""
    digest = hashlib.sha256(f"generation:{seed}:{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
