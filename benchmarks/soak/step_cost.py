"""P4-step: what all checks add to a training step at the default settings.

Timed inside a real training of the default configuration: the norm of the gradient with the check
that it is finite and the clipping, the look at the signals, the record of a step; of a checkpoint
what is not writing (hashes, manifests, syncs), and the lock and all comparisons at the start. The
last two are divided by the steps between checkpoints, and by those of the run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak.row import Report, Row
from benchmarks.soak.stage_checks import Clock
from benchmarks.soak.trainings import World, fork, wait
from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.config.loader import build_config, read_config_file
from llm_trainer.data import LanguageModelingDataset
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.models import TransformerLM
from llm_trainer.training import Trainer
from tests.pipeline.repo import ROOT

AIM_PERCENT = 2.0
STEPS, BETWEEN_SAVES = 40, 8
_OF_A_SAVE = [
    "llm_trainer.digests:sha256_file", "llm_trainer.manifests:write_manifest",
    "llm_trainer.files:fsync_file", "llm_trainer.files:fsync_directory",
]  # fmt: skip
_OF_A_RUN = [
    "llm_trainer.training.compatibility:check_fit", "llm_trainer.manifests:verify_manifest",
    "llm_trainer.training.checkpoint:check_identity",
    "llm_trainer.training.checkpoint:check_environment",
    "llm_trainer.training.checkpoint:recover_checkpoints",
]  # fmt: skip


def run(folder: Path, scale: float) -> Report:
    """Below full scale without compiling, which takes a minute."""
    report = Report()
    params = read_config_file(ROOT / "configs" / "default.yaml")
    world = World(folder)
    code = wait(fork(lambda: _train(world, params, folder, scale == 1), folder / "log"), 600)
    if code != 143:
        report.require(False, (folder / "log").read_text()[-300:])
        return report
    timed = read_json(folder / "timed.json")
    step = timed["step"]
    a_save = timed["once a save"] / params["runtime"]["save_steps"]
    a_run = timed["once a run"] / params["training"]["max_steps"]
    checks = {
        "norm_finite_and_clip": timed["clip"], "signals": timed["signals"], "log": timed["log"],
        "hashes_and_syncs": a_save, "lock_and_comparisons": a_run,
    }  # fmt: skip
    work = step - timed["clip"] - timed["signals"] - timed["log"]
    percent = 100 * sum(checks.values()) / work
    report.counters = {
        "step_ms": round(1000 * step, 2), "compiled": int(timed["compiled"]),
        **{f"{name}_percent": round(100 * value / work, 3) for name, value in checks.items()},
        "all_checks_percent": round(percent, 2),
        "hashes_and_syncs_of_a_save_ms": round(1000 * timed["once a save"], 1),
        "save_ms": round(1000 * timed["save"], 1),
    }  # fmt: skip
    report.require(percent < AIM_PERCENT, f"all checks add {percent:.2f} % to a step")
    return report


def _train(world: World, params: dict[str, Any], folder: Path, compiled: bool) -> None:
    """A part of the default training, stopped by a signal; its times go to timed.json."""
    torch.set_num_threads(os.cpu_count() or 1)
    texts = [f"def add_{n}(left, right):\n    return left + {n}\n" * 20 for n in range(400)]
    rows = LanguageModelingDataset(texts, world.tokenizer, max_length=256)
    model = build_config(ModelConfig, params["model"] | {"vocab_size": 4096}, "default")
    changes = {
        "checkpoint_dir": str(folder / "run"), "save_steps": BETWEEN_SAVES, "eval_strategy": "no",
        "logging_steps": params["runtime"]["logging_steps"], "sample_steps": 0,
        "report_to": ["tensorboard", "console"],
    }  # fmt: skip
    if not compiled:
        changes["compile_model"] = False
    config = build_config(TrainingConfig, params["training"] | changes, "default")
    clock = Clock()
    for name in _OF_A_SAVE:
        clock.replace("once a save", name)
    for name in _OF_A_RUN:
        clock.replace("once a run", name)
    torch.manual_seed(0)
    made = Trainer(TransformerLM(model), world.tokenizer, config, rows, rows, device="cpu")
    times: dict[str, list[float]] = defaultdict(list)

    def timed(name: str) -> None:
        function = getattr(made, f"_{name}")

        def wrapper(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                times[name].append(time.perf_counter() - started)

        setattr(made, f"_{name}", wrapper)

    for name in ("clip", "stop_if_asked", "log", "save_checkpoint"):
        timed(name)
    micro_batches, log, started = made._micro_batches, made._log, [0.0]

    def began() -> range:
        if made.state.micro_step == 0:
            started[0] = time.perf_counter()
        return micro_batches()

    def logged() -> None:
        log()
        times["step"].append(time.perf_counter() - started[0])
        if made.state.step == STEPS:
            made._stop.signal = 15

    made._micro_batches, made._log = began, logged  # type: ignore[method-assign]
    try:
        made.train("auto")
    finally:
        warm = len(times["step"]) // 4
        saves = len(times["save_checkpoint"])
        write_json(
            folder / "timed.json",
            {
                "step": statistics.median(times["step"][warm:]),
                "clip": statistics.median(times["clip"][warm:]),
                "signals": statistics.median(times["stop_if_asked"][warm : STEPS - 1]),
                # most steps only move the bar, some write a record: the mean
                "log": statistics.fmean(times["log"][warm:]),
                "save": statistics.median(times["save_checkpoint"]),
                "once a save": clock.seconds["once a save"] / saves,
                "once a run": clock.seconds["once a run"],
                "compiled": made.execution.compiled,
            },
        )


ROW = Row("P4-step", "what all checks add to a training step", run)
