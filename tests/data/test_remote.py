"""Object stores and web servers: the text of local files, from few bytes, through faults."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import sys
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

pytest.importorskip("s3fs", reason="needs the extra s3: pip install -e '.[s3]'")
pytest.importorskip("moto", reason="the object store of the tests: pip install -e '.[dev]'")

from llm_trainer.config import SourceConfig
from llm_trainer.data import remote_file, streams, units
from llm_trainer.data.intake import Intake
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.local_files import open_local
from llm_trainer.data.prepare import source_digest
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.exceptions import ConfigurationError, DataError, MissingDependencyError
from tests.data.object_store import KEY, SECRET, Store, object_store
from tests.data.raw_corpora import random_texts
from tests.data.sources import csv_bytes, jsonl, read, texts


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with object_store() as running:
        yield running


@pytest.fixture
def store(module_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """The store, with nothing of the user's own environment."""
    import fsspec

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", module_store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(remote_file, "FIRST_PAUSE", 0.01)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    module_store.faults.clear()
    module_store.log.clear()
    return module_store


TEXTS = [f"{number} {text}" for number, text in enumerate(random_texts(3, 200, 50))]


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", 5000)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 5000)


def test_every_kind_of_file_and_globs_and_folders(store: Store, tmp_path: Path) -> None:
    files = {
        "kinds/a.jsonl": jsonl(TEXTS[:50]),
        "kinds/b.jsonl.gz": gzip.compress(jsonl(TEXTS[50:90])),
        "kinds/deep/c.jsonl.zst": zstandard.compress(jsonl(TEXTS[90:120])),
        "kinds/deep/d.csv": csv_bytes(TEXTS[120:150]),
        "kinds/e.txt": TEXTS[150].encode(),
        "kinds/.hidden.txt": b"hidden",
        "kinds/picture.png": b"png",
    }
    for name, data in files.items():
        store.put(name, data)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert texts("s3://texts/kinds") == texts("s3://texts/kinds/") == texts(tmp_path / "kinds")
    assert [document.source for document in read("s3://texts/kinds/*.jsonl")] == [
        f"s3://texts/kinds/a.jsonl:{line}" for line in range(1, 51)
    ]
    everywhere = texts("s3://texts/kinds/**/*.zst")
    assert everywhere == texts(["s3://texts/kinds/deep/c.jsonl.zst"] * 2) == TEXTS[90:120]
    mixed = [str(tmp_path / "kinds/e.txt"), "s3://texts/kinds/deep/d.csv"]
    assert texts(mixed) == [TEXTS[150], *TEXTS[120:150]]


def test_a_part_of_a_parquet_file_costs_no_more_than_the_part(store: Store) -> None:
    chance = random.Random(0)
    noise = [chance.randbytes(2000).hex() for _ in range(300)]
    table = pa.table({"text": noise, "other": noise[::-1]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=30, compression="none", use_dictionary=False)
    data = sink.getvalue().to_pybytes()
    address = store.put("t.parquet", data)
    assert texts(address) == noise
    fetched = sum(size for method, _, size in store.log if method == "GET")
    assert fetched < 0.7 * len(data)  # the other column stays where it is
    store.log.clear()
    found = open_local(SourceConfig(train_file=address)).train_files
    assert found is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_BYTES", 300_000)
        parts = [unit.parts[0] for unit in units.list_units(found)]
    assert len(parts) == 10
    assert sum(size for method, _, size in store.log if method == "GET") < 0.1 * len(data)
    store.log.clear()
    documents = units.iter_part(parts[3], Intake(SourceConfig(), Ledger("test")))
    assert [(d.text, d.source) for d in documents] == [
        (noise[row], f"{address}:{row + 1}") for row in range(90, 120)
    ]
    assert sum(size for method, _, size in store.log if method == "GET") < 0.25 * len(data)


@pytest.mark.parametrize("fault", ["cut", "short", "503"])
def test_passing_faults_are_overcome(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    small_blocks(monkeypatch)
    address = store.put("f.jsonl", jsonl(TEXTS))
    store.faults += [fault, fault, "", fault]
    assert texts(address) == TEXTS
    assert not store.faults


def test_a_store_that_keeps_cutting_answers_is_an_error(store: Store) -> None:
    address = store.put("g.jsonl", jsonl(TEXTS))
    for name in ("g.jsonl", "g.jsonl.gz", "g.jsonl.zst"):
        address = store.put(name, jsonl(TEXTS))
        store.faults += ["short"] * 5
        with pytest.raises(DataError, match=rf"{name}: bytes 0 to .* in 5 tries"):
            texts(address)


def test_what_changes_while_it_is_read_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    address = store.put("h.jsonl", jsonl(TEXTS))
    config = SourceConfig(train_file=address, validation_fraction=0.2)
    before = source_digest(config)
    source = open_local(config)
    documents = source.train(Intake(config, Ledger("test")))
    next(documents)
    store.put("h.jsonl", jsonl(TEXTS[::-1]))
    with pytest.raises(DataError, match=r"h\.jsonl: changed while it was read"):
        list(documents)
    with pytest.raises(DataError, match=r"h\.jsonl: changed while it was read"):
        list(source.train(Intake(config, Ledger("test"))))
    assert source_digest(config) != before
    assert open_local(config).origin["remote_digest"] != source.origin["remote_digest"]


def test_what_is_written_tells_no_secret(store: Store, tmp_path: Path) -> None:
    config = SourceConfig(train_file=store.put("i.jsonl", jsonl(TEXTS)), validation_fraction=0.2)
    metrics = build_raw(config, tmp_path / "raw", progress=False)
    written = json.dumps(RawCorpus(tmp_path / "raw").manifest) + json.dumps(metrics)
    assert KEY not in written
    assert SECRET not in written
    assert store.endpoint not in written


def test_mistakes_are_named_with_their_remedy(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problem(entry: str) -> str:
        try:
            open_local(SourceConfig(train_file=entry))
        except (DataError, ConfigurationError) as error:
            return str(error)
        raise AssertionError(entry)

    for secret in (
        "s3://KEY:hunter2@texts/a.jsonl",
        "https://example.com/a.jsonl?X-Amz-Signature=hunter2",
    ):
        message = problem(secret)
        assert "holds a password" in message
        assert "hunter2" not in message
    assert "data.train_file: nothing is at s3://texts/gone" in problem("s3://texts/gone/*.txt")
    assert "s3://texts/gone.txt" in problem("s3://texts/gone.txt")
    assert "no such file, bucket" in problem("s3://nobucket/gone.txt")
    assert "alone between two slashes" in problem("s3://texts/**.txt")
    assert "ftp://" in problem("ftp://host/a.txt")
    assert "not read; use one of s3://" in problem("simplecache::s3://texts/a.txt")
    assert "without encryption" in problem("http://example.com/a.jsonl")
    store.put("bad/a.json", b"[]")
    assert "one object a line" in problem("s3://texts/bad/a.json")
    store.put("bad/empty.txt", b"")
    assert "empty.txt is empty" in problem("s3://texts/bad/empty.txt")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install -e '\.\[s3\]'"):
        open_local(SourceConfig(train_file="s3://texts/a.jsonl"))


def test_missing_credentials_and_a_store_that_is_not_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = store.put("j.jsonl", jsonl(TEXTS))
    import fsspec

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(DataError, match=r"j\.jsonl: access was refused .*AWS_ACCESS_KEY_ID"):
        open_local(SourceConfig(train_file=address))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(DataError, match=r"j\.jsonl: cannot be read .*127.*AWS_ENDPOINT_URL"):
        open_local(SourceConfig(train_file=address))
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read .*check the network"):
        open_local(SourceConfig(train_file="https://127.0.0.1:9/a.jsonl"))
    for scheme, package in (("gs", "gcsfs"), ("abfs", "adlfs")):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(
                MissingDependencyError, match=rf"{scheme}://.*pip install {package}"
            ):
                open_local(SourceConfig(train_file=f"{scheme}://texts/a.jsonl"))


# --------------------------------------------------------------------------- web servers


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/away.jsonl":
            self.send_response(302)
            self.send_header("Location", "http://example.com/a.jsonl")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        place = Path(self.directory, self.path.strip("/"))
        if not place.exists():
            self.send_error(404)
            return
        data = place.read_bytes()
        start, stop = 0, len(data)
        if (wanted := self.headers.get("Range")) and self.server.ranges:  # type: ignore[attr-defined]
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(len(data), int(last) + 1)
        self.send_response(200 if stop - start == len(data) else 206)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("ETag", f'"{self.server.tag}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:stop])

    do_HEAD = do_GET


def test_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "FIRST_PAUSE", 0.01)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))

    def handler(*arguments: object) -> _Files:
        return _Files(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        server.tag, server.ranges = "one", True  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        small_blocks(monkeypatch)
        assert texts(f"{base}/a.jsonl.gz") == TEXTS
        with pytest.raises(DataError, match=r"redirects to example\.com without encryption"):
            texts(f"{base}/away.jsonl")
        with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
            texts(f"{base}/gone.jsonl")
        (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS))
        config = SourceConfig(train_file=f"{base}/b.jsonl")
        documents = open_local(config).train(Intake(config, Ledger("test")))
        next(documents)
        server.tag = "two"  # type: ignore[attr-defined]
        with pytest.raises(DataError, match=r"b\.jsonl: changed while it was read"):
            list(documents)
        server.ranges = False  # type: ignore[attr-defined]
        with pytest.raises(DataError, match=r"b\.jsonl: .*cannot send parts of a file"):
            texts(f"{base}/b.jsonl")
        server.shutdown()
