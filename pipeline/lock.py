"""What `dvc.lock` says about a directory, now and in the history of git.

DVC names a directory by an MD5 over the MD5s of its files. Computing it here takes milliseconds,
where importing DVC takes a second; a test compares with DVC itself.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_trainer.exceptions import IntegrityError

LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Revision:
    """A commit whose `dvc.lock` has a certain output."""

    commit: str
    """Full hash."""
    date: str
    """Day of the commit, ISO 8601."""
    name: str
    """How git names it from a branch, tag or experiment, such as `main~2`."""
    subject: str


def locked_md5(path: Path, lock: Path = LOCK) -> str | None:
    """The MD5 under which `dvc.lock` has the output `path`; None if it has none.

    Raises:
        IntegrityError: the file is not readable as YAML.
    """
    if not lock.is_file():
        return None
    try:
        document = yaml.safe_load(lock.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{lock}: not readable as YAML ({error})") from error
    stages: Any = document.get("stages", {}) if isinstance(document, dict) else {}
    for stage in stages.values():
        for out in stage.get("outs", []):
            if out.get("path") == path.as_posix() and "md5" in out:
                return str(out["md5"])
    return None


def directory_md5(path: Path) -> str:
    """The MD5 that DVC gives a directory, with its suffix `.dir`."""
    entries = []
    for file in path.rglob("*"):
        if file.is_file():
            with open(file, "rb") as content:
                # DVC's choice of digest, not a protection
                digest = hashlib.file_digest(
                    content, lambda: hashlib.md5(usedforsecurity=False)
                ).hexdigest()
            entries.append({"md5": digest, "relpath": file.relative_to(path).as_posix()})
    entries.sort(key=lambda entry: entry["relpath"])
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def revision_with(md5: str) -> Revision | None:
    """The first commit, on any branch, tag or experiment, whose `dvc.lock` has this MD5."""
    found = _git("log", "--all", "--format=%H%x09%cs%x09%s", f"-S{md5}", "--", LOCK.as_posix())
    # the search finds where the text came and where it went: the oldest is where it came first
    for line in reversed(found.splitlines()):
        commit, date, subject = line.split("\t", 2)
        if md5 in _git("show", f"{commit}:./{LOCK.as_posix()}"):
            name = _git("name-rev", "--name-only", "--no-undefined", commit).strip()
            return Revision(commit, date, name, subject)
    return None


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
