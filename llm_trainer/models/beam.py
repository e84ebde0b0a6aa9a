"""Beam search: the best of several hypotheses kept side by side.

Scores are sums of log-probabilities; a hypothesis is divided by length ** length_penalty once, when
it is finished. The rules, early stopping included, are those of Hugging Face transformers 5, whose
results it equals. Price: num_beams rows for each prompt, a copy of the cache at each step, and one
synchronisation a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_trainer.config.generation import GenerationConfig
from llm_trainer.models.request import Continuation, FinishReason, PromptBatch
from llm_trainer.models.runner import Runner
from llm_trainer.models.sampling import (
    UniformStreams,
    check_logits,
    filter_logits,
    penalize,
    seen_tokens,
)

IMPOSSIBLE = -1e9
"""Score of a hypothesis that must not win; finite, so that sums and comparisons stay defined."""


@dataclass
class _Hypotheses:
    """A fixed number of hypotheses for each prompt, best first."""

    ids: Tensor
    """(prompts, hypotheses, max_new) long."""
    scores: Tensor
    """(prompts, hypotheses): sums of running ones, normalised scores of finished ones."""
    lengths: Tensor
    """(prompts, hypotheses) new tokens."""
    real: Tensor
    """(prompts, hypotheses) bool: filled at all."""

    def pick(self, index: Tensor) -> _Hypotheses:
        """Those at `index`, (prompts, any number), of each prompt."""
        wide = index[:, :, None].expand(-1, -1, self.ids.shape[2])
        return _Hypotheses(
            self.ids.gather(1, wide),
            self.scores.gather(1, index),
            self.lengths.gather(1, index),
            self.real.gather(1, index),
        )

    def merge(self, other: _Hypotheses) -> _Hypotheses:
        """The best of both, as many as there are here."""
        both = _Hypotheses(
            torch.cat((self.ids, other.ids), dim=1),
            torch.cat((self.scores, other.scores), dim=1),
            torch.cat((self.lengths, other.lengths), dim=1),
            torch.cat((self.real, other.real), dim=1),
        )
        return both.pick(both.scores.topk(self.scores.shape[1], dim=1).indices)


def beam_search(
    runner: Runner,
    batch: PromptBatch,
    config: GenerationConfig,
    streams: UniformStreams | None,
    *,
    end_id: int | None,
    pad_id: int,
) -> Continuation:
    """The best finished hypothesis of each prompt.

    With `streams` candidates are drawn without replacement instead of taken from the top
    (stochastic beams; temperature, top-k and top-p apply then only).

    Raises:
        GenerationError: NaN logits.
    """
    beams, prompts = config.num_beams, len(batch.rows)
    device = batch.input_ids.device
    limits = torch.tensor(batch.limits, device=device)[:, None]
    first_rows = torch.arange(prompts, device=device)[:, None] * beams

    logits = runner.start(batch.input_ids, batch.attention_mask, beams)
    vocab_size = logits.shape[-1]
    seen = None
    if config.repetition_penalty != 1.0:
        seen = seen_tokens(batch.input_ids, vocab_size, batch.attention_mask)
        seen = seen.repeat_interleave(beams, dim=0)
    running = _empty(prompts, beams, batch.max_new, pad_id, device)
    running.scores[:, 0] = 0.0  # all beams are equal at first; only one of them may branch
    finished = _empty(prompts, beams, batch.max_new, pad_id, device)
    open_rows = torch.ones(prompts, 1, dtype=torch.bool, device=device)
    # with an end token every beam may end, and as many must be left to go on
    num_candidates = min(2 * beams, beams * vocab_size)

    for step in range(1, batch.max_new + 1):
        check_logits(logits)
        scores = _step_scores(logits, seen, config, drawing=streams is not None)
        totals = (scores.view(prompts, beams, vocab_size) + running.scores[:, :, None]).flatten(1)
        choice = _choose(totals, num_candidates, streams)
        tokens, parents = choice % vocab_size, choice // vocab_size  # (prompts, candidates)
        candidates = running.pick(parents)
        candidates.scores = totals.gather(1, choice)
        candidates.ids[:, :, step - 1] = tokens
        candidates.lengths = torch.full_like(candidates.lengths, step)

        ends = (step >= limits).expand_as(tokens)
        if end_id is not None:
            ends = ends | (tokens == end_id)
        finished = finished.merge(_finish(candidates, ends, open_rows, config, beams))

        scores = candidates.scores.masked_fill(ends, IMPOSSIBLE)
        best = scores.topk(beams, dim=1).indices
        running = candidates.pick(best)
        running.scores = scores.gather(1, best)
        open_rows &= ~ends.all(dim=1, keepdim=True)
        open_rows &= _may_improve(running.scores[:, :1], finished, step, limits, config)
        if config.early_stopping is True:
            open_rows &= ~finished.real.all(dim=1, keepdim=True)
        if step == batch.max_new or not bool(open_rows.any()):
            break

        rows = (first_rows + parents.gather(1, best)).flatten()  # (prompts * beams,)
        next_tokens = tokens.gather(1, best).flatten()
        runner.reorder(rows)
        if seen is not None:
            seen = seen.index_select(0, rows).scatter(1, next_tokens[:, None], True)
        logits = runner.step(next_tokens)
    return _result(finished, end_id)


def _empty(
    prompts: int, beams: int, max_new: int, pad_id: int, device: torch.device
) -> _Hypotheses:
    shape = (prompts, beams)
    return _Hypotheses(
        torch.full((*shape, max_new), pad_id, device=device),
        torch.full(shape, IMPOSSIBLE, device=device),
        torch.zeros(shape, dtype=torch.long, device=device),
        torch.zeros(shape, dtype=torch.bool, device=device),
    )


def _step_scores(
    logits: Tensor, seen: Tensor | None, config: GenerationConfig, *, drawing: bool
) -> Tensor:
    """Log-probabilities of the next token, (prompts * beams, vocab_size), as they are ranked."""
    scores = logits.float().log_softmax(dim=-1)
    if seen is not None:
        scores = penalize(scores, seen, config.repetition_penalty)
    return filter_logits(scores, config) if drawing else scores


def _choose(totals: Tensor, count: int, streams: UniformStreams | None) -> Tensor:
    """Indices of the `count` best or drawn continuations, (prompts, count), of (prompts, any)."""
    if streams is None:
        return totals.topk(count, dim=1).indices
    # adding Gumbel noise and taking the top is drawing without replacement (Kool et al. 2019)
    noise = streams.gumbel(totals.shape[1])
    return (totals + noise).topk(count, dim=1).indices


def _finish(
    candidates: _Hypotheses,
    ends: Tensor,
    open_rows: Tensor,
    config: GenerationConfig,
    beams: int,
) -> _Hypotheses:
    """The candidates with final scores; those that may not be kept get an impossible one.

    Only the `beams` best of the candidates may finish; the others are there to go on.
    """
    among_best = torch.arange(ends.shape[1], device=ends.device) < beams
    keep = ends & among_best & open_rows
    scores = candidates.scores / candidates.lengths**config.length_penalty
    return _Hypotheses(
        candidates.ids, scores.masked_fill(~keep, IMPOSSIBLE), candidates.lengths, keep
    )


def _may_improve(
    best_running: Tensor,
    finished: _Hypotheses,
    step: int,
    limits: Tensor,
    config: GenerationConfig,
) -> Tensor:
    """(prompts, 1) bool: whether a running hypothesis could still beat the worst finished one."""
    if config.early_stopping == "never" and config.length_penalty > 0:
        length = limits
    else:
        length = torch.full_like(limits, step)
    reachable = best_running / length**config.length_penalty
    worst = torch.where(finished.real, finished.scores.amin(1, keepdim=True), IMPOSSIBLE)
    return (reachable > worst).any(dim=1, keepdim=True)


def _result(finished: _Hypotheses, end_id: int | None) -> Continuation:
    lengths = finished.lengths[:, 0].tolist()
    ids = finished.ids[:, 0, : max(lengths)]
    reasons: list[FinishReason] = [
        "end" if row[length - 1] == end_id else "length"
        for row, length in zip(ids.tolist(), lengths, strict=True)
    ]
    return Continuation(ids, lengths, reasons, finished.scores[:, 0].tolist())
