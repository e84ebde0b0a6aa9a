"""Random access to the raw Parquet files by row group: the unit of work of packing.

Price: one column of one row group (4 MiB of text, or one longer document) in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.exceptions import IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa

REMEDY = "run `dvc repro download`, which writes it anew"


def group_sizes(path: Path) -> list[int]:
    """Documents in each row group of a raw file, from its footer.

    Raises:
        IntegrityError: missing, or not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        metadata = parquet.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_group(path: Path, group: int, column: str) -> pa.ChunkedArray:
    """One column ("text" or "source") of one row group, page checksums verified.

    Raises:
        IntegrityError: missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            return file.read_row_group(group, columns=[column], use_threads=False)[column]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path}: cannot be read as Parquet ({error}); {REMEDY}")
