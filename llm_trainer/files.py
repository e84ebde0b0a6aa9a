"""Files that are either whole or absent: atomic writes, manifests, locks.

Everything the project writes goes through here. A file or directory is written under a temporary
name beside its final one, synced, and renamed, so a process killed at any moment leaves the old
content or the new, never a mix. A directory of data carries a `manifest.json` with the sha256 and
size of each of its files; whoever reads the directory verifies it first. Price: one fsync a file
and one hash of all bytes on load (about 1 GB/s a core).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_trainer.digests import canonical_json as canonical_json
from llm_trainer.digests import digest_json as digest_json
from llm_trainer.digests import sha256_bytes as sha256_bytes
from llm_trainer.digests import sha256_file as sha256_file
from llm_trainer.exceptions import IntegrityError, LLMTrainerError, LockHeldError
from llm_trainer.json_file import MAX_JSON_BYTES as MAX_JSON_BYTES
from llm_trainer.json_file import read_json as read_json

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1

_TEMPORARY_PREFIX = ".partial-"
_NOT_WRITABLE = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
)  # fmt: skip


# --------------------------------------------------------------------------- writing


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


# --------------------------------------------------------------------------- manifests


def write_manifest(
    directory: str | os.PathLike[str],
    kind: str,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    /,
    **fields: Any,
) -> dict[str, Any]:
    """Write `manifest.json` over all files now in `directory` (recursively) and return it.

    `kind` says what the directory is ("raw", "packed", "tokenizer", "model", "checkpoint"); of the
    files in `known` size and digest are taken as given by who wrote them; `fields` are added at
    the top level. Names are relative POSIX paths, sorted.
    """
    directory, known = Path(directory), known or {}
    manifest = {
        "format": MANIFEST_FORMAT,
        "kind": kind,
        "files": {
            name: dict(known[name])
            if name in known
            else {
                "bytes": (directory / name).stat().st_size,
                "sha256": sha256_file(directory / name),
            }
            for name in _file_names(directory)
        },
        **fields,
    }
    write_json(directory / MANIFEST_NAME, manifest)
    return manifest


def seal_manifest(directory: str | os.PathLike[str], manifest: dict[str, Any]) -> dict[str, Any]:
    """Add a digest of all of `manifest` to it and write it: damage to any field is noticed then."""
    sealed = {**manifest, "seal": digest_json(manifest)}
    write_json(Path(directory) / MANIFEST_NAME, sealed)
    return sealed


def is_sealed(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has the seal of `seal_manifest`, and it is unbroken."""
    fields = {name: value for name, value in manifest.items() if name != "seal"}
    try:
        return bool(manifest.get("seal") == digest_json(fields))
    except ValueError:  # NaN or half a surrogate pair, which we never write
        return False


def read_manifest(directory: str | os.PathLike[str], kind: str, *, remedy: str) -> dict[str, Any]:
    """Read and schema-check `manifest.json` without hashing the files it lists.

    `remedy` ends every message: what the user should do ("run `dvc repro pack_sequences`").

    Raises:
        IntegrityError: the manifest is missing, damaged, or of another kind or format.
    """
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        raise IntegrityError(
            f"{path}: missing, so this is not a complete '{kind}' directory; {remedy}"
        )
    manifest = read_json(path)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if (
        not isinstance(manifest, dict)
        or not isinstance(files, dict)
        or manifest.get("format") != MANIFEST_FORMAT
        or manifest.get("kind") != kind
        or not all(
            isinstance(name, str) and _is_inside(name) and _is_entry(entry)
            for name, entry in files.items()
        )
    ):
        raise IntegrityError(
            f"{path}: not a manifest of kind '{kind}', format {MANIFEST_FORMAT}; {remedy}"
        )
    return manifest


def verify_manifest(
    directory: str | os.PathLike[str],
    kind: str,
    *,
    remedy: str,
    hashed: Callable[[str], bool] = lambda _name: True,
) -> dict[str, Any]:
    """Read the manifest and check every file in the directory against it.

    `hashed` tells by name which files' bytes are read and compared; of the others only presence
    and size are checked (for a reader of one split of a large data set). A subdirectory that was
    added later with a manifest of its own (a tokenizer saved into a model's directory) answers for
    itself.

    Raises:
        IntegrityError: a file is missing, extra, of another size, or of other bytes.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, kind, remedy=remedy)
    listed: dict[str, dict[str, Any]] = manifest["files"]
    present = set(_file_names(directory))
    for name in sorted(present - set(listed)):
        if _has_own_manifest(directory, name, listed):
            continue
        raise IntegrityError(f"{directory / name}: not listed in the manifest; {remedy}")
    for name, entry in sorted(listed.items()):
        path = directory / name
        if name not in present:
            raise IntegrityError(f"{path}: listed in the manifest but missing; {remedy}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise IntegrityError(
                f"{path}: {size:,} bytes, but the manifest says {entry['bytes']:,}; {remedy}"
            )
        if hashed(name) and sha256_file(path) != entry["sha256"]:
            raise IntegrityError(f"{path}: content differs from the manifest's sha256; {remedy}")
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """The identity of a verified directory: a digest of its kind and its files' digests."""
    return digest_json(
        {"kind": manifest["kind"], "files": {k: v["sha256"] for k, v in manifest["files"].items()}}
    )


def _file_names(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path != directory / MANIFEST_NAME and not is_partial(path.name)
    )


def _has_own_manifest(directory: Path, name: str, listed: dict[str, Any]) -> bool:
    top = name.partition("/")[0]
    own = (directory / top / MANIFEST_NAME).is_file()
    return top != name and own and not any(other.startswith(f"{top}/") for other in listed)


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: no name of ours, and no digest has it
        return False
    return bool(name) and not name.startswith("/") and ".." not in parts and "" not in parts


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )


# --------------------------------------------------------------------------- locks


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
