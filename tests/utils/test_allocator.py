"""Freed blocks are kept, or given back: page faults are counted, not times."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

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


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FLAGS_OF_A_TENSOR = """
import re
from pathlib import Path
import torch
from llm_trainer.utils.allocator import keep_freed_memory
assert keep_freed_memory()
assert keep_freed_memory(), "a second time too"
blocks = [torch.ones(16 * 2**20) for _ in range(3)]  # 64 MB each, which fit into what is reserved
mappings = re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
for block in blocks:
    for mapping in mappings:
        first, last = (int(end, 16) for end in mapping.split()[0].split("-"))
        if first < block.data_ptr() + block.nbytes <= last:
            print("hg" in mapping.rsplit("VmFlags:", 1)[1].split())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not HUGE_PAGES.exists(), reason="Linux with glibc only"
)
@pytest.mark.skipif(
    os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 2**33, reason="too little memory"
)
def test_what_is_kept_is_asked_for_in_huge_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLAGS_OF_A_TENSOR], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"] * 3
