"""Ends the network connections of this process on which nothing comes back any more.

A machine that vanishes closes nothing, and the kernel goes on sending to it for a quarter of an
hour. torch's store waits that long: it gives up after its own time limit, but then asks for leave
to do so, and waits for the answer (torch 2.13). So the kernel is told to report a connection as
dead when what was sent on it has not arrived for a while; what waits there then gets an error.
Linux only, since other systems have no such limit; a process may outlive its network there.
Price: a look at the open files of the process every few seconds.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

SILENCE = 30.0
"""Seconds for which what was sent may be on its way."""
PAUSE = 5.0
"""Seconds between two looks for new connections."""


def end_silent_connections() -> None:
    """Do so from now on, for connections of any part of this process, in a thread."""
    if sys.platform == "linux":
        threading.Thread(target=_run, name="connections", daemon=True).start()


def limit_silence(seconds: float) -> None:
    """Set the limit for the TCP connections that this process has now."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            descriptor = os.dup(int(name))
        except OSError:
            continue  # closed meanwhile
        with socket.socket(fileno=descriptor) as connection:
            internet = connection.family in (socket.AF_INET, socket.AF_INET6)
            if internet and connection.type == socket.SOCK_STREAM:
                connection.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * seconds)
                )


def _run() -> None:
    pause = threading.Event()
    while True:
        limit_silence(SILENCE)
        pause.wait(PAUSE)
