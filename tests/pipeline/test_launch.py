"""Stage `train` as two processes: the same result as one, one voice, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_trainer.config import RuntimeConfig
from llm_trainer.exceptions import ConfigurationError
from pipeline.launch import NO_FILE, processes_per_node, verdict, wants_launch
from pipeline.network import addresses, is_here, way_to
from pipeline.stage import LOCK_NAME
from pipeline.worker import LOST_PEER
from tests.mlflow_store import empty_database_fixture  # noqa: F401
from tests.pipeline import repo as repository
from tests.pipeline.launched import (
    LIMIT,
    STEPS,
    TWO,
    configure,
    disturb,
    ended,
    outputs,
    outputs_of_one_process,
    start,
)
from tests.pipeline.repo import Repo
from tests.pipeline.small_project import ROOT, make_project


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Repo:
    """The small project as a real repository."""
    path: Path = tmp_path_factory.mktemp("launch") / "project"
    found = repository.make(path)
    make_project(path)
    shutil.copyfile(empty_database, path / "mlflow.db")
    found.commit("small")
    return found


@pytest.fixture(scope="module")
def project(repo: Repo) -> Path:
    return repo.path


@pytest.mark.slow
def test_dvc_repro_with_a_rank_killed_then_given_again_ends_in_the_bytes_of_one_process(
    repo: Repo, project: Path
) -> None:
    """It begins under ddp and ends under fsdp. With other disturbances: row A12 of `make soak`."""
    expected = outputs_of_one_process(project)
    configure(project, TWO | {"report_to": ["mlflow"]})
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "train"]

    code, printed = disturb(project, repo.start(*command), "1", signal.SIGKILL)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code != 0
    assert len(errors) == 1, printed
    assert "the process of rank 1 was killed by SIGKILL" in errors[0]
    assert "Traceback" not in printed

    configure(project, TWO | {"report_to": ["mlflow"], "parallel": "fsdp"})
    printed = repo.run(*command)
    assert "on cpu in 2 processes of 1 thread each" in printed
    assert printed.count("resuming from") == 1
    assert outputs(project) == expected
    metrics = json.loads((project / "metrics/train.json").read_text())
    assert (metrics["steps"], metrics["tokens"]) == (STEPS, STEPS * 8 * 32)
    with sqlite3.connect(project / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)]
    assert len(list((project / ".checkpoints").iterdir())) == 1  # one run, and all was sent

    configure(project, {})
    assert repo.repro("--single-item", "train") == [], "another launcher is no other result"


def test_what_cannot_be_is_said_once_and_before_any_process(project: Path) -> None:
    configure(project, TWO | {"nproc_per_node": 3})
    code, err = ended(start(project))
    assert code == 2
    assert err.startswith("error: train: gradient_accumulation_steps * world_size (4)")
    assert len(err.splitlines()) == 1
    assert not (project / LOCK_NAME).read_text()


ALL_FAIL = """
import os
from llm_trainer.exceptions import IntegrityError
from pipeline.stage import run_stage

def main():
    raise IntegrityError("the rows are damaged")

run_stage("train", main)
"""


def test_an_error_of_all_processes_is_said_once(tmp_path: Path) -> None:
    script = tmp_path / "all_fail.py"
    script.write_text(ALL_FAIL)
    program = (
        "from pipeline.launch import launch; from llm_trainer.config import *;"
        "runtime = RuntimeConfig(launcher='torchrun', nproc_per_node=2);"
        f"launch(runtime, TrainingConfig(gradient_accumulation_steps=2), [{str(script)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: train: the rows are damaged\n"


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"nproc_per_node": 2}, "nproc_per_node (2) needs launcher: torchrun"),
        ({"nnodes": 2}, "nnodes (2) needs launcher: torchrun"),
        (TWO | {"nnodes": 2}, "rdzv_endpoint is null, but 2 machines have to meet"),
        (TWO | {"rdzv_endpoint": "node-0"}, "rdzv_endpoint ('node-0') must be host:port"),
        (TWO | {"rdzv_id": "a b"}, "rdzv_id ('a b') must be of letters"),
        (TWO | {"nproc_per_node": 0}, "nproc_per_node (0) must be at least 1"),
        (TWO | {"max_restarts": -1}, "max_restarts (-1) must be at least 0"),
        (TWO | {"device": "cuda:1"}, "device (cuda:1) names one GPU for all processes"),
        ({"launcher": "mpirun"}, "is not one of torchrun"),
    ],
)
def test_settings_are_checked(runtime: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        RuntimeConfig(**runtime)
    assert message in str(error.value)


def test_who_starts_others(monkeypatch: pytest.MonkeyPatch) -> None:
    two = RuntimeConfig(**TWO)
    assert wants_launch(two)
    assert not wants_launch(RuntimeConfig())
    assert processes_per_node(two) == 2
    with pytest.raises(ConfigurationError, match="there is no GPU; give a number"):
        processes_per_node(RuntimeConfig(launcher="torchrun", device="cpu"))
    monkeypatch.setenv("RANK", "0")
    assert not wants_launch(two), "a process of a launcher starts no others"


@dataclass
class Failure:
    """What torchrun says of a failed process."""

    exitcode: int
    timestamp: int = 100
    error_file: str = NO_FILE
    message: str = ""


SAID = {"error_file": "error.json", "message": "no such file"}
LOST = {"error_file": "error.json", "message": LOST_PEER}


@pytest.mark.parametrize(
    ("failures", "code", "line"),
    [
        ({1: Failure(-9), 0: Failure(1, **LOST)}, 1, "rank 1 was killed by SIGKILL"),
        ({0: Failure(2, 101, **SAID), 1: Failure(-9, 100)}, 1, "rank 1 was killed by SIGKILL"),
        ({0: Failure(2, **SAID), 1: Failure(-9, 131)}, 2, None),
        ({0: Failure(2, **SAID), 1: Failure(-15)}, 2, None),
        ({0: Failure(143), 1: Failure(143)}, 143, None),
        ({0: Failure(1, **LOST)}, 1, LOST_PEER),
        ({1: Failure(1), 0: Failure(-15)}, 1, "rank 1 ended with exit code 1"),
    ],
)
def test_the_cause_of_an_end(failures: Any, code: int, line: str | None) -> None:
    found, said = verdict(failures)
    assert found == code
    assert said is None if line is None else line in (said or "")


def test_there_is_something_to_join_or_it_is_said(project: Path) -> None:
    configure(project, TWO)
    code, err = ended(start(project, "pipeline.launch"))
    assert code == 2
    assert "there is nothing to join" in err


def test_a_launched_process_does_not_outlive_its_launcher(tmp_path: Path) -> None:
    """Also one that started when the launcher was dead already."""
    program = "from pipeline.worker import die_with_launcher as d; d(); print('alive')"
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLM_TRAINER_LAUNCHER": str(gone.pid)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, b"")


def test_this_machine_and_the_way_to_others() -> None:
    assert is_here(addresses("localhost")) is None
    cards = [card for cards in psutil.net_if_addrs().values() for card in cards]
    for card in cards:
        if card.family == socket.AF_INET and not card.address.startswith("127."):
            assert is_here([(socket.AF_INET, card.address)])
    assert way_to(addresses("127.0.0.1")) is None
    assert not is_here([(socket.AF_INET, "198.51.100.7")])  # of nobody: RFC 5737
    with pytest.raises(ConfigurationError, match=r"node-0\.invalid is not known"):
        addresses("node-0.invalid")
