"""Starts processes, and reads what each of them wrote down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
