"""The processes of a training: who they are, and how they agree.

    with connect() as world:            # reads the launcher's environment; closed at the end
        path = world.first(save)        # rank 0 does it, all get its result, or raise its error
        if world.any(stop.signal):      # agreed by all: the same answer everywhere
            ...

`connect` reads what `torchrun` sets (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT). Without RANK, or with one process, the `World` has one member, its methods return at
once and nothing of `torch.distributed` is touched. It is made once a process: a second `connect`
returns the same. Whoever connects may close; if nobody does, the end of the process does.

All methods of `World` but the plain properties are collective: every rank calls them, in the same
order. Tensors of the model travel over the default group (NCCL for CUDA, gloo for the CPU), small
things over `world.control`, a gloo group, so that they never wait for a device. A thread that talks
by itself, such as one that saves, needs a group of its own: `world.new_group()`, made by all ranks.
A process that dies or vanishes ends the others within a minute; see `heartbeat`.
Price: a collective on `control` takes about 0.1 ms between two processes of one machine.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

import torch
from torch import Tensor

from llm_trainer import exceptions
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError, LLMTrainerError, TrainingError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from llm_trainer.training.heartbeat import Heartbeat

T = TypeVar("T")

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets for each process."""
PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others in one collective. Long, since the others may wait while
rank 0 writes a large checkpoint; a dead rank is found by the heartbeat, in seconds."""
START_PATIENCE = timedelta(minutes=5)
"""How long a rank waits at the start for the others to come."""
_LOST_PEER = ("gloo/transport", "Connection closed by peer", "NCCL error", "failed to recv")
"""What torch says in the middle of a collective when another process is gone."""


class PeerLostError(TrainingError):
    """Another process of the same training ended while it was waited for."""


@dataclass(frozen=True)
class World:
    """The processes that train one model together, seen from one of them."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process on its machine."""
    local_size: int = 1
    """Processes on each machine."""
    control: ProcessGroup | None = None
    """Gloo group for small things on the CPU; None for one process."""

    @property
    def is_main(self) -> bool:
        """Whether this process logs, tracks and writes for all."""
        return self.rank == 0

    @property
    def node(self) -> int:
        """Number of this process's machine."""
        return self.rank // self.local_size

    def barrier(self) -> None:
        """Wait for all."""
        self.sum(0)

    def sum(self, *numbers: int) -> list[int]:
        """The sum over the ranks of each number."""
        if self.size == 1:
            return list(numbers)
        import torch.distributed as dist

        total = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(total, group=self.control)
        return [int(number) for number in total]

    def any(self, flag: object) -> bool:
        """Whether `flag` is true on any rank."""
        return self.sum(bool(flag))[0] > 0

    def max(self, number: int) -> int:
        """The largest over the ranks."""
        return max(int(row[0]) for row in self.gather(torch.tensor([number])))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Each rank's tensor, by rank; all of one shape and type, on the CPU."""
        if self.size == 1:
            return [tensor]
        import torch.distributed as dist

        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor.contiguous(), group=self.control)
        return found

    def share(self, value: T) -> T:
        """Rank 0's value, on all; it is made of what JSON knows."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        data = json.dumps(value).encode() if self.is_main else b""
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=self.control)
        buffer = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_main:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(buffer, 0, group=self.control)
        result: T = json.loads(buffer.numpy().tobytes())
        return result

    def first(self, action: Callable[[], T]) -> T:
        """Do it on rank 0 alone; all get the result, made of what JSON knows, or raise its error.

        Raises:
            LLMTrainerError: what `action` raised, of the same kind on all ranks.
            TrainingError: `action` raised something else; rank 0 raises that itself.
        """
        if self.size == 1:
            return action()
        if not self.is_main:
            result, kind, message = self.share((None, "", ""))
            if kind:
                raise _kind(kind)(message)
            return cast(T, result)
        try:
            done = action()
        except Exception as error:
            known = isinstance(error, LLMTrainerError)
            self.share((None, type(error).__name__ if known else "TrainingError", str(error)))
            raise
        self.share((done, "", ""))
        return done

    def agree(self, error: LLMTrainerError | None) -> None:
        """Raise on all ranks if any has an error: one's own, or else that of the lowest rank.

        Raises:
            LLMTrainerError: some rank has one.
        """
        failed = [int(row[0]) for row in self.gather(torch.tensor([error is not None]))]
        if error is not None:
            raise error
        if any(failed):
            raise TrainingError(f"rank {failed.index(1)} failed; its message is above")

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors, on any device, by rank 0's."""
        if self.size == 1:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)

    def new_group(self) -> ProcessGroup | None:
        """Another gloo group of all ranks, for a thread that talks by itself."""
        if self.size == 1:
            return None
        import torch.distributed as dist

        group: ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
        return group

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        close()


ALONE = World()
"""One process without a launcher."""


@contextmanager
def lost_peers_named(world: World) -> Iterator[None]:
    """Say in plain words what torch says of a process that went away.

    Raises:
        PeerLostError: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not any(sign in str(error) for sign in _LOST_PEER):
            raise
        raise PeerLostError(
            f"rank {world.rank}: another process of this training ended; its own message says why, "
            f"unless it was killed; the same command goes on from the newest checkpoint"
        ) from error


_world: World | None = None
_heartbeat: Heartbeat | None = None


def connect() -> World:
    """The world of this process: joined at the first call, the same one at each further call.

    Raises:
        ConfigurationError: the launcher's variables are incomplete or contradict each other.
        TrainingError: the other processes did not come.
    """
    global _world
    if _world is None:
        _world = _join(launched(os.environ))
    return _world


def close() -> None:
    """Leave the world, if there is one; the next `connect` joins anew."""
    global _world, _heartbeat
    world, _world = _world, None
    if world is None or world.size == 1:
        return
    import torch.distributed as dist

    if _heartbeat is not None:
        _heartbeat.stop()
        _heartbeat = None
    if dist.is_initialized():
        dist.destroy_process_group()
    atexit.unregister(close)


def launched(environment: Mapping[str, str]) -> World:
    """What the launcher says of this process, without talking to anyone.

    Raises:
        ConfigurationError: a variable is missing, no number, or impossible.
    """
    if "RANK" not in environment:
        return ALONE
    missing = [name for name in LAUNCHER if name not in environment]
    if missing:
        raise ConfigurationError(
            f"RANK is set, so a launcher started this process, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not; start it with torchrun, or unset RANK"
        )
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size, local_rank, local_size = (int(environment[name]) for name in names)
    except ValueError:
        given = ", ".join(f"{name}={environment[name]!r}" for name in names)
        raise ConfigurationError(
            f"the launcher's variables must be whole numbers ({given}); start with torchrun"
        ) from None
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        given = ", ".join(f"{name}={environment[name]}" for name in names)
        raise ConfigurationError(
            f"the launcher's variables contradict each other ({given}); start with torchrun"
        )
    return World(rank, size, local_rank, local_size)


def check_world(config: TrainingConfig, world: World) -> None:
    """Check the configuration against the processes that there are.

    Raises:
        ConfigurationError: `world_size` or `local_rank` are not the launcher's, or the
            micro-batches of a step cannot be dealt out evenly.
    """
    problems = []
    if config.local_rank not in (-1, world.local_rank):
        problems.append(
            f"local_rank ({config.local_rank}) is not that of the launcher ({world.local_rank}); "
            f"leave it at -1"
        )
    elif config.local_rank != -1 and "LOCAL_RANK" not in os.environ:
        problems.append(
            f"local_rank is {config.local_rank}, but no launcher started this process; start it "
            f"with torchrun, or leave local_rank at -1"
        )
    total = config.micro_batches_per_step
    if config.world_size not in (1, world.size):
        problems.append(
            f"world_size ({config.world_size}) is not the number of processes ({world.size}); "
            f"start it with torchrun --nproc_per_node={config.world_size}, or set world_size: 1 "
            f"and gradient_accumulation_steps: {total}, which is the same step for any number of "
            f"processes that divides {total}"
        )
    elif total % world.size:
        problems.append(
            f"gradient_accumulation_steps * world_size ({total}) micro-batches cannot be dealt out "
            f"to {world.size} processes; {_same_step(config, world.size)}"
        )
    if problems:
        raise ConfigurationError("\n".join(problems))


def _same_step(config: TrainingConfig, size: int) -> str:
    """A remedy: the same effective batch size over `size` processes, or the nearest one."""
    rows = config.effective_batch_size
    if rows % size == 0:
        share = rows // size
        batch = max(n for n in range(1, min(share, config.batch_size) + 1) if share % n == 0)
        return (
            f"batch_size: {batch} with gradient_accumulation_steps: {rows // batch} and "
            f"world_size: 1 has the same effective batch of {rows} rows"
        )
    return (
        f"{rows} rows a step cannot be divided by {size}; start another number of processes, or "
        f"set gradient_accumulation_steps: {size}"
    )


def _join(world: World) -> World:
    if world.size == 1:
        return world
    import torch.distributed as dist

    from llm_trainer.training.connections import end_silent_connections
    from llm_trainer.training.heartbeat import Heartbeat

    global _heartbeat
    if world.local_size < world.size:
        end_silent_connections()
    if not world.is_main:
        # rank 0 speaks for all; errors are everybody's
        logging.getLogger("llm_trainer").setLevel(logging.ERROR)
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group(backend, timeout=START_PATIENCE)
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        _heartbeat = Heartbeat.first(world.rank, world.size)
        dist.barrier(group=control)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"rank {world.rank} of {world.size}: the processes did not find each other at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({error}); look at the "
            f"messages of the other ranks"
        ) from error
    dist.distributed_c10d._set_pg_timeout(PATIENCE)
    _heartbeat.start()
    atexit.register(close)
    return World(world.rank, world.size, world.local_rank, world.local_size, control)


def _kind(name: str) -> type[LLMTrainerError]:
    kind = vars(exceptions).get(name)
    assert isinstance(kind, type), name
    assert issubclass(kind, LLMTrainerError), name
    return kind
