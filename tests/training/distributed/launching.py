"""Starts processes, and reads what each of them wrote down."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.soak.trainings import fork
from llm_trainer.training import distributed

HERE = Path(__file__).parent
Found = dict[str, dict[str, Any]]
"""Name of a case -> what a rank saw."""


def torchrun(
    count: int, script: str, *arguments: object, **environment: str
) -> subprocess.Popen[str]:
    """Start `count` processes of a script in this folder, one thread each."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc_per_node={count}", str(HERE / script), *map(str, arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run_cases(count: int, folder: Path, names: Sequence[str]) -> list[Found]:
    """Do cases in `count` processes; what each rank saw."""
    launcher = torchrun(count, "cases.py", folder, *names)
    try:
        output, _ = launcher.communicate(timeout=240)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, output
    return written(folder, count)


def written(folder: Path, count: int) -> list[Found]:
    """What each rank of `cases.py` wrote down."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]


def fork_ranks(
    count: int, body: Callable[[], object], folder: Path, *, machines: int = 1, start: int = 0
) -> list[int]:
    """Ranks from `start` of `count` as forked children, without a launcher.

    What they import costs nothing again. Standard error goes to `<folder>/rank<number>.log`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    each = count // machines

    def run(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank % each),
            "LOCAL_WORLD_SIZE": str(each), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        sys.stderr = sys.__stderr__  # not the pipe of pytest
        logging.basicConfig(level=logging.INFO, force=True)
        distributed.close()  # the parent was alone
        body()
        distributed.close()

    return [
        fork(lambda rank=rank: run(rank), folder / f"rank{rank}.log")  # type: ignore[misc]
        for rank in range(start, count)
    ]
