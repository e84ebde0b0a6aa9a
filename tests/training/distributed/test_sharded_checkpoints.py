"""Checkpoints that several processes write in parts: read by any number, whole or absent."""

from __future__ import annotations

import random
import resource
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.soak.killed_saves import SavesOfTwo, turns
from benchmarks.soak.several import fork_ranks, run_end, tensors_of, told, wait_all
from benchmarks.soak.trainings import World, fork, leftovers, wait
from llm_trainer.exceptions import IntegrityError, LLMTrainerError
from llm_trainer.files import write_text
from llm_trainer.manifests import write_manifest
from llm_trainer.models import TransformerLM
from llm_trainer.training.checkpoint import newest_checkpoint, read_checkpoint
from llm_trainer.training.distributed import connect
from llm_trainer.training.ranks import Ranks

pytestmark = pytest.mark.slow

MIDDLE, END = 4, 8
OPTIMIZERS = ("adamw", "muon")
FSDP = {"parallel": "fsdp"}
SHAPE = {"d_ff": 35}
"""Odd, so that ranks have different numbers of rows."""


@dataclass
class Runs:
    """The same training by one process, by two, and handed over at the middle."""

    world: World
    folder: Path

    def directory(self, name: str, optimizer: str = "muon") -> Path:
        """Where a run's checkpoints are."""
        return self.folder / f"{name}-{optimizer}"

    def train(self, name: str, optimizer: str = "muon", **changes: Any) -> None:
        """Train, or go on, from weights that are not the checkpoint's."""
        directory = self.directory(name, optimizer)
        made = self.world.trainer(directory, SHAPE, optimizer=optimizer, **changes)
        if directory.exists():
            with torch.no_grad():
                for parameter in made.model.parameters():
                    parameter.fill_(0.5)
        made.train("auto")

    def hand_over(self, source: str, target: str, optimizer: str = "muon") -> Path:
        """What a run leaves that is killed after its checkpoint in the middle."""
        directory = self.directory(target, optimizer)
        shutil.copytree(self.directory(source, optimizer), directory)
        shutil.rmtree(directory / f"checkpoint-{END}")
        return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("sharded")
    world = World(
        folder, max_steps=END, save_steps=MIDDLE, gradient_accumulation_steps=4,
        deterministic_reduction=True, max_grad_norm=0.5,
    )  # fmt: skip
    made = Runs(world, folder)

    def one() -> None:
        for optimizer in OPTIMIZERS:
            made.train("one", optimizer)

    def two(_: int) -> None:
        for optimizer in OPTIMIZERS:
            made.train("two", optimizer, **FSDP)
            made.train("one-two", optimizer, **FSDP)
        made.train("behind", async_save=True, **FSDP)

    def one_again() -> None:
        for optimizer in OPTIMIZERS:
            made.train("two-one", optimizer)

    assert wait(fork(one, folder / "log")) == 0, (folder / "log").read_text()
    for optimizer in OPTIMIZERS:
        made.hand_over("one", "one-two", optimizer)
    assert wait_all(fork_ranks(2, two, folder / "logs")) == [0, 0], told(folder / "logs")
    for optimizer in OPTIMIZERS:
        made.hand_over("two", "two-one", optimizer)
    assert wait(fork(one_again, folder / "log")) == 0, (folder / "log").read_text()
    return made


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["two", "one-two", "two-one"])
def test_saved_by_two_read_by_one_and_back_it_is_the_run_of_one_process(
    runs: Runs, name: str, optimizer: str
) -> None:
    end = run_end(runs.directory(name, optimizer), END)
    assert end == run_end(runs.directory("one", optimizer), END)


def test_of_machines_that_have_all_rows_each_the_first_one_writes(runs: Runs) -> None:
    directory = runs.hand_over("two", "hybrid")
    codes = wait_all(
        fork_ranks(
            4, lambda _: runs.train("hybrid", hybrid_shard=True, **FSDP), runs.folder / "four",
            machines=2,
        )
    )  # fmt: skip
    assert codes == [0] * 4, told(runs.folder / "four")
    parts = {path.name for path in (directory / f"checkpoint-{END}" / "model").glob("*-of-*")}
    assert parts == {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert run_end(directory, END) == run_end(runs.directory("one"), END)


def test_each_rank_writes_its_rows_and_nothing_is_there_twice(runs: Runs) -> None:
    path = runs.directory("two", "adamw") / f"checkpoint-{MIDDLE}"
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert names == {
        "manifest.json", "state.json", "history.safetensors", "optimizer.index.json",
        "optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors",
        "model/manifest.json", "model/config.json", "model/model.index.json",
        "model/model-00001-of-00002.safetensors", "model/model-00002-of-00002.safetensors",
    }  # fmt: skip
    whole = runs.directory("one", "adamw") / f"checkpoint-{MIDDLE}"
    for stem in ("optimizer", "model/model"):
        sizes = [file.stat().st_size for file in path.glob(f"{stem}-*")]
        size = (whole / f"{stem}.safetensors").stat().st_size
        assert size < sum(sizes) < size + 6000, "two headers instead of one"
        assert max(sizes) < 0.6 * size


def test_in_the_background_the_same_bytes(runs: Runs) -> None:
    for step in (MIDDLE, END):
        files = [
            {file.relative_to(path): file.read_bytes() for file in path.rglob("*.safetensors")}
            for name in ("behind", "two")
            for path in [runs.directory(name) / f"checkpoint-{step}"]
        ]
        assert files[0] == files[1]
        assert len(files[0]) == 5


def test_one_process_opens_and_exports_a_model_in_parts(runs: Runs, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    from llm_trainer.export.__main__ import main

    made = {}
    ids = torch.arange(24).reshape(2, 12)
    for name in ("one", "two"):
        model = TransformerLM.from_pretrained(runs.directory(name) / f"checkpoint-{END}" / "model")
        made[name] = model(ids).logits
        options = ["--without-tokenizer", "--no-verify"]
        source = runs.directory(name) / f"checkpoint-{END}" / "model"
        assert main([str(source), str(tmp_path / name), *options]) == 0
    assert torch.equal(made["one"], made["two"])
    files = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in made
    ]
    assert files[0].keys() == files[1].keys()
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "two").eval()(ids).logits
    torch.testing.assert_close(theirs, made["two"], atol=2e-5, rtol=1e-4)


# --------------------------------------------------------------------------- damage


def test_flips_cuts_and_losses_in_any_part_are_named(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / f"checkpoint-{MIDDLE}"
    shutil.copytree(runs.directory("two") / path.name, path)
    draw = random.Random(0)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        original = file.read_bytes()
        for trial in range(9):
            damaged = bytearray(original)
            if trial % 3:
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            else:
                damaged = damaged[: len(damaged) * draw.randrange(64) // 64]
            file.write_bytes(damaged)
            with pytest.raises(IntegrityError, match=str(path)) as error:
                read_checkpoint(path)
            if file.suffix == ".safetensors":
                assert str(file) in str(error.value)
        file.unlink()
        with pytest.raises(IntegrityError, match=str(file)):
            read_checkpoint(path)
        file.write_bytes(original)
    read_checkpoint(path)


def test_a_part_of_another_save_is_refused(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / f"checkpoint-{MIDDLE}"
    shutil.copytree(runs.directory("two") / path.name, path)
    part = path / "model" / "model-00002-of-00002.safetensors"
    shutil.copy(runs.directory("two") / f"checkpoint-{END}" / "model" / part.name, part)
    with pytest.raises(IntegrityError, match=f"{part}: content differs"):
        read_checkpoint(path)
    with pytest.raises(IntegrityError, match=f"{part}: content differs"):
        TransformerLM.from_pretrained(path / "model")
    # of rows that the index does not say, with a manifest that says it is right
    shutil.copy(path / "model" / "model-00001-of-00002.safetensors", part)
    write_manifest(path / "model", "model")
    with pytest.raises(IntegrityError, match=f"{part}: .* but model.index.json says"):
        TransformerLM.from_pretrained(path / "model")


# --------------------------------------------------------------------------- faults of a save


def test_a_rank_killed_at_any_turn_of_a_save_leaves_the_old_or_the_new(
    runs: Runs, tmp_path: Path
) -> None:
    saves = SavesOfTwo(runs.world, runs.hand_over("two", "killed", "adamw"), tmp_path / "work")
    assert saves.save() == [0, 0], told(tmp_path / "work" / "logs")
    new = saves.left()
    points = [(rank, n) for rank in (0, 1) for n in turns(saves.operations(rank))]
    outcomes = []
    for victim, number in points:
        codes = saves.save(victim, number)
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] not in (None, -signal.SIGKILL)
        left = saves.left()
        assert left is not None
        outcomes.append((victim, left[0]))
        if left[0] == MIDDLE:
            old = tensors_of(runs.directory("killed", "adamw") / f"checkpoint-{MIDDLE}")
            assert left[1] == old
        else:
            assert left == new
        assert leftovers(tmp_path / "work" / "run") == []
    assert set(outcomes) == {(0, MIDDLE), (0, MIDDLE + 1), (1, MIDDLE), (1, MIDDLE + 1)}
    assert len(outcomes) > 10


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_of_one_rank_is_told_by_all_and_keeps_the_old_one(
    runs: Runs, tmp_path: Path, victim: int
) -> None:
    before = runs.directory("two") / f"checkpoint-{MIDDLE}"
    shutil.copytree(before, tmp_path / "run" / before.name)

    def body(rank: int) -> None:
        made = runs.world.trainer(tmp_path / "run", SHAPE, optimizer="muon", **FSDP)
        made._load_checkpoint()
        made.state.step += 1
        if rank == victim:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            made._save_checkpoint()
        except LLMTrainerError as error:
            write_text(tmp_path / f"told-{rank}", str(error))
            return
        raise AssertionError("it was saved")

    assert wait_all(fork_ranks(2, body, tmp_path)) == [0, 0], told(tmp_path)
    for rank in (0, 1):
        message = (tmp_path / f"told-{rank}").read_text()
        for part in (f"rank {victim}: ", f"checkpoint-{MIDDLE + 1}", "no space", "bytes needed"):
            assert part in message
    assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == [before.name]
    assert tensors_of(tmp_path / "run" / before.name) == tensors_of(before)


def test_damage_that_one_rank_sees_is_known_to_all(runs: Runs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(runs.directory("two"), directory)
    parts = sorted((directory / f"checkpoint-{END}").glob("*/*.safetensors"))
    for part in parts:
        data = bytearray(part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(data)

    def body(rank: int) -> None:
        ranks = Ranks.of(connect())
        for part in parts:
            with pytest.raises(IntegrityError, match="content differs"):
                read_checkpoint(part.parents[1], ranks)
        found = newest_checkpoint(directory, ranks)
        assert found is not None
        write_text(tmp_path / f"found-{rank}", found.path.name)

    assert wait_all(fork_ranks(2, body, tmp_path)) == [0, 0], told(tmp_path)
    assert {(tmp_path / f"found-{rank}").read_text() for rank in (0, 1)} == {f"checkpoint-{MIDDLE}"}
