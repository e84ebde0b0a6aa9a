"""The ledger: what came into a stage, what left it, and what became of the rest.

Documents, bytes and tokens in, plus what the stage added itself (the further pieces of a long
document, say), are equal to those out plus those dropped, by reason. A stage whose ledger does not
balance has lost something without a word, and fails. Price: a few integer additions a document.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Any

from llm_trainer.exceptions import IntegrityError


@dataclass(slots=True)
class Count:
    """A number of documents, of bytes of UTF-8 text, and of tokens."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def plus(self, documents: int, num_bytes: int, tokens: int) -> None:
        """Add to this count in place."""
        assert min(documents, num_bytes, tokens) >= 0
        self.documents += documents
        self.bytes += num_bytes
        self.tokens += tokens


class Ledger:
    """The books of one stage.

    Args:
        stage: its name, for messages.

    Attributes:
        into: what the stage read.
        added: what it made itself, by reason.
        out: what it wrote.
        dropped: what it left out, by reason.
        notes: counts of what changed no balance (blank lines skipped, say).
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.into = Count()
        self.out = Count()
        self.added: dict[str, Count] = {}
        self.dropped: dict[str, Count] = {}
        self.notes: dict[str, int] = {}

    def take_in(self, documents: int = 0, num_bytes: int = 0, tokens: int = 0) -> None:
        """Enter what was read."""
        self.into.plus(documents, num_bytes, tokens)

    def give_out(self, documents: int = 0, num_bytes: int = 0, tokens: int = 0) -> None:
        """Enter what was written."""
        self.out.plus(documents, num_bytes, tokens)

    def add(self, reason: str, documents: int = 0, num_bytes: int = 0, tokens: int = 0) -> None:
        """Enter what the stage made out of nothing: end tokens, the pieces of a split document."""
        self.added.setdefault(reason, Count()).plus(documents, num_bytes, tokens)

    def drop(self, reason: str, documents: int = 0, num_bytes: int = 0, tokens: int = 0) -> None:
        """Enter what was read and not written, and why."""
        self.dropped.setdefault(reason, Count()).plus(documents, num_bytes, tokens)

    def note(self, name: str, count: int = 1) -> None:
        """Count something that is neither a document nor text."""
        self.notes[name] = self.notes.get(name, 0) + count

    def merge(self, other: Ledger) -> None:
        """Add the books of another part of the same stage."""
        self.into.plus(*astuple(other.into))
        self.out.plus(*astuple(other.out))
        for reason, count in other.added.items():
            self.add(reason, *astuple(count))
        for reason, count in other.dropped.items():
            self.drop(reason, *astuple(count))
        for name, number in other.notes.items():
            self.note(name, number)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Ledger:
        """The books that `to_dict` gave."""
        ledger = cls(values["stage"])
        ledger.into, ledger.out = Count(**values["in"]), Count(**values["out"])
        ledger.added = {reason: Count(**count) for reason, count in values["added"].items()}
        ledger.dropped = {reason: Count(**count) for reason, count in values["dropped"].items()}
        ledger.notes = dict(values["notes"])
        return ledger

    def check(self) -> None:
        """Make sure that the books balance.

        Raises:
            IntegrityError: in + added is not out + dropped; names the unit and all four numbers.
        """
        problems = []
        for unit in ("documents", "bytes", "tokens"):
            into, out = getattr(self.into, unit), getattr(self.out, unit)
            added = sum(getattr(count, unit) for count in self.added.values())
            dropped = sum(getattr(count, unit) for count in self.dropped.values())
            if into + added != out + dropped:
                problems.append(
                    f"{into:,} {unit} in + {added:,} added, but {out:,} out + {dropped:,} dropped"
                )
        if problems:
            raise IntegrityError(
                f"the ledger of {self.stage} does not balance: {'; '.join(problems)}; this is a "
                f"bug, nothing was written"
            )

    def to_dict(self) -> dict[str, Any]:
        """The books as plain values, reasons in alphabetical order."""
        return {
            "stage": self.stage,
            "in": asdict(self.into),
            "added": {reason: asdict(self.added[reason]) for reason in sorted(self.added)},
            "out": asdict(self.out),
            "dropped": {reason: asdict(self.dropped[reason]) for reason in sorted(self.dropped)},
            "notes": dict(sorted(self.notes.items())),
        }
