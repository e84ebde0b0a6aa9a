"""Stage `benchmark`: how fast the model trains and generates on this machine, and what it weighs.

The figures are the machine's as much as the model's, so the machine is among them: a stage that
comes from the cache replays the figures of the machine that it ran on. `data/packed` is read for
the validation rows that rounded weights are scored on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from llm_trainer.files import write_json
from pipeline.params import load_params
from pipeline.paths import BENCHMARK_METRICS, MODEL, PACKED, TOKENIZER
from pipeline.stage import main_checkout, stage_program


def main() -> None:
    """Time models/final; write the metrics."""
    params = load_params()
    runtime, config = params.runtime, params.benchmark
    root = main_checkout()
    # what training compiled is compiled already
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / ".cache" / "inductor"))
    import numpy as np
    import torch

    from llm_trainer.config import TrainingConfig
    from llm_trainer.config.loader import build_config
    from llm_trainer.data.shards import PackedRows
    from llm_trainer.models.transformer import TransformerLM
    from llm_trainer.tokenizer.bpe import BPETokenizer
    from llm_trainer.training.benchmark import benchmark_training
    from llm_trainer.training.lineage import read_lineage
    from llm_trainer.training.tracking import log_stage
    from llm_trainer.utils.benchmarking import (
        benchmark_generation,
        directory_bytes,
        fitting,
        generation_metrics,
    )
    from llm_trainer.utils.device import get_device
    from llm_trainer.utils.evaluation import check_rows
    from llm_trainer.utils.inference import InferenceEngine
    from llm_trainer.utils.machine import describe_machine, peak_memory_bytes, reset_peak_memory
    from llm_trainer.utils.optimization_benchmark import (
        benchmark_ways,
        precision_metrics,
        way_metrics,
    )

    started = time.perf_counter()
    if runtime.num_threads is not None:
        torch.set_num_threads(runtime.num_threads)
    device = get_device(runtime.device)
    model = TransformerLM.from_pretrained(MODEL, device)
    tokenizer = BPETokenizer.from_pretrained(TOKENIZER)
    engine = InferenceEngine(model, tokenizer)
    rows = PackedRows(PACKED, "validation")
    check_rows(model, tokenizer.digest, rows)
    trained = read_lineage(MODEL).params["training"]
    training_config = build_config(TrainingConfig, trained, f"{MODEL}/lineage.json: training")

    reset_peak_memory(device)
    generation = benchmark_generation(
        model, batch_sizes=config.generation_batch_sizes, prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens, repeats=config.repeats, warmup=config.warmup_steps,
        progress=True,
    )  # fmt: skip
    generation_memory = peak_memory_bytes(device)
    prompt_tokens, new_tokens = fitting(
        model.config.max_seq_len, config.prompt_tokens, config.new_tokens
    )
    options = benchmark_ways(
        engine, tokenizer.decode(rows.rows(np.array([0]))[0][0, :prompt_tokens]),
        ways=config.optimizations, new_tokens=new_tokens, repeats=config.repeats,
        warmup=config.warmup_steps, progress=True,
    )  # fmt: skip
    precision = precision_metrics(
        engine, rows, ways=config.optimizations, token_bytes=tokenizer.token_bytes(),
        max_bytes=config.quality_bytes, batch_size=config.batch_size,
        document_mask=bool(trained["document_mask"]),
    )  # fmt: skip
    # last, because it leaves the model trained on noise
    training = benchmark_training(
        model, training_config, batch_size=config.batch_size, steps=config.training_steps,
        warmup=config.warmup_steps, progress=True,
    )  # fmt: skip
    metrics: dict[str, Any] = {
        "parameters": model.get_num_params(),
        "model_directory_bytes": directory_bytes(MODEL),
        **training.to_dict(),
        **generation_metrics(generation),
        "generate_peak_memory_bytes": generation_memory,
        **way_metrics(options),
        **precision,
        **{f"machine_{name}": value for name, value in describe_machine(device).items()},
        "seconds": time.perf_counter() - started,
    }
    metrics = {k: round(v, 4) if isinstance(v, float) else v for k, v in metrics.items()}
    write_json(BENCHMARK_METRICS, metrics)
    print(
        f"training: {training.tokens_per_second:,.0f} tokens/s, {training.mfu:.0%} of "
        f"{training.peak_flops / 1e9:,.0f} GFLOP/s ({training.dtype})"
    )
    for timing in generation:
        print(
            f"generation, batch {timing.batch_size}, {'with' if timing.cached else 'no'} cache: "
            f"{timing.tokens_per_second:,.0f} tokens/s, first token after "
            f"{1e3 * timing.first_token_seconds:.1f} ms"
        )
    for line in summary(metrics, config.optimizations):
        print(line)
    log_stage(
        MODEL, "benchmark", metrics, runtime=runtime, root=root,
        params={"benchmark": config.to_dict()},
    )  # fmt: skip


def summary(metrics: dict[str, Any], ways: list[Any]) -> Iterator[str]:
    """What each way to run the engine came to, a line each."""
    for way in ways:
        name = f"optimize_{way}"
        if name in metrics:
            yield f"{way}: {metrics[name]}"
            continue
        added = metrics.get(f"{name}_bits_per_byte_added")
        yield (
            f"{way}: {metrics[f'{name}_tokens_per_second_ratio']:.2f} times as fast, "
            f"{metrics[f'{name}_model_bytes_ratio']:.2f} of the weights' memory"
            + ("" if added is None else f", {added:+.4f} bits per byte")
        )


if __name__ == "__main__":
    stage_program("benchmark", main, __doc__)
