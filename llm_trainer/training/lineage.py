"""What made a model: `lineage.json` beside its weights.

It holds digests, parameters and versions, never times, run ids or paths of a machine: the same
training gives the same bytes, so nothing downstream wakes up for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import IntegrityError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json

LINEAGE_NAME = "lineage.json"
LINEAGE_FORMAT = 1


@dataclass(frozen=True)
class Lineage:
    """Content of `lineage.json`."""

    fingerprint: str
    """Hex sha256 of all that the weights depend on; names the run everywhere."""
    tokenizer_digest: str
    """sha256 of the tokenizer's file."""
    data: dict[str, Any] = field(default_factory=dict)
    """packed_digest, raw_digest, and origin: what the raw text was made from."""
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The sections model and training."""
    code: dict[str, str] = field(default_factory=dict)
    """Path in the repository -> sha256 of each source file that the numbers depend on."""
    packages: dict[str, str] = field(default_factory=dict)
    """Package -> version."""


def write_lineage(
    model_dir: str | Path,
    *,
    fingerprint: str,
    tokenizer_digest: str,
    data: Mapping[str, Any],
    params: Mapping[str, Mapping[str, Any]],
    code: Mapping[str, str],
    packages: Mapping[str, str],
) -> Lineage:
    """Write `lineage.json` into a model directory (before its manifest) and return it."""
    lineage = Lineage(
        fingerprint=fingerprint,
        tokenizer_digest=tokenizer_digest,
        data=dict(data),
        params={name: dict(section) for name, section in params.items()},
        code=dict(code),
        packages=dict(packages),
    )
    write_json(Path(model_dir) / LINEAGE_NAME, {"format": LINEAGE_FORMAT, **asdict(lineage)})
    return lineage


def read_lineage(path: str | Path) -> Lineage:
    """Read the lineage of a model directory, or the file itself.

    Raises:
        IntegrityError: missing, damaged, or of another format.
    """
    path = Path(path)
    if path.is_dir() or path.suffix != ".json":
        path = path / LINEAGE_NAME
    values = read_json(path)
    texts = ("fingerprint", "tokenizer_digest")
    tables = ("data", "params", "code", "packages")
    if (
        not isinstance(values, dict)
        or values.pop("format", None) != LINEAGE_FORMAT
        or set(values) != {f.name for f in fields(Lineage)}
        or not all(isinstance(values[name], str) for name in texts)
        or not all(isinstance(values[name], dict) for name in tables)
    ):
        raise IntegrityError(
            f"{path}: not a lineage file of format {LINEAGE_FORMAT}; train the model again "
            f"(`dvc repro train`)"
        )
    return Lineage(**values)
