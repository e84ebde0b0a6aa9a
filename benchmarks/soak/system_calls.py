"""Kill a child at its k-th system call, by ptrace: before the call, so it is not carried out."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_TRACEME, _SYSCALL, _SETOPTIONS, _TRACESYSGOOD = 0, 24, 0x4200, 1
_AT_SYSTEM_CALL = signal.SIGTRAP | 0x80


def kill_at_system_call(body: Callable[[], object], number: int) -> bool:
    """Run `body` in a child and kill it at its `number`-th system call, counted from 1.

    Returns whether it was killed; False if `body` came to its end in fewer calls.

    Raises:
        OSError: this system lets nobody trace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        libc.ptrace(_TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            body()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status) or libc.ptrace(_SETOPTIONS, child, None, _TRACESYSGOOD):
        raise OSError(ctypes.get_errno(), "this system does not let children be traced")
    stops, pass_on = 0, 0
    while True:
        libc.ptrace(_SYSCALL, child, None, pass_on)
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            return False
        pass_on = 0
        if os.WSTOPSIG(status) != _AT_SYSTEM_CALL:
            pass_on = os.WSTOPSIG(status)
            continue
        stops += 1  # one before and one after each call
        if stops == 2 * number - 1:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
