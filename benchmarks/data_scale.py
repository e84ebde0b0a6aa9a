"""1 GB of text through the local engine and through Ray: `python -m benchmarks.data_scale`.

Download and packing with one and two workers, then again on Ray with a worker killed in the middle
of each stage. Ray has two nodes on this machine, one core each; every case is a process of its own.
All must give the same digests, or the command fails. Writes benchmarks/data_scale.json; takes about
ten minutes and 6 GB of disk.

Peak memory is that of resident pages, which for Ray's workers includes those that they share with
its store of results.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import psutil

from benchmarks.contest import ROOT
from benchmarks.corpus import FOLDER
from docs.measure_data import write_corpus
from llm_trainer.files import write_text
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.utils.machine import describe_machine
from tests.data.ray_nodes import ENVIRONMENT, two_nodes

RESULTS = ROOT / "benchmarks" / "data_scale.json"
MEGABYTES = 1000
SHARES = (0.7, 0.2, 0.1)
"""Of the text, in files: the first is read in many ranges."""
VOCAB_SIZE = 4096
STORE_MB = 512
CASES = (("local", 1, False), ("local", 2, False), ("ray", 1, False), ("ray", 2, False),
         ("ray", 2, True))  # fmt: skip
"""Engine, workers, whether one is killed."""
_POLL_SECONDS = 0.1


def main() -> int:
    """Run all cases, compare what they wrote, write the figures down."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else MEGABYTES
    files, tokenizer = _prepare(megabytes)
    rows = []
    half: dict[str, float] = {}
    for engine, workers, kill in CASES:
        case = {"files": files, "tokenizer": tokenizer, "engine": engine, "workers": workers}
        for stage in _run(case, half if kill else {}):
            row = {"engine": engine, "workers": workers, "killed": kill, **stage}
            row["mb_per_second"] = round(stage["megabytes"] / stage["seconds"], 1)
            half[stage["stage"]] = stage["seconds"] / 2
            rows.append(row)
            print(json.dumps(row), flush=True)
    for name in ("download", "pack"):
        if len({row["digest"] for row in rows if row["stage"] == name}) != 1:
            print(f"error: {name} gave different bytes", file=sys.stderr)
            return 1
    if not all(row["kills"] for row in rows if row["killed"]):
        print("error: no worker was there to be killed", file=sys.stderr)
        return 1
    if megabytes == MEGABYTES:
        results = {"runs": rows, "machine": describe_machine()}
        write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    return 0


def _prepare(megabytes: int) -> tuple[list[str], str]:
    """Text files and a tokenizer, made once and kept."""
    folder = FOLDER / f"data-scale-{megabytes}"
    names = [folder / f"part-{number}.jsonl" for number in range(len(SHARES))]
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        text = folder / "all"
        write_corpus(text, megabytes * 10**6)
        with open(text, "rb") as file:
            for name, share in zip(names, SHARES, strict=True):
                with open(name, "wb") as part:
                    while part.tell() < share * text.stat().st_size and (line := file.readline()):
                        part.write(line)
            names[-1].open("ab").writelines(file)
        text.unlink()
        with open(names[-1], "rb") as file:
            texts = [json.loads(line)["text"] for line, _ in zip(file, range(2000), strict=False)]
        trained = BPETokenizer()
        trained.train(texts, vocab_size=VOCAB_SIZE)
        trained.save_pretrained(tokenizer)
    return [str(name) for name in names], str(tokenizer)


def _run(case: dict[str, Any], kill_after: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """The figures of each stage of a case; a worker is killed so long after a stage began."""
    with ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryDirectory(dir=FOLDER))
        environment = None
        if case["engine"] == "ray":
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
            nodes = stack.enter_context(two_nodes(temporary, STORE_MB))
            case = case | {"address": nodes.address}
            environment = ENVIRONMENT
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.data_scale_case", json.dumps(case | {"out": out})],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={**psutil.Process().environ(), **(environment or {})},
        )  # fmt: skip
        watch = stack.enter_context(_Watch(kill_after))
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):  # Ray prints that a worker died
                yield {**json.loads(line), **watch.next_stage()}
        if process.wait() != 0:
            raise SystemExit(f"error: {case} ended with {process.returncode}")


class _Watch:
    """Looks at the workers that this process's children start, and kills one of each stage."""

    def __init__(self, kill_after: Mapping[str, float]) -> None:
        self._moments = [kill_after[name] for name in ("download", "pack") if name in kill_after]
        self._peak = self._kills = 0
        self._started = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def next_stage(self) -> dict[str, int]:
        """What was seen since the last."""
        seen = {"worker_peak_mb": round(self._peak / 1e6), "kills": self._kills}
        self._peak = self._kills = 0
        self._started = time.monotonic()
        return seen

    def _look(self) -> None:
        while not self._is_over.wait(_POLL_SECONDS):
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                    if not ("spawn_main" in title or title.startswith("ray::")):
                        continue
                    self._peak = max(self._peak, process.memory_info().rss)
                    moment = self._moments[0] if self._moments else float("inf")
                    is_busy = title.startswith(("ray::read_unit", "ray::_encode"))
                    if is_busy and time.monotonic() - self._started > moment:
                        process.kill()
                        self._kills += 1
                        del self._moments[0]
                except psutil.Error:
                    continue  # it ended meanwhile


if __name__ == "__main__":
    raise SystemExit(main())
