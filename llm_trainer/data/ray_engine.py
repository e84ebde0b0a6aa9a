"""Work shared out by Ray: started on this machine for the time of the work, or a running cluster.

How: `RayCluster.ordered` runs a generator function on many arguments at once and gives the streams
of results in the order of the arguments. Ray schedules, holds the results (on disk, when they are
more than its memory), and runs again what was lost with a worker or a node; since functions here
are pure, what comes is the same. Memory is bounded: at most `num_workers` streams are being
produced, as many more wait finished, and a stream that is `ahead` of its reader pauses.

A cluster on this machine listens on loopback only, has a token of its own, no dashboard, and tells
nobody of its use; what it writes goes to a temporary directory that is removed. Ray sends functions
and results among its own processes as pickles: let only machines that you trust into a cluster.
On a cluster of several machines the package must be installed on each, in the same version.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from llm_trainer.config.secrets import strip_secrets
from llm_trainer.data.engine import Engine, usable_cores
from llm_trainer.exceptions import ConfigurationError, LLMTrainerError, MissingDependencyError

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MAX_RETRIES = 5
"""Times that a part is done again after its worker or node was lost."""
_STORE_BYTES = 256 * 2**20
"""Ray's memory for results on this machine, for each worker; what is more goes to disk."""
_SOCKET_PATH = 107
"""Longest path of a socket; Ray adds about 66 characters to its directory."""
_OURS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the switch that keeps Ray on 127.0.0.1
    "RAY_AUTH_MODE": "token",
    "RAY_task_oom_retries": str(_MAX_RETRIES),  # by default without end
}
"""Environment of a cluster on this machine."""
_ONE_TRY = {"RAY_gcs_server_port_wait_time_s": "1"}
"""A head that refuses our token, or hides behind another address, is asked once (which may take 40
seconds); Ray would ask it 20 times."""


_TOKEN = secrets.token_hex(32)
"""Of clusters on this machine; one for this process, since Ray keeps the first it reads."""
_reads_tokens: list[bool] = []
"""Whether Ray, which asks the environment when it is imported, asks for a token; empty before."""


class RayCluster:
    """A Ray that this process is connected to; see `connect`.

    Args:
        num_workers: parts that are worked on at once.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers

    def share(self, value: Any) -> Any:
        """Put a value where all workers can read it; pass what this gives as an argument."""
        import ray

        return ray.put(value)

    def ordered(
        self, function: Callable[..., Iterator[Any]], arguments: Iterable[T], *,
        shared: tuple[Any, ...] = (), ahead: int,
    ) -> Generator[tuple[T, Iterator[Any]], None, None]:  # fmt: skip
        """Run `function(argument, *shared)` for each argument; gives, in order, each argument with
        what the function yields for it. An argument is asked for when a worker is free.

        A stream that is not read to its end is cancelled when the next is asked for.

        Raises:
            LLMTrainerError: what the function raised; or a part was lost too often.
        """
        import ray

        # A small share of a core, not one: a paused stream keeps its share, and the part that
        # everything waits for must find room when it is done again after its node was lost.
        options: dict[str, Any] = {
            "num_cpus": 0.01,
            "max_retries": _MAX_RETRIES,
            "num_returns": "streaming",
            "scheduling_strategy": "SPREAD",
            "_generator_backpressure_num_objects": ahead,
        }
        remote = ray.remote(**options)(function)
        window: deque[tuple[T, Any]] = deque()
        running: set[Any] = set()
        waiting = iter(arguments)

        def refill() -> None:
            while len(running) < self.num_workers and len(window) <= 2 * self.num_workers:
                for argument in waiting:
                    stream = remote.remote(argument, *shared)
                    window.append((argument, stream))
                    running.add(stream)
                    break
                else:
                    return

        try:
            refill()
            while window:
                argument, head = window[0]
                yield argument, self._read(head, running, refill)
                window.popleft()
                running.discard(head)
                if not head.is_finished():
                    ray.cancel(head, force=True)
                refill()
        finally:
            for _, stream in window:
                ray.cancel(stream, force=True)

    def _read(self, head: Any, running: set[Any], refill: Callable[[], None]) -> Iterator[Any]:
        import ray

        while True:
            others = {stream.completed(): stream for stream in running if stream is not head}
            with _explained():
                done, _ = ray.wait([head, *others], num_returns=1, fetch_local=False)
            for one in done:
                running.discard(others.get(one))
            refill()
            if head not in done:
                continue
            try:
                reference = next(head)
            except StopIteration:
                return
            with _explained():
                value = ray.get(reference)
            del reference
            yield value


@contextmanager
def connect(engine: Engine) -> Iterator[RayCluster]:
    """Connect to the engine's cluster, or start one on this machine and end it afterwards.

    Raises:
        MissingDependencyError: `ray` is not installed.
        LLMTrainerError: it cannot be started, or not be reached.
    """
    if engine.address is None:
        with _local_environment(), _directory() as directory, _sigterm_exits():
            yield from _connected(engine, directory)
    else:
        yield from _connected(engine, None)


def _connected(engine: Engine, directory: Path | None) -> Iterator[RayCluster]:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            f"runtime.engine: ray needs the package `ray` ({error}); "
            f"`pip install -e '.[ray]'`, or set runtime.engine: local"
        ) from error
    if ray.is_initialized():
        raise LLMTrainerError(
            "this process is connected to a Ray cluster already; call ray.shutdown() before, or "
            "use the engine 'local'"
        )
    before = signal.getsignal(signal.SIGTERM)
    try:
        if directory is None:
            _join(ray, str(engine.address))
        else:
            _start(ray, engine.num_workers or usable_cores(), directory)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's handler exits with another code
        cores = int(ray.cluster_resources().get("CPU", 1))
        yield RayCluster(engine.num_workers or max(1, cores))
    finally:
        ray.shutdown()


def _start(ray: Any, num_workers: int, directory: Path) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=num_workers,
            object_store_memory=_STORE_BYTES * (num_workers + 1),
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(directory),
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise LLMTrainerError(
            f"Ray cannot be started on this machine ({_short(error)}); free some memory, or set "
            f"runtime.engine: local"
        ) from error


def _join(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and "/" not in host):
        raise ConfigurationError(
            f"runtime.ray_address ({strip_secrets(address)}) must be host:port of the cluster's "
            f"head (`ray start --head` prints it), or auto; a Ray Client address will not do"
        )
    try:
        if address != "auto":  # Ray would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        with _environment(_ONE_TRY):
            ray.init(address=address, configure_logging=False, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise LLMTrainerError(
            f"runtime.ray_address: {address}: no Ray cluster can be reached there "
            f"({_short(error)}); start one with `ray start --head`, mend the address, set "
            f"RAY_AUTH_TOKEN if the cluster has a token, or null to start one on this machine"
        ) from error


@contextmanager
def _explained() -> Iterator[None]:
    """Give what a part raised as it was raised, and say what a lost one means."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LLMTrainerError):
            raise error.cause from None
        raise
    except ray.exceptions.OutOfMemoryError as error:
        raise LLMTrainerError(
            f"a Ray worker was ended for lack of memory {_MAX_RETRIES} times ({_short(error)}); "
            f"use fewer workers (runtime.preprocessing_num_workers) or free some memory"
        ) from error
    except ray.exceptions.RayError as error:
        raise LLMTrainerError(
            f"Ray lost a part of the work {_MAX_RETRIES + 1} times, or lost its head "
            f"({_short(error)}); look at the cluster, then give the same command again"
        ) from error


@contextmanager
def _local_environment() -> Iterator[None]:
    if not _reads_tokens:
        _reads_tokens.append("ray" not in sys.modules or os.environ.get("RAY_AUTH_MODE") == "token")
    if not _reads_tokens[0]:
        raise LLMTrainerError(
            "Ray was imported before, without RAY_AUTH_MODE=token in the environment, so that a "
            "cluster on this machine would be open to all who use it; set that, or import ray later"
        )
    constants: Any = sys.modules.get("ray._private.ray_constants")
    was = getattr(constants, "ENABLE_RAY_CLUSTER", None)  # read from the environment at import
    if constants is not None:
        constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({**_OURS, "RAY_AUTH_TOKEN": _TOKEN, "RAY_ADDRESS": None}):
            yield
    finally:
        if constants is not None:
            constants.ENABLE_RAY_CLUSTER = was


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of the environment, or with None take them away, for a while."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        if len(str(directory)) + 66 > _SOCKET_PATH:
            raise LLMTrainerError(
                f"{directory}: too long for Ray, whose sockets may have {_SOCKET_PATH} characters; "
                f"set TMPDIR to a shorter one such as /tmp"
            )
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """End by SIGTERM as by an exception, so that Ray's processes and files go too."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _short(error: BaseException) -> str:
    text = strip_secrets(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
