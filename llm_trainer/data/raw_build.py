"""From chunks of documents to the files of data/raw, with a state that a later process can take up.

How: each document is given its side, entered in the books, and written, in the order of the source.
Whenever a file is complete, the state is saved beside the files: which files there are, where in
the source reading goes on, the books, and the documents of the other side whose file is not full
yet (`Pending`). A process that is killed loses at most what it had read since: one file's worth.
Price: a file of 64 MiB of text is synced and hashed when it is complete, and validation documents
are written once more, into the list of those pending, when they come one by one among others.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_trainer.config import SourceConfig
from llm_trainer.data.chunks import CHUNK_DOCUMENTS, Chunk
from llm_trainer.data.documents import content_hash
from llm_trainer.data.duplicates import DuplicateCounter
from llm_trainer.data.intake import Intake
from llm_trainer.data.jsonl import refuse_empty
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.pending import Pending
from llm_trainer.data.raw_file import RawWriter, read_documents
from llm_trainer.data.sources import SPLITS, Placing, Split
from llm_trainer.data.units import Part, Unit
from llm_trainer.digests import sha256_file
from llm_trainer.exceptions import IntegrityError
from llm_trainer.files import fsync_directory, fsync_file, write_json
from llm_trainer.json_file import read_json

logger = logging.getLogger(__name__)

_STATE = "state.json"
_FORMAT = 1


class RawBuild:
    """The files of data/raw while they are made, in a directory of their own.

    Args:
        directory: where; what is there is taken up if it was made for `identity`, else removed.
        identity: a digest of all that the files depend on; None if that cannot be told, so that
            nothing is taken up.
        name: of the source, for messages.
        config: see `SourceConfig`.
        own_validation: whether the source has a validation set of its own.

    Attributes:
        phase: which set of the source is being read.
        unit: number of the unit that is being read.
        skip: documents of this unit that were dealt with.
        lines_before: lines of the file before the unit, if that is a range of lines.
        num_bad: bad records so far.
        resumed: documents that were found written.
        replay_from: documents of the unit to pass over before `replay`, which takes those up to
            `skip`; None if there is nothing to replay.
    """

    def __init__(
        self,
        directory: Path,
        identity: str | None,
        name: str,
        config: SourceConfig,
        *,
        own_validation: bool,
    ) -> None:
        self.phase: Split = "validation" if own_validation else "train"
        self.unit = 0
        self.skip = 0
        self.lines_before = 0
        self.num_bad = 0
        self.resumed = 0
        self.replay_from: int | None = None
        self.ledger = Ledger("download")
        self.copies = DuplicateCounter()
        self.placing = Placing(name, config, own_validation=own_validation)
        self._config = config
        self._directory = directory
        self._identity = identity
        self._own_validation = own_validation
        self._blank = 0  # lines of the file of `lines_before` that hold nothing
        self._digests: dict[str, str] = {}
        self._tail = 0  # documents of this unit before those that no complete training file has
        self._is_committed = False
        state = self._usable_state()
        if state is None:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            names: dict[Split, list[str]] = {split: [] for split in SPLITS}
        else:
            names = {split: state["files"][split] for split in SPLITS}
        self.writers = {split: RawWriter(directory, split, names[split]) for split in SPLITS}
        self._pending = Pending(
            directory, "validation", len(names["validation"]), state and state["pending"]
        )
        if state is not None:
            self._restore(state)

    # ------------------------------------------------------------------- reading on

    def most(self) -> int:
        """Documents that the next chunk may have, so that none is read that is not wanted."""
        room = self.placing.room
        return CHUNK_DOCUMENTS if room is None or self.phase == "validation" else max(1, room)

    def takes(self, chunk: Chunk) -> bool:
        """Whether `add` may be called: a chunk may end in, but not go beyond, the last wanted."""
        return len(chunk) <= self.most() or self.phase == "validation"

    @property
    def is_full(self) -> bool:
        """Whether no more documents are wanted."""
        return self.phase == "train" and self.placing.is_full

    def add(self, unit: Unit | None, chunk: Chunk, rename: bool = False) -> Iterator[int]:
        """Take in the next chunk of the unit; yields the bytes of each document written.

        `rename` if the names of its documents count the lines of a range from its start.
        """
        assert self.takes(chunk)
        self.ledger.merge(chunk.ledger)
        self.num_bad += chunk.num_bad
        self._blank += chunk.ledger.notes.get("blank_lines", 0)
        lines = unit.lines if unit is not None else None
        before = {split: writer.num_complete for split, writer in self.writers.items()}
        num_train = self.writers["train"].num_complete
        for number, (data, digest, source) in enumerate(chunk.documents()):
            split = self.placing.place(self.phase, digest)
            if split is None:
                self.ledger.drop("in_validation", 1, len(data))
                continue
            if rename and lines is not None and self.lines_before:
                source = renumbered(source, lines, self.lines_before)
            self._write(split, data, source)
            if split == "train":
                self.copies.add(digest)
                if self.writers["train"].num_complete > num_train:
                    num_train = self.writers["train"].num_complete
                    self._tail = self.skip + number + 1
            yield len(data)
        self.skip += len(chunk)
        new = {split for split in SPLITS if self.writers[split].num_complete > before[split]}
        if self._identity is not None and self.phase in new:
            self._commit()

    def end_unit(self, unit: Unit | None, num_lines: int) -> None:
        """Go on to the next unit; `num_lines` are those of this one, if it is a range of lines."""
        lines = unit.lines if unit is not None else None
        self.lines_before = self.lines_before + num_lines if lines is not None else 0
        if lines is not None and lines.stop is None:
            if self.lines_before == self._blank:
                intake = Intake(self._config, self.ledger)
                intake.num_bad = self.num_bad
                refuse_empty(lines.file.name, intake)
                self.num_bad = intake.num_bad
            self.lines_before = 0
        if self.lines_before == 0:
            self._blank = 0
        self.unit, self.skip, self._tail = self.unit + 1, 0, 0

    def end_phase(self) -> None:
        """Go on to the training set, or finish."""
        self.placing.end(self.phase)
        self.phase, self.unit, self.skip, self._tail = "train", 0, 0, 0

    def close(self) -> None:
        """Complete the last files."""
        for writer in self.writers.values():
            writer.close()
            self.ledger.give_out(writer.num_documents, writer.num_bytes)
        self.ledger.check()

    def link_into(self, directory: Path) -> None:
        """Put the files into `directory` too; here they stay until that is complete."""
        for writer in self.writers.values():
            for name in writer.names:
                try:
                    os.link(self._directory / name, directory / name)
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                        raise
                    # a file system without links
                    shutil.copy2(self._directory / name, directory / name)

    def abandon(self) -> None:
        """Close what is open after an error; what was committed stays for the next process."""
        for writer in self.writers.values():
            writer.abandon()
        with suppress(OSError):  # of a full disk, which is why we are here
            self._pending.close()
        if not self._is_committed:
            self.remove()

    def remove(self) -> None:
        """Remove the directory."""
        with suppress(OSError):
            self._pending.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self, split: Split, data: bytes, source: str) -> None:
        writer = self.writers[split]
        number = writer.num_complete
        writer.add(data, source)
        if split == "validation" and self._identity is not None:
            if writer.num_complete > number:
                self._pending.start(writer.num_complete)
            else:
                self._pending.add(data, source)

    # ------------------------------------------------------------------- committing

    def _commit(self) -> None:
        self._pending.sync()
        complete = {split: writer.names[: writer.num_complete]
                    for split, writer in self.writers.items()}  # fmt: skip
        for names in complete.values():
            for name in names:
                if name not in self._digests:
                    fsync_file(self._directory / name)
                    self._digests[name] = sha256_file(self._directory / name)
        fsync_directory(self._directory)
        placing = self.placing
        state = {
            "format": _FORMAT,
            "identity": self._identity,
            "files": complete,
            "digests": self._digests,
            "pending": self._pending.to_dict(),
            "phase": self.phase,
            "unit": self.unit,
            "skip": self.skip,
            "tail": self._tail if self.phase == "train" else self.skip,
            "lines_before": self.lines_before,
            "blank": self._blank,
            "num_bad": self.num_bad,
            "ledger": self.ledger.to_dict(),
            "copies": self.copies.to_dict(),
            "counts": dict(placing.counts),
            "shared": placing.shared,
            "fractions": [placing.lowest, placing.highest],
            "written": {
                split: [writer.complete_documents, writer.complete_bytes]
                for split, writer in self.writers.items()
            },
        }
        write_json(self._directory / _STATE, state)
        self._pending.forget_older()
        self._is_committed = True

    def _usable_state(self) -> dict[str, Any] | None:
        path = self._directory / _STATE
        if self._identity is None or not path.is_file():
            return None
        try:
            state = read_json(path)
            if (state["format"], state["identity"]) != (_FORMAT, self._identity):
                return None
            for name, digest in state["digests"].items():
                if sha256_file(self._directory / name) != digest:
                    raise IntegrityError(f"{name} is damaged")
            Pending.read(self._directory, state["pending"])
        except (OSError, KeyError, TypeError, IntegrityError) as error:
            logger.warning("what an earlier download left is not usable (%s): starting anew", error)
            return None
        assert isinstance(state, dict)
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.phase, self.unit, self.skip = state["phase"], state["unit"], state["skip"]
        self.lines_before, self._blank = state["lines_before"], state["blank"]
        self.num_bad, self._tail = state["num_bad"], state["tail"]
        self.replay_from = self._tail if self._tail < self.skip else None
        self._digests = state["digests"]
        self.ledger = Ledger.from_dict(state["ledger"])
        self.copies = DuplicateCounter.from_dict(state["copies"])
        placing = self.placing
        placing.counts, placing.shared = state["counts"], state["shared"]
        placing.lowest, placing.highest = state["fractions"]
        for split, (documents, num_bytes) in state["written"].items():
            writer = self.writers[split]
            writer.num_documents = writer.complete_documents = documents
            writer.num_bytes = writer.complete_bytes = num_bytes
        self.resumed = sum(documents for documents, _ in state["written"].values())
        if self._own_validation:
            for name in state["files"]["validation"]:
                for document in read_documents(self._directory / name):
                    placing.known.add(content_hash(document.text.encode()))
        for data, source in Pending.read(self._directory, state["pending"]):
            self.writers["validation"].add(data, source)
            if self._own_validation:
                placing.known.add(content_hash(data))
        self._is_committed = True

    def replay(self, chunk: Chunk, number: int) -> None:
        """Write again the training documents of a chunk that were in no complete file.

        `number` is that of its first document within the unit; what was counted stays so.
        """
        for data, digest, source in chunk.documents():
            if number >= self.skip:
                return
            if self.placing.side(self.phase, digest) == "train":
                self._write("train", data, source)
            number += 1


def renumbered(source: str, part: Part, lines_before: int) -> str:
    """The name of a document with the lines before its part counted: `a.jsonl:3#1` and so on."""
    name = part.file.name
    line, mark, piece = source[len(name) + 1 :].partition("#")
    return f"{name}:{int(line) + lines_before}{mark}{piece}"
