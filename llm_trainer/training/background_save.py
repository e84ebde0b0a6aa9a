"""Saving while the training goes on: a thread writes what was copied, and commits it.

The loop waits for the copy only. One checkpoint is in flight at a time: the next save waits for
it, and says so. Nothing is called saved before it is durable: older checkpoints are deleted by the
thread, after the commit. What goes wrong in the thread is raised in the loop, at the next step
boundary. Price: memory on the host for one copy of weights and optimizer, and a share of the
processor while the thread hashes (writing and hashing do not hold Python's lock).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class BackgroundSave:
    """At most one save in flight."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._name = ""
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the last save ended with an error, which nobody has raised yet."""
        return self._error is not None

    def start(self, name: str, save: Callable[[], object]) -> None:
        """Begin to save `name` by calling `save` in a thread; `wait` comes before.

        Raises:
            Exception: what the save before this one ended with.
        """
        self.wait()
        self._name = name
        self._thread = threading.Thread(target=self._run, args=(save,), name="save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            Exception: what the save ended with.
        """
        error = self._join()
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise what the last save ended with, if it has; never waits for one in flight.

        Raises:
            Exception: what the save ended with.
        """
        if self.failed:
            self.wait()

    def settle(self) -> None:
        """Wait as `wait` does; an error is only logged, since another one is on its way up."""
        error = self._join()
        if error is not None:
            logger.error("%s was not saved: %s", self._name, error)

    def _join(self) -> BaseException | None:
        """Wait, and return what the save ended with."""
        thread, self._thread = self._thread, None
        if thread is not None:
            if thread.is_alive():
                started = time.monotonic()
                thread.join()
                waited = time.monotonic() - started
                logger.info("waited %.2f s for %s to be saved", waited, self._name)
            thread.join()
        error, self._error = self._error, None
        return error

    def _run(self, save: Callable[[], object]) -> None:
        try:
            save()
        except BaseException as error:  # noqa: BLE001 - raised again in the loop
            self._error = error
