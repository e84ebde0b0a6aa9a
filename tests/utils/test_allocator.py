"""Freed blocks are kept, or given back: page faults are counted, not times."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from llm_trainer.utils.allocator import give_back_freed_memory, keep_freed_memory
if sys.argv[1] != "leave":
    assert keep_freed_memory()
if sys.argv[1] == "give back":
    assert give_back_freed_memory()
    assert not keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    torch.ones(16 * 2**20)  # 64 MB, above all thresholds of glibc
for _ in range(20):  # until what is free fits what is asked for
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_is_freed_and_needed_again_is_not_mapped_again() -> None:
    kept = faults("keep")
    assert kept * 20 < faults("leave")
    assert kept * 20 < faults("give back"), "the last word counts"
