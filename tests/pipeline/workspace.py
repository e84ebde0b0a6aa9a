"""A finished workspace of the pipeline, made directly: what git and DVC bring to a clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from llm_trainer.config import Experiment
from llm_trainer.digests import sha256_file
from llm_trainer.files import write_json
from llm_trainer.manifests import manifest_digest, write_manifest
from llm_trainer.training.fingerprint import result_params
from llm_trainer.training.lineage import write_lineage

ROOT = Path(__file__).parents[2]
FINGERPRINT = "5eed" * 16
CURVE = """step,train_loss,learning_rate,grad_norm,eval_loss,eval_bits_per_byte
1,6.5,0.001,1.5,,
2,5.5,0.002,1.25,5.75,2.5
3,4.5,0.001,1,,
4,4,0.0005,0.75,4.25,1.75
"""


def make_workspace(place: Path) -> None:
    """Write params, text, tokenizer, rows, model, metrics and plots into `place`."""
    place.mkdir(parents=True, exist_ok=True)
    experiment = Experiment()
    (place / "params.yaml").write_text(yaml.safe_dump(_plain(experiment), sort_keys=False))
    digests = {}
    for kind in ("raw", "packed"):
        directory = place / "data" / kind
        directory.mkdir(parents=True)
        (directory / "train-00000").write_text(kind)
        manifest = write_manifest(directory, kind, ledger={"documents_in": 7, "documents_out": 7})
        digests[f"{kind}_digest"] = manifest_digest(manifest)
    tokenizer = place / "models" / "tokenizer" / "tokenizer.json"
    tokenizer.parent.mkdir(parents=True)
    tokenizer.write_text("{}")
    (place / "code.py").write_text("x = 1\n")
    model = place / "models" / "final"
    (model / "tokenizer").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    shutil.copy(tokenizer, model / "tokenizer")
    write_lineage(
        model, fingerprint=FINGERPRINT, tokenizer_digest=sha256_file(tokenizer),
        data={**digests, "origin": {"kind": "files", "files": 3}},
        params=result_params(experiment.model, experiment.training),
        code={"code.py": sha256_file(place / "code.py")}, packages={},
    )  # fmt: skip
    write_manifest(model, "model")
    write_json(place / "metrics/train.json", {"steps": 4, "seconds": 2.5})
    write_json(place / "metrics/evaluate.json", {"bits_per_byte": 1.75, "device": "cpu"})
    write_json(place / "metrics/benchmark.json", {"tokens_per_second": 9000.0})
    (place / "plots" / "samples").mkdir(parents=True)
    (place / "plots" / "train.csv").write_text(CURVE)
    (place / "plots" / "loss.png").write_bytes(b"png")
    write_json(place / "plots/samples/samples.json", [{"prompt": "def ", "text": "f():"}])


def _plain(experiment: Experiment) -> dict[str, object]:
    from llm_trainer.config.experiment import RUNTIME_ONLY

    sections = experiment.sections()
    for key in RUNTIME_ONLY:
        sections["training"].pop(key, None)
    sections["model"].pop("vocab_size")
    return sections


def command(place: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` in `place`, with this checkout's code."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=place, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=False,
    )  # fmt: skip
