"""data/raw: the corpus as documents, written once from any source, read by all stages after it.

A directory of Parquet files (see `raw_file`) with a manifest: sha256 of each file, documents and
bytes of each split, the ledger, and where the text came from. `build_raw` reads the source once,
in memory that does not depend on its size (but for 100 bytes per document of a validation set that
the source has of its own), and leaves the old directory or a complete new one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_trainer.config import SourceConfig
from llm_trainer.config.checks import flags, instance, place, refuse
from llm_trainer.data.documents import Document
from llm_trainer.data.duplicates import DuplicateCounter
from llm_trainer.data.engine import LOCAL, Engine
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.raw_build import RawBuild
from llm_trainer.data.raw_file import read_documents
from llm_trainer.data.raw_fill import fill, identity
from llm_trainer.data.raw_groups import REMEDY
from llm_trainer.data.sources import SPLITS, Split, open_source
from llm_trainer.exceptions import ConfigurationError, DataError, IntegrityError
from llm_trainer.files import atomic_directory
from llm_trainer.manifests import (
    MANIFEST_NAME,
    is_sealed,
    manifest_digest,
    read_manifest,
    seal_manifest,
    verify_manifest,
    write_manifest,
)

KIND = "raw"
_MIB = 2**20


def build_raw(
    config: SourceConfig, out: Path, *, progress: bool = True, engine: Engine = LOCAL
) -> dict[str, Any]:
    """Read the source that `config` names and write its documents to the directory `out`.

    The same documents give the same bytes, whatever the engine and its number of workers. A run
    that was killed goes on from its last complete file when it is given again. `progress` shows a
    bar, on a terminal only.

    Returns:
        Metrics, a flat dictionary: documents and bytes (of UTF-8 text) of each split, dropped
        documents by reason, exact copies within train, seconds, speed, digest and origin.

    Raises:
        ConfigurationError: `config` has an impossible value.
        DataError: the source is missing, empty, malformed, or gives no documents for a split.
        LLMTrainerError: `out` cannot be written or the disk is full; Ray cannot be started or
            reached, or loses the same part again and again.
    """
    refuse(
        ConfigurationError,
        instance("config", config, SourceConfig),
        place("out", out),
        flags(progress=progress),
        instance("engine", engine, Engine),
    )
    config.validate()
    started = time.perf_counter()
    source = open_source(config)
    with atomic_directory(out) as directory:
        build = RawBuild(
            Path(out).parent / f".partial-progress-{Path(out).name}",
            identity(source, config),
            source.name,
            config,
            own_validation=source.validation is not None,
        )
        try:
            sizes = fill(build, source, config, engine)
            for _ in _with_progress(sizes) if progress else sizes:
                pass
            build.close()
            build.link_into(directory)
        except BaseException:
            build.abandon()
            raise
        splits = {
            split: {
                "documents": writer.num_documents,
                "bytes": writer.num_bytes,
                "files": writer.names,
            }
            for split, writer in build.writers.items()
        }
        manifest = write_manifest(
            directory, KIND, splits=splits, ledger=build.ledger.to_dict(), origin=source.origin
        )
        manifest = seal_manifest(directory, manifest)
    build.remove()
    return _metrics(
        source.name, manifest, build.ledger, build.copies, time.perf_counter() - started
    )


def _metrics(
    name: str, manifest: dict[str, Any], ledger: Ledger, copies: DuplicateCounter, seconds: float
) -> dict[str, Any]:
    metrics: dict[str, Any] = {"dataset_name": name, "raw_digest": manifest_digest(manifest)}
    metrics |= {key: value for key, value in manifest["origin"].items() if value is not None}
    del metrics["kind"]
    for split in SPLITS:
        metrics[f"{split}_documents"] = manifest["splits"][split]["documents"]
        metrics[f"{split}_bytes"] = manifest["splits"][split]["bytes"]
    for reason, count in sorted(ledger.dropped.items()):
        metrics[f"dropped_{reason}_documents"] = count.documents
        metrics[f"dropped_{reason}_bytes"] = count.bytes
    metrics[f"train_duplicate_documents{'' if copies.is_exact else '_estimate'}"] = copies.count
    metrics["seconds"] = round(seconds, 3)
    metrics["megabytes_per_second"] = round(ledger.into.bytes / 1e6 / max(seconds, 1e-9), 2)
    return metrics


def _with_progress(sizes: Iterator[int]) -> Iterator[int]:
    from tqdm import tqdm

    documents = pending = 0
    with tqdm(desc="download", unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar:
        for size in sizes:
            yield size
            documents += 1
            pending += size
            if pending >= _MIB or documents % 1024 == 0:
                bar.set_postfix_str(f"{documents:,} documents", refresh=False)
                bar.update(pending)
                pending = 0
        bar.set_postfix_str(f"{documents:,} documents", refresh=False)
        bar.update(pending)


class RawCorpus:
    """The documents that `build_raw` wrote.

    Args:
        path: the directory.
        verify: hash every file against the manifest first (about 1 GB/s). Without it, damage is
            noticed only where a page that is read differs from its checksum.

    Raises:
        IntegrityError: the directory is missing, damaged, incomplete, or of another kind.
    """

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        refuse(DataError, place("path", path), flags(verify=verify))
        self.path = Path(path)
        check = verify_manifest if verify else read_manifest
        self.manifest = check(self.path, KIND, remedy=REMEDY)
        if not is_sealed(self.manifest):
            raise IntegrityError(
                f"{self.path / MANIFEST_NAME}: content differs from its seal; {REMEDY}"
            )
        if not _is_schema(self.manifest):
            raise IntegrityError(
                f"{self.path}: the manifest does not describe raw documents; {REMEDY}"
            )

    @property
    def digest(self) -> str:
        """The identity of the corpus: a digest of its files."""
        return manifest_digest(self.manifest)

    def num_documents(self, split: Split) -> int:
        """Documents in a split."""
        return int(self._split(split)["documents"])

    def num_bytes(self, split: Split) -> int:
        """Bytes of UTF-8 text in a split."""
        return int(self._split(split)["bytes"])

    def files(self, split: Split) -> list[Path]:
        """The Parquet files of a split, in order."""
        return [self.path / name for name in self._split(split)["files"]]

    def iter_documents(self, split: Split) -> Iterator[Document]:
        """The documents of a split, in order, in bounded memory.

        Raises:
            IntegrityError: a file is damaged, or does not hold what the manifest says.
        """
        number = 0
        for file in self.files(split):
            for document in read_documents(file):
                yield document
                number += 1
        if number != self.num_documents(split):
            raise IntegrityError(
                f"{self.path}: {number:,} documents in {split}, but the manifest says "
                f"{self.num_documents(split):,}; {REMEDY}"
            )

    def _split(self, split: Split) -> dict[str, Any]:
        if split not in SPLITS:
            raise DataError(f"no split {split!r} in {self.path}; there are {', '.join(SPLITS)}")
        entry: dict[str, Any] = self.manifest["splits"][split]
        return entry


def _is_schema(manifest: dict[str, Any]) -> bool:
    splits = manifest.get("splits")
    if not isinstance(splits, dict) or set(splits) != set(SPLITS):
        return False
    if not all(isinstance(manifest.get(name), dict) for name in ("origin", "ledger")):
        return False
    return all(
        isinstance(entry, dict)
        and isinstance(entry.get("documents"), int)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("files"), list)
        and all(isinstance(name, str) and name in manifest["files"] for name in entry["files"])
        for entry in splits.values()
    )
