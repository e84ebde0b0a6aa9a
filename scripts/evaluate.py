#!/usr/bin/env python3
"""Evaluate a trained model on the validation text of a data set.

    python scripts/evaluate.py --model_path ./output --dataset_config configs/eval_config.json \\
        --output_path evaluation_results.json --max_batches 100

Loss, perplexity and bits per byte with a confidence interval over the validation documents that the
`data` section names, and samples from the prompts of the `evaluation` section with measures of
their quality. For the same documents the figures are those of the pipeline's stage `evaluate`.

Exit codes: 0 done, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from llm_trainer.config import Experiment
from llm_trainer.config.experiment import experiment_from_dict
from llm_trainer.config.loader import read_config_file
from llm_trainer.config.model import MAX_LENGTH
from llm_trainer.exceptions import ConfigurationError, LLMTrainerError
from llm_trainer.files import write_json
from pipeline.stage import run_stage

if TYPE_CHECKING:
    from llm_trainer.utils.evaluation import Evaluation
    from llm_trainer.utils.samples import Sample

logger = logging.getLogger("evaluate")

LONGEST = MAX_LENGTH
"""Stands for a length that is not given."""
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def build_parser() -> argparse.ArgumentParser:
    """All arguments."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description="Evaluate a trained model on validation text."
    )
    add = parser.add_argument
    add("--model_path", required=True, metavar="DIR", help="model directory with its tokenizer")
    add(
        "--dataset_config", required=True, metavar="FILE",
        help="JSON or YAML with a section data, and optionally evaluation; or params.yaml",
    )  # fmt: skip
    add(
        "--output_path", default="evaluation_results.json", metavar="FILE",
        help="JSON file for the results (default: evaluation_results.json)",
    )  # fmt: skip
    add(
        "--max_batches", type=int, metavar="N",
        help="score only N batches of rows, spread evenly over the text (default: all)",
    )  # fmt: skip
    add("--device", help="auto, cpu, cuda, cuda:1, mps (default: the file's, or auto)")
    add("--log_level", default="info", choices=LOG_LEVELS, help="(default: info)")
    return parser


def read_experiment(path: str) -> Experiment:
    """The sections of a file, whose rows may be of any length yet.

    Raises:
        ConfigurationError: names file, section, key, value and remedy.
    """
    values = read_config_file(path)
    if not isinstance(values.get("data"), dict):
        raise ConfigurationError(f"{path}: has no section 'data' that says what to evaluate on")
    home = "packing" if {"tokenizer", "packing"} & set(values) else "data"
    rows = values.setdefault(home, {})
    if isinstance(rows, dict):
        rows.setdefault("max_length", LONGEST)
    # the shape is the loaded model's, whatever the file says of another one
    values["model"] = {"max_seq_len": LONGEST}
    return experiment_from_dict(values, path)


def row_length(experiment: Experiment, max_seq_len: int) -> int:
    """Tokens per row: as configured, or as many as the model takes.

    Raises:
        ConfigurationError: more than the model takes.
    """
    wanted = experiment.packing.max_length
    if wanted == LONGEST:
        return max_seq_len
    if wanted > max_seq_len:
        raise ConfigurationError(
            f"max_length ({wanted:,}) is more than the model takes ({max_seq_len:,} tokens, its "
            f"max_seq_len); make it shorter, or leave it out"
        )
    return wanted


def evaluate(arguments: argparse.Namespace) -> None:
    """Load, score, sample, write.

    Raises:
        LLMTrainerError: wrong input of any kind.
    """
    if arguments.max_batches is not None and arguments.max_batches < 1:
        raise ConfigurationError(f"--max_batches ({arguments.max_batches}) must be at least 1")
    output, model_path = Path(arguments.output_path), Path(arguments.model_path)
    if output.is_dir():
        raise LLMTrainerError(f"--output_path: {output} is a directory; name a file in it")
    experiment = read_experiment(arguments.dataset_config)
    import torch

    from llm_trainer.data.prepare import validation_rows
    from llm_trainer.training.lineage import LINEAGE_NAME, read_lineage
    from llm_trainer.utils.evaluation import evaluate_rows
    from llm_trainer.utils.loading import load_model_and_tokenizer
    from llm_trainer.utils.samples import draw_samples

    config, packing, runtime = experiment.evaluation, experiment.packing, experiment.runtime
    if runtime.num_threads is not None:
        torch.set_num_threads(runtime.num_threads)
    model, tokenizer = load_model_and_tokenizer(model_path, arguments.device or runtime.device)
    max_length = row_length(experiment, model.config.max_seq_len)
    document_mask = False
    if (model_path / LINEAGE_NAME).is_file():
        document_mask = bool(read_lineage(model_path).params["training"]["document_mask"])
    if packing.strategy == "best_fit":
        logger.warning("packing: concat instead of best_fit, so that no text lacks its context")
    rows, names = validation_rows(
        experiment.data, tokenizer, max_length, pack_sequences=packing.strategy != "single"
    )
    result = evaluate_rows(
        model, rows, token_bytes=tokenizer.token_bytes(), batch_size=config.batch_size,
        document_mask=document_mask, max_batches=arguments.max_batches,
        confidence=config.confidence, progress=True,
    )  # fmt: skip
    samples = draw_samples(model, tokenizer, config, progress=True)
    python = all(name.endswith(".py") for name in names)
    write_json(
        output,
        {
            "model_path": model_path.as_posix(),
            "tokenizer_digest": tokenizer.digest,
            "data": described(experiment, max_length),
            "max_batches": arguments.max_batches,
            "document_mask": document_mask,
            **results(result, samples, python=python, confidence=config.confidence),
        },
    )
    print(f"{summary(result)}\nresults: {output}")


def described(experiment: Experiment, max_length: int) -> dict[str, Any]:
    """Which text the figures are of."""
    data = experiment.data
    keys: tuple[str, ...] = ("dataset_name", "dataset_config", "validation_split", "revision")
    if data.train_file is not None:
        keys = ("train_file", "validation_file")
    return {**{key: getattr(data, key) for key in keys}, "max_length": max_length}


def results(
    result: Evaluation, samples: Sequence[Sample], *, python: bool, confidence: float
) -> dict[str, Any]:
    """Figures and samples as plain values."""
    from llm_trainer.utils.samples import sample_metrics, samples_table

    return {
        **result.to_dict(),
        "confidence": confidence,
        **sample_metrics(samples, python=python),
        "samples": samples_table(samples),
    }


def summary(result: Evaluation) -> str:
    """What a reader wants to know, in a line."""
    low, high = result.bits_per_byte_low, result.bits_per_byte_high
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return (
        f"{result.bits_per_byte:.4f} bits per byte{interval}, loss {result.loss:.4f}, perplexity "
        f"{result.perplexity:.2f}, over {result.num_bytes:,} bytes of {result.num_documents:,} "
        f"documents"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and evaluate; errors become exit codes."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format="%(message)s", stream=sys.stderr)
    try:
        run_stage("evaluate", lambda: evaluate(arguments))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
