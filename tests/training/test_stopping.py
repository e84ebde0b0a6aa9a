"""Trainings that are killed or told to stop: quick forms of the soak's rows A1 and A3."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak.cpu_clock import signal_at
from benchmarks.soak.trainings import (
    Progress,
    World,
    committed,
    end_state,
    fork,
    leftovers,
    wait,
    wait_until,
)
from llm_trainer.training.checkpoint import list_checkpoints, recover_checkpoints
from llm_trainer.training.signals import StopRequest, stop_on_signals

ACCUMULATION = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), max_steps=10)


@pytest.fixture(scope="module")
def expected(world: World) -> dict[str, bytes]:
    """The end of a run that nothing stopped."""
    assert wait(fork(lambda: world.trainer(world.folder / "whole").train())) == 0
    return end_state(world.folder / "whole")


def test_killed_at_random_again_and_again_it_ends_in_the_same_bytes(
    world: World, expected: dict[str, bytes], tmp_path: Path
) -> None:
    draw, progress = random.Random(0), Progress()

    def body(number: int, batches: int, share: float) -> None:
        """Train; the signal comes that many micro-batches, and a share of one more, after the start
        by the clock of what was computed, which no load of the machine moves."""
        made, seen = world.trainer(tmp_path), itertools.count(1)
        accumulate = made._accumulate

        def counted(*arguments: Any) -> None:
            before = time.process_time()
            accumulate(*arguments)
            if next(seen) == batches:
                after = time.process_time()
                signal_at(after + share * (after - before), number)

        made._accumulate = counted  # type: ignore[method-assign]
        world.train(made, progress)

    # 4 x (4 + 2) of 30 micro-batches at most: each of them is in time
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        batches, share = draw.randint(1, 4), draw.uniform(0, 2)
        code = wait(fork(lambda: body(number, batches, share)))  # noqa: B023 - it runs at once
        assert code in ((-signal.SIGKILL,) if number == signal.SIGKILL else (143, -signal.SIGTERM))
        assert committed(tmp_path, ACCUMULATION) >= progress.get(Progress.COMMITTED)
    assert wait(fork(lambda: world.train(world.trainer(tmp_path), progress))) == 0
    assert end_state(tmp_path) == expected
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_loses_no_micro_batch_and_workers_ignore_it(
    world: World, tmp_path: Path, number: int, to_group: bool
) -> None:
    progress = Progress()
    items = [{"input_ids": world.rows[n]["input_ids"].tolist()} for n in range(len(world.rows))]
    child = fork(
        lambda: world.train(
            world.trainer(tmp_path, rows=items, max_steps=400, dataloader_num_workers=2), progress
        ),
        tmp_path / "log",
    )  # fmt: skip
    wait_until(
        lambda: progress.get(Progress.DONE) >= 4, [child], lambda: (tmp_path / "log").read_text()
    )
    (os.killpg if to_group else os.kill)(child, number)
    assert wait(child, 20) == 128 + number, (tmp_path / "log").read_text()
    assert committed(tmp_path, ACCUMULATION) == progress.get(Progress.DONE)


def test_the_second_signal_ends_at_once_and_loses_nothing_that_was_committed(
    world: World, expected: dict[str, bytes], tmp_path: Path
) -> None:
    progress, told = Progress(), Progress()
    waits, signalled = 1, 2

    def body() -> None:
        made = world.trainer(tmp_path)

        def stuck(*_: object) -> None:
            while progress.get(Progress.COMMITTED) >= 6:  # for ever
                told.set(0, waits if made._stop.signal is None else signalled)
                time.sleep(0.005)

        made._stop_if_asked = stuck  # type: ignore[method-assign] # never looks
        world.train(made, progress)

    child = fork(body)
    wait_until(lambda: told.get(0) == waits, [child])
    os.killpg(child, signal.SIGINT)
    wait_until(lambda: told.get(0) == signalled, [child])
    started = time.monotonic()
    os.killpg(child, signal.SIGINT)
    assert wait(child, 10) == 130
    assert time.monotonic() - started < 2
    assert committed(tmp_path, ACCUMULATION) >= progress.get(Progress.COMMITTED)
    assert wait(fork(lambda: world.train(world.trainer(tmp_path), progress))) == 0
    assert end_state(tmp_path) == expected


def test_an_exit_that_native_code_turned_into_another_error_is_still_the_exit() -> None:
    """A handler's SystemExit within safetensors came out as its ValueError, and the code was 1."""
    with pytest.raises(SystemExit) as stopped, stop_on_signals() as request:  # noqa: PT012
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.idle
        raise ValueError("could not determine the shape")
    assert stopped.value.code == 143
    with pytest.raises(ValueError, match="another"), stop_on_signals():
        raise ValueError("another")
    assert isinstance(request, StopRequest)


def test_what_killed_savers_left_is_cleared_and_a_replaced_checkpoint_comes_back(
    world: World, expected: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(world.folder / "whole", tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run")[0]
    for name in (".partial-checkpoint-3-1-77", ".partial-checkpoint-10-78"):
        (tmp_path / "run" / name).mkdir()
    (tmp_path / "run" / "run" / ".partial-log.jsonl-abc").touch()
    # killed between the two renames that replace it
    newest.rename(newest.with_name(f".partial-{newest.name}-old-79"))
    recover_checkpoints(tmp_path / "run")
    assert list_checkpoints(tmp_path / "run")[0] == newest
    assert wait(fork(lambda: world.trainer(tmp_path / "run").train("auto"))) == 0
    assert leftovers(tmp_path / "run") == []
    assert end_state(tmp_path / "run") == expected


def test_a_signal_that_a_launcher_passes_on_is_the_same_request() -> None:
    """A cluster's scheduler signals every process of a job, and the launcher passes it on."""

    def body(launched: bool) -> None:
        with stop_on_signals(launched=launched) as request:
            request.idle = False
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert request.signal == signal.SIGTERM
        os._exit(7)

    assert wait(fork(lambda: body(True)), 10) == 7
    assert wait(fork(lambda: body(False)), 10) == 143
