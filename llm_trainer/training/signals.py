"""Stop on request: the first SIGINT or SIGTERM asks, the second ends the process at once.

A launcher passes on what its processes may have heard themselves, as when a cluster's scheduler
signals all of a job: of a process that has one, the same request again within ECHO is that one.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What asks a training to stop."""
ECHO = 2.0
"""Seconds that a launcher has to pass a signal on."""


class StopRequest:
    """Set by the first signal; the training loop looks at it after each micro-batch.

    Until the loop sets `idle` to False there is nothing to save, and the first signal ends the
    process at once: compiling the first step may take a minute.

    Args:
        launched: a launcher started this process.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self.signal: int | None = None
        self.idle = True
        self._echo = ECHO if launched else 0.0
        self._since = 0.0

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, as shells report them."""
        assert self.signal is not None
        return 128 + self.signal

    def take(self, number: int) -> None:
        """Stop for a signal that another process of the training had, and this one may have yet."""
        self.signal, self._since = number, time.monotonic()

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler."""
        if self.signal is not None:
            if time.monotonic() - self._since < self._echo:
                return
            os._exit(128 + number)
        self.take(number)
        if self.idle:
            logger.warning("%s: nothing to save yet", signal.Signals(number).name)
            raise SystemExit(self.exit_code)
        logger.warning(
            "%s: saving a checkpoint after this micro-batch; once more ends at once",
            signal.Signals(number).name,
        )


@contextmanager
def stop_on_signals(*, launched: bool = False) -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM in the body; the former handlers come back after.

    `launched` if a launcher started this process.

    Signals can only be handled in the main thread; in another one the request is never set.
    The exit of a process with nothing to save is raised wherever it is at that moment; where that
    is native code, another error may come out of it, which is the exit all the same.

    Raises:
        SystemExit: stopped before there was anything to save.
    """
    request = StopRequest(launched=launched)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in STOP_SIGNALS}
    try:
        yield request
    except Exception as error:
        if request.signal is not None and request.idle:
            raise SystemExit(request.exit_code) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
