"""A10: NaN and infinity in weights, losses and gradients."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import World, fork, wait
from llm_trainer.exceptions import TrainingError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.training import Trainer

FAULT_STEP, STEPS = 3, 16
SKIPPED_AT_MOST = 10


def run(folder: Path, scale: float) -> Report:
    """Every tensor in turn, stop and skip; weights and optimizer bit by bit as before the step."""
    world, report, counts = World(folder), Report(), Counter[str]()
    tensors = [name for name, _ in world.model().named_parameters()]
    tensors = tensors[: max(2, round(len(tensors) * scale))]
    cases = [(kind, name) for kind in ("weight", "gradient") for name in tensors]
    for number, (kind, name) in enumerate([*cases, ("labels", "")]):
        for value in (math.nan, math.inf) if name else (math.nan,):
            for policy in ("stop", "skip"):
                directory = folder / f"{number}-{value}-{policy}"

                def body(
                    directory: Path = directory, kind: str = kind, name: str = name,
                    value: float = value, policy: str = policy,
                ) -> None:  # fmt: skip
                    write_json(
                        directory.with_suffix(".json"),
                        _inject(world, directory, kind, name, value, policy),
                    )

                code = wait(fork(body, folder / "log"))
                counts[f"{policy}s"] += 1
                if code:
                    report.require(False, f"{kind} {name} {value} {policy}: {code}")
                    continue
                for key, held in read_json(directory.with_suffix(".json")).items():
                    counts[key] += held
                    report.require(held, f"{kind} {name} {value} {policy}: not {key}")
    report.counters = {"tensors": len(tensors), **counts}
    return report


def _inject(
    world: World, directory: Path, kind: str, name: str, value: float, policy: str
) -> dict[str, bool]:
    """One fault at FAULT_STEP, and what was seen."""
    rows: Any = [{"input_ids": world.rows[n]["input_ids"].tolist()} for n in range(60)]
    changes: dict[str, Any] = {"nan_policy": policy, "max_steps": STEPS, "save_steps": 0}
    if kind == "labels":
        changes["batch_size"] = len(rows)
    made = world.trainer(directory, rows=rows, **changes)
    made.eval_dataset = None
    parameters = dict(made.model.named_parameters())
    seen: dict[str, Any] = {"fault": False, "before": None, "unchanged": True}
    accumulate, step = made._accumulate, made._optimizer_step

    def accumulated(batch: Any, targets: int) -> None:
        fault = made.state.step == FAULT_STEP and made.state.micro_step == 0
        if kind == "labels" and made.state.step == FAULT_STEP:
            batch.labels = torch.full_like(batch.labels, -100)
            targets = 0
        if fault and kind == "weight":
            with torch.no_grad():
                parameters[name].view(-1)[0] = value
        accumulate(batch, targets)
        if fault and kind == "gradient":
            gradient = parameters[name].grad
            assert gradient is not None
            gradient.view(-1)[0] = value

    def stepped(targets: int) -> None:
        at_fault = made.state.step >= FAULT_STEP if kind == "weight" else (
            made.state.step == FAULT_STEP
        )  # fmt: skip
        targets = 0 if at_fault and kind == "labels" else targets
        before = _bits(made)
        try:
            step(targets)
        finally:
            if at_fault:
                seen["unchanged"] &= _bits(made) == before

    made._accumulate, made._optimizer_step = accumulated, stepped  # type: ignore[method-assign]
    stopped = ""
    try:
        made.train()
    except TrainingError as error:
        stopped = str(error)
    found = {"bitwise_unchanged": bool(seen["unchanged"])}
    dump = read_json(directory / f"non-finite-step-{FAULT_STEP}.json")
    expected = 3 * made.config.batch_size
    told = dump["step"] == FAULT_STEP and len(dump["rows"]) == expected
    found["step_rows_and_rate_told"] = told and dump["learning_rate"] > 0
    if policy == "stop":
        found["stopped_before_the_step"] = f"step {FAULT_STEP}: loss" in stopped
    elif kind == "weight":  # it stays, so that skipping must come to an end
        found["gave_up_after_ten"] = f"{SKIPPED_AT_MOST + 1} steps in a row" in stopped
    else:
        found["left_out_and_went_on"] = not stopped and made.state.step == STEPS
    return found


def _bits(made: Trainer) -> bytes:
    """Weights and optimizer state."""
    tensors = [parameter.detach() for parameter in made.model.parameters()]
    for parameter in made.model.parameters():
        state = made.optimizer.state.get(parameter, {})
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


ROW = Row("A10", "NaN and infinity in weights and gradients, batches without targets", run)
