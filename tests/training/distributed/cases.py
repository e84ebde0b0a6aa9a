"""Trainings in two modes, as one process or as several: each rank writes down what it saw.

    torchrun --standalone --nproc_per_node=2 tests/training/distributed/cases.py FOLDER [NAME ...]

One start of the processes serves all cases. `perform` does the same in the process that calls it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.soak.trainings import World
from llm_trainer.config import DataConfig
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.training import Trainer, batches
from llm_trainer.training.reduction import local

MODES = ("ddp", "fsdp")
EXACT = {"deterministic_reduction": True}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": "adamw"},
    "plain-muon": {"optimizer": "muon", "gradient_accumulation_steps": 2},
    "exact": {"optimizer": "adamw", "gradient_accumulation_steps": 2, **EXACT},
    "exact-muon": {"optimizer": "muon", "document_mask": True, **EXACT},
    "exact-growing": {"optimizer": "muon", "short_rows": [4], "short_rows_ratio": 0.5, **EXACT},
    "exact-bf16": {"optimizer": "muon", "use_amp": True, "amp_dtype": "bfloat16", **EXACT,
                   "model": {"tie_embeddings": False, "position": "learned"}},
    "exact-sgd": {"optimizer": "sgd", "max_grad_norm": 0.0, "sample_steps": 4, **EXACT},
    "recomputed": {"activation_checkpointing": True, "optimizer": "adamw",
                   "gradient_accumulation_steps": 2, **EXACT},
}  # fmt: skip
"""Settings by name. `recomputed` is `exact` otherwise."""
REFUSED: dict[str, dict[str, Any]] = {
    "world_size": {"world_size": 3},
    "local_rank": {"local_rank": 7},
    "accumulation": {"gradient_accumulation_steps": 3},
    "hybrid": {"parallel": "ddp", "hybrid_shard": True},
    "order": {"parallel": "ddp", "gradient_accumulation_steps": 6, **EXACT},
}
"""Settings that two processes refuse."""
STOPPED = {"optimizer": "muon", "embedding_learning_rate": 0.02, **EXACT}
"""A run that is stopped and goes on elsewhere."""
STOP_AT = 3


def make_world(folder: Path) -> World:
    """What all cases train on: vocabulary, width and rows that no number of ranks divides."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", 90), ("validation", 40)):
        text = "\n".join(f"line {n} of {count} to train on or not" for n in range(count))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return World(
        folder, max_steps=6, gradient_accumulation_steps=4, max_grad_norm=0.5, eval_batches=3,
        eval_steps=4, save_steps=0, weight_decay=0.1,
    )  # fmt: skip


def make(
    world: World, folder: Path, rows: Any = None, model: dict[str, Any] | None = None,
    **changes: Any,
) -> Trainer:  # fmt: skip
    """A trainer of the model of all cases, or of one that differs in `model`."""
    return world.trainer(folder, {"d_ff": 35, **(model or {})}, rows, **changes)


def report(made: Trainer) -> dict[str, Any]:
    """What became of a training, to the last bit."""
    here = [local(p) for group in made.optimizer.param_groups for p in group["params"]]
    kept = [local(t) for state in made.optimizer.state.values() for t in state.values()]
    return {
        "history": [[float(number).hex() for number in row] for row in made.state.history],
        "weights": digest(made) if made.world.is_main else None,
        "evaluations": made.state.evaluations,
        "tokens": made.state.tokens,
        "bytes": sum(t.nbytes for t in (*here, *kept)),
        "way": made.way,
        "rank": made.world.rank,
    }


def digest(made: Trainer) -> str:
    """Of all weights."""
    found = hashlib.sha256()
    for name, tensor in made.model.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def stop_at(made: Trainer, step: int, rank: int) -> None:
    """Send a real signal to one rank in the middle of a step; the others have it too late.

    A scheduler signals all processes of a job, and some know of it by then.
    """
    accumulate, save = made._accumulate, made._save_checkpoint

    def accumulated(*arguments: Any) -> None:
        accumulate(*arguments)
        if made.state.step == step - 1 and made.world.rank == rank and made._stop.signal is None:
            os.kill(os.getpid(), signal.SIGTERM)

    def saved(*, wait: bool = True) -> Path:
        if made.world.size > 1 and made.world.rank != rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(wait=wait)

    made._accumulate = accumulated  # type: ignore[method-assign]
    made._save_checkpoint = saved  # type: ignore[method-assign]


COLLECTIVES = {
    "sums": ("all_reduce",),
    # newer releases have other names, and the old ones call these
    "gathers": ("all_gather_single", "all_gather_into_tensor"),
    "scatters": ("reduce_scatter_single", "reduce_scatter_tensor"),
}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the collectives of the body by kind."""
    numbers = dict.fromkeys(COLLECTIVES, 0)

    def counting(kind: str, name: str) -> Any:
        plain = vars(dist)[name]

        def call(*arguments: Any, **more: Any) -> Any:
            numbers[kind] += 1
            return plain(*arguments, **more)

        return call

    known = {
        kind: next(name for name in names if name in vars(dist))
        for kind, names in COLLECTIVES.items()
    }
    with mock.patch.multiple(dist, **{name: counting(kind, name) for kind, name in known.items()}):
        yield numbers


def one_step(made: Trainer) -> dict[str, int]:
    """Collectives of a step like any other, by kind."""
    numbers: list[dict[str, int]] = []
    step = made._optimizer_step

    def stepped(targets: int) -> None:
        step(targets)
        numbers.append(dict(found))

    made._optimizer_step = stepped  # type: ignore[method-assign]
    with counted() as found:
        made.train()
    return {kind: numbers[2][kind] - numbers[1][kind] for kind in found}


def trained(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """A run from its beginning to its end."""
    made = make(world, place, **changes)
    made.train()
    return report(made)


def refused(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """Settings that cannot be."""
    try:
        make(world, place, **changes)
    except LLMTrainerError as error:
        return {"kind": type(error).__name__, "message": str(error)}
    raise AssertionError(f"{changes} were not refused")


def on_items(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """A run on a data set of torch that a worker process reads, evaluated after it too."""
    items = [{"input_ids": world.rows[n]["input_ids"].tolist()} for n in range(11)]
    made = make(world, place, items, dataloader_num_workers=1, **EXACT, **changes)
    with mock.patch.object(batches, "WorkerBatches", wraps=batches.WorkerBatches) as workers:
        made.train()
    return report(made) | {"after": made.evaluate(), "workers": workers.call_count}


def evaluated(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """An evaluation of the fresh model, and one of the trained model."""
    made = make(world, place, **changes)
    before = made.evaluate()
    made.train()
    try:
        text = made.generate_text("def", max_length=8, do_sample=False)
    except LLMTrainerError as error:
        text = f"error: {error}"
    return {"before": before, "after": made.evaluate(), "text": text}


def stopped(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """A run that the last rank is told to stop."""
    made = make(world, place, **STOPPED, **changes)
    stop_at(made, STOP_AT, rank=made.world.size - 1)
    try:
        made.train()
    except SystemExit as stop:
        return {"code": stop.code, "step": made.state.step, "micro_step": made.state.micro_step}
    raise AssertionError("it was not stopped")


def resumed(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """A run from what other processes left in its folder."""
    made = make(world, place, **STOPPED, **changes)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.fill_(0.5)  # all of it must come from the checkpoint
    made.train("auto")
    return report(made)


def collectives(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """What is exchanged in a step."""
    return one_step(make(world, place, eval_strategy="no", max_steps=4, **changes))


def not_finite(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """A run of a broken model."""
    made = make(world, place, **changes)
    with torch.no_grad():
        made.model.blocks[0].attention.out.weight[0, 0] = float("nan")
    try:
        made.train()
    except LLMTrainerError as error:
        return {"kind": type(error).__name__, "message": str(error), "step": made.state.step}
    raise AssertionError("it went on")


def from_config(world: World, place: Path, **changes: Any) -> dict[str, Any]:
    """A run that prepares its data."""
    data = DataConfig(
        train_file=str(world.folder / "train.txt"), max_length=16, preprocessing_num_workers=1,
        validation_file=str(world.folder / "validation.txt"),
    )  # fmt: skip
    made = make(world, place, **EXACT, **changes)
    made.train_from_config(made.model.config, data)
    return report(made)


def as_two(world: World, place: Path) -> dict[str, Any]:
    """`exact` with another word for its two micro-batches."""
    local_rank = int(os.environ["LOCAL_RANK"])
    changes = {"world_size": 2, "gradient_accumulation_steps": 1, "local_rank": local_rank}
    return trained(world, place, **RUNS["exact"] | changes)


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    **{name: partial(trained, **changes) for name, changes in RUNS.items()},
    **{name: partial(refused, **changes) for name, changes in REFUSED.items()},
    **{f"collectives{n}": partial(collectives, gradient_accumulation_steps=n) for n in (2, 4, 8)},
    "collectives-recomputed": partial(
        collectives, gradient_accumulation_steps=2, activation_checkpointing=True
    ),
    "whole": partial(trained, **STOPPED),
    "stopped": stopped,
    "resumed": resumed,
    "items": on_items,
    "evaluated": evaluated,
    "not-finite": not_finite,
    "from-config": from_config,
    "as-two": as_two,
}


def perform(world: World, folder: Path, name: str) -> dict[str, Any]:
    """Do the case `<what>[:<mode>]` in a folder of its own."""
    what, _, mode = name.partition(":")
    changes: dict[str, Any] = {}
    if mode:
        changes = {"parallel": mode.removesuffix("-hybrid")}
    if mode.endswith("-hybrid"):
        changes["hybrid_shard"] = True
    return CASES[what](world, folder / name.replace(":", "-"), **changes)


def perform_all(world: World, folder: Path, names: list[str]) -> None:
    """Do cases one after the other, and write down what this rank saw."""
    found = {name: perform(world, folder, name) for name in names}
    path = folder / f"rank{os.environ['RANK']}.json"
    path.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    perform_all(make_world(place / "world"), place, sys.argv[2:])
