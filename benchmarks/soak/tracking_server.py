"""A14: an MLflow server that is killed, and one that hangs, in the middle of a training."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak.row import Report, Row
from benchmarks.soak.trainings import World, curve, end_state, fork, wait
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.training.reporting import TrackingOptions
from llm_trainer.training.tracking.log import read_metrics
from llm_trainer.training.tracking.mlflow_sync import sync_run
from tests.mlflow_store import Server, wait_for

PHASES = ("up", "killed", "back", "hanging")
STEPS = 500
"""Of each phase."""
SLOWER_AT_MOST = 1.2
_EXPERIMENT, _RUN = "soak", "a14"


def run(folder: Path, scale: float) -> Report:
    """The same run without a server and through all phases; the medians of the steps compared."""
    from mlflow import MlflowClient

    world, report = World(folder), Report()
    steps = max(60, round(STEPS * scale))
    template = folder / "template" / "mlflow.db"
    template.parent.mkdir()
    MlflowClient(f"sqlite:///{template}").search_experiments()
    server = Server(folder / "server", template)
    server.start()

    def phases() -> dict[int, Callable[[], None]]:
        return {
            steps: server.stop,
            2 * steps: server.start,
            3 * steps: lambda: _signal(server, signal.SIGSTOP),
        }

    try:
        code = wait(fork(lambda: _train(world, folder / "alone", steps, {}, None)))
        assert code == 0
        started = time.monotonic()
        child = fork(
            lambda: _train(world, folder / "tracked", steps, phases(), server.uri), folder / "log"
        )
        code = wait(child, 300)
        seconds = time.monotonic() - started
        report.require(code == 0, f"the training ended with {code}")
        server._process = None  # the child started the one that hangs
        holder = read_json(folder / "tracked" / "server.json")
        os.killpg(holder["group"], signal.SIGCONT)
        replayed = sync_run(folder / "tracked" / "run", server.uri, root=folder / "tracked").metrics
        _compare(folder, server.uri, report)
        os.killpg(holder["group"], signal.SIGKILL)
    finally:
        server.stop()
    alone, tracked = (read_json(folder / name / "times.json") for name in ("alone", "tracked"))
    for phase in PHASES:
        ratio = statistics.median(tracked[phase]) / statistics.median(alone[phase])
        report.counters[f"step_time_ratio_{phase}"] = round(ratio, 3)
        report.require(ratio < SLOWER_AT_MOST, f"{phase}: steps took {ratio:.2f} times as long")
    warnings = (folder / "log").read_text().count("sending is tried again")
    same = end_state(folder / "alone") == end_state(folder / "tracked")
    report.counters |= {
        "steps_of_each_phase": steps, "metrics_sent_by_the_replay": replayed,
        "records_there_before_the_kill": holder["live"][0],
        "records_there_before_it_hung": holder["live"][-1],
        "warnings": warnings, "ends_that_differ": int(not same),
        "seconds_until_the_trainer_ended": round(seconds, 1),
    }  # fmt: skip
    report.require(same, "the end differs from that of the run without a server")
    report.require(replayed > 0, "nothing had to be replayed")
    report.require(warnings == 1, f"{warnings} warnings instead of one")
    return report


def _signal(server: Server, number: signal.Signals) -> None:
    assert server._process is not None
    os.killpg(server._process.pid, number)


def _train(
    world: World, directory: Path, steps: int, faults: dict[int, Callable[[], None]],
    uri: str | None,
) -> None:  # fmt: skip
    """Train through all phases; note how long each step took, logging included."""
    made = world.trainer(
        directory, max_steps=len(PHASES) * steps, eval_strategy="no", save_steps=100,
        gradient_accumulation_steps=1, report_to=["mlflow"] if uri else ["jsonl"],
    )  # fmt: skip
    made.tracking = TrackingOptions(
        record_dir=directory / "run", root=directory, run_name=_RUN, experiment=_EXPERIMENT,
        tracking_uri=uri, tags={"fingerprint": _RUN},
    )  # fmt: skip
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    live: list[int] = []
    micro_batches, log, started = made._micro_batches, made._log, [0.0]

    def began() -> range:
        if made.state.micro_step == 0:
            started[0] = time.perf_counter()
        return micro_batches()

    def logged() -> None:
        log()
        step = made.state.step
        times[PHASES[(step - 1) // steps]].append(time.perf_counter() - started[0])
        if step in faults:
            if step != 2 * steps:  # the server is there: all must come through before it goes
                tracking: Any = vars(made._report)["_tracking"]
                uploader, wanted = tracking._trackers[0]._uploader, tracking._log.state.lines
                wait_for(lambda: uploader.outcome.lines >= wanted)
                live.append(wanted)
            faults[step]()

    made._micro_batches, made._log = began, logged  # type: ignore[method-assign]
    try:
        made.train()
    finally:
        write_json(directory / "times.json", times)
        if faults:
            process = faults[steps].__self__._process  # type: ignore[attr-defined]
            write_json(directory / "server.json", {"group": process.pid, "live": live})


def _compare(folder: Path, uri: str, report: Report) -> None:
    """Every value of the log is on the server, at its step, once."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    lost = doubled = values = 0
    for key, points in read_metrics(folder / "tracked" / "run" / "log.jsonl").items():
        history = client.get_metric_history(run.info.run_id, key)
        there = [(metric.step, metric.value) for metric in history]
        doubled += len(there) - len(set(there))
        lost += len(set(points) - set(there))
        values += len(points)
    report.counters |= {"metrics": values, "metrics_lost": lost, "metrics_doubled": doubled}
    report.require(lost == 0, f"{lost} metrics were lost")
    report.require(doubled == 0, f"{doubled} metrics are there twice")
    assert curve(folder / "tracked")


ROW = Row("A14", "an MLflow server killed, and one that hangs, in the middle of a training", run)
