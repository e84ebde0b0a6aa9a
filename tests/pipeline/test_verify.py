"""`python -m pipeline.verify`: what is equal is said to be, and what differs is named."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llm_trainer.config import TrainingConfig
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME, write_manifest
from llm_trainer.tokenizer.bpe import BPETokenizer
from pipeline import verify
from pipeline.lock import directory_md5
from pipeline.trial import Result
from pipeline.verify import compare
from tests.pipeline.small_project import make_project, save_untrained
from tests.pipeline.workspace import command

CHAIN = {
    "train_tokenizer": (["data/raw"], ["models/tokenizer"]),
    "pack_sequences": (["data/raw", "models/tokenizer"], ["data/packed"]),
    "train": (["data/packed", "models/tokenizer"], ["models/final"]),
    "evaluate": (["models/final"], ["plots/samples", "metrics/evaluate.json"]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the pipeline leaves it."""
    path = make_project(tmp_path_factory.mktemp("verify") / "project")
    tokenizer = BPETokenizer.from_pretrained(path / "models/tokenizer")
    save_untrained(path, tokenizer, training=TrainingConfig())
    write_json(path / "plots/samples/samples.json", [])
    write_json(path / "metrics/evaluate.json", {"bits_per_byte": 1.5})
    lock(path)
    return path


def lock(path: Path) -> None:
    """Write dvc.lock, as DVC would after running everything."""

    def entry(name: str) -> dict[str, str]:
        place = path / name
        if place.is_dir():
            return {"path": name, "md5": directory_md5(place)}
        return {"path": name, "md5": hashlib.md5(place.read_bytes()).hexdigest()}

    stages = {
        stage: {"deps": [*map(entry, deps)], "outs": [*map(entry, outs)]}
        for stage, (deps, outs) in CHAIN.items()
    }
    (path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "project")
    return tmp_path / "project"


def states(project: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, str]:
    """Name of each line -> the line."""
    with contextlib.chdir(project):
        if code:
            with pytest.raises(SystemExit) as ended:
                verify.main([])
            assert ended.value.code == code
        else:
            verify.main([])
    printed = capsys.readouterr().out
    return {line[9:31].strip(): line for line in printed.splitlines()}


def test_an_untouched_project_is_equal_throughout(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = states(finished, capsys)
    assert {line.split()[0] for line in found.values()} == {"equal", "note"}
    assert [name for name, line in found.items() if line.startswith("note")] == ["machine"]
    assert set(found) >= {
        "model", "params", "packed rows", "raw text", "tokenizer files", "rows, tokenizer",
        "rows, text", "ledgers", "stage train_tokenizer", "stage pack_sequences", "stage train",
        "stage evaluate",
    }  # fmt: skip
    assert "16 documents" in found["ledgers"]


def flip(name: str) -> Callable[[Path], None]:
    def change(project: Path) -> None:
        path = project / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))

    return change


def edit_books(project: Path) -> None:
    """A manifest of right form whose ledger hides a lost document; the files are untouched."""
    path = project / "data/raw" / MANIFEST_NAME
    manifest = read_json(path)
    manifest["ledger"]["in"]["documents"] += 1
    write_json(path, manifest)


def another_tokenizer(project: Path) -> None:
    tokenizer = BPETokenizer()
    tokenizer.train(["another text of the same project " * 20], 270)
    tokenizer.save_pretrained(project / "models/tokenizer")


def another_text(project: Path) -> None:
    manifest = read_json(project / "data/raw" / MANIFEST_NAME)
    for path in (project / "data/raw").glob("*.parquet"):
        path.write_bytes(path.read_bytes() + b" ")
    kept = {name: manifest[name] for name in ("splits", "ledger", "origin")}
    write_manifest(project / "data/raw", "raw", **kept)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (flip("data/raw/train-00000.parquet"), {"raw text", "stage pack_sequences"}),
        (flip("data/packed/train-00000.arrow"), {"packed rows", "stage train"}),
        (flip("models/tokenizer/tokenizer.json"), {"tokenizer", "tokenizer files"}),
        (flip("models/final/model.safetensors"), {"model", "stage train", "stage evaluate"}),
        (flip("models/final/tokenizer/tokenizer.json"), {"model"}),
        (flip("plots/samples/samples.json"), {"stage evaluate"}),
        (flip("metrics/evaluate.json"), {"stage evaluate"}),
        (edit_books, {"ledgers"}),
        (another_tokenizer, {"tokenizer", "rows, tokenizer", "stage train_tokenizer"}),
        (another_text, {"raw text", "rows, text", "stage train_tokenizer"}),
    ],
    ids=[
        "raw", "rows", "tokenizer", "weights", "model's tokenizer", "samples", "figures", "books",
        "another tokenizer", "another text",
    ],
)  # fmt: skip
def test_what_differs_is_named(
    project: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None],
    wanted: set[str],
) -> None:  # fmt: skip
    change(project)
    found = states(project, capsys, code=1)
    assert {name for name, line in found.items() if line.startswith("differs")} >= wanted


def test_damaged_records_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "dvc.lock").write_text("stages: [")
    (project / "models/final/lineage.json").write_text("{}")
    found = states(project, capsys, code=1)
    assert "dvc.lock: not readable" in found["dvc.lock"]
    assert "lineage.json: not a lineage file" in found["model"]
    assert found["packed files"].startswith("equal")


def test_what_was_not_fetched_is_absent_and_no_failure(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project / "data")
    found = states(project, capsys)
    absent = {name for name, line in found.items() if line.startswith("absent")}
    assert absent >= {"packed rows", "raw text", "stage train", "stage pack_sequences"}


def test_what_bits_depend_on_is_a_note(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = {
        "machine_torch": "2.13.0+cpu", "machine_threads": 64, "machine_python": "3.11.1",
        "machine_cpu_capability": "AVX1024, AMX-BF16",
    }  # fmt: skip
    write_json(project / "metrics/benchmark.json", machine)
    note = states(project, capsys)["machine"]
    assert note.startswith("note ")
    assert "threads 64 there, 1 here" in note
    assert "instructions AVX1024 there" in note
    assert "Python 3.11.1 there" in note
    # what a checkpoint of the run says comes first
    state = project / ".checkpoints" / ("f" * 64) / "checkpoint-10/state.json"
    environment = {"torch": "2.13.0", "threads": 3, "device_name": "AVX2"}
    write_json(state, {"environment": environment})
    assert "the run's checkpoint: threads 3" in states(project, capsys)["machine"].replace(
        "torch 2.13.0 there, ", ""
    )


def test_runs_that_are_not_deterministic_are_said(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = BPETokenizer.from_pretrained(project / "models/tokenizer")
    save_untrained(project, tokenizer, training=TrainingConfig(deterministic=False))
    found = states(project, capsys, code=1)  # params.yaml has the default
    assert found["deterministic"].startswith("note")
    assert "training.deterministic False -> True" in found["params"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to verify: data/raw, "),
        (("--repeat",), "nothing to train on"),
        (("--steps", "2"), "must be at least 5"),
        (("--against", "absent.json"), "absent.json: file is missing"),
    ],
)
def test_wrong_use_is_told(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = command(tmp_path, "pipeline.verify", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def result(threads: int, digest: str, **environment: object) -> Result:
    return Result({"a": "1", "b": digest}, 10, {"threads": threads, **environment}, "f", 1.0)


def test_causes_are_named() -> None:
    assert compare("repeat", "2 runs", result(2, "x"), result(1, "x")).state == "equal"
    threads = compare("repeat", "2 runs", result(2, "x"), result(1, "y"))
    assert (threads.state, threads.detail) == ("differs", "2 runs: b differ; threads 2 -> 1")
    off = compare("r", "", result(2, "x", deterministic=False), result(2, "y", deterministic=False))
    assert "training.deterministic is off" in off.detail
    assert (
        "nothing that the project knows" in compare("r", "", result(1, "x"), result(1, "")).detail
    )


@pytest.mark.slow
def test_short_trainings_of_the_projects_own_model(project: Path) -> None:
    """For real: three trainings, of which one is killed, stopped, and ends in the same bytes."""
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    done = command(
        project, "pipeline.verify", "--repeat", "--interrupt", "--steps", "40",
        "--record", "digests.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line[9:31].strip(): line for line in done.stdout.splitlines()}
    assert "equal" in lines["repeat"]
    assert "after SIGKILL" in lines["interrupt"]
    assert "threads 1" in lines["bits depend on"]
    record = project / "digests.json"
    names = set(read_json(record)["digests"])
    assert names >= {"models/final/model.safetensors", "plots/train.csv"}
    assert any(name.endswith("optimizer.safetensors") for name in names)
    # nothing else was written
    after = {p: p.read_bytes() for p in project.rglob("*") if p.is_file() and p != record}
    assert {p.name for p in after if p not in before or after[p] != before[p]} <= {"log"}


def test_another_machines_digests_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    there = verify._record(result(8, "x"), 20)
    assert verify._compare_record(path, there, verify._record(result(1, "x"), 20)).state == "equal"
    differs = verify._compare_record(path, there, verify._record(result(1, "y"), 20))
    assert differs.state == "differs"
    assert differs.detail == f"{path}: b differ; threads 8 -> 1"
    other = verify._compare_record(path, {**there, "fingerprint": "g"}, there)
    assert "params, packed rows, tokenizer or code differ (g -> f)" in other.detail
    with pytest.raises(ConfigurationError, match="is of 20 steps; give --steps 20"):
        verify._compare_record(path, there, verify._record(result(1, "x"), 30))


def test_a_record_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"format": 1, "steps": "many"}')
    with pytest.raises(ConfigurationError, match="not a record of format 1"):
        verify._read_record(path)
