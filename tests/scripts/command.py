"""Scripts as a person starts them: in a process of their own, or in this one for speed."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.test_layers import ROOT


class Outcome(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str


def script(name: str) -> Path:
    return ROOT / "scripts" / f"{name}.py"


def start(
    name: str, arguments: Sequence[str], folder: Path, *, processes: int = 1
) -> subprocess.Popen[str]:
    """A process of its own, in `folder`; several by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes > 1 else ()), str(script(name)), *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip


def call(name: str, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> Outcome:
    """In this process, in the current directory; torch is loaded once for all of them."""
    main: Any = _main(name)
    capsys.readouterr()
    code = 0
    try:
        code = main(list(arguments)) or 0
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def _main(name: str) -> Any:
    return runpy.run_path(str(script(name)))["main"]
