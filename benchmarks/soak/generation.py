"""C2: prompts beyond the context, empty ones, nonsense settings, weights that give NaN."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak.row import Report, Row
from llm_trainer.exceptions import GenerationError
from llm_trainer.models.decoding import GenerationConfig
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.utils.generation import TextGenerator
from tests.errors.nonsense import COUNT, HUGE, INF, NAN, maybe
from tests.models.twin import tiny_model
from tests.utils.tiny_text_model import tiny_text_model, tiny_tokenizer

_NONSENSE: dict[str, Sequence[Any]] = {
    "max_new_tokens": (*maybe(COUNT), -HUGE),
    "max_length": maybe(COUNT),
    "temperature": ("hot", NAN, INF, -1, -1e-9, [], True),
    "top_k": maybe(COUNT),
    "top_p": ("p", NAN, INF, 0.0, -0.5, 1.0001, []),
    "num_beams": maybe(COUNT),
    "repetition_penalty": ("r", NAN, INF, 0, -1),
    "length_penalty": ("l", NAN, INF),
    "seed": ("s", -1, 2**64, 1.5),
    "do_sample": ("yes", 2),
    "early_stopping": ("later", 3),
    "stop": ([""], [1], 3),
}

_COMPANY: list[dict[str, Any]] = [{}, {"do_sample": False}, {"seed": 1}]


def run(folder: Path, scale: float) -> Report:
    """One `GenerationError` that names the setting and its value, alone and in company."""
    report = Report()
    ids = torch.ones(1, 3, dtype=torch.long)
    tried = named = 0
    model = tiny_model()
    for name, values in _NONSENSE.items():
        for value, others in itertools.product(values, _COMPANY):
            if name in others:
                continue
            tried += 1
            held = name in _refusal(model, ids, {**others, name: value})
            named += held
            report.require(held, f"{name}={value!r} was not named")
    prompts = [
        torch.ones(1, 0).long(), torch.ones(0, 3).long(), torch.ones(3).long(),
        torch.full((1, 3), -1), torch.full((1, 3), 2**40), torch.ones(1, 3),
    ]  # fmt: skip
    for prompt in prompts:
        tried += 1
        held = bool(_refusal(model, prompt, {}))
        named += held
        report.require(held, f"a prompt of shape {tuple(prompt.shape)} was accepted")
    truncated, warnings = _too_long(report)
    broken = tiny_model()
    dict(broken.named_parameters())["blocks.1.attention.out.weight"].data[0, 0] = NAN
    for settings in [*_COMPANY[1:], {"num_beams": 2}, {"top_k": 3}, {"top_p": 0.5}]:
        tried += 1
        held = "NaN" in _refusal(broken, ids, settings)
        named += held
        report.require(held, f"NaN logits were sampled from with {settings}")
    report.counters = {
        "requests": tried, "named": named, "prompts_beyond_the_context": truncated,
        "warnings_for_them": warnings,
    }  # fmt: skip
    return report


def _refusal(model: TransformerLM, ids: torch.Tensor, settings: dict[str, Any]) -> str:
    try:
        model.generate(ids, **settings)
    except GenerationError as error:
        return str(error)
    return ""


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _too_long(report: Report) -> tuple[int, int]:
    """Prompts longer than the context: the oldest tokens go, with one warning each."""
    model, tokenizer = tiny_text_model(), tiny_tokenizer()
    kept = _Kept()
    logger = logging.getLogger("llm_trainer")
    logger.addHandler(kept)
    number = 5
    for repeat in range(number):
        config = GenerationConfig(max_new_tokens=2, seed=0)
        TextGenerator(model, tokenizer).generate("word " * (200 + repeat), config)
    logger.removeHandler(kept)
    told = len(kept.messages)
    report.require(told == number, f"{told} warnings: {kept.messages[:1]}")
    return number, len(kept.messages)


ROW = Row("C2", "prompts beyond the context, empty, nonsense settings, NaN logits", run)
