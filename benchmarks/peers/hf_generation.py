"""Contestant: `generate` of transformers, greedy, over prompts of equal length."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.contest import SETTLE, Turn
from benchmarks.corpus import load_corpus
from benchmarks.shapes import hf_gpt2, hf_llama, llama_a


def run(args: dict[str, Any], turn: Turn) -> None:
    """args: layout (llama, gpt2), batch_size, prompt_tokens, new_tokens; generate: more keywords;
    dtype; compile."""
    from transformers import AutoModelForCausalLM

    corpus = load_corpus()
    torch.manual_seed(0)
    config = hf_gpt2(llama_a()) if args["layout"] == "gpt2" else hf_llama(llama_a())
    model = AutoModelForCausalLM.from_config(config).eval()
    model = model.to(getattr(torch, args.get("dtype", "float32")))
    if args.get("compile"):
        model.forward = torch.compile(model.forward)
    ids = torch.from_numpy(
        corpus.validation.rows(torch.arange(args["batch_size"]).numpy())[0].astype("int64")
    )[:, : args["prompt_tokens"]]
    settings = {
        "attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0,
        "max_new_tokens": args["new_tokens"], "min_new_tokens": args["new_tokens"],
        **args.get("generate", {}),
    }  # fmt: skip

    def once() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            made = model.generate(ids, **settings)
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
