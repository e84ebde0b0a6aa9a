"""Pack a raw corpus: text in, rows of token ids in Arrow shards out.

How: row groups are encoded in several processes (`encode_pool`), joined in document order, made
into rows (`concat`, `best_fit`, `single`) and written as shards of bounded size, one split after
the other, all under a temporary name until the manifest is there. The bytes do not depend on the
number of processes.
Price: the encoder is the limit. Memory is two row groups a process (at least one long document
each), a record batch, and with best_fit a window of 4 M tokens, whatever the size of the corpus.

What is counted: `tokens` are targets, the tokens of each document and its end token; `bytes` are
the UTF-8 bytes of the documents they cover, so bits per byte divides by the same number whatever
the tokenizer. For that reason `min_length`, which counts tokens, applies to training documents
only: the validation set is every document that is not empty.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_trainer.config.checks import flags, instance, place, refuse, whole
from llm_trainer.config.data import PackingConfig
from llm_trainer.data.encode import EncodedChunk, list_tasks, peak_rss_bytes
from llm_trainer.data.encode_pool import PoolStats, encode_tasks
from llm_trainer.data.engine import LOCAL, Engine
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.packed_manifest import SPLITS, Split, write_packed_manifest
from llm_trainer.data.packers import create_packer
from llm_trainer.data.row_batch import EncodedDocuments
from llm_trainer.data.shard_file import id_dtype
from llm_trainer.data.shard_writer import ShardSummary, ShardWriter
from llm_trainer.exceptions import ConfigurationError, DataError, IntegrityError
from llm_trainer.files import atomic_directory

if TYPE_CHECKING:
    from llm_trainer.data.raw import RawCorpus
    from llm_trainer.tokenizer.bpe import BPETokenizer


def pack_corpus(
    raw: RawCorpus,
    tokenizer: BPETokenizer,
    config: PackingConfig,
    out: str | os.PathLike[str],
    *,
    num_workers: int,
    progress: bool = True,
    engine: Engine = LOCAL,
) -> dict[str, Any]:
    """Encode and pack both splits of `raw` into the directory `out`, which is replaced.

    Args:
        raw: a verified corpus.
        tokenizer: trained; its digest is recorded, and asked for when the rows are used.
        config: row length, strategy, shard size.
        out: written as a whole or not at all.
        num_workers: processes that encode; 1 is this one. Any number gives the same bytes.
        engine: who runs them; with Ray `engine.num_workers` counts, not `num_workers`.
        progress: show a bar if stderr is a terminal.

    Returns:
        Flat metrics; times and memory are only here, never in `out`.

    Raises:
        DataError: a split has no documents, or train does not fill one row.
        IntegrityError: the raw files changed meanwhile, or the ledger does not balance.
        LLMTrainerError: a worker process died, or the disk is full.
    """
    _check_arguments(raw, tokenizer, config, out, num_workers, progress, engine)
    digest = tokenizer.digest
    started = time.perf_counter()
    for split in SPLITS:
        if raw.num_documents(split) < 1:
            raise DataError(_no_documents(raw, split))
    tasks = list_tasks(list(raw.files("train")), "train", config.min_length)
    tasks += list_tasks(list(raw.files("validation")), "validation", min_length=0)
    stats = PoolStats()
    packs: dict[str, _SplitPack] = {}
    with atomic_directory(out) as directory:
        dtype = id_dtype(tokenizer.vocab_size)
        if engine.name == "ray":
            from llm_trainer.data.encode_ray import encode_on_ray

            encoded = encode_on_ray(tasks, tokenizer, dtype=dtype, engine=engine, stats=stats)
        else:
            encoded = encode_tasks(
                tasks, tokenizer, dtype=dtype, num_workers=num_workers, stats=stats
            )
        with closing(encoded):
            for split, group in itertools.groupby(encoded, key=lambda pair: pair[0].split):
                packs[split] = pack = _SplitPack(split, raw, tokenizer, config, directory)
                for chunk in _shown((chunk for _, chunk in group), raw, split, progress):
                    pack.add(chunk)
                pack.close()
        write_packed_manifest(
            directory,
            row_length=config.max_length,
            dtype=dtype.name,
            strategy=config.strategy,
            vocab_size=tokenizer.vocab_size,
            end_id=tokenizer.end_id,
            pad_id=tokenizer.pad_id,
            tokenizer_digest=digest,
            raw_digest=raw.digest,
            origin=raw.manifest["origin"],
            splits={split: pack.entry() for split, pack in packs.items()},
            ledger={split: pack.ledger.to_dict() for split, pack in packs.items()},
        )
    return _metrics(packs, stats, time.perf_counter() - started)


class _SplitPack:
    """One split on its way from encoded documents to shards, and its books."""

    def __init__(
        self,
        split: Split,
        raw: RawCorpus,
        tokenizer: BPETokenizer,
        config: PackingConfig,
        directory: Path,
    ) -> None:
        self.split = split
        self.ledger = Ledger(f"pack_sequences, {split}")
        self.summary = ShardSummary()
        self._raw = raw
        self._config = config
        dtype = id_dtype(tokenizer.vocab_size)
        self._packer = create_packer(
            config.strategy,
            row_length=config.max_length,
            end_id=tokenizer.end_id,
            pad_id=tokenizer.pad_id,
            dtype=dtype,
        )
        self._writer: ShardWriter | None = ShardWriter(
            directory,
            split,
            row_length=config.max_length,
            dtype=dtype,
            shard_bytes=config.shard_bytes,
        )

    def add(self, chunk: EncodedChunk) -> None:
        """Pack the next documents of the split."""
        assert self._writer is not None, "closed"
        first = self.ledger.into.documents
        kept, dropped = len(chunk.kept), chunk.dropped.values()
        tokens = len(chunk.ids) - kept
        self.ledger.take_in(
            chunk.num_documents, chunk.num_bytes, tokens + sum(drop.tokens for drop in dropped)
        )
        self.ledger.add("end tokens", tokens=kept)
        for reason, drop in chunk.dropped.items():
            self.ledger.drop(reason, *drop)
        self.ledger.give_out(kept, chunk.kept_bytes)  # tokens: as the shards have them, at the end
        documents = EncodedDocuments(chunk.ids, chunk.sizes, first + chunk.kept)
        for rows in self._packer.add(documents):
            self._writer.write(rows)

    def close(self) -> None:
        """Write what is left, free the memory, and check the books."""
        assert self._writer is not None, "closed"
        for rows in self._packer.finish():
            self._writer.write(rows)
        self.summary = self._writer.close()
        self._writer = None
        ledger, summary = self.ledger, self.summary
        ledger.give_out(tokens=summary.tokens)
        ledger.note("documents split over rows", self._packer.num_split)
        ledger.note("document pieces", summary.pieces)
        ledger.note("padding tokens", summary.padding)
        ledger.check()
        expected = self._raw.num_documents(self.split), self._raw.num_bytes(self.split)
        if (ledger.into.documents, ledger.into.bytes) != expected:
            raise IntegrityError(
                f"{self._raw.path}: split '{self.split}' gave {ledger.into.documents:,} documents "
                f"of {ledger.into.bytes:,} bytes, but its manifest says {expected[0]:,} of "
                f"{expected[1]:,}; run `dvc repro download`"
            )
        self._require_rows()

    def entry(self) -> dict[str, Any]:
        """This split's entry in the manifest."""
        return {
            "rows": self.summary.rows,
            "tokens": self.summary.tokens,
            "documents": self.ledger.out.documents,
            "bytes": self.ledger.out.bytes,
            "max_id": self.summary.max_id,
            "files": self.summary.files,
        }

    def _require_rows(self) -> None:
        config, ledger = self._config, self.ledger
        needed = config.max_length - 1 if self.split == "train" else 1
        found = self.summary.tokens
        if found >= needed:
            return
        documents = f"{ledger.into.documents:,} documents" + "".join(
            f", {count.documents:,} dropped: {reason}" for reason, count in ledger.dropped.items()
        )
        remedy = "use more text"
        if self.split == "train" and found >= 2:
            remedy += f" or set packing.max_length to {found + 1:,} or less"
        if "min_length" in ledger.dropped:
            remedy += f" or lower packing.min_length ({config.min_length})"
        raise DataError(
            f"{self._raw.path}: the {self.split} split has {found:,} tokens "
            f"({documents}), too few for one row of packing.max_length ({config.max_length:,}); "
            f"{remedy}"
        )


def _check_arguments(
    raw: RawCorpus, tokenizer: BPETokenizer, config: PackingConfig, out: object,
    num_workers: int, progress: bool, engine: Engine,
) -> None:  # fmt: skip
    from llm_trainer.data.raw import RawCorpus
    from llm_trainer.tokenizer.bpe import BPETokenizer

    refuse(
        ConfigurationError,
        instance("raw", raw, RawCorpus),
        instance("tokenizer", tokenizer, BPETokenizer),
        instance("config", config, PackingConfig),
        place("out", out),
        whole("num_workers", num_workers, 1),
        flags(progress=progress),
        instance("engine", engine, Engine),
    )
    config.validate()


def _no_documents(raw: RawCorpus, split: Split) -> str:
    if split == "validation":
        return (
            f"{raw.path}: there are no validation documents; raise data.validation_fraction, name "
            f"a data.validation_file, or use more text"
        )
    return f"{raw.path}: there are no {split} documents; name a data source that has text"


def _shown(
    chunks: Iterable[EncodedChunk], raw: RawCorpus, split: Split, progress: bool
) -> Iterator[EncodedChunk]:
    from tqdm import tqdm

    with tqdm(
        total=raw.num_bytes(split),
        desc=f"pack {split}",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: off unless stderr is a terminal
    ) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(chunk.num_bytes)


def _metrics(packs: dict[str, _SplitPack], stats: PoolStats, seconds: float) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for split, pack in packs.items():
        summary, ledger = pack.summary, pack.ledger
        positions = summary.tokens + summary.rows + summary.padding
        metrics |= {
            f"{split}_rows": summary.rows,
            f"{split}_tokens": summary.tokens,
            f"{split}_documents": ledger.out.documents,
            f"{split}_bytes": ledger.out.bytes,
            f"{split}_bytes_per_token": round(ledger.out.bytes / summary.tokens, 4),
            f"{split}_padding_share": round(summary.padding / positions, 6),
            f"{split}_documents_split": ledger.notes["documents split over rows"],
            f"{split}_shards": len(summary.files),
        }
        for reason, count in sorted(ledger.dropped.items()):
            metrics[f"{split}_dropped_{reason}_documents"] = count.documents
            metrics[f"{split}_dropped_{reason}_bytes"] = count.bytes
            metrics[f"{split}_dropped_{reason}_tokens"] = count.tokens
    read = sum(pack.ledger.into.bytes for pack in packs.values())
    return metrics | {
        "num_workers": stats.num_workers,
        "seconds": round(seconds, 3),
        "megabytes_per_second": round(read / 1e6 / seconds, 3),
        "peak_memory_mb": round(peak_rss_bytes() / 2**20, 1),
        "peak_worker_memory_mb": round(stats.peak_worker_bytes / 2**20, 1),
    }
