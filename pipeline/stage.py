"""What all stages and commands share: the main checkout, the lock, how errors end a process."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.locks import hold_lock
from pipeline.worker import (
    LOST_PEER,
    die_with_launcher,
    first_to_say,
    holds_stage_lock,
    is_lost_peer,
    is_main,
    is_worker,
)

EXIT_USER_ERROR = 2
STAGES = ("download", "train_tokenizer", "pack_sequences", "train", "evaluate", "benchmark")
"""Names of the stages, in the order in which they run."""
LOCK_NAME = ".stage.lock"
"""Held in the working directory by the stage that works there."""


def run_stage(name: str, main: Callable[[], None]) -> None:
    """Run a stage's `main`; a user's mistake becomes one message on stderr and exit code 2.

    One stage works in a directory at a time. DVC sees to it, but not when it was killed itself and
    its stage lives on: that one would write its output over what a later `dvc repro` made.

    Exit codes: 0 done, 2 wrong input, 130 and 143 stopped by SIGINT and SIGTERM (a stage that
    saves on these signals exits with them itself), 1 another process of the same training went
    away. Anything else keeps its traceback. Of several processes one speaks; see `worker`.
    """
    if is_worker():
        die_with_launcher()
    level = logging.INFO if is_main() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for noisy in (
        "alembic", "mlflow", "datasets", "httpx", "httpx2", "urllib3", "filelock", "fsspec",
    ):  # fmt: skip
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        locked = name in STAGES and holds_stage_lock()
        with hold_lock(Path.cwd() / LOCK_NAME, name) if locked else nullcontext():
            main()
    except (LLMTrainerError, RuntimeError) as error:
        if is_lost_peer(error):
            _say(name, LOST_PEER)
            raise SystemExit(1) from None
        if not isinstance(error, LLMTrainerError):
            raise
        _say(name, str(error) or type(error).__name__)
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        if is_main():
            print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def stage_program(name: str, main: Callable[[], None], about: str | None) -> None:
    """`run_stage` as a program: all settings are in params.yaml, so `--help` is the only option.

    Anything else on the command line is refused with exit code 2 before the stage begins.
    """
    assert about is not None
    end = _SwiftEnd()
    argparse.ArgumentParser(
        prog=f"python -m pipeline.{name}",
        description=about,
        epilog="Settings: params.yaml. `dvc repro` runs this stage, and those before it, if "
        "something changed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    run_stage(name, main)
    end.is_success = True


class _SwiftEnd:
    """Ends a process that succeeded without taking its modules down, half a second with torch.

    Python does what is registered for the end of a process in reverse order and after waiting for
    threads: made before a program registers anything, this comes last. A process that fails, or
    whose last words cannot be written, ends in the usual way, with its exit code.
    """

    def __init__(self) -> None:
        self.is_success = False
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self.is_success:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def _say(name: str, message: str) -> None:
    if first_to_say(message):
        # in one piece, so that the lines of several processes do not mix
        lines = [f"error: {name}: {line}\n" for line in message.splitlines()]
        sys.stderr.write("".join(lines))
        sys.stderr.flush()


def main_checkout() -> Path:
    """The root of the main checkout.

    DVC runs `--temp` and queued experiments in a copy of the tree that it deletes afterwards, and
    sets DVC_ROOT to the main one: what must outlive the copy (checkpoints, the tracking database)
    goes there.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()
