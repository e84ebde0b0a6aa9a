"""Whether data, models and figures on disk are what their manifests and records say.

The chain raw text -> tokenizer -> packed rows -> model -> evaluation is followed twice: by the
sha256 that the project writes (manifests, the model's lineage), and by the MD5 that DVC wrote into
`dvc.lock` for what each stage read and made. Price: every file is read twice, about 1 GB/s.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from llm_trainer.exceptions import IntegrityError
from llm_trainer.json_file import read_json
from llm_trainer.manifests import manifest_digest, read_manifest, verify_manifest
from llm_trainer.training.lineage import Lineage, read_lineage
from pipeline.chain import Link, chain
from pipeline.lock import LOCK, directory_md5
from pipeline.paths import BENCHMARK_METRICS, MODEL, PACKED, RAW, TOKENIZER

State = Literal["equal", "differs", "absent", "note"]

ARTIFACTS = (RAW, TOKENIZER, PACKED, MODEL)
_REMEDY = "see `dvc status`"


@dataclass(frozen=True)
class Check:
    """One line of what was found; only `differs` is a failure."""

    name: str
    state: State
    detail: str

    def render(self) -> str:
        """The line."""
        return f"{self.state:<8} {self.name:<22} {self.detail}"


def check_artifacts(checkpoints: Path) -> Iterator[Check]:
    """All checks of the current directory; `checkpoints` is where runs leave theirs."""
    lineage = None
    if MODEL.is_dir():
        try:
            lineage = read_lineage(MODEL)
        except IntegrityError as error:
            yield Check("model", "differs", str(error))
    if lineage is not None:
        yield from map(_of_link, chain(MODEL, lineage))
    else:
        yield from (_manifest(name, path) for name, path in (("packed", PACKED), ("raw", RAW)))
    yield _manifest("tokenizer", TOKENIZER)
    yield from _rows()
    yield from _locked()
    if lineage is not None:
        yield from _environment(lineage, checkpoints)


def _of_link(link: Link) -> Check:
    state: State = "equal" if link.state == "matches" else link.state
    if not link.counts and state == "differs":
        state = "note"
    return Check(link.name, state, link.detail or link.value)


def _manifest(kind: str, path: Path) -> Check:
    """A directory, every file of it against its manifest."""
    name = f"{kind} files"
    if not path.is_dir():
        return Check(name, "absent", f"{path} is not here")
    try:
        manifest = verify_manifest(path, kind, remedy=_REMEDY)
    except IntegrityError as error:
        return Check(name, "differs", str(error))
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return Check(
        name, "equal", f"{path}: {len(manifest['files'])} files, {size:,} bytes, as its manifest"
    )


# --------------------------------------------------------------------------- rows and their text


def _rows() -> Iterator[Check]:
    """That data/packed was made from data/raw with models/tokenizer, and lost nothing."""
    try:
        packed = read_manifest(PACKED, "packed", remedy=_REMEDY) if PACKED.is_dir() else None
        raw = read_manifest(RAW, "raw", remedy=_REMEDY) if RAW.is_dir() else None
        tokenizer = (
            read_manifest(TOKENIZER, "tokenizer", remedy=_REMEDY) if TOKENIZER.is_dir() else None
        )
    except IntegrityError as error:
        yield Check("rows", "differs", str(error))
        return
    if packed is None:
        return
    if tokenizer is not None:
        yield _same(
            "rows, tokenizer", packed.get("tokenizer_digest"), tokenizer.get("digest"),
            f"{PACKED} was packed with {TOKENIZER}",
        )  # fmt: skip
    if raw is not None:
        yield _same(
            "rows, text", packed.get("raw_digest"), manifest_digest(raw),
            f"{PACKED} was packed from {RAW}",
        )  # fmt: skip
        yield _books(raw, packed)


def _same(name: str, recorded: Any, found: Any, sentence: str) -> Check:
    if recorded == found:
        return Check(name, "equal", sentence)
    return Check(
        name, "differs", f"not so: {sentence} (recorded {str(recorded)[:12]}, {str(found)[:12]} "
        f"is here); run `dvc repro`",
    )  # fmt: skip


def _books(raw: dict[str, Any], packed: dict[str, Any]) -> Check:
    """Documents and bytes that came in went out or are listed with a reason, stage by stage."""
    name, problems, dropped = "ledgers", [], 0
    try:
        books = [raw["ledger"], *packed["ledger"].values()]
        for book in books:
            for unit in ("documents", "bytes", "tokens"):
                into = book["in"][unit] + sum(v[unit] for v in book["added"].values())
                lost = sum(v[unit] for v in book["dropped"].values())
                if into != book["out"][unit] + lost:
                    problems.append(f"{book['stage']}: {unit} do not balance")
            dropped += sum(v["documents"] for v in book["dropped"].values())
        for split, book in packed["ledger"].items():
            for unit in ("documents", "bytes"):
                made, read = raw["splits"][split][unit], book["in"][unit]
                if made != read:
                    problems.append(f"{split}: {made:,} {unit} in {RAW}, {read:,} were packed")
    except (KeyError, TypeError, AttributeError) as error:
        return Check(name, "differs", f"not readable as a ledger ({error!r}); run `dvc repro`")
    if problems:
        return Check(name, "differs", "; ".join(problems))
    documents, size = books[0]["out"]["documents"], books[0]["out"]["bytes"]
    return Check(
        name, "equal", f"{documents:,} documents, {size:,} bytes: each went into a row or is "
        f"among the {dropped:,} left out with a reason",
    )  # fmt: skip


# --------------------------------------------------------------------------- dvc.lock


def _locked() -> Iterator[Check]:
    """What each stage read and made, as dvc.lock has it, against the disk."""
    if not LOCK.is_file():
        yield Check("dvc.lock", "absent", f"{LOCK} is not here")
        return
    try:
        document = yaml.safe_load(LOCK.read_text(encoding="utf-8"))
        stages = {
            name: (_entries(stage, "deps"), _entries(stage, "outs"))
            for name, stage in document["stages"].items()
        }
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        yield Check("dvc.lock", "differs", f"{LOCK}: not readable ({error!r}); run `dvc repro`")
        return
    known: dict[str, str | None] = {}
    for name, (deps, outs) in stages.items():
        differs, absent = [], []
        for path, md5 in (deps | outs).items():
            if path not in known:
                known[path] = _md5(Path(path))
            if known[path] is None:
                absent.append(path)
            elif known[path] != md5:
                differs.append(path)
        if differs:
            yield Check(
                f"stage {name}", "differs", f"changed since it ran: {', '.join(differs)}; "
                f"run `dvc repro`",
            )  # fmt: skip
        elif absent:
            yield Check(f"stage {name}", "absent", f"not here: {', '.join(absent)}")
        else:
            made = ", ".join(outs)
            yield Check(f"stage {name}", "equal", f"{made} and its {len(deps)} inputs")


def _entries(stage: dict[str, Any], key: str) -> dict[str, str]:
    return {str(entry["path"]): str(entry["md5"]) for entry in stage.get(key, [])}


def _md5(path: Path) -> str | None:
    if path.is_dir():
        return directory_md5(path)
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# --------------------------------------------------------------------------- machine


def _environment(lineage: Lineage, checkpoints: Path) -> Iterator[Check]:
    """What bits depend on besides: a note for each thing that is another one here."""
    place, made = recorded_environment(lineage.fingerprint, checkpoints)
    if lineage.params.get("training", {}).get("deterministic") is False:
        yield Check(
            "deterministic", "note", "training.deterministic was off: two runs on one machine may "
            "differ",
        )  # fmt: skip
    if not made:
        yield Check("machine", "note", "nothing here says which machine the model was made on")
        return
    here = _environment_here()
    others = [f"{k} {v} there, {here[k]} here" for k, v in made.items() if here[k] != v]
    if others:
        yield Check(
            "machine", "note", f"not that of {place}: {'; '.join(others)}; training again here "
            f"would round differently",
        )  # fmt: skip
    else:
        yield Check(
            "machine", "equal", f"as in {place}: {', '.join(f'{k} {v}' for k, v in made.items())}"
        )


def recorded_environment(fingerprint: str, checkpoints: Path) -> tuple[str, dict[str, Any]]:
    """Where it is written, and what of `_environment_here` is known of the model's training.

    A checkpoint of the run knows it; where none is left, the figures of stage benchmark tell on
    which machine that stage ran, which is the same unless somebody shared them.
    """
    for state in sorted((checkpoints / fingerprint).glob("checkpoint-*/state.json")):
        try:
            values = read_json(state)["environment"]
            made = {name: values[name] for name in ("torch", "threads")}
            return "the run's checkpoint", made | {"instructions": values["device_name"]}
        except (IntegrityError, KeyError, TypeError):
            continue  # gc may be removing it, and damage is for the training to name
    try:
        values = read_json(BENCHMARK_METRICS)
        return str(BENCHMARK_METRICS), {
            "torch": str(values["machine_torch"]).split("+")[0],
            "threads": values["machine_threads"],
            "instructions": str(values["machine_cpu_capability"]).split(",")[0],
            "Python": values["machine_python"],
        }
    except (IntegrityError, KeyError, TypeError):
        return "", {}


def _environment_here() -> dict[str, Any]:
    import torch

    from pipeline.params import PARAMS, load_params

    threads = load_params().runtime.num_threads if PARAMS.is_file() else None
    return {
        "torch": torch.__version__.split("+")[0],
        "threads": threads or torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "Python": platform.python_version(),
    }
