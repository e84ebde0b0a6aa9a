"""Small and read-only disks that only this process sees, and that vanish with it (Linux)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _ALL_PRIVATE = 1, 32, 4096, 0x4000 | 0x40000


def own_mounts() -> None:
    """Give this process mounts of its own; without root, as root of a user namespace.

    Raises:
        OSError: the system does not let it.
    """
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_MOUNTS if user == 0 else _NEW_MOUNTS | _NEW_USER)
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", b"none", b"/", None, _ALL_PRIVATE, None)


def mount_disk(path: Path, num_bytes: int) -> None:
    """An empty disk of that size at `path`, or another size for the one that is there."""
    path.mkdir(parents=True, exist_ok=True)
    flags = _REMOUNT if os.path.ismount(path) else 0
    _call("mount", b"tmpfs", bytes(path), b"tmpfs", flags, f"size={num_bytes}".encode())


def unmount(path: Path) -> None:
    """Take a disk away."""
    _call("umount2", bytes(path), 2)


def make_read_only(path: Path) -> None:
    """Let nobody write below `path`, root included."""
    _call("mount", bytes(path), bytes(path), None, _BIND, None)
    _call("mount", None, bytes(path), None, _BIND | _REMOUNT | _READ_ONLY, None)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(libc, name)(*wide):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
