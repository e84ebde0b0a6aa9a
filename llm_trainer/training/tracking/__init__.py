"""Tracking: what a run did, written down locally first and shown elsewhere second.

The record of a run is a directory, `<checkpoint_root>/<fingerprint>/run/`:

    run.json        name, fingerprint, params, tags, data sets, status (written atomically)
    log.jsonl       the curve: one JSON object a line, {"step": 12, "time": ..., "train/loss": 2.1}
    stages/         one file a later stage: the figures of evaluate and benchmark
    artifacts/      copies of small files: pictures, samples, the ledger

It is the truth. Backends only show it: console, tensorboard, wandb, and mlflow, which a separate
process uploads from the record, so that a slow, dead or hanging server costs training nothing.
What a server missed is replayed by `python -m pipeline.track`.

For the trainer, all of it is one object. Nothing raises into the training loop after `open`:

    tracking = RunTracking.open(
        report_to,                 # list of: jsonl, console, tensorboard, mlflow, wandb
        record_dir=run_directory(checkpoint_root, fingerprint),
        run_name="...", experiment="llm-trainer",
        tracking_uri=None,         # None: MLFLOW_TRACKING_URI, or <root>/mlflow.db
        root=main_checkout(),      # holds mlflow.db, mlartifacts/, runs/
        params={"model": {...}, "training": {...}, ...},   # nested; flattened to training.lr
        tags={"fingerprint": hex, "tokenizer_digest": hex, ...},   # git, DVC tags are added
        datasets={"packed": {"digest": hex, "source": "data/packed", "context": "training",
                             "rows": 1234, "tokens": 5678}},       # extra keys: its profile
        resume_step=None,          # None: a fresh start; S: drop what was logged after step S
        tensorboard_dir=None,      # None: <root>/runs/<fingerprint>
    )
    tracking.log(step, {"train/loss": 2.1, "train/lr": 1e-3})   # a (step, key) twice is ignored
    tracking.log_text(step, "sample-0", text)
    tracking.log_artifact(path, folder=None)      # copied now; the file may go away afterwards
    tracking.flush(durable=True)                  # before a checkpoint is committed
    tracking.finish("FINISHED")                   # or FAILED, KILLED; waits seconds at most

`open` raises `ConfigurationError` (unknown backend, impossible URI) and `MissingDependencyError`
(optional backend not installed) before any work. `eval/best_*` (lowest `eval/loss`,
`eval/bits_per_byte`, `eval/perplexity` so far) and `system/*` (CPU, memory) are added by itself.
`tracking.log_path` is the JSON-lines file; `read_metrics(log_path)` reads it back.

For the stages:

    log_stage(model_dir, "evaluate", metrics, runtime=params.runtime, root=main_checkout(),
              artifacts=[Path("plots/loss.png")], samples=[{"prompt": ..., "text": ...}])
    log_model_artifacts(model_dir, runtime=..., root=..., metrics=..., artifacts=[...],
              ledgers={"download": RAW, "pack_sequences": PACKED})

find the run by `lineage.json` of the model. Figures of `evaluate` become `eval/final_*` (the
plain names are the curve during training), those of `benchmark` become `benchmark/*`, those of
`train` become `train/final_*`; text values become tags. Neither raises because of a server.
"""

from llm_trainer.training.tracking.base import Status, Tracker
from llm_trainer.training.tracking.factory import check_backends, create_trackers
from llm_trainer.training.tracking.log import read_metrics
from llm_trainer.training.tracking.record import RunRecord, run_directory
from llm_trainer.training.tracking.run import RunTracking
from llm_trainer.training.tracking.stages import begin_upload, log_model_artifacts, log_stage

__all__ = [
    "RunRecord",
    "RunTracking",
    "Status",
    "Tracker",
    "check_backends",
    "create_trackers",
    "log_model_artifacts",
    "begin_upload",
    "log_stage",
    "read_metrics",
    "run_directory",
]
