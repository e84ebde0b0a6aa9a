"""Locks that the kernel frees when their holder dies, however it does."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_trainer.exceptions import LockHeldError
from llm_trainer.files import writable


@contextmanager
def hold_lock(path: str | os.PathLike[str], purpose: str) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` for the body; the kernel frees it on any death.

    POSIX record locks (`lockf`) belong to the process, so a child that outlives its killed
    parent does not keep the lock, as it would with `flock`. The file stays; only the lock counts.

    Raises:
        LockHeldError: another process holds it; the message names its process id.
    """
    path = Path(path)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise LockHeldError(
                f"{path.parent}: already in use by {holder or 'another process'}; wait for it to "
                f"end, or stop it, before {purpose} here again"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} ({purpose})".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
