"""Time text generation with and without the key-value cache, and weigh a model on disk.

Greedy decoding of random prompts by the one decoding loop, always to the full length. Without the
cache the whole sequence goes through the model for every token, which is what the cache is measured
against. The median of a few runs counts. Price: `warmup + repeats`
generations of each kind and batch size.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from llm_trainer.config.checks import flags, iterable, refuse, whole
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.models.checks import language_model
from llm_trainer.models.decoding import generate
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.timing import time_calls

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationTiming:
    """Times for one batch size, in seconds."""

    batch_size: int
    cached: bool
    prompt_tokens: int
    new_tokens: int
    first_token_seconds: float
    """From the prompts to the first new token of each."""
    total_seconds: float
    """From the prompts to the last new token of each."""

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all prompts per second, the reading of the prompts included."""
        return self.batch_size * self.new_tokens / self.total_seconds

    @property
    def seconds_per_token(self) -> float:
        """Between two tokens of a text, after the first; 0 where noise hides it."""
        rest = max(0.0, self.total_seconds - self.first_token_seconds)
        return rest / max(1, self.new_tokens - 1)


def benchmark_generation(
    model: TransformerLM,
    *,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    warmup: int,
    progress: bool = False,
) -> list[GenerationTiming]:
    """Time generation for each batch size, with and without cache, on the model's device.

    Args:
        batch_sizes: prompts generated at once.
        prompt_tokens: tokens of each prompt; both numbers are lowered, with a warning, if together
            they exceed the model's `max_seq_len`.
        new_tokens: tokens generated after each, at least 2.
        repeats: timed runs; the median counts.
        warmup: runs before them.
        progress: show a bar if stderr is a terminal.

    Raises:
        ConfigurationError: an impossible number.
    """
    refuse(
        ConfigurationError,
        language_model("model", model, "hidden_states"),
        iterable("batch_sizes", batch_sizes, "numbers"),
        whole("prompt_tokens", prompt_tokens, 1),
        whole("new_tokens", new_tokens, 2),
        whole("repeats", repeats, 1),
        whole("warmup", warmup, 0),
        flags(progress=progress),
    )
    refuse(
        ConfigurationError,
        [] if batch_sizes else ["batch_sizes is empty; give at least one size"],
        *(whole("batch_sizes: a size", size, 1) for size in batch_sizes),
    )
    asked = (prompt_tokens, new_tokens)
    prompt_tokens, new_tokens = fitting(model.config.max_seq_len, *asked)
    if asked != (prompt_tokens, new_tokens):
        logger.warning(
            "prompt_tokens (%d) and new_tokens (%d) exceed the model's max_seq_len (%d); timing %d "
            "and %d instead", *asked, model.config.max_seq_len, prompt_tokens, new_tokens,
        )  # fmt: skip
    timings = []
    cases = [(size, cached) for size in batch_sizes for cached in (True, False)]
    hidden = None if progress else True
    for size, cached in tqdm(cases, "generation", leave=False, disable=hidden):
        generator = torch.Generator().manual_seed(0)
        shape = (size, prompt_tokens)
        ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)
        timings.append(
            GenerationTiming(
                batch_size=size,
                cached=cached,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                first_token_seconds=_median(model, ids, 1, cached, repeats, warmup),
                total_seconds=_median(model, ids, new_tokens, cached, repeats, warmup),
            )
        )
    return timings


def generation_metrics(timings: Sequence[GenerationTiming]) -> dict[str, float]:
    """Flat figures: `generate_batch_8_tokens_per_second`, `..._uncached_...` and the like."""
    metrics: dict[str, float] = {}
    for timing in timings:
        prefix = f"generate_batch_{timing.batch_size}_" + ("" if timing.cached else "uncached_")
        metrics[prefix + "tokens_per_second"] = timing.tokens_per_second
        metrics[prefix + "first_token_ms"] = 1e3 * timing.first_token_seconds
        metrics[prefix + "token_ms"] = 1e3 * timing.seconds_per_token
    for timing in timings:
        prefix = f"generate_batch_{timing.batch_size}_"
        slow = metrics.get(f"{prefix}uncached_tokens_per_second")
        if timing.cached and slow:
            metrics[f"{prefix}cache_speedup"] = timing.tokens_per_second / slow
    return metrics


def directory_bytes(path: Path) -> int:
    """Bytes of all files in a directory and below."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def fitting(limit: int, prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    """Prompt and new tokens, lowered if together they exceed `limit` positions."""
    if prompt_tokens + new_tokens <= limit:
        return prompt_tokens, new_tokens
    new = min(new_tokens, max(limit // 2, limit - prompt_tokens))
    return min(prompt_tokens, limit - new), new


def _median(
    model: TransformerLM, ids: Tensor, new_tokens: int, cached: bool, repeats: int, warmup: int
) -> float:
    # no end id: a text is never finished before its length is reached
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, use_cache=cached)

    def run() -> None:
        made = generate(model, ids, None, config)
        assert made.shape[1] == ids.shape[1] + new_tokens, "generation stopped early"

    return statistics.median(time_calls(run, repeats=repeats, warmup=warmup, device=model.device))
