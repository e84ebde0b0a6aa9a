"""Read a source into a `RawBuild`, unit by unit, here or on Ray's workers.

On Ray, workers read units (fetch, decompress, parse, check, hash) and this process does what
depends on all that came before: the side of a document that is in validation too, the end of
`max_documents`, the books, the ends of files, and the numbers of lines in a file that is read in
ranges. Whatever is not plain sailing (a bad record, the last documents that are wanted, going on
after a kill) is read here, as without Ray, so that messages and books are the same too.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from typing import Any

from llm_trainer.config import SourceConfig
from llm_trainer.data import raw_file
from llm_trainer.data.chunks import CHUNK_BYTES, Chunk, chunked, read_unit
from llm_trainer.data.engine import Engine
from llm_trainer.data.intake import Intake, Reader, Source
from llm_trainer.data.ledger import Ledger
from llm_trainer.data.raw_build import RawBuild
from llm_trainer.data.sources import Split
from llm_trainer.data.units import UNIT_BYTES, Unit, list_units
from llm_trainer.digests import digest_json
from llm_trainer.exceptions import DataError

logger = logging.getLogger(__name__)

READ_AHEAD_BYTES = 128 * 2**20
"""Text that Ray's workers may hold ready of one unit, in bytes: more than that of a large
compressed file is read when it is wanted."""


def identity(source: Source, config: SourceConfig) -> str | None:
    """A digest of all that the files of data/raw depend on, to take up an earlier run by; None if
    the source does not tell whether it changed."""
    import pyarrow as pa

    if source.train_files is None and source.origin.get("revision") is None:
        return None
    files = [*(source.train_files or []), *(source.validation_files or [])]
    if any(file.tag is None for file in files):
        return None
    return digest_json(
        {
            "config": config.to_dict(),
            "files": [[file.name, file.size, file.tag] for file in files],
            "origin": source.origin,
            "sizes": [UNIT_BYTES, raw_file.FILE_BYTES, raw_file.GROUP_BYTES, raw_file.GROUP_ROWS],
            "pyarrow": pa.__version__,
        }
    )


def fill(build: RawBuild, source: Source, config: SourceConfig, engine: Engine) -> Iterator[int]:
    """Read all that `build` has not yet; yields the bytes of each document that is written.

    Raises:
        DataError: the source is missing, malformed, or gives no documents for a split.
        LLMTrainerError: Ray cannot be started or reached, or loses a part again and again.
    """
    if build.resumed:
        logger.info("going on after %s documents, which are written", f"{build.resumed:,}")
    on_ray = engine.name == "ray"
    if on_ray and source.train_files is None:
        logger.info("%s is read by one process: Ray shares out files only", source.name)
        on_ray = False
    with _connected(engine) if on_ray else nullcontext() as cluster:
        if build.phase == "validation" and source.validation is not None:
            files = source.validation_files
            yield from _phase(build, "validation", source.validation, files, config, cluster)
        yield from _phase(build, "train", source.train, source.train_files, config, cluster)


def _connected(engine: Engine) -> Any:
    from llm_trainer.data.ray_engine import connect

    return connect(engine)


def _phase(
    build: RawBuild,
    phase: Split,
    reader: Reader,
    files: list[Any] | None,
    config: SourceConfig,
    cluster: Any,
) -> Iterator[int]:
    assert build.phase == phase
    if files is None:
        yield from _add_all(build, None, _stream(build, reader, config))
        build.end_unit(None, 0)
    else:
        units = itertools.islice(list_units(files), build.unit, None)
        if build.skip:
            yield from _here(build, next(units), config)
        if cluster is None:
            for unit in units:
                if build.is_full:
                    break
                yield from _here(build, unit, config)
        else:
            yield from _there(build, units, config, cluster)
    build.end_phase()


def _stream(build: RawBuild, reader: Reader, config: SourceConfig) -> Iterator[Chunk]:
    """Chunks of a source that is read as a whole; what was read before is read again."""
    if build.replay_from is not None:
        intake = Intake(config, Ledger("download"))
        _replay(build, lambda skip, most: chunked(
            iter(reader(intake)), intake, num_bad=0, skip=skip, most=most
        ))  # fmt: skip
    intake = Intake(config, Ledger("download"))
    documents = iter(reader(intake))
    yield from chunked(documents, intake, num_bad=build.num_bad, skip=build.skip, most=build.most)


def _here(build: RawBuild, unit: Unit, config: SourceConfig) -> Iterator[int]:
    """Read (the rest of) a unit in this process."""
    if build.replay_from is not None:
        _replay(build, lambda skip, most: read_unit(
            unit, config, lines_before=build.lines_before, skip=skip, most=most
        ))  # fmt: skip
    chunks = read_unit(
        unit,
        config,
        lines_before=build.lines_before,
        num_bad=build.num_bad,
        skip=build.skip,
        most=build.most,
    )
    last = yield from _add_all(build, unit, chunks)
    build.end_unit(unit, last.num_lines)


def _add_all(
    build: RawBuild, unit: Unit | None, chunks: Iterator[Chunk]
) -> Generator[int, None, Chunk]:
    chunk = None
    for chunk in chunks:
        yield from build.add(unit, chunk)
        if build.is_full:
            break
    assert chunk is not None
    return chunk


def _replay(build: RawBuild, read: Callable[[int, Callable[[], int]], Iterator[Chunk]]) -> None:
    """Write again what no complete file has; `read` is told where to begin, and asks how far."""
    assert build.replay_from is not None
    done, build.replay_from = build.replay_from, None

    def most() -> int:
        return build.skip - done

    for chunk in read(done, most):
        build.replay(chunk, done)
        done += len(chunk)
        if done >= build.skip:
            return


def _there(
    build: RawBuild, units: Iterator[Unit], config: SourceConfig, cluster: Any
) -> Iterator[int]:
    """Read units on Ray's workers, and here what they cannot finish."""
    ahead = max(2, READ_AHEAD_BYTES // CHUNK_BYTES)
    with closing(cluster.ordered(read_unit, units, shared=(config,), ahead=ahead)) as streams:
        for unit, stream in streams:
            num_lines = yield from _add_stream(build, unit, stream, config)
            if build.is_full:
                return
            if num_lines is None:
                yield from _here(build, unit, config)
            else:
                build.end_unit(unit, num_lines)


def _add_stream(
    build: RawBuild, unit: Unit, stream: Iterator[Chunk], config: SourceConfig
) -> Generator[int, None, int | None]:
    """Take in what a worker reads; the lines of the unit, None if its end was not reached."""
    num_lines = 0
    try:
        for chunk in stream:
            if not build.takes(chunk) or _too_many(build, chunk, config):
                return None
            yield from build.add(unit, chunk, rename=True)
            num_lines = chunk.num_lines
            if build.is_full:
                return None
    except DataError as error:
        # what is read here has the message of this process, with the right line; and if it was the
        # worker's own trouble, that is over
        logger.info("a worker failed at %s, which is read here: %s", unit, error)
        return None
    return num_lines


def _too_many(build: RawBuild, chunk: Chunk, config: SourceConfig) -> bool:
    """Whether the bad records pass the limit here, for which the reader has the message."""
    return build.num_bad + chunk.num_bad > config.max_bad_lines
