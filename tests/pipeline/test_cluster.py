"""The job files of clusters: Slurm's is run here, with two processes as its two machines.

Slurm itself is not there, so `srun` and `scontrol` are small programs that do what the script asks
of them, signals to every process of a step included.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.train import build_parser
from tests.pipeline.repo import ROOT, Repo, stages_run, wait_for

SCRIPT = Path("configs/cluster/slurm.sbatch")
SRUN = """#!{python}
import os, signal, subprocess, sys
import psutil

command = [word for word in sys.argv[1:] if not word.startswith("--")]
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(n)}}, start_new_session=True)
    for n in range(int(os.environ["SLURM_NNODES"]))
]

def forward(number, _frame):
    for task in tasks:
        for process in (psutil.Process(task.pid), *psutil.Process(task.pid).children(True)):
            process.send_signal(number)

signal.signal(signal.SIGTERM, forward)
open("srun-started", "w").close()
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """#!/bin/sh
case "$1" in
    show) printf '127.0.0.1\\n127.0.0.2\\n' ;;
    requeue) echo "$2" >> requeued ;;
esac
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def start(repo: Repo) -> Repo:
    repo.set(
        training__max_steps=120, training__eval_strategy="no", training__sample_steps=0,
        training__gradient_accumulation_steps=2, training__deterministic_reduction=True,
        runtime__save_steps=10, runtime__nproc_per_node=1, runtime__device="cpu",
        runtime__report_to=["console"],
    )  # fmt: skip
    # the job is about stage train; what follows it has tests of its own
    repo.dvc("freeze", "evaluate", "benchmark")
    repo.commit("longer than it takes to send a signal")
    return repo


def submit(repo: Repo) -> subprocess.Popen[str]:
    """Start the script as Slurm would, with two machines."""
    tools = repo.path.parent / "tools"
    program(tools / "srun", SRUN.format(python=sys.executable))
    program(tools / "scontrol", SCONTROL)
    (repo.path / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (repo.path / ".venv/bin/activate").touch()
    environment = repo.environment
    environment |= {
        "PATH": f"{tools}{os.pathsep}{environment['PATH']}", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2", "RDZV_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", str(SCRIPT)], cwd=repo.path, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_a_job_saves_before_its_limit_and_its_next_turn_ends_in_the_bytes_of_one_process(
    start: Repo, tmp_path: Path
) -> None:
    alone, project = start.copy(tmp_path / "alone"), start.copy(tmp_path / "job" / "project")
    assert alone.repro("train") == ["train"]
    shutil.rmtree(project.path / ".checkpoints", ignore_errors=True)

    job = submit(project)
    wait_for(
        lambda: job.poll() is not None or [*project.path.glob(".checkpoints/*/checkpoint-*")],
        "a checkpoint", 90,
    )  # fmt: skip
    assert job.poll() is None, job.stdout and job.stdout.read()
    job.send_signal(signal.SIGTERM)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode not in (0, None), printed
    assert printed.count("stopped at step") == 1, printed
    assert (project.path / "requeued").read_text() == "7\n"

    job = submit(project)
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 0, printed
    assert printed.count("resuming from") == 1, printed
    assert stages_run(printed) == ["train"]
    assert project.files("models/final") == alone.files("models/final")
    assert (project.path / "requeued").read_text() == "7\n"


def test_settings_that_the_script_writes_are_there_to_be_written(start: Repo) -> None:
    text = (start.path / SCRIPT).read_text()
    runtime = yaml.safe_load((start.path / "params.yaml").read_text())["runtime"]
    for key in ("launcher", "nnodes", "rdzv_endpoint", "rdzv_id"):
        assert f'"{key}: ' in text
        assert key in runtime


def test_the_job_of_kubernetes_runs_a_command_that_there_is() -> None:
    job = yaml.safe_load((ROOT / "configs/cluster/pytorchjob.yaml").read_text())
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    shell, flag, line = container["command"]
    assert (shell, flag) == ("sh", "-c")
    words = shlex.split(line)
    assert words[:3] == ["exec", "torchrun", "scripts/train.py"]
    arguments = build_parser().parse_args(words[3:])
    assert arguments.config == "params.yaml"
    assert arguments.resume_from_checkpoint == "auto"
    patience = int(container["env"][0]["value"])
    assert patience < worker["template"]["spec"]["terminationGracePeriodSeconds"]
    elastic = job["spec"]["elasticPolicy"]
    assert elastic["minReplicas"] == elastic["maxReplicas"] == worker["replicas"]
