"""P2: two `dvc repro` at once in one directory, in each stage; and a stage beside a stage."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from benchmarks.soak.projects import STAGES, Repro, repro, start_project
from benchmarks.soak.row import Report, Row


def run(folder: Path, scale: float) -> Report:
    """Hold each stage, start the same command a second time, and let the first go on."""
    report = Report()
    project = start_project(folder / "project")
    first = Repro(project)
    stages = STAGES[: max(1, round(len(STAGES) * scale))]
    refused = told = stage_refused = stage_told = 0
    for stage in stages:
        held = first.stage_process(stage)
        held.send_signal(signal.SIGSTOP)
        second = project.start(sys.executable, "-m", "dvc", "repro")
        printed, _ = second.communicate(timeout=240)
        refused += second.returncode != 0
        told += f"(PID {first.process.pid})" in printed
        # and past DVC, which knows nothing of a command given by hand
        other = project.start("python", "-m", f"pipeline.{stage}")
        printed, _ = other.communicate(timeout=240)
        stage_refused += other.returncode == 2
        stage_told += f"already in use by process {held.pid} ({stage})" in printed
        held.send_signal(signal.SIGCONT)
    code = first.end()
    report.counters |= {
        "second_repros": len(stages),
        "refused": refused,
        "told_by_whom": told,
        "stages_by_hand": len(stages),
        "stages_refused": stage_refused,
        "stages_told_by_whom": stage_told,
    }
    for name in ("refused", "told_by_whom", "stages_refused", "stages_told_by_whom"):
        report.require(report.counters[name] == len(stages), f"{name}: not all")
    report.require(code == 0, f"the first repro ended with {code}")
    again = repro(project)
    report.require(again.code == 0 and not again.stages, "something was left to do")
    return report


ROW = Row("P2", "two `dvc repro` in one directory", run)
