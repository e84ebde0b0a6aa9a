"""Files and directories that are either whole or absent.

Everything the project writes goes through here. A file or directory is written under a temporary
name beside its final one, synced, and renamed, so a process killed at any moment leaves the old
content or the new, never a mix. Price: one fsync a file.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import LLMTrainerError

_TEMPORARY_PREFIX = ".partial-"
_NOT_WRITABLE = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
)  # fmt: skip


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: str | os.PathLike[str]) -> None:
    """Make the content of an already written file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it to `path`.

    On any exception, `KeyboardInterrupt` included, the temporary file is removed and `path` keeps
    its old content. Missing parent directories are made.

    Raises:
        LLMTrainerError: the disk is full or the place cannot be written; names path and reason.
    """
    target = Path(path)
    with writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f"{_TEMPORARY_PREFIX}{target.name}-", dir=target.parent
        )
        os.close(handle)
        os.chmod(name, usual_mode())
        temporary = Path(name)
        try:
            yield temporary
            fsync_file(temporary)
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        fsync_directory(target.parent)


@contextmanager
def atomic_directory(
    path: str | os.PathLike[str],
    before_commit: Callable[[Path], None] | None = None,
    needed: int | None = None,
) -> Iterator[Path]:
    """Yield an empty temporary directory; on success sync all of it and rename it to `path`.

    An existing `path` is replaced. Left-overs of earlier killed writers of the same `path` are
    removed first; hold a lock where two writers are possible. `before_commit` runs on the
    temporary directory after the body and before the sync (to write a manifest, say); `needed` is
    about how many bytes it takes, for the message if there are not so many.

    Raises:
        LLMTrainerError: the disk is full or the place cannot be written; names path and reason.
    """
    target = Path(path)
    with writable(target, needed):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():  # told before the work, not after it
            raise NotADirectoryError(
                errno.ENOTDIR, "a file of that name is in the way", str(target)
            )
        remove_partial(target)
        temporary = target.parent / f"{_TEMPORARY_PREFIX}{target.name}-{os.getpid()}"
        temporary.mkdir()
        try:
            yield temporary
            if before_commit is not None:
                before_commit(temporary)
            for directory, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    fsync_file(os.path.join(directory, name))
                fsync_directory(directory)
            _replace_directory(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_directory(target.parent)


def remove_partial(path: str | os.PathLike[str]) -> None:
    """Remove what killed writers of the directory or file `path` left under temporary names."""
    target = Path(path)
    for leftover in target.parent.glob(f"{_TEMPORARY_PREFIX}{target.name}-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def is_partial(name: str) -> bool:
    """Whether a file name is a temporary one of this module."""
    return name.startswith(_TEMPORARY_PREFIX)


def _replace_directory(temporary: Path, target: Path) -> None:
    # rename(2) replaces only an empty directory, so an old one first steps aside; a kill between
    # the two renames leaves no `target`, and the old content under a name that remove_partial
    # clears away at the next write.
    if target.is_dir() and not target.is_symlink():
        old = target.parent / f"{_TEMPORARY_PREFIX}{target.name}-old-{os.getpid()}"
        os.rename(target, old)
        os.rename(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, target)


@contextmanager
def writable(target: Path, needed: int | None = None) -> Iterator[None]:
    """Turn what the system says about writing `target` in the body into an error that helps.

    Raises:
        LLMTrainerError: no space, of which `needed` bytes are wanted, or no permission.
    """
    try:
        yield
    except OSError as error:
        if any(map(is_partial, target.parent.parts)):
            raise  # the writer of the whole directory tells its name, and what it needs
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place = target.parent
            while not place.exists():
                place = place.parent
            free = shutil.disk_usage(place).free
            wanted = f"about {needed:,} bytes needed, " if needed else ""
            raise LLMTrainerError(
                f"{target}: no space left while writing ({error.strerror}; {wanted}{free:,} bytes "
                f"free in {place}); free some space and give the same command again, nothing was "
                f"lost"
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise LLMTrainerError(
                f"{target}: cannot be written ({error.strerror}); make {target.parent} a writable "
                f"directory or choose another place"
            ) from error
        raise


def usual_mode() -> int:
    """The permissions of a file that this process makes, as its umask says."""
    current = os.umask(0)
    os.umask(current)
    return 0o666 & ~current


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Atomically write UTF-8 text, newlines untouched."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Atomically write `value` as readable JSON with sorted keys: same value, same bytes."""
    write_text(
        path,
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    )
