"""`manifest.json` of a directory of data: the sha256 and size of each of its files.

Whoever reads such a directory verifies it first. Price: one hash of all bytes on load (about 1 GB/s
a core).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_trainer.digests import digest_json, sha256_file
from llm_trainer.exceptions import IntegrityError
from llm_trainer.files import is_partial, write_json
from llm_trainer.json_file import read_json

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1


def write_manifest(
    directory: str | os.PathLike[str],
    kind: str,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    /,
    **fields: Any,
) -> dict[str, Any]:
    """Write `manifest.json` over all files now in `directory` (recursively) and return it.

    `kind` says what the directory is ("raw", "packed", "tokenizer", "model", "checkpoint"); of the
    files in `known` size and digest are taken as given by who wrote them; `fields` are added at
    the top level. Names are relative POSIX paths, sorted.
    """
    directory, known = Path(directory), known or {}
    manifest = {
        "format": MANIFEST_FORMAT,
        "kind": kind,
        "files": {
            name: dict(known[name])
            if name in known
            else {
                "bytes": (directory / name).stat().st_size,
                "sha256": sha256_file(directory / name),
            }
            for name in _file_names(directory)
        },
        **fields,
    }
    write_json(directory / MANIFEST_NAME, manifest)
    return manifest


def seal_manifest(directory: str | os.PathLike[str], manifest: dict[str, Any]) -> dict[str, Any]:
    """Add a digest of all of `manifest` to it and write it: damage to any field is noticed then."""
    sealed = {**manifest, "seal": digest_json(manifest)}
    write_json(Path(directory) / MANIFEST_NAME, sealed)
    return sealed


def is_sealed(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has the seal of `seal_manifest`, and it is unbroken."""
    fields = {name: value for name, value in manifest.items() if name != "seal"}
    try:
        return bool(manifest.get("seal") == digest_json(fields))
    except ValueError:  # NaN or half a surrogate pair, which we never write
        return False


def read_manifest(directory: str | os.PathLike[str], kind: str, *, remedy: str) -> dict[str, Any]:
    """Read and schema-check `manifest.json` without hashing the files it lists.

    `remedy` ends every message: what the user should do ("run `dvc repro pack_sequences`").

    Raises:
        IntegrityError: the manifest is missing, damaged, or of another kind or format.
    """
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        raise IntegrityError(
            f"{path}: missing, so this is not a complete '{kind}' directory; {remedy}"
        )
    manifest = read_json(path)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if (
        not isinstance(manifest, dict)
        or not isinstance(files, dict)
        or manifest.get("format") != MANIFEST_FORMAT
        or manifest.get("kind") != kind
        or not all(
            isinstance(name, str) and _is_inside(name) and _is_entry(entry)
            for name, entry in files.items()
        )
    ):
        raise IntegrityError(
            f"{path}: not a manifest of kind '{kind}', format {MANIFEST_FORMAT}; {remedy}"
        )
    return manifest


def verify_manifest(
    directory: str | os.PathLike[str],
    kind: str,
    *,
    remedy: str,
    hashed: Callable[[str], bool] = lambda _name: True,
) -> dict[str, Any]:
    """Read the manifest and check every file in the directory against it.

    `hashed` tells by name which files' bytes are read and compared; of the others only presence
    and size are checked (for a reader of one split of a large data set). A subdirectory that was
    added later with a manifest of its own (a tokenizer saved into a model's directory) answers for
    itself.

    Raises:
        IntegrityError: a file is missing, extra, of another size, or of other bytes.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, kind, remedy=remedy)
    listed: dict[str, dict[str, Any]] = manifest["files"]
    present = set(_file_names(directory))
    for name in sorted(present - set(listed)):
        if _has_own_manifest(directory, name, listed):
            continue
        raise IntegrityError(f"{directory / name}: not listed in the manifest; {remedy}")
    for name, entry in sorted(listed.items()):
        path = directory / name
        if name not in present:
            raise IntegrityError(f"{path}: listed in the manifest but missing; {remedy}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise IntegrityError(
                f"{path}: {size:,} bytes, but the manifest says {entry['bytes']:,}; {remedy}"
            )
        if hashed(name) and sha256_file(path) != entry["sha256"]:
            raise IntegrityError(f"{path}: content differs from the manifest's sha256; {remedy}")
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """The identity of a verified directory: a digest of its kind and its files' digests."""
    return digest_json(
        {"kind": manifest["kind"], "files": {k: v["sha256"] for k, v in manifest["files"].items()}}
    )


def _file_names(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path != directory / MANIFEST_NAME and not is_partial(path.name)
    )


def _has_own_manifest(directory: Path, name: str, listed: dict[str, Any]) -> bool:
    top = name.partition("/")[0]
    own = (directory / top / MANIFEST_NAME).is_file()
    return top != name and own and not any(other.startswith(f"{top}/") for other in listed)


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: no name of ours, and no digest has it
        return False
    return bool(name) and not name.startswith("/") and ".." not in parts and "" not in parts


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )
