"""The chain from a model back to the origin of its text, compared with what is on disk now.

Every directory is hashed whole against its manifest, about 1 GB/s: what a manifest says is not
what a damaged disk has.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from llm_trainer.digests import canonical_json, digest_json, sha256_file
from llm_trainer.exceptions import IntegrityError
from llm_trainer.manifests import manifest_digest, verify_manifest
from llm_trainer.training.fingerprint import result_params
from llm_trainer.training.lineage import Lineage
from pipeline.params import PARAMS, load_params
from pipeline.paths import PACKED, RAW, TOKENIZER

State = Literal["matches", "differs", "absent"]


@dataclass(frozen=True)
class Link:
    """One link of the chain."""

    name: str
    value: str
    """What made the model: a digest or a description."""
    state: State
    detail: str = ""
    counts: bool = True
    """Whether a difference is one of the project's files, not only of this machine."""


def chain(model: Path, lineage: Lineage) -> list[Link]:
    """All links, from the model back to the origin of its text."""
    origin = lineage.data.get("origin") or {}
    packed, raw = (str(lineage.data.get(f"{name}_digest", "")) for name in ("packed", "raw"))
    return [
        _verified("model", model, "model", None),
        _params(lineage),
        _code(lineage),
        _tokenizer(lineage.tokenizer_digest),
        _verified("packed rows", PACKED, "packed", packed),
        _verified("raw text", RAW, "raw", raw),
        _origin(origin),
        _packages(lineage.packages),
    ]


def _verified(name: str, path: Path, kind: str, expected: str | None) -> Link:
    """A directory with a manifest: every file is hashed, then the whole compared."""
    if not path.exists():
        return Link(name, expected or "", "absent", f"{path} is not here")
    try:
        found = manifest_digest(verify_manifest(path, kind, remedy="see `dvc status`"))
    except IntegrityError as error:
        return Link(name, expected or "", "differs", str(error))
    if expected is None:
        return Link(name, found, "matches", f"{path} is as its manifest says")
    return _compared(name, expected, found, str(path))


def _compared(name: str, expected: str, found: str, place: str) -> Link:
    if found == expected:
        return Link(name, expected, "matches", place)
    return Link(name, expected, "differs", f"{place} is {found[:12]} now")


def _params(lineage: Lineage) -> Link:
    digest = digest_json(lineage.params)
    if not PARAMS.is_file():
        return Link("params", digest, "absent", f"{PARAMS} is not here")
    now = load_params()
    sections = result_params(now.model, now.training)
    changed = [
        f"{section}.{key} {_show(values.get(key))} -> {_show(sections.get(section, {}).get(key))}"
        for section, values in sorted(lineage.params.items())
        for key in sorted({*values, *sections.get(section, {})})
        # the tokenizer decides it, and has a link of its own
        if (section, key) != ("model", "vocab_size")
        and canonical_json(values.get(key)) != canonical_json(sections.get(section, {}).get(key))
    ]
    state: State = "differs" if changed else "matches"
    return Link("params", digest, state, "; ".join(changed) or f"model and training in {PARAMS}")


def _show(value: Any) -> str:
    return "null" if value is None else str(value)


def _code(lineage: Lineage) -> Link:
    digest = digest_json(lineage.code)
    missing = [name for name in lineage.code if not Path(name).is_file()]
    changed = [
        name
        for name, value in sorted(lineage.code.items())
        if name not in missing and sha256_file(name) != value
    ]
    if lineage.code and len(missing) == len(lineage.code):
        return Link("code", digest, "absent", f"{len(missing)} files are not here")
    if changed or missing:
        names = [*changed, *(f"{name} (missing)" for name in missing)]
        return Link("code", digest, "differs", ", ".join(names))
    return Link("code", digest, "matches", f"{len(lineage.code)} files")


def _tokenizer(expected: str) -> Link:
    path = TOKENIZER / "tokenizer.json"
    if not path.is_file():
        return Link("tokenizer", expected, "absent", f"{TOKENIZER} is not here")
    return _compared("tokenizer", expected, sha256_file(path), str(TOKENIZER))


def _origin(origin: dict[str, Any]) -> Link:
    value = ", ".join(f"{key} {value}" for key, value in sorted(origin.items()) if value)
    wanted = origin.get("python_version")
    here = platform.python_version()
    if not wanted:
        return Link("origin", value, "matches", "", counts=False)
    if wanted == here:
        return Link("origin", value, "matches", "this Python's library", counts=False)
    detail = f"this is Python {here}, whose library is another corpus"
    return Link("origin", value, "differs", detail, counts=False)


def _packages(packages: dict[str, str]) -> Link:
    value = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    others = []
    for name, version in sorted(packages.items()):
        try:
            here = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            here = "not installed"
        if here != version.split("+")[0]:
            others.append(f"{name} is {here} here")
    state: State = "differs" if others else "matches"
    return Link("packages", value, state, "; ".join(others), counts=False)
