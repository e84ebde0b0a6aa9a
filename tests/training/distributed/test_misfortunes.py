"""Processes that fail, vanish, stand still, are told to stop or never come."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak.several import fork_ranks, told
from benchmarks.soak.trainings import Progress, World, wait, wait_until, watch
from llm_trainer.exceptions import ConfigurationError, DataError
from llm_trainer.training import distributed, heartbeat
from llm_trainer.training.checkpoint import list_checkpoints
from llm_trainer.training.connections import limit_silence
from llm_trainer.training.distributed import ALONE, launched
from tests.training.distributed.cases import MODES, make, make_world

FAILED = 99
"""Exit code of a child with an exception."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


class Pair:
    """Two processes of a run without an end."""

    def __init__(self, world: World, folder: Path, **changes: Any) -> None:
        self.run, self._logs = folder / "run", folder / "logs"
        self._progress = [Progress(), Progress()]

        def body(_rank: int) -> None:
            made = make(world, self.run, max_steps=10**6, eval_strategy="no", **changes)
            watch(made, self._progress[made.world.rank])
            made.train("auto")

        self.ranks = fork_ranks(2, body, self._logs)

    def begun(self) -> None:
        """Wait until both train."""
        wait_until(
            lambda: min(progress.get(Progress.DONE) for progress in self._progress) >= 4,
            self.ranks, lambda: told(self._logs),
        )  # fmt: skip

    def log(self, rank: int) -> str:
        """What a rank had to say."""
        return (self._logs / f"rank{rank}.log").read_text()


@pytest.fixture
def pair(world: World, tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def start(**changes: Any) -> Pair:
        made.append(Pair(world, tmp_path, **changes))
        return made[-1]

    yield start
    for each in made:
        for child in each.ranks:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
            os.waitpid(child, 0)


@pytest.mark.parametrize("mode", MODES)
def test_who_loses_a_killed_process_says_so_and_ends(pair: Callable[..., Pair], mode: str) -> None:
    two = pair(parallel=mode)
    two.begun()
    os.kill(two.ranks[1], signal.SIGKILL)
    assert wait(two.ranks[0], 30) == FAILED
    assert "rank 0: another process of this training ended" in two.log(0)
    assert wait(two.ranks[1]) == -signal.SIGKILL


def test_who_loses_a_process_that_failed_says_so_and_ends(
    pair: Callable[..., Pair], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = type(world.rows).rows

    def rotten(*arguments: Any) -> Any:
        if os.environ.get("RANK") == "1":
            raise DataError("row 7 is rotten")
        return read(*arguments)

    monkeypatch.setattr(type(world.rows), "rows", rotten)
    two = pair()
    assert [wait(rank, 30) for rank in two.ranks] == [FAILED, FAILED]
    assert "another process of this training ended" in two.log(0)
    assert "row 7 is rotten" in two.log(1)


def test_a_process_that_stands_still_is_noticed(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its machine had gone: no connection is closed."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.1)
    monkeypatch.setattr(heartbeat, "LOST_AFTER", 1.0)
    two = pair()
    two.begun()
    os.kill(two.ranks[1], signal.SIGSTOP)
    assert wait(two.ranks[0], 30) == heartbeat.LOST_EXIT_CODE
    assert "rank 1 has not been heard of for 1 s" in two.log(0)


def test_a_connection_on_which_nothing_comes_back_is_ended_by_the_kernel() -> None:
    """A pulled cable itself: row A12 of `make soak`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends = [server, socket.create_connection(server.getsockname()), server.accept()[0]]
        limit_silence(7.5)
        for end in ends:
            with end:
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7500
                assert end.getblocking(), "as it was"


def test_the_times_until_a_lost_process_is_noticed_are_below_a_minute() -> None:
    assert heartbeat.LOST_AFTER + 2 * heartbeat.BEAT < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_is_one_checkpoint_and_the_code_of_the_signal(
    pair: Callable[..., Pair], number: int
) -> None:
    two = pair(parallel="fsdp")
    two.begun()
    for rank in two.ranks:
        os.kill(rank, number)
    assert [wait(rank, 30) for rank in two.ranks] == [128 + number] * 2
    assert len(list_checkpoints(two.run)) == 1
    assert "the same command goes on" in two.log(0)
    assert two.log(1) == "", "rank 0 speaks for all"


def test_who_waits_for_processes_that_never_come_says_where(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "START_PATIENCE", timedelta(seconds=1))
    (child,) = fork_ranks(2, lambda _: make(world, tmp_path), tmp_path, start=1)
    assert wait(child, 30) == FAILED
    text = (tmp_path / "rank1.log").read_text()
    assert "rank 1 of 2: the processes did not find each other at 127.0.0.1:" in text


LAUNCHED = {
    "RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "node-0", "MASTER_PORT": "29500",
}  # fmt: skip


def test_what_a_launcher_says_is_read_and_checked() -> None:
    found = launched(LAUNCHED)
    assert (found.rank, found.size, found.local_rank, found.node) == (1, 2, 0, 1)
    assert launched({"WORLD_SIZE": "2"}) is ALONE, "no RANK, no launcher"
    for changes, message in (
        ({"MASTER_PORT": None, "LOCAL_RANK": None}, "LOCAL_RANK, MASTER_PORT are not"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"RANK": "2"}, "contradict each other"),
        ({"LOCAL_WORLD_SIZE": "3"}, "contradict each other"),
    ):
        wrong = {k: v for k, v in (LAUNCHED | changes).items() if v is not None}
        with pytest.raises(ConfigurationError, match=message):
            launched(wrong)


def test_one_process_refuses_what_needs_several_and_trains_the_rest(
    world: World, tmp_path: Path
) -> None:
    for changes, message in (
        ({"world_size": 2}, r"world_size \(2\) is not the number of processes \(1\)"),
        ({"local_rank": 0}, "no launcher started this process"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make(world, tmp_path, **changes)
    # how several would share the work is nothing to one
    assert make(world, tmp_path, parallel="fsdp", hybrid_shard=True).way == "none"
