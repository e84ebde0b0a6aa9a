"""Ray gives the bytes of the local engine, also when it loses a worker or a node in the middle."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("ray") is None:  # not imported: that would read the environment
    pytest.skip("needs the extra ray: pip install -e '.[ray]'", allow_module_level=True)

from llm_trainer.config import SourceConfig
from llm_trainer.config.data import PackingConfig
from llm_trainer.data import encode_ray, raw_file, raw_fill, ray_engine, units
from llm_trainer.data.chunks import Chunk, read_unit
from llm_trainer.data.encode import EncodedChunk, EncodeTask
from llm_trainer.data.engine import LOCAL, Engine
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus, build_raw
from llm_trainer.data.ray_engine import RayCluster, connect
from llm_trainer.data.sources import iter_placed, open_source
from llm_trainer.exceptions import ConfigurationError, DataError, LLMTrainerError
from llm_trainer.tokenizer import BPETokenizer
from tests.data.raw_corpora import random_texts, write_sources
from tests.data.ray_nodes import ENVIRONMENT, Nodes, two_nodes
from tests.data.sources import jsonl
from tests.data.test_raw_resume import stop_after
from tests.test_layers import ROOT


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Set before anything of Ray is used, since it reads some of it once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with (
        pytest.MonkeyPatch.context() as patch,
        two_nodes(temporary) as running,
        connect(Engine("ray", running.address)) as cluster,
    ):
        assert cluster.num_workers == 2

        @contextmanager
        def connected(engine: Engine) -> Iterator[RayCluster]:
            """One connection for all: each new one would start workers of its own."""
            assert engine.address == running.address
            yield RayCluster(engine.num_workers or 2)

        patch.setattr(ray_engine, "connect", connected)
        patch.setattr(encode_ray, "connect", connected)
        yield running
    shutil.rmtree(temporary)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units, files and row groups of little text; workers read whole units as chunks."""
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    monkeypatch.setattr(raw_file, "FILE_BYTES", 50_000)
    monkeypatch.setattr(raw_file, "GROUP_BYTES", 7_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    return folder


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def both(
    tmp_path: Path, config: SourceConfig, engine: Engine
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    build_raw(config, tmp_path / "local", progress=False)
    build_raw(config, tmp_path / "ray", progress=False, engine=engine)
    return content(tmp_path / "local"), content(tmp_path / "ray")


# --------------------------------------------------------------------------- one machine

LOCAL_RAY = """
import os, sys, time
from pathlib import Path
from llm_trainer.config import SourceConfig
from llm_trainer.data import raw_fill, units
from llm_trainer.data.engine import Engine
from llm_trainer.data.raw import build_raw
units.UNIT_BYTES = 20_000
add = raw_fill.RawBuild.add
def slow(build, unit, chunk, rename=False):
    Path("reading").touch()
    print(os.environ["TMPDIR"], flush=True)
    time.sleep(float(sys.argv[2]))
    yield from add(build, unit, chunk, rename)
raw_fill.RawBuild.add = slow
if __name__ == "__main__":
    config = SourceConfig(train_file=sys.argv[1], validation_fraction=0.1)
    build_raw(config, Path("raw"), progress=False, engine=Engine("ray", None, 1))
"""


def test_a_signal_ends_a_ray_of_our_own_with_all_that_it_started(
    tmp_path: Path, folder: Path
) -> None:
    import psutil

    temporary = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    process = subprocess.Popen(
        [sys.executable, "-c", LOCAL_RAY, str(folder), "60"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (tmp_path / "reading").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    listening = [
        connection.laddr.ip
        for child in [psutil.Process(process.pid), *children]
        if child.is_running()
        for connection in child.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reading"]
    temporary.rmdir()


def test_what_cannot_be_reached_or_is_missing_is_named(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SourceConfig(train_file=str(folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(LLMTrainerError, match=f"{address}: no Ray cluster can be reached"):
        build_raw(config, tmp_path / "raw", progress=False, engine=Engine("ray", address))
    with pytest.raises(ConfigurationError, match="must be host:port"):
        build_raw(config, tmp_path / "raw", progress=False, engine=Engine("ray", "ray://a:1"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LLMTrainerError, match=r"pip install -e '\.\[ray\]'"):
        build_raw(config, tmp_path / "raw", progress=False, engine=Engine("ray"))


# --------------------------------------------------------------------------- two nodes


@pytest.mark.parametrize(
    ("num_workers", "settings"),
    [
        (1, {"max_documents": 431, "validation_fraction": 0.2}),
        (2, {"validation_file": "b.jsonl.gz"}),
        (2, {"max_documents": 150, "validation_file": "d.parquet"}),
    ],
)
def test_download_gives_the_bytes_of_the_local_engine(
    tmp_path: Path, nodes: Nodes, folder: Path, settings: dict[str, Any], num_workers: int
) -> None:
    settings = {"max_document_bytes": 4000, "validation_fraction": 0.1, **settings}
    train = [str(path) for path in sorted(folder.iterdir())]
    if "validation_file" in settings:
        settings["validation_file"] = str(folder / settings["validation_file"])
        train.remove(settings["validation_file"])
    config = SourceConfig(train_file=train, **settings)
    local, ray = both(tmp_path, config, Engine("ray", nodes.address, num_workers))
    assert local == ray
    assert len(local) >= 3
    # and of reading without units: the documents and the books that iter_placed gives
    ledger = Ledger("download")
    expected: dict[str, list[Any]] = {"train": [], "validation": []}
    for placed in iter_placed(open_source(config), config, ledger):
        expected[placed.split].append(placed.document)
        ledger.give_out(1, len(placed.data))
    corpus = RawCorpus(tmp_path / "ray")
    for split, documents in expected.items():
        assert list(corpus.iter_documents(split)) == documents
    assert corpus.manifest["ledger"] == ledger.to_dict()


@pytest.mark.parametrize(
    ("bad", "settings"),
    [
        (['{"text": 1}'], {}),
        (["{", "{", "{"], {"on_bad_line": "skip", "max_bad_lines": 2}),
    ],
)
def test_messages_are_those_of_the_local_engine(
    tmp_path: Path, nodes: Nodes, bad: list[str], settings: dict[str, Any]
) -> None:
    lines = jsonl(random_texts(2, 300, 40)).splitlines(True)
    for number, line in enumerate(bad):
        lines.insert(250 + 20 * number, line.encode() + b"\n")
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    config = SourceConfig(train_file=str(tmp_path / "a.jsonl"), **settings)
    messages = []
    for engine in (LOCAL, Engine("ray", nodes.address, 2)):
        with pytest.raises(DataError) as caught:
            build_raw(config, tmp_path / "raw", progress=False, engine=engine)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "a.jsonl:" in messages[0]


def test_packing_gives_the_bytes_of_the_local_engine_though_a_worker_is_killed(
    tmp_path: Path, nodes: Nodes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_raw(SourceConfig(train_file=str(folder)), tmp_path / "raw", progress=False)
    raw = RawCorpus(tmp_path / "raw")
    tokenizer = BPETokenizer()
    tokenizer.train([d.text for d in raw.iter_documents("train")], vocab_size=300)
    config = PackingConfig(max_length=32)
    pack_corpus(raw, tokenizer, config, tmp_path / "local", num_workers=1, progress=False)
    monkeypatch.setattr(encode_ray, "_encode", encode_and_die)
    for num_workers in (1, 2):
        engine = Engine("ray", nodes.address, num_workers)
        arguments = (raw, tokenizer, config, tmp_path / "ray")
        pack_corpus(*arguments, num_workers=1, progress=False, engine=engine)
        assert content(tmp_path / "local") == content(tmp_path / "ray")
    assert (tmp_path / "killed").exists()
    damaged = raw.files("train")[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(LLMTrainerError, match="run `dvc repro download`"):
        pack_corpus(*arguments, num_workers=1, progress=False, engine=engine)


def read_and_die(unit: units.Unit, config: SourceConfig) -> Iterator[Chunk]:
    """Read a unit; whoever reads the first of a Parquet file is killed when it has."""
    yield from read_unit(unit, config)
    die_once(unit.parts[0].file.place, unit.parts[0].file.format == "parquet")


def encode_and_die(
    task: EncodeTask, tokenizer: BPETokenizer, dtype: Any
) -> Iterator[EncodedChunk | int]:
    """Encode a row group; whoever encodes the first of the third file is killed when it has."""
    yield from encode_ray._encode(task, tokenizer, dtype)
    die_once(task.path, "00002" in task.path)


def die_once(place: str, is_it: bool) -> None:
    flag = Path(place).parent.parent / "killed"
    if is_it and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def slowly(number: int, log: Path) -> Iterator[tuple[int, np.ndarray]]:
    """A part that takes a while: 6 pieces of 1 MiB, and a line for each that begins."""
    with open(log, "a") as file:
        file.write(f"{number}\n")
    for piece in range(6):
        time.sleep(0.05)
        yield piece, np.full(2**20, 16 * number + piece, np.uint8)


def test_a_killed_worker_changes_no_byte_of_a_download(
    tmp_path: Path, nodes: Nodes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SourceConfig(train_file=str(folder))
    build_raw(config, tmp_path / "local", progress=False)
    monkeypatch.setattr(raw_fill, "read_unit", read_and_die)
    build_raw(config, tmp_path / "ray", progress=False, engine=Engine("ray", nodes.address, 2))
    assert (folder.parent / "killed").exists()
    assert content(tmp_path / "local") == content(tmp_path / "ray")


def test_a_download_that_was_stopped_goes_on_with_another_engine(
    tmp_path: Path, nodes: Nodes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_file, "FILE_BYTES", 20_000)
    config = SourceConfig(train_file=str(folder), validation_fraction=0.3)
    ray = Engine("ray", nodes.address, 2)
    build_raw(config, tmp_path / "whole", progress=False)
    starts = []
    for number, engine in ((500, ray), (250, LOCAL), (10_000, ray)):
        starts.append(stop_after(number, config, tmp_path / "out", monkeypatch, engine)[1])
    assert 0 == starts[0] < starts[1] < starts[2]
    assert content(tmp_path / "whole") == content(tmp_path / "out")


def test_a_lost_node_is_made_good(tmp_path: Path, nodes: Nodes, folder: Path) -> None:
    """The last that uses both nodes, as it takes one away."""
    log = tmp_path / "log"
    for number, stream in RayCluster(2).ordered(slowly, range(8), shared=(log,), ahead=4):
        pieces = []
        for piece, data in stream:
            assert (data == 16 * number + piece).all()
            pieces.append(piece)
            if (number, piece) == (3, 1):
                nodes.kill_one()
        assert pieces == list(range(6))
    begun = [int(line) for line in log.read_text().split()]
    assert set(begun) == set(range(8))
    assert len(begun) >= 9  # what was on it was done again
    config = SourceConfig(train_file=str(folder), validation_fraction=0.1)
    local, ray = both(tmp_path, config, Engine("ray", nodes.address, 2))
    assert local == ray
