"""The machine is described without names, its peak is a peak, its memory mark moves."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from llm_trainer.utils import machine
from llm_trainer.utils.timing import time_calls

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(machine, "CPU_SIZES", (256, 512))
    monkeypatch.setattr(machine, "SECONDS_PER_SIZE", 0.05)


def test_peak_is_at_least_what_a_product_reaches_and_is_cached():
    peak = machine.matmul_peak("cpu", "float32")
    left = torch.randn(384, 384)
    seconds = min(time_calls(lambda: left @ left, repeats=5, warmup=1, device=CPU))
    assert peak > 0.25 * 2 * 384**3 / seconds  # other work on the machine may disturb either
    assert machine.matmul_peak(CPU, "float32") == peak


def test_peak_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    machine._matmul_peak.cache_clear()
    machine.matmul_peak("cpu", "bfloat16")
    assert torch.equal(state, torch.get_rng_state())


def test_slow_products_are_not_tried_at_large_sizes(monkeypatch):
    monkeypatch.setattr(machine, "MAX_CALL_SECONDS", 0.0)
    machine._matmul_peak.cache_clear()
    assert machine.matmul_peak("cpu", "float32") > 0


def test_description_is_flat_json_without_names_or_paths():
    description = machine.describe_machine()
    assert json.loads(json.dumps(description)) == description
    assert description["threads"] == torch.get_num_threads()
    assert description["python"] == platform.python_version()
    assert description["memory_bytes"] > 10**8
    assert description["gpu"] == "none"
    text = json.dumps(description)
    assert platform.node() not in text
    assert os.getcwd() not in text
    assert f'"{getpass.getuser()}"' not in text


@pytest.mark.parametrize(
    ("info", "named"),
    [
        (
            "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: fpu\n",
            "AMD EPYC (family 26, model 2)",
        ),
        ("processor\t: 0\nmodel name\t: ARMv8 Processor rev 1\n", "ARMv8 Processor rev 1"),
        ("", platform.processor() or platform.machine()),
    ],
)
def test_generations_of_processors_with_one_name_are_told_apart(monkeypatch, info, named):
    monkeypatch.setattr(machine, "_cpu_info", lambda: info)
    assert machine.describe_machine()["cpu"] == named


def test_capability_agrees_with_torch():
    assert machine.cpu_capability().startswith(torch.backends.cpu.get_cpu_capability())
    assert machine.has_native_bfloat16() == ("BF16" in machine.cpu_capability())


PEAKS = """
import numpy as np
from llm_trainer.utils.machine import peak_memory_bytes, reset_peak_memory
before = peak_memory_bytes()
block = np.ones(60_000_000 // 8)
with_block = peak_memory_bytes()
del block
print(before, with_block, peak_memory_bytes() if reset_peak_memory() else before)
"""


def test_peak_memory_sees_a_large_array_and_can_be_reset():
    # in a process of its own: one that trained keeps the memory that it frees
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    before, with_block, after = map(int, done.stdout.split())
    assert with_block >= before + 50_000_000
    assert after < with_block


def test_peak_memory_is_not_inherited_from_a_larger_parent():
    block = np.ones(200_000_000 // 8)
    code = "from llm_trainer.utils.machine import peak_memory_bytes as p; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < block.nbytes


def test_time_calls_counts_only_the_repeats():
    calls = []
    seconds = time_calls(lambda: calls.append(1), repeats=3, warmup=2, device=CPU)
    assert len(seconds) == 3
    assert len(calls) == 5
