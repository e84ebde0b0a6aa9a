"""The trained model in MLflow: its own files, and a pyfunc from code that generates text.

Nothing is pickled: weights are safetensors, the rest JSON, and the pyfunc is the text of
`pyfunc_model.py` with a copy of this library beside it, so that it loads where only the listed
packages are installed. Loading a pyfunc runs its code: we offer it and never load one ourselves.
Price: about 1.5 s and a copy of the model's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import llm_trainer
from llm_trainer.exceptions import IntegrityError
from llm_trainer.training.tracking.mlflow_session import Session
from llm_trainer.training.tracking.mlflow_store import translated
from llm_trainer.training.tracking.record import model_entry

MODEL_NAME = "model"
DIGEST_TAG = "model_digest"
REQUIREMENTS = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "tiktoken",
    "pyarrow",
    "pyyaml",
    "tqdm",
)
"""Packages that generation needs; those installed here are pinned in the model."""
PARAMETERS: dict[str, int | float] = {
    "max_new_tokens": 48,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.95,
    "seed": 0,
}
"""Parameters of `predict` with their defaults; top_k 0 and top_p 1.0 switch the filter off."""


def find_model(entry: Mapping[str, str], places: tuple[Path, ...]) -> Path | None:
    """A directory with exactly the model of `entry`: where it was made, or one of `places`."""
    for place in (Path(entry["path"]), *places):
        try:
            if model_entry(place)["digest"] == entry["digest"]:
                return place
        except IntegrityError:
            continue
    return None


def is_logged(session: Session, digest: str) -> bool:
    """Whether the run has produced this model already, completely."""
    assert session.run is not None
    outputs = session.read("get_run").outputs
    for output in outputs.model_outputs if outputs is not None else ():
        model = session.logged_model(output.model_id)
        if str(model.status) == "READY" and model.tags.get(DIGEST_TAG) == digest:
            return True
    return False


def log_model(session: Session, model_dir: Path, entry: Mapping[str, str]) -> None:
    """Log `model_dir` as the run's model, loadable as `runs:/<run id>/model`.

    Raises:
        TrackingError: the store refuses or does not answer.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    parameters = [
        ParamSpec(name, "double" if isinstance(value, float) else "long", value)
        for name, value in PARAMETERS.items()
    ]
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema(parameters),
    )
    script = Path(__file__).with_name("pyfunc_model.py")
    library = Path(llm_trainer.__file__).parent
    with (
        translated(session.destination),
        _default_store(session.destination.uri),
        mlflow.start_run(run_id=session.run_id, log_system_metrics=False),
    ):
        mlflow.pyfunc.log_model(
            name=MODEL_NAME,
            python_model=str(script),
            artifacts={MODEL_NAME: str(model_dir.resolve())},
            code_paths=[str(library)],
            signature=signature,
            pip_requirements=_requirements(),
            tags={DIGEST_TAG: entry["digest"]},
        )


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Make `uri` mlflow's store in the body: a process-wide setting, which it also exports."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None takes the setting back


def _requirements() -> list[str]:
    found = []
    for name in REQUIREMENTS:
        try:
            # a local part such as +cpu names a build that no index offers under that number
            found.append(f"{name}=={metadata.version(name).split('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return found
