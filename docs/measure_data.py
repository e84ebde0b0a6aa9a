"""Measure the data stages on a generated corpus: `python -m docs.measure_data MEGABYTES`.

Writes a JSONL file of documents of very unequal length, pieced together from the standard library,
runs the stages download, train_tokenizer and pack_sequences on it in a scratch folder, each as a
process of its own, and prints for each: wall-clock time, processor time, speed, and the peak memory
of its largest process. Memory must not grow with the corpus. Price: five times the corpus on the
disk, while it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml

from llm_trainer.data.stdlib import stdlib_names
from pipeline.paths import DOWNLOAD_METRICS, PACKING_METRICS, TOKENIZER_METRICS

ROOT = Path(__file__).resolve().parents[1]
METRICS = {
    "download": DOWNLOAD_METRICS,
    "train_tokenizer": TOKENIZER_METRICS,
    "pack_sequences": PACKING_METRICS,
}
MEDIAN_BYTES = 1800
"""Median length of a document; the logarithm of the length is normal, with a deviation of 1.2."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the data stages on generated text.")
    parser.add_argument("megabytes", type=int, help="size of the corpus in MB")
    parser.add_argument("--workers", type=int, help="processes that tokenize; default one a core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="measure-") as scratch:
        folder = Path(scratch)
        # in a process of its own: on Linux a child's peak memory starts with that of its parent
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as writer:
            size = options.megabytes * 10**6
            documents = writer.submit(write_corpus, folder / "corpus.jsonl", size).result()
        params = {
            "data": {"train_file": "corpus.jsonl", "validation_fraction": 0.01},
            "tokenizer": {"vocab_size": 4096},
            "packing": {"max_length": 256},
            "runtime": {"preprocessing_num_workers": options.workers},
        }
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        print(f"{options.megabytes:,} MB of text in {documents:,} documents")
        print(
            "| Stage | Seconds | Processor seconds | MB per processor second | "
            "Peak memory of a process, MB |\n| --- | --- | --- | --- | --- |"
        )
        for stage in METRICS:
            print(measured(stage, folder, options.megabytes), flush=True)
        packing = json.loads((folder / PACKING_METRICS).read_text(encoding="utf-8"))
        tokens = packing["train_tokens"] + packing["validation_tokens"]
        print(f"\n{tokens / 1e6:,.1f} M tokens in {packing['train_shards']} training shards, "
              f"packed in {packing['num_workers']} processes")  # fmt: skip


def write_corpus(path: Path, size: int) -> int:
    """Write about `size` bytes of text; returns the number of documents. The same each time."""
    library = Path(sysconfig.get_path("stdlib"))
    lines: list[str] = []
    for name in stdlib_names(library):
        lines += (library / name).read_text(encoding="utf-8", errors="ignore").splitlines(True)
    draw = random.Random(0)
    written = documents = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            wanted = MEDIAN_BYTES * draw.lognormvariate(0.0, 1.2)
            start = draw.randrange(len(lines))
            parts = [f"# {documents}\n"]
            length = 0
            while length < wanted:
                parts.append(lines[start % len(lines)])
                length += len(parts[-1])
                start += 1
            text = "".join(parts)
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text.encode())
            documents += 1
    return documents


def measured(stage: str, folder: Path, megabytes: int) -> str:
    """Run a stage to its end; a row of the table."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
    started = time.perf_counter()
    log = os.open(folder / f"{stage}.log", os.O_CREAT | os.O_WRONLY)
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", _START, str(folder), stage],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
    )
    os.close(log)
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit((folder / f"{stage}.log").read_text(encoding="utf-8"))
    processor = usage.ru_utime + usage.ru_stime
    # kilobytes on Linux, bytes on macOS
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return (
        f"| `{stage}` | {seconds:.1f} | {processor:.1f} | {megabytes / processor:.1f} | "
        f"{memory:.0f} |"
    )


_START = (
    "import os, runpy, sys; os.chdir(sys.argv[1]); "
    "runpy.run_module('pipeline.' + sys.argv[2], run_name='__main__')"
)


if __name__ == "__main__":
    main()
