"""A signal, SIGKILL included, when this process has used so much CPU time; the kernel sends it."""

from __future__ import annotations

import ctypes
import os

_CLOCK_PROCESS_CPUTIME_ID = 2


class _Event(ctypes.Structure):
    """struct sigevent: value, signal, SIGEV_SIGNAL, padding."""

    _fields_ = [
        ("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int),
        ("padding", ctypes.c_int * 12),
    ]  # fmt: skip


class _Times(ctypes.Structure):
    """struct itimerspec: interval and value, in seconds and nanoseconds."""

    _fields_ = [
        ("every", ctypes.c_long), ("every_ns", ctypes.c_long), ("value", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    ]  # fmt: skip


def signal_at(cpu_seconds: float, number: int) -> None:
    """Have the kernel send signal `number` to this process at that reading of its CPU clock.

    The timer ends with the process and is not inherited by its children.

    Raises:
        OSError: the system has no such timers.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    timer, event = ctypes.c_void_p(), _Event(None, number, 0)
    whole = int(cpu_seconds)
    times = _Times(0, 0, whole, max(1, int((cpu_seconds - whole) * 1e9)))
    made = libc.timer_create(_CLOCK_PROCESS_CPUTIME_ID, ctypes.byref(event), ctypes.byref(timer))
    if made or libc.timer_settime(timer, 1, ctypes.byref(times), None):  # 1: the reading, no delay
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
