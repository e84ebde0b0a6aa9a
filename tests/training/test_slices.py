"""Rows in parts: any number of writers, any number of readers, the same tensors."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_trainer.models.stored_tensors import StoredTensors
from llm_trainer.training.checkpoint import read_checkpoint
from llm_trainer.training.ranks import Ranks
from llm_trainer.training.slices import Part, Slice
from llm_trainer.training.snapshot import CHECKPOINT_FORMAT, Snapshot, write_snapshot
from llm_trainer.training.state import TrainerState

DTYPES = (torch.float32, torch.bfloat16, torch.int64)


@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks that are threads of this process."""

    barrier: Barrier = field(default_factory=lambda: Barrier(1))
    table: list[str] = field(default_factory=list)

    def exchange(self, value: Any) -> list[Any]:
        self.table[self.rank] = json.dumps(value)
        self.barrier.wait()
        found = [json.loads(text) for text in self.table]
        self.barrier.wait()
        return found


def threads(size: int) -> list[Threads]:
    barrier, table = Barrier(size, timeout=60), [""] * size
    return [Threads(rank, size, None, barrier, table) for rank in range(size)]


def chunks(tensor: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """First row and rows of each rank, as `torch.chunk` cuts."""
    found, first = [], 0
    cut = list(torch.chunk(tensor, size)) if len(tensor) else []
    for rank in range(size):
        rows = cut[rank] if rank < len(cut) else tensor[:0]
        found.append((first, rows))
        first += len(rows)
    return found


def snapshot(tensors: dict[str, Tensor], step: Tensor, rank: int, size: int) -> Snapshot:
    """What one of `size` ranks has of them; `step` is with all."""
    part = Part(rank, size)
    group = {}
    for name, tensor in tensors.items():
        first, rows = chunks(tensor, size)[rank]
        group[name] = Slice(rows.contiguous(), tuple(tensor.shape), first, part)
    moments = {"a|step": Slice(step, (), 0, None)} if rank == 0 else {}
    description = {
        "format": CHECKPOINT_FORMAT, "state": TrainerState(step=5).to_json(), "identity": {},
        "environment": {}, "scaler": None,
    }  # fmt: skip
    return Snapshot(
        "checkpoint-5", part, True, {"model/model": group, "optimizer": moments}, {},
        torch.zeros(0, 3, dtype=torch.float64), description,
    )  # fmt: skip


@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=4), writers=st.integers(1, 4),
    data=st.data(),
)  # fmt: skip
@settings(max_examples=10)
def test_what_any_number_wrote_any_number_reads(
    rows: list[int], writers: int, data: st.DataObject
) -> None:
    tensors = {
        f"t{n}": torch.arange(count * (n + 1)).to(DTYPES[n % 3]).reshape(count, n + 1)
        for n, count in enumerate(rows)
    }
    step = torch.tensor(3.0)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(writers) as pool:
        ranks = threads(writers)
        made = [snapshot(tensors, step, rank, writers) for rank in range(writers)]
        where = [Path(folder)] * writers
        paths = set(pool.map(write_snapshot, where, made, ranks))
        assert len(paths) == 1
        path = paths.pop()
        assert read_checkpoint(path).state.step == 5
        stored = StoredTensors(path / "model", "model", "-")
        assert set(stored) == set(tensors)
        for name, tensor in tensors.items():
            for readers in range(1, 5):
                for first, expected in chunks(tensor, readers):
                    assert torch.equal(stored.rows(name, first, len(expected)), expected)
            first = data.draw(st.integers(0, len(tensor)))
            count = data.draw(st.integers(0, len(tensor) - first))
            assert torch.equal(stored.rows(name, first, count), tensor[first : first + count])
        assert torch.equal(StoredTensors(path, "optimizer", "-")["a|step"], step)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(10.0).reshape(5, 2), "a": torch.ones(3)}
    files = []
    for place in ("first", "second"):
        with ThreadPoolExecutor(2) as pool:
            made = [snapshot(tensors, torch.tensor(1.0), rank, 2) for rank in range(2)]
            pool.map(write_snapshot, [tmp_path / place] * 2, made, threads(2))
        found = sorted(path for path in (tmp_path / place).rglob("*") if path.is_file())
        files.append([(path.relative_to(tmp_path / place), path.read_bytes()) for path in found])
    assert files[0] == files[1]
    assert len(files[0]) == 10
