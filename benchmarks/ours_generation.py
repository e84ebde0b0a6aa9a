"""Contestant: our `InferenceEngine`, greedy, over prompts of equal length."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.contest import SETTLE, Turn
from benchmarks.corpus import load_corpus
from benchmarks.shapes import llama_a
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.models import TransformerLM
from llm_trainer.models.decoding import generate
from llm_trainer.utils.inference import InferenceEngine


def run(args: dict[str, Any], turn: Turn) -> None:
    """args: batch_size, prompt_tokens, new_tokens; options: for `InferenceEngine.optimize`."""
    corpus = load_corpus()
    torch.manual_seed(0)
    engine = InferenceEngine(TransformerLM(llama_a()), corpus.tokenizer)
    engine.optimize(**args.get("options", {}))
    ids = torch.from_numpy(
        corpus.validation.rows(torch.arange(args["batch_size"]).numpy())[0].astype("int64")
    )[:, : args["prompt_tokens"]]
    config = GenerationConfig(max_new_tokens=args["new_tokens"], do_sample=False)

    def once() -> float:
        started = time.perf_counter()
        made = generate(engine.model, ids, None, config, make_runner=engine.generator._make_runner)
        seconds = time.perf_counter() - started
        assert made.shape[1] == args["prompt_tokens"] + args["new_tokens"]
        return seconds

    for _ in range(3):
        once()
    turn({})
    while True:
        for _ in range(SETTLE):
            once()
        turn({"tokens_per_second": args["batch_size"] * args["new_tokens"] / once()})
