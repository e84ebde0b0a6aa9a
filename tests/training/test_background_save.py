"""Saving in the background: a step waits for the copy alone, and durable comes before saved."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmarks.soak.killed_saves import counted
from benchmarks.soak.several import tensors_of
from benchmarks.soak.trainings import (
    Progress,
    World,
    committed,
    end_state,
    fork,
    leftovers,
    wait,
)
from llm_trainer.exceptions import LLMTrainerError, TrainingError
from llm_trainer.training import Trainer, resumable
from llm_trainer.training.background_save import BackgroundSave
from llm_trainer.training.checkpoint import list_checkpoints, read_checkpoint
from llm_trainer.training.snapshot import Snapshot, take_snapshot, write_snapshot

PATIENCE = 60.0
STEPS, EVERY = 6, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("background")
    made = World(
        folder, max_steps=STEPS, save_steps=EVERY, optimizer="muon", async_save=True,
        save_total_limit=3,
    )  # fmt: skip
    assert wait(fork(lambda: made.trainer(folder / "whole", async_save=False).train())) == 0
    return made


@pytest.fixture(scope="module")
def expected(world: World) -> dict[str, bytes]:
    """The end of the same run that saves while the training waits."""
    return end_state(world.folder / "whole")


def writing(action: Callable[[Snapshot], None]) -> Any:
    """Do `action` in the writer, before it writes."""

    def write(directory: Path, snapshot: Snapshot, *arguments: Any) -> Path:
        action(snapshot)
        return write_snapshot(directory, snapshot, *arguments)

    return mock.patch.object(resumable, "write_snapshot", write)


def names(directory: Path) -> list[str]:
    return [path.name for path in list_checkpoints(directory)]


def after_steps(made: Trainer, action: Callable[[int], None]) -> None:
    """Do `action` after each optimizer step, with its number."""
    log = made._log

    def logged() -> None:
        log()
        action(made.state.step)

    made._log = logged  # type: ignore[method-assign]


def test_steps_go_on_while_the_writer_is_blocked_and_the_next_save_waits_for_it(
    world: World, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """By the order of events: no clock is asked."""
    events: list[tuple[str, int]] = []
    there: dict[int, list[str]] = {}
    go_on = {step: threading.Event() for step in (2, 4, 6)}
    made = world.trainer(tmp_path, save_total_limit=1)
    plain_wait = BackgroundSave.wait

    def blocked(snapshot: Snapshot) -> None:
        step = int(snapshot.name.removeprefix("checkpoint-"))
        events.append(("writes", step))
        assert go_on[step].wait(PATIENCE)
        events.append(("free", step))

    def take(*arguments: Any, **more: Any) -> Snapshot:
        events.append(("copies", made.state.step))
        return take_snapshot(*arguments, **more)

    def waits(background: BackgroundSave) -> None:
        step = made.state.step
        if events[-1] != ("waits", step):
            events.append(("waits", step))
        for save in go_on:
            # only now may the save before this one go on; the last one is the loop's own
            if save < step or step == STEPS:
                go_on[save].set()
        plain_wait(background)

    def stepped(step: int) -> None:
        events.append(("step", step))
        there[step] = names(tmp_path)

    after_steps(made, stepped)
    with (
        writing(blocked),
        mock.patch.object(resumable, "take_snapshot", take),
        mock.patch.object(BackgroundSave, "wait", waits),
    ):
        made.train()
    at = {event: number for number, event in reversed(list(enumerate(events)))}
    for save in (2, 4):
        assert at["copies", save] < at["step", save + 1] < at["step", save + 2]
        assert at["step", save + 2] < at["waits", save + 2] < at["free", save]
        assert at["free", save] < at["copies", save + 2], "two in flight"
    # nothing has its name before it is durable, and the older one stays until then
    assert there == {
        1: [], 2: [], 3: [], 4: [], 5: ["checkpoint-2"], 6: ["checkpoint-2"],
    }  # fmt: skip
    assert names(tmp_path) == ["checkpoint-6"]
    assert end_state(tmp_path) == expected


def test_what_is_written_is_what_was_copied(world: World, tmp_path: Path) -> None:
    made = world.trainer(tmp_path)
    two_steps_later = threading.Event()

    def late(snapshot: Snapshot) -> None:
        if snapshot.name == "checkpoint-2":
            assert two_steps_later.wait(PATIENCE), "the weights have changed by now"

    after_steps(made, lambda step: two_steps_later.set() if step == 4 else None)
    with writing(late):
        made.train()
    for step in (2, 4, 6):
        path = world.folder / "whole" / f"checkpoint-{step}"
        assert tensors_of(tmp_path / path.name) == tensors_of(path)


def test_a_full_disk_stops_the_run_at_the_next_step_and_keeps_the_older_one(
    world: World, expected: dict[str, bytes], tmp_path: Path
) -> None:
    def body() -> None:
        made, a_step_later = world.trainer(tmp_path), threading.Event()

        def late(snapshot: Snapshot) -> None:
            # a writer that fails at once would be seen as soon as the next step begins
            if snapshot.name == "checkpoint-4":
                assert a_step_later.wait(PATIENCE)

        def stepped(step: int) -> None:
            if step == 3:
                made._background.wait()
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            if step == 5:
                a_step_later.set()
                deadline = time.monotonic() + PATIENCE
                while not made._background.failed and time.monotonic() < deadline:
                    time.sleep(0.001)

        after_steps(made, stepped)
        try:
            with writing(late):
                made.train()
        except LLMTrainerError as error:
            told = ("checkpoint-4: no space left", "bytes needed", "bytes free")
            good = made.state.step == 5 and all(part in str(error) for part in told)
            raise SystemExit(3 if good else 4) from error

    assert wait(fork(body, tmp_path / "log")) == 3
    assert names(tmp_path) == ["checkpoint-2"]
    read_checkpoint(tmp_path / "checkpoint-2")
    assert leftovers(tmp_path) == []
    assert wait(fork(lambda: world.trainer(tmp_path).train("auto"))) == 0
    assert end_state(tmp_path) == expected


@pytest.mark.parametrize("number", [1, 4, 12, 25])
def test_killed_while_the_thread_writes_the_older_one_is_whole(
    world: World, expected: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    def body() -> None:
        made = world.trainer(tmp_path)
        write = resumable.write_snapshot

        def killed(directory: Path, snapshot: Snapshot, *arguments: Any) -> Path:
            with counted(number if snapshot.name == "checkpoint-4" else 0):
                return write(directory, snapshot, *arguments)

        with mock.patch.object(resumable, "write_snapshot", killed):
            made.train()

    assert wait(fork(body)) == -signal.SIGKILL
    assert names(tmp_path) == ["checkpoint-2"]
    read_checkpoint(tmp_path / "checkpoint-2")
    assert wait(fork(lambda: world.trainer(tmp_path).train("auto"))) == 0
    assert leftovers(tmp_path) == []
    assert end_state(tmp_path) == expected


def test_a_stop_signal_waits_for_the_writer_and_saves(
    world: World, expected: dict[str, bytes], tmp_path: Path
) -> None:
    progress = Progress()

    def body() -> None:
        made = world.trainer(tmp_path)

        def blocked(snapshot: Snapshot) -> None:
            deadline = time.monotonic() + PATIENCE
            while snapshot.name == "checkpoint-2" and made._stop.signal is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)

        def stepped(step: int) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        after_steps(made, stepped)
        with writing(blocked):
            world.train(made, progress)

    assert wait(fork(body, tmp_path / "log")) == 143, (tmp_path / "log").read_text()
    accumulation = world.config(tmp_path).gradient_accumulation_steps
    assert committed(tmp_path, accumulation) == progress.get(Progress.DONE) > 3 * accumulation
    assert names(tmp_path) == ["checkpoint-3-1", "checkpoint-2"]
    assert wait(fork(lambda: world.trainer(tmp_path).train("auto"))) == 0
    assert end_state(tmp_path) == expected


def test_another_error_is_not_hidden_by_one_of_the_writer(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, on_its_way = world.trainer(tmp_path), threading.Event()

    def fails(_: Snapshot) -> None:
        assert on_its_way.wait(PATIENCE)
        raise LLMTrainerError("the disk is gone")

    def stepped(step: int) -> None:
        if step == 3:
            on_its_way.set()
            raise TrainingError("something else")

    after_steps(made, stepped)
    with writing(fails), pytest.raises(TrainingError, match="something else"):
        made.train()
    assert "checkpoint-2 was not saved: the disk is gone" in caplog.text
    assert names(tmp_path) == []
