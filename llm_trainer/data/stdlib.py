"""The default corpus: the source files of the running Python's own standard library.

About 11 MB of real text that every machine has, without network or licence question. It differs
between Python versions, so the version belongs to its identity. Left out: tests, installed
packages, and what is made for one machine when Python is built or installed there.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llm_trainer.config import SourceConfig
from llm_trainer.config.data import STDLIB_DATASET
from llm_trainer.data.documents import Document, content_hash, is_validation
from llm_trainer.data.intake import Intake, Reader, Source
from llm_trainer.data.plain_text import python_encoding
from llm_trainer.exceptions import DataError

_LEFT_OUT = frozenset(
    ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")
)
_MACHINE_MADE = ("_sysconfigdata", "config-", "sitecustomize.py", "usercustomize.py")
_SALT = "393:"
"""Put before a path when it is hashed for the split. Of all numbers, the smallest for which, in
CPython 3.11 to 3.13 and at a validation_fraction of 0.03, validation has at least 24 files and
320 KB but at most 4 % of the bytes, no file is more than a quarter of it, and it compresses as well
as the whole corpus to within 3 %. Without a salt, one generated file of help texts would be 80 %
of validation."""


def open_stdlib(config: SourceConfig, root: Path | None = None) -> Source:
    """Find the standard library's source files; `root` may name another place for them.

    A file validates if a hash of its relative path says so: it stays on its side from one Python
    version to the next.

    Raises:
        DataError: this Python has no source files (they are in a zip archive, or only compiled).
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    names = stdlib_names(root)
    sides: dict[bool, list[str]] = {True: [], False: []}
    for name in names:
        digest = content_hash(f"{_SALT}{name}".encode())
        sides[is_validation(digest, config.validation_fraction)].append(name)
    return Source(
        name=STDLIB_DATASET,
        train=_reader(root, sides[False]),
        validation=_reader(root, sides[True]),
        origin={
            "kind": STDLIB_DATASET,
            "python_version": platform.python_version(),
            "python_implementation": platform.python_implementation(),
        },
    )


def stdlib_names(root: Path) -> list[str]:
    """Relative POSIX paths of the source files under `root`, sorted.

    Raises:
        DataError: there are none.
    """
    names = []
    for place, directories, files in os.walk(root):
        relative = Path(place).relative_to(root)
        directories[:] = [name for name in directories if _is_wanted(relative / name)]
        names += [
            (relative / name).as_posix()
            for name in files
            if name.endswith(".py") and _is_wanted(relative / name)
        ]
    if "os.py" not in names:
        raise DataError(
            f"data.dataset_name: {STDLIB_DATASET}: {sys.executable} has no source files of its "
            f"standard library in {root} (they are in an archive, or only compiled); use a Python "
            f"that has them, or set data.train_file or another data.dataset_name"
        )
    return sorted(names)


def _is_wanted(path: Path) -> bool:
    at_top = len(path.parts) == 1
    return path.name not in _LEFT_OUT and not (at_top and path.name.startswith(_MACHINE_MADE))


def _reader(root: Path, names: list[str]) -> Reader:
    def read(intake: Intake) -> Iterator[Document]:
        for name in names:
            try:
                data = (root / name).read_bytes()
            except OSError as error:
                raise DataError(f"{root / name}: cannot be read ({error.strerror})") from error
            try:
                # decoded as `tokenize.open` does, but with the line ends as they are
                text = data.removeprefix(b"\xef\xbb\xbf").decode(python_encoding(data))
            except (SyntaxError, UnicodeError, LookupError):
                intake.ledger.take_in(1, len(data))
                intake.ledger.drop("undecodable", 1, len(data))
                continue
            yield from intake.accept(text, name)

    return read
