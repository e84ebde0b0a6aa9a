"""Documents from files: a file, a directory, a glob, an address, or a list of these.

Directories are searched recursively, in sorted order, without hidden files and without symbolic
links to directories. Everything is found and checked before anything is read. Formats are those of
`input_file`, addresses those of `remote_file`.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.config import SourceConfig
from llm_trainer.config.checks import shown
from llm_trainer.config.secrets import strip_secrets
from llm_trainer.data.documents import Document
from llm_trainer.data.input_file import COMPRESSIONS, KNOWN, InputFile, format_of, is_address
from llm_trainer.data.intake import Intake, Source
from llm_trainer.data.units import Part, iter_part
from llm_trainer.digests import digest_json
from llm_trainer.exceptions import DataError

if TYPE_CHECKING:
    from llm_trainer.data.remote_file import Found

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputFiles:
    """The files of a source, in the order of reading."""

    train: list[InputFile]
    validation: list[InputFile]
    left_out: list[str]
    """What was found beside them, one line for each directory or glob."""


def open_local(config: SourceConfig) -> Source:
    """Find the files of `train_file` and `validation_file`.

    Raises:
        DataError: a file is missing, empty, of an unknown kind or in both sets; a directory or
            glob has none to read.
    """
    found = find_files(config)
    for line in found.left_out:
        logger.warning("%s", line)
    files = [*found.train, *found.validation]
    origin: dict[str, str | int | None] = {
        "kind": "files",
        "files": len(files),
        "file_bytes": sum(file.size for file in files),
    }
    if any(file.is_remote for file in files):
        # of what is on this machine the time would be a part of it, which means nothing elsewhere
        tags = [[file.name, file.size, file.tag] for file in files if file.is_remote]
        origin["remote_digest"] = digest_json(tags)
    return Source(
        name="local files" if "remote_digest" not in origin else "files",
        train=_reader(found.train),
        validation=_reader(found.validation) if found.validation else None,
        origin=origin,
        train_files=found.train,
        validation_files=found.validation,
    )


def find_files(config: SourceConfig) -> InputFiles:
    """The files of `train_file` and of `validation_file`, without reading them.

    Raises:
        DataError: see `open_local`.
    """
    assert config.train_file is not None
    left_out: list[str] = []
    train = _find(config.train_file, "data.train_file", left_out)
    validation = _find(config.validation_file, "data.validation_file", left_out)
    shared = sorted(train.keys() & validation.keys())
    if shared:
        raise DataError(
            f"{shared[0]}: is in both data.train_file and data.validation_file; leave "
            f"validation_file out (null) to cut data.validation_fraction of the documents instead"
        )
    names = _names(
        [path for path in [*train.values(), *validation.values()] if isinstance(path, Path)]
    )
    return InputFiles(
        train=[_input_file(found, names) for found in train.values()],
        validation=[_input_file(found, names) for found in validation.values()],
        left_out=left_out,
    )


def _reader(files: list[InputFile]) -> Callable[[Intake], Iterator[Document]]:
    def read(intake: Intake) -> Iterator[Document]:
        for file in files:
            yield from iter_part(Part(file), intake)

    return read


# --------------------------------------------------------------------------- finding


def _find(
    entries: str | list[str] | None, key: str, left_out: list[str]
) -> dict[str, Path | Found]:
    """What each entry names, by its identity: what is listed twice is read once."""
    found: dict[str, Path | Found] = {}
    for entry in [entries] if isinstance(entries, str) else entries or []:
        if is_address(entry):
            for remote in _expand_address(entry, key, left_out):
                found.setdefault(remote.address, remote)
        else:
            for path in _expand(entry, key, left_out):
                found.setdefault(str(path.resolve()), path)
    return found


def _expand_address(entry: str, key: str, left_out: list[str]) -> list[Found]:
    from llm_trainer.data.remote_file import find_remote

    try:
        found = find_remote(entry)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error
    if len(found) == 1 and found[0].address == entry:
        _check_kind(entry, key)
        if found[0].size == 0:
            raise DataError(f"{key}: {entry} is empty")
        return found
    if not found:
        raise DataError(f"{key}: nothing is at {entry}; name a file, folder or glob that is there")
    by_name = {remote.address: remote for remote in found}
    return [by_name[name] for name in _readable(list(by_name), f"{key}: {entry}", left_out)]


def _expand(entry: str, key: str, left_out: list[str]) -> list[Path]:
    path = Path(entry).expanduser()
    if path.is_dir():
        paths = sorted(_walk(path), key=_posix)
        return _readable_paths(paths, f"{key}: directory {entry}", left_out)
    if path.exists():
        _check_named_file(path, key)
        return [path]
    if glob.has_magic(entry):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise DataError(f"{key}: nothing matches {shown(entry)} in {Path.cwd()}")
        paths = [match for match in matches if match.is_file()]
        return _readable_paths(paths, f"{key}: glob {entry}", left_out)
    raise DataError(
        f"{key}: {strip_secrets(entry)}: no such file or directory (relative to {Path.cwd()}); "
        f"name one that is there"
    )


def _walk(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for place, directories, names in os.walk(directory, onerror=refuse):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _check_named_file(path: Path, key: str) -> None:
    if not path.is_file():
        raise DataError(f"{key}: {path} is not a regular file")
    _check_kind(str(path), key)
    if path.stat().st_size == 0:
        raise DataError(f"{key}: {path} is empty")


def _check_kind(name: str, key: str) -> None:
    if format_of(name) is not None:
        return
    hint = ""
    suffix = Path(name).suffix
    if suffix == ".json":
        hint = "; one JSON document cannot be read in parts: convert it to one object a line"
    elif suffix[1:] in COMPRESSIONS:
        hint = "; the format comes from the suffix before: name it like data.jsonl.gz"
    raise DataError(f"{key}: {name} is of an unknown kind (known: {KNOWN}){hint}")


def _readable_paths(paths: list[Path], what: str, left_out: list[str]) -> list[Path]:
    by_name = {str(path): path for path in paths}
    return [by_name[name] for name in _readable(list(by_name), what, left_out)]


def _readable(names: list[str], what: str, left_out: list[str]) -> list[str]:
    readable = [name for name in names if format_of(name)]
    if not readable:
        raise DataError(
            f"{what} has no file of a known kind (known: {KNOWN}); {len(names):,} others"
        )
    if len(readable) < len(names):
        kinds = {Path(name).suffix or Path(name).name for name in names if not format_of(name)}
        others = sorted(kinds)
        shown = ", ".join(others[:6]) + (", ..." if len(others) > 6 else "")
        left_out.append(
            f"{what}: {len(names) - len(readable)} files of other kinds are left out ({shown})"
        )
    return readable


def _input_file(found: Path | Found, names: dict[Path, str]) -> InputFile:
    if isinstance(found, Path):
        kind, state = format_of(found.name), found.stat()
        assert kind is not None
        place = os.path.abspath(found)
        return InputFile(place, names[found], *kind, state.st_size, str(state.st_mtime_ns))
    kind = format_of(found.address)
    assert kind is not None
    return InputFile(found.address, found.address, *kind, found.size, found.tag)


def _names(paths: list[Path]) -> dict[Path, str]:
    # Absolute paths would make the same corpus another one on another machine: the part that all
    # of them share goes.
    if not any(path.is_absolute() for path in paths):
        return {path: _posix(path) for path in paths}
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    base = os.path.commonpath([path.parent for path in absolute.values()])
    return {path: _posix(place.relative_to(base)) for path, place in absolute.items()}


def _posix(path: Path) -> str:
    # a file name that is not UTF-8 is legal on Linux, but no text
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
