"""A directory that several processes write together: whole or absent, like one that one writes.

Two phases. Rank 0 makes the temporary directory on the file system that all share and tells its
name; each rank writes its files there, syncs them, and reports their sizes and digests. Only when
all have reported does rank 0 write the rest and the manifest, sync the directories and give the
directory its name. If one fails, all raise, and nothing is left. Price: three exchanges of a few
kilobytes a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import LLMTrainerError, TrainingError
from llm_trainer.files import atomic_directory, writable
from llm_trainer.training.ranks import PeerLostError, Ranks


class RankFailedError(TrainingError):
    """One of the ranks could not write; all of them raise this."""


def write_together(
    path: Path,
    ranks: Ranks,
    write_part: Callable[[Path], Any],
    write_rest: Callable[[Path, list[Any]], None],
    *,
    needed: int | None = None,
) -> None:
    """Write the directory `path`; every rank calls it.

    Args:
        path: final name; the same on all ranks, on a file system that they share.
        ranks: who writes.
        write_part: given the temporary directory, writes and syncs this rank's files there and
            returns its report, as JSON.
        write_rest: given the temporary directory and all reports by rank, writes what is rank 0's.
        needed: about how many bytes this rank writes, for the message if there are not so many.

    Raises:
        LLMTrainerError: one of the ranks could not write; raised by all of them.
    """
    if ranks.rank == 0:
        _lead(path, ranks, write_part, write_rest, needed)
    else:
        _follow(path, ranks, write_part, needed)


def _lead(
    path: Path, ranks: Ranks, write_part: Callable[[Path], Any],
    write_rest: Callable[[Path, list[Any]], None], needed: int | None,
) -> None:  # fmt: skip
    try:
        with atomic_directory(path, needed=needed) as temporary:
            ranks.exchange({"name": temporary.name})
            write_rest(temporary, _reports(path, ranks, temporary, write_part, needed))
    except (PeerLostError, RankFailedError):
        raise  # there is nobody to tell, or all know
    except Exception as error:
        ranks.exchange({"error": _text(error)})
        raise
    ranks.exchange({})


def _follow(
    path: Path, ranks: Ranks, write_part: Callable[[Path], Any], needed: int | None
) -> None:
    begun = _from_first(ranks)
    _reports(path, ranks, path.parent / begun["name"], write_part, needed)
    _from_first(ranks)


def _from_first(ranks: Ranks) -> Any:
    answer = ranks.exchange(None)[0]
    if "error" in answer:
        raise RankFailedError(f"rank 0: {answer['error']}")
    return answer


def _reports(
    path: Path, ranks: Ranks, temporary: Path, write_part: Callable[[Path], Any],
    needed: int | None,
) -> list[Any]:  # fmt: skip
    """Write this rank's part and return the reports of all, or raise with all."""
    if ranks.size == 1:
        return [write_part(temporary)]
    failure = None
    try:
        with writable(path, needed):
            answer = {"report": write_part(temporary)}
    except Exception as error:  # noqa: BLE001 - the others wait, so whatever it is must be told
        failure, answer = error, {"error": _text(error)}
    answers = ranks.exchange(answer)
    for rank, told in enumerate(answers):
        if "error" in told:
            raise RankFailedError(f"rank {rank}: {told['error']}") from failure
    return [told["report"] for told in answers]


def _text(error: Exception) -> str:
    known = isinstance(error, LLMTrainerError)
    return str(error) if known else f"{type(error).__name__}: {error}"
