"""Documents from files on this machine: a file, a directory, a glob, or a list of these.

Formats by suffix: txt, md and py are one document a file; jsonl, csv and parquet one a record; all
but parquet (which compresses itself) may end in `.gz` or `.zst` too. Directories are searched
recursively, in sorted order, without hidden files and without symbolic links to directories.
Everything is found and checked before anything is read.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_trainer.config import SourceConfig
from llm_trainer.config.checks import shown
from llm_trainer.config.secrets import strip_secrets
from llm_trainer.data.documents import Document
from llm_trainer.data.intake import Intake, Source
from llm_trainer.data.jsonl import iter_jsonl
from llm_trainer.data.plain_text import iter_python, iter_text
from llm_trainer.data.streams import TextStream, open_text
from llm_trainer.data.tables import iter_csv, iter_parquet
from llm_trainer.exceptions import DataError

logger = logging.getLogger(__name__)

_TEXT_READERS: dict[str, Callable[[TextStream, str, Intake], Iterator[Document]]] = {
    "txt": iter_text, "md": iter_text, "py": iter_python, "jsonl": iter_jsonl, "csv": iter_csv,
}  # fmt: skip
_FORMATS = (*_TEXT_READERS, "parquet")
_COMPRESSIONS = ("gz", "zst")
_KNOWN = ", ".join(f".{name}" for name in _FORMATS) + "; each but .parquet with .gz or .zst too"


@dataclass(frozen=True)
class LocalFile:
    """A file to read."""

    path: Path
    name: str
    """What its documents are named after: the path as given, never an absolute one."""
    format: str
    """txt, md, py, jsonl, csv or parquet."""
    compression: str
    """"", gz or zst."""


@dataclass(frozen=True)
class LocalFiles:
    """The files of a source, in the order of reading."""

    train: list[LocalFile]
    validation: list[LocalFile]
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
    num_bytes = sum(file.path.stat().st_size for file in files)
    return Source(
        name="local files",
        train=_reader(found.train),
        validation=_reader(found.validation) if found.validation else None,
        origin={"kind": "files", "files": len(files), "file_bytes": num_bytes},
    )


def find_files(config: SourceConfig) -> LocalFiles:
    """The files of `train_file` and of `validation_file`, without reading them.

    Raises:
        DataError: see `open_local`.
    """
    assert config.train_file is not None
    left_out: list[str] = []
    train = _find(config.train_file, "data.train_file", left_out)
    validation = _find(config.validation_file, "data.validation_file", left_out)
    shared = sorted({path.resolve() for path in train} & {path.resolve() for path in validation})
    if shared:
        raise DataError(
            f"{shared[0]}: is in both data.train_file and data.validation_file; leave "
            f"validation_file out (null) to cut data.validation_fraction of the documents instead"
        )
    names = _names([*train, *validation])
    return LocalFiles(
        train=[_local_file(path, names[path]) for path in train],
        validation=[_local_file(path, names[path]) for path in validation],
        left_out=left_out,
    )


def _reader(files: list[LocalFile]) -> Callable[[Intake], Iterator[Document]]:
    def read(intake: Intake) -> Iterator[Document]:
        for file in files:
            yield from iter_file(file, intake)

    return read


def iter_file(file: LocalFile, intake: Intake) -> Iterator[Document]:
    """The documents of one file, in order.

    Raises:
        DataError: it cannot be read, or has a bad record and on_bad_line does not say to skip it.
    """
    if file.format == "parquet":
        yield from iter_parquet(file.path, file.name, intake)
        return
    with open_text(file.path, file.name, file.compression) as stream:
        yield from _TEXT_READERS[file.format](stream, file.name, intake)


# --------------------------------------------------------------------------- finding


def _find(entries: str | list[str] | None, key: str, left_out: list[str]) -> list[Path]:
    found: dict[Path, Path] = {}
    for entry in [entries] if isinstance(entries, str) else entries or []:
        for path in _expand(entry, key, left_out):
            found.setdefault(path.resolve(), path)  # listed twice is read once
    return list(found.values())


def _expand(entry: str, key: str, left_out: list[str]) -> list[Path]:
    path = Path(entry).expanduser()
    if path.is_dir():
        paths = sorted(_walk(path), key=_posix)
        return _readable(paths, f"{key}: directory {entry}", left_out)
    if path.exists():
        _check_named_file(path, key)
        return [path]
    if glob.has_magic(entry):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise DataError(f"{key}: nothing matches {shown(entry)} in {Path.cwd()}")
        paths = [match for match in matches if match.is_file()]
        return _readable(paths, f"{key}: glob {entry}", left_out)
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
    if _format_of(path) is None:
        hint = ""
        if path.suffix == ".json":
            hint = "; one JSON document cannot be read in parts: convert it to one object a line"
        elif path.suffix[1:] in _COMPRESSIONS:
            hint = "; the format comes from the suffix before: name it like data.jsonl.gz"
        raise DataError(f"{key}: {path} is of an unknown kind (known: {_KNOWN}){hint}")
    if path.stat().st_size == 0:
        raise DataError(f"{key}: {path} is empty")


def _readable(paths: list[Path], what: str, left_out: list[str]) -> list[Path]:
    readable = [path for path in paths if _format_of(path)]
    if not readable:
        raise DataError(
            f"{what} has no file of a known kind (known: {_KNOWN}); {len(paths):,} others"
        )
    if len(readable) < len(paths):
        others = sorted({path.suffix or path.name for path in paths if not _format_of(path)})
        shown = ", ".join(others[:6]) + (", ..." if len(others) > 6 else "")
        left_out.append(
            f"{what}: {len(paths) - len(readable)} files of other kinds are left out ({shown})"
        )
    return readable


def _format_of(path: Path) -> tuple[str, str] | None:
    parts = path.name.lower().split(".")[1:]
    compression = parts.pop() if parts and parts[-1] in _COMPRESSIONS else ""
    kind = parts[-1] if parts else ""
    if kind not in _FORMATS or (kind == "parquet" and compression):
        return None
    return kind, compression


def _local_file(path: Path, name: str) -> LocalFile:
    kind = _format_of(path)
    assert kind is not None
    return LocalFile(path, name, *kind)


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
