"""Data sets of a hub on loopback, through the real `datasets`, streamed and downloaded.

`datasets` takes seconds to import and reads its environment once, so one process runs all cases of
an environment, and the tests look at what it reported.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_trainer.data.hub import HOMES
from tests.hub_server import Handler, HubServer
from tests.test_layers import ROOT

RUN = """
import json, logging, sys
from llm_trainer.config import SourceConfig
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.sources import iter_placed, open_source
from llm_trainer.exceptions import LLMTrainerError

class Kept(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())

logging.getLogger("llm_trainer").addHandler(Kept())
logging.getLogger("llm_trainer").setLevel("INFO")
for name, settings in json.loads(sys.stdin.read()).items():
    logged, found, ledger = [], [], Ledger("test")
    try:
        config = SourceConfig(**settings)
        source = open_source(config)
        for placed in iter_placed(source, config, ledger):
            found.append((placed.split, placed.document.text, placed.document.source))
            ledger.give_out(1, len(placed.data))
        ledger.check()
        answer = {"found": found, "origin": source.origin, "ledger": ledger.to_dict()}
    except LLMTrainerError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps({"name": name, "logged": logged, **answer}))
"""


def parquet(texts: list[str | None], **more: list[int]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(
        pa.table({"text": pa.array(texts, pa.string()), **more}), stream, row_group_size=700
    )
    return stream.getvalue()


def jsonl(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


WIKI_CARD = b"""---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: train, path: wikitext-2-raw-v1/train-*}
  - {split: validation, path: wikitext-2-raw-v1/validation-*}
- config_name: wikitext-103-raw-v1
  data_files:
  - {split: train, path: wikitext-103-raw-v1/train-*}
  - {split: validation, path: wikitext-103-raw-v1/validation-*}
---
"""
TRAIN = ["" if n % 5 == 0 else f" Line {n} of the na\u00efve text .\r\n" for n in range(1500)]
VALIDATION = ["", " Another text .\n", TRAIN[7], " = Heading = \n"]
LINES = [{"text": f"line {n}", "number": n} for n in range(600)]
REPOSITORIES = {
    "Salesforce/wikitext": {
        "README.md": WIKI_CARD,
        "wikitext-2-raw-v1/train-00000-of-00002.parquet": parquet(TRAIN[:1000]),
        "wikitext-2-raw-v1/train-00001-of-00002.parquet": parquet(TRAIN[1000:]),
        "wikitext-2-raw-v1/validation-00000-of-00001.parquet": parquet(VALIDATION),
        "wikitext-103-raw-v1/train-00000-of-00001.parquet": parquet(["other config", "b"]),
        "wikitext-103-raw-v1/validation-00000-of-00001.parquet": parquet(["its validation"]),
    },
    "someone/lines": {"train.jsonl": jsonl(LINES)},
    "someone/holes": {
        "train.parquet": parquet(["a", None, "b"], number=[1, 2, 3]),
        "validation.parquet": parquet(["c"], number=[1]),
    },
    "someone/gaps": {
        "train.jsonl": jsonl([*LINES[:3], {"number": 3}, {"text": None, "number": 4}]),
        "validation.jsonl": jsonl([{"text": "v", "number": 1}]),
    },
    "someone/broken": {"train.parquet": b"PAR1" + b"\x00" * 50 + b"PAR1"},
    "someone/script": {"script.py": b"raise SystemExit('never run')", "train.jsonl": jsonl(LINES)},
    "someone/pictures": {"readme.bin": b"\x00"},
    "someone/short": {"train.jsonl": jsonl(LINES)},
    "someone/changed": {"train.jsonl": jsonl(LINES)},
    "someone/redirected": {"train.jsonl": jsonl(LINES)},
}


class Faulty(Handler):
    """A hub behind a proxy that cuts off, changes and redirects."""

    def send_file(self, repository: str, path: str) -> None:
        content = self.hub.repositories[repository].get(path, b"")
        headers = {"ETag": '"1"', "X-Repo-Commit": self.hub.commit(repository)}
        if (repository, path) == ("someone/short", "train.jsonl"):
            self.send(200, headers, content[: len(content) // 2])
        elif (repository, path) == ("someone/changed", "train.jsonl"):
            self.send(200, headers, content.replace(b"line", b"lime"))
        elif (repository, path) == ("someone/redirected", "train.jsonl"):
            self.send(302, {**headers, "Location": "http://192.0.2.1/train.jsonl"}, b"")
        else:
            super().send_file(repository, path)


LINES_OF = {"dataset_name": "someone/lines", "validation_fraction": 0.2}
WIKITEXT = {"dataset_name": "wikitext", "dataset_config": "wikitext-2-raw-v1"}
CASES: dict[str, dict[str, Any]] = {
    "wikitext": WIKITEXT,
    "wikitext streamed": WIKITEXT | {"streaming": True},
    "wikitext default": {},
    "lines": LINES_OF,
    "lines streamed": LINES_OF | {"streaming": True},
    "lines some": LINES_OF | {"streaming": True, "max_documents": 25},
    "lines sliced": LINES_OF | {"dataset_split": "train[:90%]", "validation_split": "train[90%:]"},
    "holes": {"dataset_name": "someone/holes"},
    "holes skipped": {"dataset_name": "someone/holes", "on_bad_line": "skip"},
    "gaps": {"dataset_name": "someone/gaps"},
    "gaps streamed": {"dataset_name": "someone/gaps", "streaming": True, "on_bad_line": "skip"},
    "no data set": {"dataset_name": "someone/nothing"},
    "no config": WIKITEXT | {"dataset_config": "wikitext-3"},
    "config missing": WIKITEXT | {"dataset_config": None},
    "no split": LINES_OF | {"dataset_split": "training"},
    "same split": LINES_OF | {"validation_split": "train"},
    "slice streamed": LINES_OF | {"dataset_split": "train[:10]", "streaming": True},
    "no column": LINES_OF | {"text_column": "body"},
    "not text": LINES_OF | {"text_column": "number"},
    "not text streamed": LINES_OF | {"text_column": "number", "streaming": True},
    "no revision": LINES_OF | {"revision": "v9"},
    "broken": {"dataset_name": "someone/broken"},
    "script": {"dataset_name": "someone/script"},
    "pictures": {"dataset_name": "someone/pictures"},
    "folder": {"dataset_name": "tests"},
    "traversal": {"dataset_name": "../tests"},
    "url": {"dataset_name": "https://me:hush@example.invalid/data"},
    "short": LINES_OF | {"dataset_name": "someone/short"},
    "changed": LINES_OF | {"dataset_name": "someone/changed"},
    "redirected": LINES_OF | {"dataset_name": "someone/redirected"},
}


def run(cases: dict[str, dict[str, Any]], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=ROOT, env={**os.environ, **environment},
        input=json.dumps(cases), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["name"] for answer in answers] == list(cases), done.stdout
    return {answer["name"]: answer for answer in answers}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(home: Path) -> Iterator[HubServer]:
    with HubServer(REPOSITORIES, Faulty) as server:
        yield server


@pytest.fixture(scope="module")
def answers(hub: HubServer, home: Path) -> dict[str, Any]:
    return run(CASES, hub.environment(home))


def sides(answer: dict[str, Any]) -> dict[str, list[str]]:
    assert "found" in answer, answer
    return {
        split: [text for side, text, _ in answer["found"] if side == split]
        for split in ("train", "validation")
    }


@pytest.mark.parametrize("name", ["wikitext", "wikitext streamed"])
def test_an_old_name_with_its_own_validation_set(
    answers: dict[str, Any], hub: HubServer, name: str
) -> None:
    answer = answers[name]
    assert answer["logged"] == ["data set wikitext is now at Salesforce/wikitext"]
    assert sides(answer) == {
        "train": [text for text in TRAIN if text and text != TRAIN[7]],
        "validation": [text for text in VALIDATION if text],
    }
    assert answer["found"][0][2] == "Salesforce/wikitext/validation:2"
    assert answer["found"][-1][2] == "Salesforce/wikitext/train:1500"
    assert len({source for _, _, source in answer["found"]}) == len(answer["found"])
    assert answer["origin"] == {
        "kind": "hub", "dataset_config": "wikitext-2-raw-v1", "train_split": "train",
        "validation_split": "validation", "revision": hub.commit("Salesforce/wikitext"),
    }  # fmt: skip
    dropped = {reason: count["documents"] for reason, count in answer["ledger"]["dropped"].items()}
    assert dropped == {"empty": 301, "in_validation": 1}


def test_the_default_configuration_is_wikitext_103(answers: dict[str, Any]) -> None:
    assert sides(answers["wikitext default"]) == {
        "train": ["other config", "b"], "validation": ["its validation"],
    }  # fmt: skip


def test_without_a_validation_split_documents_are_cut_by_hash(answers: dict[str, Any]) -> None:
    both = sides(answers["lines"])
    assert sorted(both["train"] + both["validation"]) == sorted(line["text"] for line in LINES)
    assert 60 < len(both["validation"]) < 180
    assert sides(answers["lines streamed"]) == both
    assert sides(answers["lines some"])["train"] == both["train"][:25]
    config, split = answers["lines"]["logged"]
    assert config == "dataset_config wikitext-103-raw-v1 is WikiText's; someone/lines has its own"
    assert split.startswith("someone/lines has no split 'validation' (it has train): 0.2 of")


def test_parts_of_a_split(answers: dict[str, Any]) -> None:
    both = sides(answers["lines sliced"])
    texts = [line["text"] for line in LINES]
    assert both == {"train": texts[:540], "validation": texts[540:]}


def test_missing_text_is_an_error_or_skipped(answers: dict[str, Any]) -> None:
    assert "someone/holes/train:2: 'text' is null" in answers["holes"]["error"]
    assert sides(answers["holes skipped"])["train"] == ["a", "b"]
    # a missing key of a JSON line comes as null out of `datasets`
    assert "someone/gaps/train:4: 'text' is null" in answers["gaps"]["error"]
    assert sides(answers["gaps streamed"])["train"] == ["line 0", "line 1", "line 2"]
    assert answers["gaps streamed"]["ledger"]["dropped"]["bad_type"]["documents"] == 2


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("no data set", ["someone/nothing", "doesn't exist", "data.dataset_name"]),
        ("no config", ["wikitext-3", "wikitext-103-raw-v1", "data.dataset_config"]),
        ("config missing", ["wikitext-103-raw-v1", "data.dataset_config"]),
        ("no split", ["no split 'training'", "one of train"]),
        ("same split", ["validation_split: 'train' is the training split too"]),
        ("slice streamed", ["'train[:10]'", "data.streaming: false", "data.max_documents"]),
        ("no column", ["no column 'body'", "'text', 'number'", "data.text_column"]),
        ("not text", ["'number' holds int64, not text"]),
        ("not text streamed", ["'number' holds int64, not text"]),
        ("no revision", ["'v9'", "data.revision"]),
        ("broken", ["someone/broken: cannot be read (OSError"]),
        ("script", ["needs code from the hub", "refs/convert/parquet"]),
        ("pictures", ["someone/pictures: "]),
        ("folder", ["'tests'", "data.train_file"]),
        ("traversal", ["'../tests'", "data.train_file"]),
        ("url", ["'https://example.invalid/data'", "data.train_file"]),
        ("short", ["someone/short/train.jsonl: ", "bytes, but the hub lists", "same command"]),
        ("changed", ["someone/changed/train.jsonl: other content than the hub lists"]),
        ("redirected", ["http://192.0.2.1: would be read without encryption"]),
    ],
)
def test_what_cannot_be_had_is_named(answers: dict[str, Any], name: str, parts: list[str]) -> None:
    answer = answers[name]
    assert answer.get("kind") == "DataError", answer
    for part in parts:
        assert part in answer["error"]
    assert "\n" not in answer["error"]


def test_a_pinned_commit_is_what_is_read(
    answers: dict[str, Any], hub: HubServer, home: Path
) -> None:
    """And offline, what is in the cache is used, if it is that commit."""
    commit = hub.commit("someone/lines")
    cases = {
        "pinned": LINES_OF | {"revision": commit},
        "other": LINES_OF | {"revision": "0" * 40},
    }
    assert run(cases, hub.environment(home))["pinned"]["origin"]["revision"] == commit
    before = len(hub.requests)
    cases |= {"branch": LINES_OF, "gone": {"dataset_name": "someone/nothing"}}
    offline = run(cases, hub.environment(home) | {"HF_HUB_OFFLINE": "1"})
    assert len(hub.requests) == before
    assert sides(offline["pinned"]) == sides(offline["branch"]) == sides(answers["lines"])
    assert offline["branch"]["origin"]["revision"] == commit
    assert f"the cache has commit {commit}, not" in offline["other"]["error"]
    assert "HF_HUB_OFFLINE" in offline["gone"]["error"]
    assert "data.train_file" in offline["gone"]["error"]


def test_names_of_old_are_bare_and_their_homes_are_not() -> None:
    assert all("/" not in name and name == name.lower() for name in HOMES)
    assert all(home.count("/") == 1 for home in HOMES.values())
