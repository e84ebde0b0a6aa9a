"""One run of `benchmarks.data_scale`: download and pack; a line of JSON with the figures of each.

`python -m benchmarks.data_scale_case '{"files": ..., "out": ..., "tokenizer": ..., "engine": ...}'`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from llm_trainer.config.data import PackingConfig, SourceConfig
from llm_trainer.data.encode import peak_rss_bytes
from llm_trainer.data.engine import Engine
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.data.shards import PackedRows
from llm_trainer.tokenizer import BPETokenizer

ROW_LENGTH = 1024


def main() -> int:
    """Run both stages; of each: seconds, digest of what was written, and this process's peak."""
    case = json.loads(sys.argv[1])
    out, workers = Path(case["out"]), int(case["workers"])
    engine = Engine(case["engine"], case.get("address"), workers)
    started = time.perf_counter()
    source = SourceConfig(train_file=case["files"], validation_fraction=0.01)
    build_raw(source, out / "raw", progress=False, engine=engine)
    seconds = time.perf_counter() - started
    peak = peak_rss_bytes()
    raw = RawCorpus(out / "raw")  # verified: each file against its sha256
    num_bytes = raw.num_bytes("train") + raw.num_bytes("validation")
    _tell("download", seconds, peak, raw.digest, num_bytes)
    tokenizer = BPETokenizer.from_pretrained(case["tokenizer"])
    config = PackingConfig(max_length=ROW_LENGTH)
    started = time.perf_counter()
    pack_corpus(
        raw, tokenizer, config, out / "packed",
        num_workers=workers, progress=False, engine=engine,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    peak = peak_rss_bytes()  # before the shards are mapped and verified
    _tell("pack", seconds, peak, PackedRows(out / "packed", "train").digest, num_bytes)
    return 0


def _tell(stage: str, seconds: float, peak: int, digest: str, num_bytes: int) -> None:
    figures: dict[str, Any] = {
        "stage": stage,
        "seconds": round(seconds, 1),
        "digest": digest,
        "megabytes": round(num_bytes / 1e6, 1),
        "driver_peak_mb": round(peak / 1e6),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
