"""A4: disks of ten sizes that fill up while saving checkpoints, and while packing and logging."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.soak.mounts import mount_disk, own_mounts, unmount
from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import World, end_state, fork, wait
from llm_trainer.config import PackingConfig, SourceConfig
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.training.checkpoint import list_checkpoints, read_checkpoint
from tests.data.sources import jsonl

SIZES = 10
STEPS_LOGGED = 80
PLENTY = 64 * 2**20
_NAMED = re.compile(r"checkpoint-\d+: no space left .* bytes needed, [\d,]+ bytes free in ")


def run(folder: Path, scale: float) -> Report:
    """Everything in a child, whose disks nobody else sees."""
    world, report = World(folder), Report()

    def body() -> None:
        own_mounts()
        counts = Counter[str]()
        expected = _undisturbed(world, folder)
        for number in range(max(2, round(SIZES * scale))):
            _save(world, folder / "disk", expected, number, counts)
        _log(world, folder / "logged", counts)
        for number in range(max(1, round(3 * scale))):
            _pack(folder, (number + 1) * 65536, counts)
        write_json(folder / "counts.json", dict(counts))

    code = wait(fork(body, folder / "log"), 300)
    if code:
        report.require(False, (folder / "log").read_text()[-300:])
        return report
    counts = Counter(read_json(folder / "counts.json"))
    names = (
        "sizes", "sizes_without_room_for_one", "saves_that_found_no_room", "not_named",
        "previous_checkpoints_lost", "torn_files", "ends_that_differ", "records_lost",
        "records_that_waited", "packings_that_found_no_room", "packings_torn_or_unnamed",
    )  # fmt: skip
    report.counters = {name: counts[name] for name in names}
    for name in names[3:8] + names[10:]:
        report.require(counts[name] == 0, f"{name}: {counts[name]} instead of 0")
    for name in ("saves_that_found_no_room", "records_that_waited", "packings_that_found_no_room"):
        report.require(counts[name] > 0, f"{name}: 0, so no disk was full")
    return report


def _undisturbed(world: World, folder: Path) -> dict[str, bytes]:
    world.trainer(folder / "whole").train()
    return end_state(folder / "whole")


def _save(
    world: World, disk: Path, expected: dict[str, bytes], number: int, counts: Counter[str]
) -> None:
    """Train until the disk is full, look at what is there, give it room, and go on."""
    one = sum(
        -(-path.stat().st_size // 4096) * 4096
        for path in list_checkpoints(disk.with_name("whole"))[0].rglob("*")
    )
    mount_disk(disk, round(one * (0.7 + 0.25 * number)))
    counts["sizes"] += 1
    made, committed = world.trainer(disk / "run"), []
    save = made._save_checkpoint

    def saved(*, wait: bool = True) -> Path:
        path = save(wait=wait)
        committed.append(path)
        return path

    made._save_checkpoint = saved  # type: ignore[method-assign]
    try:
        made.train("auto")
    except LLMTrainerError as error:
        counts["saves_that_found_no_room"] += 1
        counts["not_named"] += not _NAMED.search(str(error))
    found = list_checkpoints(disk / "run")
    counts["sizes_without_room_for_one"] += not found
    counts["previous_checkpoints_lost"] += found[:1] != committed[-1:]
    for path in found:
        try:
            read_checkpoint(path)
        except LLMTrainerError:
            counts["torn_files"] += 1
    counts["torn_files"] += any((disk / "run").glob(".partial-*"))
    mount_disk(disk, PLENTY)
    world.trainer(disk / "run").train("auto")
    counts["ends_that_differ"] += end_state(disk / "run") != expected
    unmount(disk)


def _log(world: World, directory: Path, counts: Counter[str]) -> None:
    """The disk of the record alone is full from step 5 to step 70; the run notices nothing."""
    world.trainer(directory.with_name("unlogged"), max_steps=STEPS_LOGGED).train()
    mount_disk(directory / "run", 2**18)
    made = world.trainer(directory, max_steps=STEPS_LOGGED)
    log, ballast = made._log, directory / "run" / "ballast"

    def logged() -> None:
        if made.state.step == 5:
            with open(ballast, "wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        if made.state.step == 70:
            ballast.unlink()
        log()
        if 5 <= made.state.step < 70:
            tracker: Any = vars(made._report)["_tracking"]._log
            counts["records_that_waited"] += bool(tracker._waiting)

    made._log = logged  # type: ignore[method-assign]
    made.train("auto")
    end = end_state(directory)
    expected = end_state(directory.with_name("unlogged"))
    counts["records_lost"] += end["log"] != expected["log"]
    counts["ends_that_differ"] += end != expected


def _pack(folder: Path, num_bytes: int, counts: Counter[str]) -> None:
    if not (folder / "raw").exists():
        texts = [f"text {n} with {n * n} words and signs\n" * 9 for n in range(4000)]
        (folder / "texts.jsonl").write_bytes(jsonl(texts))
        source = SourceConfig(train_file=str(folder / "texts.jsonl"), validation_fraction=0.2)
        build_raw(source, folder / "raw", progress=False)
    world, disk = World(folder), folder / "packed-disk"
    arguments = (RawCorpus(folder / "raw"), world.tokenizer, PackingConfig(max_length=64))
    mount_disk(disk, num_bytes)
    try:
        pack_corpus(*arguments, disk / "packed", num_workers=1, progress=False)
    except LLMTrainerError as error:
        counts["packings_that_found_no_room"] += 1
        told = "no space left" in str(error) and "bytes free" in str(error)
        clean = not any(path.name != "lock" for path in disk.iterdir())
        counts["packings_torn_or_unnamed"] += not (told and clean)
    mount_disk(disk, PLENTY)
    pack_corpus(*arguments, disk / "packed", num_workers=1, progress=False)
    shutil.rmtree(folder / "packed", ignore_errors=True)
    pack_corpus(*arguments, folder / "packed", num_workers=1, progress=False)
    equal = (
        PackedRows(disk / "packed", "train").digest == PackedRows(folder / "packed", "train").digest
    )
    counts["packings_torn_or_unnamed"] += not equal
    unmount(disk)


ROW = Row("A4", "disks of ten sizes, full while saving; full while packing and logging", run)
