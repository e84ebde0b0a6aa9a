"""Trainings of several processes: forked ranks, which cost milliseconds, and what they leave."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak.trainings import curve, fork, wait
from llm_trainer.json_file import read_json
from llm_trainer.models.stored_tensors import StoredTensors
from llm_trainer.training import distributed

_asked = itertools.count()


def fork_ranks(
    size: int, body: Callable[[int], object], logs: Path, *, machines: int = 1, start: int = 0
) -> list[int]:
    """Run `body` in children that find each other as under torchrun: ranks from `start` of `size`.

    Called with the rank; standard error goes to `<logs>/rank<r>.log`. They take themselves for
    processes of so many machines. What they import costs nothing again. Returns the process ids.
    """
    local_size = size // machines
    logs.mkdir(parents=True, exist_ok=True)
    port = _free_port()

    def ranked(rank: int) -> None:
        distributed.close()  # the parent may have been a world of one
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank % local_size), "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(local_size), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        sys.stderr = sys.__stderr__  # not the pipe of pytest
        logging.basicConfig(level=logging.INFO, force=True)
        distributed.connect()
        body(rank)
        distributed.close()

    return [
        fork(lambda rank=rank: ranked(rank), logs / f"rank{rank}.log")  # type: ignore[misc]
        for rank in range(start, size)
    ]


def _free_port() -> int:
    """A port that nothing takes before the ranks do: systems give out none so low by themselves.

    Processes that ask at the same time begin to look at different places.
    """
    while True:
        port = 15_000 + (101 * os.getpid() + next(_asked)) % 15_000
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:  # somebody has it
            continue


def wait_all(children: list[int], seconds: float = 120.0) -> list[int | None]:
    """Exit codes by rank; see `wait`."""
    return [wait(child, seconds) for child in children]


def told(logs: Path) -> str:
    """What all ranks wrote to standard error."""
    return "\n".join(
        f"--- {path.name}\n{path.read_text()}" for path in sorted(logs.glob("rank*.log"))
    )


def tensors_of(checkpoint: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All tensors of a checkpoint, whole, in parts or not: name -> type, shape, bytes."""
    groups = {"model": checkpoint / "model", "optimizer": checkpoint, "history": checkpoint}
    return {
        f"{stem}: {name}": (stored.stored[name].dtype, tuple(tensor.shape), _bytes(tensor))
        for stem, folder in groups.items()
        for stored in [StoredTensors(folder, stem, "-")]
        for name, tensor in stored.items()
    }


def state_of(checkpoint: Path) -> dict[str, Any]:
    """The position of the run and its record, without times and how it was saved."""
    description: dict[str, Any] = read_json(checkpoint / "state.json")
    del description["state"]["seconds"]
    for name in ("checkpoint_dir", "async_save"):
        del description["identity"]["training"][name]
    return {"state": description["state"], "identity": description["identity"]}


def run_end(directory: Path, step: int) -> dict[str, Any]:
    """All that a run ends in, however many processes wrote it: tensors, state, log."""
    checkpoint = directory / f"checkpoint-{step}"
    return {
        "tensors": tensors_of(checkpoint),
        "state": state_of(checkpoint),
        "log": json.dumps(sorted(curve(directory).items())),
    }


def _bytes(tensor: Any) -> bytes:
    data: bytes = tensor.contiguous().numpy().tobytes()
    return data
