"""A stage or script as one of the processes that a launcher started.

`torchrun` tells each its number (RANK) and where to leave word of an error, kills the others when
one fails, and shows its own summary of what failed. Here is what makes several processes look like
one to the user: an error that all of them meet is said once, only rank 0 says anything else, and
nobody outlives the launcher.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.data.engine import usable_cores
from llm_trainer.digests import sha256_bytes
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.files import write_json

if TYPE_CHECKING:
    from llm_trainer.training.distributed import World

PARENT = "LLM_TRAINER_LAUNCHER"
"""Environment variable with the process id of `pipeline.launch`, which holds the stage's lock."""
LOST_PEER = (
    "another process of this training went away; what it said is above, or on its machine; the "
    "same command goes on from the newest checkpoint"
)
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_PR_SET_PDEATHSIG = 1
_LOST_PEER = ("gloo/transport", "Connection closed by peer", "NCCL error", "failed to recv")


def is_worker() -> bool:
    """Whether a launcher started this process."""
    return "RANK" in os.environ


def is_main() -> bool:
    """Whether this process speaks and writes for all; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def holds_stage_lock() -> bool:
    """Whether this process is the one that takes the lock of the stage."""
    return is_main() and PARENT not in os.environ


def die_with_launcher() -> None:
    """Have the kernel kill this process when its launcher dies, however that happens.

    A killed torchrun would leave its processes behind, training on. Kernels other than Linux's
    cannot; there the heartbeat ends the process, within seconds.
    """
    launcher = os.environ.get(PARENT)
    if launcher is None and _ERROR_FILE not in os.environ:
        return  # of srun or mpirun, which look after their processes themselves
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # inherited: deaf to its launcher
    die_with_parent()
    if launcher is not None and os.getppid() != int(launcher):
        os._exit(128 + signal.SIGKILL)  # it died before the kernel was asked


def die_with_parent() -> None:
    """Have the kernel, if it is Linux's, kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def first_to_say(message: str) -> bool:
    """Whether this process is the one of its machine that shows `message`.

    Leaves word for the launcher too, which takes the earliest failure for the cause. That another
    process went away is told by `pipeline.launch`, if it is there, since it may know more.
    """
    if not is_worker() or _ERROR_FILE not in os.environ:
        return is_main()
    mine = Path(os.environ[_ERROR_FILE])
    write_json(mine, {"message": message, "timestamp": str(int(time.time()))})
    if message == LOST_PEER and PARENT in os.environ:
        return False
    # beside the folders of the local ranks, so one for this attempt of this launcher
    said = mine.parents[1] / f"said-{sha256_bytes(message.encode())[:16]}"
    try:
        said.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def is_lost_peer(error: Exception) -> bool:
    """Whether `error` says that another process of this training went away.

    From the training, or from torch in the middle of a collective.
    """
    if not is_worker():
        return False
    if isinstance(error, LLMTrainerError):
        # who has not loaded it cannot have met its error, and need not load torch for it
        distributed = sys.modules.get("llm_trainer.training.distributed")
        return distributed is not None and isinstance(error, distributed.PeerLostError)
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_PEER)


def set_threads(num_threads: int | None, world: World) -> None:
    """Give torch `num_threads`, or this process's share of the machine's physical cores.

    torchrun gives each of several processes one thread, whatever the machine has; another number
    in OMP_NUM_THREADS is the user's, and counts.
    """
    import psutil
    import torch

    if num_threads is None and world.local_size > 1 and _threads_are_torchruns():
        cores = psutil.cpu_count(logical=False) or 1
        num_threads = max(1, min(cores, usable_cores()) // world.local_size)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _threads_are_torchruns() -> bool:
    return os.environ.get("OMP_NUM_THREADS", "1") == "1"


def described(world: World) -> str:
    """The processes and their threads in a few words for the line above the plan; empty for one."""
    if world.size == 1:
        return ""
    import torch

    threads = torch.get_num_threads()
    nodes = "" if world.size == world.local_size else f" on {world.size // world.local_size} nodes"
    return f" in {world.size} processes{nodes} of {threads} thread{'s' if threads > 1 else ''} each"
