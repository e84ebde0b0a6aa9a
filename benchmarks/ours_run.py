"""A whole training run of ours as a process: `python -m benchmarks.ours_run JSON`.

Prints, as JSON, the seconds from the start of the process to the trained weights (imports, opening
of the data, compilation and all), and the bits per byte of the whole validation set.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.corpus import load_corpus


def main() -> None:
    """args: model, training: values of the two configurations."""
    args: dict[str, Any] = json.loads(sys.argv[1])
    import torch

    from llm_trainer.config import ModelConfig, TrainingConfig
    from llm_trainer.training.reporting import TrackingOptions
    from llm_trainer.training.runs import make_trainer
    from llm_trainer.utils.evaluation import evaluate_rows

    corpus = load_corpus(args["model"]["max_seq_len"])
    with tempfile.TemporaryDirectory() as folder:
        place = {"checkpoint_dir": str(Path(folder) / "run")}
        config = TrainingConfig(**(args["training"] | place))
        trainer = make_trainer(
            ModelConfig(**args["model"]), config, corpus.tokenizer, corpus.train,
            corpus.validation, device=torch.device("cpu"),
            tracking=TrackingOptions.beside(Path(folder) / "run"),
        )  # fmt: skip
        result = trainer.train()
    seconds = time.time() - psutil.Process().create_time()
    quality = evaluate_rows(
        trainer.model, corpus.validation, token_bytes=corpus.tokenizer.token_bytes()
    )
    figures = {
        "bits_per_byte": quality.bits_per_byte, "bytes": quality.num_bytes,
        "documents": quality.num_documents, "seconds": seconds, "steps": result.steps,
        "training_seconds": result.seconds, "parameters": trainer.model.get_num_params(),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
