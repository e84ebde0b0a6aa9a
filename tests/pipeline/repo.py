"""A real git and DVC repository of the project, as small as it gets, for the tests of the pipeline.

`prepared()` makes one and runs the whole pipeline in it once for all test processes; each test
module works in a copy of it, DVC's cache included.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.preset import apply_preset
from pipeline.yaml_text import Value, set_values

ROOT = Path(__file__).parents[2]
STAGES = ("download", "train_tokenizer", "pack_sequences", "train", "evaluate", "benchmark")
OUTPUTS = ("data/raw", "models/tokenizer", "data/packed", "models/final", "plots/samples")
TREE = (
    ".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", ".gitignore", "configs",
    "dvc.yaml", "llm_trainer", "params.yaml", "pipeline", "pyproject.toml",
)  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {
    # changes no result: no server to fill, one thread and one process beside the other tests
    "runtime": {"report_to": ["console"], "num_threads": 1, "preprocessing_num_workers": 1},
    # what the tests change and change back, whatever the default is tuned to
    "training": {"learning_rate": 0.02},
    "evaluation": {"seed": 0},
    "packing": {"min_length": 10},
}
TIMEOUT = 240


@dataclass(frozen=True)
class Repo:
    """A repository and the commands that a user types in it."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """Without anything of the user's own set-up."""
        scratch = self.path.parent / "dvc-site"
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(scratch / "cache"),
            "DVC_GLOBAL_CONFIG_DIR": str(scratch / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(scratch / "system"),
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            command, cwd=self.path, env=self.environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, text=True, timeout=TIMEOUT,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def git(self, *arguments: str) -> str:
        """Run git."""
        return self.run("git", *arguments).strip()

    def dvc(self, *arguments: str, code: int = 0) -> str:
        """Run dvc."""
        return self.run(sys.executable, "-m", "dvc", *arguments, code=code)

    def repro(self, *arguments: str) -> list[str]:
        """`dvc repro`; returns the stages that ran."""
        return stages_run(self.dvc("repro", *arguments))

    def start_queue(self) -> None:
        """`dvc queue start` with one worker, until nothing is queued or running any more."""
        # the workers keep the output of the command open until they end: a file, not a pipe
        with (self.path.parent / "queue.log").open("w") as log:
            subprocess.run(
                [sys.executable, "-m", "dvc", "queue", "start", "--jobs", "1"],
                cwd=self.path, env=self.environment, check=True, timeout=TIMEOUT,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.wait_for_queue()

    def wait_for_queue(self) -> None:
        """Wait until no task is queued or running."""

        def is_idle() -> bool:
            text = self.dvc("queue", "status")
            return "Queued" not in text and "Running" not in text

        wait_for(is_idle, "the queue to end", pause=2.0)

    def set(self, **keys: Any) -> None:
        """Edit params.yaml as a user would: `section__key=value`."""
        wanted: dict[str, dict[str, Value]] = {}
        for name, value in keys.items():
            section, _, key = name.partition("__")
            text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
            wanted.setdefault(section, {})[key] = Value(value, text, 0, 0)
        path = self.path / "params.yaml"
        path.write_text(set_values(path.read_text(), path, wanted))

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)

    def outputs(self) -> dict[str, str]:
        """Output -> the MD5 that dvc.lock has for it; metrics with timings are left out."""
        lock = yaml.safe_load((self.path / "dvc.lock").read_text())
        found = {
            out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]
        }
        return {path: found[path] for path in OUTPUTS}

    def files(self, *folders: str) -> dict[str, bytes]:
        """Path -> content of all files in these folders, or of single files."""
        paths = [p for f in folders for p in (self.path / f, *(self.path / f).rglob("*"))]
        return {p.relative_to(self.path).as_posix(): p.read_bytes() for p in paths if p.is_file()}

    def copy(self, path: Path) -> Repo:
        """A copy with everything in it."""
        shutil.copytree(self.path, path, symlinks=True)
        return Repo(path)


def stages_run(printed: str) -> list[str]:
    """The stages that DVC really ran, in order, of what `dvc repro` or `dvc exp run` printed."""
    return re.findall(r"Running stage '(\w+)':", printed)


def make(path: Path) -> Repo:
    """A repository of the present working tree with the smoke preset, one commit, nothing run."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *TREE],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
    repo = Repo(path)
    apply_preset("smoke", path / "params.yaml", path / "configs")
    repo.set(**{f"{s}__{k}": v for s, values in QUICK.items() for k, v in values.items()})
    repo.git("init", "--quiet", "--initial-branch=main")
    repo.commit("start")
    return repo


def prepared(shared: Path) -> Repo:
    """The repository under `shared` in which the whole pipeline ran once; made by who comes first.

    Test processes that come meanwhile wait.
    """
    path, ready = shared / "prepared", shared / "prepared-is-ready"
    with open(shared / "prepared-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            shutil.rmtree(path, ignore_errors=True)
            repo = make(path)
            assert repo.repro() == list(STAGES)
            repo.commit("first run")
            ready.touch()
    return Repo(path)


def wait_for(
    condition: Callable[[], Any], what: str, seconds: float = TIMEOUT, pause: float = 0.01
) -> Any:
    """Poll until `condition()` is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")
