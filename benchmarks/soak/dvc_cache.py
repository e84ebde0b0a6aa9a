"""B8: a bit flipped in DVC's cache; DVC restores the object, the stage that reads it says so."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

from benchmarks.soak.row import Report, Row
from llm_trainer.manifests import MANIFEST_NAME
from tests.pipeline.small_project import ROOT, make_project, run_here

FLIPS = 40
_OUTPUTS = ("data/raw", "data/packed", "models/tokenizer", "models/final")


def run(folder: Path, scale: float) -> Report:
    """Each flip: `dvc checkout`, then the stage; it must end with code 2 and name the file."""
    project = make_project(folder / "project")
    for name in ("pipeline", "llm_trainer"):  # whose digests a run's identity has
        (project / name).symlink_to(ROOT / name)
    environment = {
        **os.environ, "DVC_SITE_CACHE_DIR": str(folder / "site"), "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(folder / "global"),
    }  # fmt: skip

    def dvc(*arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
        subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)

    dvc("init", "--no-scm")
    dvc("add", *_OUTPUTS)
    good = {
        path: path.read_bytes() for out in _OUTPUTS for path in sorted((project / out).rglob("*"))
        if path.is_file()
    }  # fmt: skip
    objects = {
        path.read_bytes(): path for path in (project / ".dvc/cache/files/md5").rglob("*")
        if path.is_file() and path.suffix != ".dir"
    }  # fmt: skip
    chance = random.Random(0)
    report = Report()
    restored = named = 0
    for _ in range(max(2, int(FLIPS * scale))):
        target = chance.choice(list(good))
        content = good[target]
        cached = objects[content]
        bad = bytearray(content)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        cached.chmod(0o644)
        cached.write_bytes(bad)
        for out in _OUTPUTS:
            shutil.rmtree(project / out)
        dvc("checkout")
        restored += target.read_bytes() == bad
        message = _stage(project, "train" if "packed/train" in str(target) else "evaluate")
        # what a manifest says of its own directory is all that names a flip in it
        short = target.parent.name if target.name == MANIFEST_NAME else target.name
        held = message.startswith("error: ") and short in message
        named += held
        report.require(held, f"{target.relative_to(project)}: {message[:200] or 'nothing said'}")
        cached.write_bytes(content)
    for out in _OUTPUTS:
        shutil.rmtree(project / out)
    dvc("checkout")
    report.require(not _stage(project, "evaluate"), "the undamaged project is refused")
    report.counters = {
        "flips": max(2, int(FLIPS * scale)), "restored_by_dvc": restored, "named_by_stage": named,
    }  # fmt: skip
    return report


def _stage(project: Path, name: str) -> str:
    """What the stage says on stderr before it ends with code 2; empty if it goes through."""
    said = io.StringIO()
    # which code the stage has; beside `dvc add`, DVC would find each output twice
    (project / "dvc.yaml").symlink_to(ROOT / "dvc.yaml")
    try:
        with redirect_stderr(said):
            run_here(project, name)
    except SystemExit as end:
        lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        return "\n".join(lines) if end.code == 2 else f"exit code {end.code}"
    finally:
        (project / "dvc.yaml").unlink()
    return ""


ROW = Row("B8", "a bit flipped in DVC's cache, restored by `dvc checkout`", run)
