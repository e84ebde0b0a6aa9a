"""P1: SIGKILL of the process group of `dvc repro`, at random moments of all six stages."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path

import psutil

from benchmarks.soak.projects import (
    STAGES,
    Repo,
    Repro,
    differences,
    repro,
    start_project,
    timed_repro,
)
from benchmarks.soak.row import Report, Row

KILLS = 20
SEED = 5
ORDER = ("train", "pack_sequences", "evaluate", "download", "train_tokenizer", "benchmark")
"""Which stages get one more if the kills do not divide."""


def run(folder: Path, scale: float) -> Report:
    """Kill, give the same command again, and compare the end with an undisturbed one."""
    report, draw = Report(), random.Random(SEED)
    start = start_project(folder / "start")
    undisturbed = start.copy(folder / "undisturbed")
    seconds = timed_repro(undisturbed)
    wanted = max(1, round(KILLS * scale))
    planned = sorted(islice(cycle(ORDER), wanted), key=STAGES.index)
    counts: Counter[str] = Counter()
    number = 0
    while planned:
        number += 1
        project = start.copy(folder / f"killed-{number}")
        finished = _disturb(project, planned, seconds, draw, counts)
        report.require(finished, "a `dvc repro` after the kills did not end with 0")
        if finished:
            for name in differences(project, undisturbed):
                report.require(False, f"project {number}: {name} differs from the undisturbed run")
    report.counters |= {
        "kills": counts["kills"],
        **{f"kills_in_{stage}": counts[stage] for stage in STAGES},
        "stages_hit": sum(counts[stage] > 0 for stage in STAGES),
        "kills_of_dvc_between_stages": counts["between"],
        "kills_that_left_partial_files": counts["partial"],
        "trainings_killed_after_a_checkpoint": counts["checkpoint"],
        "repros": counts["repros"],
        "projects": number,
        "outputs_that_differ": len(report.shortfalls),
    }
    report.require(counts["kills"] == wanted, f"{counts['kills']} kills instead of {wanted}")
    report.require(
        report.counters["stages_hit"] == min(wanted, len(STAGES)), "not all stages were hit"
    )
    return report


def _disturb(
    project: Repo, planned: list[str], seconds: dict[str, float], draw: random.Random,
    counts: Counter[str],
) -> bool:  # fmt: skip
    """Kill at the planned stages, which are taken off the list; then run to the end."""
    while planned:
        running = Repro(project)
        counts["repros"] += 1
        stage = running.wait_for_stage(STAGES.index(planned[0]))
        if stage is not None:
            time.sleep(draw.uniform(0, seconds[stage]))
        working = any(
            "pipeline." in " ".join(child.cmdline()) for child in _children(running.process.pid)
        )
        if running.process.poll() is not None:
            # came too late, after the last stage: the rest is for the next project
            return running.process.returncode == 0
        hit = running.stages()[-1]
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        counts.update(["kills", hit] + ([] if working else ["between"]))
        if any(project.path.rglob(".partial-*")):
            counts["partial"] += 1
        if hit == "train" and any(project.path.glob(".checkpoints/*/checkpoint-*")):
            counts["checkpoint"] += 1
        planned.remove(hit if hit in planned else planned[0])
    counts["repros"] += 1
    return repro(project).code == 0


def _children(process: int) -> list[psutil.Process]:
    try:
        found = psutil.Process(process).children(recursive=True)
        return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


ROW = Row("P1", "SIGKILL of `dvc repro` at random moments of all stages", run)
