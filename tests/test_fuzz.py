"""Whatever reads files of others: the fuzz targets replayed, and what fuzzing has found."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuzz.__main__ import load
from fuzz.target import made_folders
from fuzz.targets import TARGETS
from llm_trainer.config.experiment import load_experiment
from llm_trainer.data.raw import RawCorpus
from llm_trainer.data.shards import PackedRows
from llm_trainer.digests import digest_json
from llm_trainer.exceptions import ConfigurationError, IntegrityError
from llm_trainer.json_file import read_json
from llm_trainer.manifests import MANIFEST_NAME, read_manifest, seal_manifest, write_manifest
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training.checkpoint import read_checkpoint, restore
from tests.data.packed_rows import write_packed
from tests.data.raw_corpora import write_raw
from tests.training.test_checkpoint import make, save


@pytest.fixture(scope="module", autouse=True)
def no_folders_left() -> Iterator[None]:
    yield
    for place in made_folders():
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_fixed_noise_are_answered(name: str) -> None:
    target = load(name)
    seeds, chance = target.seeds(), random.Random(0)
    for number in range(60):
        target.run(seeds[number % len(seeds)][:2] + chance.randbytes(30))
    for seed in seeds:
        target.run(seed)


# --------------------------------------------------------------------------- configuration

LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 10)) for n in range(9)
)
MERGES = b"a: &a {x: 1}\n" + b"".join(
    b"%c: &%c {? !!merge x : [%s]}\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 10))
    for n in range(9)
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"training: !!bool x\n", "neither true nor false"),
        (b"training: {seed: !!timestamp x}\n", "yaml:1: .*timestamp"),
        (b"training: {learning_rate: !!float ''}\n", "could not convert"),
        (b"training: {seed: !!binary '?'}\n", "yaml:1: .*binary"),
        (b"training: {learning_rate: 0x" + b"f" * 5000 + b"}\n", "learning_rate: .*finite"),
        (b"training: 0x" + b"f" * 5000 + b"\n", "found a int"),
        (LAUGHS + b"training: {betas: *j, optimizer: *j, seed: *j}\nmodel: *j\n", "model"),
        (MERGES, "merge"),
        (b'training: {checkpoint_dir: "\\ud800"}\n', r"half a surrogate pair \(U\+D800\)"),
        (b"? " + b"x" * 10**6 + b"\n: {}\n", "unknown key 'x{60}'"),
        (b"training: {optimizer: " + b"x" * 10**6 + b"}\n", "is not one of adamw"),
    ],
)
def test_configurations_that_fuzzing_found(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        load_experiment(path)
    assert len(str(caught.value)) < 10_000


# --------------------------------------------------------------------------- JSON, manifests


def test_json_is_capped_in_depth_and_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for depth, refused in ((64, False), (65, True), (900, True), (100_000, True)):
        path.write_text("[" * depth + "]" * depth)
        if refused:
            with pytest.raises(IntegrityError, match="not readable as JSON"):
                read_json(path)
        else:
            read_json(path)
    path.unlink()
    os.mkfifo(path)
    for place in (path, tmp_path, Path("/dev/zero")):
        with pytest.raises(IntegrityError, match="not a regular file"):
            read_json(place)


@pytest.mark.parametrize("change", [
    {"note": float("nan")}, {"note": "\ud800"}, {"origin": None}, {"ledger": 5},
    {"splits": {side: {"documents": 1, "bytes": 1, "files": [["x"]]}
                for side in ("train", "validation")}},
])  # fmt: skip
def test_raw_manifests_that_fuzzing_found(tmp_path: Path, change: dict[str, Any]) -> None:
    write_raw(tmp_path / "raw", ["a text"], ["another"])
    write(tmp_path / "raw", change)
    with pytest.raises(IntegrityError, match="dvc repro download"):
        RawCorpus(tmp_path / "raw")


@pytest.mark.parametrize("change", [
    {"ledger": {"a": float("inf")}}, {"ledger": {"\udfff": 1}}, {"row_length": 2**40},
    {"splits": {side: {"rows": 2**64, "tokens": 1, "documents": 1, "bytes": 1, "max_id": 1,
                       "files": [f"{side}-00000.arrow"]} for side in ("train", "validation")}},
    {"files": {"\ud800": {"bytes": 1, "sha256": ""}}},
])  # fmt: skip
def test_packed_manifests_that_fuzzing_found(tmp_path: Path, change: dict[str, Any]) -> None:
    write_packed(tmp_path / "packed")
    write(tmp_path / "packed", change)
    with pytest.raises(IntegrityError, match="dvc repro pack_sequences"):
        PackedRows(tmp_path / "packed", "train")


def write(directory: Path, change: dict[str, Any]) -> None:
    """Change a manifest, with a right seal where there can be one."""
    manifest = read_json(directory / MANIFEST_NAME) | change
    del manifest["seal"]
    try:
        seal_manifest(directory, manifest)
    except ValueError:
        (directory / MANIFEST_NAME).write_text(json.dumps({**manifest, "seal": digest_json({})}))


def test_every_field_of_a_raw_manifest_is_guarded(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", ["a text"], ["another"])
    path = tmp_path / "raw" / MANIFEST_NAME
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(IntegrityError):
            RawCorpus(tmp_path / "raw")


@pytest.mark.parametrize("name", ["digest", "vocab_size", "end_id", "pad_id"])
def test_every_field_of_a_tokenizers_manifest_is_guarded(tmp_path: Path, name: str) -> None:
    tokenizer = BPETokenizer()
    tokenizer.train(["some text " * 9], 265)
    tokenizer.save_pretrained(tmp_path / "t")
    facts = read_manifest(tmp_path / "t", "tokenizer", remedy="")
    kept = {k: v for k, v in facts.items() if k not in ("format", "kind", "files")}
    write_manifest(tmp_path / "t", "tokenizer", **{**kept, name: 7})
    with pytest.raises(IntegrityError, match=f"manifest.json: {name} is 7, but .*dvc repro"):
        BPETokenizer.from_pretrained(tmp_path / "t")


# --------------------------------------------------------------------------- shards


def test_a_shard_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    write_packed(tmp_path)
    path = tmp_path / "train-00000.arrow"
    path.write_bytes(path.read_bytes().replace(b"input_ids", b"input\xffids"))
    vouch(tmp_path, path)
    with pytest.raises(IntegrityError, match=r"train-00000.arrow: not a readable Arrow"):
        PackedRows(tmp_path, "train")


@pytest.mark.parametrize(("place", "value", "problem"), [
    (1, 10**6, "do not rise"), (-1, 10**6, "beyond their list|not a readable"),
    (0, -5, "do not rise|not a readable"),
])  # fmt: skip
def test_a_shard_with_wrong_offsets(tmp_path: Path, place: int, value: int, problem: str) -> None:
    import pyarrow as pa

    write_packed(tmp_path, shard_bytes=2**20)
    path = tmp_path / "train-00000.arrow"
    content = path.read_bytes()
    batch = pa.ipc.open_file(content).get_batch(0)
    offsets = batch.column(2).offsets.to_numpy()
    wrong = offsets.copy()
    wrong[place] = value
    assert content.count(offsets.tobytes()) == 2  # documents and starts
    path.write_bytes(content.replace(offsets.tobytes(), wrong.tobytes()))
    vouch(tmp_path, path)
    with pytest.raises(IntegrityError, match=problem):
        PackedRows(tmp_path, "train")


def vouch(directory: Path, path: Path) -> None:
    """Make the manifest agree with a file that was changed on purpose."""
    from llm_trainer.digests import sha256_file

    manifest = read_json(directory / MANIFEST_NAME)
    entry = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write(directory, {"files": manifest["files"] | {path.name: entry}})


# --------------------------------------------------------------------------- checkpoints, models


@pytest.mark.parametrize("change", [
    {"identity": 5}, {"environment": []}, {"scaler": "x"}, {"state": None}, {"format": 2},
    *({"state": {name: value}} for name, value in [
        ("step", "x"), ("step", -1), ("micro_step", 2**70), ("tokens", 1.5), ("skipped", True),
        ("partial_loss", 10**400), ("seconds", float("nan")), ("evaluations", [5]),
        ("evaluations", {}), ("unknown", 1),
    ]),
])  # fmt: skip
def test_checkpoint_states_that_fuzzing_found(tmp_path: Path, change: dict[str, Any]) -> None:
    path = save(tmp_path, 2)
    values = read_json(path / "state.json")
    if isinstance(change.get("state"), dict):
        change = {"state": values["state"] | change["state"]}
    (path / "state.json").write_text(json.dumps(values | change))
    write_manifest(path, "checkpoint")
    with pytest.raises(IntegrityError, match=r"checkpoint-2.*delete it"):
        read_checkpoint(path)


def fewer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if name.endswith("exp_avg"))]


def smaller(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("exp_avg"))
    tensors[name] = tensors[name][:1].clone()


def whole(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("momentum_buffer"))
    tensors[name] = tensors[name].long()


def unknown(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("momentum_buffer"))
    tensors[name.replace("momentum", "other")] = tensors.pop(name)


@pytest.mark.parametrize("change", [fewer, smaller, whole, unknown])
def test_optimizer_states_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    path = save(tmp_path, 2)
    tensors = load_file(path / "optimizer.safetensors")
    change(tensors)
    save_file(tensors, path / "optimizer.safetensors")
    write_manifest(path, "checkpoint")
    model, optimizer = make()
    with pytest.raises(IntegrityError, match=r"optimizer state .*delete it"):
        restore(read_checkpoint(path), model, optimizer)


@pytest.mark.parametrize("name", ["n_layers", "vocab_size", "d_ff"])
def test_a_configuration_may_not_ask_for_terabytes(tmp_path: Path, name: str) -> None:
    """Before: the model was built, and then its weights were looked at."""
    path = save(tmp_path, 1) / "model"
    values = read_json(path / "config.json")
    values["model"][name] = 10**8
    (path / "config.json").write_text(json.dumps(values))
    write_manifest(path, "model")
    with pytest.raises(IntegrityError, match="does not fit the configuration"):
        TransformerLM.from_pretrained(path)
