"""The one decoding loop: greedy and sampling; beam search is in `beam`.

Everything that generates text comes through here: `TransformerLM.generate`, `TextGenerator`,
`InferenceEngine`, samples during training, evaluation and benchmarks. A step is one forward pass
of one token a row, then a few operations on (batch, vocab_size) logits; on an accelerator the host
waits for the device every few steps only, unless tokens are streamed. The model's mode and torch's
global random state are left as they were, but for one number that is drawn if there is no seed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llm_trainer.config.checks import function, instance, refuse
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import GenerationError
from llm_trainer.models.beam import beam_search
from llm_trainer.models.request import (
    Continuation,
    FinishReason,
    PromptBatch,
    end_and_pad,
    plan_batches,
)
from llm_trainer.models.runner import CachedRunner, Runner, RunnerFactory, UncachedRunner
from llm_trainer.models.sampling import (
    UniformStreams,
    check_logits,
    draw,
    filter_logits,
    penalize,
    seen_tokens,
)
from llm_trainer.models.transformer import TransformerLM

Streamer = Callable[[list[int | None]], Collection[int] | None]
"""Called after each step with the new token of each row of the request, None for a row that has
none; returns the rows that should end here, if any. It makes the host wait for each token."""

STEPS_PER_CHECK = 8
"""Steps between looks at the device to see whether all rows have ended."""

__all__ = [
    "Continuation",
    "FinishReason",
    "GenerationConfig",
    "Streamer",
    "continue_prompts",
    "generate",
]


def generate(
    model: TransformerLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    config: GenerationConfig | None = None,
    *,
    streamer: Streamer | None = None,
    make_runner: RunnerFactory | None = None,
) -> Tensor:
    """Continue each row of `input_ids`; arguments and errors as in `continue_prompts`.

    Returns:
        (batch, time + longest continuation) ids: the prompts as given, padding included, then the
        new tokens; rows that ended earlier are filled with the pad id.
    """
    new = continue_prompts(
        model, input_ids, attention_mask, config, streamer=streamer, make_runner=make_runner
    )
    return torch.cat((input_ids, new.ids.to(input_ids)), dim=1)


def continue_prompts(
    model: TransformerLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    config: GenerationConfig | None = None,
    *,
    streamer: Streamer | None = None,
    make_runner: RunnerFactory | None = None,
) -> Continuation:
    """Continue each row of `input_ids` until its end token, its limit or the end of the context.

    Args:
        model: on any device, in any mode.
        input_ids: (batch, time) long, left-padded where prompts differ in length.
        attention_mask: (batch, time), 0 for padding; None means there is none.
        config: the settings; None for the defaults.
        streamer: see `Streamer`; not with beam search, whose tokens are settled at the end only.
        make_runner: another way to run the model; None follows `use_cache`.

    Raises:
        GenerationError: an impossible setting or prompt, or NaN logits.
    """
    refuse(
        GenerationError,
        instance("model", model, TransformerLM),
        instance("input_ids", input_ids, Tensor),
        instance("attention_mask", attention_mask, Tensor, none=True),
        instance("config", config, GenerationConfig, none=True),
        function("streamer", streamer),
        function("make_runner", make_runner),
    )
    config = config or GenerationConfig()
    config.validate()
    if config.stop:
        raise GenerationError(
            f"stop ({config.stop}) is text, which a model alone does not know; use TextGenerator"
        )
    if streamer is not None and config.num_beams > 1:
        raise GenerationError(
            f"num_beams ({config.num_beams}) cannot stream: the best hypothesis is known at the "
            f"end only; leave the streamer out, or set num_beams to 1"
        )
    end_id, pad_id = end_and_pad(config, model.config.vocab_size)
    input_ids = input_ids.to(model.device)
    if attention_mask is not None:
        attention_mask = attention_mask.to(model.device)
    batches = plan_batches(model.config, input_ids, attention_mask, config)
    seed = _seed(config)
    make_runner = make_runner or (CachedRunner if config.use_cache else UncachedRunner)
    parts = []
    with _generating(model):
        for batch in batches:
            runner = make_runner(model, batch.max_new)
            streams = UniformStreams(seed, batch.rows, model.device) if config.draws else None
            if config.num_beams > 1:
                part = beam_search(runner, batch, config, streams, end_id=end_id, pad_id=pad_id)
            else:
                watch = _RowsStreamer(streamer, batch.rows, input_ids.shape[0])
                part = _decode(runner, batch, config, streams, watch, end_id, pad_id)
            parts.append(part)
    return _join(batches, parts, pad_id)


def _decode(
    runner: Runner,
    batch: PromptBatch,
    config: GenerationConfig,
    streams: UniformStreams | None,
    streamer: _RowsStreamer,
    end_id: int | None,
    pad_id: int,
) -> Continuation:
    """Take or draw one token a row and step until all rows have ended."""
    device = batch.input_ids.device
    rows = len(batch.rows)
    limits = torch.tensor(batch.limits, device=device)
    ids = torch.full((rows, batch.max_new), pad_id, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    done, ended, stopped = (torch.zeros(rows, dtype=torch.bool, device=device) for _ in range(3))
    nan = torch.zeros((), dtype=torch.bool, device=device)
    every = _steps_per_check(device, streaming=streamer.active)

    logits = runner.start(batch.input_ids, batch.attention_mask, 1).float()
    seen = None
    if config.repetition_penalty != 1.0:
        seen = seen_tokens(batch.input_ids, logits.shape[-1], batch.attention_mask)
    for step in range(1, batch.max_new + 1):
        nan |= logits.amax().isnan()  # a maximum passes NaN on, in a fraction of the time
        if seen is not None:
            logits = penalize(logits, seen, config.repetition_penalty)
        if streams is None:
            tokens = logits.argmax(dim=-1)
        else:
            tokens = draw(filter_logits(logits, config), streams.next())
        tokens = torch.where(done, pad_id, tokens)  # (rows,)
        ids[:, step - 1] = tokens
        lengths += ~done
        if end_id is not None:
            ended |= ~done & (tokens == end_id)
        streamed = streamer(tokens, done, nan)
        if streamed is not None:
            stopped |= streamed & ~done
        done = ended | stopped | (lengths >= limits)
        if step == batch.max_new or (step % every == 0 and bool(done.all() | nan)):
            break
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        logits = runner.step(tokens).float()
    _refuse_nan(nan)
    reasons: list[FinishReason] = [
        "stop" if stop else "end" if end else "length"
        for end, stop in zip(ended.tolist(), stopped.tolist(), strict=True)
    ]
    return Continuation(ids[:, : int(lengths.max())], lengths.tolist(), reasons)


class _RowsStreamer:
    """Hands the tokens of a batch to the caller's streamer under the rows of the request."""

    def __init__(self, streamer: Streamer | None, rows: list[int], num_rows: int) -> None:
        self._streamer = streamer
        self._rows = rows
        self._num_rows = num_rows

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return self._streamer is not None

    def __call__(self, tokens: Tensor, done: Tensor, nan: Tensor) -> Tensor | None:
        """Show new tokens of rows that are not `done`; (rows,) bool of those to end, or None."""
        if self._streamer is None:
            return None
        _refuse_nan(nan)  # before a wrong token is shown
        new: list[int | None] = [None] * self._num_rows
        for row, token, over in zip(self._rows, tokens.tolist(), done.tolist(), strict=True):
            new[row] = None if over else token
        wanted = self._streamer(new)
        if not wanted:
            return None
        return torch.tensor([row in wanted for row in self._rows], device=tokens.device)


def _steps_per_check(device: torch.device, *, streaming: bool) -> int:
    """Looking costs nothing where the host computes itself, or waits for each token anyway."""
    return 1 if device.type == "cpu" or streaming else STEPS_PER_CHECK


def _refuse_nan(nan: Tensor) -> None:
    check_logits(torch.where(nan, float("nan"), 0.0))


def _seed(config: GenerationConfig) -> int:
    if config.seed is not None or not config.draws:
        return config.seed or 0
    return int(torch.randint(2**63 - 1, ()))


def _join(batches: list[PromptBatch], parts: list[Continuation], pad_id: int) -> Continuation:
    """The parts' rows in the order of the request."""
    if len(parts) == 1:
        return parts[0]
    num_rows = sum(len(batch.rows) for batch in batches)
    longest = max(part.ids.shape[1] for part in parts)
    ids = torch.full((num_rows, longest), pad_id, device=parts[0].ids.device)
    lengths = [0] * num_rows
    reasons: list[FinishReason] = ["length"] * num_rows
    scores = [0.0] * num_rows
    for batch, part in zip(batches, parts, strict=True):
        for i, row in enumerate(batch.rows):
            ids[row, : part.ids.shape[1]] = part.ids[i]
            lengths[row], reasons[row] = part.lengths[i], part.reasons[i]
            scores[row] = part.scores[i] if part.scores is not None else 0.0
    return Continuation(ids, lengths, reasons, scores if parts[0].scores is not None else None)


@contextmanager
def _generating(model: TransformerLM) -> Iterator[None]:
    """Evaluation mode without gradients; mode and determinism are restored.

    torch refuses the cumulative sums of sampling on CUDA where deterministic algorithms are
    required, as during training; the numbers that they draw here are no part of a training result.
    """
    training = model.training
    strict = torch.are_deterministic_algorithms_enabled() and model.device.type == "cuda"
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    model.eval()
    if strict:
        torch.use_deterministic_algorithms(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        if strict:
            torch.use_deterministic_algorithms(True, warn_only=warn_only)
