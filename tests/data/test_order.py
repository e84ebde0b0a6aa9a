"""The row order: a bijection, keyed, uniform, fast, stateless, and the same for ever."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_trainer.data.order import MAX_ROWS, permute, rows_at
from tests.test_layers import ROOT


def order(n: int, seed: int = 0, epoch: int = 0) -> list[int]:
    found: list[int] = permute(np.arange(n), n, seed, epoch).tolist()
    return found


# --------------------------------------------------------------------------- a bijection


@pytest.mark.parametrize("n", [*range(1, 70), 97, 255, 256, 257, 1000, 4095, 65537, 100_003])
def test_each_row_comes_once(n: int) -> None:
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (-5, 10**12)):
        assert sorted(order(n, seed, epoch)) == list(range(n))


def test_a_million_rows_come_once() -> None:
    n = 2**20 + 1
    assert (np.sort(permute(np.arange(n), n, 7, 3)) == np.arange(n)).all()


@settings(max_examples=200)
@given(st.integers(1, MAX_ROWS), st.integers(), st.integers(0, 2**40), st.data())
def test_rows_of_huge_data_sets_do_not_meet(
    n: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), max_size=50, unique=True))
    rows = permute(np.array(positions, np.int64), n, seed, epoch)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == len(positions)
    assert all(0 <= row < n for row in rows.tolist())


@settings(max_examples=100)
@given(st.integers(1, 500), st.integers(0, 9), st.lists(st.integers(0, 499), max_size=30))
def test_a_position_does_not_depend_on_its_company(n: int, seed: int, positions: list[int]) -> None:
    positions = [position % n for position in positions]
    whole = order(n, seed)
    together = permute(np.array(positions, np.int64), n, seed, 0).tolist()
    assert together == [whole[position] for position in positions]


def test_shapes() -> None:
    assert permute(np.zeros((0,), np.int64), 5, 0, 0).shape == (0,)
    square = permute(np.arange(12).reshape(3, 4), 12, 0, 0)
    assert square.shape == (3, 4)
    assert square.reshape(-1).tolist() == order(12)
    with pytest.raises(AssertionError, match="outside"):
        permute(np.array([5]), 5, 0, 0)
    with pytest.raises(AssertionError, match="outside"):
        permute(np.array([-1]), 5, 0, 0)


def scalar(position: int, n: int, seed: int, epoch: int) -> int:
    """The same in whole numbers of Python, one position at a time."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    key = hashlib.sha256(f"row order, {n} rows, seed {seed}, epoch {epoch}".encode()).digest()
    keys = [hashlib.sha256(key + bytes([number])).digest()[:8] for number in range(8)]
    while True:
        halves, sizes = list(divmod(position, b)), (a, b)
        for number, key in enumerate(keys):
            turn = number % 2
            value = halves[1 - turn] ^ int.from_bytes(key, "little")
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
                value = (value ^ (value >> shift)) * factor % 2**64
            halves[turn] = (halves[turn] + value) % sizes[turn]
        position = halves[0] * b + halves[1]
        if position < n:
            return position


@pytest.mark.parametrize("n", [2, 3, 10, 1000, 10**12 + 39, MAX_ROWS])
def test_equals_whole_numbers(n: int) -> None:
    positions = sorted({(n - 1) * k // 19 for k in range(20)})
    wanted = [scalar(position, n, 8, 2) for position in positions]
    assert permute(np.array(positions), n, 8, 2).tolist() == wanted


# --------------------------------------------------------------------------- keyed and random


def test_every_key_gives_another_order() -> None:
    orders = {tuple(order(50, seed, epoch)) for seed in range(30) for epoch in range(30)}
    assert len(orders) == 900
    assert order(50, 1, 0) != order(50, 0, 1)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_small_data_sets_see_every_order(n: int) -> None:
    counts = Counter(tuple(order(n, seed)) for seed in range(2400))
    expected = 2400 / len(counts)
    assert len(counts) == [2, 6, 24][n - 2]
    assert all(0.5 * expected < count < 1.6 * expected for count in counts.values())


def chi_square(table: np.ndarray) -> float:
    """Per degree of freedom; about 1 for a uniform table."""
    expected = table.mean()
    rows, columns = table.shape
    return float(((table - expected) ** 2 / expected).sum() / ((rows - 1) * (columns - 1)))


@pytest.mark.parametrize("n", [1000, 1024, 999])
def test_rows_are_spread_evenly_over_positions(n: int) -> None:
    table = np.zeros((10, 10))
    for seed in range(300):
        rows = permute(np.arange(n), n, seed, seed % 3)
        np.add.at(table, (np.arange(n) * 10 // n, rows * 10 // n), 1)
    assert 0.6 < chi_square(table) < 1.5


def test_neighbours_fixed_points_and_rising_runs_are_those_of_chance() -> None:
    n, orders = 500, [order(500, seed) for seed in range(600)]
    fixed = np.mean([sum(row == p for p, row in enumerate(rows)) for rows in orders])
    follow = np.mean([sum(b == a + 1 for a, b in pairwise(rows)) for rows in orders])
    rises = np.mean([sum(b > a for a, b in pairwise(rows)) for rows in orders])
    assert 0.85 < fixed < 1.15  # expected 1
    assert 0.85 < follow < 1.15  # expected 1 - 1/n
    assert abs(rises - (n - 1) / 2) < 1  # standard error 0.26


def test_epochs_are_unrelated() -> None:
    first, second = permute(np.arange(2000), 2000, 1, 0), permute(np.arange(2000), 2000, 1, 1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.08
    assert abs(np.corrcoef(first, np.arange(2000))[0, 1]) < 0.08


# --------------------------------------------------------------------------- the stream


def test_stream_of_epochs() -> None:
    n = 7
    stream = rows_at(np.arange(3 * n), n, seed=4)
    assert stream.tolist() == order(n, 4, 0) + order(n, 4, 1) + order(n, 4, 2)
    assert rows_at(np.arange(5, 20), n, seed=4).tolist() == stream[5:20].tolist()
    assert rows_at(np.array([20, 0, 13]), n, seed=4).tolist() == stream[[20, 0, 13]].tolist()
    plain = rows_at(np.arange(3 * n), n, seed=4, shuffle=False)
    assert plain.tolist() == [*range(n)] * 3
    with pytest.raises(AssertionError, match="negative"):
        rows_at(np.array([-1]), n, seed=0)


# --------------------------------------------------------------------------- price


def test_a_batch_of_a_huge_data_set_is_cheap() -> None:
    positions = np.arange(10**15, 10**15 + 32)
    permute(positions, 2**60, 0, 0)
    started = time.process_time()
    for epoch in range(100):
        permute(positions, 2**60, 0, epoch)
    assert (time.process_time() - started) / 100 < 0.005  # 0.15 ms on an idle machine
    tracemalloc.start()
    permute(positions, 2**60, 0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_million_positions_take_under_two_seconds() -> None:
    started = time.process_time()
    permute(np.arange(10**6), 10**9, 0, 0)
    assert time.process_time() - started < 2  # 0.2 s on an idle machine


# --------------------------------------------------------------------------- the same for ever


def test_golden_orders() -> None:
    """Pinned: another order would change every run that is resumed after an update."""
    assert order(10, 0, 0) == [4, 8, 0, 2, 6, 1, 9, 5, 3, 7]
    assert order(10, 42, 3) == [4, 5, 3, 7, 2, 1, 0, 8, 9, 6]
    assert permute(np.array([0, 1, 10**9, 10**12 - 1]), 10**12, 42, 1).tolist() == [
        404937618667,
        543251331657,
        512969228541,
        413928393348,
    ]
    assert permute(np.array([0, MAX_ROWS - 1]), MAX_ROWS, -1, 0).tolist() == [
        1221636473402980186,
        747554096912415018,
    ]


def test_another_process_gives_the_same() -> None:
    code = (
        "import numpy as np; from llm_trainer.data.order import permute;"
        "np.random.seed(9); print(permute(np.arange(20), 1000, 5, 6).tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(permute(np.arange(20), 1000, 5, 6).tolist())
