"""create_dataloader: an order of its own, workers that change nothing, faults that are errors."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from llm_trainer.data import LanguageModelingDataset, create_dataloader
from llm_trainer.data.order import permute
from llm_trainer.exceptions import DataError
from llm_trainer.tokenizer import BPETokenizer
from tests.data.raw_corpora import random_texts
from tests.test_layers import ROOT


class Numbers(Dataset[dict[str, Any]]):
    """Items are their numbers; a fault may happen in a worker at number 7."""

    def __init__(self, size: int, fault: str = "") -> None:
        self.size, self.fault = size, fault

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 7 and self.fault and get_worker_info() is not None:
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hang":
                time.sleep(60)
            raise RuntimeError("a fault of the data set")
        return {"input_ids": torch.tensor([index, index]), "name": f"row {index}"}


def numbers(loader: Any) -> list[list[int]]:
    return [batch["input_ids"][:, 0].tolist() for batch in loader]


def test_signature() -> None:
    parameters = inspect.signature(create_dataloader).parameters
    assert list(parameters)[:6] == [
        "dataset", "batch_size", "shuffle", "num_workers", "pin_memory", "drop_last",
    ]  # fmt: skip
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert (defaults["batch_size"], defaults["shuffle"]) == (32, True)
    assert (defaults["pin_memory"], defaults["drop_last"]) == (True, True)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_order_is_that_of_seed_and_epoch(num_workers: int) -> None:
    torch.manual_seed(num_workers)  # torch's own random state has no say
    loader = create_dataloader(Numbers(50), 8, num_workers=num_workers, seed=3)
    assert len(loader) == 6
    for epoch in range(3):
        wanted = permute(np.arange(50), 50, 3, epoch).tolist()
        assert numbers(loader) == [wanted[k : k + 8] for k in range(0, 48, 8)]


def test_set_epoch_goes_anywhere() -> None:
    loader = create_dataloader(Numbers(20), 5, seed=1)
    first, second = numbers(loader), numbers(loader)
    assert first != second
    loader.set_epoch(0)
    assert numbers(loader) == first
    assert numbers(loader) == second
    loader.set_epoch(5)
    wanted = permute(np.arange(20), 20, 1, 5).tolist()
    assert list(chain(*numbers(loader))) == wanted


def test_every_row_comes_once() -> None:
    loader = create_dataloader(Numbers(1003), 10, drop_last=False)
    batches = numbers(loader)
    assert len(batches) == len(loader) == 101
    assert sorted(chain(*batches)) == list(range(1003))


def test_more_rows_than_a_block_of_the_sampler() -> None:
    size = 40_000
    found = list(create_dataloader(Numbers(size), 1, seed=2).sampler)
    assert found == permute(np.arange(size), size, 2, 0).tolist()


def test_without_shuffling() -> None:
    loader = create_dataloader(Numbers(10), 4, shuffle=False, drop_last=False)
    assert numbers(loader) == numbers(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_torchs_random_state_stays_untouched() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    numbers(create_dataloader(Numbers(20), 4, num_workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_is_pinned_where_cuda_is() -> None:
    loader = create_dataloader(Numbers(4), 2)
    assert loader.pin_memory == torch.cuda.is_available()
    assert create_dataloader(Numbers(4), 2, pin_memory=False).pin_memory is False


def test_a_language_modeling_dataset() -> None:
    tokenizer = BPETokenizer()
    tokenizer.train(random_texts(0, 20), 300)
    dataset = LanguageModelingDataset(random_texts(3, 20), tokenizer, max_length=16)
    loader = create_dataloader(dataset=dataset, batch_size=4, shuffle=True, num_workers=2)
    rows = permute(np.arange(len(dataset)), len(dataset), 0, 0)[:4]
    batch = next(iter(loader))
    assert batch["input_ids"].shape == (4, 16)
    assert batch["input_ids"].tolist() == dataset.rows(rows)[0].tolist()
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


# --------------------------------------------------------------------------- faults


def test_a_worker_that_dies() -> None:
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"exited unexpectedly|killed by signal.*num_workers=0"):
        numbers(create_dataloader(Numbers(20, "die"), 4, num_workers=2, timeout=20))
    assert time.perf_counter() - started < 21


def test_a_worker_that_hangs() -> None:
    started = time.perf_counter()
    with pytest.raises(DataError, match="timed out after 3 seconds"):
        numbers(create_dataloader(Numbers(20, "hang"), 4, num_workers=2, timeout=3))
    assert time.perf_counter() - started < 20  # 3 and what starting and stopping take


def test_an_error_of_the_data_set_comes_through() -> None:
    with pytest.raises(RuntimeError, match="a fault of the data set"):
        numbers(create_dataloader(Numbers(20, "raise"), 4, num_workers=2))


def test_ctrl_c_reaches_the_main_process_only() -> None:
    """The group gets SIGINT: the workers stay, the main process decides and ends them."""
    code = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from tests.data.test_loader import Numbers
from llm_trainer.data import create_dataloader
os.setpgrp()
loader = create_dataloader(Numbers(400), 4, num_workers=2)
seen = 0
try:
    for number, batch in enumerate(loader):
        seen += 1
        if number == 10:
            os.killpg(0, signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted", seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split()[0] == "interrupted"
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        (0, {}, "no rows"),
        (5, {"batch_size": 0}, r"batch_size \(0\)"),
        (5, {"batch_size": 2, "num_workers": -1}, r"num_workers \(-1\)"),
        (5, {"batch_size": 6}, r"5 rows, fewer than batch_size \(6\).*drop_last=False"),
    ],
)
def test_what_cannot_be(size: int, settings: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        create_dataloader(Numbers(size), **settings)
