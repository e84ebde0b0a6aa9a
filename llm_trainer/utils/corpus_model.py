"""How long preparing a large corpus takes on many workers, and which resource each stage waits for.

A stage reads, computes and writes at once, so it takes as long as the slowest of them (its bound),
plus what only one process does. Rates of a core are measured (docs/performance.md); network, store
and prices are assumptions, each a field of `Workers`. Nothing here was run at this size.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_trainer.config.checks import instance, number, refuse
from llm_trainer.exceptions import ConfigurationError

MB, GB = 10**6, 10**9

DOWNLOAD_RATE = 78 * MB
"""Bytes of text a second and core: decode, check, write Parquet (docs/measure_data.py, 200 MB)."""
TOKENIZER_RATE = 2.2 * MB
"""The same of counting and merging pairs, on one sample (as above)."""
PACKING_RATE = 30 * MB
"""The same of encoding and writing rows (docs/measure_data.py, 1 GB)."""
DIGEST_RATE = 1.2 * GB
"""Bytes a second and core of sha256."""
MD5_RATE = 0.5 * GB
"""Bytes a second of DVC's digest of an output, one thread."""


@dataclass(frozen=True)
class Workers:
    """What prepares a corpus, and what it costs; all assumed but `cores`."""

    count: int = 32
    cores: int = 8
    """Of each worker."""
    network: float = 1.25 * GB
    """Bytes a second of each worker: 10 Gbit/s."""
    origin: float = 2.5 * GB
    """Bytes a second that the source of the text gives in all."""
    store: float = 20 * GB
    """Bytes a second of the object store in all."""
    request_bytes: float = 8 * 2**20
    """Of one read or part of a write."""
    requests_per_second: float = 3500
    """Writes a second and prefix that the store takes."""
    head_disk: float = 0.5 * GB
    """Bytes a second of the disk of the one machine that DVC runs on."""
    core_hour: float = 0.05
    """Dollars."""
    terabyte_month: float = 23.0
    """Dollars of storage."""
    thousand_reads: float = 0.0004
    thousand_writes: float = 0.005
    terabyte_out: float = 90.0
    """Dollars of a terabyte that leaves the provider; the source's own, if it charges."""


@dataclass(frozen=True)
class Stage:
    """One stage on paper."""

    name: str
    seconds: float
    bound: str
    """What it waits for."""
    read: float
    """Bytes over the network."""
    written: float
    requests: float
    memory: float
    """Bytes of one process."""

    def row(self) -> tuple[str, ...]:
        """Cells of a table: name, time, bound, GB read and written, requests."""
        from llm_trainer.utils.planning import format_seconds

        return (
            self.name, format_seconds(self.seconds), self.bound, f"{self.read / GB:,.0f}",
            f"{self.written / GB:,.0f}", f"{self.requests:,.0f}",
        )  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """A corpus in its forms."""

    text: float
    """Bytes of plain text."""
    bytes_per_token: float = 4.4
    """English web text at a vocabulary of 50,000."""
    compression: float = 0.4
    """Size at the source (zstd) and of Parquet, over plain text."""
    sample: float = 200 * 2**20
    """Bytes that the tokenizer is trained on."""
    id_bytes: int = 2
    """2 up to 65,536 tokens, 4 above."""

    @property
    def tokens(self) -> float:
        """Tokens of the whole."""
        return self.text / self.bytes_per_token

    @property
    def rows(self) -> float:
        """Bytes of packed rows, with a tenth of a percent for document boundaries."""
        return self.tokens * self.id_bytes * 1.001


def corpus_stages(
    corpus: Corpus, workers: Workers, *, efficiency: float = 1.0, tracked: bool = True
) -> list[Stage]:
    """Download, tokenizer, packing, checking and tracking of `corpus` on `workers`, in order.

    Args:
        efficiency: parallel efficiency of the workers, as measured for two of them.
        tracked: whether DVC takes a digest of each output (it does, unless outputs are given as
            URLs of the store that it does not cache).
    """
    refuse(
        ConfigurationError,
        instance("corpus", corpus, Corpus),
        instance("workers", workers, Workers),
        number("efficiency", efficiency, above=0, most=1),
    )
    cores = workers.count * workers.cores * efficiency
    network = workers.count * workers.network
    source = corpus.text * corpus.compression
    parquet = corpus.text * corpus.compression

    def requests(size: float) -> float:
        return size / workers.request_bytes

    def timed(
        name: str, work: dict[str, float], read: float, written: float, memory: float
    ) -> Stage:
        work = {
            **work,
            "network of the workers": max(read, written) / network,
            "object store": (read + written) / workers.store,
            "requests": requests(written) / workers.requests_per_second,
        }
        bound = max(work, key=lambda key: work[key])
        asked = requests(read) + requests(written)
        return Stage(name, work[bound], bound, read, written, asked, memory)

    stages = [
        timed(
            "download",
            {"source": source / workers.origin, "cores": corpus.text / (cores * DOWNLOAD_RATE)},
            source, parquet, 121 * MB,
        ),
        timed(
            "train_tokenizer", {"one process": corpus.sample / TOKENIZER_RATE},
            corpus.sample, 0.0, 200 * MB,
        ),
        timed(
            "pack_sequences", {"cores": corpus.text / (cores * PACKING_RATE)},
            parquet, corpus.rows, 203 * MB,
        ),
        timed(
            "open the rows once", {"one process": corpus.rows / DIGEST_RATE},
            corpus.rows, 0.0, 50 * MB,
        ),
    ]  # fmt: skip
    if tracked:
        outputs = parquet + corpus.rows
        slow = min(MD5_RATE, workers.head_disk)
        stages.append(
            timed("DVC's digest of each output", {"one machine's disk": outputs / slow},
                  outputs, 0.0, 100 * MB)
        )  # fmt: skip
    return stages


def corpus_price(
    stages: list[Stage], corpus: Corpus, workers: Workers, months: float = 1.0
) -> dict[str, float]:
    """Dollars: cores for as long as the stages take, storage, requests."""
    seconds = sum(stage.seconds for stage in stages)
    kept = corpus.text * corpus.compression + corpus.rows
    writes = sum(stage.written for stage in stages) / workers.request_bytes
    reads = sum(stage.read for stage in stages) / workers.request_bytes
    return {
        "workers": seconds / 3600 * workers.count * workers.cores * workers.core_hour,
        "storage": kept / 1e12 * workers.terabyte_month * months,
        "requests": (
            writes / 1000 * workers.thousand_writes + reads / 1000 * workers.thousand_reads
        ),
    }  # fmt: skip
