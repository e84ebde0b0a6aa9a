"""Configuration files: YAML and JSON, from text and from a mutated good one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fuzz.target import Draw, Target, dump, folder, mutate
from llm_trainer.config.experiment import Experiment, load_experiment
from llm_trainer.digests import canonical_json
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.files import write_json

_YAML = [
    b"training:\n  learning_rate: 1e-4\n",
    b"data: {train_file: [a, b]}\nmodel: &m {d_model: 64}\n",
    b"a: &a [x, x]\nb: &b [*a, *a]\ntraining: {betas: *b}\n",
    b"training:\n  seed: !!int 5\n  betas: !!python/object:os.system {}\n",
    b"runtime: {tracking_uri: !!binary aGk=, num_threads: !!float 2}\n",
    b"? [1, 2]\n: !!set {a, b}\n? {c: d}\n: !!timestamp 2001-12-14\n",
    b"training: !!bool x\n",
    b"<<: {data: {}}\n--- \n...\n%YAML 1.1\n",
]


@cache
def _place() -> Path:
    return folder()


@cache
def _good() -> dict[str, Any]:
    sections = Experiment().sections()
    staged = ("tokenizer", "packing")
    return {name: section for name, section in sections.items() if name not in staged}


def seeds() -> list[bytes]:
    """Small YAML documents of every kind of node, and mutations of the defaults."""
    return [b"\x00" + text for text in _YAML] + [b"\x01{}", b"\x02abcdef"]


def run(data: bytes) -> None:
    """The first byte says whether the rest is YAML, JSON, or decisions about a mutation."""
    kind, rest = data[:1], data[1:]
    suffix = "yaml" if kind <= b"\x00" else "json"
    content = dump(mutate(_good(), Draw(rest))) if kind == b"\x02" else rest
    path = _place() / f"params.{suffix}"
    path.write_bytes(content)
    try:
        experiment = load_experiment(path)
    except LLMTrainerError as error:
        if len(str(error)) > 200_000:  # an alias of an alias, written out
            raise RuntimeError("a message without end") from error
        return
    sections = experiment.sections()
    try:
        write_json(_place() / "again.json", sections)
    except LLMTrainerError:
        return
    canonical_json(sections).encode()


TARGET = Target("configuration files", seeds, run)
