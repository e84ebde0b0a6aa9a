"""Start a stage or a script as several processes that train together, and answer for them.

    python -m pipeline.launch    on each further machine: join the stage train that one has begun

What `runtime.launcher: torchrun` asks for. The processes are started and watched by torchrun's own
engine (`torch.distributed.launcher`), here in the process of the stage, which does no training
itself: it holds the stage's lock, passes SIGINT and SIGTERM on, waits until all have ended, and
ends with the exit code of what caused the end instead of torchrun's traceback. Price: a process
with torch loaded, about 300 MB, beside the training ones.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llm_trainer.config import RuntimeConfig, TrainingConfig
from llm_trainer.exceptions import ConfigurationError, TrainingError
from llm_trainer.training.connections import end_silent_connections
from pipeline.network import addresses, is_here, way_to
from pipeline.params import load_params
from pipeline.stage import EXIT_USER_ERROR, run_stage
from pipeline.worker import LOST_PEER, PARENT, is_worker

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import LogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

TRAIN = ("-m", "pipeline.train")
"""The stage, as arguments of python."""
STOP_SECONDS = 600
"""How long the processes may take to save when stopped; a cluster's own limit ends it earlier."""
READ_SECONDS = 15
"""How long the meeting place may take to answer, so that a lost machine is noticed in time."""

KILLED_AFTER = 20
"""Seconds after a first failure from which SIGKILL is torchrun's own, which waits for 30."""
NO_FILE = "<N/A>"
"""What torchrun has as the error file of a process that left no word."""


def wants_launch(runtime: RuntimeConfig) -> bool:
    """Whether this process is to start others rather than to train."""
    return runtime.launcher is not None and not is_worker()


def launch(runtime: RuntimeConfig, training: TrainingConfig, command: Sequence[str]) -> None:
    """Run `python *command` in as many processes as `runtime` says, and wait for all of them.

    Raises:
        ConfigurationError: the processes cannot share the work; before any is started.
        TrainingError: the machines did not meet.
        SystemExit: a process failed (its own exit code, or 1), or a signal came (128 + signal).
    """
    # its traces of lost connections; before torch is loaded, which looks at it once
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from llm_trainer.training.distributed import World, check_world

    per_node = processes_per_node(runtime)
    check_world(training, World(size=per_node * runtime.nnodes, local_size=per_node))
    logging.disable(logging.ERROR)  # what torchrun would tell is told here, in a line
    os.environ[PARENT] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP_SECONDS))
    alone = runtime.nnodes == 1
    endpoint, here, way = _meeting_place(runtime)
    if way is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", way[0])
    meeting: dict[str, int | str] = {"read_timeout": READ_SECONDS}
    if here is not None:
        meeting["is_host"] = str(here)
    if not alone:
        end_silent_connections()
    with tempfile.TemporaryDirectory(prefix="llm-trainer-") as log_dir:
        config = LaunchConfig(
            min_nodes=runtime.nnodes, max_nodes=runtime.nnodes, nproc_per_node=per_node,
            run_id=uuid.uuid4().hex if alone else runtime.rdzv_id, role="train",
            rdzv_backend="c10d", rdzv_endpoint=endpoint, max_restarts=runtime.max_restarts,
            rdzv_configs=meeting,
            logs_specs=_logs(log_dir), local_addr=way and way[1],
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as stopped:
            raise SystemExit(128 + stopped.sigval) from None
        except ChildFailedError as error:
            raise SystemExit(_answer(error.failures)) from None
        except RendezvousError as error:
            if os.listdir(log_dir):  # processes were started, so the machines had met
                print(f"error: train: {LOST_PEER}", file=sys.stderr)
                raise SystemExit(1) from None
            raise TrainingError(
                f"runtime.rdzv_endpoint ({runtime.rdzv_endpoint}): the {runtime.nnodes} machines "
                f"did not meet ({error}); start the same command on each, within 10 minutes, and "
                f"see that this one can reach that address"
            ) from None


def processes_per_node(runtime: RuntimeConfig) -> int:
    """`nproc_per_node`, or as many as there are GPUs.

    Raises:
        ConfigurationError: it is not given, and there is no GPU.
    """
    if runtime.nproc_per_node is not None:
        return runtime.nproc_per_node
    import torch

    if not torch.cuda.is_available():
        raise ConfigurationError(
            "runtime.nproc_per_node is null, one for each GPU, but there is no GPU; give a number"
        )
    return torch.cuda.device_count()


def _meeting_place(runtime: RuntimeConfig) -> tuple[str, bool | None, tuple[str, str] | None]:
    """Where the machines meet, whether that is here, and this one's card and address on the way.

    One machine meets itself at a port that is free.

    Raises:
        ConfigurationError: the place has a name that nobody knows.
    """
    if runtime.nnodes == 1:
        return "localhost:0", True, ("lo", "127.0.0.1")
    assert runtime.rdzv_endpoint is not None, "the configuration is checked"
    found = addresses(runtime.rdzv_endpoint.rpartition(":")[0].strip("[]"))
    return runtime.rdzv_endpoint, is_here(found), way_to(found)


def _logs(directory: str) -> LogsSpecs:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

    return DefaultLogsSpecs(log_dir=directory)


def _answer(failures: Mapping[int, ProcessFailure]) -> int:
    """The exit code for what failed, by rank; says a line about what could not say it itself."""
    code, line = verdict(failures)
    if line:
        print(f"error: train: {line}", file=sys.stderr)
    return code


def verdict(failures: Mapping[int, ProcessFailure]) -> tuple[int, str | None]:
    """Exit code and message for failed processes of this machine, by rank.

    A process that was killed comes first: the others only lost it. Those that torchrun stopped
    because of the failure tell nothing of it: by SIGTERM, and by SIGKILL half a minute later.
    """
    began = min(failure.timestamp for failure in failures.values())
    for rank, failure in failures.items():
        number = -failure.exitcode
        ended_by_torchrun = number == signal.SIGTERM or failure.timestamp > began + KILLED_AFTER
        if number > 0 and not ended_by_torchrun:
            return 1, (
                f"the process of rank {rank} was killed by {signal.Signals(number).name}, and the "
                f"others were ended; the same command goes on from the newest checkpoint"
            )
    codes = [failure.exitcode for failure in failures.values()]
    for code in (EXIT_USER_ERROR, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        if code in codes:
            return code, None
    told = [f.message for f in failures.values() if f.error_file != NO_FILE]
    if told:
        return 1, LOST_PEER if set(told) == {LOST_PEER} else None
    rank = next(iter(failures))
    return 1, (
        f"the process of rank {rank} ended with exit code {failures[rank].exitcode}, and the "
        f"others were ended; its message is above"
    )


def main() -> None:
    """Join the training of this folder that another machine has begun."""
    params = load_params()
    if params.runtime.launcher is None or params.runtime.nnodes < 2:
        raise ConfigurationError(
            "runtime: there is nothing to join; set launcher: torchrun, nnodes and rdzv_endpoint, "
            "the same on all machines"
        )
    launch(params.runtime, params.training, TRAIN)


if __name__ == "__main__":
    run_stage("launch", main)
