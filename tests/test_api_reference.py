"""The code of the API reference runs as written, in order; its data set is on a loopback hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api_blocks import BLOCKS
from tests.examples.test_examples import WIKITEXT
from tests.hub_server import HubServer
from tests.needs import needs_compiler
from tests.test_layers import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_compiler
def test_every_block_runs_in_order(tmp_path: Path) -> None:
    with HubServer({"Salesforce/wikitext": WIKITEXT}) as hub:
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "api_blocks.py")],
            cwd=tmp_path, capture_output=True, text=True, timeout=580,
            env={**os.environ, **hub.environment(tmp_path / "hf"), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    titles = [line for line in done.stdout.splitlines() if line.startswith("done: ")]
    assert titles == [f"done: {block.title}" for block in BLOCKS]
    assert "Parameters: " in done.stdout
    assert "d_model (768) must be divisible by n_heads (5)" in done.stdout
