"""`python -m pipeline.lineage`: every link matches, or is named when it differs or is absent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_trainer.exceptions import IntegrityError
from llm_trainer.training.lineage import read_lineage, write_lineage
from llm_trainer.training.tracking import RunTracking, run_directory
from llm_trainer.training.tracking.mlflow_sync import sync_run
from pipeline.lock import directory_md5, locked_md5
from tests.mlflow_store import empty_database_fixture  # noqa: F401
from tests.pipeline.workspace import FINGERPRINT, command, make_workspace


@pytest.fixture(name="place")
def place_fixture(tmp_path: Path) -> Path:
    make_workspace(tmp_path / "project")
    return tmp_path / "project"


def links(place: Path, *arguments: str, code: int = 0) -> dict[str, tuple[str, str]]:
    done = command(place, "pipeline.lineage", "--json", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return {
        link["name"]: (link["state"], link["detail"]) for link in json.loads(done.stdout)["links"]
    }


def test_all_links_of_a_fresh_model_match(place: Path) -> None:
    found = links(place)
    assert list(found) == [
        "model", "params", "code", "tokenizer", "packed rows", "raw text", "origin", "packages",
    ]  # fmt: skip
    assert {state for state, _ in found.values()} == {"matches"}
    done = command(place, "pipeline.lineage", "models/final")
    assert done.returncode == 0
    assert done.stdout.startswith("models/final: run 5eed5eed5eed\n")
    assert re.search(r"^  mlflow +no database yet", done.stdout, re.M)
    assert re.search(r"^  git +no commit's dvc.lock has this model$", done.stdout, re.M)


def edit_params(place: Path) -> None:
    path = place / "params.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.0001", "learning_rate: 0.002"))


def flip(path: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        data = bytearray((place / path).read_bytes())
        data[0] ^= 1
        (place / path).write_bytes(bytes(data))

    return change


def remake(place: Path) -> None:
    from llm_trainer.manifests import write_manifest

    (place / "data" / "packed" / "train-00000").write_text("another packing")
    write_manifest(place / "data" / "packed", "packed")


@pytest.mark.parametrize(
    ("change", "link", "detail"),
    [
        (edit_params, "params", "training.learning_rate 0.0001 -> 0.002"),
        (flip("code.py"), "code", "code.py"),
        (flip("models/final/model.safetensors"), "model", "content differs from the manifest"),
        (flip("data/raw/train-00000"), "raw text", "content differs from the manifest"),
        (remake, "packed rows", "data/packed is "),
        (flip("models/tokenizer/tokenizer.json"), "tokenizer", "models/tokenizer is "),
    ],
)
def test_what_differs_is_named(
    place: Path, change: Callable[[Path], None], link: str, detail: str
) -> None:
    change(place)
    found = links(place, code=1)
    assert [name for name, (state, _) in found.items() if state == "differs"] == [link]
    assert detail in found[link][1]


def test_what_is_absent_is_said_and_no_failure(place: Path) -> None:
    shutil.rmtree(place / "data")
    (place / "code.py").unlink()
    found = links(place)
    absent = [name for name, (state, _) in found.items() if state == "absent"]
    assert absent == ["code", "packed rows", "raw text"]


def test_another_python_is_said_and_no_failure(place: Path) -> None:
    lineage = read_lineage(place / "models" / "final")
    write_lineage(
        place / "models/elsewhere", fingerprint="ab", tokenizer_digest=lineage.tokenizer_digest,
        data={**lineage.data, "origin": {"kind": "python-stdlib", "python_version": "3.10.1"}},
        params=lineage.params, code=lineage.code, packages={"yaml-not-there": "1", "pytest": "0.1"},
    )  # fmt: skip
    done = command(place, "pipeline.lineage", "models/elsewhere", "--json")
    assert done.returncode == 1  # that directory has no manifest
    found = {link["name"]: link for link in json.loads(done.stdout)["links"]}
    assert found["origin"]["detail"].endswith("whose library is another corpus")
    assert not found["origin"]["counts"]
    assert "yaml-not-there is not installed here" in found["packages"]["detail"]


def test_no_model_and_no_lineage_are_wrong_input(place: Path) -> None:
    missing = command(place, "pipeline.lineage", "models/absent")
    assert missing.returncode == 2
    assert "models/absent: no such model directory" in missing.stderr
    (place / "models/final/lineage.json").write_text('{"format": 9}')
    wrong = command(place, "pipeline.lineage")
    assert wrong.returncode == 2
    assert "not a lineage file of format 1" in wrong.stderr


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"params": []}, {"extra": 1}, {"fingerprint": 3}]
)
def test_lineage_files_are_checked(place: Path, change: dict[str, Any]) -> None:
    path = place / "models" / "final" / "lineage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(IntegrityError, match="not a lineage file"):
        read_lineage(path)


def test_the_mlflow_run_is_found(place: Path, empty_database: Path) -> None:
    shutil.copyfile(empty_database, place / "mlflow.db")
    record = run_directory(place / ".checkpoints", FINGERPRINT)
    RunTracking.open(
        [], record, run_name="puny-name", experiment="llm-trainer", tracking_uri=None, root=place,
        params={}, tags={"fingerprint": FINGERPRINT}, datasets={},
    ).finish("FINISHED")  # fmt: skip
    run_id = sync_run(record, None, root=place).run_id
    done = command(place, "pipeline.lineage")
    assert done.returncode == 0, done.stderr
    assert f"run puny-name ({run_id}) in sqlite:////" in done.stdout


@pytest.mark.slow
def test_the_commit_with_the_model_is_found_by_dvcs_own_digest(place: Path) -> None:
    """Against DVC itself: its digest of the directory is ours, before and after a change."""

    def run(*arguments: str) -> str:
        return subprocess.run(
            arguments, cwd=place, check=True, capture_output=True, text=True
        ).stdout.strip()

    dvc = (sys.executable, "-m", "dvc")
    (place / ".gitignore").write_text("/models/final\n")
    stage = {"cmd": "true", "outs": ["models/final"]}
    (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    run("git", "init", "-q", "-b", "main")
    run(*dvc, "init", "-q")
    run(*dvc, "commit", "-f", "-q")
    locked = locked_md5(Path("models/final"), place / "dvc.lock")
    assert locked == directory_md5(place / "models" / "final")
    assert "in dvc.lock, which is not committed yet" in command(place, "pipeline.lineage").stdout
    run("git", "add", ".")
    run("git", "commit", "-q", "-m", "First model")
    first = run("git", "rev-parse", "HEAD")
    (place / "dvc.lock").write_text("stages: {}\n")
    run("git", "commit", "-q", "-a", "-m", "Another model")
    text = command(place, "pipeline.lineage").stdout
    assert re.search(rf"^  git +{first[:10]} \(main~1, [0-9-]+\): First model$", text, re.M)
    assert locked_md5(Path("models/final"), place / "absent.lock") is None
