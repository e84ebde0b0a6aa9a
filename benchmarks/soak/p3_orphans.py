"""P3: dvc is killed alone and its stage lives on, in each of the six stages."""

from __future__ import annotations

import signal
from pathlib import Path

from benchmarks.soak.projects import STAGES, Repro, differences, repro, resume, start_project
from benchmarks.soak.row import Report, Row


def run(folder: Path, scale: float) -> Report:
    """Make an orphan of each stage, give the command again beside it, then let it end."""
    report = Report()
    start = start_project(folder / "start")
    undisturbed = start.copy(folder / "undisturbed")
    assert repro(undisturbed).code == 0
    project = start.copy(folder / "project")
    stages = STAGES[: max(1, round(len(STAGES) * scale))]
    refused = told = 0
    for stage in stages:
        running = Repro(project)
        orphan = running.stage_process(stage)
        orphan.send_signal(signal.SIGSTOP)  # so that it surely lives when the next one comes
        running.process.kill()
        running.process.wait()
        beside = repro(project)
        refused += beside.code != 0
        told += f"already in use by process {orphan.pid} ({stage})" in beside.printed
        resume(orphan)  # it writes its output, which nobody waits for
    final = repro(project)
    report.require(final.code == 0, f"the last repro ended with {final.code}")
    differing = differences(project, undisturbed)
    for name in differing:
        report.require(False, f"{name} differs from the undisturbed run")
    report.counters |= {
        "orphans": len(stages),
        "repros_refused_beside_one": refused,
        "told_by_whom": told,
        "outputs_that_differ": len(differing),
    }
    report.require(refused == told == len(stages), "a repro beside an orphan was not refused")
    return report


ROW = Row("P3", "dvc killed alone, its stage lives on", run)
