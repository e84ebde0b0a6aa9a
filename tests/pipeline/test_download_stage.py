"""Stage download as a user runs it: its outputs, its one line for each mistake, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_trainer.data.raw import RawCorpus
from pipeline.download import compare
from tests.hub_server import HubServer
from tests.test_layers import ROOT


def write_params(folder: Path, **data: Any) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump({"data": data, "packing": {}}))


def download(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.download"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def metrics_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "metrics/download.json").read_text())
    return values


def test_the_default_corpus(tmp_path: Path) -> None:
    write_params(tmp_path, dataset_name="python-stdlib")
    done = download(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("python-stdlib: ")
    assert len(done.stdout.splitlines()) == 1  # no git here, so nothing to compare with
    corpus, metrics = RawCorpus(tmp_path / "data/raw"), metrics_of(tmp_path)
    assert metrics["raw_digest"] == corpus.digest
    assert metrics["python_version"] == ".".join(map(str, sys.version_info[:3]))
    assert metrics["validation_documents"] == corpus.num_documents("validation") >= 20
    assert metrics["validation_bytes"] >= 300_000
    assert {"train_documents", "train_bytes", "seconds", "megabytes_per_second"} <= metrics.keys()
    assert "runtime" not in json.dumps(corpus.manifest)
    assert str(tmp_path) not in json.dumps(corpus.manifest)


def test_ten_thousand_json_lines(tmp_path: Path) -> None:
    with open(tmp_path / "own.jsonl", "w") as file:
        for number in range(10_500):
            file.write(json.dumps({"body": f"document {number}\n" * 3}) + "\n")
    write_params(tmp_path, train_file="own.jsonl", text_column="body")
    done = download(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = metrics_of(tmp_path)
    assert metrics["train_documents"] + metrics["validation_documents"] == 10_500
    assert metrics["dataset_name"] == "local files"
    first = next(RawCorpus(tmp_path / "data/raw").iter_documents("train"))
    assert first.source.startswith("own.jsonl:")


def test_a_folder_of_texts_with_a_validation_file(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "texts" / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / f"{number % 3}" / f"{number}.txt").write_text(f"text {number}\n")
    (tmp_path / "held out.md").write_text("text 7\n")
    write_params(tmp_path, train_file="texts", validation_file="held out.md")
    done = download(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = metrics_of(tmp_path)
    assert (metrics["train_documents"], metrics["validation_documents"]) == (29, 1)
    assert metrics["dropped_in_validation_documents"] == 1


def test_a_data_set_of_a_hub(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"line {n}"}).encode() + b"\n" for n in range(500))
    with HubServer({"someone/lines": {"train.jsonl": lines}}) as hub:
        write_params(tmp_path, dataset_name="someone/lines", dataset_config=None, streaming=True)
        done = download(tmp_path, **hub.environment(tmp_path / "home"))
        assert done.returncode == 0, done.stderr
        metrics = metrics_of(tmp_path)
        assert metrics["revision"] == hub.commit("someone/lines")
    assert metrics["train_documents"] + metrics["validation_documents"] == 500
    assert metrics["validation_documents"] > 0
    # one line about the missing validation split, and nothing from the libraries
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("content", "settings", "parts"),
    [
        (None, {}, ["own.jsonl", "no such file"]),
        (b"", {}, ["own.jsonl is empty"]),
        (b"\n\n", {}, ["own.jsonl: the file has no records"]),
        (b'{"text": " "}\n', {}, ["the corpus is empty"]),
        (b'{"text": "a"}\n', {}, ["one document", "data.max_document_bytes"]),
        (b'{"text": 1}\n', {"on_bad_line": "skip", "max_bad_lines": 0}, ["number 1 and", "is 0"]),
        (
            b'{"text": "a"}\n{"text": "b"}\n',
            {"validation_fraction": 1e-9},
            ["of 2 documents none fell to validation", "would give it some"],
        ),
        (b'{"text": "a"}\n', {"validation_file": "own.jsonl"}, ["in both data.train_file and"]),
        (b'{"text": "a"}\n{"text": 3}\n', {}, ["own.jsonl:2", "a number, not text: 3"]),
        (b'{"text": "a"}\n', {"text_column": "body"}, ["own.jsonl:1", "no key 'body'"]),
        (b'{"text": "a"}\n', {"max_documents": "x"}, ["max_documents", "whole number"]),
        (b'{"text": "a"}\n', {"txt_column": "x"}, ["txt_column", "did you mean 'text_column'"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, content: bytes | None, settings: dict[str, Any], parts: list[str]
) -> None:
    if content is not None:
        (tmp_path / "own.jsonl").write_bytes(content)
    write_params(tmp_path, train_file="own.jsonl", **settings)
    started = time.monotonic()
    done = download(tmp_path)
    assert time.monotonic() - started < 20
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: download: ")
    for part in parts:
        assert part in done.stderr
    assert not (tmp_path / "data/raw").exists()
    assert not (tmp_path / "metrics").exists()


def test_another_corpus_than_the_committed_one_is_said_in_one_line(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    write_params(tmp_path, dataset_name="python-stdlib", validation_fraction=0.5)
    git("init")
    assert len(download(tmp_path).stdout.splitlines()) == 1  # nothing committed
    git("add", "metrics")
    git("commit", "-m", "reference")
    assert len(download(tmp_path).stdout.splitlines()) == 1  # the same corpus
    reference = metrics_of(tmp_path) | {"python_version": "3.99.1", "raw_digest": "0" * 64}
    (tmp_path / "metrics/download.json").write_text(json.dumps(reference))
    git("commit", "-a", "-m", "reference of another Python")
    done = download(tmp_path)
    assert done.returncode == 0
    note = done.stdout.splitlines()[1]
    assert "differs from the committed one" in note
    assert "3.99.1" in note
    assert f"Python {metrics_of(tmp_path)['python_version']}," in note


def test_what_is_compared() -> None:
    here = {"dataset_name": "python-stdlib", "python_version": "3.11.7", "raw_digest": "a"}
    assert compare(here, {}) is None
    assert compare(here, here) is None
    assert compare(here, here | {"dataset_name": "other", "raw_digest": "b"}) is None
    assert compare({"dataset_name": "x", "raw_digest": "a"}, here) is None
    assert "both are of Python 3.11.7" in (compare(here, here | {"raw_digest": "b"}) or "")
    other = compare(here, here | {"raw_digest": "b", "python_version": "3.13.0"})
    assert "Python 3.11.7, and that one of Python 3.13.0" in (other or "")
