"""A small training that the soak stops in every way: forked, watched, and compared at its end.

Each training is a forked child with torch's one thread, so that starting it costs milliseconds. It
tells its position in shared memory, which outlives any kill.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.data import LanguageModelingDataset
from llm_trainer.json_file import read_json
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer
from llm_trainer.training.checkpoint import list_checkpoints, newest_checkpoint
from llm_trainer.training.tracking.log import iter_records
from pipeline.worker import die_with_parent

FAILED = 99
"""Exit code of a child that ended with an exception; it is in the child's log."""
_TIMED = ("time", "train/tokens_per_second")


@dataclass
class Progress:
    """What a training tells while it lives: four integers in memory shared with its parent."""

    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 4096))

    def set(self, slot: int, value: int) -> None:
        """Write one of the four."""
        struct.pack_into("<q", self.memory, 8 * slot, value)

    def get(self, slot: int) -> int:
        """Read one of the four."""
        value: int = struct.unpack_from("<q", self.memory, 8 * slot)[0]
        return value

    RESUMED, DONE, COMMITTED, STARTED = range(4)
    """Micro-batches of the run that were done at the resume, are done, are committed; 1 once the
    first micro-batch of this sitting is done."""


class World:
    """Tokenizer and rows that all trainings of a soak share."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        torch.set_num_threads(1)
        texts = [f"def add_{n}(left, right):\n    return left + {n}\n" for n in range(60)]
        self.folder = folder
        self.tokenizer = BPETokenizer()
        self.tokenizer.train(texts, vocab_size=270)
        self.rows = LanguageModelingDataset(texts, self.tokenizer, max_length=16)
        self.settings = settings
        # what torch imports at a first step costs a second, which each child would pay again
        warm = self.config(folder / "warm", max_steps=2, warmup_steps=0)
        Trainer(self.model(), self.tokenizer, warm, self.rows, self.rows, device="cpu").train()

    def config(self, directory: Path, **changes: Any) -> TrainingConfig:
        """Settings of a run of a second; `changes` win over those of the world."""
        values: dict[str, Any] = {
            "batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 24, "use_amp": False,
            "learning_rate": 1e-2, "warmup_steps": 2, "save_steps": 2, "logging_steps": 1,
            "eval_steps": 6, "eval_batches": 2, "report_to": ["jsonl"], "seed": 3,
            "checkpoint_dir": str(directory),
        }  # fmt: skip
        return TrainingConfig(**(values | self.settings | changes))

    def model(self, **changes: Any) -> TransformerLM:
        """A model of ten thousand weights, the same each time."""
        torch.manual_seed(7)
        values: dict[str, Any] = {
            "vocab_size": self.tokenizer.vocab_size, "d_model": 16, "n_heads": 2, "n_layers": 2,
            "d_ff": 32, "max_seq_len": 32, "dropout": 0.1, "attention_dropout": 0.1,
        }  # fmt: skip
        return TransformerLM(ModelConfig(**(values | changes)))

    def trainer(
        self, directory: Path, model: dict[str, Any] | None = None, rows: Any = None,
        **changes: Any,
    ) -> Trainer:  # fmt: skip
        """A trainer on the CPU; `rows` instead of those of the world."""
        rows = self.rows if rows is None else rows
        return Trainer(
            self.model(**(model or {})), self.tokenizer, self.config(directory, **changes), rows,
            rows, device="cpu",
        )  # fmt: skip

    def train(self, made: Trainer, progress: Progress) -> None:
        """Train or go on, telling the progress."""
        watch(made, progress)
        made.train("auto")


def watch(made: Trainer, progress: Progress) -> None:
    """Make a trainer tell its position."""
    accumulate, save, resume = made._accumulate, made._save_checkpoint, made._resume

    def position() -> int:
        state = made.state
        return state.step * made.config.gradient_accumulation_steps + state.micro_step

    def resumed(*arguments: Any) -> None:
        resume(*arguments)
        progress.set(Progress.RESUMED, position())
        progress.set(Progress.DONE, position())

    def accumulated(*arguments: Any) -> None:
        accumulate(*arguments)
        progress.set(Progress.DONE, position())
        progress.set(Progress.STARTED, 1)

    def saved(*, wait: bool = True) -> Path:
        path = save(wait=wait)
        if wait:  # in the background it is not yet
            progress.set(Progress.COMMITTED, position())
        return path

    made._resume, made._accumulate, made._save_checkpoint = resumed, accumulated, saved  # type: ignore[method-assign, assignment]


def fork(body: Callable[[], object], log: Path | None = None) -> int:
    """Run `body` in a child with a process group of its own; its standard error goes to `log`.

    It ends with its parent: alone, it would hold the pipes that it inherited open, and whoever
    reads them would wait for ever.
    """
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        die_with_parent()
        os.setsid()
        descriptor = os.open(
            log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )  # fmt: skip
        os.dup2(descriptor, 2)
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
        body()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else FAILED
    except BaseException:  # noqa: BLE001 - a child must not go on with its parent's work
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float = 120.0) -> int | None:
    """Exit code of a child, negative after a signal; None if it outlasted `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.001)


def wait_until(
    condition: Callable[[], object], children: Sequence[int], log: Callable[[], str] = str
) -> None:
    """Return once `condition` holds, which the children see to.

    Raises:
        RuntimeError: a child ended before, or a minute passed; with what `log` gives.
    """
    deadline = time.monotonic() + 60
    while not condition():
        for child in children:
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and not condition():
                raise RuntimeError(f"process {child} ended ({ended.si_status}): {log()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing came in a minute: {log()}")
        time.sleep(0.002)


def committed(directory: Path, accumulation: int) -> int:
    """Micro-batches in the newest whole checkpoint; 0 without one."""
    found = newest_checkpoint(directory)
    return 0 if found is None else found.state.step * accumulation + found.state.micro_step


def curve(directory: Path) -> dict[tuple[int, str], Any]:
    """The loss log without times and machine figures: (step, key) -> value.

    Raises:
        ValueError: a step is there twice.
    """
    found: dict[tuple[int, str], Any] = {}
    for record, _ in iter_records(directory / "run" / "log.jsonl"):
        for key, value in record.items():
            if key == "step" or key in _TIMED or key.startswith("system/"):
                continue
            if (record["step"], key) in found:
                raise ValueError(f"{directory}: step {record['step']} logged {key} twice")
            found[record["step"], key] = value
    return found


def end_state(directory: Path) -> dict[str, bytes]:
    """All that a finished run ends in, byte by byte: weights, optimizer, losses, log."""
    last = list_checkpoints(directory)[0]
    state = read_json(last / "state.json")["state"]
    del state["seconds"]
    files = ("model/model.safetensors", "optimizer.safetensors", "history.safetensors")
    return {
        "log": json.dumps(sorted(curve(directory).items())).encode(),
        "state": json.dumps(state, sort_keys=True).encode(),
        **{name: (last / name).read_bytes() for name in files},
    }


def leftovers(directory: Path) -> list[Path]:
    """Temporary files and directories that killed writers left."""
    return sorted(directory.rglob(".partial-*"))
