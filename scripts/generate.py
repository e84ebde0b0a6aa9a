#!/usr/bin/env python3
"""Continue prompts with a trained model.

    python scripts/generate.py --model_path models/final --prompts "def __init__(self" --seed 1
    python scripts/generate.py --model_path models/final --interactive

Exit codes: 0 done, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import LLMTrainerError

if TYPE_CHECKING:
    from llm_trainer.utils.inference import InferenceEngine

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def build_parser() -> argparse.ArgumentParser:
    """All arguments, each with its unit and default."""
    parser = argparse.ArgumentParser(
        prog="generate.py", description="Continue prompts with a trained model."
    )
    add = parser.add_argument
    add("--model_path", required=True, help="model directory, such as models/final")
    add("--tokenizer_path", help="tokenizer directory; default: the one inside model_path")
    add(
        "--prompts",
        nargs="+",
        metavar="TEXT",
        help="texts to continue, best without a space at the end; '' begins a document",
    )
    add(
        "--interactive", action="store_true", help="read prompts from the terminal, after --prompts"
    )
    add("--stream", action="store_true", help="show text as it is generated, prompt by prompt")

    group = parser.add_argument_group("generation")
    add = group.add_argument
    add("--max_length", type=int, default=100, help="tokens with the prompt (default: 100)")
    add("--max_new_tokens", type=int, help="new tokens; counts instead of max_length")
    add("--temperature", type=float, default=1.0, help="0 is greedy (default: 1.0)")
    add("--top_k", type=int, help="draw from the k likeliest tokens (default: all)")
    add("--top_p", type=float, help="draw from tokens of this total probability (default: all)")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--num_beams", type=int, default=1, help="hypotheses of beam search (default: 1, none)")
    add("--length_penalty", type=float, default=1.0, help="of beam search (default: 1.0)")
    add("--repetition_penalty", type=float, default=1.0, help="above 1: fewer (default: 1.0, off)")
    add("--stop", nargs="+", default=[], metavar="TEXT", help="texts that end a generation")
    add("--seed", type=int, help="the same seed draws the same text (default: a new one each time)")

    group = parser.add_argument_group("execution")
    add = group.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--compile", action="store_true", help="compile the step: slow start, faster tokens")
    add("--quantize", action="store_true", help="8-bit weights: less memory, faster on a CPU")
    add("--no_cache", action="store_true", help="recompute all tokens at each step")
    add("--log_level", default="warning", choices=LOG_LEVELS, help="(default: warning)")
    return parser


def settings(arguments: argparse.Namespace) -> GenerationConfig:
    """The generation settings of the command line.

    Raises:
        GenerationError: impossible values, all in one message.
    """
    return GenerationConfig(
        max_length=arguments.max_length,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        do_sample=False if arguments.greedy else None,
        num_beams=arguments.num_beams,
        length_penalty=arguments.length_penalty,
        repetition_penalty=arguments.repetition_penalty,
        stop=arguments.stop,
        seed=arguments.seed,
        use_cache=not arguments.no_cache,
    )


def load(arguments: argparse.Namespace) -> InferenceEngine:
    """The engine, loaded and optimised as asked."""
    from llm_trainer.utils.inference import InferenceEngine
    from llm_trainer.utils.loading import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(
        arguments.model_path, arguments.device, tokenizer_path=arguments.tokenizer_path
    )
    engine = InferenceEngine(model, tokenizer)
    engine.optimize(
        enable_kv_cache=not arguments.no_cache,
        compile_model=arguments.compile,
        quantize=arguments.quantize,
    )
    return engine


def continue_prompts(
    engine: InferenceEngine, prompts: list[str], config: GenerationConfig, *, stream: bool
) -> None:
    """Print each prompt with its continuation, a blank line between them."""
    if not stream:
        print("\n\n".join(engine.generator.batch_generate(prompts, config)))
        return
    for number, prompt in enumerate(prompts):
        if number:
            print("\n")
        print(prompt, end="", flush=True)
        engine.generator.complete(
            [prompt], config, on_text=lambda _, text: print(text, end="", flush=True)
        )
    print()


def main(argv: list[str] | None = None) -> int:
    """Parse, generate, print; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not arguments.prompts and not arguments.interactive:
        parser.error("nothing to do: give --prompts, or --interactive")
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("llm_trainer").setLevel(arguments.log_level.upper())
    try:
        config = settings(arguments)  # before torch is loaded
        engine = load(arguments)
        if arguments.prompts:
            continue_prompts(engine, arguments.prompts, config, stream=arguments.stream)
        if arguments.interactive:
            engine.generator.interactive_generate(config)
    except LLMTrainerError as error:
        print(f"error: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
