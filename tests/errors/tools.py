"""Nonsense for evaluation, metrics, leaks, planning and benchmarks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from llm_trainer.config import TrainingConfig
from llm_trainer.utils import planning
from llm_trainer.utils.benchmarking import benchmark_generation
from llm_trainer.utils.evaluation import evaluate_rows
from llm_trainer.utils.leakage import find_leaks
from llm_trainer.utils.metrics import (
    compute_bleu_score,
    compute_diversity_metrics,
    compute_perplexity,
    compute_repetition_metrics,
    evaluate_generation_quality,
)
from llm_trainer.utils.optimization_benchmark import benchmark_ways, precision_metrics
from tests.errors.models import TOO_LONG
from tests.errors.nonsense import (
    AMOUNT,
    CHOICE,
    COUNT,
    DEVICE,
    FLAG,
    IDS,
    INF,
    NAN,
    NUMBER,
    OBJECT,
    POSITIVE,
    SIZE,
    SOME_TEXTS,
    TEXT,
    Entry,
    maybe,
)

WAYS = "llm_trainer.utils.optimization_benchmark"
NAMES = (None, 3, "compile", ["fast"], [3])
MODEL = (*OBJECT, nn.Linear(2, 2))
REFERENCES = (3, "one text", [1], [None], [["a", None]], [[]], [], ["a", "b"])
METRICS = "llm_trainer.utils.metrics"
PLANNING = "llm_trainer.utils.planning"
SHAPE = (*OBJECT, {"d_model": 8})
TRAINING = TrainingConfig()

ENTRIES = [
    Entry(
        f"{METRICS}:compute_perplexity", lambda w: compute_perplexity,
        lambda w: {"model": w.model, "dataloader": [w.ids]},
        {
            "model": MODEL, "device": DEVICE,
            "dataloader": (
                None, 3, "text", [], [None], ["text"], [3], [{}], [{"input_ids": None}],
                *([ids] for ids in (*IDS[4:], TOO_LONG)), [torch.ones(1, 1).long()],
            ),
        },
        called={"dataloader": "input_ids"},
    ),
    Entry(
        f"{METRICS}:compute_bleu_score", lambda w: compute_bleu_score,
        lambda w: {"predictions": ["a"], "references": ["a"]},
        {"predictions": SOME_TEXTS, "references": (None, *REFERENCES)},
    ),
    Entry(
        f"{METRICS}:compute_diversity_metrics", lambda w: compute_diversity_metrics,
        lambda w: {"texts": ["a"]}, {"texts": SOME_TEXTS},
    ),
    Entry(
        f"{METRICS}:compute_repetition_metrics", lambda w: compute_repetition_metrics,
        lambda w: {"texts": ["a"]}, {"texts": SOME_TEXTS},
    ),
    Entry(
        f"{METRICS}:evaluate_generation_quality", lambda w: evaluate_generation_quality,
        lambda w: {"generated": ["a"], "references": ["a"]},
        {"generated": SOME_TEXTS, "references": REFERENCES},
        cases=(({"generated_texts": ["a"]}, ("generated", "generated_texts")),),
    ),
    Entry(
        f"{METRICS}:evaluate_generation_quality", lambda w: evaluate_generation_quality,
        lambda w: {"generated_texts": ["a"], "reference_texts": ["a"]},
        {"generated_texts": SOME_TEXTS, "reference_texts": REFERENCES},
        called={"generated_texts": "generated", "reference_texts": "reference"},
    ),
    Entry(
        "llm_trainer.utils.evaluation:evaluate_rows", lambda w: evaluate_rows,
        lambda w: {
            "model": w.model, "rows": w.validation, "token_bytes": w.tokenizer.token_bytes(),
        },
        {
            "model": MODEL, "rows": (*OBJECT, [1, 2]),
            "token_bytes": (None, "text", 3, [1], np.zeros((2, 2))),
            "batch_size": COUNT, "document_mask": FLAG, "max_batches": maybe(COUNT),
            "confidence": (*NUMBER, 0.0, 1.0), "progress": FLAG,
            "autocast_dtype": (3, "bfloat16", torch.int8), "processes": maybe(OBJECT),
        },
        cases=(({"token_bytes": np.ones(3, np.int64)}, ("299", "token_bytes", "3", "use")),),
    ),
    Entry(
        "llm_trainer.utils.leakage:find_leaks", lambda w: find_leaks,
        lambda w: {
            "validation": lambda: w.raw.iter_documents("validation"),
            "train": w.raw.iter_documents("train"),
        },
        {
            "validation": (None, *("text", 3, [])), "train": (None, 3, "text", [3]),
            "threshold": (*NUMBER, 0.0, 1.1), "max_validation_bytes": COUNT,
            "num_train": maybe(SIZE), "progress": FLAG,
        },
    ),
    Entry(
        f"{PLANNING}:training_plan", lambda w: planning.training_plan,
        lambda w: {
            "model": w.shape, "training": TRAINING, "num_rows": 9, "row_length": 8,
        },
        {
            "model": SHAPE, "training": (*OBJECT, {}), "num_rows": maybe(COUNT),
            "row_length": (*COUNT, 1), "peak_flops": maybe(POSITIVE), "mfu": (*POSITIVE, 1.1),
            "steps": maybe(COUNT), "kernel": CHOICE, "process": SIZE,
        },
        cases=(({"num_rows": None}, ("num_rows", "max_steps")),),
    ),
    Entry(
        f"{PLANNING}:Plan.utilization",
        lambda w: w.trainer.plan(1e9).utilization, lambda w: {"tokens_per_second": 3.0},
        {"tokens_per_second": AMOUNT},
    ),
    Entry(
        f"{PLANNING}:Plan.render", lambda w: w.trainer.plan().render, lambda w: {},
        {"actuals": ("text", 3, {})},
    ),
    Entry(
        f"{PLANNING}:plan_memory", lambda w: planning.plan_memory,
        lambda w: {"model": w.shape, "training": TRAINING, "row_length": 8},
        {
            "model": SHAPE, "training": (*OBJECT, {}), "row_length": COUNT, "kernel": CHOICE,
            "process": SIZE,
        },
    ),
    Entry(
        f"{PLANNING}:planned_steps", lambda w: planning.planned_steps,
        lambda w: {"training": TRAINING, "num_rows": 9},
        {"training": (*OBJECT, {}), "num_rows": COUNT},
    ),
    *(
        Entry(
            f"{PLANNING}:{call.__name__}", lambda w, call=call: call, lambda w: {"config": w.shape},
            {"config": SHAPE},
        )
        for call in (
            planning.calculate_parameters, planning.count_parameters,
            planning.estimate_memory_usage,
        )
    ),
    Entry(
        f"{PLANNING}:flops_per_token", lambda w: planning.flops_per_token,
        lambda w: {"config": w.shape, "row_length": 8}, {"config": SHAPE, "row_length": COUNT},
    ),
    Entry(
        f"{PLANNING}:optimizer_bytes", lambda w: planning.optimizer_bytes,
        lambda w: {"count": planning.count_parameters(w.shape), "optimizer": "adamw"},
        {"count": OBJECT, "optimizer": CHOICE, "momentum": AMOUNT},
    ),
    Entry(
        f"{PLANNING}:format_bytes", lambda w: planning.format_bytes, lambda w: {"size": 3},
        {"size": (None, "text", NAN, INF, -1)},
    ),
    Entry(
        f"{PLANNING}:format_seconds", lambda w: planning.format_seconds, lambda w: {"seconds": 3},
        {"seconds": ("text", NAN, INF, -1)},
    ),
    Entry(
        "llm_trainer.utils.benchmarking:benchmark_generation", lambda w: benchmark_generation,
        lambda w: {
            "model": w.model, "batch_sizes": [1], "prompt_tokens": 2, "new_tokens": 2,
            "repeats": 1, "warmup": 0,
        },
        {
            "model": MODEL, "batch_sizes": (None, 3, "text", [], [0], ["a"]),
            "prompt_tokens": COUNT, "new_tokens": (*COUNT, 1), "repeats": COUNT, "warmup": SIZE,
            "progress": FLAG,
        },
    ),
    Entry(
        f"{WAYS}:benchmark_ways", lambda w: benchmark_ways,
        lambda w: {
            "engine": w.engine, "prompt": "def", "ways": [], "new_tokens": 2, "repeats": 1,
            "warmup": 0,
        },
        {
            "engine": OBJECT, "prompt": TEXT, "ways": NAMES, "new_tokens": (*COUNT, 1),
            "repeats": COUNT, "warmup": SIZE, "progress": FLAG,
        },
    ),
    Entry(
        f"{WAYS}:precision_metrics", lambda w: precision_metrics,
        lambda w: {
            "engine": w.engine, "rows": w.validation, "ways": ["quantize"], "max_bytes": 99,
            "batch_size": 1, "token_bytes": w.tokenizer.token_bytes(),
        },
        {
            "engine": OBJECT, "rows": (*OBJECT, [1, 2]), "ways": NAMES, "max_bytes": COUNT,
            "batch_size": COUNT, "token_bytes": (None, "text", 3, [1]), "document_mask": FLAG,
        },
    ),
]  # fmt: skip
