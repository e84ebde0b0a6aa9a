"""C3: nonsense for every public function and command, with assertions and without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.soak.row import Report, Row
from llm_trainer.config.experiment import Experiment, load_experiment
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.files import write_json
from tests.test_layers import ROOT

_COMMANDS = [
    ["-m", "pipeline.preset", "no-such"], ["-m", "pipeline.gc", "--keep", "x"],
    ["scripts/train.py", "--config", "no-such.yaml"], ["scripts/train.py", "--confg", "x"],
    ["scripts/generate.py", "--model", "no-such", "--prompt", "x"],
    ["scripts/evaluate.py", "--model", "no-such", "--config", "no-such.yaml"],
    ["-m", "llm_trainer.export", "no-such", "out"], ["-m", "pipeline.ui", "--port", "many"],
    ["-m", "pipeline.lineage", "no-such"], ["-m", "fuzz", "no-such"],
]  # fmt: skip


def run(folder: Path, scale: float) -> Report:
    """Each key misspelled, each value of another type; the table of tests/errors; commands."""
    report = Report()
    keys = named = suggested = 0
    sections = Experiment().sections()
    for section, values in sections.items():
        for key in values:
            if section in ("tokenizer", "packing"):
                continue
            mistakes: list[dict[str, object]] = [
                {key[:-1] + "x": values[key]}, {key: {"not": ["this"]}},
            ]  # fmt: skip
            for changed in mistakes:
                message = _refusal(folder / "config.json", {section: changed})
                keys += 1
                named += f"{section}" in message and (key in message or key[:-1] in message)
                suggested += "did you mean" in message
    report.require(named == keys, f"{keys - named} mistakes in a configuration were not named")
    for flags in ([], ["-O"]):
        done = subprocess.run(
            [sys.executable, *flags, "-m", "tests.errors"], cwd=ROOT, text=True,
            capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        report.require(done.returncode == 0, f"tests.errors {flags}: {done.stdout[-300:]}")
        found = re.search(r"(\d+) functions", done.stderr)
        report.counters["functions_with_nonsense"] = int(found[1]) if found else 0
    clean = 0
    for flags in ([], ["-O"]):
        for command in _COMMANDS:
            done = subprocess.run(
                [sys.executable, *flags, *command], cwd=ROOT, text=True, capture_output=True,
                check=False,
            )  # fmt: skip
            held = done.returncode == 2 and "Traceback" not in done.stderr
            clean += held
            report.require(held, f"{' '.join(command)}: {done.returncode} {done.stderr[-200:]}")
    report.counters = {
        "configuration_mistakes": keys, "named": named, "with_a_suggestion": suggested,
        **report.counters, "commands": 2 * len(_COMMANDS), "ended_with_code_2_and_a_message": clean,
    }  # fmt: skip
    return report


def _refusal(path: Path, values: dict[str, dict[str, object]]) -> str:
    write_json(path, values)
    try:
        load_experiment(path)
    except ConfigurationError as error:
        return str(error)
    return ""


ROW = Row("C3", "nonsense in configurations, commands and calls, also under python -O", run)
