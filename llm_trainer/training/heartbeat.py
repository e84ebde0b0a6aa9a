"""Finds out that another process of a training is gone, also when its whole machine is.

A process that dies closes its connections, and who waits for it in a collective is told so at once.
One whose machine vanishes closes nothing: the others would wait for hours. So each process counts
up a number in the launcher's store from a thread of its own, and looks at the numbers of all.
Whoever finds one that has stood still for too long, or the store silent, or its own launcher dead,
ends its process at once; nothing is lost but the steps since the last checkpoint. The thread runs
while the main thread computes, compiles or waits. Price: one small request a process every BEAT
seconds, and a place in it for each process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta
from typing import NoReturn, Self

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]

BEAT = 2.0
"""Seconds between two looks."""
LOST_AFTER = 30.0
"""Seconds without a beat after which a process counts as gone."""
LINGER = 10.0
"""Seconds that the process which hosts the store waits at the end for the others to leave."""
LOST_EXIT_CODE = 1
_LEFT = "left"


class Heartbeat:
    """The thread of one process."""

    def __init__(self, store: Store, rank: int, size: int, *, hosts_store: bool) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._hosts_store = hosts_store
        self._parent = os.getppid()
        self._ended = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @classmethod
    def first(cls, rank: int, size: int) -> Self:
        """Connect and beat once; `start` it when all ranks have."""
        # under torchrun the store is the launcher's, otherwise rank 0's
        launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        # a connection of its own: the default store's may be held for minutes by another thread
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
            timeout=timedelta(seconds=LOST_AFTER), wait_for_workers=False,
        )  # fmt: skip
        heartbeat = cls(store, rank, size, hosts_store=rank == 0 and not launcher)
        heartbeat._beat()
        return heartbeat

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Tell the others that this process leaves in peace, and end the thread."""
        self._ended.set()
        self._thread.join(timeout=LOST_AFTER)
        try:
            self._store.set(self._key(self._rank), _LEFT)
            deadline = time.monotonic() + (LINGER if self._hosts_store else 0.0)
            while time.monotonic() < deadline and set(self._numbers()) != {_LEFT}:
                time.sleep(0.05)
        except (DistError, RuntimeError):
            return  # the store has gone before us: there is nobody left to tell

    def _key(self, rank: int) -> str:
        return f"heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(self._key(self._rank), str(self._beats))

    def _numbers(self) -> list[str]:
        """What each rank wrote last."""
        keys = [self._key(rank) for rank in range(self._size)]
        return [value.decode() for value in self._store.multi_get(keys)]

    def _run(self) -> None:
        seen: dict[int, tuple[str, float]] = {}
        while not self._ended.wait(BEAT):
            if os.getppid() != self._parent:
                self._end("its launcher is gone")
            try:
                self._beat()
                numbers = self._numbers()
            except (DistError, RuntimeError) as error:
                if self._ended.is_set():
                    return
                self._end(f"the launcher's store does not answer ({str(error).splitlines()[0]})")
            now = time.monotonic()
            for rank, number in enumerate(numbers):
                if rank not in seen or seen[rank][0] != number or number == _LEFT:
                    seen[rank] = (number, now)
                elif now - seen[rank][1] > LOST_AFTER:
                    self._end(f"rank {rank} has not been heard of for {LOST_AFTER:.0f} s")
            if numbers[0] == _LEFT:
                return  # nothing to wait for any more, and the store may go with rank 0

    def _end(self, reason: str) -> NoReturn:
        # the main thread may wait in native code for ever, so nothing gentler would do
        sys.stderr.write(
            f"error: rank {self._rank}: {reason}; ending. The same command goes on from the "
            f"newest checkpoint\n"
        )
        sys.stderr.flush()
        os._exit(LOST_EXIT_CODE)
