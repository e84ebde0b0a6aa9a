"""Stage `train` as two processes: the same result as one, one voice, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.config import RuntimeConfig
from llm_trainer.exceptions import ConfigurationError
from pipeline.launch import NO_FILE, processes_per_node, verdict, wants_launch
from pipeline.stage import LOCK_NAME
from pipeline.worker import LOST_PEER
from tests.pipeline.launched import (
    TWO,
    configure,
    disturb,
    ended,
    make,
    outputs,
    start,
    train,
)
from tests.pipeline.small_project import ROOT


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("launch") / "project")


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> dict[str, bytes]:
    """What one process makes, without a launcher."""
    configure(project, {})
    train(project)
    shutil.rmtree(project / ".checkpoints")
    return outputs(project)


@pytest.mark.slow
def test_killed_stopped_and_given_again_it_ends_in_the_bytes_of_one_process(
    project: Path, undisturbed: dict[str, bytes]
) -> None:
    configure(project, TWO)
    code, err, seconds = disturb(project, "1", signal.SIGKILL)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (1, 1), err
    assert "the process of rank 1 was killed by SIGKILL" in errors[0]
    assert seconds < 40
    assert "Traceback" not in err

    code, err, _ = disturb(project, "launcher", signal.SIGTERM)
    assert code == 143, err
    assert err.count("stopped at step") == err.count("resuming from") == 1
    assert "torch/distributed" not in err

    code, _, _ = disturb(project, "launcher", signal.SIGKILL)
    assert code == -signal.SIGKILL

    err = train(project)
    assert "on cpu in 2 processes of 1 thread each" in err
    assert err.count("resuming from") == 1
    assert len(list((project / ".checkpoints").iterdir())) == 1, "one run, whatever the launcher"
    assert outputs(project) == undisturbed
    metrics = json.loads((project / "metrics/train.json").read_text())
    assert metrics["steps"] == 120
    assert metrics["tokens"] == 120 * 8 * 32


def test_what_cannot_be_is_said_once_and_before_any_process(project: Path) -> None:
    configure(project, TWO | {"nproc_per_node": 3})
    code, err = ended(start(project))
    assert code == 2
    assert err.startswith("error: train: gradient_accumulation_steps * world_size (4)")
    assert len(err.splitlines()) == 1
    assert not (project / LOCK_NAME).read_text()


def test_an_error_of_all_processes_is_said_once(project: Path, tmp_path: Path) -> None:
    broken = tmp_path / "project"
    shutil.copytree(project, broken, symlinks=True)
    (broken / "data/packed/manifest.json").unlink()
    configure(broken, TWO)
    code, err = ended(start(broken))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), err
    assert "manifest.json: missing" in errors[0]
    assert "Traceback" not in err


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
