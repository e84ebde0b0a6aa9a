"""Free the space of old checkpoints: `python -m pipeline.gc [--list] [--keep N] [--dry-run]`.

Each run has a directory `<checkpoint_root>/<fingerprint>/`: checkpoints, and in `run/` the record
of what it did (kilobytes; never removed here, since trackers are filled from it). Of finished runs
the newest few keep their last checkpoint, and everything else of them goes; of stopped runs, which
the same command would continue, nothing goes unless `--stopped DAYS` says so. A directory that a
training holds is left alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_trainer.exceptions import IntegrityError, LockHeldError
from llm_trainer.files import is_partial
from llm_trainer.locks import hold_lock
from llm_trainer.training.tracking.record import RunRecord
from pipeline.params import load_params
from pipeline.stage import main_checkout, run_stage

State = Literal["running", "finished", "stopped"]

_CHECKPOINT = re.compile(r"checkpoint-(\d+)(?:-(\d+))?")
_ASIDE = re.compile(r"previous-\d+")
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class Run:
    """A run's directory and what is in it."""

    directory: Path
    state: State
    changed: float
    """When it last started or ended, in seconds since 1970."""
    checkpoints: tuple[Path, ...]
    """Newest step first."""
    rest: tuple[Path, ...]
    """Checkpoints moved aside, and what killed writers left."""

    @property
    def name(self) -> str:
        """Short name: how the run is called everywhere."""
        return self.directory.name[:8]

    @property
    def step(self) -> int:
        """Optimizer step of the newest checkpoint; 0 without one."""
        match = _CHECKPOINT.fullmatch(self.checkpoints[0].name) if self.checkpoints else None
        return int(match[1]) if match else 0


def find_runs(root: Path) -> list[Run]:
    """All runs under the checkpoint root, the latest first."""
    found = []
    for directory in sorted(root.iterdir()) if root.is_dir() else []:
        if not directory.is_dir() or directory.is_symlink():
            continue
        checkpoints, rest = [], []
        for path in directory.iterdir():
            match = _CHECKPOINT.fullmatch(path.name)
            if match:
                checkpoints.append(((int(match[1]), int(match[2] or 0)), path))
            elif _ASIDE.fullmatch(path.name) or is_partial(path.name):
                rest.append(path)
        state, changed = _state(directory)
        newest_first = tuple(path for _, path in sorted(checkpoints, reverse=True))
        found.append(Run(directory, state, changed, newest_first, tuple(sorted(rest))))
    return sorted(found, key=lambda run: run.changed, reverse=True)


def _state(directory: Path) -> tuple[State, float]:
    try:
        info = RunRecord(directory / "run").read_info()
    except IntegrityError:
        # no record, or a damaged one: nothing says that it ever finished
        finished, changed = False, directory.stat().st_mtime
    else:
        finished, changed = info.status == "FINISHED", info.ended or info.started
    try:
        with hold_lock(directory / "lock", "look"):
            return ("finished" if finished else "stopped"), changed
    except LockHeldError:
        return "running", changed


def superfluous(
    runs: Sequence[Run], keep: int, stopped_days: float | None = None
) -> list[tuple[Run, tuple[Path, ...]]]:
    """What may go: for each run that has any, the paths.

    Args:
        runs: the latest first.
        keep: finished runs that keep their last checkpoint.
        stopped_days: stopped runs older than this go too; None keeps them all.
    """
    kept = 0
    found: list[tuple[Run, tuple[Path, ...]]] = []
    for run in runs:
        paths: tuple[Path, ...] = ()
        if run.state == "finished":
            spared = 1 if kept < keep and run.checkpoints else 0
            kept += spared
            paths = (*run.checkpoints[spared:], *run.rest)
        elif run.state == "stopped":
            paths = run.rest
            if stopped_days is not None and time.time() - run.changed > stopped_days * _DAY:
                paths = (*run.checkpoints, *run.rest)
        if paths:
            found.append((run, paths))
    return found


def collect(
    root: Path, keep: int, stopped_days: float | None = None, *, dry_run: bool = False
) -> list[tuple[Run, int]]:
    """Remove what is superfluous; returns the runs and the bytes freed (or that would be).

    A run that a process took up in the meantime is left alone.
    """
    freed = []
    for run, paths in superfluous(find_runs(root), keep, stopped_days):
        num_bytes = sum(map(size, paths))
        if not dry_run:
            try:
                with hold_lock(run.directory / "lock", "gc"):
                    for path in paths:
                        shutil.rmtree(path, ignore_errors=True)
            except LockHeldError:
                continue
        freed.append((run, num_bytes))
    return freed


def size(path: Path) -> int:
    """Bytes of all files in a directory; what vanishes meanwhile counts nothing."""
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.gc",
        description="Remove checkpoints of finished runs; records of runs stay.",
    )
    parser.add_argument("--list", action="store_true", help="list the runs, remove nothing")
    parser.add_argument(
        "--keep", type=_count, metavar="N",
        help="finished runs that keep their last checkpoint (default: runtime.keep_finished)",
    )  # fmt: skip
    parser.add_argument(
        "--stopped", type=_count, metavar="DAYS",
        help="also runs that were stopped, and not continued, more than DAYS days ago",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")
    options = parser.parse_args(arguments)
    runtime = load_params().runtime
    root = main_checkout() / runtime.checkpoint_root
    if options.list:
        _list(root)
        return
    keep = runtime.keep_finished if options.keep is None else options.keep
    freed = collect(root, keep, options.stopped, dry_run=options.dry_run)
    for run, num_bytes in freed:
        print(f"{run.name}  {run.state}  step {run.step:,}  {num_bytes / 2**20:,.1f} MiB")
    total = sum(num_bytes for _, num_bytes in freed) / 2**20
    print(f"{'would free' if options.dry_run else 'freed'} {total:,.1f} MiB in {root}")


def _list(root: Path) -> None:
    runs = find_runs(root)
    for run in runs:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
        mebibytes = size(run.directory) / 2**20
        print(f"{run.name}  {run.state:<8}  {day}  step {run.step:>7,}  {mebibytes:9,.1f} MiB")
    if not runs:
        print(f"no runs in {root}")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


if __name__ == "__main__":
    run_stage("gc", main)
