"""A12: a rank, a launcher or a machine of several is killed, stopped, frozen or cut off.

The stage `train` as two processes, on one machine and on two (network namespaces). Whatever
happens, all its processes end within a minute (one that stands still is waited for by torchrun,
half a minute more), and the same command then ends in the bytes of one
undisturbed process.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

import tests.conftest  # noqa: F401 - sets the environment that the tests run in
from benchmarks.soak.row import Report, Row
from tests.pipeline.launched import (
    TWO,
    after_a_checkpoint,
    configure,
    ended,
    launcher,
    make,
    newest,
    outputs,
    outputs_of_one_process,
    start,
    workers,
)
from tests.training.distributed.network import TWO_NODES, Network, NoNamespacesError, kill

ROUNDS = 3
LIMIT = 60.0
"""Seconds within which all processes must have ended."""
FROZEN = 30.0
"""Seconds more that torchrun gives a process which stands still to react to SIGTERM."""

Process = subprocess.Popen[str]
SIGNALS = [
    (victim, how)
    for victim in ("rank 0", "rank 1", "launcher")
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
] + [("rank 0", signal.SIGSTOP), ("rank 1", signal.SIGSTOP)]
MACHINES: dict[str, Callable[[Network, list[Process]], None]] = {
    "first_machine_killed": lambda _, nodes: kill(nodes[0]),
    "second_machine_killed": lambda _, nodes: kill(nodes[1]),
    "cable_pulled": lambda network, _: network.cut(),
}


def run(folder: Path, scale: float) -> Report:
    """Every disturbance, as often as the scale says."""
    report = Report()
    project = make(folder / "project")
    expected = outputs_of_one_process(project)
    rounds = max(1, round(ROUNDS * scale))
    report.counters["disturbances"] = 0
    for _ in range(rounds):
        for victim, how in SIGNALS:
            configure(project, TWO)
            seconds = _signal(project, victim, how, report)
            _note(report, f"{victim}_{how.name}".replace(" ", "_"), seconds)
            _finish([start(project)], project, expected, report)
    try:
        with Network.built() as network:
            for name in [name for name in MACHINES for _ in range(rounds)]:
                configure(project, TWO_NODES)
                _note(report, name, _lose(network, project, name, report))
                with network.started(project) as nodes:
                    _finish(nodes, project, expected, report)
    except NoNamespacesError as reason:
        report.require(False, str(reason))
    report.counters["ends_that_differ"] = sum("differ" in text for text in report.shortfalls)
    return report


def _signal(project: Path, victim: str, how: signal.Signals, report: Report) -> float:
    """Send a signal after a checkpoint; seconds until all have ended."""
    process = start(project)
    after_a_checkpoint(project, process, newest(project))
    leader = launcher(project)
    found = workers(leader)
    target = leader if victim == "launcher" else found[int(victim[-1])]
    os.kill(target.pid, how)
    limit = LIMIT + FROZEN if how is signal.SIGSTOP else LIMIT
    return _until_all_end([process], [leader, *found], f"{victim} {how.name}", report, limit)


def _lose(network: Network, project: Path, name: str, report: Report) -> float:
    """Lose a machine, or the cable, after a checkpoint; seconds until all have ended."""
    with network.started(project) as nodes:
        after_a_checkpoint(project, nodes[0], newest(project))
        found = [
            process
            for node in nodes
            for process in (psutil.Process(node.pid), *psutil.Process(node.pid).children(True))
        ]
        MACHINES[name](network, nodes)
        seconds = _until_all_end(nodes, found, name, report)
    network.mend()
    return seconds


def _until_all_end(
    started: list[Process], found: list[psutil.Process], name: str, report: Report,
    limit: float = LIMIT,
) -> float:  # fmt: skip
    began = time.monotonic()
    for process in started:
        try:
            code, err = ended(process, 2 * LIMIT)
        except subprocess.TimeoutExpired:
            report.require(False, f"{name}: not ended after {2 * LIMIT:.0f} s")
            for each in found:
                if each.is_running():
                    each.kill()
            continue
        report.require(code != 0, f"{name}: ended as if nothing had happened")
        report.require("Traceback" not in err, f"{name}: {err}")
    seconds = time.monotonic() - began
    report.require(seconds < limit, f"{name}: ended after {seconds:.0f} s only")
    _, left = psutil.wait_procs(found, timeout=5)
    report.require(not left, f"{name}: {len(left)} processes outlived their launcher")
    return seconds


def _finish(
    started: list[Process], project: Path, expected: dict[str, bytes], report: Report
) -> None:
    """Let the run that was disturbed come to its end, and compare; then it is taken away."""
    for process in started:
        code, err = ended(process, 200)
        report.require(code == 0, f"the same command again ended with {code}: {err}")
    report.require(outputs(project) == expected, "model or curve differ from those of one process")
    shutil.rmtree(project / ".checkpoints")


def _note(report: Report, name: str, seconds: float) -> None:
    report.counters["disturbances"] += 1
    slowest = report.counters.get(f"{name}_seconds", 0.0)
    report.counters[f"{name}_seconds"] = max(slowest, round(seconds, 1))


ROW = Row("A12", "a rank, a launcher or a machine of several is lost", run)
