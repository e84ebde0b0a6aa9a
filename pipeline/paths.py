"""Where the stages put what they make: the names that `dvc.yaml` has too (a test compares)."""

from __future__ import annotations

from pathlib import Path

RAW = Path("data/raw")
TOKENIZER = Path("models/tokenizer")
PACKED = Path("data/packed")
MODEL = Path("models/final")

METRICS = Path("metrics")
DOWNLOAD_METRICS = METRICS / "download.json"
TOKENIZER_METRICS = METRICS / "tokenizer.json"
PACKING_METRICS = METRICS / "packing.json"
TRAIN_METRICS = METRICS / "train.json"
EVALUATE_METRICS = METRICS / "evaluate.json"
BENCHMARK_METRICS = METRICS / "benchmark.json"

TRAIN_CURVE = Path("plots/train.csv")
LOSS_PICTURE = Path("plots/loss.png")
SAMPLES = Path("plots/samples")
