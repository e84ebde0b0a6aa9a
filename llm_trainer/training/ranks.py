"""What saving and resuming need of the other processes: to tell each other small JSON values.

Apart from `World`, whose collectives belong to the training loop: saving may go on in a thread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llm_trainer.training.distributed import PeerLostError as PeerLostError
from llm_trainer.training.distributed import World

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, over a group of their own."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """How many there are."""
    group: ProcessGroup | None = None
    """Of gloo; None for one process."""

    @classmethod
    def of(cls, world: World) -> Ranks:
        """The processes of `world`; all make it at the same time."""
        return cls(world.rank, world.size, world.new_group())

    def exchange(self, value: Any) -> list[Any]:
        """Give a JSON value to all, and return those of all, by rank.

        All processes call it equally often, each in one thread at a time.

        Raises:
            PeerLostError: another one ended.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        try:
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(mine)]), group=self.group)
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(mine)] = mine
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, padded, group=self.group)
        except RuntimeError as error:
            raise PeerLostError(
                f"rank {self.rank}: another process of this training ended ({error}); its own "
                f"message says why; the same command goes on from the newest checkpoint"
            ) from error
        return [
            json.loads(text[: int(size)].numpy().tobytes())
            for text, size in zip(texts, sizes, strict=True)
        ]


ALONE = Ranks()
"""One process."""
