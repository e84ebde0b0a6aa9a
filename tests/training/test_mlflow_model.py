"""The trained model in MLflow: logged once, without pickle, and it generates the same text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from llm_trainer.config import ModelConfig, RuntimeConfig
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.files import write_json
from llm_trainer.models.decoding import continue_prompts
from llm_trainer.models.storage import save_model
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training.lineage import write_lineage
from llm_trainer.training.tracking import log_model_artifacts, run_directory
from llm_trainer.training.tracking.mlflow_sync import sync_run
from tests.mlflow_store import empty_database_fixture, root_fixture  # noqa: F401

TEXTS = ["def f(x):\n    return x + 1\n", "import os\nimport sys\n"] * 20
PROMPTS = ["def f", "import ", ""]


def make_model(directory: Path, fingerprint: str = "f00d") -> tuple[TransformerLM, BPETokenizer]:
    tokenizer = BPETokenizer()
    tokenizer.train(TEXTS, vocab_size=300)
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_heads=2, n_layers=2, max_seq_len=64
    )
    model = TransformerLM(config).eval()
    model.tokenizer_digest = tokenizer.digest

    def extra(place: Path) -> None:
        tokenizer.save_pretrained(place / "tokenizer")
        write_lineage(
            place, fingerprint=fingerprint, tokenizer_digest=tokenizer.digest, data={},
            params={"training": {"seed": 1}}, code={}, packages={},
        )  # fmt: skip

    save_model(model, directory, extra)
    return model, tokenizer


LOAD = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = [{"prompt": prompt} for prompt in json.loads(sys.argv[3])]
greedy = model.predict(rows, params={"temperature": 0.0, "max_new_tokens": 12})
drawn = [model.predict(rows, params={"seed": seed}) for seed in (1, 1, 2)]
import llm_trainer
print(json.dumps({"greedy": greedy, "drawn": drawn, "library": llm_trainer.__file__}))
"""


@pytest.mark.slow
def test_the_model_is_logged_once_and_loads_anywhere(root: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    model, tokenizer = make_model(root / "models" / "final")
    write_json(root / "metrics.json", {"ledger": {"documents_in": 3}})
    runtime = RuntimeConfig(checkpoint_root="runs", experiment_name="tests", report_to=["mlflow"])
    assert log_model_artifacts(
        root / "models" / "final", runtime=runtime, root=root, metrics={"steps": 5},
        artifacts=[root / "metrics.json"], ledgers={"download": root / "metrics.json"},
    )  # fmt: skip
    assert sync_run(run_directory(root / "runs", "f00d"), None, root=root).is_empty
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"run/steps": 5.0}
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert str(logged.status) == "READY"
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {
        "ledger.json",
        "metrics.json",
    }
    ledger = json.loads((root / "runs/f00d/run/artifacts/ledger.json").read_text())
    assert ledger == {"download": {"documents_in": 3}}

    files = Path(logged.artifact_location.removeprefix("file://"))
    names = {path.name for path in files.rglob("*") if path.is_file()}
    assert {"model.safetensors", "tokenizer.json", "pyfunc_model.py"} <= names
    assert not [n for n in names if n.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc"))]
    description = yaml.safe_load((files / "MLmodel").read_text())
    assert description["flavors"]["python_function"]["model_code_path"].endswith("pyfunc_model.py")
    requirements = (files / "requirements.txt").read_text()
    assert f"torch=={torch.__version__.split('+')[0]}" in requirements

    (tmp_path / "elsewhere").mkdir()
    result = subprocess.run(
        [
            sys.executable, "-P", "-c", LOAD, uri, f"runs:/{run.info.run_id}/model",
            json.dumps(PROMPTS),
        ],
        cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    # the copy that came with the model, wherever mlflow unpacked it
    assert answer["library"].endswith("/code/llm_trainer/__init__.py")
    greedy = GenerationConfig(temperature=0.0, max_new_tokens=12, end_id=tokenizer.end_id)
    for prompt, text in zip(PROMPTS, answer["greedy"], strict=True):
        ids = tokenizer.encode(prompt, add_special_tokens=False) or [tokenizer.end_id]
        new = continue_prompts(model, torch.tensor([ids]), None, greedy)
        assert text == prompt + tokenizer.decode(new.ids[0, : new.lengths[0]].tolist())
    first, second, other = answer["drawn"]
    assert first == second
    assert first != other


def test_a_model_that_is_gone_is_named_and_found_elsewhere(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "temporary copy"
    make_model(place)
    runtime = RuntimeConfig(checkpoint_root="runs", experiment_name="tests", report_to=["console"])
    log_model_artifacts(place, runtime=runtime, root=root)
    record = run_directory(root / "runs", "f00d")
    place.rename(tmp_path / "moved")
    report = sync_run(record, None, root=root)
    assert "is not on this disk" in report.model
    assert "is not on this disk" in str(report)
    make_model(root / "other", "cafe")  # another model is no stand-in
    places = (root / "other", tmp_path / "moved")
    assert sync_run(record, None, root=root, model_places=places).model == "sent"
    assert sync_run(record, None, root=root, model_places=places).is_empty
    assert "MLFLOW_TRACKING_URI" not in os.environ  # nothing of ours stays set in the process
    (record / "upload.json").unlink()  # the server itself knows too
    assert sync_run(record, None, root=root, model_places=places).model == ""
