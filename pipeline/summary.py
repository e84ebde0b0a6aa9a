"""What came out, for a reader who has never seen this project: `python -m pipeline.summary`.

Reads the metrics and samples that the stages wrote; computes nothing. Says whether the figures are
those that the last commit holds, and if not, why: changed params, another corpus (the default one
is the library of the Python that runs it), or another machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_trainer.config.loader import parse_config_text, read_config_file
from llm_trainer.exceptions import ConfigurationError, IntegrityError
from llm_trainer.json_file import read_json
from pipeline.download import compare
from pipeline.params import PARAMS, load_params
from pipeline.paths import (
    DOWNLOAD_METRICS,
    EVALUATE_METRICS,
    LOSS_PICTURE,
    METRICS,
    MODEL,
    SAMPLES,
    TRAIN_METRICS,
)
from pipeline.stage import run_stage

SAMPLE_LINES = 12
"""Lines of the sample that are shown."""
MAX_PARAMS = 4
"""Changed params that are named."""
SAME = 1e-9
"""Relative difference of bits per byte from which figures count as different."""

Figures = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.summary", description="Say what the last run came to."
    )
    parser.parse_args(arguments)
    download, train, evaluate = map(read, (DOWNLOAD_METRICS, TRAIN_METRICS, EVALUATE_METRICS))
    print()
    parts = [
        result(download, train, evaluate), sample(), places(), reference(download, evaluate),
        next_steps(),
    ]  # fmt: skip
    texts = ("\n".join(part) for part in parts)
    print("\n\n".join(text for text in texts if text))


def read(path: Path) -> Figures:
    """Metrics of a stage.

    Raises:
        IntegrityError: missing or damaged; names the command that makes it.
    """
    if not path.is_file():
        raise IntegrityError(f"{path}: missing; `dvc repro` makes it")
    values = read_json(path)
    if not isinstance(values, dict):
        raise IntegrityError(f"{path}: not a mapping of metrics; `dvc repro` makes it anew")
    return values


def result(download: Figures, train: Figures, evaluate: Figures) -> Iterator[str]:
    """What was trained and how good it is."""
    yield (
        f"A language model of {train['parameters'] / 1e6:.1f} million parameters was trained on "
        f"{download['train_bytes'] / 1e6:,.1f} MB of text"
    )
    yield (
        f"({download['dataset_name']}): {train['tokens']:,} tokens in {train['steps']:,} steps, "
        f"{duration(train['seconds'])}."
    )
    yield ""
    interval = ""
    if "bits_per_byte_low" in evaluate:
        interval = (
            f" ({evaluate['confidence']:.0%} interval {evaluate['bits_per_byte_low']:.3f} to "
            f"{evaluate['bits_per_byte_high']:.3f})"
        )
    yield f"  validation: {evaluate['bits_per_byte']:.3f} bits per byte{interval}"
    yield (
        f"  So many bits does it take, on average, to write down a byte of text that it has not "
        f"seen\n  ({evaluate['documents']:,} documents). Lower is better; 8 is knowing nothing."
    )
    shared = float(evaluate.get("leak_bytes_share", 0.0))
    if shared > 0:
        yield (
            f"  Of that text {shared:.1%} is in the training text too (see {SAMPLES}/leaks.json), "
            f"which flatters the figure."
        )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 90:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def sample() -> Iterator[str]:
    """The first sample, its prompt included."""
    samples = read_json(SAMPLES / "samples.json")
    if not isinstance(samples, list) or not samples:
        raise IntegrityError(f"{SAMPLES}/samples.json: not a list of samples; run `dvc repro`")
    first = samples[0]
    yield f"What it writes after {json.dumps(first['prompt'], ensure_ascii=False)}:"
    yield ""
    lines = f"{first['prompt']}{first['text']}".splitlines()
    yield from (f"  | {line}" for line in lines[:SAMPLE_LINES])
    if len(lines) > SAMPLE_LINES:
        yield "  | ..."


def places() -> Iterator[str]:
    """Where the files are."""
    yield f"  {'model':<9} {MODEL}"
    yield f"  {'samples':<9} {SAMPLES / 'samples.md'}"
    yield f"  {'curve':<9} {LOSS_PICTURE}"
    yield f"  {'figures':<9} {METRICS}/*.json"


def reference(download: Figures, evaluate: Figures) -> Iterator[str]:
    """Whether the figures are those of the last commit, and if not, why."""
    committed = _committed_json(EVALUATE_METRICS)
    if "bits_per_byte" not in committed:
        return
    here, there = float(evaluate["bits_per_byte"]), float(committed["bits_per_byte"])
    if abs(here - there) <= SAME * abs(there):
        yield f"The last commit has the same figure ({there:.3f} bits per byte)."
        return
    yield f"The last commit has {there:.3f} bits per byte. What differs:"
    reasons = [f"  params.yaml: {line}" for line in _changed_params()]
    corpus = compare(download, _committed_json(DOWNLOAD_METRICS))
    if corpus:
        reasons.append(f"  {corpus.removeprefix('note: ')}")
    yield from reasons or [
        "  nothing that the project knows of; another processor, number of threads or version of",
        "  torch rounds differently",
    ]


def next_steps() -> Iterator[str]:
    """What to type next."""
    params = load_params()
    rate = params.training.learning_rate / 2
    rows = [
        (". .venv/bin/activate", "so that the commands below are found"),
        (f"dvc exp run -S training.learning_rate={rate:g}", "train with another learning rate"),
        ("dvc exp show --only-changed", "compare the runs in a table"),
        ("make ui", "compare their curves in the browser"),
    ]
    if Path("scripts/generate.py").is_file():
        prompt = json.dumps(params.evaluation.prompts[0], ensure_ascii=False)
        command = f"python scripts/generate.py --model_path {MODEL} --prompts {prompt}"
        rows.append((command, "let the model write"))
    rows.append(("python -m pipeline.preset --list", "other data, other sizes"))
    yield "What to type next:"
    width = max(len(command) for command, _ in rows[:4])
    yield from (f"  {command:<{width}}  {meaning}" for command, meaning in rows)


def _changed_params() -> list[str]:
    text = _committed(PARAMS)
    if text is None:
        return []
    try:
        before, after = parse_config_text(text, PARAMS), read_config_file(PARAMS)
    except ConfigurationError:
        return []
    changes = [
        f"{section}.{key} {(before.get(section) or {}).get(key)} -> {value}"
        for section, values in after.items()
        for key, value in values.items()
        if section != "runtime" and (before.get(section) or {}).get(key) != value
    ]
    more = len(changes) - MAX_PARAMS
    return changes if more <= 0 else [*changes[:MAX_PARAMS], f"and {more} more"]


def _committed_json(path: Path) -> Figures:
    text = _committed(path)
    try:
        values = json.loads(text) if text else {}
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _committed(path: Path) -> str | None:
    """Content of a file in the last commit; None without git, a commit, or the file in it."""
    try:
        done = subprocess.run(
            ["git", "show", f"HEAD:./{path.as_posix()}"],
            capture_output=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


if __name__ == "__main__":
    run_stage("summary", main)
