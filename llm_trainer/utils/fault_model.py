"""What saving and failing cost a long run: bytes of a checkpoint, the best interval, goodput.

Failures come at random (Poisson) with the mean time between them falling as 1 / accelerators.
The interval between checkpoints that loses least is Daly's ("A higher order estimate of the optimum
checkpoint interval for restart dumps", Future Generation Computer Systems 22, 2006, equation 37),
of which Young's sqrt(2 d M) (CACM 17, 1974) is the first term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_trainer.config.checks import number, refuse
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.utils.memory import FLOAT32_BYTES, optimizer_bytes
from llm_trainer.utils.parameters import count_parameters

HOURS_BETWEEN_FAILURES = 54 * 24 * 16384 / 419
"""Of one GPU: 419 unexpected interruptions of 16,384 H100 in 54 days (Grattafiori et al. 2024, "The
Llama 3 Herd of Models", section 3.3.4)."""
RESTART_SECONDS = 300.0
"""Assumed: to notice, start again on all ranks and read the checkpoint."""
WRITE_BANDWIDTH = 1e9
"""Assumed: bytes a second that one node hashes, writes and syncs."""
COPY_BANDWIDTH = 10e9
"""Assumed: bytes a second of one rank's copy to its host's memory, for asynchronous saving."""


def checkpoint_bytes(model: ModelConfig, optimizer: str) -> int:
    """Bytes of a checkpoint: float32 weights and optimizer states."""
    count = count_parameters(model)
    return FLOAT32_BYTES * count.total + optimizer_bytes(count, optimizer)


def young_interval(save: float, between: float) -> float:
    """Seconds of work between checkpoints: sqrt(2 d M), good while d is far below M."""
    refuse(
        ConfigurationError,
        number("save", save, above=0),
        number("between", between, above=0),
    )
    return math.sqrt(2 * save * between)


def daly_interval(save: float, between: float) -> float:
    """Seconds of work between checkpoints that take `save` seconds, `between` failures."""
    if save >= 2 * between:
        return between
    ratio = save / (2 * between)
    return young_interval(save, between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def goodput(interval: float, save: float, restart: float, between: float) -> float:
    """Share of the time that is useful work (Daly 2006, equation 20).

    T = M e^(R / M) (e^((t + d) / M) - 1) Ts / t: failures may come while saving and restarting.
    """
    refuse(
        ConfigurationError,
        number("interval", interval, above=0),
        number("save", save, 0),
        number("restart", restart, 0),
        number("between", between, above=0),
    )
    exponent = (interval + save) / between
    if exponent + restart / between > 600:  # e^600 times longer: never
        return 0.0
    return interval / (between * math.exp(restart / between) * math.expm1(exponent))


@dataclass(frozen=True)
class Saving:
    """Checkpoints of a run on paper."""

    size: float
    """Bytes of one."""
    stall: float
    """Seconds that training waits for one."""
    write: float
    """Seconds until one is durable."""
    interval: float
    """Best seconds of work between two."""
    goodput: float
    between: float
    """Mean seconds between failures."""


def plan_saving(
    model: ModelConfig,
    optimizer: str,
    *,
    accelerators: int,
    writers: int,
    asynchronous: bool = False,
    write_bandwidth: float = WRITE_BANDWIDTH,
    restart: float = RESTART_SECONDS,
    hours_between_failures: float = HOURS_BETWEEN_FAILURES,
) -> Saving:
    """The best interval of a run on `accelerators`, and what saving and failing cost it then.

    `writers` nodes write at once: all of them under FSDP, one under DDP. Asynchronous saving stalls
    for the copy alone, and cannot be more frequent than writing is long.
    """
    size = checkpoint_bytes(model, optimizer)
    write = size / (writers * write_bandwidth)
    stall = size / accelerators / COPY_BANDWIDTH if asynchronous else write
    between = hours_between_failures * 3600 / accelerators
    interval = max(daly_interval(stall, between), write if asynchronous else 0.0)
    # what is lost at a failure reaches back to the last durable checkpoint
    lost = write if asynchronous else 0.0
    return Saving(
        size=size, stall=stall, write=write, interval=interval,
        goodput=goodput(interval, stall, restart + lost, between), between=between,
    )  # fmt: skip
