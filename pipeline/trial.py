"""A small copy of the user's training: the real stage, model and rows, but few steps.

It runs in a folder of its own, as a process of its own, on links to the data, so nothing of the
user's is touched. It can be killed and started again, which is what it is for.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import pipeline
from llm_trainer.config.loader import read_config_file
from llm_trainer.digests import sha256_file
from llm_trainer.exceptions import ConfigurationError, TrainingError
from llm_trainer.json_file import read_json
from pipeline.params import PARAMS, load_params
from pipeline.paths import MODEL, PACKED, RAW, TOKENIZER, TRAIN_CURVE, TRAIN_METRICS

MIN_STEPS = 5
"""Fewer leave no room for two interruptions."""
_PACKAGES = ("llm_trainer", "pipeline")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)(?:-\d+)?")
_LOG_LINES = 15


@dataclass(frozen=True)
class Result:
    """What a trial came to."""

    digests: dict[str, str]
    """File -> sha256, of all that a training leaves behind but for times."""
    num_bytes: int
    environment: dict[str, Any]
    """What the bits depend on besides configuration, data and code."""
    fingerprint: str
    seconds: float
    """Of the training loop."""


class Trial:
    """A project folder in which the stage `train` runs for a few steps.

    Args:
        folder: made here; one for each trial.
        steps: optimizer steps.
        code: folder with the packages, see `copy_code`.
        compiled: whether the user's own run would be compiled (a short one by itself is not).
        cache: folder for what the compiler makes, shared by the trials.
    """

    def __init__(
        self, folder: Path, steps: int, *, code: Path, compiled: bool, cache: Path
    ) -> None:
        self.folder, self.steps, self.cache = folder, steps, cache
        values = read_config_file(PARAMS)
        values["training"] = {
            **values.get("training", {}), "max_steps": steps, "compile_model": compiled,
            "eval_steps": max(1, steps // 2), "eval_batches": 2, "sample_steps": 0,
        }  # fmt: skip
        values["runtime"] = {
            **values.get("runtime", {}), "save_steps": max(1, steps // 5), "save_total_limit": 2,
            "keep_finished": 1, "checkpoint_root": ".checkpoints", "report_to": ["console"],
            "strict_resume": True,
        }  # fmt: skip
        folder.mkdir(parents=True)
        (folder / PARAMS).write_text(yaml.safe_dump(values), encoding="utf-8")
        for name in _PACKAGES:
            (folder / name).symlink_to(code / name)
        for path in (RAW, PACKED, TOKENIZER):
            (folder / path.parent).mkdir(exist_ok=True)
            if path.is_dir():
                (folder / path).symlink_to(path.resolve())

    # ------------------------------------------------------------------ running

    def run(self, progress: Callable[[int], None]) -> Result:
        """Run, or go on, to the end; `progress` is told the step of the newest checkpoint."""
        with self._start() as process:
            try:
                while process.poll() is None:
                    progress(self.newest_step())
                    time.sleep(0.05)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise TrainingError(f"a trial run ended with {process.returncode}:\n{self._log()}")
        return self.result()

    def interrupt(self, how: signal.Signals, delay: float, progress: Callable[[int], None]) -> int:
        """Start, send `how` after the next checkpoint and up to `delay` seconds more.

        Returns the step of the newest checkpoint after that.

        Raises:
            TrainingError: the run ended otherwise, or before the signal came.
        """
        before = self.newest_step()
        with self._start() as process:
            try:
                while process.poll() is None and self.newest_step() <= before:
                    time.sleep(0.002)
                time.sleep(random.random() * delay)
                if how == signal.SIGKILL:
                    os.killpg(process.pid, how)
                else:
                    process.send_signal(how)
                process.wait()
            except ProcessLookupError:
                process.wait()
            except BaseException:
                process.kill()
                raise
        wanted = -how if how == signal.SIGKILL else 128 + how
        if process.returncode != wanted:
            raise TrainingError(
                f"a run that was to end by {how.name} ({wanted}) ended with {process.returncode}; "
                f"if it was too quick, give more --steps:\n{self._log()}"
            )
        progress(self.newest_step())
        return self.newest_step()

    def newest_step(self) -> int:
        """Step of the newest checkpoint; 0 without one."""
        names = (path.parent.name for path in self._checkpoints("manifest.json"))
        return max((int(m[1]) for m in map(_CHECKPOINT.fullmatch, names) if m), default=0)

    def _start(self) -> subprocess.Popen[bytes]:
        hidden = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        environment |= {"DVC_ROOT": str(self.folder), "TORCHINDUCTOR_CACHE_DIR": str(self.cache)}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "pipeline.train"], cwd=self.folder, env=environment,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _log(self) -> str:
        text = (self.folder / "log").read_text("utf-8", "replace")
        return "\n".join(re.split(r"[\r\n]+", text.strip())[-_LOG_LINES:])

    def _checkpoints(self, name: str) -> list[Path]:
        return sorted((self.folder / ".checkpoints").glob(f"*/checkpoint-*/{name}"))

    # ------------------------------------------------------------------ what came of it

    def result(self) -> Result:
        """Digests of model, curve, figures and last checkpoint of the finished run."""
        (state,) = self._checkpoints("state.json")
        paths = [
            *(path for path in (self.folder / MODEL).rglob("*") if path.is_file()),
            *(path for path in state.parent.rglob("*.safetensors")),
            self.folder / TRAIN_CURVE,
        ]
        described = read_json(state)
        # a run's directory is named by its fingerprint
        names = {p: p.relative_to(self.folder).as_posix().split("/", 2) for p in paths}
        digests = {
            "/".join(parts[2:] if parts[0] == ".checkpoints" else parts): sha256_file(path)
            for path, parts in names.items()
        }
        return Result(
            digests=dict(sorted(digests.items())),
            num_bytes=sum(path.stat().st_size for path in paths),
            environment=described["environment"],
            fingerprint=state.parents[1].name,
            seconds=float(read_json(self.folder / TRAIN_METRICS)["seconds"]),
        )


def copy_code(folder: Path) -> Path:
    """Copy the packages to `folder`, so that an edit meanwhile changes no trial; returns it."""
    source = Path(pipeline.__file__).resolve().parents[1]
    for name in _PACKAGES:
        shutil.copytree(
            source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    return folder


def user_compiles() -> bool:
    """Whether the training that params.yaml describes is compiled on this machine.

    Raises:
        ConfigurationError: there are no packed rows or no tokenizer.
    """
    for path in (PACKED, TOKENIZER):
        if not path.is_dir():
            raise ConfigurationError(
                f"{path}: not here, so there is nothing to train on; `dvc repro pack_sequences` "
                f"makes it"
            )
    from llm_trainer.data.shards import PackedRows
    from llm_trainer.training.execution import resolve_execution
    from llm_trainer.training.utils import get_device
    from llm_trainer.utils.planning import training_plan

    params = load_params()
    rows = PackedRows(PACKED, "train", verify=False)
    model = replace(params.model, vocab_size=rows.vocab_size)
    plan = training_plan(model, params.training, len(rows), rows.row_length)
    device = get_device(params.runtime.device)
    return resolve_execution(params.training, device, plan.total_flops).compiled
