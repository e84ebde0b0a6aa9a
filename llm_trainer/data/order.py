"""Which row comes at which position: a keyed permutation, computed where it is needed.

A shuffled list of 10^9 rows takes 8 GB and must be made anew, alike, after each restart. Here row
number = permute(position), a bijection keyed by (seed, epoch), so any process can ask for any
position at any time: workers, ranks and checkpoints need no state but the position.

How: a Feistel network on pairs (Black and Rogaway 2002). A position x < n is written as (x div b,
x mod b) with a * b >= n, a and b about sqrt(n). Each round adds a keyed hash of one half to the
other, modulo a or b, which can be undone, so all rounds together are a bijection on [0, a * b).
The few results >= n (less than one in sqrt(n)) go through again until they are below n, which
keeps it a bijection on [0, n). Keys come from sha256; no random generator of any library is
involved, so the order is the same for ever.
Price: 0.2 us a position in large arrays, 0.15 ms for a batch; no memory beside the arrays.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

_ROUNDS = 8
MAX_ROWS = 2**62
"""Halves stay below 2**32, far from overflow in 64 bits."""


def permute(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """The rows at some positions of one epoch.

    Args:
        positions: int64 of any shape, each in [0, n).
        n: number of rows, at least 1.
        seed: any integer.
        epoch: any integer; another one gives another order.

    Returns:
        int64 of the same shape; over all positions each row in [0, n) occurs once.
    """
    assert 1 <= n <= MAX_ROWS, n
    positions = np.asarray(positions, np.int64)
    shape = positions.shape
    values = positions.reshape(-1).astype(np.uint64)
    assert not (values >= n).any(), "a position is outside [0, n)"
    if n == 1:
        return np.zeros(shape, np.int64)
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = _keys(n, seed, epoch)
    values = _rounds(values, a, b, keys)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _rounds(values[outside], a, b, keys)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64).reshape(shape)


def rows_at(positions: np.ndarray, n: int, seed: int, shuffle: bool = True) -> np.ndarray:
    """The rows at some positions of the endless stream of epochs.

    Position p is in epoch p div n; there it is row p mod n, permuted unless `shuffle` is off.

    Args:
        positions: int64 of any shape, from 0.
        n: number of rows, at least 1.
        seed: of the order.
        shuffle: permute each epoch, each differently.

    Returns:
        int64 rows in [0, n), of the same shape.
    """
    assert n >= 1, n
    positions = np.asarray(positions, np.int64)
    assert not (positions < 0).any(), "a position is negative"
    epochs, within = np.divmod(positions, n)
    if not shuffle:
        return np.asarray(within)
    rows = np.empty_like(within)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        rows[chosen] = permute(within[chosen], n, seed, epoch)
    return rows


def _keys(n: int, seed: int, epoch: int) -> list[np.uint64]:
    key = hashlib.sha256(f"row order, {n} rows, seed {seed}, epoch {epoch}".encode())
    keys = []
    for number in range(_ROUNDS):
        mixed = hashlib.sha256(key.digest() + bytes([number])).digest()
        keys.append(np.uint64(int.from_bytes(mixed[:8], "little")))
    return keys


def _rounds(values: np.ndarray, a: int, b: int, keys: list[np.uint64]) -> np.ndarray:
    high, low = np.divmod(values, np.uint64(b))  # high < a, low < b
    for number, key in enumerate(keys):
        if number % 2 == 0:
            high = (high + _mix(low ^ key) % np.uint64(a)) % np.uint64(a)
        else:
            low = (low + _mix(high ^ key) % np.uint64(b)) % np.uint64(b)
    return np.asarray(high * np.uint64(b) + low)


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread every input bit over all 64 (the finalizer of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
