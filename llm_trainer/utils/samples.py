"""Samples from fixed prompts: how a model writes, next to how well it predicts.

The same model, prompts and seed give the same samples on the same machine and thread count. Each
prompt is continued on its own, so adding one changes no other's samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from llm_trainer.config.generation import GenerationConfig
from llm_trainer.config.stages import EvaluationConfig
from llm_trainer.models.decoding import FinishReason, continue_prompts
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.utils.metrics import compute_diversity_metrics, compute_repetition_metrics
from llm_trainer.utils.python_text import parsed_share


@dataclass(frozen=True)
class Sample:
    """One continuation of one prompt."""

    prompt: str
    text: str
    """The continuation, without the prompt and the end token."""
    tokens: int
    """New tokens, the end token included."""
    finish: FinishReason
    """end: the model ended the document; length: it was cut off."""


def draw_samples(
    model: TransformerLM,
    tokenizer: BPETokenizer,
    config: EvaluationConfig,
    *,
    progress: bool = False,
) -> list[Sample]:
    """Continue each of `config.prompts` `samples_per_prompt` times, in the order of the prompts.

    An empty prompt begins a document. Temperature 0 is greedy.

    Raises:
        GenerationError: a setting that generation refuses.
    """
    settings = GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        temperature=config.temperature or 1.0,
        top_k=config.top_k,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        seed=config.seed,
    )
    samples = []
    hidden = None if progress else True
    for prompt in tqdm(config.prompts, "samples", unit="prompt", leave=False, disable=hidden):
        ids = tokenizer.encode(prompt, add_special_tokens=False) or [tokenizer.end_id]
        rows = torch.tensor([ids] * config.samples_per_prompt)
        made = continue_prompts(model, rows, None, settings)
        for row, length, reason in zip(made.ids, made.lengths, made.reasons, strict=True):
            text = tokenizer.decode(row[:length].tolist())
            samples.append(Sample(prompt, text, length, reason))
    return samples


def sample_metrics(samples: Sequence[Sample], *, python: bool = False) -> dict[str, float]:
    """Diversity and repetition of the continuations, flat; see `utils.metrics`.

    `python` adds `sample_python_lines`, the mean share of lines that parse (`parsed_share`), with
    the prompt as part of the text: for models of Python source, where it means something.
    """
    texts = [sample.text for sample in samples]
    figures = {**compute_diversity_metrics(texts), **compute_repetition_metrics(texts)}
    metrics = {f"sample_{name}": float(value) for name, value in figures.items()}
    metrics["sample_tokens_mean"] = sum(sample.tokens for sample in samples) / len(samples)
    metrics["sample_ended_share"] = sum(s.finish == "end" for s in samples) / len(samples)
    if python:
        shares = [parsed_share(sample.prompt + sample.text) for sample in samples]
        metrics["sample_python_lines"] = sum(shares) / len(shares)
    return metrics


def samples_markdown(samples: Sequence[Sample]) -> str:
    """The samples as a page to read: a section a prompt, the prompt in front of each text."""
    lines = ["# Samples", ""]
    prompt = None
    for sample in samples:
        if sample.prompt != prompt:
            prompt = sample.prompt
            lines += [f"## {json.dumps(prompt, ensure_ascii=False)}", ""]
        text = sample.prompt + sample.text
        fence = _fence(text)
        lines += [f"{sample.tokens} tokens, {sample.finish}", "", fence, text, fence, ""]
    return "\n".join(lines)


def samples_table(samples: Sequence[Sample]) -> list[dict[str, str | int]]:
    """The samples as rows of plain values."""
    return [asdict(sample) for sample in samples]


def _fence(text: str) -> str:
    """A code fence that the text does not contain."""
    fence = "```"
    while fence in text:
        fence += "`"
    return fence
