"""Locks: held by one process, freed by any death, and the message says by whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_trainer.exceptions import LockHeldError
from llm_trainer.locks import hold_lock

HOLDER = """
import sys, time
from llm_trainer.locks import hold_lock
with hold_lock(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout as output:
        assert output.readline() == b"held\n"
        message = (
            rf"run: already in use by process {holder.pid} \(train\); wait .* train here again"
        )
        with pytest.raises(LockHeldError, match=message), hold_lock(lock, "train"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with hold_lock(lock, "train"):
        assert lock.read_text() == f"process {os.getpid()} (train)"
    assert lock.read_text() == ""


ORPHAN = """
import os, sys, time
from llm_trainer.locks import hold_lock
with hold_lock(sys.argv[1], "train"):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_the_child_of_a_killed_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", ORPHAN, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        with hold_lock(lock, "train"):
            os.kill(child, 0)  # it still lives
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()
